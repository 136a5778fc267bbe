"""Stretch: digital numbers of any sensor as colours of a screen. For all pictures of reports and review.

Source: the percentile stretch that remote sensing viewers (QGIS, SNAP) default to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

TAIL = 0.01  # share of values that may be cut off at either end
_SAMPLE = 1 << 18  # pixels of an image that quantiles look at


class Limits(NamedTuple):
    """The digital numbers that are shown as black and as full brightness, (3,) float32 each."""

    low_3: NDArray[np.float32]
    high_3: NDArray[np.float32]


def display_bands(bands: Sequence[str]) -> list[int]:
    """Return which bands to show as red, green and blue: those of that name, else the first three or the first."""
    if {"red", "green", "blue"} <= set(bands):
        return [list(bands).index(name) for name in ("red", "green", "blue")]
    return [0, 1, 2] if len(bands) >= 3 else [0, 0, 0]


def limits(
    images_3HW: Sequence[NDArray[Any]], valid_HW: Sequence[NDArray[np.bool_] | None], tail: float = TAIL
) -> Limits:
    """Find limits that suit all of some images, so that equal numbers get equal colours.

    Args:
        images_3HW: digital numbers; uint8 is made to be looked at and has the same limits in all bands, so hues stay.
        valid_HW: False where there is no data; None = all real.
        tail: share of the real values below the lower limit, and above the upper one.
    """
    real = [_real(image, valid) for image, valid in zip(images_3HW, valid_HW, strict=True)]
    values_3N = np.concatenate(real, axis=1)
    if not values_3N.size:
        return Limits(np.zeros(3, np.float32), np.ones(3, np.float32))
    low, high = np.quantile(values_3N, [tail, 1 - tail], axis=1).astype(np.float32)
    if all(image.dtype == np.uint8 for image in images_3HW):
        low, high = np.full(3, low.min()), np.full(3, high.max())
    return Limits(low, np.maximum(high, low + np.maximum(np.abs(low), 1) * 1e-6))


def stretched(
    image_3HW: NDArray[Any], valid_HW: NDArray[np.bool_] | None, between: Limits, no_data: float = 0.5
) -> NDArray[np.float32]:
    """Return (H, W, 3) in [0, 1], what is below the limits black, no data and not finite in grey ``no_data``."""
    low, high = (limit[:, None, None] for limit in between)
    with np.errstate(invalid="ignore"):
        shown = ((image_3HW.astype(np.float32) - low) / (high - low)).clip(0, 1)
    shown = np.where(np.isfinite(image_3HW), shown, np.float32(no_data))
    if valid_HW is not None:
        shown = np.where(valid_HW, shown, np.float32(no_data))
    return np.ascontiguousarray(shown.transpose(1, 2, 0), np.float32)


def to_bytes(picture_HW3: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a picture of [0, 1] as uint8."""
    return np.asarray(picture_HW3 * 255 + np.float32(0.5)).astype(np.uint8)


def _real(image_3HW: NDArray[Any], valid_HW: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    flat_3N = image_3HW.reshape(3, -1)
    step = max(1, flat_3N.shape[1] // _SAMPLE)
    flat_3N = flat_3N[:, ::step].astype(np.float32)
    keep_N = np.isfinite(flat_3N).all(axis=0)
    return flat_3N[:, keep_N if valid_HW is None else keep_N & valid_HW.ravel()[::step]]
