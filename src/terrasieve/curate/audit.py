"""Audit: which images of a pretraining set also stand in evaluation sets, and so have to go before anyone is scored.

After curation, before pretraining. A pair leaks by equal bytes, by equal pixels, as a near copy, as a near copy turned
or mirrored (``across``, verified on thumbnails), or by sharing ground (``overlap``), which no hash of a whole image
sees; the strongest of these is its kind. Behind the command ``audit`` and its page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from terrasieve.curate import across
from terrasieve.curate.hashing import ORIENTATIONS
from terrasieve.curate.overlap import Notes, OverlapSettings, find_overlaps
from terrasieve.curate.rows import Rows
from terrasieve.curate.step import Result, Tick, Work, drop, rewrite
from terrasieve.curate.store import HashSettings, Store, hash_images, open_store
from terrasieve.section import Section

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
        ("hash_bits", pa.uint8()),  # between the pHashes of both images as they are
        ("orientation", pa.uint8()),
        *((name, pa.float32()) for name in ("correlation", "shared_fraction", "score")),
        *((name, pa.int32()) for name in ("dx_px", "dy_px")),
        ("row", pa.int64()),  # of the pretraining manifest
    ]
)
Bar = Callable[[str, str], AbstractContextManager[Tick]]


class AuditSettings(Section):
    """What counts as a leak.

    Attributes:
        kinds: that are looked for.
        distance: bits between pHashes of near copies.
        least_correlation: of the thumbnails of near copies.
        least_contrast: standard deviation in grey levels of 255, below which an image is the same as any other (open
            water, cloud) and no near copy is looked for.
        overlap: what counts as shared ground.
        hash: how images are hashed.
    """

    kinds: tuple[Kind, ...] = KINDS
    distance: int = Field(8, ge=0, le=10)
    least_correlation: float = Field(0.95, ge=0, le=1)
    least_contrast: float = Field(4.0, ge=0)
    overlap: OverlapSettings = OverlapSettings()
    hash: HashSettings = HashSettings()


@dataclass
class Audit:
    """What an audit found.

    Attributes:
        leaks: of ``SCHEMA``, a row per pair and set; a = pretraining, b = evaluation.
        pretrain: kept images of the pretraining set.
        sets: kept images of each evaluation set, by name.
        notes: what was not compared, a sentence each.
    """

    leaks: pa.Table
    pretrain: int
    sets: dict[str, int]
    notes: list[str] = field(default_factory=list)


def audit(
    pretrain: Path, evaluations: dict[str, Path], settings: AuditSettings, work: Work, bar: Bar | None = None
) -> Audit:
    """Compare a pretraining set with evaluation sets.

    Args:
        pretrain: its manifest.
        evaluations: manifests by the names of the sets.
        settings: what counts as a leak.
        work: its folder keeps hashes and interest points, where a rerun finds them.
        bar: shows progress: (what, unit) -> a context of a function of (done, total).

    Raises:
        UserError: a file is no manifest.
    """
    bar = bar or (lambda what, unit: nullcontext(work.tick))
    rows, notes = Rows([pretrain, *evaluations.values()]), Notes()
    found: list[_Pairs] = []
    said = []
    numbers, at, store = _hashed(rows, settings.hash, work, bar)
    missing = int(rows.kept.sum()) - len(numbers)
    if missing:
        said.append(f"not hashed, so only compared by ground: {missing:,} images that could not be read")
    sides = rows.sides[numbers]
    for kind, column in (("exact", "bytes_hash"), ("pixels", "pixel_hash")):
        if kind in settings.kinds:
            found.append(_plain(kind, across.equal(store.column(column)[at], numbers, sides)))
    if {"near", "rotated"} & set(settings.kinds):
        found.append(_near(numbers, at, sides, store, settings, said))
    if "overlap" in settings.kinds:
        with bar("points", "images") as tick, bar("overlaps", "pairs") as registering:
            overlaps = find_overlaps(
                pretrain,
                settings.overlap,
                replace(work, tick=tick),
                others=list(evaluations.values()),
                registering=registering,
                notes=notes,
                numbers=True,
            )
        found.append(_overlapping(overlaps))
    pairs = _strongest(found, settings.kinds)
    leaks = _table(rows, pairs, list(evaluations), _bits(rows, pairs, numbers, at, store))
    kept = Counter(rows.sides[rows.kept].tolist())
    sets = {name: kept[side] for side, name in enumerate(evaluations, 1)}
    return Audit(leaks, kept[0], sets, said + notes.lines())


@dataclass
class _Pairs:
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


def _hashed(
    rows: Rows, settings: HashSettings, work: Work, bar: Bar
) -> tuple[NDArray[np.int64], NDArray[np.int64], Store]:
    """Hash all sets; return the numbers of the rows that could be read, where the store has them, and the store."""
    for number, path in enumerate(rows.paths):
        with bar(f"hash {path.stem}", "images") as tick:
            hash_images(path, work.folder / "hashed" / f"{number}.parquet", settings, replace(work, tick=tick))
    store = open_store(work.hashes)
    at = np.full(len(rows), -1, np.int64)
    for first, table in rows.blocks(["id"], 65_536):
        ids = np.fromiter((int(each, 16) for each in table["id"].to_pylist()), np.uint64, len(table))
        at[first : first + len(table)] = store.rows(ids)
    readable = pc.equal(pa.array(store.column("reason")), "").to_numpy(zero_copy_only=False)
    good = rows.kept & (at >= 0)
    good[good] = readable[at[good]]
    numbers = np.flatnonzero(good)
    return numbers, at[numbers], store


def _plain(kind: str, pairs: NDArray[np.int64]) -> _Pairs:
    n = len(pairs)
    whole, none = np.ones(n), np.full(n, np.nan)
    kinds = np.full(n, KINDS.index(kind))  # type: ignore[arg-type]
    return _Pairs(kinds, pairs[:, 0], pairs[:, 1], np.zeros(n), whole, whole, none, none, none)


def _near(
    numbers: NDArray[np.int64],
    at: NDArray[np.int64],
    sides: NDArray[np.uint8],
    store: Store,
    settings: AuditSettings,
    said: list[str],
) -> _Pairs:
    rich = store.column("std")[at] >= settings.least_contrast
    if not rich.all():
        said.append(f"not compared by perceptual hash, since they look like any other: {int((~rich).sum()):,} images")
    copies = across.near(store.column("phash")[at[rich]], numbers[rich], sides[rich], settings.distance)
    where = np.full(int(numbers.max(initial=0)) + 1, -1, np.int64)
    where[numbers] = at
    correlation = np.zeros(len(copies.a))
    for start in range(0, len(copies.a), 4096):
        part = slice(start, start + 4096)
        one, two = store.thumbs(where[copies.a[part]]), store.thumbs(where[copies.b[part]])
        correlation[part] = _correlations(one, two, copies.orientation[part])
    good = correlation >= settings.least_correlation
    turned = copies.orientation[good].astype(np.float64)
    kinds = np.where(turned > 0, KINDS.index("rotated"), KINDS.index("near"))
    n = len(turned)
    none = np.full(n, np.nan)
    return _Pairs(kinds, copies.a[good], copies.b[good], turned, correlation[good], np.ones(n), none, none, none)


def _correlations(
    one: NDArray[np.uint8], two: NDArray[np.uint8], orientation: NDArray[np.uint8]
) -> NDArray[np.float32]:
    turned = np.empty_like(two)
    for number, (quarters, mirrored) in enumerate(ORIENTATIONS):
        these = orientation == number
        if these.any():
            rotated = np.rot90(two[these], quarters, axes=(1, 2))
            turned[these] = rotated[:, :, ::-1] if mirrored else rotated
    a, b = (each.reshape(len(each), -1).astype(np.float32) for each in (one, turned))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    energy = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return np.asarray((a * b).sum(axis=1) / np.maximum(energy, 1e-6), np.float32)


def _overlapping(overlaps: pa.Table) -> _Pairs:
    a, b = overlaps["row_a"].to_numpy(), overlaps["row_b"].to_numpy()
    n = len(a)
    none = np.full(n, np.nan)
    fraction, score = (overlaps[name].to_numpy().astype(np.float64) for name in ("shared_fraction", "score"))
    dx, dy = (overlaps[name].cast(pa.float64()).to_numpy() for name in ("dx_px", "dy_px"))
    return _Pairs(np.full(n, KINDS.index("overlap")), a, b, none, none, fraction, score, dx, dy)


def _strongest(found: list[_Pairs], kinds: Sequence[str]) -> _Pairs:
    """Leave each pair once, as its strongest kind, with the offset if shared ground was found as well."""
    columns = [np.concatenate(column) for column in zip(*(each.columns() for each in found), strict=True)]
    wanted = np.isin(columns[0], [KINDS.index(kind) for kind in KINDS if kind in kinds])
    columns = [column[wanted] for column in columns]
    order = np.lexsort([columns[0], columns[2], columns[1]])
    kind, a, b, *rest = (column[order] for column in columns)
    starts = np.flatnonzero(np.r_[True, (a[1:] != a[:-1]) | (b[1:] != b[:-1])][: len(a)])
    ends = np.r_[starts[1:], len(a)] - 1  # shared ground comes last
    is_ground = kind[ends] == KINDS.index("overlap")
    merged = [column[starts] for column in rest]
    for place in (3, 4, 5):  # score, dx, dy
        merged[place] = np.where(is_ground, rest[place][ends], merged[place])
    return _Pairs(kind[starts], a[starts], b[starts], *merged)


def _bits(
    rows: Rows, pairs: _Pairs, numbers: NDArray[np.int64], at: NDArray[np.int64], store: Store
) -> NDArray[np.float64]:
    """Return the bits between the pHashes of both images as they are, NaN where one is not hashed."""
    where = np.full(len(rows), -1, np.int64)
    where[numbers] = at
    one, two = where[pairs.a], where[pairs.b]
    phash = np.asarray(store.column("phash"))[:, 0] if len(one) else np.zeros(1, np.uint64)
    bits = np.bitwise_count(phash[one] ^ phash[two]).astype(np.float64)
    return np.where((one < 0) | (two < 0), np.nan, bits)


def _table(rows: Rows, pairs: _Pairs, names: list[str], bits: NDArray[np.float64]) -> pa.Table:
    a, b = (rows.take(numbers, ["uri", "id", "window", "split"]) for numbers in (pairs.a, pairs.b))
    values = {
        "set": np.array(["", *names], object)[rows.sides[pairs.b]],
        "kind": np.array(KINDS, object)[pairs.kind],
        "split": b["split"],
        **{f"{column}_{side}": table[column] for column in ("uri", "id", "window") for side, table in (("a", a), ("b", b))},
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
    return table.take(pc.sort_indices(pa.table({"side": side, "kind": pairs.kind, "row": pairs.a}),
                                      sort_keys=[("side", "ascending"), ("kind", "ascending"), ("row", "ascending")]))


def removals(leaks: pa.Table) -> tuple[NDArray[np.int64], list[str]]:
    """Return the rows of the pretraining manifest that leak, in order, and each one's reason."""
    reasons: dict[int, str] = {}
    more: Counter[int] = Counter()
    for row, name, kind, uri in zip(*(leaks[name].to_pylist() for name in ("row", "set", "kind", "uri_b")), strict=True):
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
