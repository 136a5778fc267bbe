"""Verify: of each group of near-duplicates, which images are really the same. The step "verify".

A group is linked by pairs, so its ends may have nothing in common (39,105 hashes hung together in one trial); nothing
is dropped for being in it. Its images are taken in order of priority, and each is compared with those kept before it:
accepted (dropped as a duplicate of that one), rejected, or kept and listed for review. So the result depends neither on
the order of the rows nor on which links the join found. A person's decisions go first. Source: CURATION.md, step 8.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from terrasieve.curate.decided import Decided, read_decided
from terrasieve.curate.exact import dropping
from terrasieve.curate.judge import DUPLICATE, REVIEW, VERDICTS, Judged, JudgeSettings, judge_groups
from terrasieve.curate.pairs import PAIRS, read_pairs, table, write_pairs
from terrasieve.curate.priority import Rows, ranked, read_rows, take
from terrasieve.curate.step import Result, Work, rewrite
from terrasieve.curate.store import Store, names, open_store

_AT_ONCE = 65_536  # images whose thumbnails are held


class VerifySettings(JudgeSettings):
    """How near-duplicates are judged; see ``JudgeSettings``.

    Attributes:
        sources: names in order of priority, the first kept before all others; sources not named follow by name.
    """

    sources: tuple[str, ...] = ()


def verify(source: Path, target: Path, settings: VerifySettings, work: Work) -> Result:
    """Drop near-duplicates that are verified, and write all pairs that were judged.

    Reasons: ``near_duplicate: of ID, 3 bits, correlation 0.998``, ``rotated_duplicate: ...`` likewise,
    ``near_duplicate: of ID, decided in review``.
    """
    store = open_store(work.hashes)

    def grouped(found: pa.Table) -> np.ndarray:
        return np.asarray(pc.and_(found["keep"], found["group"].is_valid()))

    rows = read_rows(source, grouped, settings.sources)
    decided = read_decided(work.decisions, source, store, settings)
    chosen = (store.rows(rows.id) >= 0) & ~np.isin(rows.id, decided.losers)
    rows = rows.at(chosen)
    group = pc.fill_null(take(source, rows.row, ["group"])["group"], 0).to_numpy()
    order = np.lexsort((ranked(rows, source), group))
    rows, group = rows.at(order), group[order]
    judged = _judged(rows, group, store, decided, settings, work)
    gone = np.flatnonzero(judged.verdict == DUPLICATE)
    keepers = rows.id[judged.other[gone]]
    reasons = [
        f"{'rotated' if turn else 'near'}_duplicate: of {name}, {bits} bits, correlation {value:.3f}"
        for name, turn, bits, value in zip(
            names(keepers), judged.orientation[gone], judged.distance[gone], judged.correlation[gone], strict=True
        )
    ]
    final = dict(zip(rows.id[gone].tolist(), keepers.tolist(), strict=True))  # a winner may be another's duplicate
    reasons += [f"near_duplicate: of {final.get(w, w):016x}, decided in review" for w in decided.winners.tolist()]
    result = rewrite(source, target, dropping(np.r_[rows.row[gone], decided.rows], reasons), work.tick)
    write_pairs(_pairs(rows, judged, decided, work.pairs), work.pairs)
    review = int((judged.verdict == REVIEW).sum())
    result.notes += [f"{review:,} pairs for review: `terrasieve review {work.folder}`."] * bool(review) + decided.notes
    return result


def _judged(
    rows: Rows, group: np.ndarray, store: Store, decided: Decided, settings: JudgeSettings, work: Work
) -> Judged:
    out = Judged.empty(len(rows.id))
    ends = np.flatnonzero(np.r_[np.diff(group) != 0, True]) + 1 if len(group) else np.zeros(0, np.int64)
    stored = store.rows(rows.id)
    phash = store.column("phash")[stored] if len(stored) else np.zeros((0, 8), np.uint64)
    for first, last, begin, end in _chunks(ends):
        part = slice(begin, end)
        found = judge_groups(
            ends[first:last] - begin,
            phash[part],
            store.thumbs(stored[part]),
            decided.apart_in(rows.id[part]),
            settings,
        )
        found.other[found.other >= 0] += begin
        for column, values in zip(out, found, strict=True):
            column[part] = values
        work.tick(end, len(rows.id))
    return out


def _chunks(ends: np.ndarray) -> Iterator[tuple[int, int, int, int]]:
    """Yield (first group, last group, first image, last image), whole groups of some ``_AT_ONCE`` images together."""
    first = 0
    while first < len(ends):
        begin = int(ends[first - 1]) if first else 0
        last = max(int(np.searchsorted(ends, begin + _AT_ONCE, side="right")), first + 1)
        yield first, last, begin, int(ends[last - 1])
        first = last


def _pairs(rows: Rows, judged: Judged, decided: Decided, path: Path) -> pa.Table:
    """Put exact duplicates of before, judged pairs and decided ones into one table."""
    before = read_pairs(path)
    exact = before.filter(pc.equal(before["kind"], "exact"))
    n = np.flatnonzero(judged.verdict > 0)
    near = table(
        {
            "id_a": names(rows.id[judged.other[n]]),
            "id_b": names(rows.id[n]),
            "kind": np.where(judged.orientation[n] > 0, "rotated", "near").tolist(),
            "distance": judged.distance[n],
            "orientation": judged.orientation[n],
            "correlation": judged.correlation[n],
            "verdict": [VERDICTS[v] for v in judged.verdict[n]],
            "by": ["rule"] * len(n),
        }
    )
    return pa.concat_tables([exact, near, decided.pairs]).cast(PAIRS)
