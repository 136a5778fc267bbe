"""TIFF blocks: is every strip and tile that the first directory promises inside the file?

Called by ``headers`` for the cheap check of truncation, since GDAL opens a truncated TIFF without a word and fails only
when the missing block is read. Source: TIFF 6.0 (Adobe, 1992) and the BigTIFF layout of libtiff's documentation.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

import numpy as np

from terrasieve.imagery.unreadable import UnreadableImage

_TYPES = {1: "u1", 3: "u2", 4: "u4", 16: "u8"}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES = 256, 257, 258, 259, 262, 277
_YCBCR = 6
_OFFSETS, _COUNTS = (273, 324), (279, 325)  # strips, tiles
_WANTED = {_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, *_OFFSETS, *_COUNTS}


def check_blocks(uri: str, stream: BinaryIO, size: int) -> None:
    """Check that a TIFF's first image lies whole inside its file, without decoding it.

    Args:
        uri: named in the error.
        stream: the open file, at any position.
        size: bytes in the file.

    Raises:
        UnreadableImage: "truncated" (a block or the directory ends beyond the file), "zero_band" or "huge_header".
    """
    try:
        tags = _directory(stream, size)
    except (struct.error, EOFError, ValueError) as error:
        raise UnreadableImage(uri, "truncated", "the TIFF directory ends beyond the file") from error
    samples = int(tags[_SAMPLES][0]) if len(tags.get(_SAMPLES, ())) else 1
    if samples == 0:
        raise UnreadableImage(uri, "zero_band", "the TIFF declares 0 samples per pixel")
    for where, length in zip(_OFFSETS, _COUNTS, strict=True):
        offsets, counts = tags.get(where), tags.get(length)
        if offsets is None or counts is None or len(offsets) != len(counts):
            continue
        end = int((offsets + counts)[counts > 0].max(initial=0))  # an absent (sparse) block counts 0 bytes
        if end > size:
            raise UnreadableImage(uri, "truncated", f"pixels run to byte {end:,} of a file of {size:,} bytes")
        _check_uncompressed(uri, tags, samples, counts, size)


def _check_uncompressed(uri: str, tags: dict[int, np.ndarray], samples: int, counts: np.ndarray, size: int) -> None:
    if int(tags.get(_COMPRESSION, np.array([1]))[0]) != 1 or not counts.all():
        return
    if int(tags.get(_PHOTOMETRIC, np.array([1]))[0]) == _YCBCR:  # stores fewer colour samples than pixels
        return
    bits = int(tags.get(_BITS, np.array([1]))[0])
    width, height = int(tags[_WIDTH][0]), int(tags[_HEIGHT][0])
    if width * height * samples * bits // 8 > size:
        detail = f"{width} x {height} x {samples} uncompressed pixels do not fit in {size:,} bytes"
        raise UnreadableImage(uri, "huge_header", detail)


def _directory(stream: BinaryIO, size: int) -> dict[int, np.ndarray]:
    stream.seek(0)
    head = stream.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = struct.unpack(order + "H", head[2:4])[0] == 43
    start = struct.unpack(order + ("Q" if big else "I"), head[8:16] if big else head[4:8])[0]
    stream.seek(start)
    count = struct.unpack(order + ("Q" if big else "H"), _exactly(stream, 8 if big else 2))[0]
    step, inline = (20, 8) if big else (12, 4)
    if count * step > size:
        raise EOFError
    entries = _exactly(stream, count * step)
    tags = {}
    for at in range(0, count * step, step):
        tag, kind, length = struct.unpack(order + ("HHQ" if big else "HHI"), entries[at : at + step - inline])
        if tag not in _WANTED or kind not in _TYPES:
            continue
        dtype = np.dtype(order + _TYPES[kind])
        raw, n_bytes = entries[at + step - inline : at + step], length * dtype.itemsize
        if n_bytes > inline:
            if n_bytes > size:
                raise EOFError
            stream.seek(struct.unpack(order + ("Q" if big else "I"), raw)[0])
            raw = _exactly(stream, n_bytes)
        tags[tag] = np.frombuffer(raw[:n_bytes], dtype).astype(np.int64)
    return tags


def _exactly(stream: BinaryIO, n_bytes: int) -> bytes:
    data = stream.read(n_bytes)
    if len(data) < n_bytes:
        raise EOFError
    return data
