"""Suppress: non-maximum suppression of oriented boxes, the same as the naive loop's.

After ``overlap``, whose formula it computes for one pair at a time in compiled code: most pairs are settled by their
circles or by their areas alone, and a suppressed box is never looked at again. On the CPU, wherever the boxes are.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terrasieve.boxes.overlap import PARTED


def suppress(boxes_N5: Tensor, scores_N: Tensor, threshold: float, classes_N: Tensor | None = None) -> Tensor:
    """Keep the boxes that no better one overlaps.

    Args:
        boxes_N5: oriented boxes.
        scores_N: the higher the better; of equal ones the first is better.
        threshold: a box is dropped when its intersection over union with a kept one is larger.
        classes_N: int64, boxes of different classes do not suppress each other; None = all of one.

    Returns:
        (K,) int64 rows of the kept boxes, best first, on the boxes' device.
    """
    order = scores_N.argsort(descending=True, stable=True).cpu().numpy()
    boxes = boxes_N5.detach().cpu().double().numpy()[order]
    classes = np.zeros(len(order), np.int64) if classes_N is None else classes_N.cpu().numpy()[order]
    kept = _kept(np.ascontiguousarray(boxes), classes, float(threshold))
    return torch.from_numpy(order[kept]).to(boxes_N5.device)


@numba.njit(cache=True, nogil=True)
def _kept(boxes: NDArray[np.float64], classes: NDArray[np.int64], threshold: float) -> NDArray[np.bool_]:
    n = len(boxes)
    kept = np.ones(n, np.bool_)
    radius, area = np.empty(n), np.empty(n)
    for i in range(n):
        radius[i] = 0.5 * math.sqrt(boxes[i, 2] ** 2 + boxes[i, 3] ** 2)
        area[i] = boxes[i, 2] * boxes[i, 3]
    for i in range(n):
        if not kept[i]:
            continue
        for j in range(i + 1, n):
            if not kept[j] or classes[i] != classes[j]:
                continue
            dx, dy, reach = boxes[j, 0] - boxes[i, 0], boxes[j, 1] - boxes[i, 1], radius[i] + radius[j]
            if dx * dx + dy * dy > reach * reach:
                continue
            # The common area is at most the smaller one.
            if min(area[i], area[j]) <= threshold * max(area[i], area[j]) * (1 - 1e-9):
                continue
            common = _common(boxes[i], boxes[j])
            union = area[i] + area[j] - common
            if union > 0 and common > threshold * union:
                kept[j] = False
    return kept


@numba.njit(cache=True, nogil=True)
def _common(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the common area, see ``overlap.common_area``."""
    dx, dy, cos_a, sin_a = b[0] - a[0], b[1] - a[1], math.cos(a[4]), math.sin(a[4])
    cos, sin = math.cos(b[4] - a[4]), math.sin(b[4] - a[4])
    x, y = cos_a * dx + sin_a * dy, cos_a * dy - sin_a * dx
    p, q, u, v = a[2] / 2, a[3] / 2, b[2] / 2 * PARTED, b[3] / 2 * PARTED
    twice = _swept(u, v, x, y, cos, sin, p, q, 0.0)
    twice += _swept(p, q, -cos * x - sin * y, sin * x - cos * y, cos, -sin, u, v, 2 * p * q)
    return float(min(max(twice / 2, 0.0), a[2] * a[3], b[2] * b[3]))


@numba.njit(cache=True, nogil=True)
def _swept(u: float, v: float, x: float, y: float, cos: float, sin: float, p: float, q: float, each: float) -> float:
    """Sum twice the area swept by the parts of a turned box's edges within [-p, p] x [-q, q]; ``each``: by an edge."""
    total = 0.0
    sx, sy = x - u * cos + v * sin, y - u * sin - v * cos
    ex, ey = 2 * u * cos, 2 * u * sin
    fx, fy = -2 * v * sin, 2 * v * cos
    for _ in range(4):
        enter, leave = 0.0, 1.0
        for s, e, half in ((sx, ex, p), (sy, ey, q)):
            if e == 0.0:
                if abs(s) > half:
                    leave = -1.0
            else:
                one, other = (-half - s) / e, (half - s) / e
                enter, leave = max(enter, min(one, other)), min(leave, max(one, other))
        if leave > enter:
            total += (leave - enter) * (each if each > 0.0 else sx * ey - sy * ex)
        sx, sy = sx + ex, sy + ey
        ex, ey, fx, fy = fx, fy, -ex, -ey
    return total
