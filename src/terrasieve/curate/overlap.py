"""Overlap: pairs of images that share ground, with offset and shared fraction. An optional step after deduplication.

Where there are coordinates they decide (``footprints``). Elsewhere interest points (``interest``) vote for offsets
(``votes``), and the pixels that would be shared decide (``registration``). What perceptual hashes cannot see: a shift
of 32 px leaves them 12 % of the pairs. Used by the command ``overlaps`` and by ``curate.audit``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from terrasieve.curate import footprints
from terrasieve.curate.footprints import Overlaps, together
from terrasieve.curate.matching import Matcher
from terrasieve.curate.rows import Rows
from terrasieve.curate.step import Tick, Work
from terrasieve.files import written_aside
from terrasieve.section import Section

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("uri_a", "uri_b")),
        *((name, pa.int32()) for name in ("dx_px", "dy_px")),
        *((name, pa.float32()) for name in ("shared_fraction", "score")),
        *((name, pa.string()) for name in ("id_a", "id_b", "by")),
    ]
)

Bar = Callable[[str, str], AbstractContextManager[Tick]]  # (what is counted, its unit) -> the bar's context


class OverlapSettings(Section):
    """What counts as overlap.

    Attributes:
        least_shared: share of the smaller image.
        least_score: of matching, see ``registration``; at 0.5 every pair found in UC Merced was true (docs/overlap.md).
        match: which images are matched by content: those without coordinates against all, all, or none.
        share: of the interest points that are indexed; 1 finds small overlaps, 0.1 keeps an index of millions small.
        most_images: a key that more images hold says nothing; the fewer, the fewer votes to count (24 for millions).
        least_votes: points that have to agree before a pair is looked at.
        most_px: width x height of the largest image matched; slice larger ones first.
    """

    least_shared: float = Field(0.2, gt=0, le=1)
    least_score: float = Field(0.5, ge=0, le=1)
    match: Literal["unplaced", "all", "none"] = "unplaced"
    share: float = Field(1.0, gt=0, le=1)
    most_images: int = Field(128, ge=2)
    least_votes: int = Field(2, ge=1)
    most_px: int = Field(4096 * 4096, ge=1)


@dataclass
class Notes:
    """What was not compared: images that could not be read, by code of the reason."""

    unread: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        """Return a sentence for each code."""
        return [f"not matched: {count:,} images, {code}" for code, count in self.unread.most_common()]


def find_overlaps(
    manifest: Path, settings: OverlapSettings, work: Work, *, bar: Bar | None = None, notes: Notes | None = None
) -> pa.Table:
    """Find pairs of kept images that share ground.

    Args:
        manifest: of the images.
        settings: what counts as overlap.
        work: interest points are kept under ``folder``, where a rerun finds them.
        bar: shows progress, as ``display.counting`` does; None = ``work.tick`` is told.
        notes: collects what could not be compared.

    Returns:
        Table of ``SCHEMA`` in order of the rows; a[y + dy, x + dx] = b[y, x]. ``by`` is "footprint" (coordinates or
        windows of one file; score 1; offsets null where the grids differ in pixel size or projection) or "matching".

    Raises:
        UserError: the file is no manifest.
    """
    rows = Rows([manifest])
    pairs, placed = overlapping(rows, settings, work, bar=bar, notes=notes)
    names = [rows.take(column, ["uri", "id"]) for column in (pairs.a, pairs.b)]
    offsets = [pa.array(column, from_pandas=True).cast(pa.int32()) for column in (pairs.dx, pairs.dy)]
    columns = [names[0]["uri"], names[1]["uri"], *offsets, pa.array(pairs.fraction), pa.array(pairs.score)]
    columns += [names[0]["id"], names[1]["id"], pa.array(np.where(placed, "footprint", "matching").astype(object))]
    return pa.table([column.cast(field.type) for column, field in zip(columns, SCHEMA, strict=True)], SCHEMA)


def overlapping(
    rows: Rows, settings: OverlapSettings, work: Work, *, bar: Bar | None = None, notes: Notes | None = None
) -> tuple[Overlaps, NDArray[np.bool_]]:
    """Find pairs of rows that share ground, in order, and whether coordinates say so (see :func:`find_overlaps`).

    Of the rows of several manifests only pairs of the first one (a) with another (b) are looked for.
    """
    bar, notes = bar or (lambda what, unit: nullcontext(work.tick)), notes or Notes()
    between, least = len(rows.paths) > 1, settings.least_shared
    where = footprints.places(rows)
    found = [footprints.by_window(rows, where, least, between), footprints.by_footprint(rows, where, least, between)]
    sure = sum(len(each.a) for each in found)
    decided = where.placed if settings.match == "unplaced" else np.zeros(len(rows), bool)
    if settings.match != "none" and not decided[rows.kept].all():
        with bar("points", "images") as tick:
            matcher = Matcher(rows, settings, replace(work, tick=tick), notes)
            proposed = matcher.propose(where, decided, between)
        with bar("pairs", "pairs") as tick:
            found.append(matcher.verify(proposed, tick))
    pairs = together(found)
    placed = np.arange(len(pairs.a)) < sure
    order = np.lexsort([~placed, pairs.b, pairs.a])  # of a pair found twice the coordinates' offset remains
    a, b = pairs.a[order], pairs.b[order]
    order = order[np.r_[True, (a[1:] != a[:-1]) | (b[1:] != b[:-1])][: len(order)]]
    return Overlaps(*(column[order] for column in pairs)), placed[order]


def write_overlaps(table: pa.Table, path: Path) -> None:
    """Write pairs as Parquet, or as CSV where the path ends so."""
    with written_aside(path) as aside:
        if path.suffix.lower() == ".csv":
            pacsv.write_csv(table, aside)
        else:
            pq.write_table(table, aside, compression="zstd")
