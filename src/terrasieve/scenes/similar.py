"""Similar: which vectors are most like one of them, of any number, in three passes over the file.

After ``vectors``. Similarity is the cosine of vectors less their mean: what all images have in common, most of a ViT's
mean token, says nothing about likeness.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from terrasieve import keyed
from terrasieve.errors import UserError
from terrasieve.scenes.vectors import Vectors

APART = 3  # cells between places of a scene that are shown both


class Alike(NamedTuple):
    """What is like a vector.

    Attributes:
        nearest: rows, best first, the vector's own not among them.
        scores: theirs, in [-1, 1].
        rows: the vector's own first, then ``nearest``, then as many of all others as make up the pool.
        unit_MD: their vectors, less the mean of all, of length 1.
        real: rows with data.
    """

    nearest: NDArray[np.int64]
    scores: NDArray[np.float32]
    rows: NDArray[np.int64]
    unit_MD: NDArray[np.float32]
    real: int


def alike(vectors: Vectors, query: int, count: int, pool: int, seed: int = 0) -> Alike:
    """Search all vectors for those like one of them.

    Args:
        vectors: to search.
        query: row that the others are compared with.
        count: of the nearest; cells of a scene closer than ``APART`` to a better one or to the query are left out.
        pool: rows in all; half of what the query leaves is nearest, but at least ``count``, the rest is drawn from all
            others, so that places of every kind are among them. Everything, if there is no more.
        seed: of the draw.

    Raises:
        UserError: the query has no data, or there is nothing beside it.
    """
    mean_D, own_D, real = _mean(vectors, query)
    scores = np.concatenate([_unit(block - mean_D) @ _unit(own_D - mean_D) for block in vectors.blocks()])
    if real < 2:
        raise UserError(f"{vectors.made_of}: there is nothing beside the one image with data.")
    order = np.argsort(-scores, kind="stable")[:real]
    order = order[order != query]
    most = max(pool - 1, count)
    nearest = _apart(order, query, vectors.columns, max(count, most // 2))
    if len(order) <= most:
        rest = np.setdiff1d(order, nearest)
    else:
        others = np.setdiff1d(order, nearest)
        drawn = keyed.numpy_generator(seed, "search/others").permutation(others)
        rest = np.sort(drawn[: most - len(nearest)])
    rows = np.concatenate([[query], nearest, rest]).astype(np.int64)
    best = nearest[:count]
    return Alike(best, scores[best], rows, _taken(vectors, rows, mean_D), real)


def _mean(vectors: Vectors, query: int) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
    total, real, first = np.zeros(vectors.width), 0, 0
    own = np.full(vectors.width, np.nan, np.float32)
    for block in vectors.blocks():
        there = np.isfinite(block).all(1)
        total += block[there].sum(0, dtype=np.float64)
        real += int(there.sum())
        if first <= query < first + len(block):
            own = block[query - first].copy()
        first += len(block)
    if not np.isfinite(own).all():
        raise UserError("--like: there is no data at this place.")
    return (total / max(real, 1)).astype(np.float32), own, real


def _unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    unit: NDArray[np.float32] = (values / np.maximum(length, 1e-12)).astype(np.float32)
    return unit


def _apart(order: NDArray[np.int64], query: int, columns: int | None, count: int) -> NDArray[np.int64]:
    """Return the first rows of an order; of a scene's cells, none too near to one that came before."""
    if columns is None:
        return order[:count]
    rows = int(max(order.max(), query)) // columns + 1
    taken = np.zeros((rows + 2 * APART, columns + 2 * APART), np.bool_)
    kept: list[int] = []
    for cell in [query, *order.tolist()]:
        row, column = divmod(cell, columns)
        if taken[row + APART, column + APART]:
            continue
        taken[row + 1 : row + 2 * APART, column + 1 : column + 2 * APART] = True
        kept.append(cell)
        if len(kept) > count:
            break
    return np.array(kept[1:], np.int64)


def _taken(
    vectors: Vectors, rows: Sequence[int] | NDArray[np.int64], mean_D: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the unit vectors of rows, in their order."""
    rows = np.asarray(rows)
    order = np.argsort(rows)
    out, first = np.empty((len(rows), vectors.width), np.float32), 0
    for block in vectors.blocks():
        begin, end = np.searchsorted(rows[order], [first, first + len(block)])
        here = order[begin:end]
        out[here] = _unit(block[rows[here] - first] - mean_D)
        first += len(block)
    return out
