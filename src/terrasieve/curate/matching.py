"""Matching: pairs of images that show the same ground, by their content alone.

The half of ``curate.overlap`` for images without coordinates: interest points of all images (``interest``) in files,
their votes for pairs and offsets (``votes``), and a verdict by the pixels that would be shared (``registration``).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from terrasieve.curate import registration
from terrasieve.curate.engine import Lost
from terrasieve.curate.footprints import Overlaps, Places
from terrasieve.curate.interest import BITS, POINT, interest_points
from terrasieve.curate.rows import Rows
from terrasieve.curate.stamps import stamp, status_of
from terrasieve.curate.step import Tick, Work
from terrasieve.curate.votes import Candidates, candidates
from terrasieve.files import written_aside
from terrasieve.imagery.luminance import luminance
from terrasieve.imagery.unreadable import UnreadableImage

if TYPE_CHECKING:
    from terrasieve.curate.overlap import Notes, OverlapSettings

_BLOCK = 16_384  # images of one file of points
_PART = 128  # images that a worker is given at once
_PAIRS = 256  # pairs likewise
Image = tuple[str, Any, Any]  # uri, window, bands


class Matcher:
    """Matching by content: points of all images, votes of their pairs, verification of what they propose."""

    def __init__(self, rows: Rows, settings: OverlapSettings, work: Work, notes: Notes) -> None:
        self.rows, self.settings, self.work, self.notes = rows, settings, work, notes

    def propose(self, where: Places, decided: NDArray[np.bool_], between: bool) -> Candidates:
        settings = self.settings
        sides = np.minimum(self.rows.sides, 1) if between else None
        votes = candidates(
            self.points(), sides, decided, most_images=settings.most_images, least_votes=settings.least_votes
        )
        size_a, size_b = where.box[votes.a, 2:], where.box[votes.b, 2:]
        offset = np.stack([votes.dx, votes.dy], axis=1)
        common = np.clip(np.minimum(size_a, size_b + offset) - np.maximum(offset, 0), 0, None).astype(np.float64)
        smaller = np.minimum(size_a.astype(np.float64).prod(axis=1), size_b.astype(np.float64).prod(axis=1))
        likely = common.prod(axis=1) >= 0.9 * settings.least_shared * smaller  # registration may move it by a pixel
        likely &= (where.parent[votes.a] != where.parent[votes.b]) | ~(
            where.windowed[votes.a] | where.windowed[votes.b]
        )
        return _chosen(votes, likely)

    def points(self) -> list[Path]:
        """Index all kept images, a file of points per block of rows; what an earlier run left is not done again."""
        files, done, total = [], 0, int(self.rows.kept.sum())
        for first, table in self.rows.blocks(["uri", "window", "bands"], _BLOCK):
            numbers = np.flatnonzero(self.rows.kept[first : first + len(table)])
            chosen = table.take(pa.array(numbers))
            images = list(zip(*(column.to_pylist() for column in chosen.columns), strict=True))
            file = self.work.folder / "points" / f"{_digest(self.settings, first, images)}.npy"
            if not file.exists():
                self._index(images, numbers + first, file, done, total)
            self.notes.unread.update(json.loads(file.with_suffix(".json").read_text(encoding="utf-8")))
            done += len(images)
            self.work.tick(done, total)
            files.append(file)
        return files

    def _index(self, images: list[Image], numbers: NDArray[np.int64], file: Path, done: int, total: int) -> None:
        starts = range(0, len(images), _PART)
        parts = [(images[i : i + _PART], self.settings.share, self.settings.most_px) for i in starts]
        found, unread = [np.zeros(0, POINT)], Counter[str]()
        for number, result in self.work.engine.run(_find_points, parts):
            here = numbers[number * _PART : (number + 1) * _PART]
            done += len(here)
            self.work.tick(done, total)
            if isinstance(result, Lost):
                unread["unreadable: reading it ends the process"] += len(here)
                continue
            points, failed = result
            points["row"] = here[points["row"]]
            found.append(points)
            unread.update(failed)
        points = np.concatenate(found)
        with written_aside(file.with_suffix(".json")) as aside:
            aside.write_text(json.dumps(unread), encoding="utf-8")
        with written_aside(file) as aside, aside.open("wb") as stream:
            np.save(stream, points[np.argsort(points["key"], kind="stable")])

    def verify(self, proposed: Candidates, tick: Tick) -> Overlaps:
        """Register all candidates and keep what scores enough, the best offset of each pair."""
        good: list[tuple[float, ...]] = []
        count = len(proposed.a)
        for block in range(0, count, _BLOCK):
            chosen = _chosen(proposed, slice(block, block + _BLOCK))
            involved = np.unique(np.r_[chosen.a, chosen.b])
            table = self.rows.take(involved, ["uri", "window", "bands"])
            images = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
            pairs = np.stack([*np.searchsorted(involved, [chosen.a, chosen.b]), chosen.dx, chosen.dy], axis=1)
            parts = []
            for i in range(0, len(pairs), _PAIRS):
                few, inverse = np.unique(pairs[i : i + _PAIRS, :2], return_inverse=True)
                renumbered = np.c_[inverse.reshape(-1, 2), pairs[i : i + _PAIRS, 2:]]
                parts.append(([images[image] for image in few], renumbered.tolist(), self.settings.most_px))
            done = block
            for number, result in self.work.engine.run(_register, parts):
                done += len(parts[number][1])
                tick(done, count)
                if isinstance(result, Lost):
                    self.notes.unread["unreadable: reading them ends the process"] += len(parts[number][0])
                    continue
                at = block + number * _PAIRS
                good += [(proposed.a[at + int(i)], proposed.b[at + int(i)], *rest) for i, *rest in result]
        return _best(good, self.settings)


def _find_points(part: tuple[list[Image], float, int]) -> tuple[NDArray[np.void], dict[str, int]]:
    images, share, most_px = part
    found, failed = [np.zeros(0, POINT)], Counter[str]()
    for number, (uri, window, bands) in enumerate(images):
        try:
            points = interest_points(luminance(uri, window, bands, max_pixels=most_px), share)
        except UnreadableImage as error:
            failed[error.reason.partition(":")[0]] += 1
            continue
        points["row"] = number
        found.append(points)
    return np.concatenate(found), dict(failed)


def _register(part: tuple[list[Image], list[list[int]], int]) -> list[tuple[float, ...]]:
    """Return (number of the pair, dx, dy, shared fraction, score) of pairs that are worth more than nothing."""
    images, pairs, most_px = part

    @lru_cache(64)
    def prepared(image: int) -> registration.Prepared:
        return registration.prepare(luminance(*images[image], max_pixels=most_px))

    found: list[tuple[float, ...]] = []
    for number, (a, b, dx, dy) in enumerate(pairs):
        try:
            one, two = prepared(a), prepared(b)
        except UnreadableImage:
            continue  # read for its points a moment ago: counted there if it could not be
        result = registration.register(one, two, dx, dy)
        if result.score > 0:
            _, _, width, height = registration.shared(one.flat.shape, two.flat.shape, result.dx_px, result.dy_px)
            fraction = width * height / min(one.flat.size, two.flat.size)
            found.append((number, result.dx_px, result.dy_px, fraction, result.score))
    return found


def _best(good: list[tuple[float, ...]], settings: OverlapSettings) -> Overlaps:
    values = np.array(good, np.float64).reshape(-1, 6)  # a, b, dx, dy, fraction, score
    values = values[(values[:, 5] >= settings.least_score) & (values[:, 4] >= settings.least_shared)]
    values = values[np.lexsort([-values[:, 5], values[:, 1], values[:, 0]])]
    first = np.r_[True, (values[1:, :2] != values[:-1, :2]).any(axis=1)][: len(values)]
    a, b, dx, dy, fraction, score = values[first].T
    return Overlaps(a.astype(np.int64), b.astype(np.int64), dx, dy, fraction, score)


def _chosen(pairs: Candidates, which: NDArray[np.bool_] | slice) -> Candidates:
    return Candidates(pairs.a[which], pairs.b[which], pairs.dx[which], pairs.dy[which], pairs.votes[which])


def _digest(settings: OverlapSettings, first: int, images: list[Image]) -> str:
    files = dict.fromkeys(uri.partition("#name=")[0] for uri, _, _ in images)
    stamps = [stamp(status_of(file)) for file in files]  # a file that has changed is read again
    text = json.dumps([BITS, settings.share, settings.most_px, first, images, stamps])
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
