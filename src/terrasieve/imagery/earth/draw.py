"""Painting objects: shadows, then bodies, anti-aliased, into image and mask.

Stands after ``objects`` and the ground, before the atmosphere. A pixel belongs to an object's class when its centre
lies inside the outline; its colour is weighted by the area covered.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from terrasieve.imagery.earth import materials as m
from terrasieve.imagery.earth import objects as o
from terrasieve.imagery.earth.cover import Array
from terrasieve.imagery.earth.grid import Grid
from terrasieve.imagery.earth.noise import compiled, kernel, noise, whole
from terrasieve.imagery.earth.planet import FIELDS, SUN_X, SUN_Y, SUN_Z, Nodes, at

Image = NDArray[np.float32]
Mask = NDArray[np.uint8]
BOW = 0.22  # share of a hull's length over which it narrows to the bow


@compiled
def outline(thing: Array, u: float, v: float) -> tuple[float, float]:
    """Return how far inside the outline a position of the object's frame lies: metres along, metres across."""
    half_u, half_v = 0.5 * thing[o.LENGTH], 0.5 * thing[o.WIDTH]
    if thing[o.CLASS] == m.TANK:
        inside = half_u - math.sqrt(u * u + v * v)
        return inside, inside
    if thing[o.CLASS] == m.SHIP:
        ahead = (u - half_u * (1.0 - 2.0 * BOW)) / (2.0 * BOW * half_u)
        if ahead > 0.0:
            half_v *= max(1.0 - ahead * ahead, 0.0)
    return half_u - abs(u), half_v - abs(v)


@compiled
def _cover(thing: Array, x: float, y: float, gsd_m: float) -> float:
    """Return the share of the pixel around (x, y) that the object covers."""
    dx, dy = x - thing[o.X], y - thing[o.Y]
    u, v = thing[o.COS] * dx + thing[o.SIN] * dy, thing[o.COS] * dy - thing[o.SIN] * dx
    a, b = outline(thing, u, v)
    along: float = min(max(a / gsd_m + 0.5, 0.0), 1.0) * min(thing[o.LENGTH] / gsd_m, 1.0)
    across: float = min(max(b / gsd_m + 0.5, 0.0), 1.0) * min(thing[o.WIDTH] / gsd_m, 1.0)
    return along * across


@compiled
def _window(
    thing: Array, dx: float, dy: float, column: int, row: int, size: int, gsd_m: float
) -> tuple[int, int, int, int]:
    """Return first and last pixel columns and rows that an object moved by (dx, dy) metres may touch."""
    reach = 0.5 * math.sqrt(thing[o.LENGTH] ** 2 + thing[o.WIDTH] ** 2) + gsd_m
    x, y = thing[o.X] + dx, thing[o.Y] + dy
    c0, c1 = whole((x - reach) / gsd_m) - column, whole(math.ceil((x + reach) / gsd_m)) - column
    r0, r1 = whole((-y - reach) / gsd_m) - row, whole(math.ceil((-y + reach) / gsd_m)) - row
    return max(c0, 0), min(c1, size - 1), max(r0, 0), min(r1, size - 1)


@kernel
def _shadows(shade: Image, things: Array, suns: Array, column: int, row: int, gsd_m: float) -> None:
    for n in range(things.shape[0]):
        if things[n, o.CLASS] == m.SHIP:
            continue
        length_m = things[n, o.TALL] * math.sqrt(1.0 - suns[n, 2] ** 2) / suns[n, 2]
        # Copies of the outline, close enough to each other that no steps are seen between them.
        parts = min(whole(length_m / max(0.3 * things[n, o.WIDTH], gsd_m)) + 1, 9)
        for part in range(1, parts + 1):
            reach = things[n, o.TALL] / suns[n, 2] * part / parts
            dx, dy = -suns[n, 0] * reach, -suns[n, 1] * reach
            c0, c1, r0, r1 = _window(things[n], dx, dy, column, row, shade.shape[0], gsd_m)
            for r in range(r0, r1 + 1):
                for c in range(c0, c1 + 1):
                    x, y = (column + c + 0.5) * gsd_m - dx, -(row + r + 0.5) * gsd_m - dy
                    shade[r, c] = max(shade[r, c], _cover(things[n], x, y, gsd_m))


@compiled
def _light(thing: Array, sun: Array, u: float, v: float, x: float, y: float, gsd_m: float, key: int) -> float:
    """Return the brightness of a roof or deck at a point: gables, tank tops, superstructures, weathering."""
    across = -thing[o.SIN] * sun[0] + thing[o.COS] * sun[1]
    light: float = thing[o.SHADE] * (1.0 + 0.12 * noise(x / 2.5, y / 2.5, key + 831))
    if thing[o.CLASS] == m.BUILDING and thing[o.TALL] < 9.0:
        light *= 1.0 + 0.45 * across * (1.0 if v > 0.0 else -1.0)
    elif thing[o.CLASS] == m.TANK:
        light *= 1.0 + 0.5 * (u * (thing[o.COS] * sun[0] + thing[o.SIN] * sun[1]) + v * across) / thing[o.LENGTH]
    elif thing[o.CLASS] == m.SHIP:
        aft = u / thing[o.LENGTH]
        light *= 2.2 if -0.42 < aft < -0.3 else 0.8 if math.floor(aft * 11.0) % 2 == 0 else 1.1
    return light


@kernel
def _bodies(
    image: Image, mask: Mask, things: Array, suns: Array, table: Image, column: int, row: int, gsd_m: float, key: int
) -> None:
    for n in range(things.shape[0]):
        thing = things[n]
        c0, c1, r0, r1 = _window(thing, 0.0, 0.0, column, row, mask.shape[0], gsd_m)
        for r in range(r0, r1 + 1):
            for c in range(c0, c1 + 1):
                x, y = (column + c + 0.5) * gsd_m, -(row + r + 0.5) * gsd_m
                weight = _cover(thing, x, y, gsd_m)
                if weight <= 0.0:
                    continue
                dx, dy = x - thing[o.X], y - thing[o.Y]
                u, v = thing[o.COS] * dx + thing[o.SIN] * dy, thing[o.COS] * dy - thing[o.SIN] * dx
                light = _light(thing, suns[n], u, v, x, y, gsd_m, key)
                for b in range(image.shape[0]):
                    value = table[whole(thing[o.MATERIAL]), b] * np.float32(light)
                    image[b, r, c] += np.float32(weight) * (value - image[b, r, c])
                along, across = outline(thing, u, v)
                if along > 0.0 and across > 0.0:
                    mask[r, c] = np.uint8(thing[o.CLASS])


@kernel
def _suns(things: Array, values: Array, ni: int, nj: int) -> Array:
    out, f = np.empty((things.shape[0], 3)), np.empty(FIELDS)
    for n in range(things.shape[0]):
        at(f, values, ni, nj, things[n, o.X], things[n, o.Y])
        out[n, 0], out[n, 1], out[n, 2] = f[SUN_X], f[SUN_Y], f[SUN_Z]
    return out


def draw(image: Image, mask: Mask, grid: Grid, bands: tuple[str, ...], coarse: Nodes, things: Array, key: int) -> None:
    """Paint objects into a chip, in place.

    Args:
        image: (C, H, W) float32 reflectance.
        mask: (H, W) uint8 land cover.
        grid, bands, coarse: of the chip.
        things: (N, objects.COLUMNS).
        key: the world's key.
    """
    if not len(things):
        return
    suns = _suns(things, coarse.values, coarse.column, coarse.row)
    shade = np.zeros(mask.shape, np.float32)
    _shadows(shade, things, suns, grid.column, grid.row, grid.gsd_m)
    image *= 1.0 - np.float32(0.62) * shade
    _bodies(image, mask, things, suns, m.spectra(bands), grid.column, grid.row, grid.gsd_m, key)


def boxes(grid: Grid, things: Array) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Return the boxes of the objects that hold at least one pixel centre of the chip.

    Returns:
        classes: (N,) uint8 land cover.
        xyxy: (N, 4) float32 pixels, left, top, right, bottom, cut at the chip's edges.
        obb: (N, 5) float32: centre x, centre y, width, height in pixels, angle in radians from the image's x axis,
            clockwise as seen (y down), in [-pi/2, pi/2); not cut.
    """
    keep = _seen(things, grid.column, grid.row, grid.gsd_m, grid.size_px)
    things = things[keep]
    cx, cy = things[:, o.X] / grid.gsd_m - grid.column, -things[:, o.Y] / grid.gsd_m - grid.row
    long, wide = things[:, o.LENGTH] / grid.gsd_m, things[:, o.WIDTH] / grid.gsd_m
    half_x = 0.5 * (np.abs(things[:, o.COS]) * long + np.abs(things[:, o.SIN]) * wide)
    half_y = 0.5 * (np.abs(things[:, o.SIN]) * long + np.abs(things[:, o.COS]) * wide)
    xyxy = np.stack([cx - half_x, cy - half_y, cx + half_x, cy + half_y], axis=1).clip(0, grid.size_px)
    angle = (np.arctan2(-things[:, o.SIN], things[:, o.COS]) + np.pi / 2) % np.pi - np.pi / 2
    obb = np.stack([cx, cy, long, wide, angle], axis=1)
    return things[:, o.CLASS].astype(np.uint8), xyxy.astype(np.float32), obb.astype(np.float32)


@kernel
def _seen(things: Array, column: int, row: int, gsd_m: float, size: int) -> NDArray[np.bool_]:
    out = np.zeros(things.shape[0], np.bool_)
    for n in range(things.shape[0]):
        thing = things[n]
        c0, c1, r0, r1 = _window(thing, 0.0, 0.0, column, row, size, gsd_m)
        for r in range(r0, r1 + 1):
            for c in range(c0, c1 + 1):
                dx, dy = (column + c + 0.5) * gsd_m - thing[o.X], -(row + r + 0.5) * gsd_m - thing[o.Y]
                u, v = thing[o.COS] * dx + thing[o.SIN] * dy, thing[o.COS] * dy - thing[o.SIN] * dx
                a, b = outline(thing, u, v)
                if a > 0.0 and b > 0.0:
                    out[n] = True
    return out
