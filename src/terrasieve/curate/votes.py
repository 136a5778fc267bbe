"""Votes: interest points of two images that look the same vote for the offset between the images.

Second half of the search without coordinates: an index over all points of all images, read one range of keys at a
time, so that memory is bounded whatever the number of images; never all pairs of images. A key that many images hold
says nothing and is left out. What is found is verified in ``curate.registration``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from terrasieve.curate.interest import POINT

_RANGE = 16_000_000  # points sorted at once: 256 MB
_SHIFT = 1 << 15  # offsets are stored as two unsigned 16-bit numbers
_NEAR_PX = 1  # votes this close to each other agree


class Candidates(NamedTuple):
    """Pairs of images that may show the same ground.

    Attributes:
        a, b: (m,) int64 rows, a < b.
        dx, dy: (m,) int32, a[y + dy, x + dx] = b[y, x].
        votes: (m,) int32, points that agree on this offset.
    """

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    dx: NDArray[np.int32]
    dy: NDArray[np.int32]
    votes: NDArray[np.int32]


def candidates(
    parts: Sequence[Path],
    sides: NDArray[np.uint8] | None,
    decided: NDArray[np.bool_],
    *,
    most_images: int,
    least_votes: int,
    offsets: int = 2,
) -> Candidates:
    """Join the points of all images and count the votes of each pair.

    Args:
        parts: files of points, each sorted by key, ``row`` below 2**32.
        sides: (rows,) of each image; pairs of images of one side are left out. None = all pairs count.
        decided: (rows,) bool; pairs of two images of which it is true are left out.
        most_images: a key that more images hold is left out.
        least_votes: pairs with fewer that agree are left out.
        offsets: most offsets returned of a pair, those with the most votes.
    """
    sizes = [len(np.load(part, mmap_mode="r")) for part in parts]
    ranges = max(1, -(-sum(sizes) // _RANGE))
    edges = np.array([(2**64 * k) // ranges for k in range(1, ranges)], np.uint64)
    cuts = [
        np.r_[0, np.searchsorted(np.load(part, mmap_mode="r")["key"], edges), size]
        for part, size in zip(parts, sizes, strict=True)
    ]
    groups = decided.astype(np.uint8) if sides is None else decided + 2 * sides.astype(np.uint8)
    found: list[tuple[NDArray[np.uint64], NDArray[np.uint32]]] = []
    for k in range(ranges):
        slices = [np.load(part, mmap_mode="r")[cut[k] : cut[k + 1]] for part, cut in zip(parts, cuts, strict=True)]
        points = np.concatenate([np.zeros(0, POINT), *slices])
        points = points[np.argsort(points["key"], kind="stable")]
        key, row, x, y = (np.ascontiguousarray(points[name]) for name in POINT.names or ())
        found.append(_collisions(key, row, x, y, groups, sides is not None, most_images))
    pair, offset = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.argsort(pair, kind="stable")
    a, b, dx, dy, votes = _count(pair[order], offset[order], least_votes, offsets)
    return Candidates(a, b, dx, dy, votes)


@numba.njit(cache=True, nogil=True)
def _collisions(
    key: np.ndarray, row: np.ndarray, x: np.ndarray, y: np.ndarray, groups: np.ndarray, between: bool, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return a vote for each two points of equal key: the pair (a << 32 | b) and its offset (dx << 16 | dy)."""
    pair, offset = np.empty(0, np.uint64), np.empty(0, np.uint32)
    for fill in range(2):
        count, start, n = 0, 0, len(key)
        while start < n:
            stop = start + 1
            while stop < n and key[stop] == key[start]:
                stop += 1
            if 1 < stop - start <= most:
                for i in range(start, stop - 1):
                    for j in range(i + 1, stop):
                        one, two = groups[row[i]], groups[row[j]]  # bit 0: decided, bit 1: side
                        if row[i] == row[j] or one & two & 1 or (between and one >> 1 == two >> 1):
                            continue
                        if fill:
                            a, b = (i, j) if row[i] < row[j] else (j, i)
                            pair[count] = np.uint64(row[a]) << np.uint64(32) | np.uint64(row[b])
                            dx, dy = int(x[a]) - int(x[b]) + _SHIFT, int(y[a]) - int(y[b]) + _SHIFT
                            offset[count] = np.uint32(dx) << np.uint32(16) | np.uint32(dy)
                        count += 1
            start = stop
        if not fill:
            pair, offset = np.empty(count, np.uint64), np.empty(count, np.uint32)
    return pair, offset


@numba.njit(cache=True, nogil=True)
def _count(
    pair: np.ndarray, offset: np.ndarray, least: int, offsets: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Find the offsets on which the most votes of each pair agree; votes come sorted by pair."""
    n, count = len(pair), 0
    a, b = np.empty(n, np.int64), np.empty(n, np.int64)
    dx, dy, votes = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.int32)
    start = 0
    while start < n:
        stop = start + 1
        while stop < n and pair[stop] == pair[start]:
            stop += 1
        used = np.zeros(stop - start, np.bool_)
        for _ in range(offsets):
            best, most = -1, least - 1
            for i in range(start, stop):
                agree = 0
                for j in range(start, stop):
                    agree += not used[j - start] and _near(offset[i], offset[j])
                if not used[i - start] and agree > most:
                    best, most = i, agree
            if best < 0:
                break
            for j in range(start, stop):
                used[j - start] |= _near(offset[best], offset[j])
            a[count], b[count] = pair[start] >> np.uint64(32), pair[start] & np.uint64(0xFFFFFFFF)
            dx[count] = int(offset[best] >> np.uint32(16)) - _SHIFT
            dy[count] = int(offset[best] & np.uint32(0xFFFF)) - _SHIFT
            votes[count] = most
            count += 1
        start = stop
    return a[:count].copy(), b[:count].copy(), dx[:count].copy(), dy[:count].copy(), votes[:count].copy()


@numba.njit(cache=True, nogil=True, inline="always")
def _near(p: int, q: int) -> bool:
    across = abs(int(p >> np.uint32(16)) - int(q >> np.uint32(16)))
    down = abs(int(p & np.uint32(0xFFFF)) - int(q & np.uint32(0xFFFF)))
    return across <= _NEAR_PX and down <= _NEAR_PX
