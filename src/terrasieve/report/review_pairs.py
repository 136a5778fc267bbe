"""What a review looks at: a table of pairs, the manifest's rows of their images and groups, and what was decided.

Between ``pairs.parquet`` (verification, overlaps or an audit) and the page. Manifests are streamed; only the rows that
the pairs and their groups name are kept, so 13 million rows and 100,000 pairs take some hundreds of megabytes.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from terrasieve import manifest
from terrasieve.curate import decisions
from terrasieve.errors import UserError

_COLUMNS: dict[str, pa.DataType] = {
    **dict.fromkeys(("id_a", "id_b", "kind", "verdict", "by"), pa.string()),
    **dict.fromkeys(("distance", "orientation", "dx_px", "dy_px"), pa.int32()),
    **dict.fromkeys(("correlation", "shared_fraction", "score"), pa.float32()),
}
CODES = ("", "left", "right", "both")
SORTS = ("closest", "farthest", "group", "file")


@dataclass(frozen=True)
class Filter:
    """Which pairs, in which order.

    Attributes:
        verdict: "all" or one of the table's.
        kind: likewise.
        source: pairs of which either image is of this source; "all".
        undecided: leave out what a person has decided.
        sort: "closest" or "farthest" (by correlation, else score), "group", or "file" for the table's order.
        group: only pairs of this group.
    """

    verdict: str = "review"
    kind: str = "all"
    source: str = "all"
    undecided: bool = False
    sort: str = "closest"
    group: int | None = None


class ReviewPairs:
    """Pairs with their images' rows and a person's decisions.

    Attributes:
        pairs: ``_COLUMNS`` and ``row_a``, ``row_b``, ``group``, ``source_a``, ``source_b``.
        rows: of ``manifest.SCHEMA``.
        decided: (n,) index into ``CODES``, as of the last ``refresh``.
        path: of the decisions.
    """

    def __init__(self, pairs: Path, manifests: Sequence[Path], path: Path) -> None:
        self.path = path
        table = read_pairs(pairs)
        ids = pc.unique(pa.chunked_array([*table["id_a"].chunks, *table["id_b"].chunks], pa.string()))
        self.rows = rows_of(manifests, ids)
        places = [pc.index_in(table[name], self.rows["id"].combine_chunks()) for name in ("id_a", "id_b")]
        missing = pc.or_(*(pc.is_null(place) for place in places))
        if lost := pc.sum(missing).as_py():
            first = table.filter(missing).slice(0, 1).to_pylist()[0]
            raise UserError(
                f"{pairs}: {lost:,} of {len(table):,} pairs name images that are in none of the manifests, first "
                f"{first['id_a']} and {first['id_b']}. Name the manifests that they come from with --manifest."
            )
        for name, column in zip(("row_a", "row_b"), places, strict=True):
            table = table.append_column(name, column)
        for side in "ab":
            table = table.append_column(f"source_{side}", self.rows["source"].take(table[f"row_{side}"]))
        self.pairs = table.append_column("group", self.rows["group"].take(table["row_a"]))
        self._number = {ids: n for n, ids in enumerate(_keys(table))}
        self.decided = np.zeros(len(table), np.int8)
        self._read = 0
        self._lock = threading.Lock()
        self.refresh()

    def refresh(self) -> int:
        """Take in what was decided since, here or by another process; return the file's length, a version."""
        with self._lock:
            changes, version, again = self.changes(self._read)
            if again:
                self.decided[:] = 0
            for number, decision in changes:
                self.decided[number] = CODES.index(decision)
            self._read = version
        return version

    def changes(self, since: int) -> tuple[list[tuple[int, str]], int, bool]:
        """Return (pair, decision or "") since a version, the version now, and whether to forget all known before."""
        again = since > (self.path.stat().st_size if self.path.exists() else 0)
        said, version = decisions.read_from(self.path, 0 if again else since)
        found = ((self._number.get((id_a, id_b)), "" if what == "undo" else what) for id_a, id_b, what in said)
        return [(number, what) for number, what in found if number is not None], version, again

    def decide(self, number: int, decision: decisions.Decision, tab: str) -> int:
        """Write a decision to the disk; return the version."""
        decisions.append(
            self.path, self.pairs["id_a"][number].as_py(), self.pairs["id_b"][number].as_py(), decision, tab
        )
        return self.refresh()

    def order(self, wanted: Filter) -> tuple[np.ndarray, int]:
        """Return the numbers of the pairs wanted, and how many there are whether decided or not."""
        keep = np.ones(len(self.pairs), np.bool_)
        for name in ("verdict", "kind"):
            if (value := getattr(wanted, name)) != "all":
                keep &= _equal(self.pairs[name], value)
        if wanted.source != "all":
            keep &= _equal(self.pairs["source_a"], wanted.source) | _equal(self.pairs["source_b"], wanted.source)
        if wanted.group is not None:
            keep &= _equal(self.pairs["group"], wanted.group)
        total = int(keep.sum())
        if wanted.undecided:
            keep &= self.decided == 0
        numbers = np.flatnonzero(keep)
        if wanted.sort == "file":
            return numbers, total
        likeness = pc.coalesce(self.pairs["correlation"], self.pairs["score"]).to_numpy()[numbers]
        sign = 1 if wanted.sort == "farthest" else -1
        likeness = np.where(np.isnan(likeness), np.inf, sign * likeness)
        if wanted.sort == "group":
            group = pc.fill_null(self.pairs["group"], np.iinfo(np.int64).max).to_numpy()[numbers]
            return numbers[np.lexsort((likeness, group))], total
        return numbers[np.argsort(likeness, kind="stable")], total

    def row(self, place: int) -> dict[str, Any]:
        """Return one of ``rows``."""
        row: dict[str, Any] = self.rows.slice(place, 1).to_pylist()[0]
        return row

    def pair(self, number: int) -> dict[str, Any]:
        """Return one of ``pairs``."""
        pair: dict[str, Any] = self.pairs.slice(number, 1).to_pylist()[0]
        return pair

    def others(self, pair: Mapping[str, Any], most: int) -> tuple[list[dict[str, Any]], int]:
        """Return up to ``most`` further images of a pair's group, the kept ones first, and how many there are."""
        if pair["group"] is None:
            return [], 0
        members = np.flatnonzero(_equal(self.rows["group"], pair["group"]))
        members = members[~np.isin(members, [pair["row_a"], pair["row_b"]])]
        kept = self.rows["keep"].take(pa.array(members)).to_numpy(zero_copy_only=False)
        members = members[np.argsort(~kept.astype(np.bool_), kind="stable")]
        return [self.row(int(place)) for place in members[:most]], len(members)

    def find(self, row_id: str) -> dict[str, Any] | None:
        """Return the row of an id, None for one that is not reviewed."""
        place = pc.index(self.rows["id"], row_id).as_py()
        return None if place < 0 else self.row(place)

    def values(self, *columns: str) -> list[str]:
        """Return the different values of columns of ``pairs``, in order."""
        found = {value for column in columns for value in pc.unique(self.pairs[column]).to_pylist()}
        return sorted(value for value in found if value is not None)


def read_pairs(path: Path) -> pa.Table:
    """Read a table of pairs: of verification, of ``terrasieve overlaps`` or of an audit.

    A column that the table lacks is null, its verdict "review" and its kind "overlap". Of a pair named twice the
    first counts.

    Raises:
        UserError: no such file, not Parquet, without ids, or without a pair.
    """
    if not path.is_file():
        raise UserError(
            f"There is no table of pairs {path}. `terrasieve curate RECIPE -o DIR` writes DIR/pairs.parquet."
        )
    try:
        found = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is no whole Parquet file: {error}.") from error
    lacking = [name for name in ("id_a", "id_b") if name not in found.column_names]
    if lacking:
        raise UserError(f"{path} is no table of pairs: it has no column {lacking[0]!r}.")
    columns = [
        found[name].cast(kind) if name in found.column_names else pa.nulls(len(found), kind)
        for name, kind in _COLUMNS.items()
    ]
    table = pa.table(columns, names=list(_COLUMNS))
    for name, value in (("verdict", "review"), ("kind", "overlap")):
        table = table.set_column(table.schema.get_field_index(name), name, pc.fill_null(table[name], value))
    firsts = {ids: n for n, ids in reversed(list(enumerate(_keys(table))))}
    if not firsts:
        raise UserError(f"{path} holds no pair: there is nothing to review.")
    return table.take(pa.array(sorted(firsts.values()))).combine_chunks()


def rows_of(manifests: Sequence[Path], ids: pa.Array) -> pa.Table:
    """Return the manifests' rows with these ids, each once; of one manifest also all rows of their groups."""
    groups: set[int] = set()
    for path in manifests:
        manifest.read(path, ["keep"], empty_ok=True)
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["id", "group"]):
                found = batch.filter(pc.is_in(batch["id"], ids))
                groups |= set(pc.unique(found["group"].drop_null()).to_pylist())
    wanted = pa.array(sorted(groups) if len(manifests) == 1 else [], pa.int64())  # numbers of one manifest's groups
    parts = [manifest.SCHEMA.empty_table()]
    for path in manifests:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=manifest.SCHEMA.names):
                mask = pc.or_(pc.is_in(batch["id"], ids), pc.is_in(batch["group"], wanted))
                part = batch.filter(mask)
                parts.append(manifest.resolved(pa.Table.from_batches([part]), path).cast(manifest.SCHEMA))
    table = pa.concat_tables(parts)
    _, firsts = np.unique(table["id"].to_numpy(zero_copy_only=False).astype(str), return_index=True)
    return table.take(pa.array(np.sort(firsts))).combine_chunks()


def _keys(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(table["id_a"].to_pylist(), table["id_b"].to_pylist(), strict=True))


def _equal(column: pa.ChunkedArray, value: object) -> np.ndarray:
    same: np.ndarray = pc.fill_null(pc.equal(column, value), False).to_numpy(zero_copy_only=False)
    return same.astype(np.bool_)
