"""Store: what is known of every image's content, hashed once and kept: the step "hash", and the reader of its files.

``hashes/part-*.arrow`` (Arrow IPC, uncompressed, read by memory map) hold some 2,000 images each and appear when they
are whole, so a run that was killed goes on where it was; an image is hashed again only when its file's size or time of
change differ, and of two entries the later part's counts. Between slicing and inspection. Source: CURATION.md, step 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from terrasieve.curate.engine import LOST
from terrasieve.curate.look import SCHEMA, Part, look_at, lost
from terrasieve.curate.stamps import stamp, status_of
from terrasieve.curate.step import Result, Work, numbers, rewrite
from terrasieve.errors import UserError
from terrasieve.imagery.grey import SIDE
from terrasieve.section import Section

_LEAST = 64  # images in a part, where there are few
_SHAPES = {"phash": 8, "bytes_hash": 2}  # numbers an image


class HashSettings(Section):
    """How images are hashed.

    Attributes:
        part: images in a file of the store; what a run that is killed may have to do again.
    """

    part: int = Field(default=2000, ge=1)


def hash_images(source: Path, target: Path, settings: HashSettings, work: Work) -> Result:
    """Hash the images that are kept and that the store lacks, and write their pHash into the manifest.

    Raises:
        UserError: the disk is full, or a part of the store cannot be read.
    """
    work.hashes.mkdir(parents=True, exist_ok=True)
    for left in work.hashes.glob(".part-*.partial"):
        left.unlink(missing_ok=True)  # of a run that was killed
    parts, done, total = _plan(source, settings, work)
    hashed = total - done
    work.tick(done, total)
    for count in _run(parts, work):
        done += count
        work.tick(done, total)
    store = open_store(work.hashes)
    phash = store.column("phash", 0)
    unreadable = np.array([bool(reason) for reason in store.column("reason")], bool)

    def change(table: pa.Table, _: int) -> pa.Table:
        rows = store.rows(numbers(table["id"]))
        known = (rows >= 0) & table["keep"].to_numpy(zero_copy_only=False)
        known[known] &= ~unreadable[rows[known]]
        values = np.where(known, phash[np.maximum(rows, 0)], np.uint64(0)) if len(phash) else np.zeros(len(rows), "u8")
        column = pa.array(values, pa.uint64(), mask=~known)
        return table.set_column(table.schema.get_field_index("phash"), "phash", column)

    result = rewrite(source, target, change)
    result.notes.append(f"{hashed:,} images hashed, {total - hashed:,} known from before.")
    return result


def names(ids: np.ndarray) -> list[str]:
    """Turn (n,) uint64 back into the manifest's ids."""
    return [f"{number:016x}" for number in ids.tolist()]


class Store:
    """The store of a curation, for reading.

    Attributes:
        ids: (n,) uint64, in the order of the parts; an image whose file changed stands in it again.
    """

    def __init__(self, folder: Path) -> None:
        """Open ``folder``; hash columns are read when asked for, thumbnails by the page."""
        self._folder = folder
        self._paths = sorted(folder.glob("part-*.arrow"))
        parts = [self._read(path, "id") for path in self._paths]
        self._ends = np.cumsum([0, *(len(part) for part in parts)])
        self.ids = np.concatenate([np.zeros(0, np.uint64), *parts])
        self._order = np.argsort(self.ids, kind="stable")
        self._sorted = self.ids[self._order]

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Return the row (int64) of each of (k,) uint64 ids, the latest where there are several; -1 = not there."""
        if not len(self.ids):
            return np.full(len(ids), -1)
        at = np.searchsorted(self._sorted, ids, side="right") - 1
        return np.where((at >= 0) & (self._sorted[at] == ids), self._order[at], -1)

    def column(self, name: str, place: int | None = None) -> np.ndarray:
        """Return a column of all rows; with ``place``, that one of its numbers an image alone.

        ``phash`` (n, 8) uint64, ``dhash`` uint64, ``entropy`` float32 in bits, ``valid_share`` and ``std`` float32,
        ``turns`` uint8 (``canonical``), ``bytes_hash`` (n, 2) uint64 (zeros: a window), ``pixel_hash`` (n, 2) uint64
        (zeros: never asked for, see ``exact``), ``stamp`` int64, ``reason`` str (why it could not be read, or "").
        """
        if name == "pixel_hash":
            from terrasieve.curate.pixels import pixel_hashes

            return pixel_hashes(self, self._folder)
        if not self._paths:
            empty = np.zeros((0, _SHAPES[name]) if name in _SHAPES and place is None else 0, np.uint64)
            return empty.astype(object) if name == "reason" else empty
        parts = (self._read(path, name) for path in self._paths)
        return np.concatenate([part if place is None else part[:, place].copy() for part in parts])

    def thumbs(self, rows: np.ndarray) -> np.ndarray:
        """Return the thumbnails (k, 32, 32) uint8 of (k,) rows."""
        found = np.zeros((len(rows), SIDE, SIDE), np.uint8)
        part = np.searchsorted(self._ends, rows, side="right") - 1
        order = np.argsort(part, kind="stable")
        for chosen in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            if len(chosen):
                number = part[chosen[0]]
                images = self._read(self._paths[number], "thumb")
                found[chosen] = images[rows[chosen] - self._ends[number]]
        return found

    @staticmethod
    def _read(path: Path, name: str) -> np.ndarray:
        try:
            with pa.memory_map(str(path)) as file:
                wanted = pa.ipc.IpcReadOptions(included_fields=[SCHEMA.get_field_index(name)])
                column = pa.ipc.open_file(file, options=wanted).get_batch(0).column(name)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path} is damaged ({error}). Delete it and run the curation again.") from error
        if name == "reason":
            return np.array([value or "" for value in column.to_pylist()], object)
        if name == "thumb":
            flat = np.frombuffer(column.buffers()[1], np.uint8)
            return flat.reshape(-1, SIDE, SIDE)
        if name in _SHAPES:
            return np.asarray(column.flatten().to_numpy()).reshape(-1, _SHAPES[name])
        return np.asarray(column.to_numpy())


def open_store(folder: Path) -> Store:
    """Open the store of a curation, ``Work.hashes``, for reading."""
    return Store(folder)


def _plan(source: Path, settings: HashSettings, work: Work) -> tuple[list[Part], int, int]:
    """Share what has to be hashed out into parts; return them, the images known already, and all that are kept."""
    store = open_store(work.hashes)
    stamps = store.column("stamp")
    wanted: list[tuple[int, np.ndarray]] = []  # (row group, rows in it)
    known = total = 0
    with pq.ParquetFile(source) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["id", "uri", "keep"])
            kept = np.flatnonzero(table["keep"].to_numpy(zero_copy_only=False))
            rows = store.rows(numbers(table["id"]))[kept]
            fresh = rows >= 0
            if fresh.any():
                there = kept[fresh]
                fresh[fresh] = stamps[rows[fresh]] == _stamps(table["uri"].take(pa.array(there)))
            wanted.append((group, kept[~fresh]))
            known += int(fresh.sum())
            total += len(kept)
    size = int(np.clip((total - known) // (8 * getattr(work.engine, "workers", 1)), _LEAST, settings.part))
    first = 1 + max((int(path.stem.split("-")[1]) for path in work.hashes.glob("part-*.arrow")), default=0)
    cuts = [(group, rows[k : k + size]) for group, rows in wanted for k in range(0, len(rows), size)]
    return [Part(source, group, rows, work.hashes, first + n) for n, (group, rows) in enumerate(cuts)], known, total


def _stamps(uris: pa.ChunkedArray) -> np.ndarray:
    last, found = ("", 0), []
    for uri in uris.to_pylist():
        file = uri.partition("#name=")[0]
        if file != last[0]:
            last = file, stamp(status_of(file))
        found.append(last[1])
    return np.array(found, np.int64)


def _run(parts: list[Part], work: Work) -> Iterator[int]:
    """Hash all parts; one that ends its process is halved, down to the image that does it. Yield images done."""
    while parts:
        again: list[Part] = []
        for number, found in work.engine.run(look_at, parts):
            part = parts[number]
            if found is not LOST:
                yield len(part.rows)
            elif len(part.rows) == 1:
                lost(part)
                yield 1
            else:
                again += part.halves()
        parts = again
