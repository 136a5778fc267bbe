"""Subsets: nested, even over every level, independent of the order of images; density against all pairs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terrasieve import manifest
from terrasieve.curate import subset
from terrasieve.keyed import numpy_generator


def draw(stream: str = "", seed: int = 0) -> np.random.Generator:
    return numpy_generator(seed, f"test-subset-{stream}")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 120),
    coarse=st.integers(1, 5),
    fine=st.integers(1, 4),
    missing=st.booleans(),
)
def test_every_share_is_even_over_every_level(seed: int, n: int, coarse: int, fine: int, missing: bool) -> None:
    random = draw("even", seed)
    leaf = random.integers(coarse * fine, size=n)
    levels = [leaf // fine, leaf]
    score = random.random(n).round(1)  # with ties
    if missing:
        score[random.random(n) < 0.1] = np.nan
    ids = random.permutation(n).astype(np.uint64)
    rank = subset.ranks(score, ids, levels)
    assert sorted(rank) == list(range(n))
    order = np.argsort(rank)
    assert not np.isnan(score[order[: np.isfinite(score).sum()]]).any(), "what cannot be judged comes last"
    judged = np.isfinite(score)
    for most in range(1, judged.sum() + 1):
        chosen = np.zeros(n, bool)
        chosen[order[:most]] = True
        for above, level in zip([np.zeros(n, int), *levels], levels, strict=False):
            for parent in np.unique(above):
                check_even(chosen, level, above == parent, judged)
        for cluster in np.unique(leaf):
            here = judged & (leaf == cluster)
            if chosen[here].any() and not chosen[here].all():
                assert score[here & chosen].min() >= score[here & ~chosen].max()


def check_even(chosen: np.ndarray, level: np.ndarray, within: np.ndarray, judged: np.ndarray) -> None:
    """A cluster that has images left is not more than one behind any of its siblings."""
    clusters = np.unique(level[within & judged])
    taken = np.array([(chosen & (level == c)).sum() for c in clusters])
    left = np.array([(judged & ~chosen & (level == c)).any() for c in clusters])
    if left.any():
        assert taken[left].min() >= taken.max() - 1


def test_ranks_do_not_depend_on_the_order_of_images() -> None:
    random = draw("order")
    n = 200
    score, ids, leaf = (
        random.integers(3, size=n).astype(float),
        random.permutation(n).astype(np.uint64),
        random.integers(9, size=n),
    )
    rank = subset.ranks(score, ids, [leaf // 3, leaf], seed=4)
    turned = random.permutation(n)
    again = subset.ranks(score[turned], ids[turned], [(leaf // 3)[turned], leaf[turned]], seed=4)
    assert (rank[turned] == again).all()
    assert (subset.ranks(score, ids, [leaf // 3, leaf], seed=5) != rank).any(), "equals are ordered by the seed"


def test_density_equals_all_pairs() -> None:
    points = draw("density").normal(size=(150, 12)).astype(np.float16)
    points[:40] = points[0] + 0.01 * points[:40]
    found = subset.density(points, 5)
    unit = points.astype(float) / np.linalg.norm(points.astype(float), axis=1, keepdims=True)
    naive = []
    for row in range(len(unit)):
        cosine = sorted((float(unit[row] @ unit[other]) for other in range(len(unit)) if other != row), reverse=True)
        naive.append(np.mean(cosine[:5]))
    np.testing.assert_allclose(found, naive, atol=1e-5)
    assert found[:40].min() > found[40:].max()
    np.testing.assert_allclose(subset.density(points[:3], 5), subset.density(points[:3], 2), atol=1e-6)


def test_density_by_clusters_is_close_and_never_above() -> None:
    random = draw("probes")
    centres = random.normal(size=(30, 16))
    points = (centres[random.integers(30, size=3000)] + 0.3 * random.normal(size=(3000, 16))).astype(np.float32)
    exact, found = subset.density(points, 10), subset.density(points, 10, exact=100)
    assert (found <= exact + 1e-5).all()
    assert np.abs(found - exact).mean() < 0.005


def test_an_image_without_an_embedding_has_no_density() -> None:
    points = draw("nan").normal(size=(20, 4)).astype(np.float32)
    points[3], points[7] = np.nan, 0
    found = subset.density(points, 2)
    assert np.flatnonzero(np.isnan(found)).tolist() == [3, 7]


def test_clusters_are_found_and_nested() -> None:
    random = draw("clusters")
    truth = np.repeat(np.arange(6), [200, 20, 20, 20, 20, 20])
    points = (np.eye(6)[truth] + 0.05 * random.normal(size=(300, 6))).astype(np.float32)
    levels, centres = subset.clusters(points, [2, 30], seed=1)
    coarse, fine = levels
    assert centres.shape[0] == 30
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-5)
    assert len(np.unique(coarse)) <= 2
    for cluster in np.unique(fine):
        assert len(np.unique(coarse[fine == cluster])) == 1
        assert len(np.unique(truth[fine == cluster])) == 1
    again, _ = subset.clusters(points, [2, 30], seed=1)
    assert (again[1] == fine).all()


def test_balance_takes_from_rare_kinds_what_random_does_not() -> None:
    random = draw("rare")
    truth = np.repeat(np.arange(4), [970, 10, 10, 10])
    points = (np.eye(4)[truth] + 0.05 * random.normal(size=(1000, 4))).astype(np.float32)
    ids = random.permutation(1000).astype(np.uint64)
    levels, _ = subset.clusters(points, [4, 16], seed=0)
    nothing = np.zeros(1000)
    taken = [(truth[subset.ranks(nothing, ids, how) < 40] > 0).sum() for how in (levels, [])]
    assert taken[0] >= 15 > taken[1]


def test_cells_are_nested_and_of_equal_area() -> None:
    random = draw("cells")
    lon, z = random.uniform(-180, 180, 100_000), random.uniform(-1, 1, 100_000)
    lat = np.degrees(np.arcsin(z))
    levels = subset.cells(lon, lat, np.zeros(100_000, np.int64))
    for above, level in pairwise(levels):
        pairs = np.unique(np.stack([level, above], axis=1), axis=0)
        assert len(pairs) == len(np.unique(level))
    counts = np.unique(levels[1], return_counts=True)[1]  # 4 degrees divide the globe
    assert counts.std() < 1.3 * np.sqrt(counts.mean())
    edge = subset.cells(np.array([180.0, -180.0, np.nan, np.nan]), np.array([90.0, 90.0, 1, 1]), np.array([0, 0, 1, 2]))
    assert edge[0][0] == edge[0][1] and edge[0][2] != edge[0][3], "unplaced images share a cell per source"


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_subset_keeps_its_share_and_says_why_not_the_rest(small_manifest: Path, tmp_path: Path, share: float) -> None:
    source = manifest.read(small_manifest)
    n = len(source)
    rank = draw("write").permutation(n)
    rank[rank == n - 1], unreadable = -1, int(np.flatnonzero(rank == n - 1)[0])
    result = subset.write(small_manifest, tmp_path / "subset.parquet", rank, share, "hog")
    table = manifest.read(tmp_path / "subset.parquet")
    keep = table["keep"].to_numpy(zero_copy_only=False)
    assert keep.tolist() == ((rank >= 0) & (rank < round(share * (n - 1)))).tolist()
    assert table["reason"][unreadable].as_py().startswith("unreadable: ")
    gone = table.filter(pc.invert(table["keep"]))["reason"].to_pylist()
    assert sum(reason.startswith("subset: rank ") for reason in gone) == n - 1 - keep.sum()
    assert result.kept == keep.sum()
    again = subset.write(tmp_path / "subset.parquet", tmp_path / "again.parquet", rank[keep], 1.0, "hog")
    assert again.kept == keep.sum(), "rows that were dropped before stay as they were"
