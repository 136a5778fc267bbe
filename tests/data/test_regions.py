"""Regions and areas: exact regions anywhere on the globe, even areas, draws that follow the weights."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places_on_globe import globe, haversine_km, lopsided, made

from terrasieve import keyed
from terrasieve.data import regions
from terrasieve.data.batches import (
    GlobalBatches,
    MixedBatches,
    RegionalBatches,
)
from terrasieve.data.regions import Regions, equal_area_cells, weights_of


@pytest.mark.parametrize("radius_km", [1500.0, 6000.0])
@pytest.mark.parametrize("regions_of_a_batch", [1, 3])
def test_every_regional_batch_lies_within_its_radius(
    radius_km: float, regions_of_a_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lon, lat = globe(6000)
    centres: list[int] = []
    around = Regions.around
    monkeypatch.setattr(Regions, "around", lambda self, row: (centres.append(row), around(self, row))[1])
    drawn = made((lon, lat), RegionalBatches(radius_km=radius_km, regions=regions_of_a_batch))
    for step in range(40):
        centres.clear()
        rows = [row for _, row in drawn.of(step)]
        assert len(set(rows)) == 32
        parts = np.split(rows, np.linspace(0, 32, regions_of_a_batch + 1).astype(int)[1:-1])
        if len(centres) == regions_of_a_batch:
            for centre, part in zip(centres, parts, strict=True):
                assert part[0] == centre
                far = max(haversine_km(lon[centre], lat[centre], lon[row], lat[row]) for row in part)
                assert far <= radius_km
                assert far > radius_km / 3, "and they are not all next to each other"
    assert drawn.refused <= drawn.centres / 2


@pytest.mark.parametrize("centre", [(179.9, 10.0), (-180.0, -60.0), (33.0, 90.0), (0.0, -90.0), (12.0, 47.0)])
def test_a_region_holds_all_but_its_border(centre: tuple[float, float]) -> None:
    """Against all distances: nothing beyond the radius, everything within three quarters of it."""
    lon, lat = globe(20_000)
    lon[100], lat[100] = centre
    sorted_by_place = Regions(lon, lat, 900.0, np.ones(len(lon)))
    found = {int(r) for start, stop in sorted_by_place.around(100) for r in sorted_by_place._rows[start:stop]}
    apart = {
        row: haversine_km(*centre, lon[row], lat[row]) for row in range(len(lon)) if not math.isnan(lon[row] + lat[row])
    }
    assert max(apart[row] for row in found) <= 900
    assert {row for row, km in apart.items() if km <= 675} <= found
    assert len(found) > 0.75 * sum(km <= 900 for km in apart.values())


@settings(max_examples=12, deadline=None)
@given(st.floats(50, 15_000))
def test_cells_have_equal_areas(side_km: float) -> None:
    """Evenly spread places fall into cells evenly: a chi-square statistic of the order of its degrees of freedom."""
    i = np.arange(100_000)  # a Fibonacci lattice, more even than chance
    lat = np.degrees(np.arcsin(1 - 2 * (i + 0.5) / len(i)))
    cells = equal_area_cells(i * 137.50776405003785, lat, side_km)
    counts = np.bincount(cells)
    asked = 4 * math.pi * 6371.0088**2 / side_km**2
    assert len(counts) == max(round(asked), 1) or len(counts) >= 0.98 * asked
    if counts.mean() > 100:
        assert counts.min() > 0.75 * counts.mean() and counts.max() < 1.25 * counts.mean()


def test_cells_know_no_seam() -> None:
    lon = np.array([-180.0, 180.0, 540.0, 359.999, -0.001, 0.0])
    ring = equal_area_cells(lon, np.full(6, 5.0), 100.0)
    assert ring[0] == ring[1] == ring[2] and ring[3] == ring[4]
    assert ring[3] - ring[5] + 1 == pytest.approx(2 * math.pi * 63.71 * math.cos(math.radians(5)), abs=3)
    ends = equal_area_cells(np.array([10.0, 10.0]), np.array([90.0, -90.0]), 100.0)
    assert 0 <= ends[0] < 4 and ends[1] == pytest.approx(4 * math.pi * 63.71**2, abs=5)


@pytest.mark.parametrize(
    ("name", "balance"), [("global", 1), ("regional", 1), ("regional", 0), ("mixed", 1), ("mixed", 0)]
)
def test_dense_regions_are_not_drawn_more_often_where_areas_are_balanced(name: str, balance: float) -> None:
    kinds = {"global": GlobalBatches, "regional": RegionalBatches, "mixed": MixedBatches}
    places, steps = lopsided(), 600
    cells = equal_area_cells(*places, 100.0)
    occupied, thinly = len(set(cells.tolist())), len(set(cells[9000:].tolist()))
    share = thinly / occupied if balance else 300 / 9300
    assert share == pytest.approx(0.5 if balance else 0.032, abs=0.03)
    drawn = made(places, kinds[name](balance=balance, **({} if name == "global" else {"radius_km": 800})), 16)
    thin = [sum(row >= 9000 for _, row in drawn.of(step)) for step in range(steps)]
    error = math.sqrt(share * (1 - share) / (steps * (16 if name == "global" else 1)))  # a region is one draw
    assert sum(thin) / (16 * steps) == pytest.approx(share, abs=3 * error)
    if name == "regional":
        assert set(thin) == {0, 16}, "a batch is of one region"


def test_weights_are_those_of_a_loop() -> None:
    lon, lat = globe(500)
    cells = equal_area_cells(np.nan_to_num(lon), np.nan_to_num(lat), 2000.0)
    placed = [row for row in range(500) if not math.isnan(lon[row] + lat[row])]
    counts = Counter(cells[row] for row in placed)
    weights = weights_of(lon, lat, 2000.0, 0.5)
    assert all(weights[row] == pytest.approx(counts[cells[row]] ** -0.5) for row in placed)
    mean = np.mean([weights[row] for row in placed])
    assert all(weights[row] == pytest.approx(mean) for row in range(500) if row not in placed)


@pytest.mark.parametrize("listed", [0, 4096])
def test_draws_follow_the_weights(listed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs drawn without replacement come up as often as by hand: P(a then b) = w_a / W x w_b / (W - w_a)."""
    monkeypatch.setattr(regions, "_LISTED", listed)
    lon, lat = np.linspace(0, 1, 12), np.zeros(12)
    weights = np.arange(1, 13) / 7
    sorted_by_place = Regions(lon, lat, 500.0, weights)
    stretches = np.array([[0, 3], [5, 7], [10, 12]])
    inside = [int(r) for start, stop in stretches for r in sorted_by_place._rows[start:stop]]
    draw, taken = keyed.numpy_generator(3, "test"), np.zeros(12, bool)
    taken[inside[1]] = True
    free = [row for row in inside if not taken[row]]
    seen: Counter[tuple[int, ...]] = Counter()
    for _ in range(6000):
        rows = sorted_by_place.draw(draw, stretches, 2 if listed else 1, taken)
        assert rows is not None
        seen[tuple(rows.tolist())] += 1
    total = sum(weights[row] for row in free)
    if listed:
        chances = {(a, b): weights[a] / total * weights[b] / (total - weights[a]) for a in free for b in free if a != b}
    else:
        chances = {(a,): weights[a] / total for a in free}
    assert set(seen) <= set(chances)
    chi_square = sum((seen[key] - 6000 * p) ** 2 / (6000 * p) for key, p in chances.items())
    freedom = len(chances) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)
    assert sorted_by_place.draw(draw, stretches, len(free) + 1, taken) is None
    everything = sorted_by_place.draw(draw, stretches, len(free), taken)
    assert everything is not None and sorted(everything.tolist()) == sorted(free)
