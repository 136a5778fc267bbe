"""Sensors and their bands: names, wavelengths, pixel sizes, and what an unnamed band of a file is called.

Stands first in imagery: ``headers`` names a file's bands with it, the manifest stores those names and the loader picks
bands by them. Wavelengths: ESA Sentinel-2 MSI spectral responses (S2A), USGS Landsat 7 ETM+ and 8/9 OLI/TIRS band
designations, USDA NAIP (Leica ADS). Common names follow STAC's ``eo`` extension, with swir1 and swir2 for swir16/22.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Band:
    """One band: its designation, common name, centre wavelength (None for radar) and ground sample distance."""

    designation: str
    name: str
    wavelength_nm: float | None
    gsd_m: float


@dataclass(frozen=True)
class Sensor:
    """A sensor's bands in their usual file order; value = ``scale`` * digital number + ``offset``, in ``unit``."""

    name: str
    bands: tuple[Band, ...]
    scale: float
    offset: float
    unit: str


def _bands(text: str) -> tuple[Band, ...]:
    rows = (line.split() for line in text.strip().splitlines())
    return tuple(Band(code, name, None if nm == "-" else float(nm), float(gsd)) for code, name, nm, gsd in rows)


_LANDSAT_OLI = _bands("""
    b1  coastal   443.0 30
    b2  blue      482.0 30
    b3  green     561.4 30
    b4  red       654.6 30
    b5  nir       864.7 30
    b6  swir1    1608.9 30
    b7  swir2    2200.7 30
    b8  pan       589.5 15
    b9  cirrus   1373.4 30
    b10 thermal1 10895  100
    b11 thermal2 12005  100
""")

SENSORS: dict[str, Sensor] = {
    sensor.name: sensor
    for sensor in (
        Sensor(
            "sentinel-2",
            _bands("""
                b1  coastal   442.7 60
                b2  blue      492.4 10
                b3  green     559.8 10
                b4  red       664.6 10
                b5  rededge1  704.1 20
                b6  rededge2  740.5 20
                b7  rededge3  782.8 20
                b8  nir       832.8 10
                b8a nir08     864.7 20
                b9  nir09     945.1 60
                b10 cirrus   1373.5 60
                b11 swir1    1613.7 20
                b12 swir2    2202.4 20
            """),
            1e-4,
            0.0,
            "reflectance",
        ),
        Sensor(
            "landsat-7",
            _bands("""
                b1 blue     485 30
                b2 green    560 30
                b3 red      660 30
                b4 nir      835 30
                b5 swir1   1650 30
                b6 thermal 11450 60
                b7 swir2   2220 30
                b8 pan      710 15
            """),
            2.75e-5,
            -0.2,
            "reflectance",
        ),
        Sensor("landsat-8", _LANDSAT_OLI, 2.75e-5, -0.2, "reflectance"),
        Sensor("landsat-9", _LANDSAT_OLI, 2.75e-5, -0.2, "reflectance"),
        Sensor(
            "naip", _bands("red red 635 1 \n green green 560 1 \n blue blue 460 1 \n nir nir 860 1"), 1 / 255, 0.0, "1"
        ),
        Sensor("sentinel-1", _bands("vv vv - 10 \n vh vh - 10"), 1.0, 0.0, "dB"),
        Sensor("rgb", _bands("red red 660 1 \n green green 560 1 \n blue blue 480 1"), 1 / 255, 0.0, "1"),
        Sensor(
            "rgbn", _bands("red red 660 1 \n green green 560 1 \n blue blue 480 1 \n nir nir 840 1"), 1 / 255, 0.0, "1"
        ),
        Sensor("grey", _bands("grey grey 600 1"), 1 / 255, 0.0, "1"),
    )
}

_SYNONYMS = {"gray": "grey", "nearinfrared": "nir", "nir1": "nir", "r": "red", "g": "green", "b": "blue"}
_COLOURS = {"red", "green", "blue", "nir", "alpha", "rededge", "coastal", "pan", "swir"}


def guess_band_names(
    count: int,
    descriptions: Sequence[str | None] = (),
    colorinterp: Sequence[str] = (),
    photometric: str = "",
) -> list[str]:
    """Name a file's bands: by its descriptions, else by its colour interpretation, else ``band_1``, ``band_2``, ...

    A designation such as "B4" becomes a common name only when every sensor that has all of the file's designations
    calls it the same; otherwise it is kept in lower case. An alpha band is called "alpha".

    Args:
        count: bands in the file.
        descriptions: the file's own band descriptions, None or "" where there is none.
        colorinterp: GDAL's names ("red", "gray", "undefined", ...), in file order.
        photometric: "rgb", "grey" or "palette" for formats without per-band interpretation.

    Returns:
        ``count`` different names.
    """
    known = _described(list(descriptions[:count]) + [None] * (count - len(descriptions)))
    order = {"rgb": ["red", "green", "blue"], "grey": ["grey"], "palette": ["palette"]}.get(photometric, [])
    names = []
    for i in range(count):
        colour = colorinterp[i].replace("gray", "grey") if i < len(colorinterp) else ""
        # GDAL calls the first of any stack of bands grey, so grey says something only of a file that has one colour.
        plain_grey = colour == "grey" and all(other in ("alpha", "gray", "grey") for other in colorinterp)
        grey = plain_grey and (count == 1 or "alpha" in colorinterp)
        colour = colour if colour in _COLOURS or grey or colour == "palette" else ""
        ordered = order[i] if i < len(order) else ""
        names.append(known[i] or colour or ordered or f"band_{i + 1}")
    return [f"{name}_{i + 1}" if name in names[:i] else name for i, name in enumerate(names)]


def _described(descriptions: list[str | None]) -> list[str | None]:
    plain = [None if not text or not text.strip() else text.strip().lower() for text in descriptions]
    codes = [re.sub(r"^(?:band[ _-]?|b)0*(\d+a?)$", r"b\1", text) if text else None for text in plain]
    given = {code for code in codes if code}
    fitting = [s for s in SENSORS.values() if given <= {band.designation for band in s.bands}]
    names: list[str | None] = []
    for text, code in zip(plain, codes, strict=True):
        if text is None or code is None:
            names.append(None)
            continue
        meanings = {band.name for sensor in fitting for band in sensor.bands if band.designation == code}
        common = re.sub(r"[ _-]", "", text)
        names.append(meanings.pop() if len(meanings) == 1 else _SYNONYMS.get(common, text))
    return names
