"""Examples of a curation's report: which of millions of rows and pairs are worth a look. Reads ids first, then rows.

Between ``curation_folder`` and ``curation_page``. An id is a hash, so the rows with the smallest ids are a fair sample
that does not change with the order of rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from terrasieve import manifest as manifests
from terrasieve.curate.step import ROW_GROUP, codes

PER_REASON, PER_KIND, GROUPS, MEMBERS = 6, 4, 4, 8
Row = dict[str, Any]
_PAIR = ["id_a", "id_b", "kind", "verdict", "by", "distance", "orientation", "correlation", "dx_px", "dy_px"]


def of_reasons(manifest: Path, count: int = PER_REASON) -> dict[str, list[Row]]:
    """Return up to ``count`` dropped rows for each code of a reason."""
    best: dict[str, pa.Table] = {}
    with pq.ParquetFile(manifest) as file:
        for batch in file.iter_batches(ROW_GROUP, columns=["id", "keep", "reason"]):
            table = pa.Table.from_batches([batch])
            gone = table.filter(pc.invert(pc.fill_null(table["keep"], False)))
            code = codes(pc.fill_null(gone["reason"], ""))
            for name in pc.unique(code).to_pylist():
                here = gone.select(["id"]).filter(pc.equal(code, name))
                here = pa.concat_tables([here, *([best[name]] if name in best else [])])
                best[name] = here.take(pc.select_k_unstable(here, count, [("id", "ascending")]))
    rows = by_id(manifest, (row for table in best.values() for row in table["id"].to_pylist()))
    return {name: [rows[row] for row in table["id"].to_pylist()] for name, table in best.items()}


def of_groups(manifest: Path, groups: int = GROUPS, members: int = MEMBERS) -> list[tuple[int, list[Row]]]:
    """Return the largest groups as (number of rows, some of them: kept ones first, then by id).

    Args:
        manifest: a manifest whose column ``group`` is set.
        groups: most of them returned; a group of one is none.
        members: most rows returned of a group.
    """
    with pq.ParquetFile(manifest) as file:
        column = pa.concat_arrays(
            [b["group"].drop_null() for b in file.iter_batches(ROW_GROUP, columns=["group"])]
            or [pa.array([], pa.int64())]
        )
        numbers, sizes = np.unique(column.to_numpy(), return_counts=True)
        largest = [n for n in np.lexsort((numbers, -sizes))[:groups] if sizes[n] > 1]
        wanted = pa.array(numbers[largest])
        found: list[pa.Table] = []
        for batch in file.iter_batches(ROW_GROUP, columns=["id", "group", "keep"]) if largest else ():
            table = pa.Table.from_batches([batch])
            found.append(table.filter(pc.is_in(table["group"], wanted)))
    if not found:
        return []
    order = [("keep", "descending"), ("id", "ascending")]
    together = pa.concat_tables(found)
    chosen = [
        together.filter(pc.equal(together["group"], number)).sort_by(order)["id"][:members].to_pylist()
        for number in numbers[largest].tolist()
    ]
    rows = by_id(manifest, (row for group in chosen for row in group))
    return [(int(sizes[n]), [rows[row] for row in group]) for n, group in zip(largest, chosen, strict=True)]


def of_pairs(pairs: Path, count: int = PER_KIND) -> dict[tuple[str, str], list[Row]]:
    """Return pairs close to the line: of duplicates the least alike, of all others the most alike.

    Args:
        pairs: table of ``curate.pairs``.
        count: most pairs for each (kind, verdict).

    Returns:
        (kind, verdict) -> pairs with the columns that show them; alike is by correlation, then by score or distance.
    """
    best: dict[tuple[str, str], pa.Table] = {}
    if not pairs.is_file():
        return {}
    with pq.ParquetFile(pairs) as file:
        names = file.schema_arrow.names
        for batch in file.iter_batches(ROW_GROUP):
            table = pa.Table.from_batches([batch])
            table = table.append_column("alike", _alike(table, names)).select([*_PAIR, "alike"])
            for place in table.select(["kind", "verdict"]).group_by(["kind", "verdict"]).aggregate([]).to_pylist():
                kind, verdict = place["kind"], place["verdict"]
                here = table.filter(pc.and_(pc.equal(table["kind"], kind), pc.equal(table["verdict"], verdict)))
                here = pa.concat_tables([here, *([best[kind, verdict]] if (kind, verdict) in best else [])])
                order = "ascending" if verdict == "duplicate" else "descending"
                keys = [("alike", order), ("id_a", "ascending"), ("id_b", "ascending")]
                best[kind, verdict] = here.sort_by(keys).slice(0, count)
    return {place: table.to_pylist() for place, table in sorted(best.items())}


def _alike(table: pa.Table, names: Iterable[str]) -> pa.Array:
    by_bits = pc.subtract(1.0, pc.divide(pc.cast(table["distance"], pa.float64()), 64.0))
    score = table["score"] if "score" in names else by_bits
    return pc.coalesce(*(pc.cast(part, pa.float64()) for part in (table["correlation"], score, by_bits)))


def by_id(manifest: Path, ids: Iterable[str]) -> dict[str, Row]:
    """Read rows of a manifest by id; only the row groups that hold one are read whole."""
    wanted = pa.array(sorted(set(ids)), pa.string())
    columns = [name for name in manifests.SCHEMA.names if name != "geometry"]
    rows: dict[str, Row] = {}
    with pq.ParquetFile(manifest) as file:
        for number in range(file.num_row_groups if len(wanted) else 0):
            hit = pc.is_in(file.read_row_group(number, ["id"])["id"], wanted)
            if pc.any(hit).as_py():
                for row in file.read_row_group(number, columns).filter(hit).to_pylist():
                    rows.setdefault(row["id"], row)  # listed twice: the first one
    return rows
