"""Drawing places: as many of every scene class, anywhere on the planet, on any day.

Stands after ``chip``. The class is drawn first; positions are then proposed from the coarse fields (or from the sites,
for towns, villages and harbours) and accepted when a preview of 24 x 24 pixels shows that class. Previews are points of
the same functions, so nearly every accepted place renders to the class it was drawn for.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from terrasieve.errors import UserError
from terrasieve.imagery.earth import planet, sites
from terrasieve.imagery.earth.chip import SCENES, Place, ground, world_key
from terrasieve.imagery.earth.grid import Grid, projection
from terrasieve.keyed import numpy_generator

PREVIEW_PX = 24
FIRST_DAY, LAST_DAY = datetime.date(2018, 1, 1), datetime.date(2024, 12, 31)
_SITE_OF = {"town": sites.TOWN, "village": sites.VILLAGE, "harbour": sites.HARBOUR}


def sample_places(
    n: int,
    seed: int = 0,
    *,
    gsd_m: float | Sequence[float] = 10.0,
    size_px: int = 96,
    bands: tuple[str, ...] = ("blue", "green", "red", "nir"),
    dtype: Literal["uint8", "uint16"] = "uint16",
    scenes: Sequence[str] = SCENES,
    series: int = 0,
) -> list[Place]:
    """Draw places whose scene classes are as frequent as each other.

    Args:
        n: how many.
        seed: of the world; give the same to ``render``.
        gsd_m: ground sample distance in metres, or several to choose from.
        size_px, bands, dtype: as in ``Place``.
        scenes: classes to draw from.
        series: another series gives other places of the same world.

    Returns:
        ``n`` places; the first ``k`` of them are those of a call with ``n = k``.

    Raises:
        UserError: a scene is unknown, or the world has no such place.
    """
    return [
        sample_place(i, seed, gsd_m=gsd_m, size_px=size_px, bands=bands, dtype=dtype, scenes=scenes, series=series)
        for i in range(n)
    ]


def sample_place(
    index: int,
    seed: int = 0,
    *,
    gsd_m: float | Sequence[float] = 10.0,
    size_px: int = 96,
    bands: tuple[str, ...] = ("blue", "green", "red", "nir"),
    dtype: Literal["uint8", "uint16"] = "uint16",
    scenes: Sequence[str] = SCENES,
    series: int = 0,
) -> Place:
    """Draw place ``index`` of :func:`sample_places`: a function of its arguments, whatever was drawn before."""
    unknown = [scene for scene in scenes if scene not in SCENES]
    if unknown or not scenes:
        raise UserError(f"sample_places: no scene {unknown or '(none asked)'}; choose from {', '.join(SCENES)}")
    choices = [float(gsd_m)] if isinstance(gsd_m, (int, float)) else [float(value) for value in gsd_m]
    rng = numpy_generator(seed, "earth.place", series, index)
    order = numpy_generator(seed, "earth.scenes", series, index // len(scenes)).permutation(len(scenes))
    wanted = scenes[order[index % len(scenes)]]
    day = FIRST_DAY + datetime.timedelta(days=int(rng.integers((LAST_DAY - FIRST_DAY).days + 1)))
    gsd = choices[int(rng.integers(len(choices)))]
    model = Place(0.0, 0.0, gsd, day, bands, size_px, dtype)
    world = world_key(seed)
    for lon, lat in _proposals(wanted, rng, world):
        place = replace(model, lon=lon, lat=lat)
        if _preview(place, world) == wanted:
            return place
    raise UserError(f"sample_places: world {seed} shows no {wanted!r} at {gsd} m; try another seed or scene")


def _preview(place: Place, world: int) -> str:
    """Return the scene class of a coarse rendering that covers the same ground."""
    coarse_gsd_m = place.gsd_m * max(place.size_px / PREVIEW_PX, 1.0)
    small = replace(place, gsd_m=min(coarse_gsd_m, 1000.0), size_px=min(place.size_px, PREVIEW_PX), bands=("red",))
    grid = Grid.around(small.lon, small.lat, small.gsd_m, small.size_px)
    return ground(small, grid, world).label


def _proposals(wanted: str, rng: np.random.Generator, world: int) -> Iterator[tuple[float, float]]:
    """Yield positions, degrees, that the coarse fields do not rule out."""
    for _ in range(120):
        lon = rng.uniform(-180.0, 180.0, 256)
        lat = np.degrees(np.arcsin(rng.uniform(-1.0, 1.0, 256)))
        fields = planet.fields(lon, lat, FIRST_DAY, world)
        for index in np.flatnonzero(_possible(wanted, fields))[:24]:
            if wanted in _SITE_OF:
                yield from _near_site(float(lon[index]), float(lat[index]), _SITE_OF[wanted], rng, world)
            else:
                yield float(lon[index]), float(lat[index])


def _possible(wanted: str, f: NDArray[np.float64]) -> NDArray[np.bool_]:
    base, rough, temp, moist, people = (f[:, column] for column in range(5))
    shore = np.abs(base) < 20.0 + 0.3 * np.minimum(rough, 300.0)
    rules: dict[str, NDArray[np.bool_]] = {
        "ocean": base < -120.0,
        "coast": shore,
        "harbour": (np.abs(base) < 60.0) & (rough < 500.0) & (temp > -2.0) & (people > 0.05),
        "town": (base > 10.0) & (people > 0.35),
        "village": (base > 10.0) & (people > 0.2),
        "farmland": (base > 10.0) & (people > 0.2),
        "inland_water": (base > 10.0) & (rough < 500.0) & (moist > 0.25) & (temp > -11.0),
        "forest": (base > 10.0) & (moist > 0.38) & (temp > -4.0),
        "grassland": (base > 10.0) & (moist > 0.26) & (rough < 900.0),
        "desert": (base > 10.0) & (moist < 0.25) & (rough < 700.0),
        "mountain": (base > 10.0) & (rough > 700.0),
        "snow_ice": (base > -20.0) & ((temp < -11.0) | (rough > 900.0)),
    }
    return rules[wanted]


def _near_site(
    lon: float, lat: float, kind: int, rng: np.random.Generator, world: int
) -> Iterator[tuple[float, float]]:
    """Yield a position in the first site of a kind within some kilometres."""
    grid = Grid.around(lon, lat, 100.0, 160)
    coarse = planet.nodes(grid, FIRST_DAY, world)
    found = sites.sites(grid, coarse, world + 1009 * (grid.zone + 1))
    for site in found[found[:, sites.KIND] == kind][:1]:
        p, q = rng.uniform(-0.6, 0.6, 2) * site[sites.RADIUS]
        if kind == sites.HARBOUR:
            q = rng.uniform(-150.0, 350.0)
        x_m = site[sites.X] + p * site[sites.COS] - q * site[sites.SIN]
        y_m = site[sites.Y] + p * site[sites.SIN] + q * site[sites.COS]
        near_lon, near_lat = projection(grid.zone)(x_m, y_m, inverse=True)
        yield (near_lon + 180.0) % 360.0 - 180.0, near_lat
