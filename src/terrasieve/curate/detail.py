"""Detail: do two thumbnails also agree in what is small in them? The last question before an image is dropped.

Called by ``judge``. Two beaches with their edge in the same place correlate by .986, since light and dark halves are
nearly all of their variance, and are still two beaches: what is left of either without its means over 7 x 7 pixels
correlates by .5. Of copies that are recompressed, resized or turned it correlates by .9 and more, of crops by 2 % by
.65 and more in 95 of 100 (benchmarks/planted.py).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from terrasieve.imagery.grey import SIDE

_REACH = 3  # pixels around one that its mean is taken over
_SHIFT = 1  # pixels that the two may be apart
_EDGE = 1


@numba.njit(cache=True, nogil=True, fastmath=True)
def detail(a: np.ndarray, b: np.ndarray) -> Any:
    """Return the correlation of the details of two thumbnails (1024,) float32, the best over shifts by a pixel."""
    fine_a, fine_b = _fine(a), _fine(b)
    best = np.float32(-1)
    low, high = _EDGE + _SHIFT, SIDE - _EDGE - _SHIFT
    for dy in range(-_SHIFT, _SHIFT + 1):
        for dx in range(-_SHIFT, _SHIFT + 1):
            aa, bb, ab = np.float32(0), np.float32(0), np.float32(0)
            for y in range(low, high):
                for x in range(low, high):
                    one, other = fine_a[y + dy, x + dx], fine_b[y, x]
                    aa += one * one
                    bb += other * other
                    ab += one * other
            if aa > 0 and bb > 0:
                best = max(best, ab / np.sqrt(aa * bb))
    return best


@numba.njit(cache=True, nogil=True, fastmath=True)
def _fine(thumb: np.ndarray) -> np.ndarray:
    """Subtract from every pixel the mean around it."""
    sums = np.zeros((SIDE + 1, SIDE + 1), np.float32)
    for y in range(SIDE):
        row = np.float32(0)
        for x in range(SIDE):
            row += thumb[y * SIDE + x]
            sums[y + 1, x + 1] = sums[y, x + 1] + row
    fine = np.empty((SIDE, SIDE), np.float32)
    for y in range(SIDE):
        top, bottom = max(y - _REACH, 0), min(y + _REACH + 1, SIDE)
        for x in range(SIDE):
            left, right = max(x - _REACH, 0), min(x + _REACH + 1, SIDE)
            total = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
            fine[y, x] = thumb[y * SIDE + x] - total / ((bottom - top) * (right - left))
    return fine
