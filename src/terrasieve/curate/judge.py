"""Judge: is one image another once more? By pHash, dHash and the correlation of thumbnails, in any orientation.

Called by ``verify`` with groups of near-duplicates, each in order of priority, and by ``audit`` with pairs. dHash is
independent evidence: of pairs of different images within 8 bits of pHash, half differ by 30 bits of dHash or more, and
copies, even cropped by 2 %, by 12 or fewer (docs/deduplication.md).
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from pydantic import Field

from terrasieve.curate.agreement import agreement, normalised, product, turning
from terrasieve.curate.detail import detail
from terrasieve.curate.hamming import ones
from terrasieve.imagery.grey import SIDE
from terrasieve.section import Section

DUPLICATE, REVIEW, DIFFERENT = 1, 2, 3
VERDICTS = ("", "duplicate", "review", "different")
_NEAREST = 64  # of those kept before it that an image is compared with, nearest first
_ROWS, _COLUMNS = 8, 9  # of means in a dHash


class JudgeSettings(Section):
    """When two images are the same, and when a person is asked.

    Duplicates correlate by ``accept`` and differ by at most ``reject_bits`` of dHash, or correlate by ``review`` and
    differ by at most ``accept_bits`` of dHash and ``sure_distance`` of pHash. For review are those of which one measure
    alone says so: correlation from ``accept`` up whatever the dHash, from ``review`` up and at most ``reject_bits``, or
    at most ``accept_bits``.

    Attributes:
        distance: bits of pHash beyond which nothing is compared. More than ``near`` links by: two images differ by
            other bits when both are turned, and what hangs together by a third is compared too.
        rotations: compare all eight orientations.
        accept: correlation of the aligned thumbnails.
        review: likewise.
        sure_distance: bits of pHash up to which weaker correlation will do.
        accept_bits: of dHash.
        reject_bits: likewise.
        detail: correlation of what is small in the thumbnails, below which a person is asked before any is dropped.
    """

    distance: int = Field(default=12, ge=0, le=64)
    rotations: bool = True
    accept: float = Field(default=0.95, ge=-1, le=1)
    review: float = Field(default=0.7, ge=-1, le=1)
    sure_distance: int = Field(default=8, ge=0, le=64)
    accept_bits: int = Field(default=12, ge=0, le=64)
    reject_bits: int = Field(default=20, ge=0, le=64)
    detail: float = Field(default=0.53, ge=-1, le=1)


class Judged(NamedTuple):
    """What was found of (n,) images or pairs.

    Attributes:
        other: int64, the image compared with, -1 = none.
        verdict: uint8, index into ``VERDICTS``; 0 = not compared.
        distance: uint8, bits of pHash.
        orientation: uint8, index into ``ORIENTATIONS`` that turns the image so that it gives the other.
        correlation: float32.
    """

    other: np.ndarray
    verdict: np.ndarray
    distance: np.ndarray
    orientation: np.ndarray
    correlation: np.ndarray

    @classmethod
    def empty(cls, n: int) -> Judged:
        """Return room for ``n``."""
        kinds = (np.int64, np.uint8, np.uint8, np.uint8, np.float32)
        made = cls(*(np.zeros(n, kind) for kind in kinds))
        made.other[:] = -1
        return made


def judge_groups(
    ends: np.ndarray, phash: np.ndarray, thumbs: np.ndarray, apart: np.ndarray, settings: JudgeSettings
) -> Judged:
    """Compare each image with those kept before it in its group.

    Args:
        ends: (g,) int64, where each group ends.
        phash: (n, 8) uint64, images group by group, in a group those to be kept first.
        thumbs: (n, 32, 32) uint8.
        apart: (m,) int64, ascending: pairs i * n + j, i < j, that a person found different.
        settings: thresholds.

    Returns:
        Of each image the comparison that decided: a duplicate's with the one that stays, else the likest one.
    """
    out = Judged.empty(len(phash))
    _groups(ends, phash, thumbs.reshape(-1, SIDE**2), apart, turning(), _numbers(settings), out)
    return out


def judge_pairs(phash: np.ndarray, thumbs: np.ndarray, a: np.ndarray, b: np.ndarray, settings: JudgeSettings) -> Judged:
    """Compare pairs (m,) of positions in ``phash`` (n, 8) and ``thumbs`` (n, 32, 32)."""
    out = Judged.empty(len(a))
    _pairs(a, b, phash, thumbs.reshape(-1, SIDE**2), turning(), _numbers(settings), out)
    return out


def _numbers(settings: JudgeSettings) -> np.ndarray:
    of = settings
    limits = (of.accept, of.review, of.sure_distance, of.accept_bits, of.reject_bits, of.detail)
    return np.array([of.distance, 8 if of.rotations else 1, *limits])


@numba.njit(cache=True, nogil=True)
def _dhash(thumb: np.ndarray, order: np.ndarray, out: np.ndarray) -> None:
    """Write whether brightness rises, on 8 x 9 means of a turned thumbnail: (64,) bool, in whole numbers."""
    deep = SIDE // _ROWS
    for row in range(_ROWS):
        before = 0
        for column in range(_COLUMNS):
            total, start, stop = 0, column * SIDE, (column + 1) * SIDE  # in ninths of a pixel
            for x in range(start // _COLUMNS, (stop + _COLUMNS - 1) // _COLUMNS):
                share = min(stop, (x + 1) * _COLUMNS) - max(start, x * _COLUMNS)
                for y in range(row * deep, (row + 1) * deep):
                    total += share * thumb[order[y * SIDE + x]]
            if column:
                out[row * (_COLUMNS - 1) + column - 1] = total > before
            before = total


@numba.njit(cache=True, nogil=True)
def _compare(
    thumb_a: np.ndarray,
    thumb_b: np.ndarray,
    bits: int,
    orders: np.ndarray,
    orientation: int,
    limits: np.ndarray,
    space: np.ndarray,
) -> tuple[int, float]:
    """Return the verdict on b, turned, against a, whose pHashes differ by so many bits, and their correlation."""
    rising_a, rising_b = np.empty(64, np.bool_), np.empty(64, np.bool_)
    _dhash(thumb_a, orders[0], rising_a)
    _dhash(thumb_b, orders[orientation], rising_b)
    steps = 0
    for i in range(64):
        steps += rising_a[i] != rising_b[i]
    normalised(thumb_a, orders[0], space[0])
    normalised(thumb_b, orders[orientation], space[1])
    accept, review, sure, accept_bits, reject_bits, fine = limits[2:]
    if steps > reject_bits:
        found = product(space[0], space[1])
        return (2 if found >= accept else 3), found
    found = agreement(space[0], space[1])
    if found >= accept or (found >= review and steps <= accept_bits and bits <= sure):
        return (1 if detail(space[0], space[1]) >= fine else 2), found
    return (2 if found >= review or steps <= accept_bits else 3), found


@numba.njit(cache=True, nogil=True)
def _keep_if_better(out: Judged, n: int, other: int, verdict: int, bits: int, turn: int, correlation: float) -> None:
    """Write a comparison of image or pair ``n`` over a worse one."""
    before = out.verdict[n]
    if before == 0 or verdict < before or (verdict == before and correlation > out.correlation[n]):
        out.other[n], out.verdict[n], out.distance[n] = other, verdict, bits
        out.orientation[n], out.correlation[n] = turn, correlation


@numba.njit(cache=True, nogil=True)
def _groups(
    ends: np.ndarray,
    phash: np.ndarray,
    thumbs: np.ndarray,
    apart: np.ndarray,
    orders: np.ndarray,
    limits: np.ndarray,
    out: Judged,
) -> None:
    most, turns, start = int(limits[0]), int(limits[1]), 0
    space = np.empty((2, SIDE * SIDE), np.float32)
    near = np.empty((most + 1, _NEAREST, 2), np.int64)  # those within a distance: position, orientation
    filled = np.empty(most + 1, np.int64)
    for end in ends:
        kept = np.empty(end - start, np.int64)
        own = np.empty(end - start, np.uint64)
        count = 0
        for m in range(start, end):
            _search(phash[m], own, kept, count, turns, most, near, filled)
            left = _NEAREST
            for bits in range(most + 1):
                for k in range(min(filled[bits], left)):
                    a, turn = near[bits, k]
                    pair = a * len(phash) + m
                    at = np.searchsorted(apart, pair)
                    if out.verdict[m] == 1 or (at < len(apart) and apart[at] == pair):
                        continue
                    found, agrees = _compare(thumbs[a], thumbs[m], bits, orders, turn, limits, space)
                    _keep_if_better(out, m, a, found, bits, turn, agrees)
                left -= min(filled[bits], left)
            if out.verdict[m] != 1:
                kept[count], own[count] = m, phash[m, 0]
                count += 1
        start = end


@numba.njit(cache=True, nogil=True)
def _search(
    phash: np.ndarray,
    own: np.ndarray,
    kept: np.ndarray,
    count: int,
    turns: int,
    most: int,
    near: np.ndarray,
    filled: np.ndarray,
) -> None:
    """List those of ``count`` kept images that are within the distance in some orientation, by distance."""
    filled[:] = 0
    for k in range(count):
        for turn in range(turns):
            bits = ones(own[k] ^ phash[turn])
            if bits <= most and filled[bits] < _NEAREST:
                near[bits, filled[bits], 0], near[bits, filled[bits], 1] = kept[k], turn
                filled[bits] += 1


@numba.njit(cache=True, nogil=True)
def _pairs(
    first: np.ndarray,
    second: np.ndarray,
    phash: np.ndarray,
    thumbs: np.ndarray,
    orders: np.ndarray,
    limits: np.ndarray,
    out: Judged,
) -> None:
    space = np.empty((2, SIDE * SIDE), np.float32)
    for n in range(len(first)):
        a, b = first[n], second[n]
        nearest = 255
        for turn in range(int(limits[1])):
            nearest = min(nearest, ones(phash[a, 0] ^ phash[b, turn]))
        for turn in range(int(limits[1])):
            if ones(phash[a, 0] ^ phash[b, turn]) == nearest:
                found, agrees = _compare(thumbs[a], thumbs[b], nearest, orders, turn, limits, space)
                _keep_if_better(out, n, a, found, nearest, turn, agrees)
