"""Headers: an image's size, bands, type, place and time from its first bytes, without decoding a pixel.

Called by ``curate.scan`` for every file. JPEG and PNG are parsed by ``formats``; everything else goes through GDAL.
Source of the tags' names: GDAL's GTiff driver and raster data model (IMAGERY domain), EXIF 2.32.
"""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from terrasieve import remote
from terrasieve.imagery import derived, formats, geo, members, tiff
from terrasieve.imagery.bands import guess_band_names
from terrasieve.imagery.formats import MAX_PIXELS, check_size
from terrasieve.imagery.unreadable import UnreadableImage

# GDAL reads its options from the environment, so worker processes have them however they start. Without this one, every
# open lists the folder, which costs as much as reading a chip.
os.environ.setdefault("GDAL_DISABLE_READDIR_ON_OPEN", "EMPTY_DIR")
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # images without coordinates are welcome

_DRIVERS = {"tiff": "GTiff", "jpeg": "JPEG", "png": "PNG", "jp2": "JP2OpenJPEG", "webp": "WEBP", "bmp": "BMP"}
_FORMATS = {driver: kind for kind, driver in _DRIVERS.items()}
_BLOCK = 2**24  # pixels; larger tiles or strips cost too much to decode for a window
_TIME_TAGS = ("ACQUISITIONDATETIME", "ACQUISITION_DATETIME", "DATE_ACQUIRED", "ACQUISITION_DATE", "TIFFTAG_DATETIME")
NO_CRS = "a footprint without a CRS, and so no place"
NO_TIME = "a time that does not parse, and so none"


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        width: pixels.
        height: pixels.
        bands: names in file order (``bands.guess_band_names``).
        dtype: numpy name.
        format: "jpeg", "png", "tiff", "jp2", "webp" or "bmp".
        nodata: the declared no-data value.
        crs: "EPSG:32721" or WKT.
        transform: pixel to CRS, see ``geo``.
        datetime: of acquisition where the file says it, UTC assumed where no zone is given.
        gsd_m: ground sample distance in metres.
        lon: degrees, from EXIF GPS only; ``geo.centre`` gives it for georeferenced files.
        lat: degrees, likewise.
        doubts: what the file says but cannot mean, in words.
    """

    width: int
    height: int
    bands: tuple[str, ...]
    dtype: str
    format: str
    nodata: float | None = None
    crs: str | None = None
    transform: geo.Affine | None = None
    datetime: datetime | None = None
    gsd_m: float | None = None
    lon: float | None = None
    lat: float | None = None
    doubts: tuple[str, ...] = ()


def is_remote(uri: str) -> bool:
    """Tell whether GDAL, not the file system, has to open a uri; members of tars are opened here, wherever they lie."""
    return ("://" in uri or uri.startswith("/vsi")) and members.parse(uri) is None


def open_local(uri: str) -> BinaryIO:
    """Open a file or a member of a tar, or raise UnreadableImage that says why it cannot be opened."""
    member = members.parse(uri)
    if member is not None:
        return members.open_member(member)
    try:
        return Path(uri).open("rb")
    except FileNotFoundError as error:
        raise UnreadableImage(uri, "missing", "there is no such file") from error
    except PermissionError as error:
        raise UnreadableImage(uri, "permission_denied", "this user may not read the file") from error
    except OSError as error:
        raise UnreadableImage(uri, "unreadable", error.strerror or str(error)) from error


def header(
    uri: str, *, ends: bool = False, max_pixels: int = MAX_PIXELS, max_tiled_pixels: int | None = None
) -> Header:
    """Read an image's header.

    Args:
        uri: path or URL.
        ends: also check, without decoding, that the file is whole: JPEG's and PNG's end markers, TIFF's blocks.
        max_pixels: largest width x height believed.
        max_tiled_pixels: the same of rasters in blocks, which are read by window; None = ``max_pixels``.

    Raises:
        UnreadableImage: with code and reason.
    """
    limits = max_pixels, max_pixels if max_tiled_pixels is None else max_tiled_pixels
    made = derived.parse(uri)
    if made is not None:
        return derived.header(made, ends, max_pixels)
    if is_remote(uri):
        return _gdal_header(uri, "", *limits)
    with open_local(uri) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        kind = formats.sniff(uri, stream.read(12))
        if kind in ("jpeg", "png"):
            frame = (formats.jpeg_frame if kind == "jpeg" else formats.png_frame)(uri, stream)
            formats.check_plausible(uri, frame, size, kind)
            check_size(uri, frame.width, frame.height, max_pixels)
            if ends:
                (formats.check_jpeg_end if kind == "jpeg" else formats.check_png_end)(uri, stream, size, frame.end)
            if frame.kind not in ("cmyk", "other"):
                return _plain_header(frame, kind, stream)
        if kind == "tiff" and ends:
            tiff.check_blocks(uri, stream, size)
    return _gdal_header(uri, kind, *limits)


@lru_cache
def _plain_names(samples: int, kind: str) -> tuple[str, ...]:
    photometric, alpha = kind.partition("+")[::2]
    colours = [*{"rgb": ["red", "green", "blue"], "grey": ["gray"]}.get(photometric, []), *([alpha] if alpha else [])]
    return tuple(guess_band_names(samples, (), colours, photometric))


def _plain_header(frame: formats.Frame, kind: str, stream: BinaryIO) -> Header:
    time, lon, lat, doubts = _exif(stream) if kind == "jpeg" else (None, None, None, ())
    dtype = "uint16" if frame.bits > 8 else "uint8"
    names = _plain_names(frame.samples, frame.kind)
    return Header(frame.width, frame.height, names, dtype, kind, datetime=time, lon=lon, lat=lat, doubts=doubts)


def _exif(stream: BinaryIO) -> tuple[datetime | None, float | None, float | None, tuple[str, ...]]:
    """Return time and place from EXIF, where the first 64 kB have any, and what is doubtful about them."""
    stream.seek(0)
    start = stream.read(65_536)
    if b"Exif\0\0" not in start[:4096]:
        return None, None, None, ()
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(start[start.index(b"Exif\0\0") :])
        details, place = exif.get_ifd(0x8769), exif.get_ifd(0x8825)
        text = str(details.get(0x9003) or exif.get(0x0132) or "").strip("\0 ")
        time = parse_time(text)
        lat, lon = _degrees(place.get(2), place.get(1)), _degrees(place.get(4), place.get(3))
    except (SyntaxError, ValueError, TypeError, KeyError, OSError, struct.error, ZeroDivisionError):
        return None, None, None, ()  # EXIF is a courtesy: a broken one does not make the image unreadable
    doubts = (NO_TIME,) if text and time is None else ()
    return (time, lon, lat, doubts) if lon is not None and lat is not None else (time, None, None, doubts)


def _degrees(parts: Any, side: Any) -> float | None:
    if parts is None or side is None:
        return None
    degrees, minutes, seconds = (float(part) for part in parts)
    value = degrees + minutes / 60 + seconds / 3600
    return (-value if side in ("S", "W") else value) if abs(value) <= 180 else None


def parse_time(text: str) -> datetime | None:
    """Read ISO 8601 or EXIF's "2020:05:18 13:44:22"; UTC where no zone is given, None where it is no time."""
    text = re.sub(r"^(\d{4}):(\d\d):(\d\d)", r"\1-\2-\3", text.strip())
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _gdal_header(uri: str, kind: str, max_pixels: int, max_tiled_pixels: int) -> Header:
    with open_gdal(uri, kind) as source:
        blocks = source.driver == "GTiff" and max(height * width for height, width in source.block_shapes) <= _BLOCK
        check_size(uri, source.width, source.height, max_tiled_pixels if blocks else max_pixels)
        crs = None if source.crs is None else _crs_name(source.crs.wkt)
        place = None if crs is None or source.transform.is_identity else tuple(source.transform)[:6]
        colours = [colour.name for colour in source.colorinterp]
        if colours[-1] == "alpha" and not _is_mask(source, len(colours)):
            colours = []  # and red, green, blue are GDAL's assumption too: TreeSatAI's first band is near infrared
        tags = {**source.tags(), **source.tags(ns="IMAGERY")}
        times = [parse_time(tags[tag]) for tag in _TIME_TAGS if tag in tags]
        doubts = [NO_TIME] if times and not any(times) else []
        doubts += [NO_CRS] if crs is None and not source.transform.is_identity else []
        return Header(
            source.width,
            source.height,
            tuple(guess_band_names(source.count, source.descriptions, colours)),
            source.dtypes[0],
            _FORMATS.get(source.driver, source.driver.lower()),
            nodata=None if source.nodata is None else float(source.nodata),
            crs=crs,
            transform=place,
            datetime=next((time for time in times if time), None),
            gsd_m=None if crs is None or place is None else geo.gsd_m(place, crs, source.width, source.height),
            doubts=tuple(doubts),
        )


def open_gdal(uri: str, kind: str) -> Any:
    """Open a file with the GDAL driver of its format (any, where the format is not known), or raise UnreadableImage."""
    member, driver = members.parse(uri), _DRIVERS.get(kind)
    try:
        if member is None:
            source = rasterio.open(uri, driver=driver)
        elif remote.is_url(member.archive):
            source = rasterio.open(io.BytesIO(members.read_bytes(member)), driver=driver)
        else:
            source = rasterio.open(members.gdal_path(member), driver=driver)
    except (RasterioError, OSError) as error:
        raise UnreadableImage(uri, "unreadable", last_words(error)) from error
    if source.count == 0:
        source.close()
        raise UnreadableImage(uri, "zero_band", "the file has no band")
    return source


def blocks_of(uri: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return width and height of a local file, and of what is decoded of it at once: all, unless it is a TIFF.

    Raises:
        UnreadableImage: as of :func:`header`.
    """
    with open_local(uri) as stream:
        kind = formats.sniff(uri, stream.read(12))
    if kind != "tiff":
        found = header(uri)
        return (found.width, found.height), (found.width, found.height)
    with open_gdal(uri, kind) as source:
        height, width = source.block_shapes[0]
        return (source.width, source.height), (width, height)


def last_words(error: BaseException) -> str:
    """Return what GDAL said first, which is what went wrong, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(getattr(error, "errmsg", error)).split())


def _is_mask(source: Any, band: int) -> bool:
    """Tell an alpha band from near infrared: GDAL declares the fourth band of any 8-bit file alpha unless told not to.

    A mask holds nothing but 0 and its largest value in the middle 256 x 256 pixels.
    """
    x, y = max(source.width // 2 - 128, 0), max(source.height // 2 - 128, 0)
    window = Window(x, y, min(256, source.width), min(256, source.height))
    try:
        return is_binary(source.read(band, window=window))
    except RasterioError:
        return True


def is_binary(alpha: np.ndarray) -> bool:
    """Tell whether a band holds nothing but 0 and the largest value of its type (float: 1)."""
    top = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1
    return bool(((alpha == 0) | (alpha == top)).all())


@lru_cache(maxsize=1024)
def _crs_name(wkt: str) -> str:
    return str(rasterio.crs.CRS.from_wkt(wkt).to_string())
