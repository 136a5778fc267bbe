"""Across: copies of images of one set in other sets, from the store's hashes: equal bytes, equal pixels, near, turned.

First half of ``curate.audit``. Only pairs across sets are made, never those within one; the join's groups say which
hashes may be near, and each pair is then measured. Source of the join: ``curate.hamming``.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from terrasieve.curate.hamming import join, ones
from terrasieve.curate.hashing import ORIENTATIONS


class Copies(NamedTuple):
    """Pairs of rows, a of the first set and b of another.

    Attributes:
        a, b: (m,) int64 numbers of rows.
        orientation: (m,) uint8, of ``hashing.ORIENTATIONS``: b turned so looks like a.
        distance: (m,) uint8, bits between the pHashes in that orientation.
    """

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    orientation: NDArray[np.uint8]
    distance: NDArray[np.uint8]


def equal(keys: NDArray[np.uint64], numbers: NDArray[np.int64], sides: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return (m, 2) numbers of rows of the first set and of others whose keys are the same.

    Args:
        keys: (n, 2) hashes of 128 bits.
        numbers: (n,) of the rows that the keys belong to.
        sides: (n,) 0 = the first set.
    """
    order = np.lexsort((sides, keys[:, 1], keys[:, 0]))
    ordered = keys[order]
    starts = np.flatnonzero(np.r_[True, (ordered[1:] != ordered[:-1]).any(axis=1)][: len(ordered)])
    found = [np.zeros((0, 2), np.int64)]
    ends = np.r_[starts[1:], len(ordered)]
    firsts = np.add.reduceat(sides[order] == 0, starts) if len(starts) else starts
    for group in np.flatnonzero((firsts > 0) & (firsts < ends - starts)):
        middle = starts[group] + firsts[group]
        one, two = np.meshgrid(order[starts[group] : middle], order[middle : ends[group]], indexing="ij")
        found.append(np.stack([one.ravel(), two.ravel()], axis=1))
    return np.asarray(numbers[np.concatenate(found)])


def near(phash: NDArray[np.uint64], numbers: NDArray[np.int64], sides: NDArray[np.uint8], distance: int) -> Copies:
    """Find rows of the first set and of others whose pHashes, the others' in any orientation, are near.

    Args:
        phash: (n, 8) of the images in each of ``ORIENTATIONS``.
        numbers: (n,) of their rows.
        sides: (n,) 0 = the first set.
        distance: bits, at most.
    """
    one, two = np.flatnonzero(sides == 0), np.flatnonzero(sides > 0)
    turns = len(ORIENTATIONS)
    hashes = np.concatenate([phash[one, 0], phash[two].ravel()])
    owner = np.concatenate([numbers[one], np.repeat(numbers[two], turns)])
    turn = np.concatenate([np.full(len(one), turns), np.tile(np.arange(turns), len(two))]).astype(np.uint8)
    group = join(hashes, distance).group
    order = np.lexsort((turn != turns, group))  # of each group the first set's hashes come first
    a, b, orientation, bits = _pairs(hashes[order], owner[order], turn[order], group[order], distance, turns)
    best = np.lexsort([orientation, bits, b, a])
    a, b, orientation, bits = a[best], b[best], orientation[best], bits[best]
    first = np.r_[True, (a[1:] != a[:-1]) | (b[1:] != b[:-1])][: len(a)]
    return Copies(a[first], b[first], orientation[first], bits[first])


@numba.njit(cache=True, nogil=True)
def _pairs(
    hashes: np.ndarray, owner: np.ndarray, turn: np.ndarray, group: np.ndarray, distance: int, turns: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Measure all pairs across sets within each group, and return those that are near."""
    a, b = np.empty(0, np.int64), np.empty(0, np.int64)
    orientation, bits = np.empty(0, np.uint8), np.empty(0, np.uint8)
    for fill in range(2):
        count, start, n = 0, 0, len(hashes)
        while start < n:
            middle = start
            while middle < n and group[middle] == group[start] and turn[middle] == turns:
                middle += 1
            stop = middle
            while stop < n and group[stop] == group[start]:
                stop += 1
            for i in range(start, middle):
                for j in range(middle, stop):
                    apart = ones(hashes[i] ^ hashes[j])
                    if apart <= distance:
                        if fill:
                            a[count], b[count] = owner[i], owner[j]
                            orientation[count], bits[count] = turn[j], apart
                        count += 1
            start = stop
        if not fill:
            a, b = np.empty(count, np.int64), np.empty(count, np.int64)
            orientation, bits = np.empty(count, np.uint8), np.empty(count, np.uint8)
    return a, b, orientation, bits
