"""Overlap: pairs of images that share ground, with offset and shared fraction. An optional step after deduplication.

Where there are coordinates they decide (``footprints``). Elsewhere interest points (``interest``) vote for offsets
(``votes``), and the pixels that would be shared decide (``registration``). What perceptual hashes cannot see: a shift
of 32 px leaves them 12 % of the pairs. Used by the command ``overlaps`` and by ``curate.audit``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
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


class OverlapSettings(Section):
    """What counts as overlap.

    Attributes:
        least_shared: share of the smaller image.
        least_score: of matching, see ``registration``; at 0.5 every pair found in UC Merced was true (docs/overlap.md).
        match: which images are matched by content: those without coordinates against all, all, or none.
        share: of the interest points that are indexed; 1 finds small overlaps, 0.1 keeps an index of millions small.
        most_images: a key that more images hold says nothing.
        least_votes: points that have to agree before a pair is looked at.
        most_px: width x height of the largest image matched; slice larger ones first.
    """

    least_shared: float = Field(0.2, gt=0, le=1)
    least_score: float = Field(0.5, ge=0, le=1)
    match: Literal["unplaced", "all", "none"] = "unplaced"
    share: float = Field(1.0, gt=0, le=1)
    most_images: int = Field(24, ge=2)
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
    manifest: Path,
    settings: OverlapSettings,
    work: Work,
    *,
    others: Sequence[Path] = (),
    registering: Tick | None = None,
    notes: Notes | None = None,
) -> pa.Table:
    """Find pairs of kept images that share ground.

    Args:
        manifest: of the images.
        settings: what counts as overlap.
        work: ``tick`` is told of images read; their points are kept under ``folder``, where a rerun finds them.
        others: manifests; with any, only pairs of the first manifest (a) with one of these (b) are looked for.
        registering: told of pairs verified.
        notes: collects what could not be compared.

    Returns:
        Table of ``SCHEMA`` in order of the rows; a[y + dy, x + dx] = b[y, x]. ``by`` is "footprint" (coordinates or
        windows of one file; score 1; offsets null where the grids differ in pixel size or projection) or "matching".

    Raises:
        UserError: a file is no manifest.
    """
    rows = Rows([manifest, *others])
    between, notes = bool(others), notes or Notes()
    where = footprints.places(rows)
    least = settings.least_shared
    found = [footprints.by_window(rows, where, least, between), footprints.by_footprint(rows, where, least, between)]
    placed = sum(len(each.a) for each in found)
    decided = where.placed if settings.match == "unplaced" else np.zeros(len(rows), bool)
    if settings.match != "none" and not decided[rows.kept].all():
        matcher = Matcher(rows, settings, work, notes)
        found.append(matcher.verify(matcher.propose(where, decided, between), registering or work.tick))
    return _table(rows, together(found), placed)


def _table(rows: Rows, pairs: Overlaps, placed: int) -> pa.Table:
    """Name pairs of which the first ``placed`` were found by coordinates; of a pair found twice these remain."""
    by = np.where(np.arange(len(pairs.a)) < placed, "footprint", "matching")
    order = np.lexsort([by, pairs.b, pairs.a])
    a, b = pairs.a[order], pairs.b[order]
    order = order[np.r_[True, (a[1:] != a[:-1]) | (b[1:] != b[:-1])][: len(order)]]
    names = [rows.take(column[order], ["uri", "id"]) for column in (pairs.a, pairs.b)]
    offsets = [pa.array(column[order], from_pandas=True).cast(pa.int32()) for column in (pairs.dx, pairs.dy)]
    columns = [
        names[0]["uri"],
        names[1]["uri"],
        *offsets,
        pa.array(pairs.fraction[order]),
        pa.array(pairs.score[order]),
    ]
    columns += [names[0]["id"], names[1]["id"], pa.array(by[order])]
    return pa.table([column.cast(field.type) for column, field in zip(columns, SCHEMA, strict=True)], SCHEMA)


def write_overlaps(table: pa.Table, path: Path) -> None:
    """Write pairs as Parquet, or as CSV where the path ends so."""
    with written_aside(path) as aside:
        if path.suffix.lower() == ".csv":
            pacsv.write_csv(table, aside)
        else:
            pq.write_table(table, aside, compression="zstd")
