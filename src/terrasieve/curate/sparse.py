"""Low information: images whose hash says nothing (open water, cloud, snow) have a quota of their own. Step "sparse".

They collide in any hash, so they leave the join of near-duplicates: their pHash in the manifest becomes null. A keyed
share of them stays, so that a model sees water and snow, but not by the million. Source: CURATION.md, step 6.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import Field

from terrasieve import keyed
from terrasieve.curate.exact import dropping
from terrasieve.curate.priority import Rows, read_rows
from terrasieve.curate.step import Result, Work, numbers, rewrite
from terrasieve.curate.store import open_store
from terrasieve.curate.texture import half_resolution_std
from terrasieve.section import Section


class SparseSettings(Section):
    """What low information is, and how much of it stays.

    Attributes:
        min_std: grey levels (of 256); an image whose standard deviation is smaller is of low information, as a
            thumbnail and also at half its resolution. A ship on open water, whatever its entropy, is above 5.
        share: of the images of low information that stay, 0 to 1.
        most: of them that stay from each source; null = no limit.
    """

    min_std: float = Field(default=3.0, ge=0)
    share: float = Field(default=0.25, ge=0, le=1)
    most: int | None = Field(default=None, ge=0)


def sparse(source: Path, target: Path, settings: SparseSettings, work: Work) -> Result:
    """Drop images of low information beyond their quota, and take all flat ones out of the join.

    A flat thumbnail's hash says nothing; of those, images with fine texture (rows of a field) all stay. Of the others
    those that stay are drawn from the seed and their ids alone: in any order and company the same.

    Reason: ``low_information: standard deviation 2.1 of 255``.
    """
    store = open_store(work.hashes)
    std = store.column("std")

    def low(table: pa.Table) -> np.ndarray:
        at = store.rows(numbers(table["id"]))
        known: np.ndarray = table["keep"].to_numpy(zero_copy_only=False) & (at >= 0)
        if not len(store):
            return known
        return np.asarray(known & (std[at] < settings.min_std))

    flat = read_rows(source, low)
    fine = half_resolution_std(source, flat.row, std[store.rows(flat.id)], work.engine, work.tick)
    rows = flat.at(fine < settings.min_std)
    gone = _beyond(rows, settings, work.seed)
    reasons = [f"low_information: standard deviation {value:.1f} of 255" for value in std[store.rows(rows.id[gone])]]
    drop_them = dropping(rows.row[gone], reasons)

    def change(table: pa.Table, first: int) -> pa.Table:
        begin, end = np.searchsorted(flat.row, [first, first + len(table)])
        mask = np.zeros(len(table), bool)
        mask[flat.row[begin:end] - first] = True
        mask |= table["phash"].is_null().to_numpy(zero_copy_only=False)
        values = table["phash"].fill_null(0).to_numpy()
        column = pa.array(values, pa.uint64(), mask=mask)
        return drop_them(table.set_column(table.schema.get_field_index("phash"), "phash", column), first)

    result = rewrite(source, target, change, work.tick)
    if len(rows.row):
        result.notes.append(f"{len(rows.row):,} images of low information, {len(rows.row) - len(gone):,} of them kept.")
    if textured := len(flat.row) - len(rows.row):
        result.notes.append(f"{textured:,} images are flat from afar only (fine texture); all stay.")
    return result


def _beyond(rows: Rows, settings: SparseSettings, seed: int) -> np.ndarray:
    """Return positions of the rows beyond the quota."""
    drawn = keyed.mixed(seed, "sparse", rows.id)
    stays = drawn < np.uint64(min(int(settings.share * 2.0**64), 2**64 - 1)) if settings.share < 1 else drawn >= 0
    if settings.most is not None:
        order = np.lexsort((drawn, ~stays, rows.source))
        begins = np.flatnonzero(np.r_[True, np.diff(rows.source[order]) != 0]) if len(order) else order
        place = np.arange(len(order)) - np.repeat(begins, np.diff(np.r_[begins, len(order)]))
        stays[order[place >= settings.most]] = False
    return np.flatnonzero(~stays)
