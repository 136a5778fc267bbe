"""Farmland: parcels, crops through the year, centre pivots, tracks and hedges.

Stands beside natural cover. A parcel comes from splitting a square of its district again and again at hashed places
(a k-d tree walked down from the pixel), so its outline, its distance to the edge and its crop need no list.
"""

from __future__ import annotations

import math

import numpy as np

from terrasieve.imagery.earth import materials as m
from terrasieve.imagery.earth.cover import Array, Pixel, blend, brighten, covered, grass, trees
from terrasieve.imagery.earth.noise import compiled, head, lattice, noise, step, unit, whole
from terrasieve.imagery.earth.planet import MOIST

DISTRICT_M = 5200.0


@compiled
def split(u: float, v: float, side_m: float, least_m: float, levels: int, bits: np.uint64):  # type: ignore[no-untyped-def]
    """Split a square down to the cell that holds (u, v).

    Args:
        u, v: position in the square, 0 to ``side_m``.
        side_m: the square's side.
        least_m: a cell whose longer side is below this is not split.
        levels: the deepest level.
        bits: the square's hash.

    Returns:
        (u0, v0, u1, v1, bits): the cell's bounds and its own hash.
    """
    u0, v0, u1, v1 = 0.0, 0.0, side_m, side_m
    for level in range(levels):
        wide = u1 - u0 >= v1 - v0
        if max(u1 - u0, v1 - v0) < least_m * (1.0 + 0.8 * unit(bits, 3)):
            break
        cut = 0.34 + 0.32 * unit(bits, 1)
        if wide:
            edge = u0 + cut * (u1 - u0)
            upper = u >= edge
            u0, u1 = (edge, u1) if upper else (u0, edge)
        else:
            edge = v0 + cut * (v1 - v0)
            upper = v >= edge
            v0, v1 = (edge, v1) if upper else (v0, edge)
        bits = lattice(head(bits, 20), level, 2 if upper else 1)
    return u0, v0, u1, v1, bits


@compiled
def _crop(pixel: Pixel, table: Pixel, growth: Array, bits: np.uint64, row_m: float, warp: float, gsd_m: float) -> None:
    """Paint a crop over the soil: as green, as ripe and as uneven as the calendar and the parcel's hash say."""
    green, straw, bloom = growth[0], growth[1], growth[2]
    blend(pixel, table, m.DARK_SOIL, 0.8 * unit(bits, 1) * (unit(bits, 2) > 0.5))
    green *= 0.85 + 0.3 * unit(bits, 1) + 0.15 * warp
    blend(pixel, table, m.GREEN_CROP, min(green, 1.0))
    blend(pixel, table, m.GREEN_GRASS, 0.5 * min(green, 1.0) * unit(bits, 3))
    blend(pixel, table, m.STRAW, straw)
    blend(pixel, table, m.BLOOM, bloom)
    brighten(pixel, 0.88 + 0.28 * unit(bits, 2) + 0.05 * warp)
    if gsd_m < 2.5:
        rows = math.sin(2.0 * np.pi * row_m / (1.6 + 1.8 * unit(bits, 3)))
        tramline = covered(0.7, (row_m + 1e6) % 24.0 - 12.0, gsd_m)
        brighten(pixel, 1.0 + 0.1 * rows * step(2.5, 0.6, gsd_m) - 0.25 * tramline * min(green + straw, 1.0))


@compiled
def field(
    pixel: Pixel, table: Pixel, x: float, y: float, f: Array, season: Array, calendar: Array, gsd_m: float, year: int,
    key: int,
) -> int:  # fmt: skip
    """Paint farmland over bare ground; the crop of a parcel changes from year to year, its outline never."""
    bend = 420.0 * noise(x / 4000.0, y / 4000.0, key + 501)
    district = lattice(whole((x + bend) / DISTRICT_M), whole((y - bend) / DISTRICT_M), key + 502)
    angle = np.pi * unit(district) * (unit(district, 3) > 0.3)
    cos, sin = math.cos(angle), math.sin(angle)
    arid = f[MOIST] < 0.34
    curl = 0.0 if unit(district, 2) > 0.6 or arid else 24.0 * noise(x / 420.0, y / 420.0, key + 503)
    u, v = cos * x + sin * y + curl, cos * y - sin * x + curl
    side_m = 800.0 if arid else 900.0 + 700.0 * unit(district, 1)
    i, j = whole(u / side_m), whole(v / side_m)
    a, b = u - i * side_m, v - j * side_m
    square = lattice(i, j, key + head(district, 40))
    warp = noise(x / 130.0, y / 130.0, key + 504)
    if arid and unit(square, 2) < 0.75:
        return _pivot(pixel, table, a, b, side_m, f, calendar, square, warp, gsd_m, year, key)
    least_m = 70.0 + 380.0 * unit(district, 1) ** 2
    u0, v0, u1, v1, bits = split(a, b, side_m, least_m, 8, square)
    edge_m = min(min(a - u0, u1 - a), min(b - v0, v1 - b))
    use = unit(bits, 0)
    if use < 0.09 * step(0.25, 0.5, f[MOIST]):
        grass(pixel, table, x, y, f, warp, 0.9, key)
        trees(pixel, table, x, y, f, season, 0.93, gsd_m, key)
        return m.FOREST
    turn = lattice(head(bits, 24), year, key + 505)
    crop = whole(m.CROPS * unit(turn, 1)) if unit(bits, 3) > 0.2 else 6 + whole(2 * unit(bits, 1))
    phase = whole(m.PHASES * unit(turn, 2))
    along = a if v1 - v0 > u1 - u0 else b
    _crop(pixel, table, calendar[1 if y < 0.0 else 0, crop, phase], bits, along, warp, gsd_m)
    if unit(district, 3) < 0.45:
        hedge = covered(3.5, edge_m, gsd_m) * step(-0.4, 0.1, noise(x / 90.0, y / 90.0, key + 506))
        if hedge > 0.0:
            trees(pixel, table, x, y, f, season, 0.9 * hedge, gsd_m, key)
    else:
        blend(pixel, table, m.GRAVEL if unit(district, 2) > 0.5 else m.DRY_GRASS, 0.7 * covered(2.2, edge_m, gsd_m))
    return m.CROP


@compiled
def _pivot(
    pixel: Pixel, table: Pixel, a: float, b: float, side_m: float, f: Array, calendar: Array, square: np.uint64,
    warp: float, gsd_m: float, year: int, key: int,
) -> int:  # fmt: skip
    """Paint a centre-pivot circle (or the dry corner outside it) in its square."""
    da, db = a - 0.5 * side_m, b - 0.5 * side_m
    r = math.sqrt(da * da + db * db)
    inside = min(max((0.47 * side_m - r) / gsd_m + 0.5, 0.0), 1.0)
    grass(pixel, table, a, b, f, warp, 0.35, key)
    if inside <= 0.0:
        return m.GRASS
    half = whole(da > 0.0) if unit(square, 3) < 0.35 else 0
    turn = lattice(head(square, 24) + half, year, key + 507)
    growth = calendar[0, whole(m.CROPS * unit(turn, 1)), whole(m.PHASES * unit(turn, 2))]
    before = pixel.copy()
    _crop(pixel, table, growth, turn, r, warp, gsd_m)
    wheel = covered(0.6, (r + 27.0) % 54.0 - 27.0, gsd_m)
    brighten(pixel, 1.0 - 0.2 * wheel)
    for c in range(pixel.size):
        pixel[c] = before[c] + np.float32(inside) * (pixel[c] - before[c])
    return m.CROP if inside > 0.5 else m.GRASS
