"""Rank correlation of features with places: against scipy image by image, and its edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from terrasieve.errors import UserError
from terrasieve.evaluate.geography import geographic_correlation
from terrasieve.imagery.geo import haversine_km
from terrasieve.keyed import numpy_generator


def scattered(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = numpy_generator(seed, "places")
    return draw.uniform(-180, 180, count), np.degrees(np.arcsin(draw.uniform(-1, 1, count)))


def naive(features: np.ndarray, lon: np.ndarray, lat: np.ndarray, min_km: float, max_km: float) -> float:
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    found = []
    for i in range(len(lon)):
        distance = haversine_km(lon[i], lat[i], lon, lat).round(9)
        others = [j for j in range(len(lon)) if j != i and min_km <= distance[j] <= max_km]
        if len(others) >= 3 and np.ptp(distance[others]) > 0:
            found.append(spearmanr((unit[others] @ unit[i]).round(12), distance[others]).statistic)
    return float(np.mean(found))


@pytest.mark.parametrize(("min_km", "max_km"), [(0, 3000), (500, 8000), (0, 30000)])
def test_equals_spearman_of_scipy_image_by_image(min_km: float, max_km: float) -> None:
    lon, lat = scattered(60)
    lon[10:14], lat[10:14] = lon[9], lat[9]  # five images of one place: ties
    features = numpy_generator(1, "features").normal(size=(60, 5)) + np.stack([lon, lat, lat, lon, lon], 1) / 100
    features[20:24] = features[19]
    found = geographic_correlation(features, lon, lat, max_km, min_km=min_km, resamples=50)
    assert found.value == pytest.approx(naive(features, lon, lat, min_km, max_km), abs=1e-9)
    assert found.low < found.value < found.high


def test_perfect_reversed_and_unrelated_order() -> None:
    lon, lat = scattered(80)
    angles = np.radians(np.stack([lon, lat]))
    places = np.stack([np.cos(angles[1]) * np.cos(angles[0]), np.cos(angles[1]) * np.sin(angles[0]), np.sin(angles[1])])
    assert geographic_correlation(places.T, lon, lat, 30000).value == pytest.approx(-1)
    noise = geographic_correlation(numpy_generator(0, "noise").normal(size=(80, 8)), lon, lat, 30000)
    assert noise.low < 0 < noise.high
    assert geographic_correlation(np.ones((80, 3)), lon, lat, 30000).value == 0  # a collapsed encoder


def test_images_without_a_place_take_no_part() -> None:
    lon, lat = scattered(40)
    features = torch.from_numpy(numpy_generator(0, "noise").normal(size=(43, 4))).float()
    with_gaps = geographic_correlation(features, [*lon, np.nan, 3, np.nan], [*lat, 3, np.nan, np.nan], 5000)
    assert with_gaps == geographic_correlation(features[:40], lon, lat, 5000)
    nothing = geographic_correlation(features, np.full(43, np.nan), np.full(43, np.nan))
    assert np.isnan(nothing.value)
    assert nothing.pairs == 0


def test_many_images_are_drawn_and_the_draw_is_keyed() -> None:
    lon, lat = scattered(300)
    features = numpy_generator(0, "noise").normal(size=(300, 4))
    first, same, other = (
        geographic_correlation(features, lon, lat, 30000, most=100, seed=seed, resamples=0) for seed in (0, 0, 1)
    )
    assert first.images == 100
    assert first.value == same.value != other.value


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="3 features for 2"):
        geographic_correlation(np.ones((3, 2)), [0, 1], [0, 1])
    with pytest.raises(UserError, match="min_km"):
        geographic_correlation(np.ones((2, 2)), [0, 1], [0, 1], 5, min_km=5)
    with pytest.raises(UserError, match="swapped"):
        geographic_correlation(np.ones((2, 2)), [0, 1], [0, 120])
