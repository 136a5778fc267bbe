"""Agreement: how well two thumbnails show the same, but for brightness and a crop or shift of some percent.

Called by ``judge`` for pairs that the join found. A 2 % crop moves fine texture of a 32 x 32 thumbnail by half a pixel,
which halves its correlation; so where plain correlation does not decide, the shift and scale that align the two are
found by Gauss-Newton steps (inverse compositional Lucas-Kanade), and the correlation is that of the aligned pair.
Source: Baker & Matthews, IJCV 2004 (the alignment).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from terrasieve.curate.hashing import ORIENTATIONS
from terrasieve.imagery.grey import SIDE

STEPS = 8
_MOST_SCALE = 0.08  # of a side
_MOST_SHIFT = 2.5  # thumbnail pixels, 8 % of a side
_SURE = 0.98  # plain correlation beyond which nothing is aligned


def turning() -> np.ndarray:
    """Return (8, 1024) int64: ``thumb.ravel()[turning()[k]]`` is the thumbnail in ``ORIENTATIONS[k]``, flattened."""
    pixels = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    turned = [np.rot90(pixels, quarters) for quarters, _ in ORIENTATIONS]
    mirrored = [image[:, ::-1] if flip else image for image, (_, flip) in zip(turned, ORIENTATIONS, strict=True)]
    return np.stack([image.ravel() for image in mirrored])


@numba.njit(cache=True, nogil=True, fastmath=True)
def normalised(thumb: np.ndarray, order: np.ndarray, out: np.ndarray) -> None:
    """Write a thumbnail (1024,) in an orientation as float32 of zero mean and unit length; zeros where it is flat."""
    total = np.float32(0)
    for i in range(len(order)):
        out[i] = thumb[order[i]]
        total += out[i]
    mean, square = total / np.float32(len(order)), np.float32(0)
    for i in range(len(order)):
        out[i] -= mean
        square += out[i] * out[i]
    scale = np.float32(1) / np.sqrt(square) if square > 0 else np.float32(0)
    for i in range(len(order)):
        out[i] *= scale


@numba.njit(cache=True, nogil=True, fastmath=True)
def product(a: np.ndarray, b: np.ndarray) -> Any:
    """Return the plain correlation of two normalised thumbnails."""
    total = np.float32(0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@numba.njit(cache=True, nogil=True, fastmath=True)
def agreement(a: np.ndarray, b: np.ndarray) -> Any:
    """Return the correlation of two normalised thumbnails (1024,) float32, aligned, in [-1, 1].

    Args:
        a: the one that is kept.
        b: the other; may be a little less of the same ground.
    """
    plain = product(a, b)
    return plain if plain > _SURE else max(plain, _aligned(a, b))


@numba.njit(cache=True, nogil=True, fastmath=True)
def _aligned(a: np.ndarray, b: np.ndarray) -> Any:
    n, middle = SIDE, (SIDE - 1) / 2
    slopes = np.zeros((n * n, 4), np.float32)  # of b, by: x shift, x scale, y shift, y scale
    for y in range(1, n - 1):
        for x in range(1, n - 1):
            i = y * n + x
            across, down = (b[i + 1] - b[i - 1]) / 2, (b[i + n] - b[i - n]) / 2
            slopes[i, 0], slopes[i, 1] = across, across * (x - middle)
            slopes[i, 2], slopes[i, 3] = down, down * (y - middle)
    hessian = np.zeros((4, 4))
    for i in range(n * n):
        for j in range(4):
            for k in range(4):
                hessian[j, k] += slopes[i, j] * slopes[i, k]
    for j in range(4):
        hessian[j, j] *= 1.001
        hessian[j, j] += 1e-9
    shift, scale = np.zeros(2), np.ones(2)  # x, y
    warped, inside = np.zeros(n * n, np.float32), np.zeros(n * n, np.bool_)
    best = np.float32(-1)
    for _ in range(STEPS):
        correlation, wanted = _compare(a, b, shift, scale, warped, inside, slopes)
        best = max(best, correlation)
        step = np.linalg.solve(hessian, wanted)
        for axis in range(2):
            move, grow = step[2 * axis], step[2 * axis + 1]
            scale[axis] /= 1 + grow
            shift[axis] -= scale[axis] * move
            if abs(scale[axis] - 1) > _MOST_SCALE or abs(shift[axis]) > _MOST_SHIFT:
                return best
    return max(best, _compare(a, b, shift, scale, warped, inside, slopes)[0])


@numba.njit(cache=True, nogil=True, fastmath=True)
def _compare(
    a: np.ndarray,
    b: np.ndarray,
    shift: np.ndarray,
    scale: np.ndarray,
    warped: np.ndarray,
    inside: np.ndarray,
    slopes: np.ndarray,
) -> tuple[Any, np.ndarray]:
    """Warp a onto b; return their correlation where both are, and the slopes' products with what is left."""
    n, middle, count = SIDE, (SIDE - 1) / 2, 0
    sum_a, sum_b, aa, bb, ab = 0.0, 0.0, 0.0, 0.0, 0.0
    for y in range(n):
        v = (y - middle) * scale[1] + shift[1] + middle
        for x in range(n):
            i, u = y * n + x, (x - middle) * scale[0] + shift[0] + middle
            inside[i] = 0 <= u <= n - 1 and 0 <= v <= n - 1
            if inside[i]:
                left, top = min(int(u), n - 2), min(int(v), n - 2)
                fx, fy, k = np.float32(u - left), np.float32(v - top), top * n + left
                upper = a[k] + fx * (a[k + 1] - a[k])
                lower = a[k + n] + fx * (a[k + n + 1] - a[k + n])
                value = upper + fy * (lower - upper)
                warped[i] = value
                count += 1
                sum_a += value
                sum_b += b[i]
                aa += value * value
                bb += b[i] * b[i]
                ab += value * b[i]
    wanted = np.zeros(4)
    aa -= sum_a * sum_a / count
    bb -= sum_b * sum_b / count
    ab -= sum_a * sum_b / count
    if aa <= 0 or bb <= 0:
        return np.float32(0), wanted
    gain = ab / aa
    offset = (sum_b - gain * sum_a) / count
    for i in range(n * n):
        if inside[i]:
            left_over = gain * warped[i] + offset - b[i]
            for j in range(4):
                wanted[j] += slopes[i, j] * left_over
    return np.float32(ab / np.sqrt(aa * bb)), wanted
