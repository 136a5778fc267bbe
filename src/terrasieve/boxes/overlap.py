"""Overlap: how much of two oriented boxes is common, exactly, for many pairs at once on any device.

After ``oriented``; assignment of boxes to objects and the metrics ask it. The area common to two convex polygons is the
line integral (x dy - y dx) / 2 around it (Green), and its border consists of those parts of the edges of each that lie
within the other. An edge against a rectangle is a clip between two pairs of parallel lines (Liang & Barsky, 1984), so a
pair costs eight clips and no sorting, whatever the position. Edges that fall together would be counted twice or never:
the second box is taken larger by 1e-7 of its sides, which parts them.

torchvision's rotated ``box_iou`` is as exact on boxes near the origin; it takes degrees, needs torchvision 0.26, and
has no form for single pairs (docs/detection.md has the comparison).
"""

from __future__ import annotations

import torch
from torch import Tensor

PARTED = 1 + 1e-7
CHUNK_PAIRS = 2**18  # looked at together: some 100 MiB of float64


def areas(boxes: Tensor) -> Tensor:
    """Return areas of oriented boxes: (..., 5) -> (...)."""
    return boxes[..., 2] * boxes[..., 3]


def common_area(a: Tensor, b: Tensor) -> Tensor:
    """Return the area common to two oriented boxes, pair by pair: (..., 5) and (..., 5), broadcast -> (...) float64."""
    shape = torch.broadcast_shapes(a.shape, b.shape)  # type: ignore[no-untyped-call]
    a, b = a.double().expand(shape), b.double().expand(shape)
    apart = b[..., :2] - a[..., :2]
    cos_a, sin_a = a[..., 4].cos(), a[..., 4].sin()
    turn = b[..., 4] - a[..., 4]
    cos, sin = turn.cos(), turn.sin()
    # The centre of b as a sees it, and of a as b sees it; both see their own sides along the axes.
    x, y = cos_a * apart[..., 0] + sin_a * apart[..., 1], cos_a * apart[..., 1] - sin_a * apart[..., 0]
    half_a, half_b = a[..., 2:4] / 2, b[..., 2:4] / 2 * PARTED
    starts_b, edges_b = _edges(half_b, x, y, cos, sin)
    starts_a, edges_a = _edges(half_a, -cos * x - sin * y, sin * x - cos * y, cos, -sin)
    inside_a = _inside(starts_b, edges_b, half_a)
    inside_b = _inside(starts_a, edges_a, half_b)
    swept_b = starts_b[..., 0] * edges_b[..., 1] - starts_b[..., 1] * edges_b[..., 0]
    # Around its own centre each of the four edges of a sweeps the same, half of its area twice.
    twice = (inside_a * swept_b).sum(-1) + inside_b.sum(-1) * 2 * half_a.prod(-1)
    return (twice / 2).clamp_min(0).minimum(torch.minimum(areas(a), areas(b)))


def iou_of_pairs(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection over union, pair by pair: (..., 5) and (..., 5), broadcast -> (...) of a's type.

    0 where a box has no area.
    """
    common = common_area(a, b)
    union = areas(a.double()) + areas(b.double()) - common
    return torch.where(union > 0, common / union, 0.0).to(a.dtype)


def iou(a_N5: Tensor, b_M5: Tensor) -> Tensor:
    """Return the intersection over union of all pairs: (N, M) of a's type; only pairs that may touch are computed."""
    result = a_N5.new_zeros(len(a_N5), len(b_M5))
    radius_a, radius_b = (boxes[:, 2:4].norm(dim=1) / 2 for boxes in (a_N5, b_M5))
    rows = max(1, 2**24 // max(len(b_M5), 1))
    for start in range(0, len(a_N5), rows):
        part = slice(start, start + rows)
        apart = (a_N5[part, None, :2] - b_M5[None, :, :2]).square().sum(-1)
        i, j = torch.nonzero(apart <= (radius_a[part, None] + radius_b).square() * (1 + 1e-5), as_tuple=True)
        for k, m in zip(torch.split(i, CHUNK_PAIRS), torch.split(j, CHUNK_PAIRS), strict=True):
            result[k + start, m] = iou_of_pairs(a_N5[k + start], b_M5[m])
    return result


def common_area_upright(a_N4: Tensor, b_M4: Tensor) -> Tensor:
    """Return the area common to all pairs of horizontal boxes: (N, 4) and (M, 4) -> (N, M)."""
    low, high = torch.maximum(a_N4[:, None, :2], b_M4[:, :2]), torch.minimum(a_N4[:, None, 2:], b_M4[:, 2:])
    return (high - low).clamp_min(0).prod(-1)


def covered(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the largest share of each box's own area that one of ``others`` covers: (N,), 0 without others.

    Args:
        boxes: (N, 4) horizontal or (N, 5) oriented.
        others: (M, 4) or (M, 5), likewise.
    """
    largest = boxes.new_zeros(len(boxes))
    rows = max(1, CHUNK_PAIRS // max(len(others), 1))
    for start in range(0, len(boxes) if len(others) else 0, rows):
        part = boxes[start : start + rows]
        if part.shape[1] == 4:
            own, common = (part[:, 2:] - part[:, :2]).clamp_min(0).prod(-1), common_area_upright(part, others)
        else:
            own, common = areas(part), common_area(part[:, None], others).to(part.dtype)
        most = common.amax(1)
        largest[start : start + rows] = torch.where(own > 0, most / own, 0.0)
    return largest


def _edges(half: Tensor, x: Tensor, y: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return starts and directions of the four edges, one way around, of a box at x, y, turned: (..., 4, 2) each."""
    u, v = half.unbind(-1)
    along, across = torch.stack([u * cos, u * sin], dim=-1), torch.stack([-v * sin, v * cos], dim=-1)
    centre = torch.stack([x, y], dim=-1)
    starts = torch.stack([-along - across, along - across, along + across, across - along], dim=-2)
    edges = torch.stack([2 * along, 2 * across, -2 * along, -2 * across], dim=-2)
    return starts + centre[..., None, :], edges


def _inside(starts: Tensor, edges: Tensor, half: Tensor) -> Tensor:
    """Return the share of each edge within [-half, half]: (..., 4)."""
    half = half[..., None, :]
    still = edges == 0
    step = torch.where(still, 1.0, edges)
    one, other = (-half - starts) / step, (half - starts) / step
    within = starts.abs() <= half
    enter = torch.where(still, torch.where(within, 0.0, 2.0), torch.minimum(one, other))
    leave = torch.where(still, 1.0, torch.maximum(one, other))
    return (leave.amin(-1).clamp_max(1) - enter.amax(-1).clamp_min(0)).clamp_min(0)
