"""Look: one part of the hash store, made in a worker: its images are read, hashed and written as one file.

Called by ``store`` through the engine of a curation; a part names its rows of the manifest and the worker reads them
there, so that no list of 13 million paths is ever held or sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from terrasieve.curate import canonical, hashing
from terrasieve.curate.stamps import stamp, status_of
from terrasieve.files import written_aside
from terrasieve.imagery.grey import SIDE, Grey, grey
from terrasieve.imagery.headers import is_remote, open_local
from terrasieve.imagery.unreadable import UnreadableImage

SCHEMA = pa.schema(
    [
        ("id", pa.uint64()),
        ("stamp", pa.int64()),  # of the file's size and time of change (``stamps``)
        ("bytes_hash", pa.list_(pa.uint64(), 2)),  # BLAKE2b of the file, zeros for a window
        ("phash", pa.list_(pa.uint64(), 8)),  # of each of ``hashing.ORIENTATIONS``
        ("dhash", pa.uint64()),
        ("turns", pa.uint8()),  # orientations that may be the canonical one (``canonical``)
        ("entropy", pa.float32()),
        ("valid_share", pa.float32()),
        ("std", pa.float32()),
        ("reason", pa.string()),  # null, or why it could not be read
        ("thumb", pa.binary(SIDE**2)),
    ]
)
_BLOCK = 1 << 20
_NOTHING = Grey(np.zeros((SIDE, SIDE), np.uint8), 0.0, 0.0)


class Part(NamedTuple):
    """Images to be hashed into one file.

    Attributes:
        source: the manifest.
        group: number of its row group.
        rows: numbers of rows in that group.
        folder: of the store.
        number: of the part; of two entries of an image the one with the higher number counts.
        half: "", or which half of which half it is, of a part that ended its process.
    """

    source: Path
    group: int
    rows: np.ndarray
    folder: Path
    number: int
    half: str = ""

    @property
    def path(self) -> Path:
        """Return the file that the part becomes."""
        return self.folder / f"part-{self.number:06d}{'-' if self.half else ''}{self.half}.arrow"

    def halves(self) -> list[Part]:
        """Return both halves as parts."""
        middle = len(self.rows) // 2
        return [
            self._replace(rows=rows, half=f"{self.half}{name}")
            for name, rows in (("a", self.rows[:middle]), ("b", self.rows[middle:]))
        ]


def look_at(part: Part) -> int:
    """Hash the images of a part and write them; return their number."""
    ids, uris, windows, bands = _images(part)
    found = [look(uri, window, names) for uri, window, names in zip(uris, windows, bands, strict=True)]
    write(part, ids, found)
    return len(ids)


def lost(part: Part) -> None:
    """Write the part of one image that ends whatever process reads it."""
    ids, uris, _, _ = _images(part)
    mark = stamp(status_of(uris[0].partition("#name=")[0]))
    write(part, ids, [(mark, bytes(16), _NOTHING, "unreadable: reading it ends the process")])


Look = tuple[int, bytes, Grey, str | None]


def _images(part: Part) -> tuple[list[str], list[str], list[list[int] | None], list[list[str]]]:
    with pq.ParquetFile(part.source) as file:
        table = file.read_row_group(part.group, columns=["id", "uri", "window", "bands"]).take(pa.array(part.rows))
    return tuple(table[name].to_pylist() for name in ("id", "uri", "window", "bands"))


def look(uri: str, window: Sequence[int] | None, bands: Sequence[str] | None) -> Look:
    """Read an image: stamp of its file, hash of its bytes (zeros for a window), view, and why it cannot be read."""
    mark = stamp(status_of(uri.partition("#name=")[0]))  # before the pixels: a change from now on is noticed
    try:
        content = bytes(16) if window is not None or is_remote(uri) else _bytes_hash(uri)
        return mark, content, grey(uri, window, bands), None
    except UnreadableImage as error:
        return mark, bytes(16), _NOTHING, error.reason


def _bytes_hash(uri: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with open_local(uri) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.digest()


def write(part: Part, ids: list[str], found: list[Look]) -> None:
    """Hash thumbnails and write a part: of each image its stamp, bytes' hash, view, and why it could not be read."""
    marks, contents, greys, reasons = zip(*found, strict=True)
    thumbs = np.stack([view.thumb for view in greys])
    hashed = hashing.hashes(thumbs)
    columns: list[Any] = [
        pa.array([int(text, 16) for text in ids], pa.uint64()),
        pa.array(marks, pa.int64()),
        pa.FixedSizeListArray.from_arrays(pa.array(np.frombuffer(b"".join(contents), np.uint64)), 2),
        pa.FixedSizeListArray.from_arrays(pa.array(hashed.phash.ravel()), 8),
        pa.array(hashed.dhash),
        pa.array(canonical.turns(thumbs)),
        pa.array(hashed.entropy),
        pa.array([view.valid_share for view in greys], pa.float32()),
        pa.array([view.std for view in greys], pa.float32()),
        pa.array(reasons, pa.string()),
        pa.FixedSizeBinaryArray.from_buffers(pa.binary(SIDE**2), len(ids), [None, pa.py_buffer(thumbs.tobytes())]),
    ]
    batch = pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
    with (
        written_aside(part.path) as aside,
        pa.OSFile(str(aside), "wb") as file,
        pa.ipc.new_file(file, SCHEMA) as writer,
    ):
        writer.write_batch(batch)
