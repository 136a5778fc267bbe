"""Frames: one coordinate system for images of neighbouring ground, and where every patch lies in it.

Between the pairs that ``data`` draws and the encoder. A box is left, top, right, bottom; the origin is bottom-left, so
that top > bottom. Source: NeighborMAE (Zeng et al., CVPR 2026), METHODS.md, section 4; the isotropic frame and the one
in metres are ours.

Legend: B groups, K images of a group, N patches of a grid in raster order, D channels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

FRAME = 32.0
Frame = Literal["axes", "isotropic", "metres"]


def shared_frame(footprints_BK4: Tensor, kind: Frame = "axes", metres_per_unit: float = 80.0) -> Tensor:
    """Put footprints into a frame of their union, whose lower left corner is the origin.

    Args:
        footprints_BK4: left, top, right, bottom in metres of one projection (or any unit, but for "metres").
        kind: "axes" = the union fills [0, 32] on each axis (published); "isotropic" = its longer side does, and
            shapes stay; "metres" = a fixed scale, so that ground resolution survives.
        metres_per_unit: of the frame "metres". At 80, a patch of 16 px at 10 m is 2 units, as in MAE's grid of 16.

    Returns:
        (B, K, 4) boxes.
    """
    left_B, bottom_B = footprints_BK4[..., 0].amin(1), footprints_BK4[..., 3].amin(1)
    extent_B2 = torch.stack([footprints_BK4[..., 2].amax(1) - left_B, footprints_BK4[..., 1].amax(1) - bottom_B], 1)
    if kind == "isotropic":
        extent_B2 = extent_B2.amax(1, keepdim=True).expand(-1, 2)
    scale_B2 = torch.full_like(extent_B2, 1 / metres_per_unit) if kind == "metres" else FRAME / extent_B2
    origin_B4 = torch.stack([left_B, bottom_B, left_B, bottom_B], dim=1)
    return (footprints_BK4 - origin_B4[:, None]) * scale_B2.repeat(1, 2)[:, None]


def pair_iou(boxes_B24: Tensor) -> Tensor:
    """Return the area that two boxes share over the area that they cover, (B,) in [0, 1]."""
    one, other = boxes_B24.unbind(1)
    width = torch.minimum(one[:, 2], other[:, 2]) - torch.maximum(one[:, 0], other[:, 0])
    height = torch.minimum(one[:, 1], other[:, 1]) - torch.maximum(one[:, 3], other[:, 3])
    shared = width.clamp(min=0) * height.clamp(min=0)
    areas = (boxes_B24[..., 2] - boxes_B24[..., 0]) * (boxes_B24[..., 1] - boxes_B24[..., 3])
    return shared / (areas.sum(1) - shared)


def mask_ratio(boxes_B24: Tensor) -> Tensor:
    """Return the share of patches to hide, (B,) in [.75, .85]: the more is shared, the more."""
    return 0.75 + 0.10 * pair_iou(boxes_B24)


def patch_corners(boxes_BK4: Tensor, grid: int | tuple[int, int]) -> Tensor:
    """Return the box of every patch.

    Args:
        boxes_BK4: of the images.
        grid: patches per column and row, or one number for both.

    Returns:
        (B, K, N, 4) left, top, right, bottom, row by row from the top left.
    """
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    left, top, right, bottom = (edge[..., None] for edge in boxes_BK4.unbind(-1))
    across = left + (right - left) * torch.arange(columns + 1, device=boxes_BK4.device) / columns
    down = top + (bottom - top) * torch.arange(rows + 1, device=boxes_BK4.device) / rows
    edges = (across[..., None, :-1], down[..., :-1, None], across[..., None, 1:], down[..., 1:, None])
    return torch.stack([edge.expand(*left.shape[:-1], rows, columns) for edge in edges], dim=-1).flatten(2, 3)


def corner_embedding(corners: Tensor, dim: int) -> Tensor:
    """Return the sine-cosine embedding of boxes: each edge c has dim / 4 channels, sin(c w) and then cos(c w).

    Args:
        corners: (..., 4).
        dim: channels, a multiple of 8 and at least 16; w_k = 10000^(-k / (n - 1)) with n = dim / 8.

    Returns:
        (..., dim) float32.

    Raises:
        ValueError: for another ``dim``.
    """
    if dim % 8 or dim < 16:
        raise ValueError(f"dim {dim} is not a multiple of 8 that is at least 16")
    n = dim // 8
    w = 10000.0 ** (-torch.arange(n, device=corners.device, dtype=torch.float32) / (n - 1))
    phase = corners.float()[..., None] * w
    return torch.cat([phase.sin(), phase.cos()], dim=-1).flatten(-2)
