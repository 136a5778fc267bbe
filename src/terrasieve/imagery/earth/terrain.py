"""Terrain: height, dunes, rivers and lakes, as functions of world metres.

Stands between the planet's coarse fields and the painters. Height is relief in octaves (ridged where the land is
young), and dunes; water below zero is sea. Rivers are zero contours of warped noise, whose distance is known without
a search. Source: Musgrave's ridged multifractal; contour distance |n| / |grad n| as in Quilez's notes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from terrasieve.imagery.earth.grid import Grid
from terrasieve.imagery.earth.noise import compiled, contour, fractal, kernel, noise, step
from terrasieve.imagery.earth.planet import BASE, DUNES, FIELDS, LAKES, MOIST, RIVERS, ROUGH, TEMP, Nodes, across, along

Array = NDArray[np.float64]

RELIEF_M = 9000.0  # longest wavelength of relief
RIVER_M = 15000.0
BROOK_M = 4200.0
DUNE_M = 650.0


@compiled
def relief(x: float, y: float, alpine: float, gsd_m: float, key: int) -> float:
    """Return relief, about -1 to 1; ``alpine`` 0 to 1 turns rolling hills into ridges."""
    total, weight, wave_m = 0.0, 1.0, RELIEF_M
    x, y = x / wave_m, y / wave_m
    if alpine > 0.0:  # bends the ridges, which else would follow smooth contours
        bend = 0.055 * alpine
        x, y = x + bend * noise(3.0 * x, 3.0 * y, key + 50), y + bend * noise(3.0 * x, 3.0 * y, key + 51)
    for octave in range(11):
        seen = min(0.5 * wave_m / gsd_m - 1.0, 1.0)
        if seen <= 0.0:
            break
        n = noise(x, y, key + octave)
        total += seen * weight * (n + alpine * (0.5 - 1.9 * math.sqrt(n * n + 0.0025) - n))
        x, y = 1.6 * x - 1.2 * y + 17.3, 1.2 * x + 1.6 * y - 9.1
        weight *= 0.46 + 0.02 * alpine
        wave_m *= 0.5
    return total


@compiled
def dunes(x: float, y: float, gsd_m: float, key: int) -> float:
    """Return the height in metres of transverse dunes: a long windward face and a short slip face."""
    wind = 2.0 * np.pi * (key % 97) / 97.0
    u = (x * math.cos(wind) + y * math.sin(wind)) / DUNE_M
    u += 0.9 * noise(x / 2600.0, y / 2600.0, key + 1) + 0.35 * noise(x / 700.0, y / 700.0, key + 2)
    t = u - math.floor(u)
    face = t / 0.72 if t < 0.72 else (1.0 - t) / 0.28
    height = 42.0 * face * face * (1.0 - 0.3 * face) * (0.75 + 0.5 * noise(x / 1500.0, y / 1500.0, key + 3))
    if gsd_m < 4.0:
        v = u * 44.0 + 0.5 * noise(x / 40.0, y / 40.0, key + 4)
        height += 0.22 * min(4.0 / gsd_m - 1.0, 1.0) * math.sin(2.0 * np.pi * v)
    return height


@compiled
def height(x: float, y: float, f: Array, gsd_m: float, key: int) -> float:
    """Return metres above the sea at a position whose coarse fields are ``f``."""
    if f[BASE] < -60.0 - 2.0 * f[ROUGH]:
        return float(f[BASE])  # the open sea, whose floor nobody sees
    alpine = step(250.0, 1100.0, f[ROUGH])
    h: float = f[BASE] + f[ROUGH] * relief(x, y, alpine, gsd_m, key)
    if f[DUNES] > 0.02:
        h += f[DUNES] * dunes(x, y, gsd_m, key + 100)
    return h


@compiled
def fresh_water(x: float, y: float, f: Array, gsd_m: float, key: int) -> float:
    """Return metres to the nearest river or lake shore, negative on the water; far away is cut off at 1000."""
    if f[ROUGH] > 900.0 or f[MOIST] < 0.12 or f[TEMP] < -11.0:
        return 1000.0
    bend_x = noise(x / 900.0, y / 900.0, key + 201)
    bend_y = noise(x / 900.0, y / 900.0, key + 202)
    wx, wy = x + 210.0 * bend_x, y + 210.0 * bend_y
    wet = step(0.12, 0.4, f[MOIST])
    calm = step(900.0, 400.0, f[ROUGH])
    distance = abs(contour(wx / RIVER_M, wy / RIVER_M, key + 205)) * RIVER_M
    if distance < 400.0:
        width_m = (20.0 + 130.0 * step(-0.6, 0.8, f[RIVERS])) * wet * calm
        distance -= width_m * (1.0 + 0.35 * noise(x / 500.0, y / 500.0, key + 204))
    brook_m = 9.0 * wet * calm - 1.0
    if brook_m > 0.0:
        distance = min(distance, abs(contour(wx / BROOK_M, wy / BROOK_M, key + 206)) * BROOK_M - brook_m)
    region = 0.7 * f[LAKES] + 1.1 * (f[MOIST] - 0.55) + 0.25 * step(6.0, -2.0, f[TEMP])
    if region > -0.1:
        level = 0.62 - 0.5 * min(region, 0.7)
        bowl = fractal(wx, wy, 3600.0, 3, 0.5, gsd_m, key + 210)
        distance = min(distance, (level - bowl) * 1100.0)
    return min(distance, 1000.0)


@kernel
def _heights(rows: int, left: int, top: int, gsd_m: float, values: Array, ni: int, nj: int, key: int) -> Array:
    out = np.empty((rows, rows))
    line, f = np.empty((values.shape[1], FIELDS)), np.empty(FIELDS)
    for r in range(rows):
        y = -(top + r + 0.5) * gsd_m
        across(line, values, nj, y)
        for c in range(rows):
            x = (left + c + 0.5) * gsd_m
            along(f, line, ni, x, DUNES + 1)
            out[r, c] = height(x, y, f, gsd_m, key)
    return out


def heights(grid: Grid, coarse: Nodes, key: int) -> Array:
    """Return (H + 2, W + 2) heights in metres: the chip's pixels and one more on every side, for slopes."""
    return _heights(
        grid.size_px + 2, grid.column - 1, grid.row - 1, grid.gsd_m, coarse.values, coarse.column, coarse.row, key
    )
