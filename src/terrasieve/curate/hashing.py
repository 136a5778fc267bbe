"""Hashes of an image's content: from one small grey decode, pHash in all eight orientations, dHash and entropy.

After slicing, before the join. A thumbnail of 32 x 32 grey values is all that later steps look at. Rotating or
mirroring an image changes signs and transposes its DCT, so the pHashes of its eight orientations cost one transform.
Source: Zauner 2010 and imagehash for pHash (DCT-II of 32 x 32, its 8 x 8 lowest coefficients above their median) and
dHash; CURATION.md, step 4.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from terrasieve.imagery.grey import SIDE, means, shares

LOW = 8
# Quarter turns (anticlockwise) and then a left-right mirror; the first is the image as it is.
ORIENTATIONS = tuple((quarters, mirrored) for mirrored in (False, True) for quarters in range(4))


class Hashes(NamedTuple):
    """What is known of n images' content.

    Attributes:
        phash: (n, 8) uint64, pHash of each of ``ORIENTATIONS``; column 0 is the image's own.
        dhash: (n,) uint64, whether brightness rises from left to right, on 8 x 9 values.
        entropy: (n,) float32, of the thumbnail's grey values in 64 bins, bits in [0, 6].
    """

    phash: np.ndarray
    dhash: np.ndarray
    entropy: np.ndarray


def thumbnail(grey_HW: np.ndarray) -> np.ndarray:
    """Average a grey image down to (32, 32) uint8; every pixel has its exact share.

    Args:
        grey_HW: uint8, at least 1 px a side.
    """
    return np.asarray(means(grey_HW) + np.float32(0.5)).astype(np.uint8)


def hashes(thumbs_nHW: np.ndarray) -> Hashes:
    """Hash thumbnails: (n, 32, 32) uint8."""
    low_nVU = low_frequencies(thumbs_nHW)
    phash = np.stack([_phash(oriented(low_nVU, *orientation)) for orientation in ORIENTATIONS], axis=1)
    rows, columns = (shares(SIDE, count) for count in (LOW, LOW + 1))
    small = rows @ thumbs_nHW.astype(np.float32) @ columns.T
    rising = small[:, :, 1:] > small[:, :, :-1]
    return Hashes(phash, _packed(rising.reshape(-1, 64)), _entropy(thumbs_nHW))


def low_frequencies(thumbs_nHW: np.ndarray) -> np.ndarray:
    """Return the lowest 8 x 8 coefficients of the DCT-II of (n, 32, 32) thumbnails, unscaled: (n, 8, 8) float32."""
    basis = _dct()
    return np.asarray(basis @ thumbs_nHW.astype(np.float32) @ basis.T)


def oriented(low_nVU: np.ndarray, quarters: int, mirrored: bool) -> np.ndarray:
    """Turn and mirror an image by the signs of its DCT: a mirrored axis negates its odd frequencies."""
    odd = np.where(np.arange(LOW) % 2, np.float32(-1), np.float32(1))
    for _ in range(quarters):  # anticlockwise: swap the axes, then mirror up-down
        low_nVU = low_nVU.swapaxes(1, 2) * odd[:, None]
    return low_nVU * odd if mirrored else low_nVU


def _phash(low_nVU: np.ndarray) -> np.ndarray:
    flat = low_nVU.reshape(-1, 64)
    return _packed(flat > np.median(flat, axis=1, keepdims=True))


def _packed(bits_n64: np.ndarray) -> np.ndarray:
    """Pack 64 booleans into a uint64, the first one highest, as imagehash writes them."""
    packed: np.ndarray = np.packbits(bits_n64, axis=1).view(">u8").astype(np.uint64)[:, 0]
    return packed


def _entropy(thumbs_nHW: np.ndarray) -> np.ndarray:
    n = len(thumbs_nHW)
    bins = (thumbs_nHW.reshape(n, -1) >> 2).astype(np.int64) + 64 * np.arange(n)[:, None]
    share = np.bincount(bins.ravel(), minlength=64 * n).reshape(n, 64) / np.float32(SIDE**2)
    terms = np.where(share > 0, share * np.log2(np.where(share > 0, share, 1)), 0)
    return np.asarray(-terms.sum(axis=1), np.float32)


@cache
def _dct() -> np.ndarray:
    """Return the 8 lowest rows of the DCT-II over 32 values, (8, 32) float32, unscaled."""
    k, x = np.arange(LOW)[:, None], np.arange(SIDE)[None]
    return np.asarray(2 * np.cos(np.pi * k * (2 * x + 1) / (2 * SIDE)), np.float32)
