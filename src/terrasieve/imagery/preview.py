"""Preview: three bands of an image at the size of a screen, whatever its size, type and bands. For pages of pictures.

Small windows are read by ``raster`` and averaged down; of a large one GDAL reads only every so many pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window

from terrasieve.imagery import raster
from terrasieve.imagery.headers import header, is_remote, last_words, open_gdal
from terrasieve.imagery.stretch import display_bands
from terrasieve.imagery.unreadable import UnreadableImage

_WHOLE_PX = 1 << 24  # width x height up to which all pixels are read


class Preview(NamedTuple):
    """An image made small.

    Attributes:
        rgb_3HW: digital numbers of the bands shown, in the file's dtype (complex: float32 magnitudes).
        valid_HW: False where there is no data; None when every pixel is real.
        bands: names of the three bands.
    """

    rgb_3HW: NDArray[Any]
    valid_HW: NDArray[np.bool_] | None
    bands: tuple[str, ...]


def preview(
    uri: str,
    window: Sequence[int] | None = None,
    bands: Sequence[str] | None = None,
    longest_px: int = 1024,
    *,
    factor: int | None = None,
) -> Preview:
    """Read an image, or a window of it, with at most ``longest_px`` pixels a side.

    Args:
        uri: path or URL.
        window: x, y, width, height in pixels; None = the whole image.
        bands: the file's names; None = as its header says.
        longest_px: of what is returned; smaller images stay as they are.
        factor: pixels of the file to one of the preview, along each side, instead of ``longest_px``.

    Raises:
        UnreadableImage: there is nothing to see.
    """
    if window is None or not bands:
        head = header(uri, max_pixels=1 << 62)
        bands = bands or head.bands
        window = (0, 0, head.width, head.height) if window is None else window
    chosen = display_bands(bands)
    unique = sorted(set(chosen))
    factor = factor or math.ceil(max(window[2:]) / longest_px)
    if window[2] * window[3] <= _WHOLE_PX or not _is_gdal(uri):
        pixels = raster.read(uri, window, unique)
        array, valid = _averaged(pixels.array, pixels.valid, factor)
    else:
        array, valid = _skipped(uri, window, unique, factor)
    rgb = array[[unique.index(band) for band in chosen]]
    return Preview(rgb, valid, tuple(bands[band] for band in chosen))


def _is_gdal(uri: str) -> bool:
    return is_remote(uri) or header(uri, max_pixels=1 << 62).format not in ("jpeg", "png")


def _averaged(
    array: NDArray[Any], valid: NDArray[np.bool_] | None, factor: int
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Return means over squares of ``factor`` pixels, of the real ones among them."""
    if np.iscomplexobj(array):
        array = np.abs(array).astype(np.float32)
    H, W = array.shape[1:]
    if factor == 1 or min(H, W) < factor:  # of a strip thinner than a square every so many pixels have to do
        return array[:, ::factor, ::factor], None if valid is None else valid[::factor, ::factor]
    h, w = H // factor, W // factor
    real = np.ones((H, W), np.bool_) if valid is None else valid
    weight = _squares(real[None].astype(np.float32), h, w, factor)
    with np.errstate(invalid="ignore", over="ignore"):
        values = np.where(real, array, 0).astype(np.float32)
    mean = _squares(values, h, w, factor) / np.maximum(weight, 1)
    mean = np.rint(mean).astype(array.dtype) if array.dtype.kind in "iu" else mean.astype(array.dtype)
    return mean, None if valid is None else weight[0] > 0


def _squares(values: NDArray[np.float32], h: int, w: int, factor: int) -> NDArray[np.float32]:
    cut = values[:, : h * factor, : w * factor]
    total: NDArray[np.float32] = cut.reshape(len(cut), h, factor, w, factor).sum(axis=(2, 4))
    return total


def _skipped(
    uri: str, window: Sequence[int], bands: list[int], factor: int
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    x, y, width, height = window
    shape = max(1, height // factor), max(1, width // factor)
    try:
        with open_gdal(uri, "") as source:
            area = Window(x, y, width, height)
            array = source.read([band + 1 for band in bands], window=area, out_shape=(len(bands), *shape))
            valid = source.dataset_mask(window=area, out_shape=shape) > 0
    except (RasterioError, OSError, ValueError, MemoryError) as error:
        raise UnreadableImage(uri, "unreadable", last_words(error)) from error
    return _averaged(array, None if valid.all() else valid, 1)
