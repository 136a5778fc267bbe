"""Coding: boxes as numbers that a network is good at saying, relative to where it looks.

After ``oriented``; the oriented detector learns these. Two codes of Oriented R-CNN (Xie et al., ICCV 2021): the
midpoint offsets of a proposal relative to a horizontal anchor, and the five differences between two oriented boxes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from terrasieve.boxes.oriented import bounds, canonical, corners

LARGEST_LOG = math.log(1000 / 16)  # a box grows at most by this, as in torchvision
SPREAD = (0.1, 0.1, 0.2, 0.2, 0.1)  # differences are divided by these, so that they are about as large as each other


def to_midpoints(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Say oriented boxes by midpoint offsets relative to horizontal anchors: (..., 5), (..., 4) -> (..., 6).

    The first four place the enclosing horizontal box; the others say how far along its top and its right side the
    corners lie from the middles of these sides, as shares of its width and height.
    """
    points = corners(boxes)
    outer = bounds(points)
    size, centre = outer[..., 2:] - outer[..., :2], (outer[..., :2] + outer[..., 2:]) / 2
    anchor_size, anchor_centre = anchors[..., 2:] - anchors[..., :2], (anchors[..., :2] + anchors[..., 2:]) / 2
    top = points.gather(-2, _at(points[..., 1].argmin(-1)))[..., 0, 0]
    right = points.gather(-2, _at(points[..., 0].argmax(-1)))[..., 0, 1]
    # An upright box has two corners on each side; that both are the same way around makes them one box.
    upright = _upright(points, size)
    top = torch.where(upright, outer[..., 2], top)
    right = torch.where(upright, outer[..., 3], right)
    offsets = torch.stack([top - centre[..., 0], right - centre[..., 1]], dim=-1) / size
    return torch.cat([(centre - anchor_centre) / anchor_size, (size / anchor_size).log(), offsets], dim=-1)


def _upright(points: Tensor, size: Tensor) -> Tensor:
    """Tell boxes whose sides lie along the axes, to a thousandth of their size."""
    edge = (points[..., 1, :] - points[..., 0, :]).abs()
    return (edge <= 1e-3 * size.amin(-1, keepdim=True)).any(-1)


def _at(place: Tensor) -> Tensor:
    return place[..., None, None].expand(*place.shape, 1, 2)


def from_midpoints(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Return the canonical boxes that midpoint offsets say: (..., 6), (..., 4) -> (..., 5).

    What they say is a parallelogram; its shorter diagonal is lengthened to the longer one's, which makes a rectangle.
    """
    anchor_size, anchor_centre = anchors[..., 2:] - anchors[..., :2], (anchors[..., :2] + anchors[..., 2:]) / 2
    centre = offsets[..., :2] * anchor_size + anchor_centre
    size = offsets[..., 2:4].clamp_max(LARGEST_LOG).exp() * anchor_size
    shift = offsets[..., 4:].clamp(-0.5, 0.5) * size
    to_top = torch.stack([shift[..., 0], -size[..., 1] / 2], dim=-1)
    to_right = torch.stack([size[..., 0] / 2, shift[..., 1]], dim=-1)
    lengths = torch.stack([to_top.norm(dim=-1), to_right.norm(dim=-1)], dim=-1)
    longest = lengths.amax(-1)[..., None]
    to_top, to_right = (
        v * (longest / n[..., None]) for v, n in zip((to_top, to_right), lengths.unbind(-1), strict=True)
    )
    along, across = to_right - to_top, to_right + to_top
    angle = torch.atan2(along[..., 1], along[..., 0])
    return canonical(torch.cat([centre, torch.stack([along.norm(dim=-1), across.norm(dim=-1), angle], -1)], dim=-1))


def to_differences(boxes: Tensor, proposals: Tensor) -> Tensor:
    """Say oriented boxes by their differences from oriented proposals: (..., 5), (..., 5) -> (..., 5).

    Shifts are along the proposal's own sides, as shares of them. A box turned by a quarter with its sides exchanged is
    the same box, so the angle's difference is at most an eighth of a turn.
    """
    apart = boxes[..., :2] - proposals[..., :2]
    cos, sin = proposals[..., 4].cos(), proposals[..., 4].sin()
    dx = (apart[..., 0] * cos + apart[..., 1] * sin) / proposals[..., 2]
    dy = (apart[..., 1] * cos - apart[..., 0] * sin) / proposals[..., 3]
    turn = boxes[..., 4] - proposals[..., 4]
    quarters = (turn / (math.pi / 2)).round()
    swapped = quarters.remainder(2) == 1
    size = torch.where(swapped[..., None], boxes[..., 2:4].flip(-1), boxes[..., 2:4])
    dw, dh = (size / proposals[..., 2:4]).log().unbind(-1)
    return torch.stack([dx, dy, dw, dh, turn - quarters * math.pi / 2], dim=-1) / boxes.new_tensor(SPREAD)


def from_differences(differences: Tensor, proposals: Tensor) -> Tensor:
    """Return the canonical boxes at these differences from oriented proposals: (..., 5), (..., 5) -> (..., 5)."""
    dx, dy, dw, dh, turn = (differences * differences.new_tensor(SPREAD)).unbind(-1)
    cx, cy, w, h, angle = proposals.unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    x, y = dx * w, dy * h
    size = [side * log.clamp_max(LARGEST_LOG).exp() for side, log in ((w, dw), (h, dh))]
    return canonical(torch.stack([cx + x * cos - y * sin, cy + x * sin + y * cos, *size, angle + turn], dim=-1))
