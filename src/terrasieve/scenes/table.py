"""Table of embeddings: GeoParquet, a row per image or tile with its place and its vector.

Written by ``terrasieve embed``, read by anything that reads GeoParquet. Columns: ``id``, ``uri`` and ``window`` as in a
manifest, ``geometry`` (WKB, EPSG:4326), ``lon``, ``lat``, ``vector`` (a list of fixed length of float32). Source of the
file's metadata: GeoParquet 1.1.0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from terrasieve.errors import UserError
from terrasieve.files import written_aside
from terrasieve.manifest import SCHEMA, geo_metadata_of

KEY = b"terrasieve:embeddings"
PLACE = ("id", "uri", "window", "geometry", "lon", "lat")
_GROUP = 8192  # rows of a row group


class Writer:
    """Collects rows into row groups."""

    def __init__(self, file: pq.ParquetWriter, width: int) -> None:
        self._file, self._width = file, width
        self._waiting: list[pa.Table] = []
        self._kinds: set[str] = set()
        self._bounds = [np.inf, np.inf, -np.inf, -np.inf]
        self.rows = 0

    def write(self, place: pa.Table, vectors_ND: NDArray[np.float32]) -> None:
        """Add rows: their columns of ``PLACE``, and their vectors."""
        flat = pa.array(np.ascontiguousarray(vectors_ND, np.float32).reshape(-1))
        table = place.select(PLACE).append_column("vector", pa.FixedSizeListArray.from_arrays(flat, self._width))
        shapes = shapely.from_wkb(place["geometry"].drop_null().to_numpy())
        if len(shapes):
            self._kinds |= {shape.geom_type for shape in shapes}
            west, south, east, north = shapely.total_bounds(shapes)
            low, high = self._bounds[:2], self._bounds[2:]
            self._bounds = [min(low[0], west), min(low[1], south), max(high[0], east), max(high[1], north)]
        self._waiting.append(table.cast(schema(self._width)))
        self.rows += len(table)
        if sum(map(len, self._waiting)) >= _GROUP:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._waiting:
            self._file.write_table(pa.concat_tables(self._waiting))
            self._waiting = []

    def geo(self) -> dict[str, Any]:
        """Return what GeoParquet says of the geometry of all rows."""
        return geo_metadata_of(self._kinds, self._bounds if self._kinds else None)


def schema(width: int) -> pa.Schema:
    """Return the columns of a table of vectors of ``width`` values."""
    return pa.schema([SCHEMA.field(name) for name in PLACE] + [("vector", pa.list_(pa.float32(), width))])


@contextmanager
def writing(path: Path, width: int, about: dict[str, Any]) -> Iterator[Writer]:
    """Write a table row group by row group; it appears under its name when it is whole.

    Args:
        path: to write.
        width: values of a vector.
        about: what the vectors were made with.
    """
    with written_aside(path) as aside, pq.ParquetWriter(aside, schema(width), compression="zstd") as file:
        writer = Writer(file, width)
        yield writer
        writer.flush()
        file.add_key_value_metadata({"geo": json.dumps(writer.geo()), KEY.decode(): json.dumps(about)})


def opened(path: Path) -> tuple[pq.ParquetFile, int, dict[str, Any]]:
    """Open a table to read it a part at a time: the file, the vectors' length, and what they were made with.

    Raises:
        UserError: no such file, or no table of embeddings.
    """
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}. Make one with terrasieve embed RUN IMAGES -o {path}.") from error
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is no Parquet file that can be read ({error}); make it with terrasieve embed."
        ) from error
    columns = file.schema_arrow
    lacking = [name for name in (*PLACE, "vector") if name not in columns.names]
    if lacking:
        raise UserError(f"{path} has no column {', '.join(lacking)}; make it with terrasieve embed.")
    if not file.metadata.num_rows:
        raise UserError(f"{path} has no rows.")
    kind = columns.field("vector").type
    if not pa.types.is_fixed_size_list(kind):
        raise UserError(f"{path}: column vector is {kind}, not a list of fixed length; make it with terrasieve embed.")
    return file, kind.list_size, json.loads((file.metadata.metadata or {}).get(KEY, b"{}"))


def read(path: Path) -> tuple[pa.Table, NDArray[np.float32], dict[str, Any]]:
    """Read a table: its rows' places, their vectors (N, D), and what they were made with.

    Raises:
        UserError: no such file, or no table of embeddings.
    """
    file, width, about = opened(path)
    table = file.read()
    flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return table.drop_columns(["vector"]), flat.astype(np.float32, copy=False).reshape(-1, width), about


def places(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Make the columns of ``PLACE`` of rows; a missing key is null."""
    fields = [SCHEMA.field(name) for name in PLACE]
    return pa.Table.from_pylist([{name: row.get(name) for name in PLACE} for row in rows], pa.schema(fields))
