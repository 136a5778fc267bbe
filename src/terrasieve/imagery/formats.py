"""Formats: which one a file is, and what JPEG and PNG say in their first and last bytes.

Called by ``headers`` and ``raster``. Sources: ITU-T T.81 annex B (JPEG markers), W3C PNG (third edition) section 11,
DEFLATE's largest ratio of 1032 to 1 (zlib's technical notes).
"""

from __future__ import annotations

import io
import struct
from typing import BinaryIO, NamedTuple

from terrasieve.imagery.unreadable import UnreadableImage

MAX_PIXELS = 1_000_000_000  # width x height of a whole read; larger scenes are read by window
_PNG = b"\x89PNG\r\n\x1a\n"
_MAGIC = {
    b"\xff\xd8\xff": "jpeg",
    _PNG: "png",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",
    b"MM\0+": "tiff",
    b"\0\0\0\x0cjP  ": "jp2",
    b"\xff\x4f\xff\x51": "jp2",
    b"RIFF": "webp",
    b"BM": "bmp",
}


class Frame(NamedTuple):
    """Size, samples per pixel, bits per sample, kind ("rgb", "grey", "palette", ...) and where the header ends."""

    width: int
    height: int
    samples: int
    bits: int
    kind: str
    end: int


def sniff(uri: str, head: bytes) -> str:
    """Name the format of a file by its first bytes (12 are enough), or raise UnreadableImage."""
    if not head:
        raise UnreadableImage(uri, "empty", "the file has 0 bytes")
    for magic, kind in _MAGIC.items():
        if head.startswith(magic) and (kind != "webp" or head[8:12] == b"WEBP"):
            return kind
    raise UnreadableImage(uri, "not_an_image", f"begins with {head[:8]!r}, which is no image format read here")


def check_size(uri: str, width: int, height: int, max_pixels: int) -> None:
    """Raise UnreadableImage for a size that is empty or beyond ``max_pixels``."""
    if width < 1 or height < 1:
        raise UnreadableImage(uri, "unreadable", f"declares {width} x {height} pixels")
    if width * height > max_pixels:
        detail = f"declares {width} x {height} pixels, more than {max_pixels:,}; read it by window"
        raise UnreadableImage(uri, "huge_header", detail)


def check_plausible(uri: str, frame: Frame, size: int, kind: str) -> None:
    """Refuse a header that declares more pixels than the file's bytes can code.

    A Huffman-coded JPEG spends at least one bit on each 8 x 8 block, DEFLATE at least one byte on 1032.
    """
    if kind == "jpeg":
        least = frame.width * frame.height // 512
    else:
        least = frame.width * frame.height * frame.samples * frame.bits // 8 // 1032
    if least > size:
        detail = f"declares {frame.width} x {frame.height} pixels, which {size:,} bytes cannot hold"
        raise UnreadableImage(uri, "huge_header", detail)


def jpeg_frame(uri: str, stream: BinaryIO) -> Frame:
    """Return what a JPEG's start-of-frame segment says; any number and length of segments may stand before it."""
    stream.seek(2)
    while True:
        head = stream.read(4)
        while head[:2] == b"\xff\xff":  # fill bytes before a marker
            head = head[1:] + stream.read(1)
        if len(head) < 4:
            raise UnreadableImage(uri, "truncated", "the JPEG ends before its frame header")
        mark, code, length = struct.unpack(">BBH", head)
        if mark != 0xFF or length < 2:
            raise UnreadableImage(uri, "unreadable", f"no JPEG marker at byte {stream.tell() - 4}")
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            break
        stream.seek(length - 2, io.SEEK_CUR)
    body = stream.read(6)
    if len(body) < 6:
        raise UnreadableImage(uri, "truncated", "the JPEG ends inside its frame header")
    bits, height, width, samples = struct.unpack(">BHHB", body)
    kind = {1: "grey", 3: "rgb", 4: "cmyk"}.get(samples, "other")
    if code not in (0xC0, 0xC1, 0xC2):
        kind = "other"  # lossless and arithmetic coding are GDAL's affair
    return Frame(width, height, samples, bits, kind, stream.tell())


def png_frame(uri: str, stream: BinaryIO) -> Frame:
    """Return what a PNG's first chunk says."""
    stream.seek(8)
    chunk = stream.read(21)
    if len(chunk) < 21 or chunk[4:8] != b"IHDR":
        raise UnreadableImage(uri, "truncated", "the PNG ends inside its header")
    width, height, bits, colour = struct.unpack(">IIBB", chunk[8:18])
    samples, kind = {0: (1, "grey"), 2: (3, "rgb"), 3: (1, "palette"), 4: (2, "grey+alpha"), 6: (4, "rgb+alpha")}.get(
        colour, (0, "")
    )
    if not samples:
        raise UnreadableImage(uri, "unreadable", f"PNG colour type {colour} does not exist")
    return Frame(width, height, samples, bits, kind, stream.tell())


def check_jpeg_end(uri: str, stream: BinaryIO, size: int, after: int) -> None:
    """Look for the end-of-image marker behind byte ``after``; entropy-coded data cannot contain it by chance."""
    for start in (max(after, size - 1024), after):  # cameras append data, so a missing one is looked for everywhere
        stream.seek(start)
        if b"\xff\xd9" in stream.read():
            return
    raise UnreadableImage(uri, "truncated", "the JPEG has no end-of-image marker")


def check_png_end(uri: str, stream: BinaryIO, size: int, after: int) -> None:
    """Walk a PNG's chunks from byte ``after`` to its IEND."""
    at = after + 4  # behind the header's checksum
    while at + 12 <= size:
        stream.seek(at)
        length, name = struct.unpack(">I4s", stream.read(8))
        at += 12 + length
        if name == b"IEND":
            return
    raise UnreadableImage(uri, "truncated", f"the PNG has no end chunk within its {size:,} bytes")
