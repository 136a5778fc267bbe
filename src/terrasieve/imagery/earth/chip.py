"""Place and Chip: what is asked of the procedural Earth, and what comes back with its exact ground truth.

Puts the parts of the package in order: grid, coarse fields, heights, sites, ground, objects, atmosphere. The world is
a function of (seed, zone, metres, date); see ``docs/earth.md``.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from terrasieve.errors import UserError
from terrasieve.imagery.earth import atmosphere, draw, materials, objects, planet, sites, surface, terrain
from terrasieve.imagery.earth.grid import Grid
from terrasieve.keyed import key

SCENES = (
    "ocean",
    "coast",
    "inland_water",
    "forest",
    "grassland",
    "farmland",
    "desert",
    "mountain",
    "snow_ice",
    "town",
    "village",
    "harbour",
)
LABEL_SHARE = 0.04  # a land cover is among a chip's labels from this share of its pixels on
RGB = ("red", "green", "blue")


@dataclass(frozen=True)
class Place:
    """Where, when and how to look.

    Attributes:
        lon: degrees east of the centre, EPSG:4326.
        lat: degrees north of the centre.
        gsd_m: ground sample distance, metres, 0.1 to 1000.
        date: day of the acquisition, 10:30 local solar time.
        bands: names out of ``materials.BANDS``, in the order of the image's channels.
        size_px: width and height.
        dtype: "uint16" (reflectance x 10 000, 0 is no data) or "uint8" (display values).

    Raises:
        UserError: a value is out of its range.
    """

    lon: float
    lat: float
    gsd_m: float = 10.0
    date: datetime.date = datetime.date(2023, 7, 1)
    bands: tuple[str, ...] = ("blue", "green", "red", "nir")
    size_px: int = 96
    dtype: Literal["uint8", "uint16"] = "uint16"

    def __post_init__(self) -> None:
        if not (-180.0 <= self.lon <= 180.0 and -90.0 <= self.lat <= 90.0):
            raise UserError(f"Place: lon, lat = {self.lon}, {self.lat} is not on Earth; use degrees, lon first")
        if not 0.1 <= self.gsd_m <= 1000.0:
            raise UserError(f"Place: gsd_m = {self.gsd_m}; the procedural Earth has detail for 0.1 to 1000 m")
        if self.size_px < 1:
            raise UserError(f"Place: size_px = {self.size_px}; give at least 1")
        if self.dtype not in ("uint8", "uint16"):
            raise UserError(f"Place: dtype = {self.dtype!r}; choose uint8 or uint16")
        materials.spectra(self.bands)


class Box(NamedTuple):
    """An object of a chip.

    Attributes:
        name: its land cover: "building", "ship" or "tank".
        xyxy: left, top, right, bottom in pixels (0, 0 is the outer corner of the first), cut at the chip's edges.
        obb: centre x, centre y, width, height in pixels and the angle in radians of the width's side from the x axis,
            clockwise as seen, in [-pi/2, pi/2); not cut.
    """

    name: str
    xyxy: tuple[float, float, float, float]
    obb: tuple[float, float, float, float, float]


@dataclass(frozen=True)
class Chip:
    """A rendered place with its ground truth.

    Attributes:
        place: what was asked.
        grid: the pixels' place in their zone: ``grid.footprint()``, ``grid.column``, ``grid.row``.
        image: (C, H, W) uint8 or uint16.
        mask: (H, W) uint8, index into ``materials.LAND_COVER``; the ground, also under cloud and snow.
        cloud: (H, W) bool, True where cloud hides the ground.
        label: the scene class, one of ``SCENES``.
        labels: land covers with at least ``LABEL_SHARE`` of the pixels, and object classes present, by name.
        boxes: objects that hold at least one pixel centre.
        crs: "EPSG:..." of ``transform`` and ``bounds``.
        transform: affine (a, b, c, d, e, f) as ``rasterio.Affine`` takes it.
        bounds: left, bottom, right, top in metres.
        lon, lat: degrees of the actual centre, at most half a pixel from the asked one.
    """

    place: Place
    grid: Grid = field(repr=False)
    image: NDArray[np.uint8] | NDArray[np.uint16] = field(repr=False)
    mask: NDArray[np.uint8] = field(repr=False)
    cloud: NDArray[np.bool_] = field(repr=False)
    label: str
    labels: tuple[str, ...]
    boxes: tuple[Box, ...] = field(repr=False)
    crs: str
    transform: tuple[float, float, float, float, float, float]
    bounds: tuple[float, float, float, float]
    lon: float
    lat: float


def world_key(seed: int) -> int:
    """Return the key that the world's kernels hash with."""
    return key(seed, "earth") & 0x3FFFFFFF


class Ground(NamedTuple):
    """A chip before the sky is put over it: float32 reflectance, mask, scene label and the objects' rows."""

    image: NDArray[np.float32]
    mask: NDArray[np.uint8]
    label: str
    counts: NDArray[np.intp]
    coarse: planet.Nodes
    things: NDArray[np.float64]


def ground(place: Place, grid: Grid, world: int) -> Ground:
    """Render the ground of a grid's pixels with its objects, in the world of a :func:`world_key`."""
    coarse = planet.nodes(grid, place.date, world)
    local = world + 1009 * (grid.zone + 1)
    found = sites.sites(grid, coarse, local)
    heights, roads = terrain.heights(grid, coarse, local), sites.roads(grid, coarse, local)
    image, mask, zone = surface.ground(grid, place.date, place.bands, coarse, heights, found, roads, local)
    things = objects.objects(grid, place.date.toordinal(), coarse, found, local)
    draw.draw(image, mask, grid, place.bands, coarse, things, local)
    counts = np.bincount(mask.ravel(), minlength=len(materials.LAND_COVER))
    # Bare ground counts as mountain in a range and as desert elsewhere.
    rows, columns = coarse.values.shape[:2]
    is_high = bool(coarse.values[rows // 2, columns // 2, planet.ROUGH] > 700.0)
    area_km2 = (place.size_px * place.gsd_m / 1000.0) ** 2
    label = scene(counts, np.bincount(zone.ravel(), minlength=4), area_km2, is_high)
    return Ground(image, mask, label, counts, coarse, things)


def render(place: Place, seed: int = 0) -> Chip:
    """Render a place of the world ``seed``.

    Returns:
        The chip; equal arguments give equal bits, in any process. Two chips of one zone (UTM or polar) and
        ``gsd_m`` share whole pixels where they overlap: always in ``mask`` (but for ships on another date), and in
        ``image`` on the same date.
    """
    world = world_key(seed)
    grid = Grid.around(place.lon, place.lat, place.gsd_m, place.size_px)
    image, mask, label, counts, coarse, things = ground(place, grid, world)
    cloud = atmosphere.atmosphere(image, grid, place.bands, place.date, coarse, world)
    pixels = atmosphere.to_display(image) if place.dtype == "uint8" else atmosphere.to_reflectance_dn(image)
    lon, lat = grid.centre
    return Chip(
        place, grid, pixels, mask, cloud, label, _present(counts), _boxes(grid, things), grid.crs, grid.transform,
        grid.bounds, lon, lat,
    )  # fmt: skip


def _boxes(grid: Grid, things: NDArray[np.float64]) -> tuple[Box, ...]:
    columns = (column.tolist() for column in draw.boxes(grid, things))
    return tuple(Box(materials.LAND_COVER[k], tuple(flat), tuple(obb)) for k, flat, obb in zip(*columns, strict=True))


def _present(counts: NDArray[np.intp]) -> tuple[str, ...]:
    least = np.where(np.arange(counts.size) < materials.BUILDING, LABEL_SHARE * counts.sum(), 1)
    return tuple(np.array(materials.LAND_COVER)[counts >= np.maximum(least, 1)].tolist())


def scene(counts: NDArray[np.intp], zones: NDArray[np.intp], area_km2: float, is_high: bool) -> str:
    """Name the scene from pixels per land cover and per zone: works of people first, then water, then the rest."""
    share = counts / counts.sum()
    zone = zones / zones.sum()
    if zone[surface.PORT] > 0.25 or zone[surface.PORT] * area_km2 > 0.45:
        return "harbour"
    if zone[surface.DENSE] > 0.3:
        return "town"
    if zone[surface.DENSE] + zone[surface.SPARSE] > 0.12:
        return "village"
    if share[materials.SEA] + share[materials.SNOW] > 0.97 and share[materials.SEA] > 0.08:
        return "ocean" if share[materials.SEA] > 0.5 else "snow_ice"  # pack ice
    if share[materials.SEA] > 0.08:
        return "coast"
    if share[materials.FRESH_WATER] > 0.12:
        return "inland_water"
    bare = share[materials.ROCK] + share[materials.SAND]
    covers = {
        "snow_ice": share[materials.SNOW],
        "mountain": bare if is_high else 0.0,
        "desert": 0.0 if is_high else bare,
        "farmland": 1.2 * share[materials.CROP],
        "forest": share[materials.FOREST],
        "grassland": share[materials.GRASS] + share[materials.SHRUB],
    }
    return max(covers, key=lambda name: covers[name])
