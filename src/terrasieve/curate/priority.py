"""Priority: which of several images of the same content stays. Used by ``exact`` and ``verify``.

The one with the most pixels; of those the one of the earliest source; of those the first by uri. Nothing of an earlier
run plays a part, so the same images give the same choice, in whatever order they come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from terrasieve.curate.step import ROW_GROUP, numbers

Where = Callable[[pa.Table], np.ndarray]


class Rows(NamedTuple):
    """What is known of (n,) rows of a manifest, without their paths.

    Attributes:
        row: int64, its number in the manifest.
        id: uint64.
        pixels: int64, width x height.
        source: int32, rank of its source; 0 goes before all others.
    """

    row: np.ndarray
    id: np.ndarray
    pixels: np.ndarray
    source: np.ndarray

    def at(self, chosen: np.ndarray) -> Rows:
        """Return some of them."""
        return Rows(*(column[chosen] for column in self))


def read_rows(source: Path, where: Where, sources: Sequence[str] = ()) -> Rows:
    """Read rows of a manifest.

    Args:
        source: a manifest.
        where: tells of a table which rows (n,) bool are wanted.
        sources: names, the first with the highest rank; others follow by name.
    """
    found: list[Rows] = []
    seen: dict[str, int] = {}
    for first, table in _batches(source, None):
        chosen = np.flatnonzero(where(table))
        part = table.select(["id", "width", "height", "source"]).take(pa.array(chosen))
        pixels = pc.multiply(part["width"].cast(pa.int64()), part["height"].cast(pa.int64()))
        names = pc.fill_null(part["source"], "").combine_chunks().dictionary_encode()
        names = names.combine_chunks() if isinstance(names, pa.ChunkedArray) else names
        codes = np.array([seen.setdefault(name, len(seen)) for name in names.dictionary.to_pylist()], np.int32)
        which = codes[names.indices.to_numpy()] if len(codes) else np.zeros(0, np.int32)
        count = np.asarray(pc.fill_null(pixels, 0).to_numpy(), np.int64)
        found.append(Rows(chosen + first, numbers(part["id"]), count, which))
    order = [*sources, *sorted(set(seen) - set(sources))]
    rank = np.array([order.index(name) for name in seen], np.int32)
    rows = Rows(*(np.concatenate(columns) for columns in zip(*found, strict=True)))
    return rows._replace(source=rank[rows.source] if len(rank) else rows.source)


def take(source: Path, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
    """Read some columns of (k,) ascending rows of a manifest."""
    found = []
    for first, table in _batches(source, columns):
        begin, end = np.searchsorted(rows, [first, first + len(table)])
        found.append(table.take(pa.array(rows[begin:end] - first)))
    return pa.concat_tables(found)


def ranked(rows: Rows, source: Path) -> np.ndarray:
    """Return (n,) int64: 0 for the row that goes before all others, and so on; rows are ascending."""
    uris = take(source, rows.row, ["uri"])["uri"]
    by_uri = np.empty(len(rows.row), np.int64)
    by_uri[pc.sort_indices(uris).to_numpy()] = np.arange(len(rows.row))
    order = np.lexsort((rows.id, by_uri, rows.source, -rows.pixels))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


def _batches(source: Path, columns: Sequence[str] | None) -> Iterator[tuple[int, pa.Table]]:
    wanted = list(columns or ("id", "width", "height", "source", "keep", "group", "phash"))
    with pq.ParquetFile(source) as file:
        first = 0
        for batch in file.iter_batches(ROW_GROUP, columns=wanted):
            yield first, pa.Table.from_batches([batch])
            first += len(batch)
