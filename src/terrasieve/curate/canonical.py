"""Canonical orientations: which of an image's eight rotations and flips all its rotated copies agree on.

An image is turned so that brightness has its strongest slopes to the same sides: the coefficients (0, 1) and (1, 0) of
its DCT are made positive, the first the larger. Where a copy's noise may decide otherwise, because one of them is near
zero or both are near each other, all orientations in question count, so that copies share one of them. Written into the
store by ``look``, read by ``near``, which joins the pHashes of these orientations alone: some 1.5 an image, not 8.
"""

from __future__ import annotations

import numpy as np

from terrasieve.curate.hashing import ORIENTATIONS, low_frequencies, oriented

MARGIN = (
    0.06  # of the length of all low coefficients; at 0.04 one of 2,000 copies was lost, at 0.06 none that was turned
)


def turns(thumbs_nHW: np.ndarray) -> np.ndarray:
    """Return (n,) uint8: bit k is set when ``ORIENTATIONS[k]`` may be the canonical one of (n, 32, 32) thumbnails."""
    low_nVU = low_frequencies(thumbs_nHW)
    low_nVU[:, 0, 0] = 0
    margin = MARGIN * np.sqrt((low_nVU**2).sum(axis=(1, 2)))
    found = np.zeros(len(low_nVU), np.uint8)
    for bit, orientation in enumerate(ORIENTATIONS):
        turned = oriented(low_nVU, *orientation)
        across, down = turned[:, 0, 1], turned[:, 1, 0]
        possible = (across >= -margin) & (down >= -margin) & (across - down >= -margin)
        found |= (possible.astype(np.uint8) << bit).astype(np.uint8)
    return found
