"""Hash noise on integer lattices: the only source of variety in the procedural Earth's kernels.

First in the flow of ``imagery.earth``: every other file of the package draws its shapes from here. All functions are
pure: a 64-bit key and a position give the same bits in any order, process or crop, which is what makes two
overlapping chips show the same ground. ``fastmath`` stays off, because a vector body and its scalar tail could then
round differently. Source: Perlin's gradient noise (SIGGRAPH 2002 fade), the murmur3 finaliser, Quilez's analytic
derivatives, Worley's cellular noise.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])


SOURCES = hashlib.blake2b(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
).hexdigest()


def compiled(function: Function) -> Function:
    """Compile a function that only kernels call; Python cannot, which spares compiling its wrappers."""
    options: Any = {"nogil": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast(Function, njit(**options)(function))


def kernel(function: Function) -> Function:
    """Compile a function that Python calls: without the GIL, cached on disk where some cache folder is writable."""
    try:
        compiled_kernel: Any = njit(cache=True, nogil=True, error_model="numpy")(function)
        # Numba looks for changes in the kernel's own file only and would keep stale copies of what it calls.
        compiled_kernel._cache._cache_file._source_stamp = SOURCES
    except (RuntimeError, AttributeError):  # no folder that numba may write, or another layout of its cache
        compiled_kernel = njit(nogil=True, error_model="numpy")(function)
    return cast(Function, compiled_kernel)


@compiled
def lattice(i: int, j: int, key: int) -> np.uint64:
    """Hash two lattice coordinates and a key into 64 bits."""
    z = np.uint64(i) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(j) * np.uint64(0xC2B2AE3D27D4EB4F)
    z ^= np.uint64(key) * np.uint64(0xD6E8FEB86659FD93)
    z ^= z >> np.uint64(32)
    z *= np.uint64(0xFF51AFD7ED558CCD)
    z ^= z >> np.uint64(29)
    z *= np.uint64(0xC4CEB9FE1A85EC53)
    return z ^ (z >> np.uint64(32))


@compiled
def whole(x: float) -> int:
    """Round down to an integer."""
    return math.floor(x)


@compiled
def head(bits: np.uint64, shift: int) -> int:
    """Return the bits above ``shift`` as an integer."""
    return int(bits >> np.uint64(shift))


@compiled
def unit(bits: np.uint64, part: int = 0) -> float:
    """Return a number in [0, 1) from 16 of 64 bits; ``part`` 0 to 3 says which, so one hash serves four draws."""
    return int((bits >> np.uint64(16 * part)) & np.uint64(0xFFFF)) * (1.0 / 65536.0)


@compiled
def step(low: float, high: float, x: float) -> float:
    """Rise smoothly from 0 at ``low`` to 1 at ``high`` (either may be the larger)."""
    t = min(max((x - low) / (high - low), 0.0), 1.0)
    return t * t * (3.0 - 2.0 * t)


@compiled
def gradient(bits: np.uint64) -> tuple[float, float]:
    """Return a lattice point's random gradient, uniform in a square of half side 1."""
    gx = int(bits & np.uint64(0xFFFF)) * (1.0 / 32768.0) - 1.0
    return gx, int((bits >> np.uint64(16)) & np.uint64(0xFFFF)) * (1.0 / 32768.0) - 1.0


@compiled
def noise(x: float, y: float, key: int) -> float:
    """Return gradient noise of wavelength 1, about normal with standard deviation 0.35, within (-1.4, 1.4)."""
    i, j = whole(x), whole(y)
    x, y = x - i, y - j
    u = x * x * x * (x * (x * 6.0 - 15.0) + 10.0)
    v = y * y * y * (y * (y * 6.0 - 15.0) + 10.0)
    ax, ay = gradient(lattice(i, j, key))
    bx, by = gradient(lattice(i + 1, j, key))
    cx, cy = gradient(lattice(i, j + 1, key))
    dx, dy = gradient(lattice(i + 1, j + 1, key))
    a, b = ax * x + ay * y, bx * (x - 1.0) + by * y
    c, d = cx * x + cy * (y - 1.0), dx * (x - 1.0) + dy * (y - 1.0)
    top = a + u * (b - a)
    return 1.4 * (top + v * (c + u * (d - c) - top))


@compiled
def contour(x: float, y: float, key: int) -> float:
    """Return the distance, in wavelengths, to the zero contour of noise: |n| / |grad n|, signed by n."""
    i, j = whole(x), whole(y)
    x, y = x - i, y - j
    u, v = x * x * x * (x * (x * 6.0 - 15.0) + 10.0), y * y * y * (y * (y * 6.0 - 15.0) + 10.0)
    du, dv = 30.0 * x * x * (x - 1.0) ** 2, 30.0 * y * y * (y - 1.0) ** 2
    ax, ay = gradient(lattice(i, j, key))
    bx, by = gradient(lattice(i + 1, j, key))
    cx, cy = gradient(lattice(i, j + 1, key))
    dx, dy = gradient(lattice(i + 1, j + 1, key))
    a, b = ax * x + ay * y, bx * (x - 1.0) + by * y
    c, d = cx * x + cy * (y - 1.0), dx * (x - 1.0) + dy * (y - 1.0)
    n = a + u * (b - a) + v * (c - a + u * (a - b - c + d))
    nx = ax + u * (bx - ax) + v * (cx - ax + u * (ax - bx - cx + dx)) + du * (b - a + v * (a - b - c + d))
    ny = ay + u * (by - ay) + v * (cy - ay + u * (ay - by - cy + dy)) + dv * (c - a + u * (a - b - c + d))
    return n / (math.sqrt(nx * nx + ny * ny) + 0.1)


@compiled
def fractal(x: float, y: float, wave_m: float, octaves: int, gain: float, gsd_m: float, key: int) -> float:
    """Sum octaves of noise from ``wave_m`` down, each turned by 37 degrees, faded out as it nears two pixels."""
    total, weight = 0.0, 1.0
    x, y = x / wave_m, y / wave_m
    for octave in range(octaves):
        seen = min(0.5 * wave_m / gsd_m - 1.0, 1.0)
        if seen <= 0.0:
            break
        total += seen * weight * noise(x, y, key + octave)
        x, y = 1.6 * x - 1.2 * y + 17.3, 1.2 * x + 1.6 * y - 9.1
        weight *= gain
        wave_m *= 0.5
    return total


@compiled
def sphere(x: float, y: float, z: float, key: int) -> float:
    """Return value noise in three dimensions, wavelength 1, within [-1, 1]: the planet's coarse fields."""
    i, j, k = whole(x), whole(y), whole(z)
    x, y, z = x - i, y - j, z - k
    u, v, w = x * x * (3.0 - 2.0 * x), y * y * (3.0 - 2.0 * y), z * z * (3.0 - 2.0 * z)
    total = 0.0
    for corner in range(8):
        a, b, c = corner & 1, (corner >> 1) & 1, corner >> 2
        weight = (u if a else 1.0 - u) * (v if b else 1.0 - v) * (w if c else 1.0 - w)
        total += weight * unit(lattice(i + a, j + b, key + 7919 * (k + c)))
    return 2.0 * total - 1.0


@compiled
def crown(x: float, y: float, share: float, key: int) -> float:
    """Return the height, 0 to 1, of round crowns of diameter about 1, of which ``share`` of the sites are taken."""
    i0, j0 = whole(x), whole(y)
    top = 0.0
    for j in range(j0 - 1, j0 + 2):
        for i in range(i0 - 1, i0 + 2):
            bits = lattice(i, j, key)
            if unit(bits) < share:
                dx, dy = x - i - unit(bits, 1), y - j - unit(bits, 2)
                radius = 0.45 + 0.35 * unit(bits, 3)
                top = max(top, 1.0 - (dx * dx + dy * dy) / (radius * radius))
    return top
