"""Decided: what a person decided in review, as ``verify`` uses it.

A pair that was decided is not judged again: "both" keeps its images apart, "left" and "right" drop one of them,
whatever groups they are in now. Decisions themselves are in ``curate.decisions``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from terrasieve.curate.judge import JudgeSettings, judge_pairs
from terrasieve.curate.pairs import PAIRS, table
from terrasieve.curate.priority import Rows, read_rows
from terrasieve.curate.step import numbers
from terrasieve.curate.store import Store, names


@dataclass
class Decided:
    """Decisions on images that are kept.

    Attributes:
        losers: (k,) uint64, ids that go.
        winners: (k,) uint64, ids that stay in their place.
        rows: (k,) int64, the losers' rows in the manifest.
        apart: (m, 2) uint64, ids found different.
        pairs: the table of all of them.
        notes: what a person should know.
    """

    losers: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    winners: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    apart: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    pairs: pa.Table = field(default_factory=PAIRS.empty_table)
    notes: list[str] = field(default_factory=list)

    def apart_in(self, ids: np.ndarray) -> np.ndarray:
        """Return (j,) int64, ascending: i * n + j, i < j, of the pairs apart that are both among (n,) ids."""
        order = np.argsort(ids)
        at = np.minimum(np.searchsorted(ids[order], self.apart), max(len(ids) - 1, 0))
        there = (ids[order][at] == self.apart).all(axis=1) if len(ids) else np.zeros(len(self.apart), bool)
        places = np.sort(order[at[there]].astype(np.int64), axis=1) if len(ids) else np.zeros((0, 2), np.int64)
        return np.sort(places[:, 0] * len(ids) + places[:, 1])


def read_decided(path: Path, source: Path, store: Store, settings: JudgeSettings) -> Decided:
    """Read the decisions of a curation; none where nothing was decided.

    Args:
        path: ``Work.decisions``.
        source: the manifest; decisions on images that it does not keep are left out, and counted.
        store: of hashes, for what the table says of the pairs.
        settings: likewise.

    Raises:
        UserError: a line that cannot be read.
    """
    if not path.exists():
        return Decided()
    from terrasieve.curate.decisions import read

    decisions = read(path)
    if not decisions:
        return Decided()
    wanted = np.array(sorted({int(name, 16) for pair in decisions for name in pair}), np.uint64)
    rows = read_rows(source, lambda found: found["keep"].to_numpy(False) & np.isin(numbers(found["id"]), wanted))
    rows = rows.at(store.rows(rows.id) >= 0)
    there = dict(zip(rows.id.tolist(), rows.row.tolist(), strict=True))
    known = [(int(a, 16), int(b, 16), what) for (a, b), what in decisions.items()]
    known = [(a, b, what) for a, b, what in known if a in there and b in there and a != b]
    if not known:
        return Decided(notes=[f"{len(decisions):,} decisions are on images that are not kept any more."])
    gone: dict[int, int] = {}
    for a, b, what in known:
        winner, loser = (b, a) if what == "right" else (a, b)
        if what != "both" and _end(gone, winner) != loser and loser not in gone:
            gone[loser] = winner
    apart = np.array([(a, b) for a, b, what in known if what == "both"], np.uint64).reshape(-1, 2)
    away = len(decisions) - len(known)
    notes = [f"{len(known):,} pairs decided in review."]
    notes += [f"{away:,} decisions are on images that are not kept any more."] * bool(away)
    losers, winners = (np.array(list(part), np.uint64) for part in (gone.keys(), gone.values()))
    at = np.array([there[loser] for loser in gone], np.int64)
    return Decided(losers, winners, at, apart, _table(known, rows, store, settings), notes)


def _end(gone: dict[int, int], image: int) -> int:
    """Return the image that stays in place of another, so that no circle of decisions drops all of them."""
    while image in gone:
        image = gone[image]
    return image


def _table(known: list[tuple[int, int, str]], rows: Rows, store: Store, settings: JudgeSettings) -> pa.Table:
    stored = store.rows(rows.id)
    order = np.argsort(rows.id)
    turned = [(b, a) if what == "right" else (a, b) for a, b, what in known]
    a, b = (order[np.searchsorted(rows.id[order], np.array(ids, np.uint64))] for ids in zip(*turned, strict=True))
    found = judge_pairs(store.column("phash")[stored], store.thumbs(stored), a, b, settings)
    return table(
        {
            "id_a": names(rows.id[a]),
            "id_b": names(rows.id[b]),
            "kind": ["decided"] * len(known),
            "distance": found.distance,
            "orientation": found.orientation,
            "correlation": found.correlation,
            "verdict": ["different" if what == "both" else "duplicate" for *_, what in known],
            "by": ["person"] * len(known),
        }
    )
