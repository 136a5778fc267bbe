"""Luminance: one plane of brightness of an image or window at full resolution, for matching pixel against pixel.

Called by ``curate.interest`` and ``curate.registration``, which are indifferent to gain and offset; the hashes of
curation need less, and read a decimated grey. Source of the weights: ITU-R BT.601.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from terrasieve.imagery.raster import read

RGB = ("red", "green", "blue")
_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)
_MOST_BANDS = 3


class Luminance(NamedTuple):
    """Brightness, and where it is real.

    Attributes:
        grey: (h, w) float32; 8-bit images in [0, 255], others scaled so that their 2nd and 98th percentiles are 0 and
            255; the mean of the real pixels where there is no data.
        valid: (h, w) bool; None when every pixel is real.
    """

    grey: NDArray[np.float32]
    valid: NDArray[np.bool_] | None


def luminance(uri: str, window: Sequence[int] | None, bands: Sequence[str], *, max_pixels: int) -> Luminance:
    """Decode an image and weigh red, green and blue; without these, take the mean of the first three bands at most.

    Args:
        uri: path or URL.
        window: x, y, width, height in pixels; None = the whole image.
        bands: names in file order, as in the manifest.
        max_pixels: largest width x height decoded.

    Raises:
        UnreadableImage: what ``raster.read`` raises.
    """
    coloured = all(name in bands for name in RGB)
    chosen = [list(bands).index(name) for name in RGB] if coloured else list(range(min(len(bands), _MOST_BANDS)))
    pixels = read(uri, window, chosen, max_pixels=max_pixels)
    planes = pixels.array if pixels.array.dtype.kind != "c" else np.abs(pixels.array)
    weights = _WEIGHTS if coloured else np.full(len(planes), 1 / len(planes), np.float32)
    grey = planes[0] * weights[0]
    for plane, weight in zip(planes[1:], weights[1:], strict=True):
        grey = grey + plane * weight
    real = grey if pixels.valid is None else grey[pixels.valid]
    if planes.dtype != np.uint8 and real.size:
        low, high = np.percentile(real, (2, 98))
        grey = (grey - low) * (255 / max(float(high - low), 1e-12))
    if pixels.valid is not None:
        real = grey[pixels.valid]
        grey = np.where(pixels.valid, grey, real.mean() if real.size else 0)
    return Luminance(np.ascontiguousarray(grey, np.float32), pixels.valid)
