"""The near-duplicate join against all pairs, on random, linked and clustered hashes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terrasieve import keyed
from terrasieve.curate import hamming
from terrasieve.errors import UserError


def flipped(draw: np.random.Generator, hashes: np.ndarray, bits: int) -> np.ndarray:
    """Flip up to ``bits`` bits of each hash."""
    for _ in range(bits):
        hashes = hashes ^ (np.uint64(1) << draw.integers(0, 64, len(hashes)).astype(np.uint64))
    return hashes


def made(draw: np.random.Generator, count: int, distance: int, clustered: bool) -> np.ndarray:
    hashes = draw.integers(0, 2**64, count, dtype=np.uint64)
    if clustered:
        hashes[: count // 2] = flipped(draw, np.full(count // 2, hashes[0]), 3)
    near = flipped(draw, hashes[draw.integers(0, count, count // 2)], distance + 1)
    return draw.permutation(np.concatenate([hashes, near, hashes[: count // 8]]))


def groups_of_all_pairs(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Spread the lowest row over everything within the distance until nothing changes."""
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= distance
    group = np.arange(len(hashes))
    while True:
        lower = np.where(near, group[None], len(hashes)).min(axis=1)
        if (lower == group).all():
            return group
        group = lower


def check(hashes: np.ndarray, distance: int, threads: int) -> None:
    joined = hamming.join(hashes, distance, threads)
    np.testing.assert_array_equal(joined.group, groups_of_all_pairs(hashes, distance))
    a, b = joined.pairs.T
    assert (a < b).all()
    assert len(joined.pairs) == len(hashes) - len(np.unique(joined.group)), "a spanning forest"
    np.testing.assert_array_equal(joined.distance, np.bitwise_count(hashes[a] ^ hashes[b]))
    assert (joined.distance <= distance).all()


@pytest.mark.parametrize("distance", range(hamming.MAX_DISTANCE + 1))
@pytest.mark.parametrize("clustered", [False, True], ids=["spread", "clustered"])
def test_groups_are_those_of_all_pairs(distance: int, clustered: bool) -> None:
    draw = keyed.numpy_generator(distance, "test_hamming", int(clustered))
    check(made(draw, 400, distance, clustered), distance, threads=1 + distance % 2)


@pytest.mark.parametrize("agreeing", [1, 2, 3, 4])
def test_any_number_of_agreeing_blocks_is_exact(agreeing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming, "_agreeing", lambda n, distance: agreeing)
    check(made(keyed.numpy_generator(agreeing, "test_hamming"), 300, 5, True), 5, threads=2)


def test_a_bucket_too_large_to_compare_all_with_all() -> None:
    """Two dense clusters and what lies between them fall into the same buckets."""
    draw = keyed.numpy_generator(0, "test_hamming_large")
    centre = np.uint64(0x0F0F0F0F0F0F0F0F)
    one = flipped(draw, np.full(3000, centre), 3)
    other = flipped(draw, np.full(1500, centre ^ np.uint64(0xFFFFF)), 3)
    between = flipped(draw, np.full(300, centre ^ np.uint64(0x3FF)), 2)
    check(draw.permutation(np.concatenate([one, other, between])), 4, threads=1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=40), st.integers(0, 10), st.randoms())
def test_order_does_not_matter(values: list[int], distance: int, shuffle) -> None:  # type: ignore[no-untyped-def]
    hashes = np.array(values, dtype=np.uint64)
    order = np.array(shuffle.sample(range(len(values)), len(values)), dtype=np.int64)
    one, other = hamming.join(hashes, distance, 1).group, hamming.join(hashes[order], distance, 1).group
    together = one[:, None] == one[None]
    np.testing.assert_array_equal(together[np.ix_(order, order)], other[:, None] == other[None])


def test_bad_input() -> None:
    with pytest.raises(UserError, match="uint64, not int64"):
        hamming.join(np.zeros(3, np.int64), 8)
    with pytest.raises(UserError, match="distance 11"):
        hamming.join(np.zeros(3, np.uint64), 11)
