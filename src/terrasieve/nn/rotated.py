"""Rotated RoI align: from a pyramid of maps and oriented boxes to one small map per box, upright along the box.

Between ``pyramid`` and the head of a detector. RoIAlign (He et al., ICCV 2017) on a turned grid: every cell of the
small map is the mean of ``samples`` x ``samples`` bilinear readings. One weighted sum of rows over all levels laid end
to end serves all images and levels at once; ``grid_sample`` would need a call per image and level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CANONICAL_PX = 224.0  # a box of this size is read from level ``CANONICAL_LEVEL`` (Lin et al., CVPR 2017)
CANONICAL_LEVEL = 4  # of stride 16


def levels_of(boxes_R5: Tensor, strides: Sequence[float], canonical_px: float = CANONICAL_PX) -> Tensor:
    """Choose the level that each box is read from, as the feature pyramid network does: (R,) int64.

    Args:
        boxes_R5: pixels of the image.
        strides: pixels per cell of each level, each twice the one before.
        canonical_px: side of a square box that is read from stride 16.
    """
    size = (boxes_R5[:, 2] * boxes_R5[:, 3]).clamp_min(1e-6).sqrt()
    level = ((size / canonical_px).log2() + 1e-6).floor() + CANONICAL_LEVEL - math.log2(strides[0])
    return level.clamp(0, len(strides) - 1).long()


def rotated_roi_align(
    maps: Sequence[Tensor],
    strides: Sequence[float],
    boxes_R5: Tensor,
    image_R: Tensor,
    side: int = 7,
    samples: int = 2,
    levels_R: Tensor | None = None,
) -> Tensor:
    """Read a side x side map of every box: (R, D, side, side), rows along the box's h, columns along its w.

    Args:
        maps: (B, D, h, w) per level, finest first.
        strides: pixels of the image per cell of each level.
        boxes_R5: oriented boxes in pixels of the image.
        image_R: (R,) int64, the image that each box is of.
        side: cells.
        samples: readings per cell and axis.
        levels_R: (R,) int64, level that each box is read from; None = ``levels_of``.

    A reading outside the map is the nearest one within it up to one cell away, and 0 beyond, as in torchvision.
    """
    levels_R = levels_of(boxes_R5, strides) if levels_R is None else levels_R
    D, R = maps[0].shape[1], len(boxes_R5)
    device, dtype = boxes_R5.device, maps[0].dtype
    sizes = [(int(x.shape[-2]), int(x.shape[-1])) for x in maps]
    starts = [0]
    for x, (h, w) in zip(maps, sizes, strict=True):
        starts.append(starts[-1] + x.shape[0] * h * w)
    rows_TD = torch.cat([x.permute(0, 2, 3, 1).reshape(-1, D) for x in maps])
    of_level = torch.tensor(
        [[h, w, start, stride] for (h, w), start, stride in zip(sizes, starts[:-1], strides, strict=True)],
        dtype=torch.float64, device=device,
    )[levels_R]  # fmt: skip
    h_R, w_R, start_R = of_level[:, :3].long().unbind(1)
    points_RS2 = _points(boxes_R5, side * samples) / of_level[:, 3, None, None].to(boxes_R5.dtype) - 0.5
    ids, weights = _bilinear(points_RS2, h_R, w_R)
    ids = ids + (start_R + image_R * h_R * w_R)[:, None, None]
    # Readings in the order of the cells that they are averaged into.
    cells = (R, side, samples, side, samples, 4)
    order = (0, 1, 3, 2, 4, 5)
    ids, weights = (v.view(cells).permute(order).reshape(R * side**2, 4 * samples**2) for v in (ids, weights))
    weights = (weights / samples**2).to(dtype)
    read_PD = F.embedding_bag(ids, rows_TD, mode="sum", per_sample_weights=weights)
    return read_PD.view(R, side, side, D).permute(0, 3, 1, 2)


def _points(boxes_R5: Tensor, count: int) -> Tensor:
    """Place count x count points evenly over each box, along h first: (R, count * count, 2) pixels."""
    steps = (torch.arange(count, device=boxes_R5.device, dtype=boxes_R5.dtype) + 0.5) / count - 0.5
    across, along = (v.flatten() for v in torch.meshgrid(steps, steps, indexing="ij"))
    x, y = along * boxes_R5[:, 2:3], across * boxes_R5[:, 3:4]
    cos, sin = boxes_R5[:, 4:5].cos(), boxes_R5[:, 4:5].sin()
    return torch.stack([boxes_R5[:, 0:1] + x * cos - y * sin, boxes_R5[:, 1:2] + x * sin + y * cos], dim=-1)


def _bilinear(points_RS2: Tensor, h_R: Tensor, w_R: Tensor) -> tuple[Tensor, Tensor]:
    """Return the four cells around each point, as places in its map, and their weights: (R, S, 4) each."""
    x, y = points_RS2.unbind(-1)
    last_x, last_y = (w_R - 1)[:, None], (h_R - 1)[:, None]
    near = (x >= -1) & (x <= last_x + 1) & (y >= -1) & (y <= last_y + 1)
    x, y = x.clamp_min(0).minimum(last_x.to(x.dtype)), y.clamp_min(0).minimum(last_y.to(y.dtype))
    left, top = x.floor(), y.floor()
    dx, dy = x - left, y - top
    columns, lines = (torch.stack([v, v + 1], dim=-1) for v in (left.long(), top.long()))
    columns, lines = columns.minimum(last_x[..., None]), lines.minimum(last_y[..., None])
    ids = (lines[..., :, None] * w_R[:, None, None, None] + columns[..., None, :]).flatten(-2)
    weights = torch.stack([1 - dy, dy], dim=-1)[..., :, None] * torch.stack([1 - dx, dx], dim=-1)[..., None, :]
    return ids, weights.flatten(-2) * near[..., None]
