"""Pairs: the table of what was compared and how it was judged, ``DIR/pairs.parquet``.

Written by ``exact`` and ``verify``, read by review, datasheet and report. Of a pair that drops one, id_a stays
and id_b goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from terrasieve.errors import UserError
from terrasieve.files import written_aside

PAIRS = pa.schema(
    [
        ("id_a", pa.string()),
        ("id_b", pa.string()),
        ("kind", pa.string()),  # exact, near, rotated, overlap or decided
        ("distance", pa.uint8()),  # bits in which the pHashes differ
        ("orientation", pa.uint8()),  # index into ``hashing.ORIENTATIONS``: turning b so gives a
        ("correlation", pa.float32()),  # of the thumbnails, b turned
        ("verdict", pa.string()),  # duplicate, different or review
        ("by", pa.string()),  # rule or person
        ("dx_px", pa.int32()),  # a[y + dy, x + dx] = b[y, x]
        ("dy_px", pa.int32()),
        ("shared_fraction", pa.float32()),
        ("score", pa.float32()),
    ]
)


def table(columns: Mapping[str, Sequence[Any] | Any]) -> pa.Table:
    """Make a table of pairs; columns that are not given are null."""
    count = len(next(iter(columns.values())))
    made = [
        pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(count, field.type)
        for field in PAIRS
    ]
    return pa.Table.from_arrays(made, schema=PAIRS)


def write_pairs(pairs: pa.Table, path: Path) -> None:
    """Write a table of ``PAIRS``; it appears when it is whole."""
    with written_aside(path) as aside:
        pq.write_table(pairs.select(PAIRS.names).cast(PAIRS), aside, compression="zstd")


def read_pairs(path: Path) -> pa.Table:
    """Read the pairs of a curation; none where the file is not there.

    Raises:
        UserError: it is damaged, or no table of pairs.
    """
    if not path.exists():
        return PAIRS.empty_table()
    try:
        return pq.read_table(path).select(PAIRS.names).cast(PAIRS)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(f"{path} is no table of pairs ({error}). Delete it and run the curation again.") from error
