"""Cut: an image of the manifest as the bytes of a file of its own, copied as it is or cut out of a larger one.

Used by ``curate.shard_writing``. Whole files are copied byte by byte. Windows are written without loss: as PNG where
that holds everything (8-bit grey or RGB without no-data value or mask), else as GeoTIFF with CRS, transform, no-data
value, alpha and mask of the file they come from; or as JPEG of a given quality where PNG would do.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image
from rasterio import Env
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile
from rasterio.windows import Window

from terrasieve import remote
from terrasieve.imagery import formats, geo, members
from terrasieve.imagery.headers import header, is_remote, last_words, open_gdal, open_local
from terrasieve.imagery.raster import read
from terrasieve.imagery.unreadable import UnreadableImage

_SUFFIXES = {"jpeg": "jpg", "tiff": "tif"}
_RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
_PLAIN = (("grey",), ("gray",), ("red", "green", "blue"))


class File(NamedTuple):
    """The bytes of an image file, the ending of its name, and its transform (see ``geo``) where it is known."""

    data: bytes
    suffix: str
    transform: geo.Affine | None = None


def whole(uri: str, width: int, height: int) -> File:
    """Copy a file.

    Args:
        uri: path, URL or member of a tar.
        width: pixels that it should have.
        height: likewise.

    Raises:
        UnreadableImage: it cannot be read, is cut off, or is not the image that it was.
    """
    found = header(uri, ends=True)
    if (found.width, found.height) != (width, height):
        detail = f"the file holds {found.width} x {found.height} pixels now, not {width} x {height}"
        raise UnreadableImage(uri, "unreadable", detail)
    try:
        stream = remote.open_url(uri) if is_remote(uri) and remote.is_url(uri) else open_local(uri)
        with stream:
            data = stream.read()
    except OSError as error:
        raise UnreadableImage(uri, "unreadable", str(error)) from error
    kind = formats.sniff(uri, data[:12])
    return File(data, _SUFFIXES.get(kind, kind), found.transform)


def window(
    uri: str, at: Sequence[int], bands: Sequence[str], nodata: float | None, jpeg_quality: int | None = None
) -> File:
    """Cut a window out of a file.

    Args:
        uri: path, URL or member of a tar.
        at: x, y, width, height in pixels.
        bands: names of the file's bands.
        nodata: the declared no-data value.
        jpeg_quality: 1 to 100; None = without loss.

    Raises:
        UnreadableImage: the pixels cannot be had.
    """
    kind = _kind(uri)
    if nodata is None and tuple(bands) in _PLAIN:
        pixels = read(uri, at)
        if pixels.array.dtype == np.uint8 and pixels.valid is None:
            array = np.ascontiguousarray(pixels.array.transpose(1, 2, 0))
            place = _placed(uri, kind, at) if kind not in ("jpeg", "png") else None
            return File(*_plain(array, jpeg_quality), place)
    try:
        with open_gdal(uri, kind) as source:
            return _tiff(source, Window(*at), bands)
    except (RasterioError, OSError, ValueError) as error:
        raise UnreadableImage(uri, "unreadable", last_words(error)) from error


def _kind(uri: str) -> str:
    if is_remote(uri):
        return ""
    member = members.parse(uri)
    if member is not None and not remote.is_url(member.archive):  # twelve bytes tell the format, without the checksum
        with Path(member.archive).open("rb") as file:
            file.seek(member.offset)
            return formats.sniff(uri, file.read(12))
    with open_local(uri) as stream:
        return formats.sniff(uri, stream.read(12))


def _plain(array: np.ndarray, jpeg_quality: int | None) -> tuple[bytes, str]:
    if jpeg_quality is not None:
        colour = "GRAY" if array.shape[2] == 1 else "RGB"
        return simplejpeg.encode_jpeg(array, quality=jpeg_quality, colorspace=colour), "jpg"
    stream = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(stream, "PNG")
    return stream.getvalue(), "png"


def _placed(uri: str, kind: str, at: Sequence[int]) -> geo.Affine | None:
    with open_gdal(uri, kind) as source:
        return _transform(source, Window(*at))


def _transform(source: Any, window: Window) -> geo.Affine | None:
    return None if source.transform.is_identity else tuple(source.window_transform(window))[:6]


def _tiff(source: Any, window: Window, bands: Sequence[str]) -> File:
    array = source.read(window=window)
    place = _transform(source, window)
    profile = {
        "driver": "GTiff",
        "width": window.width,
        "height": window.height,
        "count": source.count,
        "dtype": source.dtypes[0],
        "nodata": source.nodata,
        "compress": "deflate",
        "predictor": 3 if array.dtype.kind == "f" else 2 if array.dtype.kind in "iu" else 1,
        "photometric": "rgb" if source.colorinterp[:3] == _RGB else "minisblack",
    }
    if place is not None:
        profile |= {"transform": source.window_transform(window), "crs": source.crs}
    masked = any(MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags for flags in source.mask_flag_enums)
    with Env(GDAL_TIFF_INTERNAL_MASK=True), MemoryFile() as memory:
        with memory.open(**profile) as target:
            target.colorinterp = source.colorinterp
            target.descriptions = tuple(source.descriptions if any(source.descriptions) else bands)
            target.update_tags(**{key: text for key, text in source.tags().items() if key != "AREA_OR_POINT"})
            target.write(array)
            if masked:
                target.write_mask(source.dataset_mask(window=window))
        return File(bytes(memory.getbuffer()), "tif", place)
