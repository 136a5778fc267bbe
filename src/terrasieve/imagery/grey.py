"""Grey: any image, or a window of it, as a few exact means of its brightness, for hashes and thumbnails.

Called by ``curate.store`` for every image. JPEG is decoded scaled down in its DCT domain; all else is read as it is up
to ``FULL_PX`` pixels, and decimated by GDAL (averages, or the file's overviews) beyond, so that no large raster is ever
read whole. Source of the luma: ITU-R BT.601, as JPEG has it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.windows import Window

from terrasieve.imagery import formats, raster
from terrasieve.imagery.formats import MAX_PIXELS, check_size
from terrasieve.imagery.headers import is_remote, last_words, open_gdal, open_local
from terrasieve.imagery.unreadable import UnreadableImage

SIDE = 32
FULL_PX = 2048 * 2048
_LUMA = {"red": 0.299, "green": 0.587, "blue": 0.114}
_LEAST_SPAN = 0.1  # of the median: noise of a few percent of a scene's level is not stretched into a picture
_WINDOW_SIDE = 128  # a JPEG is scaled down until its window has this many pixels a side


class Grey(NamedTuple):
    """An image seen from afar.

    Attributes:
        thumb: (32, 32) uint8, means of brightness; where nothing is real, the mean of what is.
        valid_share: of the pixels that are real, 0 to 1.
        std: standard deviation of the thumbnail's real values, in its 256 levels.
    """

    thumb: NDArray[np.uint8]
    valid_share: float
    std: float


def grey(uri: str, window: Sequence[int] | None = None, bands: Sequence[str] | None = None) -> Grey:
    """Look at an image, or a window of it.

    Brightness is the luma where the bands red, green and blue are named, else the mean of the first three bands but
    alpha. 8-bit values stay as they are; all others are stretched from the 2nd to the 98th percentile of the 32 x 32
    means themselves, at least over a tenth of their median, so that gain and offset play no part.

    Args:
        uri: path, URL or member of a tar.
        window: x, y, width, height in pixels; None = the whole image.
        bands: names in file order, as the manifest has them.

    Raises:
        UnreadableImage: truncated or broken data, or a window outside the image.
    """
    if not is_remote(uri):
        with open_local(uri) as stream:
            kind, size = formats.sniff(uri, stream.read(12)), stream.seek(0, io.SEEK_END)
            frame = formats.jpeg_frame(uri, stream) if kind == "jpeg" else None
            if frame is not None and frame.kind in ("rgb", "grey") and frame.bits == 8:
                formats.check_plausible(uri, frame, size, kind)
                return _jpeg(uri, stream, frame, window, size)
    image, valid = _planes(uri, window, bands)
    return _looked_at(image, valid)


def means(grey_HW: NDArray[Any], height: float | None = None, width: float | None = None) -> NDArray[np.float32]:
    """Average an image down to (32, 32) float32; every pixel has its exact share.

    Args:
        grey_HW: at least 1 px a side.
        height, width: of the image in pixels, where its last row or column is only in part its own.
    """
    H, W = grey_HW.shape
    if height is None and width is None and H % SIDE == 0 and W % SIDE == 0 and grey_HW.dtype == np.uint8:
        parts = grey_HW.reshape(SIDE, H // SIDE, SIDE, W // SIDE)
        return np.asarray(parts.sum(axis=(1, 3), dtype=np.uint32) / np.float32(H * W // SIDE**2), np.float32)
    rows, columns = shares(height or H), shares(width or W)
    return np.asarray(rows @ grey_HW.astype(np.float32) @ columns.T, np.float32)


@cache
def shares(length: float, count: int = SIDE) -> NDArray[np.float32]:
    """Return (count, pixels) float32: the share that each pixel has in each of ``count`` means over ``length``."""
    edges = np.linspace(0, length, count + 1)
    pixels = np.arange(int(np.ceil(length)))
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.asarray(np.clip(overlap, 0, None) * count / length, np.float32)


def _jpeg(uri: str, stream: Any, frame: formats.Frame, window: Sequence[int] | None, size: int) -> Grey:
    check_size(uri, frame.width, frame.height, MAX_PIXELS)
    if window is None:
        stream.seek(0)
        image = _scaled(uri, stream.read(), SIDE, SIDE)
        extent = _extent(image.shape[0], frame.height), _extent(image.shape[1], frame.width)
        thumb = np.asarray(means(image, *extent) + np.float32(0.5)).astype(np.uint8)
        return Grey(thumb, 1.0, float(thumb.std()))
    x, y, w, h = window
    if w < 1 or h < 1 or x < 0 or y < 0 or x + w > frame.width or y + h > frame.height:
        detail = f"x {x}, y {y}, {w} x {h} pixels does not fit in an image of {frame.width} x {frame.height}"
        raise UnreadableImage(uri, "bad_window", detail)
    factor = max(k for k in (1, 2, 4, 8) if k == 1 or min(w, h) >= k * _WINDOW_SIDE)
    image = _whole(uri, factor, size)  # JPEG has no random access; windows of an image follow each other
    part = image[y // factor : -(-(y + h) // factor), x // factor : -(-(x + w) // factor)]
    thumb = np.asarray(means(part) + np.float32(0.5)).astype(np.uint8)
    return Grey(thumb, 1.0, float(thumb.std()))


def _scaled(uri: str, data: bytes, height: int, width: int) -> NDArray[np.uint8]:
    try:
        image = simplejpeg.decode_jpeg(
            data, "GRAY", fastdct=True, fastupsample=True, min_height=height, min_width=width, strict=True
        )
    except ValueError as error:
        formats.check_jpeg_end(uri, io.BytesIO(data), len(data), 0)
        raise UnreadableImage(uri, "unreadable", str(error)) from error
    return np.asarray(image[..., 0])


@lru_cache(maxsize=1)
def _whole(uri: str, factor: int, size: int) -> NDArray[np.uint8]:
    del size  # so that a file that was changed is decoded anew
    with open_local(uri) as stream:
        frame = formats.jpeg_frame(uri, stream)
        stream.seek(0)
        return _scaled(uri, stream.read(), -(-frame.height // factor), -(-frame.width // factor))


def _extent(pixels: int, full: int) -> float | None:
    """Return how many of the scaled image's rows the image fills: the last block of 8 may reach beyond its edge."""
    eighths = pixels * 8 // full
    return full * eighths / 8 if pixels < full and -(-full * eighths // 8) == pixels else float(pixels)


def _planes(
    uri: str, window: Sequence[int] | None, bands: Sequence[str] | None
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Return brightness (H, W), float32 or uint8, and which of it is real."""
    names = tuple(bands or ())
    shape = None if window is None else (window[3], window[2])
    if shape is None or shape[0] * shape[1] > FULL_PX:
        decimated = _decimated(uri, window, names)
        if decimated is not None:
            return decimated
    found = raster.read(uri, window, _chosen(names), max_pixels=FULL_PX)
    return _brightness(found.array, names, found.array.dtype), found.valid


def _chosen(names: tuple[str, ...]) -> list[int] | None:
    """Return the bands to read, None = all."""
    if set(_LUMA) <= set(names):
        return [names.index(name) for name in _LUMA]
    colours = [i for i, name in enumerate(names) if name != "alpha"][:3]
    return colours or None


def _brightness(planes: NDArray[Any], names: tuple[str, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    planes = np.abs(planes) if planes.dtype.kind == "c" else planes
    weights = list(_LUMA.values()) if set(_LUMA) <= set(names) else [1 / min(len(planes), 3)] * 3
    total = np.zeros(planes.shape[1:], np.float32)
    for plane, weight in zip(planes[:3], weights, strict=False):
        total += plane.astype(np.float32) * np.float32(weight)
    return np.asarray(total + np.float32(0.5)).astype(np.uint8) if dtype == np.uint8 else total


def _decimated(
    uri: str, window: Sequence[int] | None, names: tuple[str, ...]
) -> tuple[NDArray[Any], NDArray[np.bool_] | None] | None:
    """Let GDAL average an image of more than ``FULL_PX`` pixels; None for a smaller one."""
    with open_gdal(uri, "") as source:
        x, y, w, h = window or (0, 0, source.width, source.height)
        if w * h <= FULL_PX:
            return None
        part = Window(x, y, w, h)
        scale = min(1.0, 1024 / max(w, h))
        shape = max(round(h * scale), SIDE), max(round(w * scale), SIDE)
        indexes = [band + 1 for band in _chosen(names) or range(min(source.count, 3))]
        try:
            planes = source.read(indexes, window=part, out_shape=(len(indexes), *shape), resampling=Resampling.average)
            valid = source.dataset_mask(window=part, out_shape=shape) > 0
        except (RasterioError, OSError, ValueError, MemoryError) as error:
            raise UnreadableImage(uri, "unreadable", last_words(error)) from error
    if planes.dtype.kind in "fc":
        valid &= np.isfinite(planes).all(axis=0)
    return _brightness(planes, names, planes.dtype), valid


def _looked_at(image: NDArray[Any], valid: NDArray[np.bool_] | None) -> Grey:
    if valid is None:
        values, weight = means(image), np.ones((SIDE, SIDE), np.float32)
    else:
        weight = means(valid.astype(np.float32))
        total = means(np.where(valid, image, 0))
        values = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
    real = weight > 0.01
    if not real.any():
        return Grey(np.zeros((SIDE, SIDE), np.uint8), 0.0, 0.0)
    values = np.where(real, values, values[real].mean())
    if image.dtype != np.uint8:
        low, middle, high = np.percentile(values[real], [2, 50, 98])
        least = max(_LEAST_SPAN * abs(middle), np.finfo(np.float32).tiny)
        low, high = ((low + high - least) / 2, (low + high + least) / 2) if high - low < least else (low, high)
        values = np.clip((values - low) / (high - low), 0, 1) * 255
    thumb = np.asarray(values + np.float32(0.5)).astype(np.uint8)
    return Grey(thumb, float(weight.mean(dtype=np.float64)), float(thumb[real].std()))
