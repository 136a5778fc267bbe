"""Small state dicts with the key names and shapes of published checkpoints, and the features of their models."""

# ruff: noqa: E501 - key names are published as they are
from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor

from terrasieve import keyed

WIDTH = 192


def normal(*shape: int) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=keyed.generator(0, "test-layouts", sum(shape)))


def vit(bands: int = 3, size: int = 64) -> torch.nn.Module:
    model = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=0, in_chans=bands, img_size=size).eval()
    for index, parameter in enumerate(model.parameters()):  # timm starts many at 0 or 1, which would hide a swap
        constant = parameter.data if parameter.ndim == 1 else 0.0
        parameter.data = constant + 0.1 * torch.randn(parameter.shape, generator=keyed.generator(0, "layouts", index))
    return model


def decoder(width: int = 8) -> dict[str, Tensor]:
    keys = {"mask_token": (1, 1, width), "decoder_pos_embed": (1, 17, width), "decoder_embed.weight": (width, WIDTH)}
    keys |= {"decoder_blocks.0.attn.qkv.weight": (3 * width, width), "decoder_norm.weight": (width,)}
    return {key: torch.zeros(shape) for key, shape in {**keys, "decoder_pred.weight": (768, width)}.items()}


EXTRA: dict[str, dict[str, Tensor]] = {
    "timm ViT": {"head.weight": torch.zeros(5, WIDTH), "head.bias": torch.zeros(5)},
    "MAE or SatMAE": decoder(),
    "SelectiveMAE": {
        **{key: value for key, value in decoder().items() if key != "decoder_embed.weight"},
        "decoder_embed1.weight": torch.zeros(8, WIDTH),
        "decoder_blocks.0.cross_attn.kv.weight": torch.zeros(16, WIDTH),
        "pos_embed_probs": torch.zeros(1, 16, WIDTH),
        "get_token_probs.0.norm1.weight": torch.zeros(WIDTH),
        "get_token_probs_linear.weight": torch.zeros(1, WIDTH),
        "hog.weight_x": torch.zeros(3, 1, 3, 3),
        "hog.gkern": torch.zeros(16, 16),
    },
    "CrossMAE": decoder() | {"decoder_blocks.0.cross_attn.q.weight": torch.zeros(8, 8), "wfm.linear.weight": torch.zeros(1)},
    "Cross-Scale MAE": decoder() | {"predictor.net.0.weight": torch.zeros(8, 8)},
    "SatMAE++": decoder() | {"proj_up_conv.weight": torch.zeros(12, 3, 1, 1), "up_block.up_norm.weight": torch.zeros(12)},
}  # fmt: skip


def images(bands: int = 3, size: int = 64) -> Tensor:
    return torch.randn(2, bands, size, size, generator=keyed.generator(1, "test-layouts"))


def expected(model: Any, image: Tensor) -> Tensor:
    with torch.no_grad():
        return model.forward_features(image)[:, 1:].mean(1)


def features(encoder: Any, image: Tensor) -> Tensor:
    with torch.no_grad():
        return encoder.features(image)


def satmae(extra: dict[str, Tensor] | None = None, sizes: tuple[int, ...] = (4, 4, 2)) -> dict[str, Tensor]:
    state = {
        key: value for key, value in vit().state_dict().items() if not key.startswith(("patch_embed", "pos_embed"))
    }
    for group, size in enumerate(sizes):
        state[f"patch_embed.{group}.proj.weight"] = normal(WIDTH, size, 8, 8)
        state[f"patch_embed.{group}.proj.bias"] = normal(WIDTH) + group
    state |= {"pos_embed": normal(1, 17, WIDTH - 48), "channel_embed": normal(1, len(sizes), 48)}
    return state | decoder() | {"decoder_channel_embed": torch.zeros(1, 4, 2)} | (extra or {})
