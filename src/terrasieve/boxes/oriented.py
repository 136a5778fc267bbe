"""Oriented boxes: canonical form, corners, enclosing horizontal boxes, and the way back from polygons.

Between the files' polygons and everything that learns or measures boxes; see the package for the convention.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

HALF_TURN = math.pi


def canonical(boxes: Tensor) -> Tensor:
    """Write the same rectangles with w >= h and the angle in [-pi/2, pi/2).

    Args:
        boxes: (..., 5), any sizes >= 0 and any angle.
    """
    cx, cy, w, h, angle = boxes.unbind(-1)
    upright = w < h
    angle = torch.where(upright, angle + HALF_TURN / 2, angle)
    angle = torch.remainder(angle + HALF_TURN / 2, HALF_TURN) - HALF_TURN / 2
    # The remainder of a tiny negative number rounds to the divisor itself.
    angle = torch.where(angle >= HALF_TURN / 2, angle - HALF_TURN, angle)
    return torch.stack([cx, cy, torch.where(upright, h, w), torch.where(upright, w, h), angle], dim=-1)


def corners(boxes: Tensor) -> Tensor:
    """Return the corners in the order (-w, -h), (w, -h), (w, h), (-w, h): (..., 5) -> (..., 4, 2) pixels."""
    centre, w, h, angle = boxes[..., None, :2], boxes[..., 2], boxes[..., 3], boxes[..., 4]
    cos, sin = angle.cos(), angle.sin()
    along = torch.stack([w * cos, w * sin], dim=-1) / 2
    across = torch.stack([-h * sin, h * cos], dim=-1) / 2
    return centre + torch.stack([-along - across, along - across, along + across, across - along], dim=-2)


def bounds(polygons: Tensor) -> Tensor:
    """Return the enclosing horizontal boxes of polygons: (..., P, 2) -> (..., 4)."""
    return torch.cat([polygons.amin(dim=-2), polygons.amax(dim=-2)], dim=-1)


def enclosing(boxes: Tensor) -> Tensor:
    """Return the smallest horizontal boxes around oriented ones: (..., 5) -> (..., 4)."""
    w, h, angle = boxes[..., 2], boxes[..., 3], boxes[..., 4]
    cos, sin = angle.cos().abs(), angle.sin().abs()
    half = torch.stack([w * cos + h * sin, w * sin + h * cos], dim=-1) / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], dim=-1)


def from_horizontal(boxes: Tensor) -> Tensor:
    """Write horizontal boxes as canonical oriented ones: (..., 4) -> (..., 5)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return canonical(torch.cat([(low + high) / 2, high - low, torch.zeros_like(boxes[..., :1])], dim=-1))


def rectangle(boxes: Tensor) -> Tensor:
    """Return the corners of horizontal boxes, clockwise as seen from the left top: (..., 4) -> (..., 4, 2)."""
    left, top, right, bottom = boxes.unbind(-1)
    points = [left, top, right, top, right, bottom, left, bottom]
    return torch.stack(points, dim=-1).view(*boxes.shape[:-1], 4, 2)


def from_polygons(polygons: Tensor) -> Tensor:
    """Return the canonical rectangle of the smallest area around each polygon: (..., P, 2) -> (..., 5).

    One side of that rectangle lies along an edge of the polygon's convex hull (Freeman & Shapira, 1975), so it is exact
    where the polygons are convex, as quadrangles of boxes are; corners given twice and zero area are fine.
    """
    work = polygons.double()
    centre = work.mean(dim=-2, keepdim=True)
    points = work - centre
    edges = points.roll(-1, -2) - points
    angles = torch.atan2(edges[..., 1], edges[..., 0])  # (..., P); 0 of an edge without length, a harmless candidate
    cos, sin = angles.cos()[..., None], angles.sin()[..., None]
    x, y = points[..., None, :, 0], points[..., None, :, 1]
    along, across = x * cos + y * sin, y * cos - x * sin  # (..., P edges, P points)
    low = torch.stack([along.amin(-1), across.amin(-1)], dim=-1)
    high = torch.stack([along.amax(-1), across.amax(-1)], dim=-1)
    size = high - low
    # Among equal areas the shorter girth: of a polygon without area, the box along it.
    cost = size.prod(-1) + 1e-9 * size.sum(-1).square()
    best = cost.argmin(dim=-1, keepdim=True)
    size, middle = (v.gather(-2, best[..., None].expand(*best.shape, 2)).squeeze(-2) for v in (size, (low + high) / 2))
    angle = angles.gather(-1, best).squeeze(-1)
    cos, sin = angle.cos(), angle.sin()
    cx = middle[..., 0] * cos - middle[..., 1] * sin + centre[..., 0, 0]
    cy = middle[..., 0] * sin + middle[..., 1] * cos + centre[..., 0, 1]
    return canonical(torch.stack([cx, cy, size[..., 0], size[..., 1], angle], dim=-1)).to(polygons.dtype)
