"""Places on the globe, the distance of two, and batches drawn from them."""

from __future__ import annotations

import math

import numpy as np

from terrasieve import keyed
from terrasieve.data.batches import (
    GlobalBatches,
    PlacedBatches,
)
from terrasieve.data.loader import StepSampler

Places = tuple[np.ndarray, np.ndarray]


def haversine_km(lon1: float, lat1: float, lon2: float, lat2: float) -> float:
    """Measure a distance with the textbook's formula."""
    a, b, c, d = (math.radians(v) for v in (lon1, lat1, lon2, lat2))
    h = math.sin((d - b) / 2) ** 2 + math.cos(b) * math.cos(d) * math.sin((c - a) / 2) ** 2
    return 2 * 6371.0088 * math.asin(math.sqrt(min(h, 1)))


def globe(count: int, seed: int = 0) -> Places:
    """Return places evenly over the sphere, some of which are poles, on the antimeridian, or unknown."""
    draw = keyed.numpy_generator(seed, "test")
    lon, lat = draw.uniform(-180, 180, count), np.degrees(np.arcsin(draw.uniform(-1, 1, count)))
    lat[:3], lat[3:6], lon[6:60:2], lon[7:60:2] = 90, -90, 180, -180
    lon[60:70], lat[70:80] = np.nan, np.nan
    return lon, lat


def made(places: Places, how: GlobalBatches, batch_size: int = 32, seed: int = 5) -> PlacedBatches:
    rest = batch_size - how.regional(batch_size)
    shuffled = StepSampler(len(places[0]), seed, range(0), (0, rest), rest)
    return PlacedBatches(*places, how, seed, batch_size, shuffled.keys)  # type: ignore[arg-type]


def lopsided() -> Places:
    """9,000 images of one square of 5 degrees and 300 of another one, as large, on the other side."""
    draw = keyed.numpy_generator(1, "test")
    lon = np.concatenate([draw.uniform(0, 5, 9000), draw.uniform(175, 180, 300)])
    return lon, draw.uniform(-2.5, 2.5, 9300)
