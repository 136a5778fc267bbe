"""Registration: do two images show the same ground at an offset, judged by all the pixels that they would share?

Last half of matching without coordinates: verifies what ``curate.votes`` proposes. Correlation alone is fooled by what
repeats (rows of crops, of cars, of tennis courts) and by a single edge: it is high at many offsets. So the score asks
how much better the best offset explains the pixels than the next best one does, and whether the interest points of the
shared ground are in both images: of two different courts, few are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from terrasieve.curate.interest import REACH_PX, interest_points
from terrasieve.imagery.luminance import Luminance

SIDE_PX = 25  # of the surroundings whose mean and contrast are taken out
FLOOR = 3.0  # grey levels of 255: contrast below it is noise and is not raised to that of the rest
_PEAK_PX = 3  # other offsets begin beyond this distance from the best
_LEAST = 0.5  # correlation below which a pair is not worth a transform: its score would be below 0.25
# What speaks for a pair, measured on UC Merced (docs/overlap.md): of a true pair's points 14 % recur or more, of what
# merely repeats 4 % or less; and what merely repeats correlates by at most 0.84.
_RECURRING = 0.1
_CORRELATED = (0.85, 0.9)


class Prepared(NamedTuple):
    """An image made ready: (h, w) float32 of :func:`normalised`, and its points of ``interest``."""

    flat: NDArray[np.float32]
    points: NDArray[np.void]


class Registered(NamedTuple):
    """How well two images agree.

    Attributes:
        dx_px, dy_px: a[y + dy, x + dx] = b[y, x].
        correlation: of the shared pixels at this offset, [-1, 1].
        score: share of what the next best offset leaves unexplained that this one explains, [0, 1]; less where
            neither the interest points of the shared ground recur nor the correlation is beyond that of repetition.
    """

    dx_px: int
    dy_px: int
    correlation: float
    score: float


def normalised(image: Luminance) -> NDArray[np.float32]:
    """Take mean and contrast of the surroundings out of each pixel; 0 where there is no data."""
    grey = image.grey
    mean = ndimage.uniform_filter(grey, SIDE_PX)
    spread = np.sqrt(np.maximum(ndimage.uniform_filter(grey * grey, SIDE_PX) - mean * mean, 0))
    flat = (grey - mean) / (spread + np.float32(FLOOR))
    if image.valid is not None:
        flat = np.where(image.valid, flat, 0)
    return np.asarray(flat, np.float32)


def prepare(image: Luminance) -> Prepared:
    """Make an image ready for :func:`register`."""
    return Prepared(normalised(image), interest_points(image))


def shared(shape_a: tuple[int, ...], shape_b: tuple[int, ...], dx_px: int, dy_px: int) -> tuple[int, int, int, int]:
    """Return the part of a that b shares: x, y, width, height in pixels of a; sizes are 0 where there is none."""
    x, y = max(dx_px, 0), max(dy_px, 0)
    right, bottom = min(shape_a[1], shape_b[1] + dx_px), min(shape_a[0], shape_b[0] + dy_px)
    return x, y, max(right - x, 0), max(bottom - y, 0)


def register(one: Prepared, two: Prepared, dx_px: int, dy_px: int) -> Registered:
    """Refine an offset by a pixel each way and score it.

    Args:
        one: image a.
        two: image b.
        dx_px: proposed offset.
        dy_px: proposed offset.
    """
    a, b = one.flat, two.flat
    tried = [(_correlation(a, b, dx_px + i, dy_px + j), dx_px + i, dy_px + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    best, dx, dy = max(tried)
    if best < _LEAST:
        return Registered(dx, dy, best, 0.0)
    other = max(_elsewhere(*_parts(a, b, dx, dy)), 0.0)
    explained = max(best * best - other * other, 0.0) / max(1 - other * other, 1e-9)
    low, high = _CORRELATED
    sure = max(_recurring(one, two, dx, dy) / _RECURRING, (best - low) / (high - low))
    return Registered(dx, dy, best, min(explained, 1.0) * min(sure, 1.0))


def _recurring(one: Prepared, two: Prepared, dx: int, dy: int) -> float:
    """Return the share of the points on shared ground that both images have, within a pixel of each other."""
    x, y, width, height = shared(one.flat.shape, two.flat.shape, dx, dy)
    a, b = _inside(one.points, x, y, width, height), _inside(two.points, x - dx, y - dy, width, height)
    _, i, j = np.intersect1d(a["key"], b["key"], assume_unique=True, return_indices=True)
    near = np.abs(a["x"][i] - b["x"][j] - dx) <= 1
    near &= np.abs(a["y"][i] - b["y"][j] - dy) <= 1
    return float(near.sum()) / max(min(len(a), len(b)), 1)


def _inside(points: NDArray[np.void], x: int, y: int, width: int, height: int) -> NDArray[np.void]:
    across, down = points["x"] - x, points["y"] - y
    inner = (across >= REACH_PX) & (across < width - REACH_PX) & (down >= REACH_PX) & (down < height - REACH_PX)
    return points[inner]


def _parts(
    a: NDArray[np.float32], b: NDArray[np.float32], dx: int, dy: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    x, y, width, height = shared(a.shape, b.shape, dx, dy)
    return a[y : y + height, x : x + width], b[y - dy : y - dy + height, x - dx : x - dx + width]


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32], dx: int, dy: int) -> float:
    one, two = (part.ravel() for part in _parts(a, b, dx, dy))
    energy = float(one @ one) * float(two @ two)
    return float(one @ two) / energy**0.5 if energy > 0 else 0.0


def _elsewhere(one: NDArray[np.float32], two: NDArray[np.float32]) -> float:
    """Return the highest correlation of two registered parts at any other offset, around the edges if need be."""
    shape = [fft.next_fast_len(length, real=True) for length in one.shape]
    product = fft.rfft2(one, shape) * np.conj(fft.rfft2(two, shape))
    surface = fft.irfft2(product, shape)
    near = [np.arange(-_PEAK_PX, _PEAK_PX + 1) % length for length in shape]
    surface[np.ix_(*near)] = -np.inf
    energy = float(np.vdot(one, one)) * float(np.vdot(two, two))
    return float(surface.max()) / energy**0.5 if energy > 0 else 0.0
