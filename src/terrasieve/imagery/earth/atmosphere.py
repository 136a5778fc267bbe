"""What lies between ground and file: clouds, their shadows, haze, the sensor's gain and noise, digital numbers.

Stands last in the rendering. All of it depends on the date and the place, nothing of it on the ground: the same ground
comes back on another day under another sky.
"""

from __future__ import annotations

import datetime

import numpy as np
from numpy.typing import NDArray

from terrasieve.imagery.earth.cover import Array
from terrasieve.imagery.earth.grid import Grid
from terrasieve.imagery.earth.materials import BAND_NM, BANDS
from terrasieve.imagery.earth.noise import compiled, fractal, kernel, lattice, step, unit
from terrasieve.imagery.earth.planet import COVER, FIELDS, HAZE, SUN_X, SUN_Y, SUN_Z, Nodes, across, along
from terrasieve.keyed import numpy_generator

Image = NDArray[np.float32]
CLOUD_TOP_M = 900.0


@compiled
def cloudiness(x: float, y: float, cover: float, gsd_m: float, key: int) -> float:
    """Return how opaque the cloud over a position is, 0 to 1."""
    if cover < 0.03:
        return 0.0
    wx = 260.0 * fractal(x, y, 1500.0, 2, 0.5, gsd_m, key + 10)
    puff = fractal(x + wx, y - wx, 2600.0, 7, 0.6, gsd_m, key)
    edge = 0.85 - 1.25 * cover
    return step(edge, edge + 0.42, puff)


@kernel
def _air(
    image: Image, cloud: NDArray[np.bool_], air: Array, values: Array, ni: int, nj: int, column: int, row: int,
    gsd_m: float, key: int,
) -> None:  # fmt: skip
    line, f = np.empty((values.shape[1], FIELDS)), np.empty(FIELDS)
    for r in range(image.shape[1]):
        y = -(row + r + 0.5) * gsd_m
        across(line, values, nj, y)
        for c in range(image.shape[2]):
            x = (column + c + 0.5) * gsd_m
            along(f, line, ni, x, HAZE + 1)
            reach = CLOUD_TOP_M / f[SUN_Z]
            opaque = cloudiness(x, y, f[COVER], gsd_m, key)
            above = cloudiness(x + f[SUN_X] * reach, y + f[SUN_Y] * reach, f[COVER], gsd_m, key)
            light = 1.0 - 0.62 * above
            bright = 0.42 + 0.5 * opaque - 0.1 * above * opaque
            cloud[r, c] = opaque > 0.35
            bits = lattice(column + c, row + r, key + 30)
            for b in range(image.shape[0]):
                value = image[b, r, c] * light
                value += opaque * (bright * air[2, b] - value)
                value = value * (1.0 - 0.3 * f[HAZE] * air[0, b]) + f[HAZE] * air[0, b] * 0.08
                if b % 2 == 0 and b > 0:
                    bits = lattice(column + c, row + r, key + 30 + b)
                grain = unit(bits, 2 * (b % 2)) + unit(bits, 2 * (b % 2) + 1) - 1.0
                image[b, r, c] = air[1, b] * (value + grain * (0.0016 + 0.012 * value))


def _weather(bands: tuple[str, ...], date: datetime.date, key: int) -> Array:
    """Return (3, C): haze by band (Rayleigh-like), gain of this day's acquisition, brightness of cloud."""
    nm = np.array([BAND_NM[BANDS.index(band)] for band in bands], dtype=np.float64)
    rng = numpy_generator(key, "earth.acquisition", date.toordinal())
    thick, gain, tilt = rng.uniform(0.25, 1.0), rng.uniform(0.72, 1.25), rng.uniform(-0.09, 0.09)
    haze = thick * (nm / 490.0) ** -2.2
    gains = gain * (1.0 + tilt * (nm - 650.0) / 160.0 * (nm < 900))
    return np.stack([haze, gains, np.where(nm > 1500, 0.62, 1.0)])


def atmosphere(
    image: Image, grid: Grid, bands: tuple[str, ...], date: datetime.date, coarse: Nodes, key: int
) -> NDArray[np.bool_]:
    """Put the day's sky and sensor over a chip's reflectance, in place.

    Returns:
        (H, W) bool, True under cloud.
    """
    cloud = np.zeros(image.shape[1:], np.bool_)
    sky = int(numpy_generator(key, "earth.sky", date.toordinal(), grid.zone).integers(1 << 40))
    _air(
        image, cloud, _weather(bands, date, key), coarse.values, coarse.column, coarse.row, grid.column, grid.row,
        grid.gsd_m, sky,
    )  # fmt: skip
    return cloud


def to_reflectance_dn(image: Image) -> NDArray[np.uint16]:
    """Convert reflectance to digital numbers: uint16, reflectance x 10 000, at most 20 000, 0 kept for no data."""
    return (image * np.float32(10000.0) + np.float32(0.5)).clip(1, 20000).astype(np.uint16)


def to_display(image: Image) -> NDArray[np.uint8]:
    """Convert reflectance to 8-bit display values: nearly linear with a soft shoulder for snow and cloud."""
    return _DISPLAY[(image * np.float32(2048.0)).clip(0, _DISPLAY.size - 1).astype(np.intp)]


# A table, since exp and power may round differently in the body and in the tail of a vectorised loop.
_DISPLAY: NDArray[np.uint8] = (255.0 * (1.0 - np.exp(-4.2 * np.arange(4096) / 2048.0)) + 0.5).astype(np.uint8)
