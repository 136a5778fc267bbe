"""The ground of a chip, pixel by pixel: reflectance, land cover and relief shading, without objects or air.

Stands after cover, farms and sites, which paint one pixel each; before objects and atmosphere. Every painter is a
function of world metres, so the loop has no state that a crop could change.
"""

from __future__ import annotations

import datetime
import math

import numpy as np
from numpy.typing import NDArray

from terrasieve.imagery.earth import materials as m
from terrasieve.imagery.earth import sites as s
from terrasieve.imagery.earth.cover import (
    Array,
    Pixel,
    bare_ground,
    blend,
    brighten,
    covered,
    grass,
    sea,
    still_water,
    trees,
    wild,
)
from terrasieve.imagery.earth.farms import field
from terrasieve.imagery.earth.grid import Grid
from terrasieve.imagery.earth.noise import compiled, fractal, kernel, lattice, noise, step, unit, whole
from terrasieve.imagery.earth.planet import (
    BASE,
    FIELDS,
    MOIST,
    PEOPLE,
    ROUGH,
    SUMMER,
    SUN_X,
    SUN_Y,
    SUN_Z,
    TEMP,
    Nodes,
    across,
    along,
)
from terrasieve.imagery.earth.terrain import fresh_water

Mask = NDArray[np.uint8]
NATURE, SPARSE, DENSE, PORT = 0, 1, 2, 3  # zones: what the scene label looks at besides land cover


@compiled
def _kept(i: int, j: int, axis: int, site: Array, key: int) -> bool:
    """Tell whether a village has the street along an edge of its block lattice."""
    return unit(lattice(i, j, key + whole(site[s.HASH]) + 700 + axis)) < 0.62


@compiled
def _town(
    pixel: Pixel, table: Pixel, x: float, y: float, f: Array, season: Array, site: Array, inside: float, gsd_m: float,
    key: int,
) -> int:  # fmt: skip
    """Paint a settlement's ground between its buildings: streets, yards, gardens and parks."""
    dx, dy = x - site[s.X], y - site[s.Y]
    p, q = site[s.COS] * dx + site[s.SIN] * dy, site[s.COS] * dy - site[s.SIN] * dx
    size, dense = site[s.BLOCK], s.is_dense(site, inside)
    i, j = whole(p / size), whole(q / size)
    a, b = p - i * size, q - j * size
    bits = lattice(i, j, key + whole(site[s.HASH]))
    tone = noise(x / 37.0, y / 37.0, key + 701)
    park = unit(bits) < (0.07 if dense else 0.14)
    bare_ground(pixel, table, x, y, f, tone, key)
    grass(pixel, table, x, y, f, tone + 0.8, 0.95, key)
    if dense and not park:
        blend(pixel, table, m.CONCRETE if unit(bits, 1) > 0.6 else m.ASPHALT, 0.75)
        blend(pixel, table, m.GRAVEL, 0.3 * step(-0.2, 0.5, tone))
    leaf = (0.3 if park else 0.09 if dense else 0.2) * (0.6 + 0.8 * unit(bits, 2)) * step(0.08, 0.3, f[MOIST])
    trees(pixel, table, x, y, f, season, leaf * max(1.0 + 1.5 * tone, 0.0), gsd_m, key)
    half_p = site[s.STREET] + (3.5 if (dense and i % 4 == 0) else 0.0)
    half_q = site[s.STREET] + (3.5 if (dense and j % 4 == 0) else 0.0)
    edge_p, edge_q = min(a, size - a), min(b, size - b)
    if not dense:
        # A village keeps some of its streets only; the far edge of a block belongs to the next one.
        edge_p = edge_p if _kept(i + (2.0 * a > size), j, 1, site, key) else size
        edge_q = edge_q if _kept(i, j + (2.0 * b > size), 2, site, key) else size
    street = max(covered(half_p, edge_p, gsd_m), covered(half_q, edge_q, gsd_m))
    blend(pixel, table, m.GRAVEL, 0.5 * max(covered(half_p + 2.0, edge_p, gsd_m), covered(half_q + 2.0, edge_q, gsd_m)))
    blend(pixel, table, m.ASPHALT, 0.92 * street)
    if edge_p < half_p or edge_q < half_q:
        return m.ROAD
    return m.GRASS if park or not dense else m.PAVEMENT


@compiled
def _port(pixel: Pixel, table: Pixel, x: float, y: float, f: Array, site: Array, gsd_m: float, key: int) -> int:
    """Paint a harbour's ground: basins, piers with stacked containers, a breakwater and the yard behind."""
    dx, dy = x - site[s.X], y - site[s.Y]
    p, q = site[s.COS] * dx + site[s.SIN] * dy, site[s.COS] * dy - site[s.SIN] * dx
    part = s.harbour_part(p, q, site[s.RADIUS])
    if part == 0:
        sea(pixel, table, x, y, f, -25.0, gsd_m, key)
        blend(pixel, table, m.TURBID, 0.35)
        return m.SEA
    grain = noise(x / 45.0, y / 45.0, key + 711)
    if part == 2:
        blend(pixel, table, m.BARE_ROCK, 1.0)
        brighten(pixel, 0.9 + 0.5 * noise(x / 5.0, y / 5.0, key + 712))
        return m.ROCK
    blend(pixel, table, m.CONCRETE, 1.0)
    blend(pixel, table, m.ASPHALT, 0.35 + 0.3 * step(-0.5, 0.6, grain))
    lane = covered(6.0, q + 70.0, gsd_m) if part == 3 else 0.0
    blend(pixel, table, m.ASPHALT, lane)
    spacing = s.pier_spacing(site[s.RADIUS])
    off = p - spacing * math.floor(p / spacing + 0.5)
    if (part == 1 and abs(off) < 15.0 and q > 30.0) or (part == 3 and -60.0 < q < -20.0):
        bits = lattice(whole(p / 13.0), whole(q / 6.5), key + 713)
        if unit(bits) < 0.6:
            pick = unit(bits, 1)
            stack = (
                m.RUST if pick < 0.35 else m.BLUE_ROOF if pick < 0.65 else m.GREY_ROOF if pick < 0.85 else m.WHITE_ROOF
            )
            blend(pixel, table, stack, 0.8)
            brighten(pixel, 0.75 + 0.5 * unit(bits, 2))
    return m.ROAD if lane > 0.5 else m.PAVEMENT


@compiled
def _panels(pixel: Pixel, table: Pixel, x: float, y: float, f: Array, site: Array, gsd_m: float, key: int) -> int:
    """Paint a solar farm: rows of panels in fenced fields, on grass or sand."""
    tone = noise(x / 60.0, y / 60.0, key + 721)
    bare_ground(pixel, table, x, y, f, tone, key)
    grass(pixel, table, x, y, f, tone, 0.6, key)
    a, b = x - site[s.X], y - site[s.Y]
    track = min(abs((a + 1e4) % 130.0 - 65.0), abs((b + 1e4) % 90.0 - 45.0))
    if track < 6.0:
        blend(pixel, table, m.GRAVEL, 0.6)
        return m.PAVEMENT
    blend(pixel, table, m.PANEL, 0.95 * (covered(2.0, (b + 1e4) % 6.5 - 3.25, gsd_m) if gsd_m < 4.0 else 0.62))
    return m.SOLAR


@compiled
def _open_land(
    pixel: Pixel, table: Pixel, x: float, y: float, f: Array, season: Array, calendar: Array, h: float, steep: float,
    water_m: float, roads: Array, gsd_m: float, year: int, key: int,
) -> int:  # fmt: skip
    """Paint land outside settlements: wild or farmed, beaches, and the roads through it."""
    if h < 4.5 and f[TEMP] > -3.0 and h < 2.2 + 1.6 * noise(x / 800.0, y / 800.0, key + 731):
        tone = noise(x / 25.0, y / 25.0, key + 732)
        blend(pixel, table, m.BEACH, 1.0)
        blend(pixel, table, m.SOIL, 0.5 * step(0.6, 0.0, h) + 0.2 * tone)
        return m.SAND
    farmed = s.settled(f[PEOPLE], x, y, key) * step(0.14, 0.08, steep) if f[PEOPLE] > 0.05 else 0.0
    if farmed > 0.5 and water_m > 18.0:
        bare_ground(pixel, table, x, y, f, 0.3, key)
        kind = field(pixel, table, x, y, f, season, calendar, gsd_m, year, key)
    else:
        wet = step(120.0, 10.0, water_m)
        kind = wild(pixel, table, x, y, f, season, h, steep, f[PEOPLE] * (1.0 - wet) - 0.5 * wet, gsd_m, key)
    axis_m = s.road_axis(x, y, roads, key)
    if axis_m < 8.0 + gsd_m:
        blend(pixel, table, m.GRAVEL, 0.6 * covered(7.0, axis_m, gsd_m))
        blend(pixel, table, m.ASPHALT, covered(4.5, axis_m, gsd_m))
        if axis_m < 4.5:
            return m.ROAD
    return kind


@compiled
def _snow(
    pixel: Pixel, table: Pixel, x: float, y: float, f: Array, h: float, kind: int, gsd_m: float, key: int
) -> None:
    """Whiten the ground in winter; trees and roads show through."""
    swing = 15.0 * step(26.0, 4.0, f[TEMP])
    warmth = f[TEMP] - 0.0065 * max(h, 0.0) + swing * f[SUMMER]
    if warmth > 2.0:
        return
    patches = fractal(x, y, 900.0, 4, 0.6, gsd_m, key + 741)
    share = step(0.0, -4.5, warmth + 2.5 * patches)
    blend(pixel, table, m.FRESH_SNOW, share * (0.3 if kind == m.FOREST else 0.45 if kind == m.ROAD else 0.88))


@compiled
def _relief_light(x: float, y: float, f: Array, gx: float, gy: float, gsd_m: float, key: int) -> float:
    """Return how bright the sun makes a slope, 1 on flat ground, with the grain of the ground when it is resolved."""
    # Low relief is hardly seen from above; soil, moisture and growth that follow it are.
    bold = 1.0 + 2.5 * step(350.0, 60.0, f[ROUGH])
    facing: float = f[SUN_Z] - bold * (gx * f[SUN_X] + gy * f[SUN_Y])
    light: float = facing / math.sqrt(1.0 + bold * (gx * gx + gy * gy)) / f[SUN_Z]
    light = float(min(max(0.22 + 0.78 * light, 0.2), 1.7))
    if gsd_m < 4.0:
        light *= 1.0 + 0.13 * fractal(x, y, 9.0, 4, 0.8, gsd_m, key + 750)
    return light


@kernel
def _ground(
    image: NDArray[np.float32], mask: Mask, zone: Mask, heights: Array, table: Pixel, season: Array, calendar: Array,
    found: Array, roads: Array, column: int, row: int, gsd_m: float, values: Array, ni: int, nj: int, year: int,
    key: int,
) -> None:  # fmt: skip
    f, pixel = np.empty(FIELDS), np.zeros(image.shape[0], np.float32)
    line = np.empty((values.shape[1], FIELDS))
    for r in range(image.shape[1]):
        y = -(row + r + 0.5) * gsd_m
        across(line, values, nj, y)
        for c in range(image.shape[2]):
            x = (column + c + 0.5) * gsd_m
            along(f, line, ni, x, FIELDS)
            h = heights[r + 1, c + 1]
            gx = (heights[r + 1, c + 2] - heights[r + 1, c]) / (2.0 * gsd_m)
            gy = (heights[r, c + 1] - heights[r + 2, c + 1]) / (2.0 * gsd_m)
            steep, half = math.sqrt(gx * gx + gy * gy), season[1 if y < 0.0 else 0]
            pixel[:] = np.float32(0.1)
            n, inside = s.owner(x, y, found, key) if found.shape[0] else (-1, 0.0)
            light = 1.0
            if n >= 0 and found[n, s.KIND] == s.HARBOUR and inside == 1.0:
                kind, place = _port(pixel, table, x, y, f, found[n], gsd_m, key), PORT
            elif h < 0.0:
                kind, place = sea(pixel, table, x, y, f, h, gsd_m, key), NATURE
            else:
                water_m = fresh_water(x, y, f, gsd_m, key) if f[BASE] > -60.0 else 1000.0
                place = NATURE
                if n < 0 or s.hillside(h, steep) or water_m < 12.0:
                    kind = _open_land(pixel, table, x, y, f, half, calendar, h, steep, water_m, roads, gsd_m, year, key)
                elif found[n, s.KIND] == s.SOLAR_FARM:
                    kind = _panels(pixel, table, x, y, f, found[n], gsd_m, key)
                else:
                    kind = _town(pixel, table, x, y, f, half, found[n], inside, gsd_m, key)
                    place = DENSE if s.is_dense(found[n], inside) else SPARSE
                if kind != m.SNOW:
                    _snow(pixel, table, x, y, f, h, kind, gsd_m, key)
                light = _relief_light(x, y, f, gx, gy, gsd_m, key)
                if water_m < 0.5 * gsd_m and kind != m.ROAD:
                    still_water(pixel, table, x, y, f, -water_m, gsd_m, key)
                    light = light if water_m > 0.0 else 1.0
                    kind = m.FRESH_WATER if water_m < 0.0 else kind
            mask[r, c], zone[r, c] = kind, place
            for b in range(pixel.size):
                image[b, r, c] = pixel[b] * np.float32(light)


def season_of(date: datetime.date) -> Array:
    """Return (2, 2): for north and south, how far leaves have turned and how far they have fallen, 0 to 1."""
    out = np.zeros((2, 2))
    for south in range(2):
        day = (date.timetuple().tm_yday + 183 * south) % 365
        out[south, 0] = max(0.0, math.cos((day - 296) / 36.0 * math.pi / 2)) if abs(day - 296) < 36 else 0.0
        out[south, 1] = min(max((day - 300) / 25.0, 0.0), 1.0) if day > 180 else min(max((125 - day) / 25.0, 0.0), 1.0)
    return out


def ground(
    grid: Grid,
    date: datetime.date,
    bands: tuple[str, ...],
    coarse: Nodes,
    heights: Array,
    found: Array,
    roads: Array,
    key: int,
) -> tuple[NDArray[np.float32], Mask, Mask]:
    """Paint a chip's ground.

    Returns:
        image: (C, H, W) float32 reflectance.
        mask: (H, W) uint8, indices of ``materials.LAND_COVER``.
        zone: (H, W) uint8, ``NATURE``, ``SPARSE``, ``DENSE`` or ``PORT``.
    """
    shape = (grid.size_px, grid.size_px)
    image, mask, zone = np.empty((len(bands), *shape), np.float32), np.empty(shape, np.uint8), np.empty(shape, np.uint8)
    _ground(
        image, mask, zone, heights, m.spectra(bands), season_of(date), m.crop_calendar(date), found, roads,
        grid.column, grid.row, grid.gsd_m, coarse.values, coarse.column, coarse.row, date.year, key,
    )  # fmt: skip
    return image, mask, zone
