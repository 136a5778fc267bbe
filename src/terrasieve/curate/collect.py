"""Collect: the listed files of all sources into the first manifest, reading only headers that were not read before.

The step ``scan`` of a curation. ``listing`` says which files there are; here their headers are read in worker processes
and rows are written in order of source and path, a row group at a time. Beside the manifest stays what a rerun needs to
take over the rows of files that are still the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from terrasieve import manifest
from terrasieve.curate.listing import CHUNK, Listing, SourceSettings
from terrasieve.curate.scan import Verify, read_headers
from terrasieve.curate.slicing import MAX_TILED_PIXELS
from terrasieve.curate.stamps import LISTED, NAME
from terrasieve.curate.step import Result, Work, numbers, writing
from terrasieve.files import written_aside
from terrasieve.imagery.formats import MAX_PIXELS
from terrasieve.section import Section

VERSION = 1  # of what a row says of a file; a higher one has every header read again
Rows = list[dict[str, Any]]


class ScanSettings(Section):
    """How files are read.

    Attributes:
        verify: "header" believes a file's first bytes, "ends" also finds cut files without decoding, "decode" decodes
            every pixel.
        max_pixels: width x height beyond which an image is refused, for a few bytes can declare any size.
        max_tiled_pixels: the same of tiled GeoTIFFs, which are read by window.
    """

    verify: Verify = "ends"
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    max_tiled_pixels: int = Field(default=MAX_TILED_PIXELS, ge=1)


def collect(
    listing: Listing, sources: Sequence[SourceSettings], target: Path, settings: ScanSettings, work: Work
) -> Result:
    """Write the manifest of what was listed, and beside it ``stamps.NAME``.

    Reasons: those of ``imagery.unreadable``; ``listed_twice`` for a file that has a row already, under this or another
    name: the source that is named first keeps it.

    Args:
        listing: of the sources.
        sources: in order of priority.
        target: the manifest; an earlier one there is taken over from.
        settings: how files are read.
        work: engine and display.
    """
    result = Result(notes=listing.say())
    earlier = Earlier(target)
    ids = pq.read_table(listing.path, columns=["id"])["id"].to_numpy()
    taken = first = 0
    with (
        pq.ParquetFile(listing.path) as file,
        written_aside(target.with_name(NAME)) as aside,
        pq.ParquetWriter(aside, LISTED, compression="zstd") as listed,
        writing(target, result) as write,
    ):
        for batch in file.iter_batches(CHUNK):
            entries = _entries(batch, sources, listing, settings)
            prints = np.array([entry.pop("fingerprint") for entry in entries], np.uint64)
            rows = earlier.rows(batch["id"].to_numpy(), prints)
            leaders = listing.first[first : first + len(entries)]
            twice = leaders != np.arange(first, first + len(entries))
            rows[twice] = -1
            _refuse(entries, twice, ids[leaders], ids[first : first + len(entries)])
            write(_table(entries, rows, earlier, settings, work, (first, listing.rows)))
            columns = [batch["id"], batch["stamp"], pa.array(prints)]
            listed.write_table(pa.Table.from_arrays(columns, schema=LISTED))
            taken += int((rows >= 0).sum())
            first += len(entries)
    if taken:
        result.notes.append(f"Rows of an earlier scan taken over, for their files are the same: {taken:,}.")
    return result


def _entries(
    batch: pa.RecordBatch, sources: Sequence[SourceSettings], listing: Listing, settings: ScanSettings
) -> list[dict[str, Any]]:
    """Return what is known of files before they are opened, with a fingerprint of it."""
    made = []
    how = f"{VERSION} {settings.model_dump_json()}"
    columns = (batch[name].to_pylist() for name in ("source", "uri", "stamp", "known"))
    for number, raw, stamp, text in zip(*columns, strict=True):
        source = sources[number]
        uri = os.fsdecode(raw)
        own = {name: getattr(source, name) for name in ("licence", "sensor", "gsd_m", "split")}
        known = json.loads(text) if text else {}
        entry = listing.rules[number](uri) | {name: value for name, value in own.items() if value is not None}
        entry |= known | {"source": source.name, "uri": uri}
        content = json.dumps([how, stamp, entry], sort_keys=True)
        print_ = hashlib.blake2b(content.encode(), digest_size=8).digest()
        if "datetime" in entry:
            entry["datetime"] = datetime.fromisoformat(entry["datetime"])
        made.append(entry | {"fingerprint": int.from_bytes(print_, "little")})
    return made


def _refuse(entries: Rows, twice: np.ndarray, leaders: np.ndarray, ids: np.ndarray) -> None:
    for row in np.flatnonzero(twice).tolist():
        same = "under the same name" if leaders[row] == ids[row] else f"as the row {leaders[row]:016x}"
        entries[row]["reason"] = f"listed_twice: the file has a row already, {same}"


def _table(
    entries: Rows, rows: np.ndarray, earlier: Earlier, settings: ScanSettings, work: Work, done: tuple[int, int]
) -> pa.Table:
    """Return the rows of a chunk: those taken over, and those of files that are read now."""
    fresh = np.flatnonzero(rows < 0)
    read = read_headers(
        [entries[row] for row in fresh.tolist()],
        work.engine,
        **settings.model_dump(),
        on_file=lambda so_far, _: work.tick(done[0] + so_far, done[1]),
    )
    old = np.flatnonzero(rows >= 0)
    table = pa.concat_tables([manifest.rows_to_table([row for row, _ in read]), earlier.take(rows[old])])
    order = np.empty(len(entries), np.int64)
    order[fresh], order[old] = np.arange(len(fresh)), len(fresh) + np.arange(len(old))
    work.tick(done[0] + len(entries), done[1])
    return table.take(order)


class Earlier:
    """The manifest of an earlier scan, from which rows are taken over."""

    def __init__(self, path: Path) -> None:
        """Read what it says of its rows; nothing, where either of its two files is missing."""
        listed = path.with_name(NAME)
        there = path.exists() and listed.exists()
        table = pq.read_table(listed) if there else LISTED.empty_table()
        self._file = pq.ParquetFile(path) if there else None
        self._ids, self._prints = table["id"].to_numpy(), table["fingerprint"].to_numpy()
        if self._file is not None and not self._agrees():
            self._ids, self._prints = self._ids[:0], self._prints[:0]
        self._order = np.argsort(self._prints, kind="stable")
        self._group = (-1, manifest.SCHEMA.empty_table())

    def _agrees(self) -> bool:
        """Tell whether the listing is the manifest's: a process killed between the two leaves them apart."""
        assert self._file is not None
        at = 0
        for batch in self._file.iter_batches(CHUNK, columns=["id"]):
            ids = numbers(pa.chunked_array([batch["id"]]))
            if not np.array_equal(ids, self._ids[at : at + len(ids)]):
                return False
            at += len(ids)
        return at == len(self._ids)

    def rows(self, ids: np.ndarray, prints: np.ndarray) -> np.ndarray:
        """Return the row of each file that is still the same, -1 where there is none."""
        if not len(self._ids):
            return np.full(len(ids), -1, np.int64)
        at = np.searchsorted(self._prints, prints, sorter=self._order)
        rows = self._order[np.minimum(at, len(self._order) - 1)]
        return np.where((self._prints[rows] == prints) & (self._ids[rows] == ids), rows, -1)

    def take(self, rows: np.ndarray) -> pa.Table:
        """Return rows in the order asked for."""
        tables = [manifest.SCHEMA.empty_table()]
        groups = rows // CHUNK
        for begin, end in _runs(groups):
            tables.append(self._read(int(groups[begin])).take(rows[begin:end] % CHUNK))
        return pa.concat_tables(tables)

    def _read(self, group: int) -> pa.Table:
        assert self._file is not None
        if self._group[0] != group:
            self._group = group, self._file.read_row_group(group).select(manifest.SCHEMA.names).cast(manifest.SCHEMA)
        return self._group[1]


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(values)) + 1
    return list(zip([0, *edges.tolist()], [*edges.tolist(), len(values)], strict=True)) if len(values) else []
