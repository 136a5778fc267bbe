"""Things with outlines: which buildings, ships and tanks stand in a chip.

Stands after sites; ``draw`` paints what is listed here, and the boxes of the ground truth are read from the same rows,
so that boxes, mask and pixels cannot disagree.
"""

from __future__ import annotations

import math

import numpy as np

from terrasieve.imagery.earth import materials as m
from terrasieve.imagery.earth import sites as s
from terrasieve.imagery.earth.cover import Array
from terrasieve.imagery.earth.grid import Grid
from terrasieve.imagery.earth.noise import compiled, kernel, lattice, unit, whole
from terrasieve.imagery.earth.planet import BASE, FIELDS, PEOPLE, TEMP, Nodes, at
from terrasieve.imagery.earth.terrain import fresh_water, height

# Columns of an object. Its frame's axes are (COS, SIN) and (-SIN, COS) in world metres (northing up); LENGTH lies
# along the first. CLASS is a land cover: BUILDING, SHIP or TANK. SHADE is its brightness.
CLASS, X, Y, LENGTH, WIDTH, COS, SIN, TALL, MATERIAL, SHADE = range(10)
COLUMNS = 10
PAD_M = 160.0  # an object's half length and shadow stay below this
COARSEST_M = 60.0
LANE_M = 1100.0  # one ship at most in each such square of the open sea


@compiled
def _put(
    out: Array, n: int, kind: int, x: float, y: float, length: float, width: float, cos: float, sin: float, tall: float,
    material: int, shade: float,
) -> int:  # fmt: skip
    """Append a row and return the new count; rows past the array's end are counted but not stored."""
    if n < out.shape[0]:
        row = out[n]
        row[CLASS], row[X], row[Y], row[LENGTH], row[WIDTH] = kind, x, y, length, width
        row[COS], row[SIN], row[TALL], row[MATERIAL], row[SHADE] = cos, sin, tall, material, shade
    return n + 1


@compiled
def _roof(bits: np.uint64, style: int, large: bool) -> int:
    draw = unit(bits, 3)
    if large:
        return m.WHITE_ROOF if draw < 0.25 else m.GREY_ROOF if draw < 0.9 else m.BLUE_ROOF
    if style % 3 == 0:
        return m.RED_ROOF if draw < 0.8 else m.BROWN_ROOF
    if style % 3 == 1:
        return m.GREY_ROOF if draw < 0.4 else m.DARK_ROOF if draw < 0.75 else m.BROWN_ROOF
    return m.BROWN_ROOF if draw < 0.35 else m.RED_ROOF if draw < 0.6 else m.GREY_ROOF if draw < 0.85 else m.WHITE_ROOF


@compiled
def _lot(
    out: Array, n: int, site: Array, p: float, q: float, wide: float, deep: float, dense: bool, bits: np.uint64,
    large: bool, key: int,
) -> int:  # fmt: skip
    """Put a house on a lot (centre p, q in the site's frame; wide along p), unless the lot stays empty."""
    if unit(bits) > (0.93 if dense else 0.62):
        return n
    if dense or large:
        length, width = wide - 3.0 - 4.0 * unit(bits, 1), deep - 4.0 - 6.0 * unit(bits, 2)
        tall = 9.0 if large else 8.0 + 16.0 * unit(bits, 1)
    else:
        length, width = min(9.0 + 7.0 * unit(bits, 1), wide - 3.0), min(8.0 + 4.0 * unit(bits, 2), deep - 3.0)
        p += (unit(bits, 3) - 0.5) * (wide - length) * 0.5
        q += (unit(bits, 2) - 0.5) * (deep - width) * 0.5
        tall = 5.5
    x = site[s.X] + p * site[s.COS] - q * site[s.SIN]
    y = site[s.Y] + p * site[s.SIN] + q * site[s.COS]
    roof = _roof(bits, whole(site[s.HASH]), large)
    return _put(
        out, n, m.BUILDING, x, y, length, width, site[s.COS], site[s.SIN], tall, roof, 0.75 + 0.5 * unit(bits, 1)
    )


@compiled
def _block(
    out: Array, n: int, index: int, i: int, j: int, bounds: Array, found: Array, values: Array, ni: int, nj: int,
    f: Array, key: int,
) -> int:  # fmt: skip
    """Put the houses of a town block: two rows of lots, back to back, or a few large halls."""
    site = found[index]
    size = site[s.BLOCK]
    bits = lattice(i, j, key + whole(site[s.HASH]))
    p0, q0 = (i + 0.5) * size, (j + 0.5) * size
    x = site[s.X] + p0 * site[s.COS] - q0 * site[s.SIN]
    y = site[s.Y] + p0 * site[s.SIN] + q0 * site[s.COS]
    reach = PAD_M + size
    if not (bounds[0] - reach < x < bounds[2] + reach and bounds[1] - reach < y < bounds[3] + reach):
        return n
    best, inside = s.owner(x, y, found, key)
    dense = s.is_dense(site, inside)
    if best != index or inside <= 0.0 or inside == 1.0 or unit(bits) < (0.07 if dense else 0.14):
        return n
    large = dense and unit(bits, 3) < 0.14
    usable = size - 2.0 * site[s.STREET] - 9.0
    across = 1 if large else 2
    along = max(whole(usable / (60.0 if large else 15.0 + 12.0 * unit(bits, 1) if dense else 22.0)), 1)
    wide, deep = usable / along, usable / across
    for k in range(along * across):
        p = p0 - 0.5 * usable + (k % along + 0.5) * wide
        q = q0 - 0.5 * usable + (k // along + 0.5) * deep
        x = site[s.X] + p * site[s.COS] - q * site[s.SIN]
        y = site[s.Y] + p * site[s.SIN] + q * site[s.COS]
        if not (bounds[0] - PAD_M < x < bounds[2] + PAD_M and bounds[1] - PAD_M < y < bounds[3] + PAD_M):
            continue
        if s.owner(x, y, found, key)[0] != index:
            continue
        at(f, values, ni, nj, x, y)
        if height(x, y, f, 60.0, key) > 4.0 and fresh_water(x, y, f, 10.0, key) > 30.0:
            n = _lot(out, n, site, p, q, wide, deep, dense, lattice(i * 64 + k, j, key + 801), large, key)
    return n


@compiled
def _hull(out: Array, n: int, x: float, y: float, cos: float, sin: float, length: float, bits: np.uint64) -> int:
    draw = unit(bits, 3)
    deck = m.HULL if draw < 0.35 else m.GREY_ROOF if draw < 0.65 else m.RUST if draw < 0.8 else m.WHITE_ROOF
    return _put(out, n, m.SHIP, x, y, length, length / 6.2 + 2.0, cos, sin, 12.0, deck, 0.85 + 0.4 * unit(bits, 1))


@compiled
def _harbour(out: Array, n: int, site: Array, day: int, key: int) -> int:
    """Put ships along the piers (others every day), tanks and warehouses on the land side."""
    cos, sin, radius, spacing = site[s.COS], site[s.SIN], site[s.RADIUS], s.pier_spacing(site[s.RADIUS])
    own = key + whole(site[s.HASH])
    for pier in range(-3, 4):
        for slot in range(8):
            bits = lattice(pier, slot + 100 * day, own + 811)
            side = 1.0 if slot % 2 else -1.0
            length = 35.0 + 68.0 * unit(bits, 1)
            p = pier * spacing + side * (s.PIER_HALF_M + 0.5 * (length / 6.2 + 2.0) + 1.5)
            q = 62.0 + 110.0 * (slot // 2)
            if abs(pier * spacing) < radius - 90.0 and unit(bits) < 0.62:
                turn = side if unit(bits, 2) > 0.5 else -side
                x, y = site[s.X] + p * cos - q * sin, site[s.Y] + p * sin + q * cos
                n = _hull(out, n, x, y, -turn * sin, turn * cos, length, bits)
    for i in range(-6, 6):
        for j in range(3):
            bits = lattice(i, j, own + 812)
            p, q = (i + 0.5) * radius / 6.5, -125.0 - 92.0 * j
            x, y = site[s.X] + p * cos - q * sin, site[s.Y] + p * sin + q * cos
            if abs(p) > radius - 45.0 or unit(bits) < 0.15:
                continue
            if (whole(site[s.HASH]) % 2 == 0) == (p > 0.2 * radius):
                round_m = 32.0 + 26.0 * unit(bits, 1)
                n = _put(
                    out, n, m.TANK, x, y, round_m, round_m, cos, sin, 14.0, m.WHITE_ROOF, 0.75 + 0.4 * unit(bits, 2)
                )
            else:
                long_m, wide_m = radius / 6.5 * (0.55 + 0.3 * unit(bits, 1)), 34.0 + 34.0 * unit(bits, 2)
                n = _put(out, n, m.BUILDING, x, y, long_m, wide_m, cos, sin, 10.0, _roof(bits, 1, True), 1.0)
    return n


@compiled
def _lanes(
    out: Array, n: int, bounds: Array, found: Array, values: Array, ni: int, nj: int, f: Array, day: int, key: int
) -> int:
    """Put ships on the open sea: rare far out, more of them where people live near."""
    for j in range(whole((bounds[1] - PAD_M) / LANE_M), whole((bounds[3] + PAD_M) / LANE_M) + 1):
        for i in range(whole((bounds[0] - PAD_M) / LANE_M), whole((bounds[2] + PAD_M) / LANE_M) + 1):
            bits, more = lattice(i, j + 4096 * day, key + 821), lattice(i, j + 4096 * day, key + 822)
            if unit(bits) > 0.5:
                continue
            x, y = (i + 0.15 + 0.7 * unit(bits, 1)) * LANE_M, (j + 0.15 + 0.7 * unit(bits, 2)) * LANE_M
            at(f, values, ni, nj, x, y)
            chance = 0.05 + 0.45 * f[PEOPLE] * (f[BASE] > -250.0)
            if unit(bits) > chance or f[TEMP] < -7.0 or s.owner(x, y, found, key)[1] == 1.0:
                continue
            if height(x, y, f, 60.0, key) < -7.0:
                angle = 2.0 * np.pi * unit(more)
                n = _hull(out, n, x, y, math.cos(angle), math.sin(angle), 18.0 + 170.0 * unit(more, 1) ** 2, more)
    return n


@kernel
def _fill(out: Array, n: int, bounds: Array, found: Array, values: Array, ni: int, nj: int, day: int, key: int) -> int:
    f = np.empty(FIELDS)
    for index in range(found.shape[0]):
        site = found[index]
        if site[s.KIND] == s.SOLAR_FARM:
            continue
        if site[s.KIND] == s.HARBOUR:
            n = _harbour(out, n, site, day, key)
        reach = whole(1.6 * site[s.RADIUS] / site[s.BLOCK]) + 1
        for j in range(-reach, reach):
            for i in range(-reach, reach):
                n = _block(out, n, index, i, j, bounds, found, values, ni, nj, f, key)
    return _lanes(out, n, bounds, found, values, ni, nj, f, day, key)


def objects(grid: Grid, day: int, coarse: Nodes, found: Array, key: int) -> Array:
    """Return (N, COLUMNS) objects that stand in a chip or throw a shadow into it, in an order that no crop changes.

    Beyond ``COARSEST_M`` a pixel would hold dozens of them, and none is listed or painted.
    """
    if grid.gsd_m > COARSEST_M:
        return np.empty((0, COLUMNS))
    bounds, room = np.array(grid.bounds_m), 512
    while True:
        out = np.empty((room, COLUMNS))
        n = _fill(out, 0, bounds, found, coarse.values, coarse.column, coarse.row, day, key)
        if n <= room:
            return out[:n]
        room = n
