"""The planet's coarse fields: continents, climate, people, season, sun and weather.

Stands after the grid. The fields are functions of longitude, latitude and date on the sphere, so they have no seams;
a chip reads them at nodes every ``PITCH_M`` of its zone and interpolates, and nodes being absolute, overlapping chips
interpolate the same numbers. Sources: the sun from the declination formula of Cooper (1969) at 10:30 local solar time
(Sentinel-2's crossing); climate from the zonal means of temperature and rain, simplified by hand.
"""

from __future__ import annotations

import datetime
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from terrasieve.imagery.earth.grid import Grid, projection
from terrasieve.imagery.earth.noise import compiled, kernel, sphere, step, whole

PITCH_M = 2048.0
MARGIN = 4  # nodes around a chip, so that the towns and harbours that reach into it can be found
# Rows of the field array. BASE, ROUGH: metres of mean height and of relief. TEMP: annual mean, degrees C at sea level.
# MOIST, PEOPLE, DUNES, COVER, HAZE: 0 to 1. REGION, IRON, LAKES, RIVERS, MUD: noise of tens of kilometres, about
# -1 to 1. SUMMER: -1 (midwinter) to 1. SUN: unit vector east, north, up.
(
    BASE, ROUGH, TEMP, MOIST, PEOPLE, DUNES, SUMMER, SUN_X, SUN_Y, SUN_Z, COVER, HAZE, REGION, IRON, LAKES, RIVERS, MUD,
) = range(17)  # fmt: skip
FIELDS = 17

Array = NDArray[np.float64]


class Nodes(NamedTuple):
    """Coarse fields of a zone's rectangle.

    Attributes:
        values: (rows, columns, FIELDS) float64, rows northwards.
        column: absolute index of the first column; its easting is ``column * PITCH_M``.
        row: absolute index of the first row; its northing is ``row * PITCH_M``.
    """

    values: Array
    column: int
    row: int


@compiled
def _octaves(p: Array, frequency: float, octaves: int, key: int) -> float:
    total, weight = 0.0, 1.0
    for octave in range(octaves):
        total += weight * sphere(p[0] * frequency, p[1] * frequency, p[2] * frequency, key + octave)
        frequency *= 2.07
        weight *= 0.5
    return total


@compiled
def _climate(out: Array, p: Array, latitude: float, key: int) -> None:
    """Fill relief, temperature, moisture, people and dunes at a point ``p`` of the unit sphere."""
    land = _octaves(p, 1.7, 6, key) - 0.08
    ridge = 1.0 - abs(_octaves(p, 4.0, 4, key + 10))
    young = step(0.78, 0.97, ridge) * step(-0.02, 0.1, land)
    swell = step(-0.5, 0.8, _octaves(p, 25.0, 3, key + 20))
    out[ROUGH] = 25.0 + 170.0 * swell * swell + 1600.0 * young
    out[BASE] = 3000.0 * land if land < 0.0 else 90.0 * np.tanh(33.0 * land) + 500.0 * land + 0.6 * 1600.0 * young
    sine = abs(np.sin(latitude))
    cold = 46.0 * sine**3 + (22.0 if latitude < 0.0 else 6.0) * step(0.88, 0.96, sine)
    out[TEMP] = 28.0 - cold + 4.0 * _octaves(p, 6.0, 3, key + 30)
    zonal = np.cos(np.radians(360.0 / 54.0) * min(abs(np.degrees(latitude)), 60.0))
    out[MOIST] = min(max(0.47 + 0.27 * zonal + 0.5 * _octaves(p, 5.0, 4, key + 40), 0.0), 1.0)
    mild = step(0.0, 9.0, out[TEMP]) * step(0.14, 0.4, out[MOIST]) * step(900.0, 300.0, out[ROUGH])
    out[PEOPLE] = mild * step(-0.6, 0.6, _octaves(p, 9.0, 4, key + 50)) * (1.0 - 0.5 * step(0.75, 0.95, out[MOIST]))
    dry = step(0.24, 0.1, out[MOIST]) * step(900.0, 200.0, out[ROUGH]) * step(2.0, 10.0, out[TEMP])
    out[DUNES] = dry * step(-0.2, 0.3, _octaves(p, 30.0, 3, key + 60))


@compiled
def _sun(out: Array, latitude: float, day_of_year: float) -> None:
    season = 2.0 * np.pi * (day_of_year - 81.0) / 365.25
    declination = np.radians(23.45) * np.sin(season)
    hour = np.radians(-22.5)
    up = np.sin(latitude) * np.sin(declination) + np.cos(latitude) * np.cos(declination) * np.cos(hour)
    east = -np.cos(declination) * np.sin(hour)
    north = np.cos(latitude) * np.sin(declination) - np.sin(latitude) * np.cos(declination) * np.cos(hour)
    # Scenes are not taken at night: a sun below 14 degrees is lifted to it.
    up, flat = max(up, 0.25), np.sqrt(east * east + north * north) + 1e-9
    level = np.sqrt(1.0 - up * up)
    out[SUN_X], out[SUN_Y], out[SUN_Z] = east / flat * level, north / flat * level, up
    out[SUMMER] = np.sin(2.0 * np.pi * (day_of_year - 105.0) / 365.25) * np.tanh(np.degrees(latitude) / 18.0)


@compiled
def _weather(out: Array, p: Array, day: int, key: int) -> None:
    front = _octaves(p, 14.0, 3, key + 1000 + 17 * day)
    out[COVER] = min(max(0.85 * (front + 0.3 * (out[MOIST] - 0.5)) - 0.17, 0.0), 0.62)
    out[HAZE] = step(-1.0, 1.2, _octaves(p, 9.0, 2, key + 2000 + 17 * day))


@kernel
def _fill(longitude: Array, latitude: Array, day: int, day_of_year: float, key: int) -> Array:
    out = np.zeros((longitude.size, FIELDS))
    p = np.empty(3)
    for n in range(longitude.size):
        lon, lat = np.radians(longitude[n]), np.radians(latitude[n])
        p[0], p[1], p[2] = np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)
        _climate(out[n], p, lat, key)
        _sun(out[n], lat, day_of_year)
        _weather(out[n], p, day, key)
        for extra, frequency in ((REGION, 260.0), (IRON, 210.0), (LAKES, 160.0), (RIVERS, 190.0), (MUD, 700.0)):
            out[n, extra] = sphere(p[0] * frequency, p[1] * frequency, p[2] * frequency, key + 70 + extra)
    return out


def fields(lon: Array, lat: Array, date: datetime.date, key: int) -> Array:
    """Return the coarse fields at positions.

    Args:
        lon: (N,) degrees east.
        lat: (N,) degrees north.
        date: the day of the acquisition.
        key: the world's key.

    Returns:
        (N, FIELDS) float64, columns named by this module's constants.
    """
    return _fill(lon, lat, date.toordinal(), float(date.timetuple().tm_yday), key)


def nodes(grid: Grid, date: datetime.date, key: int) -> Nodes:
    """Return the coarse fields of a chip and of ``MARGIN`` nodes around it."""
    left, bottom, right, top = grid.bounds_m
    i0, i1 = int(left // PITCH_M) - MARGIN, int(right // PITCH_M) + MARGIN + 2
    j0, j1 = int(bottom // PITCH_M) - MARGIN, int(top // PITCH_M) + MARGIN + 2
    x_m, y_m = np.meshgrid(np.arange(i0, i1) * PITCH_M, np.arange(j0, j1) * PITCH_M)
    lon, lat = projection(grid.zone)(x_m.ravel(), y_m.ravel(), inverse=True)
    return Nodes(fields(lon, lat, date, key).reshape(j1 - j0, i1 - i0, FIELDS), i0, j0)


@compiled
def across(line: Array, values: Array, row: int, y_m: float) -> None:
    """Interpolate the node rows to a northing: (rows, columns, FIELDS) to (columns, FIELDS)."""
    fy = y_m / PITCH_M
    iy = whole(fy)
    v, j = fy - iy, iy - row
    for i in range(values.shape[1]):
        for f in range(FIELDS):
            line[i, f] = values[j, i, f] + v * (values[j + 1, i, f] - values[j, i, f])


@compiled
def along(out: Array, line: Array, column: int, x_m: float, first: int) -> None:
    """Interpolate the ``first`` fields of a line of :func:`across` to an easting."""
    fx = x_m / PITCH_M
    ix = whole(fx)
    u, i = fx - ix, ix - column
    for f in range(first):
        out[f] = line[i, f] + u * (line[i + 1, f] - line[i, f])


@compiled
def at(out: Array, values: Array, column: int, row: int, x_m: float, y_m: float) -> None:
    """Interpolate the fields bilinearly at one position in world metres."""
    fx, fy = x_m / PITCH_M, y_m / PITCH_M
    ix, iy = whole(fx), whole(fy)
    u, v, i, j = fx - ix, fy - iy, ix - column, iy - row
    for f in range(FIELDS):
        left = values[j, i, f] + v * (values[j + 1, i, f] - values[j, i, f])
        right = values[j, i + 1, f] + v * (values[j + 1, i + 1, f] - values[j, i + 1, f])
        out[f] = left + u * (right - left)
