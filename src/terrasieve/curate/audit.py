"""Audit: which images of a pretraining set also stand in evaluation sets, and so have to go before anyone is scored.

After curation, before pretraining. A pair leaks by equal bytes, by equal pixels, as a near copy, as a near copy turned
or mirrored (``across``, verified on thumbnails), or by sharing ground (``overlap``), which no hash of a whole image
sees; the strongest of these is its kind. Behind the command ``audit`` and its page.
"""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from terrasieve.curate import across
from terrasieve.curate.footprints import Overlaps
from terrasieve.curate.judge import DUPLICATE, REVIEW, Judged, JudgeSettings, judge_pairs
from terrasieve.curate.leaks import KINDS, Kind, Pairs, leak_table, strongest
from terrasieve.curate.overlap import Bar, Notes, OverlapSettings, overlapping
from terrasieve.curate.rows import Rows
from terrasieve.curate.step import Tick, Work
from terrasieve.curate.step import numbers as numbers_of
from terrasieve.curate.store import HashSettings, Store, hash_images, open_store
from terrasieve.imagery.raster import read
from terrasieve.imagery.unreadable import UnreadableImage
from terrasieve.section import Section

_SAME = 0.99  # correlation of thumbnails of the same pixels, whatever decoder made them
_FEW, _MANY = 1024, 4096
_PICTURE = ("uri", "window", "width", "height", "dtype")


class AuditSettings(Section):
    """What counts as a leak.

    Attributes:
        kinds: that are looked for.
        judge: when an image is another's near copy; the rule by which curation drops duplicates.
        least_contrast: standard deviation in grey levels of 255, below which an image is the same as any other (open
            water, cloud) and no near copy is looked for.
        overlap: what counts as shared ground.
        hash: how images are hashed.
    """

    kinds: tuple[Kind, ...] = KINDS
    judge: JudgeSettings = JudgeSettings(distance=8)
    least_contrast: float = Field(1.0, ge=0)
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

    def lines(self) -> list[str]:
        """Return what was found, a sentence per set, and what was not compared."""
        text = []
        for name, images in self.sets.items():
            leaks = self.leaks.filter(pc.equal(self.leaks["set"], name))
            pairs = Counter(leaks["kind"].to_pylist())
            leaking, rows = (len(pc.unique(leaks[column])) for column in ("id_b", "row"))
            kinds = ", ".join(f"{pairs[kind]:,} {kind}" for kind in KINDS if pairs[kind])
            share = f"{100 * leaking / max(images, 1):.1f} %"
            text.append(
                f"{name}: {leaking:,} of {images:,} images leak ({share}) from {rows:,} of {self.pretrain:,} "
                f"pretraining images; pairs: {kinds or 'none'}"
            )
        return text + self.notes


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
    found: list[Pairs] = []
    said = []
    numbers, at, store = _hashed(rows, settings.hash, work, bar)
    missing = int(rows.kept.sum()) - len(numbers)
    if missing:
        said.append(f"not hashed, so only compared by ground: {missing:,} images that could not be read")
    sides = rows.sides[numbers]
    if "exact" in settings.kinds:
        found.append(_equal(across.equal(_names(store, at), numbers, sides)))
    if {"pixels", "near", "rotated"} & set(settings.kinds):
        copies = _near(rows, numbers, at, sides, store, settings, said)
        with bar("pixels", "pairs") as tick:
            found.append(_same_pixels(rows, copies, tick))
    if "overlap" in settings.kinds:
        pairs, _ = overlapping(rows, settings.overlap, work, bar=bar, notes=notes)
        found.append(_sharing(pairs))
    once = strongest(found, settings.kinds)
    leaks = leak_table(rows, once, list(evaluations), _bits(rows, once, numbers, at, store))
    kept = Counter(rows.sides[rows.kept].tolist())
    sets = {name: kept[side] for side, name in enumerate(evaluations, 1)}
    return Audit(leaks, kept[0], sets, said + notes.lines())


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
        at[first : first + len(table)] = store.rows(numbers_of(table["id"]))
    readable = np.array([not reason for reason in store.column("reason")], bool)
    good = rows.kept & (at >= 0)
    good[good] = readable[at[good]]
    numbers = np.flatnonzero(good)
    return numbers, at[numbers], store


def _names(store: Store, at: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return (n, 2) what an image's bytes are known by: their hash; of a window, file and place, which its id tells."""
    keys = np.asarray(store.column("bytes_hash"))[at]
    windows = ~keys.any(axis=1)
    keys[windows, 0] = store.ids[at[windows]]
    return keys


def _equal(pairs: NDArray[np.int64]) -> Pairs:
    n = len(pairs)
    whole, none = np.ones(n), np.full(n, np.nan)
    return Pairs(
        np.full(n, KINDS.index("exact")), pairs[:, 0], pairs[:, 1], np.zeros(n), whole, whole, none, none, none
    )


def _same_pixels(rows: Rows, copies: Pairs, tick: Tick) -> Pairs:
    """Look at the near copies that may hold the very same pixels, and say which do."""
    likely = np.flatnonzero((copies.orientation == 0) & (copies.correlation > _SAME))
    for start in range(0, len(likely), _FEW):
        some = likely[start : start + _FEW]
        tick(start, len(likely))
        one, two = (rows.take(numbers[some], _PICTURE).to_pylist() for numbers in (copies.a, copies.b))
        for pair, a, b in zip(some, one, two, strict=True):
            if all(a[name] == b[name] for name in ("width", "height", "dtype")) and _same(a, b):
                copies.kind[pair] = KINDS.index("pixels")
    return copies


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    try:
        return np.array_equal(read(a["uri"], a["window"]).array, read(b["uri"], b["window"]).array)
    except UnreadableImage:
        return False  # hashed a moment ago: a file that changes under the audit is no copy


def _near(
    rows: Rows,
    numbers: NDArray[np.int64],
    at: NDArray[np.int64],
    sides: NDArray[np.uint8],
    store: Store,
    settings: AuditSettings,
    said: list[str],
) -> Pairs:
    rich = store.column("std")[at] >= settings.least_contrast
    if not rich.all():
        said.append(f"not compared by perceptual hash, since they look like any other: {int((~rich).sum()):,} images")
    copies = across.near(store.column("phash")[at[rich]], numbers[rich], sides[rich], settings.judge.distance)
    where = np.full(int(numbers.max(initial=0)) + 1, -1, np.int64)
    where[numbers] = at
    judged = _judged(where[copies.a], where[copies.b], store, settings.judge)
    doubtful = np.flatnonzero(judged.verdict == REVIEW)
    if len(doubtful):
        one, two = (rows.take(side[doubtful[:1]], ["uri"])["uri"][0] for side in (copies.a, copies.b))
        said.append(f"alike, but not surely copies, so not counted: {len(doubtful):,} pairs, the first {one} and {two}")
    good = judged.verdict == DUPLICATE
    turned = judged.orientation[good].astype(np.float64)
    kinds = np.where(turned > 0, KINDS.index("rotated"), KINDS.index("near"))
    n = len(turned)
    none = np.full(n, np.nan)
    correlation = judged.correlation[good].astype(np.float64)
    return Pairs(kinds, copies.a[good], copies.b[good], turned, correlation, np.ones(n), none, none, none)


def _judged(a: NDArray[np.int64], b: NDArray[np.int64], store: Store, settings: JudgeSettings) -> Judged:
    """Judge pairs of the store's rows."""
    phash = store.column("phash")
    out = Judged.empty(len(a))
    for start in range(0, len(a), _MANY):
        some = np.concatenate([a[start : start + _MANY], b[start : start + _MANY]])
        images, at = np.unique(some, return_inverse=True)
        first, second = np.split(at, 2)
        found = judge_pairs(phash[images], store.thumbs(images), first, second, settings)
        for column, values in zip(out, found, strict=True):
            column[start : start + _MANY] = values
    return out


def _sharing(pairs: Overlaps) -> Pairs:
    n = len(pairs.a)
    none = np.full(n, np.nan)
    kind = np.full(n, KINDS.index("overlap"))
    return Pairs(kind, pairs.a, pairs.b, none, none, pairs.fraction, pairs.score, pairs.dx, pairs.dy)


def _bits(
    rows: Rows, pairs: Pairs, numbers: NDArray[np.int64], at: NDArray[np.int64], store: Store
) -> NDArray[np.float64]:
    """Return the bits between the pHashes of both images as they are, NaN where one is not hashed."""
    where = np.full(len(rows), -1, np.int64)
    where[numbers] = at
    one, two = where[pairs.a], where[pairs.b]
    phash = np.asarray(store.column("phash"))[:, 0] if len(one) else np.zeros(1, np.uint64)
    bits = np.bitwise_count(phash[one] ^ phash[two]).astype(np.float64)
    return np.where((one < 0) | (two < 0), np.nan, bits)
