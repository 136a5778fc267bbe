"""Near-duplicates, coarse: groups of images linked by pHashes within a few bits. The step "near".

All pairs within the distance are found exactly (``hamming``). With ``rotations``, a second join of the pHashes of each
image's canonical orientations, some 1.3 an image, finds rotated and mirrored copies; joining all eight would be exact
there too, at eight times the cost (docs/deduplication.md has the recall). A group is a candidate, nothing is dropped
here: ``verify`` judges. A new source is joined with all the others again, which takes minutes for 13 million images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import Field

from terrasieve.curate import hamming
from terrasieve.curate.step import ROW_GROUP, Result, Work, numbers, rewrite
from terrasieve.curate.store import Store, open_store
from terrasieve.section import Section


class NearSettings(Section):
    """How near-duplicates are found.

    Attributes:
        distance: bits in which two pHashes may differ, 0 to 10; beyond 8 chance pairs are many.
        rotations: find rotated and mirrored copies too.
    """

    distance: int = Field(default=8, ge=0, le=hamming.MAX_DISTANCE)
    rotations: bool = True


def near(source: Path, target: Path, settings: NearSettings, work: Work) -> Result:
    """Write the group of every image that has company: the smallest id in it, as int64; null for the others."""
    store = open_store(work.hashes)
    ids = _joined(source)
    stored = store.rows(ids)
    ids, stored = ids[stored >= 0], stored[stored >= 0]
    root = groups(store, stored, settings)
    crowded = np.flatnonzero(np.bincount(root, minlength=len(root))[root] > 1)
    order = crowded[np.lexsort((ids[crowded], root[crowded]))]
    first = np.r_[True, np.diff(root[order]) != 0] if len(order) else np.zeros(0, bool)
    named = ids[order][first][np.cumsum(first) - 1] if len(order) else ids[order]
    by_id = np.argsort(ids[order])
    members, group = ids[order][by_id], named[by_id].view(np.int64)

    def change(table: pa.Table, _: int) -> pa.Table:
        wanted = numbers(table["id"])
        at = np.minimum(np.searchsorted(members, wanted), max(len(members) - 1, 0))
        joined = table["keep"].to_numpy(zero_copy_only=False) & table["phash"].is_valid().to_numpy(zero_copy_only=False)
        found = joined & (members[at] == wanted) if len(members) else np.zeros(len(table), bool)
        values = group[at] if len(members) else np.zeros(len(table), np.int64)
        column = pa.array(values, pa.int64(), mask=~found)
        return table.set_column(table.schema.get_field_index("group"), "group", column)

    result = rewrite(source, target, change, work.tick)
    if len(order):
        result.notes.append(f"{len(order):,} images in {int(first.sum()):,} groups of near-duplicates, not judged yet.")
    return result


def groups(store: Store, stored: np.ndarray, settings: NearSettings) -> np.ndarray:
    """Return (n,) int64, the first position of the group that each of (n,) rows of the store belongs to."""
    root = hamming.join(store.column("phash", 0)[stored], settings.distance).group
    if settings.rotations:
        turns = np.unpackbits(store.column("turns")[stored][:, None], axis=1, bitorder="little").astype(bool)
        owner = np.repeat(np.arange(len(stored)), turns.sum(axis=1))
        at = turns.cumsum(axis=1, dtype=np.uint8)
        first = np.r_[0, at[:, -1].cumsum(dtype=np.int64)]
        canonical = np.empty(len(owner), np.uint64)
        for turn in range(turns.shape[1]):  # one orientation at a time: all eight of 13 million are 832 MB
            some = np.flatnonzero(turns[:, turn])
            canonical[first[some] + at[some, turn] - 1] = store.column("phash", turn)[stored[some]]
        del turns, at, first
        pairs = owner[hamming.join(canonical, settings.distance).pairs]
        hamming.unite(root, pairs)
    return root


def _joined(source: Path) -> np.ndarray:
    """Read the ids, (n,) uint64, of the images that are kept and have a pHash."""
    import pyarrow.parquet as pq

    found = [np.zeros(0, np.uint64)]
    with pq.ParquetFile(source) as file:
        for batch in file.iter_batches(ROW_GROUP, columns=["id", "keep", "phash"]):
            table = pa.Table.from_batches([batch])
            kept = table["keep"].to_numpy(zero_copy_only=False) & table["phash"].is_valid().to_numpy(
                zero_copy_only=False
            )
            found.append(numbers(table["id"])[kept])
    return np.concatenate(found)
