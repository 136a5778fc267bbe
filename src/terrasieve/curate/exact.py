"""Exact duplicates: files of the same bytes, and images of the same pixels in another file. The step "exact".

Bytes were hashed with the image; pixels are decoded only of images that some other one may equal: of the same size,
bands and type, a pHash within 8 bits and nearly the same contrast. Sorting and comparing neighbours finds equal hashes
(``np.unique`` is 20 times slower there). Before the near-duplicates; source: CURATION.md, step 5.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from terrasieve.curate import hamming
from terrasieve.curate.pairs import table, write_pairs
from terrasieve.curate.pixels import MOST_PX, hash_pixels
from terrasieve.curate.priority import Rows, ranked, read_rows
from terrasieve.curate.step import ROW_GROUP, Change, Result, Work, drop, rewrite
from terrasieve.curate.store import Store, names, open_store
from terrasieve.section import Section

_BITS = 8  # decoders differ by a grey level, which moves bits where there is little to see
_CONTRAST, _PART = 0.6, 0.1  # of standard deviation, likewise: grey levels, and a share


class ExactSettings(Section):
    """How exact duplicates are found.

    Attributes:
        pixels: compare pixels too, not only the files' bytes.
        sources: names in order of priority, the first kept before all others; sources not named follow by name.
    """

    pixels: bool = True
    sources: tuple[str, ...] = ()


def exact(source: Path, target: Path, settings: ExactSettings, work: Work) -> Result:
    """Drop all but one of images that are equal; which one stays is ``priority``'s affair.

    Reason: ``exact_duplicate: of ID, same bytes`` (or ``same pixels``). Writes the pairs of exact duplicates.
    """
    store = open_store(work.hashes)
    rows = read_rows(source, lambda found: found["keep"].to_numpy(zero_copy_only=False), settings.sources)
    stored = store.rows(rows.id)
    rows, stored = rows.at(stored >= 0), stored[stored >= 0]
    parent = np.arange(len(stored))
    content = store.column("bytes_hash")[stored]
    same_bytes = _equal(content)
    hamming.unite(parent, same_bytes)
    if settings.pixels:
        chosen = _candidates(source, rows, store, stored, np.flatnonzero(parent == np.arange(len(parent))))
        values = hash_pixels(store, work.hashes, source, rows.row[chosen], stored[chosen], work.engine, work.tick)
        hamming.unite(parent, chosen[_equal(values)])
    dropped, kept = _losers(rows, parent, source)
    bytes_too = (content[dropped] == content[kept]).all(axis=1) & content[dropped].any(axis=1)
    how = np.where(bytes_too, "same bytes", "same pixels")
    ids = names(rows.id[kept])
    write_pairs(
        table(
            {
                "id_a": ids,
                "id_b": names(rows.id[dropped]),
                "kind": ["exact"] * len(ids),
                "distance": np.zeros(len(ids), np.uint8),
                "orientation": np.zeros(len(ids), np.uint8),
                "correlation": np.ones(len(ids), np.float32),
                "verdict": ["duplicate"] * len(ids),
                "by": ["rule"] * len(ids),
            }
        ),
        work.pairs,
    )
    reasons = [f"exact_duplicate: of {name}, {words}" for name, words in zip(ids, how, strict=True)]
    return rewrite(source, target, dropping(rows.row[dropped], reasons), work.tick)


def dropping(rows: np.ndarray, reasons: list[str]) -> Change:
    """Return a change, for ``rewrite``, that drops (k,) rows of a manifest."""
    order = np.argsort(rows)
    rows = rows[order]

    def change(part: pa.Table, first: int) -> pa.Table:
        begin, end = np.searchsorted(rows, [first, first + len(part)])
        return drop(part, rows[begin:end] - first, [reasons[k] for k in order[begin:end]])

    return change


def _equal(hashes: np.ndarray) -> np.ndarray:
    """Return pairs (m, 2) that chain all rows of equal hashes (n, 2); zeros equal nothing."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    ordered = hashes[order]
    same = (ordered[1:] == ordered[:-1]).all(axis=1) & ordered[1:].any(axis=1)
    return np.stack([order[:-1][same], order[1:][same]], axis=1)


def _candidates(source: Path, rows: Rows, store: Store, stored: np.ndarray, alone: np.ndarray) -> np.ndarray:
    """Return (k,) ascending positions of those of ``alone`` whose pixels may equal another's."""
    readable = store.column("valid_share")[stored[alone]] > 0
    alone = alone[readable & (rows.pixels[alone] <= MOST_PX)]
    group = hamming.join(store.column("phash", 0)[stored[alone]], _BITS).group
    crowded = np.bincount(group, minlength=len(group))[group] > 1
    alone, group = alone[crowded], group[crowded]
    shape = _shapes(source, rows.row[alone])
    std = store.column("std")[stored[alone]]
    order = np.lexsort((std, shape, group))
    near = (
        (np.diff(group[order]) == 0)
        & (np.diff(shape[order]) == 0)
        & (np.diff(std[order]) <= _CONTRAST + _PART * std[order][1:])
        if len(order)
        else np.zeros(0, bool)
    )
    hit = np.r_[near, False] | np.r_[False, near] if len(order) else near
    return np.sort(alone[order[hit]])


def _shapes(source: Path, rows: np.ndarray) -> np.ndarray:
    """Return (k,) numbers that are equal for images of the same size, bands and type."""
    known: dict[str, int] = {}
    found, first = [np.zeros(0, np.int64)], 0
    with pq.ParquetFile(source) as file:
        for batch in file.iter_batches(ROW_GROUP, columns=["width", "height", "bands", "dtype"]):
            begin, end = np.searchsorted(rows, [first, first + len(batch)])
            part = pa.Table.from_batches([batch]).take(pa.array(rows[begin:end] - first))
            first += len(batch)
            numbers = [part["width"], part["height"], pc.list_value_length(part["bands"])]
            texts = [pc.fill_null(column.cast(pa.string()), "") for column in (*numbers, part["dtype"])]
            words = pc.binary_join_element_wise(*texts, " ").to_pylist()
            found.append(np.array([known.setdefault(word, len(known)) for word in words], np.int64))
    return np.concatenate(found)


def _losers(rows: Rows, parent: np.ndarray, source: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return (m,) positions of rows that go and (m,) of those that stay in their place."""
    crowd = np.flatnonzero(np.bincount(parent, minlength=len(parent))[parent] > 1)
    rank = ranked(rows.at(crowd), source)
    order = crowd[np.lexsort((rank, parent[crowd]))]
    first = np.r_[True, np.diff(parent[order]) != 0] if len(order) else np.zeros(0, bool)
    winner = order[first][np.cumsum(first) - 1] if len(order) else order
    return order[~first], winner[~first]
