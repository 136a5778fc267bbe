"""What the ground is made of: land-cover classes, spectra of materials, and the crop calendar.

Stands beside the planet; the painters of ``surface`` and ``objects`` blend these spectra. Reflectances are rounded
from the broad-band values that the USGS spectral library (Kokaly et al. 2017) and Sentinel-2 surface-reflectance
scenes show; they are plausible, not measured.
"""

from __future__ import annotations

import datetime

import numpy as np
from numpy.typing import NDArray

from terrasieve.errors import UserError

BANDS = ("blue", "green", "red", "red_edge", "nir", "swir1", "swir2")
BAND_NM = (490, 560, 665, 705, 842, 1610, 2190)

# Values of a chip's mask, in this order.
LAND_COVER = (
    "sea",
    "fresh_water",
    "sand",
    "rock",
    "snow",
    "forest",
    "shrub",
    "grass",
    "crop",
    "road",
    "pavement",
    "building",
    "ship",
    "tank",
    "solar",
)
(SEA, FRESH_WATER, SAND, ROCK, SNOW, FOREST, SHRUB, GRASS, CROP, ROAD, PAVEMENT, BUILDING, SHIP, TANK, SOLAR) = range(
    15
)
MASK_COLOURS = (
    (20, 50, 120), (50, 120, 200), (240, 220, 150), (140, 125, 115), (245, 250, 255), (20, 90, 40), (140, 150, 70),
    (150, 200, 90), (225, 180, 60), (90, 90, 90), (170, 165, 160), (200, 50, 45), (255, 90, 220), (150, 60, 200),
    (40, 40, 90),
)  # fmt: skip

_SPECTRA: dict[str, tuple[float, ...]] = {
    #               blue   green  red    edge   nir    swir1  swir2
    "deep":        (0.048, 0.038, 0.022, 0.014, 0.008, 0.004, 0.003),
    "shallow":     (0.095, 0.140, 0.085, 0.050, 0.025, 0.008, 0.005),
    "turbid":      (0.065, 0.095, 0.080, 0.065, 0.040, 0.012, 0.008),
    "foam":        (0.420, 0.420, 0.410, 0.390, 0.360, 0.120, 0.080),
    "beach":       (0.210, 0.285, 0.345, 0.370, 0.400, 0.460, 0.430),
    "desert":      (0.130, 0.215, 0.330, 0.370, 0.410, 0.510, 0.470),
    "pale_desert": (0.215, 0.290, 0.360, 0.385, 0.415, 0.500, 0.460),
    "red_desert":  (0.075, 0.125, 0.260, 0.305, 0.350, 0.440, 0.400),
    "soil":        (0.062, 0.090, 0.128, 0.155, 0.200, 0.290, 0.240),
    "red_soil":    (0.045, 0.075, 0.150, 0.185, 0.240, 0.310, 0.260),
    "dark_soil":   (0.038, 0.052, 0.068, 0.085, 0.115, 0.180, 0.150),
    "rock":        (0.110, 0.128, 0.148, 0.165, 0.190, 0.240, 0.220),
    "brown_rock":  (0.085, 0.112, 0.155, 0.180, 0.210, 0.280, 0.250),
    "snow":        (0.640, 0.648, 0.640, 0.620, 0.570, 0.100, 0.070),
    "ice":         (0.330, 0.390, 0.375, 0.340, 0.270, 0.035, 0.025),
    "broadleaf":   (0.024, 0.052, 0.029, 0.115, 0.350, 0.170, 0.075),
    "jungle":      (0.020, 0.046, 0.024, 0.105, 0.330, 0.150, 0.060),
    "conifer":     (0.018, 0.033, 0.022, 0.075, 0.210, 0.100, 0.045),
    "autumn":      (0.030, 0.070, 0.112, 0.170, 0.290, 0.210, 0.120),
    "bare_trees":  (0.050, 0.068, 0.082, 0.110, 0.170, 0.200, 0.140),
    "grass":       (0.036, 0.078, 0.046, 0.140, 0.360, 0.220, 0.110),
    "dry_grass":   (0.080, 0.122, 0.172, 0.210, 0.285, 0.360, 0.260),
    "shrub":       (0.045, 0.070, 0.075, 0.120, 0.220, 0.240, 0.160),
    "tundra":      (0.048, 0.066, 0.078, 0.115, 0.190, 0.230, 0.160),
    "crop":        (0.030, 0.076, 0.034, 0.150, 0.480, 0.210, 0.100),
    "straw":       (0.105, 0.155, 0.212, 0.250, 0.310, 0.380, 0.280),
    "bloom":       (0.060, 0.170, 0.160, 0.220, 0.430, 0.240, 0.130),
    "asphalt":     (0.085, 0.091, 0.096, 0.100, 0.108, 0.130, 0.130),
    "concrete":    (0.190, 0.215, 0.235, 0.250, 0.270, 0.310, 0.300),
    "gravel":      (0.150, 0.175, 0.195, 0.210, 0.230, 0.290, 0.270),
    "red_roof":    (0.080, 0.105, 0.200, 0.225, 0.255, 0.300, 0.280),
    "brown_roof":  (0.085, 0.100, 0.125, 0.140, 0.160, 0.220, 0.210),
    "grey_roof":   (0.150, 0.160, 0.168, 0.175, 0.190, 0.230, 0.230),
    "white_roof":  (0.400, 0.420, 0.425, 0.420, 0.415, 0.380, 0.350),
    "dark_roof":   (0.060, 0.063, 0.068, 0.072, 0.085, 0.110, 0.110),
    "blue_roof":   (0.230, 0.190, 0.120, 0.115, 0.140, 0.210, 0.200),
    "hull":        (0.115, 0.060, 0.055, 0.060, 0.080, 0.100, 0.090),
    "rust":        (0.060, 0.075, 0.170, 0.200, 0.230, 0.280, 0.260),
    "panel":       (0.055, 0.055, 0.058, 0.065, 0.085, 0.100, 0.090),
}  # fmt: skip

MATERIALS = tuple(_SPECTRA)
(
    DEEP, SHALLOW, TURBID, FOAM, BEACH, DESERT, PALE_DESERT, RED_DESERT, SOIL, RED_SOIL, DARK_SOIL, BARE_ROCK,
    BROWN_ROCK, FRESH_SNOW, ICE, BROADLEAF, JUNGLE, CONIFER, AUTUMN, BARE_TREES, GREEN_GRASS, DRY_GRASS, SCRUB, TUNDRA,
    GREEN_CROP, STRAW, BLOOM, ASPHALT, CONCRETE, GRAVEL, RED_ROOF, BROWN_ROOF, GREY_ROOF, WHITE_ROOF, DARK_ROOF,
    BLUE_ROOF, HULL, RUST, PANEL,
) = range(39)  # fmt: skip

CROPS, PHASES = 8, 8
# Day of year (north) of sowing and of harvest, and the share of green at the peak; the last two are meadows.
_CALENDAR = (
    (-60, 195, 1.0), (-45, 215, 0.95), (110, 275, 1.0), (125, 285, 0.9),
    (95, 250, 0.85), (-80, 185, 0.9), (-200, 600, 0.6), (-200, 600, 0.75),
)  # fmt: skip


def spectra(bands: tuple[str, ...]) -> NDArray[np.float32]:
    """Return the reflectance of every material in the asked bands.

    Returns:
        (39, C) float32, 0 to 1, rows in the order of ``MATERIALS``.

    Raises:
        UserError: a band is unknown.
    """
    unknown = [band for band in bands if band not in BANDS]
    if unknown or not bands:
        raise UserError(f"the procedural Earth has no band {unknown or '(none asked)'}; choose from {', '.join(BANDS)}")
    table = np.array(list(_SPECTRA.values()), dtype=np.float32)
    return np.ascontiguousarray(table[:, [BANDS.index(band) for band in bands]])


def crop_calendar(date: datetime.date) -> NDArray[np.float64]:
    """Return how green and how straw-coloured each crop is on a day; the rest of a parcel is bare soil.

    Returns:
        (2, CROPS, PHASES, 3) float64: hemisphere (north, south), crop, phase of the parcel (earlier to later by four
        weeks), and (green, straw, bloom), 0 to 1.
    """
    sow, harvest, peak = (np.array(column, dtype=np.float64)[None, :, None] for column in zip(*_CALENDAR, strict=True))
    local = date.timetuple().tm_yday + 182.0 * np.arange(2)[:, None, None]
    local = (local - 4.0 * (np.arange(PHASES) - PHASES // 2)) % 365.0
    # A winter crop is sown in the year before its harvest.
    age = (np.where(local <= harvest + 40.0, local, local - 365.0) - sow) / (harvest - sow)
    # Age is 0 at sowing and 1 at harvest; stubble stays until 1.25, and then the soil lies bare.
    straw = 0.9 * ((age - 0.72) / 0.18).clip(0.0, 1.0) * np.where(age <= 1.0, 1.0, 0.75)
    green = peak * np.sin(np.pi * (age / 0.95).clip(0.0, 1.0)).clip(0.0, 1.0) ** 0.8 * (1.0 - straw)
    bloom = np.exp(-(((age - 0.62) / 0.06) ** 2)) * (np.arange(CROPS) == 5)[:, None]
    bare = (age < 0.0) | (age > 1.25)
    return np.stack([np.where(bare, 0.03, green), np.where(bare, 0.08, straw), np.where(bare, 0.0, bloom)], axis=-1)
