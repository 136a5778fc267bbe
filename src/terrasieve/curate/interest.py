"""Interest points: where an image can be recognised, and what its surroundings look like in 40 bits.

First half of matching without coordinates: the points of ``curate.overlap``'s index. A point is a local extremum of a
difference of Gaussians, so it stays on its object when the image is shifted; its key says which of 40 pairs of places
around it is brighter, so it survives gain, offset and gamma. Most keys repeat exactly after JPEG at quality 75
(docs/overlap.md), so that an index of exact keys is enough.
Sources: Lowe 2004 (extrema of differences of Gaussians), Calonder et al. 2010 (BRIEF: comparisons as descriptor).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from terrasieve.imagery.luminance import Luminance
from terrasieve.keyed import numpy_generator

POINT = np.dtype([("key", "<u8"), ("row", "<u4"), ("x", "<i2"), ("y", "<i2")])
BITS = 40
REACH_PX = 10  # comparisons reach this far from a point, so points keep this distance from the edge
_APART_PX = 5  # an extremum is the largest of its surroundings of this many pixels each way
_CONTRAST = 1.5  # of 255 grey levels, below which an extremum is noise
_FINE, _COARSE, _SMOOTH = 1.5, 3.0, 2.0  # standard deviations of the Gaussians, pixels
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # splitmix64, Steele et al. 2014


def interest_points(image: Luminance, share: float = 1.0) -> NDArray[np.void]:
    """Find the points of an image.

    Args:
        image: at least ``2 * REACH_PX + 1`` px a side to have any.
        share: of the points that is returned, chosen by their keys, so that two images keep the same ones.

    Returns:
        (n,) of ``POINT``, sorted by key, ``row`` 0; keys spread evenly over 64 bits; a key that the image holds
        twice (a pattern that repeats) is left out.
    """
    grey = image.grey
    if min(grey.shape) <= 2 * REACH_PX:
        return np.zeros(0, POINT)
    fine, coarse, smooth = (ndimage.gaussian_filter(grey, s, truncate=3.0) for s in (_FINE, _COARSE, _SMOOTH))
    band = fine - coarse
    size = 2 * _APART_PX + 1
    dark, bright = band == ndimage.minimum_filter(band, size), band == ndimage.maximum_filter(band, size)
    found = (dark & (band < -_CONTRAST)) | (bright & (band > _CONTRAST))
    if image.valid is not None:
        found &= ndimage.minimum_filter(image.valid, 2 * REACH_PX + 1)
    edge = REACH_PX
    y, x = np.nonzero(found[edge:-edge, edge:-edge])
    y, x = y + edge, x + edge
    keys = _mixed(_keys(smooth, y, x))
    if share < 1:
        kept = keys >> np.uint64(40) < int(share * 2**24)  # high bits of a mixed key: as good as drawn
        keys, x, y = _mixed(keys[kept]), x[kept], y[kept]  # mixed again, to be spread evenly again
    return _once(keys, x, y)


def _keys(smooth: NDArray[np.float32], y: NDArray[np.int64], x: NDArray[np.int64]) -> NDArray[np.uint64]:
    (y0, x0), (y1, x1) = _pattern()
    brighter = smooth[y[:, None] + y0, x[:, None] + x0] > smooth[y[:, None] + y1, x[:, None] + x1]
    bits = np.zeros((len(y), 8), np.uint8)
    bits[:, : BITS // 8] = np.packbits(brighter, axis=1)
    keys: NDArray[np.uint64] = bits.view("<u8")[:, 0].astype(np.uint64)
    return keys


def _once(keys: NDArray[np.uint64], x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.void]:
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    same = keys[1:] == keys[:-1]
    alone = ~(np.r_[False, same] | np.r_[same, False]) if len(keys) else np.zeros(0, bool)
    points = np.zeros(int(alone.sum()), POINT)
    points["key"], points["x"], points["y"] = keys[alone], x[order][alone], y[order][alone]
    return points


def _mixed(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread keys evenly over 64 bits, one to one."""
    for shift, factor in zip((30, 27), _MIX, strict=True):
        keys = (keys ^ (keys >> np.uint64(shift))) * np.uint64(factor)
    return keys ^ (keys >> np.uint64(31))


@cache
def _pattern() -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Draw the pairs of places that are compared: near the point more often than far, the two well apart."""
    drawn = numpy_generator(0, "interest points").normal(0, REACH_PX / 2, (BITS * 8, 4)).round()
    places = np.clip(drawn, -REACH_PX, REACH_PX).astype(np.int64)
    apart = np.hypot(places[:, 0] - places[:, 2], places[:, 1] - places[:, 3]) >= 0.6 * REACH_PX
    y0, x0, y1, x1 = places[apart][:BITS].T
    return (y0, x0), (y1, x1)
