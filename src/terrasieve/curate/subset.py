"""Subsets: order a manifest's images so that every share of them from the front is rich, balanced and within the next.

Optional last step of curation. Images are ranked by how little others repeat them (density of embeddings), by HOG
energy or by entropy, and dealt out evenly over clusters or over the globe, level by level. Source: Vo et al.,
"Automatic data curation for self-supervised learning: a clustering-based approach", TMLR 2024, for k-means of k-means
and even sampling over its levels; without its resampling, and with ranks in place of draws, so that subsets are nested.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from terrasieve import keyed
from terrasieve.curate import step
from terrasieve.curate.step import Result, Tick, rewrite
from terrasieve.section import Section

BLOCK = 4096  # rows of a matrix product
EXACT = 20_000  # up to so many images every pair is compared
PROBES = 4  # beyond: images of the nearest clusters, the own one among them
ITERATIONS = 15
PER_CLUSTER = 64  # images that a centre is fitted to
FINEST = 4096  # most clusters of a level
CELLS_DEG = (16.0, 4.0, 1.0, 0.25)  # from coarse to fine
Levels = list[np.ndarray]  # (n,) int64 each, from coarse to fine: the number of the image's cluster or cell

By = Literal["density", "hog", "entropy", "random"]
Balance = Literal["clusters", "geography", "none"]


class SubsetSettings(Section):
    """How images are ranked.

    Attributes:
        by: density (mean cosine to the nearest neighbours, few first), hog or entropy (much first), random.
        balance: what the images are spread over evenly: clusters of embeddings, cells of geography, none.
        neighbours: of an image, for density.
        clusters: numbers of clusters from coarse to fine; null = about 20 images in a finest one, ten in one above.
        seed: of the clusters, and of the order of equals.
    """

    by: By = "density"
    balance: Balance = "clusters"
    neighbours: int = Field(default=10, ge=1)
    clusters: tuple[int, ...] | None = None
    seed: int = 0


def ranks(score: np.ndarray, ids: np.ndarray, levels: Levels, seed: int = 0) -> np.ndarray:
    """Rank images so that the first m are spread over the levels as evenly as possible, for every m.

    The images of a finest cluster follow each other by score; clusters take turns within the one above, and so on up.

    Args:
        score: (n,) float, larger first; NaN after all others.
        ids: (n,) uint64, which break ties by a keyed hash; the result does not depend on the order of images.
        levels: from coarse to fine, maybe none; each cluster lies within one of the level above.
        seed: of the hash.

    Returns:
        (n,) int64: 0 is taken first.
    """
    n = len(score)
    tie = mixed(ids, seed)
    worth = np.where(np.isfinite(score), -score, np.inf)
    place = np.lexsort((tie, worth)).argsort()  # by score alone
    last = ~np.isfinite(score)  # what cannot be judged is never taken before what can
    turn = place
    for level in reversed(levels):
        turn = _counted(level, last, turn, place)
    order = np.lexsort((place, turn, last))
    result = np.empty(n, np.int64)
    result[order] = np.arange(n)
    return result


def _counted(cluster: np.ndarray, last: np.ndarray, turn: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Number the images of each cluster by turn, then by place."""
    order = np.lexsort((place, turn, last, cluster))
    sizes = np.unique(cluster, return_counts=True)[1]
    number = np.empty(len(cluster), np.int64)
    number[order] = np.arange(len(cluster)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return number


def mixed(ids: np.ndarray, seed: int) -> np.ndarray:
    """Return (n,) uint64 that look random, a function of each id and the seed (finaliser of SplitMix64)."""
    x = ids.astype(np.uint64) ^ np.uint64(keyed.key(seed, "subset") & (2**64 - 1))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(x ^ (x >> np.uint64(31)))


def normalised(embeddings: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
    """Return rows of embeddings as float32 of length 1; one that is not finite or all zero becomes zero."""
    part = np.asarray(embeddings[rows], np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        part = part / np.linalg.norm(part, axis=1, keepdims=True)
    return np.asarray(np.nan_to_num(part, copy=False, posinf=0, neginf=0))


def clusters(embeddings: np.ndarray, counts: Sequence[int] | None, seed: int) -> tuple[Levels, np.ndarray]:
    """Cluster embeddings by k-means, then the centres by k-means, and so on.

    Args:
        embeddings: (n, d), maybe memory-mapped; compared by cosine.
        counts: of clusters, coarse to fine; None = as :class:`SubsetSettings` says.
        seed: of the first centres.

    Returns:
        The levels, and the (k, d) finest centres.
    """
    sizes = list(counts or _counts(len(embeddings)))[::-1]
    points, finest = embeddings, None
    levels: Levels = []
    for number, size in enumerate(sizes):
        centres = kmeans(points, min(size, len(points)), seed, number)
        label = assigned(points, centres)
        levels.append(label if not levels else label[levels[-1]])
        finest = centres if finest is None else finest
        points = centres
    assert finest is not None
    return levels[::-1], finest


def _counts(n: int) -> list[int]:
    """Return numbers of clusters, from coarse to fine."""
    count = int(np.clip(n // 20, 1, FINEST))
    counts = [count]
    while count >= 40:
        count //= 10
        counts.append(count)
    return counts[::-1]


def kmeans(points: np.ndarray, count: int, seed: int, level: int = 0) -> np.ndarray:
    """Return (count, d) centres of length 1, by Lloyd's algorithm on a keyed sample."""
    generator = keyed.numpy_generator(seed, "subset-kmeans", level)
    chosen = np.sort(generator.choice(len(points), min(len(points), PER_CLUSTER * count), replace=False))
    sample = normalised(points, chosen)
    centres = sample[np.sort(generator.choice(len(sample), count, replace=False))]
    for _ in range(ITERATIONS):
        label, cosine = _nearest(sample, centres)
        order = np.argsort(label, kind="stable")
        present, starts = np.unique(label[order], return_index=True)
        sums = np.zeros_like(centres)
        sums[present] = np.add.reduceat(sample[order], starts, axis=0)
        empty = np.setdiff1d(np.arange(count), present)
        sums[empty] = sample[np.argsort(cosine, kind="stable")[: len(empty)]]  # what is farthest from its centre
        moved, centres = centres, normalised(sums, slice(None))
        if np.array_equal(moved, centres):
            break
    return centres


def assigned(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return (n,) the number of the nearest centre of each point."""
    starts = range(0, len(points), BLOCK)
    parts = [_nearest(normalised(points, slice(start, start + BLOCK)), centres)[0] for start in starts]
    return np.concatenate([*parts, np.empty(0, np.int64)])


def _nearest(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    label, cosine = np.empty(len(points), np.int64), np.empty(len(points), np.float32)
    for start in range(0, len(points), BLOCK):
        part = slice(start, start + BLOCK)
        product = points[part] @ centres.T
        label[part] = product.argmax(axis=1)
        cosine[part] = product[np.arange(len(product)), label[part]]
    return label, cosine


def density(embeddings: np.ndarray, neighbours: int, seed: int = 0, exact: int = EXACT) -> np.ndarray:
    """Return (n,) float32: mean cosine of each image to its nearest neighbours; near 1 where it is often repeated.

    Args:
        embeddings: (n, d), maybe memory-mapped.
        neighbours: how many; fewer where there are not so many others.
        seed: of the clusters in which neighbours are sought.
        exact: up to so many images all are compared; beyond, those of the ``PROBES`` nearest clusters.
    """
    n = len(embeddings)
    if n <= exact:
        return _density_in(embeddings, [(np.arange(n), np.arange(n))], neighbours)
    _, centres = clusters(embeddings, [int(np.clip(n // 500, 2, FINEST))], seed)
    label = assigned(embeddings, centres)
    near = np.argsort(-(centres @ centres.T), axis=1, kind="stable")[:, :PROBES]
    order = np.argsort(label, kind="stable")
    edges = np.searchsorted(label[order], np.arange(len(centres) + 1))
    members = [order[edges[c] : edges[c + 1]] for c in range(len(centres))]
    pools = [(members[c], np.concatenate([members[o] for o in {c, *near[c].tolist()}])) for c in range(len(centres))]
    return _density_in(embeddings, pools, neighbours)


def _density_in(embeddings: np.ndarray, pools: list[tuple[np.ndarray, np.ndarray]], neighbours: int) -> np.ndarray:
    """Compare each pool's images with its candidates, the image itself among them."""
    result = np.full(len(embeddings), np.nan, np.float32)
    for rows, candidates in pools:
        others = normalised(embeddings, candidates)
        k = min(neighbours, len(candidates) - 1)
        for start in range(0, len(rows), BLOCK) if k > 0 else ():
            some = rows[start : start + BLOCK]
            mine = normalised(embeddings, some)
            # The image itself is the nearest but for rounding; its cosine of 1 is taken out of the sum.
            cosine = mine @ others.T
            nearest = -np.partition(-cosine, k, axis=1)[:, : k + 1]
            self_cosine = np.einsum("nd,nd->n", mine, mine)
            result[some] = (nearest.sum(axis=1) - self_cosine) / k
            result[some[self_cosine < 0.5]] = np.nan  # no embedding
    return result


def cells(lon: np.ndarray, lat: np.ndarray, other: np.ndarray) -> Levels:
    """Return cells of equal area from coarse to fine; images without coordinates share one per ``other``.

    Args:
        lon, lat: (n,) degrees, NaN where unknown.
        other: (n,) int64, e.g. the number of the source.
    """
    known = np.isfinite(lon) & np.isfinite(lat)
    x = np.where(known, np.minimum((np.nan_to_num(lon) + 180) % 360, 359.999), 0)
    y = np.where(known, (np.sin(np.radians(np.clip(np.nan_to_num(lat), -90, 90))) + 1) * 90, 0)
    levels = []
    for side in CELLS_DEG:
        columns = int(np.ceil(360 / side))
        cell = (np.minimum(y, 179.999) // side).astype(np.int64) * columns + (x // side).astype(np.int64)
        levels.append(np.where(known, cell, -1 - other))
    return levels


def write(source: Path, target: Path, rank: np.ndarray, share: float, how: str, tick: Tick | None = None) -> Result:
    """Write a manifest that keeps the first share of the ranked images.

    Args:
        source: a manifest.
        target: another one of the same rows.
        rank: (kept rows of ``source``,) of :func:`ranks`; -1 = the image could not be read.
        share: of those that could, in (0, 1].
        how: words for the reason.
    """
    judged = int((rank >= 0).sum())
    most = round(share * judged)
    done = 0

    def change(table: pa.Table, _first: int) -> pa.Table:
        nonlocal done
        kept = np.flatnonzero(table["keep"].to_numpy(zero_copy_only=False))
        mine = rank[done : done + len(kept)]
        done += len(kept)
        gone = (mine >= most) | (mine < 0)
        reasons = [
            f"subset: rank {r + 1} of {judged} by {how}, above {most}" if r >= 0 else "unreadable: could not be ranked"
            for r in mine[gone].tolist()
        ]
        return step.drop(table, kept[gone], reasons)

    return rewrite(source, target, change, tick or (lambda _done, _total: None))
