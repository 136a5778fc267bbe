"""Natural cover: sea, shores, fresh water, deserts, forest, grass, rock and snow, painted pixel by pixel.

Stands between terrain and ``surface``. A painter blends material spectra into one pixel's reflectance and returns the
land-cover class. Thresholds of climate follow Whittaker's biome diagram, simplified by hand.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from terrasieve.imagery.earth import materials as m
from terrasieve.imagery.earth.noise import compiled, contour, crown, fractal, noise, step
from terrasieve.imagery.earth.planet import DUNES, IRON, MOIST, MUD, REGION, SUMMER, SUN_X, SUN_Y, TEMP

Array = NDArray[np.float64]
Pixel = NDArray[np.float32]  # (C,) reflectance


@compiled
def blend(pixel: Pixel, table: Pixel, material: int, weight: float) -> None:
    """Cover ``weight`` (0 to 1) of the pixel with a material."""
    if weight <= 0.0:
        return
    for b in range(pixel.size):
        pixel[b] += np.float32(weight) * (table[material, b] - pixel[b])


@compiled
def brighten(pixel: Pixel, factor: float) -> None:
    """Multiply the pixel's reflectance."""
    for b in range(pixel.size):
        pixel[b] *= np.float32(factor)


@compiled
def covered(half_m: float, distance_m: float, gsd_m: float) -> float:
    """Return how much of a pixel a straight band covers: half its width, and its axis's distance, in metres."""
    return min(max((half_m + 0.5 * gsd_m - abs(distance_m)) / gsd_m, 0.0), 1.0) * min(2.0 * half_m / gsd_m, 1.0)


@compiled
def sea(pixel: Pixel, table: Pixel, x: float, y: float, f: Array, h: float, gsd_m: float, key: int) -> int:
    """Paint the sea at depth ``-h`` metres: shallows, chlorophyll, waves, breakers and pack ice."""
    blend(pixel, table, m.DEEP, 1.0)
    bloom = fractal(x, y, 5000.0, 4, 0.6, gsd_m, key + 300)
    blend(pixel, table, m.TURBID, 0.35 * step(-0.3, 0.9, bloom) + 0.3 * step(-40.0, -4.0, h))
    clear = step(14.0, 24.0, f[TEMP])
    if h > -80.0:
        blend(pixel, table, m.SHALLOW, (0.25 + 0.75 * clear) * math.exp(h / (3.0 + 5.0 * clear)))
        blend(pixel, table, m.BEACH, 0.7 * step(-1.6, 0.0, h))
    swell = fractal(1.4 * x + 0.3 * y, 2.6 * y, 130.0, 6, 0.75, gsd_m, key + 310)
    brighten(pixel, 1.0 + 0.16 * swell)
    if gsd_m < 5.0:
        blend(pixel, table, m.FOAM, 0.5 * step(0.75, 1.2, swell) * step(5.0, 1.0, gsd_m))
    if h > -2.2:
        crest = step(0.0, 0.5, fractal(x, y, 160.0, 4, 0.7, gsd_m, key + 320))
        blend(pixel, table, m.FOAM, 0.8 * crest * step(-2.2, -1.2, h) * step(-0.2, -0.9, h))
    cold = -9.0 - f[TEMP] - 5.0 * f[SUMMER] * (1.0 if f[TEMP] > -16.0 else 0.3)
    if cold > -3.0:
        pack = min(0.22 * cold, 0.4) + fractal(x, y, 2600.0, 7, 0.62, gsd_m, key + 330)
        lead = abs(contour(x / 1500.0 + 0.2 * pack, y / 1500.0, key + 340)) * 1500.0
        floe = step(-0.06, 0.06, pack) * (1.0 - covered(22.0, lead, gsd_m))
        blend(pixel, table, m.ICE, floe)
        blend(pixel, table, m.FRESH_SNOW, floe * step(0.0, 0.7, pack))
        brighten(pixel, 1.0 + 0.12 * floe * swell)
        if f[TEMP] < -14.0 and floe > 0.5:
            return m.SNOW
    return m.SEA


@compiled
def still_water(pixel: Pixel, table: Pixel, x: float, y: float, f: Array, depth: float, gsd_m: float, key: int) -> None:
    """Paint a lake or river; ``depth`` is metres from the shore, the weight of the water is its cover of the pixel."""
    weight = min(max(0.5 + depth / gsd_m, 0.0), 1.0)
    mud = step(-0.5, 0.6, f[MUD]) * step(-6.0, 4.0, f[TEMP])
    blend(pixel, table, m.DEEP, weight)
    blend(pixel, table, m.TURBID, weight * (0.15 + 0.7 * mud))
    blend(pixel, table, m.SOIL, weight * 0.25 * step(25.0, 0.0, depth) * mud)
    frozen = step(-3.0, -7.0, f[TEMP] + 13.0 * f[SUMMER])
    blend(pixel, table, m.ICE, 0.85 * weight * frozen)


@compiled
def bare_ground(pixel: Pixel, table: Pixel, x: float, y: float, f: Array, tone: float, key: int) -> None:
    """Paint the soil or sand under whatever grows: its colour changes over tens of kilometres."""
    region = 0.6 * f[REGION] + 0.15 * tone
    iron = step(-0.4, 0.6, f[IRON])
    blend(pixel, table, m.SOIL, 1.0)
    blend(pixel, table, m.RED_SOIL, iron * step(12.0, 22.0, f[TEMP]))
    blend(pixel, table, m.DARK_SOIL, step(0.0, 0.5, region) * step(0.25, 0.5, f[MOIST]))
    dry = step(0.3, 0.12, f[MOIST] + 0.06 * tone)
    blend(pixel, table, m.DESERT, dry)
    blend(pixel, table, m.RED_DESERT, dry * iron)
    blend(pixel, table, m.PALE_DESERT, dry * step(0.0, 0.5, region))
    stones = (1.0 - f[DUNES]) * step(-0.1, 0.5, region + 0.5 * tone)
    blend(pixel, table, m.BROWN_ROCK, 0.75 * dry * stones)


@compiled
def trees(
    pixel: Pixel, table: Pixel, x: float, y: float, f: Array, season: Array, share: float, gsd_m: float, key: int
) -> None:
    """Paint trees over ``share`` of the pixel: crowns with lit and shaded sides when they are resolved."""
    if share < 0.004:
        return
    kind = f[TEMP] + 5.0 * noise(x / 1900.0, y / 1900.0, key + 410)
    weight, light = share, 1.0 + 0.45 * fractal(x, y, 75.0, 3, 0.9, gsd_m, key + 411)
    if gsd_m < 4.0:
        size_m = 7.0 if kind > 6.0 else 5.0
        top = crown(x / size_m, y / size_m, 0.25 + 0.75 * share, key + 412)
        lee = crown((x + 2.2 * f[SUN_X]) / size_m, (y + 2.2 * f[SUN_Y]) / size_m, 0.25 + 0.75 * share, key + 412)
        fine = step(4.0, 2.0, gsd_m)
        shade = 0.5 + 0.65 * top - 0.5 * lee + 0.25
        shadow = step(0.0, 0.3, lee) * (1.0 - step(0.0, 0.15, top))
        brighten(pixel, 1.0 - 0.6 * fine * shadow * min(2.0 * share, 1.0))
        weight += fine * (step(0.0, 0.15, top) * min(3.0 * share, 1.0) - weight)
        light += fine * (shade - light)
    if kind < 5.0:
        blend(pixel, table, m.CONIFER, weight)
    elif kind > 21.0:
        blend(pixel, table, m.JUNGLE if f[MOIST] > 0.55 else m.BROADLEAF, weight)
    else:
        blend(pixel, table, m.BROADLEAF, weight)
        mild = step(17.0, 11.0, f[TEMP])
        turned = step(0.0, 0.6, season[0] + 0.5 * noise(x / 300.0, y / 300.0, key + 413)) * (season[0] > 0.0)
        blend(pixel, table, m.AUTUMN, weight * mild * turned)
        blend(pixel, table, m.BARE_TREES, weight * mild * season[1])
    brighten(pixel, 1.0 + weight * (max(light, 0.25) - 1.0))


@compiled
def grass(pixel: Pixel, table: Pixel, x: float, y: float, f: Array, tone: float, share: float, key: int) -> None:
    """Paint grass over ``share`` of the pixel, as green as moisture and season allow."""
    rain = f[MOIST] + 0.12 * tone
    if f[TEMP] > 16.0:
        rain += 0.14 * f[SUMMER] - 0.06
    else:
        rain -= 0.1 * max(-f[SUMMER], 0.0) * step(12.0, 2.0, f[TEMP]) + 0.04 * max(f[SUMMER], 0.0)
    green = step(0.25, 0.55, rain)
    blend(pixel, table, m.DRY_GRASS, share)
    blend(pixel, table, m.GREEN_GRASS, share * green)
    blend(pixel, table, m.TUNDRA, share * step(0.0, -5.0, f[TEMP] + 2.0 * tone))


@compiled
def _wadi(pixel: Pixel, table: Pixel, x: float, y: float, gsd_m: float, key: int) -> None:
    """Paint the dry stream beds of a desert: pale, braided, with darker banks."""
    wx, wy = x + 160.0 * noise(x / 600.0, y / 600.0, key + 451), y + 160.0 * noise(x / 600.0, y / 600.0, key + 452)
    distance = abs(contour(wx / 1700.0, wy / 1700.0, key + 453)) * 1700.0
    width_m = 12.0 + 20.0 * noise(x / 2500.0, y / 2500.0, key + 454) + 22.0 * noise(x / 170.0, y / 170.0, key + 455)
    if width_m > 1.0 and distance < 90.0:
        blend(pixel, table, m.SCRUB, 0.3 * step(90.0, 20.0, distance))
        shown = step(-0.2, 0.4, noise(x / 1100.0, y / 1100.0, key + 456))
        blend(pixel, table, m.PALE_DESERT, 0.5 * shown * covered(width_m, distance, gsd_m))


@compiled
def _ice_sheet(
    pixel: Pixel, table: Pixel, x: float, y: float, share: float, stand: float, gsd_m: float, key: int
) -> None:
    """Paint permanent snow: wind-blown ridges, bare blue ice and crevasses."""
    wind = fractal(0.35 * x + 0.9 * y, 3.2 * (0.9 * x - 0.35 * y), 900.0, 6, 0.62, gsd_m, key + 460)
    blend(pixel, table, m.FRESH_SNOW, share)
    blend(pixel, table, m.ICE, share * step(0.1, 0.9, stand + 0.7 * wind))
    brighten(pixel, 1.0 + 0.2 * share * wind)
    broken = step(0.1, 0.5, noise(x / 3000.0, y / 3000.0, key + 470))
    if broken > 0.0:
        crack = contour(x / 210.0 + wind, y / 620.0, key + 471) * 210.0
        blend(pixel, table, m.ICE, share * broken * covered(5.0, crack, gsd_m))


@compiled
def wild(
    pixel: Pixel, table: Pixel, x: float, y: float, f: Array, season: Array, h: float, steep: float, clear: float,
    gsd_m: float, key: int,
) -> int:  # fmt: skip
    """Paint land without people; ``steep`` is the slope (rise over run), ``clear`` 0 to 1 thins the trees."""
    tone = fractal(x, y, 700.0, 7, 0.68, gsd_m, key + 420)
    stand = fractal(x, y, 2600.0, 4, 0.55, gsd_m, key + 430)
    warmth = f[TEMP] - 0.0065 * max(h, 0.0)
    bare_ground(pixel, table, x, y, f, tone, key)
    brighten(pixel, 1.0 + 0.26 * tone)
    if f[MOIST] < 0.3 and f[DUNES] < 0.5:
        _wadi(pixel, table, x, y, gsd_m, key)
    life = step(0.1, 0.34, f[MOIST] + 0.1 * tone) * step(-9.0, -3.0, warmth + 2.0 * tone)
    life *= 1.0 - step(0.5, 0.95, steep + 0.15 * tone)
    rock = (1.0 - life) * (step(0.22, 0.5, steep + 0.12 * tone) + step(-1.0, -5.0, warmth))
    blend(pixel, table, m.BARE_ROCK, min(rock, 1.0) * step(0.12, 0.3, f[MOIST]))
    blend(pixel, table, m.BROWN_ROCK, 0.85 * min(rock, 1.0) * step(0.3, 0.12, f[MOIST]))
    grass(pixel, table, x, y, f, tone, life * (0.92 - 0.3 * step(0.5, 0.25, f[MOIST]) * step(-0.3, 0.3, tone)), key)
    scrub = step(0.15, 0.55, tone + 0.3 * stand) * step(0.6, 0.3, f[MOIST])
    blend(pixel, table, m.SCRUB, 0.8 * life * scrub)
    wood = step(0.08, 0.42, 1.9 * (f[MOIST] - 0.4) + 0.6 * stand - 0.55 * clear + 0.1 * tone)
    wood *= life * step(-4.0, 0.5, warmth + tone)
    sparse = 0.3 * life * step(0.2, 0.35, f[MOIST]) * step(3.0, 8.0, warmth)
    bush = 1.0 if gsd_m < 4.0 else step(0.1, 0.7, noise(x / 26.0, y / 26.0, key + 440)) + 0.4
    trees(pixel, table, x, y, f, season, max(0.96 * wood, sparse * bush * step(-0.3, 0.4, tone)), gsd_m, key)
    ice = step(-10.5, -12.0, warmth + 3.0 * tone + 1.2 * stand - 4.0 * step(0.75, 0.35, steep))
    ice = max(ice, step(-14.0, -16.0, f[TEMP] + 1.5 * stand)) * (1.0 - 0.85 * step(0.55, 0.9, steep))
    if ice > 0.0:
        _ice_sheet(pixel, table, x, y, ice, stand, gsd_m, key)
    if ice > 0.5:
        return m.SNOW
    if wood > 0.5:
        return m.FOREST
    if life < 0.4:
        return m.SAND if rock < 0.5 and f[MOIST] < 0.3 else m.ROCK
    return m.SHRUB if scrub > 0.5 or warmth < -3.0 else m.GRASS
