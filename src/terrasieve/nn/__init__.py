"""Networks: the timm ViT over a subset of patches, decoders, positions."""
