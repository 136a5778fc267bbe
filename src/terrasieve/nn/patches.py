"""Patches: pixels to flat patches and back, and picking tokens by id.

The first step of every masked method. A patch is flattened as (C, p, p), the layout of the ViT's patch embedding, so
one view of the pixels serves the encoder and the reconstruction targets.
"""

from __future__ import annotations

import torch
from torch import Tensor


def patchify(images_BCHW: Tensor, patch_px: int) -> Tensor:
    """Cut images into flat patches: (B, C, H, W) -> (B, N, C * p * p), row-major.

    Raises:
        ValueError: if ``patch_px`` does not divide the image.
    """
    B, C, H, W = images_BCHW.shape
    p = patch_px
    if H % p or W % p:
        raise ValueError(f"patch of {p} px does not divide an image of {H} x {W} px")
    cut = images_BCHW.reshape(B, C, H // p, p, W // p, p)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(B, (H // p) * (W // p), C * p * p)


def unpatchify(patches_BNP: Tensor, patch_px: int, height_px: int, width_px: int) -> Tensor:
    """Put flat patches back together: the inverse of :func:`patchify`."""
    B, _, P = patches_BNP.shape
    p = patch_px
    C = P // (p * p)
    laid = patches_BNP.reshape(B, height_px // p, width_px // p, C, p, p)
    return laid.permute(0, 3, 1, 4, 2, 5).reshape(B, C, height_px, width_px)


def take(values_BND: Tensor, ids_BK: Tensor) -> Tensor:
    """Pick tokens by id, row by row: (B, N, D), (B, K) -> (B, K, D)."""
    return torch.gather(values_BND, 1, ids_BK[..., None].expand(-1, -1, values_BND.shape[-1]))
