"""Sites: where towns, villages, harbours and solar farms lie, and how they are laid out.

Stands between terrain and the painters of people's works. Every cell of a lattice holds at most one site, decided by
its hash and the coarse fields, so a chip finds all that reach into it by looking at the cells around it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from terrasieve.imagery.earth.cover import Array
from terrasieve.imagery.earth.grid import Grid
from terrasieve.imagery.earth.noise import compiled, head, kernel, lattice, noise, step, unit, whole
from terrasieve.imagery.earth.planet import BASE, FIELDS, PEOPLE, ROUGH, TEMP, Nodes, at
from terrasieve.imagery.earth.terrain import fresh_water, height

CELL_M = 3600.0
REACH_M = 3900.0  # no site changes the ground farther than this from its centre
BEND_M = 130.0  # a road strays less than this from its straight line
VILLAGE, TOWN, HARBOUR, SOLAR_FARM = 1, 2, 3, 4
# Columns of a site: x and y axes of its own frame are (COS, SIN) and (-SIN, COS); a harbour's second axis is seaward.
KIND, X, Y, RADIUS, COS, SIN, BLOCK, STREET, HASH = range(9)
COLUMNS = 9

HARBOUR_LAND_M, HARBOUR_SEA_M = 380.0, 640.0
PIER_HALF_M = 24.0


@compiled
def _shore(out: Array, f: Array, values: Array, ni: int, nj: int, key: int) -> bool:
    """Walk from a site to the sea's edge by Newton steps on a smooth height; turn its second axis to the sea."""
    x0, y0, e = out[X], out[Y], 250.0
    for _ in range(10):
        at(f, values, ni, nj, out[X], out[Y])
        h = height(out[X], out[Y], f, 150.0, key)
        gx = (height(out[X] + e, out[Y], f, 150.0, key) - h) / e
        gy = (height(out[X], out[Y] + e, f, 150.0, key) - h) / e
        norm = math.sqrt(gx * gx + gy * gy) + 1e-6
        out[COS], out[SIN] = -gy / norm, gx / norm
        # The frame (COS, SIN), (-SIN, COS) has its second axis along -gradient: downhill, to the sea.
        move = min(max(-h / norm, -700.0), 700.0)
        if abs(move) < 15.0:
            dx, dy = out[X] - x0, out[Y] - y0
            far_x, far_y = -1300.0 * out[SIN], 1300.0 * out[COS]
            open_sea = height(out[X] + far_x, out[Y] + far_y, f, 150.0, key) < -2.0
            open_sea &= height(out[X] + 2.0 * far_x, out[Y] + 2.0 * far_y, f, 150.0, key) < -2.0
            return open_sea and dx * dx + dy * dy < 2600.0**2
        out[X] += move * gx / norm
        out[Y] += move * gy / norm
        if abs(out[X] - x0) > 3500.0 or abs(out[Y] - y0) > 3500.0:
            return False
    return False


@compiled
def _found(out: Array, f: Array, i: int, j: int, values: Array, ni: int, nj: int, key: int) -> bool:
    """Decide the site of a lattice cell; return whether there is one."""
    bits, more = lattice(i, j, key + 600), lattice(i, j, key + 601)
    out[X], out[Y] = (i + 0.2 + 0.6 * unit(bits)) * CELL_M, (j + 0.2 + 0.6 * unit(bits, 1)) * CELL_M
    at(f, values, ni, nj, out[X], out[Y])
    people, draw, size = f[PEOPLE], unit(bits, 2), unit(bits, 3)
    out[HASH] = head(more, 42)
    out[BLOCK], out[STREET] = 75.0 + 60.0 * unit(more), 3.5 + 3.0 * unit(more, 1)
    if abs(f[BASE]) < 30.0 + 0.6 * f[ROUGH] and f[TEMP] > -2.0 and draw < 0.05 + 0.7 * people:
        out[KIND], out[RADIUS] = HARBOUR, 520.0 + 380.0 * size
        if _shore(out, f, values, ni, nj, key):
            return True
        out[X], out[Y] = (i + 0.5) * CELL_M, (j + 0.5) * CELL_M
        at(f, values, ni, nj, out[X], out[Y])
    angle = 2.0 * np.pi * unit(more, 2)
    out[COS], out[SIN] = math.cos(angle), math.sin(angle)
    if draw < 0.2 * people:
        out[KIND], out[RADIUS] = TOWN, 650.0 + 1900.0 * size * size
    elif draw < 0.85 * people:
        out[KIND], out[RADIUS], out[STREET] = VILLAGE, 240.0 + 420.0 * size, 3.2
    elif draw > 0.955 and f[TEMP] > 4.0 and f[ROUGH] < 160.0:
        out[KIND], out[RADIUS] = SOLAR_FARM, 220.0 + 330.0 * size
        out[COS], out[SIN] = 1.0, 0.0
    else:
        return False
    return height(out[X], out[Y], f, 30.0, key) > 6.0 and fresh_water(out[X], out[Y], f, 10.0, key) > 30.0


@kernel
def _sites(left: float, bottom: float, right: float, top: float, values: Array, ni: int, nj: int, key: int) -> Array:
    i0, i1 = whole((left - REACH_M) / CELL_M), whole((right + REACH_M) / CELL_M)
    j0, j1 = whole((bottom - REACH_M) / CELL_M), whole((top + REACH_M) / CELL_M)
    out = np.zeros(((i1 - i0 + 1) * (j1 - j0 + 1), COLUMNS))
    f = np.empty(FIELDS)
    n = 0
    for j in range(j0, j1 + 1):
        for i in range(i0, i1 + 1):
            if _found(out[n], f, i, j, values, ni, nj, key):
                reach = 1.5 * out[n, RADIUS] if out[n, KIND] != HARBOUR else 1.3 * out[n, RADIUS] + HARBOUR_SEA_M
                if left - reach < out[n, X] < right + reach and bottom - reach < out[n, Y] < top + reach:
                    n += 1
    return out[:n]


def sites(grid: Grid, coarse: Nodes, key: int) -> Array:
    """Return (N, COLUMNS) sites that reach into a chip, in the order of the lattice."""
    return _sites(*grid.bounds_m, coarse.values, coarse.column, coarse.row, key)


@compiled
def _knot(i: int, j: int, values: Array, ni: int, nj: int, f: Array, key: int) -> tuple[float, float, bool]:
    """Return where a lattice cell's roads meet (its town, if it has one), and whether anybody lives there."""
    bits = lattice(i, j, key + 600)
    x, y = (i + 0.2 + 0.6 * unit(bits)) * CELL_M, (j + 0.2 + 0.6 * unit(bits, 1)) * CELL_M
    at(f, values, ni, nj, x, y)
    lived_in = f[PEOPLE] > 0.1 + 0.15 * unit(bits, 3) and f[ROUGH] < 600.0
    return x, y, lived_in and height(x, y, f, 150.0, key) > 3.0


@kernel
def _roads(left: float, bottom: float, right: float, top: float, values: Array, ni: int, nj: int, key: int) -> Array:
    i0, i1 = whole(left / CELL_M) - 1, whole(right / CELL_M) + 1
    j0, j1 = whole(bottom / CELL_M) - 1, whole(top / CELL_M) + 1
    out, f, n = np.empty((3 * (i1 - i0 + 1) * (j1 - j0 + 1), 4)), np.empty(FIELDS), 0
    for j in range(j0, j1 + 1):
        for i in range(i0, i1 + 1):
            x0, y0, here = _knot(i, j, values, ni, nj, f, key)
            for way in range(3):
                x1, y1, there = _knot(i + (way != 1), j + (way != 0), values, ni, nj, f, key)
                if not (here and there) or unit(lattice(i, j, key + 620), way) > (0.8 if way < 2 else 0.3):
                    continue
                dry = height(0.5 * (x0 + x1), 0.5 * (y0 + y1), f, 150.0, key) > 1.0
                near = min(x0, x1) < right + BEND_M and max(x0, x1) > left - BEND_M
                if dry and near and min(y0, y1) < top + BEND_M and max(y0, y1) > bottom - BEND_M:
                    out[n, 0], out[n, 1], out[n, 2], out[n, 3] = x0, y0, x1, y1
                    n += 1
    return out[:n]


def roads(grid: Grid, coarse: Nodes, key: int) -> Array:
    """Return (N, 4) country roads near a chip, as the ends x, y, x, y of their axes in world metres."""
    return _roads(*grid.bounds_m, coarse.values, coarse.column, coarse.row, key)


@compiled
def road_axis(x: float, y: float, lines: Array, key: int) -> float:
    """Return metres to the nearest road's axis; roads bend gently away from their straight line."""
    best = 1e9
    if lines.shape[0] == 0:
        return best
    x, y = x + 70.0 * noise(x / 1300.0, y / 1300.0, key + 621), y + 70.0 * noise(x / 1300.0, y / 1300.0, key + 622)
    for n in range(lines.shape[0]):
        ax, ay = lines[n, 2] - lines[n, 0], lines[n, 3] - lines[n, 1]
        bx, by = x - lines[n, 0], y - lines[n, 1]
        t = min(max((ax * bx + ay * by) / (ax * ax + ay * ay), 0.0), 1.0)
        best = min(best, (bx - t * ax) ** 2 + (by - t * ay) ** 2)
    return math.sqrt(best)


@compiled
def owner(x: float, y: float, found: Array, key: int) -> tuple[int, float]:
    """Return the site whose ground a position is, or -1, and how deep inside it lies (0 at the rim, 1 at the centre).

    A harbour owns its rectangle; elsewhere the densest settlement wins.
    """
    best, most = -1, 0.0
    for n in range(found.shape[0]):
        dx, dy, radius = x - found[n, X], y - found[n, Y], found[n, RADIUS]
        if found[n, KIND] == HARBOUR:
            p, q = found[n, COS] * dx + found[n, SIN] * dy, found[n, COS] * dy - found[n, SIN] * dx
            if abs(p) < radius and -HARBOUR_LAND_M < q < HARBOUR_SEA_M:
                return n, 1.0
            dx, dy = dx + 500.0 * -found[n, SIN] * -1.0, dy + 500.0 * found[n, COS] * -1.0
            radius *= 1.1
        elif found[n, KIND] == SOLAR_FARM:
            if abs(dx) < radius and abs(dy) < 0.7 * radius and most == 0.0:
                best, most = n, 1e-6
            continue
        r = math.sqrt(dx * dx + dy * dy) / radius
        if r < 1.5:
            inside = 1.0 - r + 0.55 * noise(dx / (0.5 * radius), dy / (0.5 * radius), key + whole(found[n, HASH]))
            if inside > most:
                best, most = n, inside
    return best, most


@compiled
def is_dense(site: Array, inside: float) -> bool:
    """Tell whether a place in a settlement is a town's inner part rather than houses in gardens."""
    return (site[KIND] == TOWN and inside > 0.22) or (site[KIND] == HARBOUR and inside > 0.4)


@compiled
def harbour_part(p: float, q: float, radius: float) -> int:
    """Return what a place in a harbour's frame is: 0 water, 1 quay or pier, 2 breakwater, 3 yard on the land side."""
    if q <= 0.0:
        return 3
    if abs(abs(p) - 0.55 * radius) < 0.39 * radius and abs(q - 590.0) < 9.0:
        return 2
    spacing = pier_spacing(radius)
    off = abs(p - spacing * math.floor(p / spacing + 0.5))
    return 1 if off < PIER_HALF_M and q < 0.75 * HARBOUR_SEA_M and abs(p) < radius - 60.0 else 0


@compiled
def pier_spacing(radius: float) -> float:
    """Return metres between the axes of a harbour's piers."""
    return 0.42 * radius


@compiled
def hillside(h: float, steep: float) -> bool:
    """Tell whether the ground is too steep, or too low, to build on."""
    return steep > 0.3 or h < 1.0


@compiled
def settled(people: float, x: float, y: float, key: int) -> float:
    """Return how much of the open land around a place is farmed, 0 to 1."""
    return step(0.34, 0.5, 0.95 * people + 0.32 * noise(x / 5200.0, y / 5200.0, key + 610) + 0.12 * noise(x / 1500.0, y / 1500.0, key + 611))  # fmt: skip # noqa: E501


Sites = NDArray[np.float64]
