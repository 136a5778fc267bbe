"""Leaks: pairs of pretraining and evaluation images, the table of them, and what has to leave the pretraining set.

Second half of ``curate.audit``: what was found in several ways becomes one row per pair, its kind the strongest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from terrasieve.curate.rows import Rows
from terrasieve.curate.step import Result, Tick, drop, rewrite
from terrasieve.files import written_aside

Kind = Literal["exact", "pixels", "near", "rotated", "overlap"]
KINDS: tuple[Kind, ...] = get_args(Kind)  # from the strongest on
WORDS = {
    "exact": "the same bytes",
    "pixels": "the same pixels",
    "near": "a near copy",
    "rotated": "a near copy, turned or mirrored",
    "overlap": "shared ground",
}
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("set", "kind", "split", "uri_a", "uri_b", "id_a", "id_b")),
        ("window_a", pa.list_(pa.int32(), 4)),
        ("window_b", pa.list_(pa.int32(), 4)),
        ("bands_a", pa.list_(pa.string())),
        ("bands_b", pa.list_(pa.string())),
        ("hash_bits", pa.uint8()),  # between the pHashes of both images as they are
        ("orientation", pa.uint8()),
        *((name, pa.float32()) for name in ("correlation", "shared_fraction", "score")),
        *((name, pa.int32()) for name in ("dx_px", "dy_px")),
        ("row", pa.int64()),  # of the pretraining manifest
    ]
)


@dataclass
class Pairs:
    """Pairs of rows with what is known of them; NaN or -1 = nothing."""

    kind: NDArray[np.int64]
    a: NDArray[np.int64]
    b: NDArray[np.int64]
    orientation: NDArray[np.float64]
    correlation: NDArray[np.float64]
    fraction: NDArray[np.float64]
    score: NDArray[np.float64]
    dx: NDArray[np.float64]
    dy: NDArray[np.float64]

    def columns(self) -> list[NDArray[np.generic]]:
        return [getattr(self, name) for name in self.__dataclass_fields__]


def strongest(found: list[Pairs], kinds: Sequence[str]) -> Pairs:
    """Leave each pair once, as its strongest kind, with the offset if shared ground was found as well."""
    columns = [np.concatenate(column) for column in zip(*(each.columns() for each in found), strict=True)]
    wanted = np.isin(columns[0], [KINDS.index(kind) for kind in KINDS if kind in kinds])
    columns = [column[wanted] for column in columns]
    order = np.lexsort([columns[0], columns[2], columns[1]])
    kind, a, b, *rest = (column[order] for column in columns)
    starts = np.flatnonzero(np.r_[True, (a[1:] != a[:-1]) | (b[1:] != b[:-1])][: len(a)])
    ends = np.r_[starts[1:], len(a)][: len(starts)] - 1  # shared ground comes last
    is_ground = kind[ends] == KINDS.index("overlap")
    merged = [column[starts] for column in rest]
    for place in (3, 4, 5):  # score, dx, dy
        merged[place] = np.where(is_ground, rest[place][ends], merged[place])
    return Pairs(kind[starts], a[starts], b[starts], *merged)


def leak_table(rows: Rows, pairs: Pairs, names: list[str], bits: NDArray[np.float64]) -> pa.Table:
    a, b = (rows.take(numbers, ["uri", "id", "window", "bands", "split"]) for numbers in (pairs.a, pairs.b))
    values = {
        "set": np.array(["", *names], object)[rows.sides[pairs.b]],
        "kind": np.array(KINDS, object)[pairs.kind],
        "split": b["split"],
        **{
            f"{column}_{side}": table[column]
            for column in ("uri", "id", "window", "bands")
            for side, table in (("a", a), ("b", b))
        },
        "hash_bits": bits,
        "orientation": pairs.orientation,
        "correlation": pairs.correlation,
        "shared_fraction": pairs.fraction,
        "score": pairs.score,
        "dx_px": pairs.dx,
        "dy_px": pairs.dy,
        "row": pairs.a,
    }
    columns = []
    for name, kind in zip(SCHEMA.names, SCHEMA.types, strict=True):
        value = values[name]
        array = pa.array(value, from_pandas=True) if isinstance(value, np.ndarray) else value
        columns.append(array.cast(kind))
    table = pa.table(columns, SCHEMA)
    side = pa.array(rows.sides[pairs.b])
    return table.take(
        pc.sort_indices(
            pa.table({"side": side, "kind": pairs.kind, "row": pairs.a}),
            sort_keys=[("side", "ascending"), ("kind", "ascending"), ("row", "ascending")],
        )
    )


def write(leaks: pa.Table, folder: Path) -> None:
    """Write ``leaks.parquet``, the same as ``leaks.csv`` without lists, and ``removal.csv``."""
    with written_aside(folder / "leaks.parquet") as aside:
        pq.write_table(leaks, aside, compression="zstd")
    plain = [field.name for field in SCHEMA if not isinstance(field.type, pa.ListType | pa.FixedSizeListType)]
    with written_aside(folder / "leaks.csv") as aside:
        pacsv.write_csv(leaks.select(plain), aside)
    rows, reasons = removals(leaks)
    order = pc.sort_indices(leaks["row"])
    first = np.searchsorted(leaks["row"].take(order).to_numpy(), rows)
    images = leaks.take(order.take(pa.array(first))).select(["id_a", "uri_a", "window_a"])
    windows = [" ".join(map(str, window)) if window else "" for window in images["window_a"].to_pylist()]
    columns = {"id": images["id_a"], "uri": images["uri_a"], "window": windows, "reason": reasons}
    with written_aside(folder / "removal.csv") as aside:
        pacsv.write_csv(pa.table(columns), aside)


def removals(leaks: pa.Table) -> tuple[NDArray[np.int64], list[str]]:
    """Return the rows of the pretraining manifest that leak, in order, and each one's reason."""
    reasons: dict[int, str] = {}
    more: Counter[int] = Counter()
    for row, name, kind, uri in zip(
        *(leaks[name].to_pylist() for name in ("row", "set", "kind", "uri_b")), strict=True
    ):
        more[row] += 1
        reasons.setdefault(row, f"leak: of {name}, {WORDS[kind]}, {uri.rsplit('/', 1)[-1]}")
    ordered = sorted(reasons)
    return np.array(ordered, np.int64), [
        reasons[row] + (f" and {more[row] - 1} more" if more[row] > 1 else "") for row in ordered
    ]


def apply(leaks: pa.Table, source: Path, target: Path, tick: Tick | None = None) -> Result:
    """Write the pretraining manifest with the rows that leak dropped, each with its reason."""
    numbers, reasons = removals(leaks)

    def change(table: pa.Table, first: int) -> pa.Table:
        start, stop = np.searchsorted(numbers, [first, first + len(table)])
        return drop(table, numbers[start:stop] - first, reasons[start:stop])

    return rewrite(source, target, change) if tick is None else rewrite(source, target, change, tick)
