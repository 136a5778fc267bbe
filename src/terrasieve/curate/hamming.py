"""Near-duplicate join: all groups of hashes within a Hamming distance, exactly, without listing all pairs.

After hashing, before verification. Two hashes within d bits agree exactly on at least k of d + k blocks of their bits,
so for each choice of k blocks the hashes are bucketed by them and compared within buckets. Pairs are united at once
(union-find), so skewed data does not explode: what remains is a spanning forest, at most one pair per hash, which the
next step verifies. Source: Manku, Jain & Das Sarma, WWW 2007 (blocks); CURATION.md, step 7.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from terrasieve.curate.engine import cores
from terrasieve.errors import UserError

MAX_DISTANCE = 10
_LIMIT = 512  # buckets beyond this are searched by component
_MOST_BLOCKS = 6


class Join(NamedTuple):
    """Groups of near-equal hashes.

    Attributes:
        group: (n,) int64, the first row of the group that each hash belongs to.
        pairs: (m, 2) int64, rows a < b of a spanning forest of the groups; every pair is within the distance.
        distance: (m,) uint8, bits in which the pair differs.
    """

    group: np.ndarray
    pairs: np.ndarray
    distance: np.ndarray


def join(hashes: np.ndarray, distance: int, threads: int | None = None) -> Join:
    """Group all hashes that are linked by pairs within ``distance`` bits.

    Args:
        hashes: (n,) uint64.
        distance: 0 to 10.
        threads: default: one per core.

    Raises:
        UserError: if the hashes are of another type or shape, or the distance is out of range.
    """
    if hashes.dtype != np.uint64 or hashes.ndim != 1:
        raise UserError(f"hashes are one row of uint64, not {hashes.dtype} of shape {hashes.shape}.")
    if not 0 <= distance <= MAX_DISTANCE:
        raise UserError(f"distance {distance} is not in 0 to {MAX_DISTANCE} bits.")
    order = np.argsort(hashes, kind="stable").astype(np.uint32 if len(hashes) < 2**32 else np.int64)
    ordered = hashes[order]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(hashes) else np.zeros(0, np.int64)
    unique = ordered[first]
    near = _forest(unique, distance, threads or cores()) if distance else np.zeros((0, 2), np.int64)
    return _rows(order, first, unique, near)


def unite(group: np.ndarray, pairs: np.ndarray) -> None:
    """Unite the groups of pairs (m, 2) of rows, in place; ``group`` (n,) int64 holds the first row of each one's."""
    _unite_all(group, np.ascontiguousarray(pairs))


def _rows(order: np.ndarray, first: np.ndarray, unique: np.ndarray, near: np.ndarray) -> Join:
    """Translate a forest over unique hashes into one over rows; equal hashes are chained to the first of them."""
    n = len(order)
    leader = np.repeat(order[first], np.diff(np.r_[first, n])).astype(np.int64)  # stable sort: the lowest row
    same = np.flatnonzero(leader != order)
    equal = np.stack([leader[same], order[same].astype(np.int64)], axis=1)
    far = np.sort(order[first].astype(np.int64)[near], axis=1)
    pairs = np.concatenate([equal, far])
    distance = np.zeros(len(pairs), np.uint8)
    distance[len(equal) :] = np.bitwise_count(unique[near[:, 0]] ^ unique[near[:, 1]])
    parent = np.arange(n, dtype=np.int64)
    _unite_all(parent, pairs)
    return Join(parent, pairs, distance)


def _forest(unique: np.ndarray, distance: int, threads: int) -> np.ndarray:
    """Return a spanning forest (m, 2) of the graph of unique hashes within the distance."""
    blocks = distance + _agreeing(len(unique), distance)
    edges = np.linspace(0, 64, blocks + 1).round().astype(np.int64)
    choices = list(combinations(range(blocks), blocks - distance))
    threads, most = max(min(threads, len(choices)), 1), _key_bits(len(unique))

    def work(part: int) -> np.ndarray:
        parent = np.arange(len(unique), dtype=np.int32)
        found = np.empty((max(len(unique) - 1, 0), 2), np.int32)
        count = 0
        space = (np.empty_like(unique), np.empty(len(unique), np.int32))
        for choice in choices[part::threads]:
            starts, widths = edges[list(choice)], np.diff(edges)[list(choice)]
            while widths.sum() > most:  # part of a block will do where its whole would make more buckets than hashes
                widths[widths.argmax()] -= 1
            count = _pass(unique, starts, widths, distance, parent, found, count, *space)
        return found[:count].copy()

    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(work, range(threads)))
    parent = np.arange(len(unique), dtype=np.int64)
    together = np.concatenate(parts).astype(np.int64)
    joined: np.ndarray = _unite_all(parent, together)
    return np.compress(joined, together, axis=0)


def _key_bits(n: int) -> int:
    """Return the most bits that a bucket's number may have: not many more buckets than hashes."""
    return max(n.bit_length(), 8)


def _agreeing(n: int, distance: int) -> int:
    """Choose how many blocks have to agree: more of them mean smaller buckets, but more passes."""

    def cost_ns(k: int) -> float:
        in_bucket = n / 2 ** min(64 * k / (distance + k), _key_bits(n))
        return math.comb(distance + k, k) * n * (36 + 0.32 * in_bucket)  # measured, see benchmarks

    return min(range(1, _MOST_BLOCKS + 1), key=cost_ns)


def _count_ones(typing: Any, value: Any) -> Any:
    """Count the ones of a uint64 by the processor's own instruction."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count = builder.module.declare_intrinsic("llvm.ctpop", [ir.IntType(64)])
        return builder.call(count, arguments)

    return types.uint64(types.uint64), generate


ones: Any = intrinsic(_count_ones)


@numba.njit(cache=True, nogil=True)
def _find(parent: np.ndarray, i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@numba.njit(cache=True, nogil=True)
def _unite(parent: np.ndarray, i: int, j: int) -> bool:
    """Put two rows into one group, led by the lower root; tell whether they were apart."""
    a, b = _find(parent, i), _find(parent, j)
    if a < b:
        parent[b] = a
    else:
        parent[a] = b
    return a != b


@numba.njit(cache=True, nogil=True)
def _unite_all(parent: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Unite pairs, leave every row's root in ``parent``, and tell which pairs joined two groups."""
    joined = np.empty(len(pairs), np.bool_)
    for m in range(len(pairs)):
        joined[m] = _unite(parent, pairs[m, 0], pairs[m, 1])
    for i in range(len(parent)):
        parent[i] = _find(parent, i)
    return joined


@numba.njit(cache=True, nogil=True)
def _pass(
    hashes: np.ndarray,
    starts: np.ndarray,
    widths: np.ndarray,
    distance: int,
    parent: np.ndarray,
    found: np.ndarray,
    count: int,
    sorted_hashes: np.ndarray,
    rows: np.ndarray,
) -> int:
    """Bucket the hashes by the chosen blocks (counting sort), and unite what is near within each bucket."""
    bits = 0
    for width in widths:
        bits += width
    ends = np.zeros((1 << bits) + 1, np.int64)
    for h in hashes:
        ends[_key(h, starts, widths) + 1] += 1
    for k in range(1 << bits):
        ends[k + 1] += ends[k]
    for i in range(len(hashes)):
        k = _key(hashes[i], starts, widths)
        sorted_hashes[ends[k]] = hashes[i]
        rows[ends[k]] = i
        ends[k] += 1
    start = 0
    for k in range(1 << bits):
        stop = ends[k]
        if stop - start > _LIMIT:
            count = _large(sorted_hashes[start:stop], rows[start:stop], distance, parent, found, count)
        elif stop - start > 1:
            for i in range(start, stop - 1):
                count = _against(sorted_hashes, rows, i, i + 1, stop, distance, parent, found, count)
        start = stop
    return count


@numba.njit(cache=True, nogil=True, inline="always")
def _key(h: int, starts: np.ndarray, widths: np.ndarray) -> int:
    key = np.uint64(0)
    for b in range(len(starts)):
        mask = (np.uint64(1) << np.uint64(widths[b])) - np.uint64(1)
        key = (key << np.uint64(widths[b])) | ((h >> np.uint64(starts[b])) & mask)
    return int(key)


@numba.njit(cache=True, nogil=True)
def _against(
    hashes: np.ndarray,
    rows: np.ndarray,
    i: int,
    start: int,
    stop: int,
    distance: int,
    parent: np.ndarray,
    found: np.ndarray,
    count: int,
) -> int:
    """Unite row i with all near ones in [start, stop): 64 at a time are looked through for any hit."""
    h, limit = hashes[i], np.uint64(distance)
    while start < stop:
        end = min(start + 64, stop)
        hits = 0
        for j in range(start, end):
            hits += ones(h ^ hashes[j]) <= limit
        if hits:
            for j in range(start, end):
                if ones(h ^ hashes[j]) <= limit and _unite(parent, rows[i], rows[j]):
                    found[count, 0], found[count, 1] = rows[i], rows[j]
                    count += 1
        start = end
    return count


@numba.njit(cache=True, nogil=True)
def _largest(rows: np.ndarray, first: int, parent: np.ndarray) -> tuple[int, int]:
    """Return the root and the size of the largest group among those of a few rows from all over the bucket."""
    roots = np.empty(len(rows), parent.dtype)
    for i in range(first, len(rows)):
        roots[i] = _find(parent, rows[i])
    lead, most = 0, 0
    for trial in range(first, len(rows), (len(rows) - first) // 8):
        size = 0
        for i in range(first, len(rows)):
            size += roots[i] == roots[trial]
        if size > most:
            most, lead = size, roots[trial]
    return lead, most


@numba.njit(cache=True, nogil=True)
def _large(
    hashes: np.ndarray, rows: np.ndarray, distance: int, parent: np.ndarray, found: np.ndarray, count: int
) -> int:
    """Search a large bucket: what belongs to its largest group already is not compared with itself.

    A dense cluster (near-uniform images) is united by comparing its first member with all; from then on only the rows
    outside it are searched, each until it is found to belong to it.
    """
    first, n, limit = 0, len(rows), np.uint64(distance)
    while n - first > _LIMIT:
        lead, most = _largest(rows, first, parent)
        if most < (n - first) // 2:  # else an earlier pass has united the cluster
            for trial in range(first, n, (n - first) // 8):  # a few members from all over the bucket find the cluster
                count = _against(hashes, rows, trial, first, n, distance, parent, found, count)
            lead, most = _largest(rows, first, parent)
        if most < (n - first) // 32:  # no cluster: all with all
            break
        inside = first
        for i in range(first, n):  # the largest group to the front
            if _find(parent, rows[i]) == lead:
                hashes[i], hashes[inside] = hashes[inside], hashes[i]
                rows[i], rows[inside] = rows[inside], rows[i]
                inside += 1
        for i in range(inside, n):
            for j in range(first, inside):
                if ones(hashes[i] ^ hashes[j]) <= limit:
                    if _unite(parent, rows[i], rows[j]):
                        found[count, 0], found[count, 1] = rows[i], rows[j]
                        count += 1
                    break
        first = inside
    for i in range(first, n - 1):
        count = _against(hashes, rows, i, i + 1, n, distance, parent, found, count)
    return count
