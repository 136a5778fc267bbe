"""Shard plan: which image goes into which shard, in an order that keeps neighbours on the ground together.

First half of ``shards``. Kept rows stand in Hilbert order of their coordinates; those without coordinates follow, by
source and group. The plan is a Parquet file in that order with a row group per shard, so that whoever writes a shard
reads its rows alone. Of 13 million rows memory holds numpy columns for the order; the rows themselves are dealt out to
files of neighbours, and those put in order one by one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from terrasieve import manifest, remote
from terrasieve.curate.step import ROW_GROUP
from terrasieve.errors import UserError
from terrasieve.files import written_aside
from terrasieve.imagery import geo, members

HELD = 300_000  # rows in memory at once
_SIDE_BYTES = 2_048  # of a sample beside its pixels: two tar headers, the JSON, padding
_COLUMNS = ["id", "uri", "window", "width", "height", "bands", "dtype", "lon", "lat", "source", "group", "keep"]


@dataclass
class _Columns:
    """What the order is made from, of the kept rows: number of the row, place, source, group and bytes expected."""

    rows: np.ndarray
    ids: np.ndarray
    lon: np.ndarray
    lat: np.ndarray
    source: np.ndarray
    group: np.ndarray
    n_bytes: np.ndarray


def write_plan(source: Path, target: Path, shard_bytes: int, jpeg: bool, key: str) -> int:
    """Write the plan; returns the number of images in it.

    Args:
        source: a manifest.
        target: the plan: the manifest's kept rows, a row group per shard.
        shard_bytes: size that shards are filled up to, as far as it can be told beforehand.
        jpeg: whether windows become JPEG, which are smaller.
        key: of the export, kept in the file.

    Raises:
        UserError: no row is kept, or two kept rows have the same id.
    """
    columns = _read(source, jpeg)
    _refuse_twins(source, columns)
    order = _order(columns)
    starts = _starts(columns.n_bytes[order], shard_bytes)
    rank = np.full(pq.read_metadata(source).num_rows, -1, np.int64)
    rank[columns.rows[order]] = np.arange(len(order))
    schema = manifest.SCHEMA.with_metadata({b"terrasieve:plan": json.dumps(key).encode()})
    with written_aside(target) as aside, pq.ParquetWriter(aside, schema, compression="zstd") as writer:
        held = np.array([*_passes(starts, len(order)), len(starts) - 1])
        with TemporaryDirectory(dir=target.parent, prefix=".plan.") as folder:
            parts = _distribute(source, rank, starts[held], Path(folder))
            for first, stop, rows in zip(held[:-1], held[1:], parts, strict=True):
                for shard in range(first, stop):
                    part = rows.slice(int(starts[shard] - starts[first]), int(starts[shard + 1] - starts[shard]))
                    writer.write_table(part.cast(schema), row_group_size=len(part))
    return len(order)


def has_key(plan: Path, key: str) -> bool:
    """Tell whether a plan is there, and of this export."""
    if not plan.is_file():
        return False
    return bool((pq.read_schema(plan).metadata or {}).get(b"terrasieve:plan") == json.dumps(key).encode())


def _read(source: Path, jpeg: bool) -> _Columns:
    names: dict[str | None, int] = {}
    parts: list[_Columns] = []
    with pq.ParquetFile(source) as file:
        first = 0
        for batch in file.iter_batches(ROW_GROUP, columns=_COLUMNS):
            table = manifest.resolved(pa.Table.from_batches([batch]), source)
            keep = pc.fill_null(table["keep"], False)
            rows = np.flatnonzero(keep.to_numpy(zero_copy_only=False)) + first
            first += len(table)
            parts.append(_columns(table.filter(keep), rows, names, jpeg))
    columns = _Columns(*(np.concatenate([getattr(part, name) for part in parts]) for name in _Columns.__annotations__))
    if not len(columns.rows):
        raise UserError(f"{source} keeps none of its {first:,} rows, so there is nothing to write into shards.")
    return columns


def _columns(table: pa.Table, rows: np.ndarray, names: dict[str | None, int], jpeg: bool) -> _Columns:
    encoded = table["source"].combine_chunks().dictionary_encode()
    codes = np.array([names.setdefault(name, len(names)) for name in encoded.dictionary.to_pylist()] + [-1], np.int32)
    lon, lat = (pc.fill_null(table[name], float("nan")).to_numpy() for name in ("lon", "lat"))
    return _Columns(
        rows,
        np.array([int(text, 16) for text in table["id"].to_pylist()], np.uint64),
        lon,
        lat,
        codes[pc.fill_null(encoded.indices, -1).to_numpy()],
        pc.fill_null(table["group"], -1).to_numpy(),
        _expected_bytes(table, jpeg),
    )


def _expected_bytes(table: pa.Table, jpeg: bool) -> np.ndarray:
    """Return the bytes that each image will take: its file's, or half of its window's pixels (a fifth as JPEG)."""
    width, height = (table[name].to_numpy().astype(np.float64) for name in ("width", "height"))
    depth = np.array([np.dtype(name).itemsize for name in table["dtype"].to_pylist()])
    pixels = width * height * pc.list_value_length(table["bands"]).to_numpy() * depth
    n_bytes = pixels * np.where(jpeg & (depth == 1), 0.2, 0.5)
    whole = pc.is_null(table["window"]).to_numpy(zero_copy_only=False)
    uris = table["uri"].to_pylist()
    for row in np.flatnonzero(whole):
        n_bytes[row] = _size(uris[row], n_bytes[row])
    return np.asarray(n_bytes + _SIDE_BYTES, np.int64)


def _size(uri: str, otherwise: float) -> float:
    member = members.parse(uri)
    if member is not None:
        return member.size
    try:
        return otherwise if remote.is_url(uri) else Path(uri).stat().st_size
    except OSError:
        return otherwise  # whoever writes the shard finds out why, and says so


def _refuse_twins(source: Path, columns: _Columns) -> None:
    ids = np.sort(columns.ids)
    twins = ids[1:][ids[1:] == ids[:-1]]
    if len(twins):
        raise UserError(
            f"{source} keeps {len(twins):,} rows whose id another kept row has, the first one {int(twins[0]):016x}. "
            "A sample's name in a shard is its id: drop the rows that are listed twice."
        )


def _order(columns: _Columns) -> np.ndarray:
    placed = np.isfinite(columns.lon) & np.isfinite(columns.lat)
    curve = np.full(len(columns.rows), np.iinfo(np.int64).max)
    curve[placed] = geo.hilbert_order(columns.lon[placed], columns.lat[placed], bits=24)
    source, group = (np.where(placed, 0, values) for values in (columns.source, columns.group))
    return np.lexsort((columns.rows, group, source, curve))


def _starts(n_bytes: np.ndarray, shard_bytes: int) -> np.ndarray:
    """Return each shard's first image and, last, their number; shards are filled evenly up to the bytes wanted."""
    ends = np.cumsum(n_bytes)
    shards = int(-(-ends[-1] // shard_bytes))
    bounds = ends[-1] * np.arange(1, shards) / shards
    return np.unique(np.concatenate([[0], np.searchsorted(ends, bounds, side="right"), [len(n_bytes)]]))


def _passes(starts: np.ndarray, count: int) -> Iterator[int]:
    """Yield the first shard of each run that holds at most ``HELD`` images, or is a single one."""
    first = 0
    while starts[first] < count:
        yield first
        first = max(int(np.searchsorted(starts, starts[first] + HELD, side="right")) - 1, first + 1)


def _distribute(source: Path, rank: np.ndarray, bounds: np.ndarray, folder: Path) -> Iterator[pa.Table]:
    """Yield the rows whose ranks lie in [bounds[k], bounds[k + 1]), in order, for each k; by way of a file for each."""
    names = [folder / f"{part:04d}.arrow" for part in range(len(bounds) - 1)]
    schema = manifest.SCHEMA.append(pa.field("rank", pa.int64()))
    with ExitStack() as opened, pq.ParquetFile(source) as file:
        packed = pa.ipc.IpcWriteOptions(compression="lz4")
        writers = [opened.enter_context(pa.ipc.new_file(str(name), schema, options=packed)) for name in names]
        first = 0
        for batch in file.iter_batches(ROW_GROUP, columns=manifest.SCHEMA.names):
            own = rank[first : first + len(batch)]
            first += len(batch)
            part = np.where(own < 0, -1, np.searchsorted(bounds, own, side="right") - 1)
            table = manifest.resolved(pa.Table.from_batches([batch]).append_column("rank", pa.array(own)), source)
            for number in np.unique(part[part >= 0]):
                writers[number].write_table(table.take(np.flatnonzero(part == number)).cast(schema))
    for name in names:
        table = pa.ipc.open_file(name).read_all()
        name.unlink()
        yield table.take(np.argsort(table["rank"].to_numpy())).drop_columns("rank")
