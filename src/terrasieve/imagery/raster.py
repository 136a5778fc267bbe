"""Raster: the pixels of an image or of a window of it, as stored, with a mask of those that are real.

Called by the loader for every sample and by curation. JPEG bytes go through libjpeg-turbo (simplejpeg), 8-bit PNG
through Pillow, everything else through GDAL. Nothing is kept open, so it may be called after fork or spawn.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window

from terrasieve.imagery import derived, formats, tiff
from terrasieve.imagery.formats import MAX_PIXELS, check_size
from terrasieve.imagery.headers import Header, header, is_binary, is_remote, last_words, open_gdal, open_local
from terrasieve.imagery.unreadable import UnreadableImage

__all__ = ["Header", "Pixels", "UnreadableImage", "header", "read"]

_PILLOW_LIMIT = 89_000_000  # beyond this Pillow warns of a decompression bomb; ``check_size`` is the judge here


class Pixels(NamedTuple):
    """Decoded pixels.

    Attributes:
        array: (C, h, w), the file's dtype; may be a transposed view.
        valid: (h, w) bool, False where there is no data; None when every pixel is real.
    """

    array: NDArray[Any]
    valid: NDArray[np.bool_] | None


def read(
    uri: str,
    window: Sequence[int] | None = None,
    bands: Sequence[int] | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
) -> Pixels:
    """Decode an image, or a window of it.

    A pixel is not valid where the file's own mask says so, where its alpha band is 0, where any band read is not
    finite, where any band holds the declared no-data value; if that value is 0, which dark bands also hold, where all
    of them do. A declared alpha band of a TIFF that holds more than 0 and its maximum is taken for data.

    Args:
        uri: path or URL.
        window: x, y, width, height in pixels; None = the whole image.
        bands: indices from 0, in the order wanted; None = every band of the file, alpha included.
        max_pixels: largest width x height decoded at once.

    Raises:
        UnreadableImage: truncated or broken data, a window outside the image, a missing band, too many pixels.
    """
    made = derived.parse(uri)
    if made is not None:
        return derived.read(made, window, bands)
    kind = ""
    if not is_remote(uri):
        with open_local(uri) as stream:
            kind, size = formats.sniff(uri, stream.read(12)), stream.seek(0, io.SEEK_END)
            if kind == "jpeg":
                frame = formats.jpeg_frame(uri, stream)
                formats.check_plausible(uri, frame, size, kind)
                if frame.kind in ("rgb", "grey") and frame.bits == 8:
                    return _read_jpeg(uri, stream, frame, window, bands, max_pixels)
            elif kind == "png":
                frame = formats.png_frame(uri, stream)
                formats.check_plausible(uri, frame, size, kind)
                formats.check_png_end(uri, stream, size, frame.end)  # GDAL reads a cut PNG as black, Pillow a small cut
                if frame.bits == 8 and frame.width * frame.height < _PILLOW_LIMIT:
                    return _read_png(uri, stream, frame, window, bands, max_pixels)
    return _read_gdal(uri, kind, window, bands, max_pixels)


def _read_jpeg(
    uri: str,
    stream: BinaryIO,
    frame: formats.Frame,
    window: Sequence[int] | None,
    bands: Sequence[int] | None,
    max_pixels: int,
) -> Pixels:
    _check(uri, frame.width, frame.height, frame.samples, window, bands)
    check_size(uri, frame.width, frame.height, max_pixels)  # JPEG has no random access: a window decodes it all
    stream.seek(0)
    try:
        image = simplejpeg.decode_jpeg(stream.read(), "RGB" if frame.kind == "rgb" else "GRAY", strict=True)
    except ValueError as error:
        formats.check_jpeg_end(uri, stream, stream.seek(0, io.SEEK_END), frame.end)
        raise UnreadableImage(uri, "unreadable", str(error)) from error
    return Pixels(_part(image, window, bands), None)


def _read_png(
    uri: str,
    stream: BinaryIO,
    frame: formats.Frame,
    window: Sequence[int] | None,
    bands: Sequence[int] | None,
    max_pixels: int,
) -> Pixels:
    _check(uri, frame.width, frame.height, frame.samples, window, bands)
    check_size(uri, frame.width, frame.height, max_pixels)
    stream.seek(0)
    try:
        with Image.open(stream, formats=["PNG"]) as opened:
            image = np.array(opened)  # a copy, since torch warns of arrays that are read-only
    except (OSError, ValueError, SyntaxError) as error:
        raise UnreadableImage(uri, "unreadable", str(error)) from error
    image = image.reshape(frame.height, frame.width, frame.samples)
    valid = None
    if frame.kind.endswith("+alpha") and (bands is None or frame.samples - 1 not in bands):
        valid = _part(image, window, [frame.samples - 1])[0] > 0
    return Pixels(_part(image, window, bands), _or_none(valid))


def _part(image: NDArray[Any], window: Sequence[int] | None, bands: Sequence[int] | None) -> NDArray[Any]:
    if window is not None:
        x, y, width, height = window
        image = image[y : y + height, x : x + width]
    planes = image.transpose(2, 0, 1)
    return planes if bands is None else planes[list(bands)]


def _read_gdal(
    uri: str, kind: str, window: Sequence[int] | None, bands: Sequence[int] | None, max_pixels: int
) -> Pixels:
    try:
        with open_gdal(uri, kind) as source:
            _check(uri, source.width, source.height, source.count, window, bands)
            x, y, width, height = window if window is not None else (0, 0, source.width, source.height)
            check_size(uri, width, height, max_pixels)
            indexes = list(range(1, source.count + 1)) if bands is None else [band + 1 for band in bands]
            return _read_open(source, Window(x, y, width, height), indexes, bands is None)
    except (RasterioError, OSError, ValueError, MemoryError) as error:
        _explain(uri, kind)
        raise UnreadableImage(uri, "unreadable", last_words(error)) from error


def _explain(uri: str, kind: str) -> None:
    """Raise "truncated" for a cut TIFF, which GDAL opens without a word and calls a failed block when it gets there."""
    if kind == "tiff":
        with open_local(uri) as stream:
            tiff.check_blocks(uri, stream, stream.seek(0, io.SEEK_END))


def _read_open(source: Any, window: Window, indexes: list[int], whole: bool) -> Pixels:
    colours = source.colorinterp
    alpha = colours.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in colours else None
    extra = [alpha] if alpha is not None and alpha not in indexes else []
    array = source.read(indexes + extra, window=window)
    valid = np.ones(array.shape[1:], np.bool_)
    if alpha is not None and (whole or extra):
        plane = array[-1] if extra else array[indexes.index(alpha)]
        if source.driver != "GTiff" or is_binary(plane):
            valid &= plane > 0
    array = array[: len(indexes)]
    if array.dtype.kind in "fc":
        valid &= np.isfinite(array).all(axis=0)
    _apply_nodata(valid, array, [source.nodatavals[i - 1] for i in indexes])
    if any(MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags for flags in source.mask_flag_enums):
        valid &= source.dataset_mask(window=window) > 0
    return Pixels(array, _or_none(valid))


def _apply_nodata(valid: NDArray[np.bool_], array: NDArray[Any], nodata: list[float | None]) -> None:
    if any(value == 0 for value in nodata):
        valid &= (array != 0).any(axis=0)
    for plane, value in zip(array, nodata, strict=True):
        if value is not None and value != 0 and not np.isnan(value):
            valid &= plane != value


def _check(
    uri: str, width: int, height: int, count: int, window: Sequence[int] | None, bands: Sequence[int] | None
) -> None:
    if window is not None:
        x, y, w, h = window
        if w < 1 or h < 1 or x < 0 or y < 0 or x + w > width or y + h > height:
            detail = f"x {x}, y {y}, {w} x {h} pixels does not fit in an image of {width} x {height}"
            raise UnreadableImage(uri, "bad_window", detail)
    missing = [band for band in bands or () if not 0 <= band < count]
    if missing:
        raise UnreadableImage(uri, "missing_band", f"no band {missing[0]}: the file has bands 0 to {count - 1}")


def _or_none(valid: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    return None if valid is None or valid.all() else valid
