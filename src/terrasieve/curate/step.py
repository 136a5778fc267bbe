"""Step: what all steps of curation have in common. Each reads a manifest file and writes another of the same rows.

A step is a function ``step(source, target, settings, work) -> Result``: it streams row groups (``rewrite``), so that
13 million rows pass through a few hundred megabytes, never removes a row, and says of each that it drops why. The
target appears under its name when it is whole; ``pipeline`` runs the steps in order and skips those that are done.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely

from terrasieve import manifest
from terrasieve.curate.engine import Engine, Local
from terrasieve.errors import UserError
from terrasieve.files import written_aside

ROW_GROUP = 65_536
Tick = Callable[[int, int], None]


def _silent(_done: int, _total: int) -> None:
    pass


@dataclass(frozen=True)
class Work:
    """What the steps share.

    Attributes:
        folder: of the curation; ``hashes/`` and ``pairs/`` lie in it.
        engine: runs functions over parts, here or on a cluster.
        seed: of everything random.
        tick: told what is done, and of how much.
    """

    folder: Path
    engine: Engine = field(default_factory=Local)
    seed: int = 0
    tick: Tick = _silent

    @property
    def hashes(self) -> Path:
        """Folder of the hash store (``curate.store``)."""
        return self.folder / "hashes"

    @property
    def pairs(self) -> Path:
        """Table of pairs that verification judged (``curate.pairs``)."""
        return self.folder / "pairs.parquet"

    @property
    def decisions(self) -> Path:
        """What a person decided in review, a JSON line per key pressed (``curate.decisions``)."""
        return self.folder / "decisions.jsonl"


@dataclass
class Result:
    """What a step left.

    Attributes:
        rows: in the manifest.
        kept: of them.
        dropped: by this step, by code of the reason.
        notes: what a person should know, one sentence each.
    """

    rows: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


Change = Callable[[pa.Table, int], pa.Table | Iterator[pa.Table]]


def rewrite(source: Path, target: Path, change: Change, tick: Tick = _silent) -> Result:
    """Stream a manifest through a function of (row group, its first row) and write what comes back.

    Args:
        source: a manifest.
        target: another one; appears when it is whole.
        change: returns a table of ``manifest.SCHEMA``; it may have more or fewer rows (slicing), or come in parts.
        tick: told the rows done and their number.

    Returns:
        Counts; ``dropped`` holds what was kept in ``source`` and is not in ``target``.

    Raises:
        UserError: ``source`` is no manifest, or the disk is full.
    """
    result = Result()
    manifest.read(source, ["keep"], empty_ok=True)  # a file that is no manifest is named as such
    with pq.ParquetFile(source) as file, writing(target, result) as write:
        first = 0
        was: Counter[str] = Counter()
        for batch in file.iter_batches(ROW_GROUP, columns=manifest.SCHEMA.names):
            before = manifest.resolved(pa.Table.from_batches([batch]), source)
            was += tally(before)
            after = change(before, first)
            for part in [after] if isinstance(after, pa.Table) else after:
                write(part)
            first += len(before)
            tick(first, file.metadata.num_rows)
        result.dropped -= was
    return result


@contextmanager
def writing(target: Path, result: Result) -> Iterator[Callable[[pa.Table], None]]:
    """Yield a function that writes the next rows of a manifest, and count them.

    Args:
        target: appears when it is whole.
        result: gets the rows, those kept, and all that are not, by code.
    """
    shapes = Shapes()
    schema = manifest.SCHEMA.with_metadata(manifest.version_metadata())
    with written_aside(target) as aside, pq.ParquetWriter(aside, schema, compression="zstd") as writer:

        def write(table: pa.Table) -> None:
            table = table.select(manifest.SCHEMA.names).cast(manifest.SCHEMA)
            result.rows += len(table)
            result.kept += pc.sum(table["keep"]).as_py() or 0
            result.dropped.update(tally(table))
            shapes.add(table["geometry"])
            writer.write_table(table.cast(schema), row_group_size=ROW_GROUP)

        yield write
        writer.add_key_value_metadata({"geo": json.dumps(shapes.metadata())})


def drop(table: pa.Table, rows: np.ndarray, reasons: list[str]) -> pa.Table:
    """Return a manifest's rows with some of them not kept.

    Args:
        table: of ``manifest.SCHEMA``.
        rows: (k,) numbers of rows; those that are not kept already stay as they are.
        reasons: (k,) "code: detail".
    """
    if not len(rows):
        return table
    keep = table["keep"].to_numpy(zero_copy_only=False).copy()
    reason = np.asarray(table["reason"].to_pylist(), object)
    for row, why in zip(rows, reasons, strict=True):
        if keep[row]:
            keep[row], reason[row] = False, why
    table = table.set_column(table.schema.get_field_index("keep"), "keep", pa.array(keep))
    return table.set_column(table.schema.get_field_index("reason"), "reason", pa.array(reason, pa.string()))


def codes(reasons: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return each reason's code, what stands before its first colon."""
    return pc.list_element(pc.split_pattern(reasons, ":", max_splits=1), 0)


def tally(table: pa.Table) -> Counter[str]:
    """Count a manifest's rows that are not kept, by code of their reason."""
    reasons = table.filter(pc.invert(table["keep"]))["reason"]
    return Counter({entry["values"]: entry["counts"] for entry in codes(reasons).value_counts().to_pylist()})


def numbers(ids: pa.ChunkedArray) -> np.ndarray:
    """Return ids (16 hex digits) as (n,) uint64."""
    text = pa.concat_arrays(ids.chunks) if ids.num_chunks else pa.array([], pa.string())
    if not len(text):
        return np.zeros(0, np.uint64)
    ends = np.frombuffer(text.buffers()[1], np.int32)[text.offset : text.offset + len(text) + 1]
    if ends[-1] - ends[0] != 16 * len(text):
        raise UserError("Not a manifest of terrasieve: an id is 16 hexadecimal digits, but some here are not.")
    digits = np.frombuffer(text.buffers()[2], np.uint8)[ends[0] : ends[-1]].reshape(-1, 16)
    nibbles = digits - np.where(digits < 58, np.uint8(48), np.uint8(87))
    return np.ascontiguousarray(nibbles[:, ::2] << 4 | nibbles[:, 1::2]).view(">u8")[:, 0].astype(np.uint64)


class Shapes:
    """The kinds and bounds of footprints that pass by, for GeoParquet's metadata."""

    def __init__(self) -> None:
        self.kinds: set[str] = set()
        self.bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])

    def add(self, geometry: pa.ChunkedArray) -> None:
        """Note a column of WKB."""
        shapes = shapely.from_wkb(geometry.drop_null().to_numpy())
        _, examples = np.unique(shapely.get_type_id(shapes), return_index=True)
        self.kinds |= {shape.geom_type for shape in shapes[examples]}
        if len(shapes):
            bounds = shapely.total_bounds(shapes)
            self.bounds[:2] = np.fmin(self.bounds[:2], bounds[:2])
            self.bounds[2:] = np.fmax(self.bounds[2:], bounds[2:])

    def metadata(self) -> dict[str, object]:
        """Return what GeoParquet says of the file."""
        return manifest.geo_metadata_of(self.kinds, self.bounds if np.isfinite(self.bounds).all() else None)
