"""Figures of the page on geography as SVG: images on the map and among their features, how alike they are.

Used by ``geography_page``. Two colours tell of two things: on the map the first three principal components of the
features, among the features the place (hue from west to east, light from south to north). Every image is a dot;
thousands are painted into one picture. No script, no font, no request.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from terrasieve.evaluate.geography import Falling
from terrasieve.report import maps
from terrasieve.report.curves import Axis, compact
from terrasieve.report.render import data_uri

DOTS = 4000  # more are painted
CELL_PX = 2.5  # of what is painted
SPACE_PX = 620
WIDE_PX, TALL_PX, LEFT_PX, RIGHT_PX = 1000, 330, 62, 150
_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)
Floats = NDArray[np.float64]


def component_colours(components_N3: Floats) -> Floats:
    """Turn three components into red, green and blue, (N, 3) in 0 to 255, neither black nor white."""
    low, high = np.quantile(components_N3, [0.02, 0.98], axis=0)
    return np.asarray(28 + 208 * np.clip((components_N3 - low) / np.maximum(high - low, 1e-12), 0, 1))


def place_colours(lon: Floats, lat: Floats) -> Floats:
    """Turn places into colours, (N, 3) in 0 to 255: hue from west to east, light from south to north.

    Around the whole Earth hues close at the antimeridian. Equal steps look equal (OKLCH, Ottosson 2020).
    """
    around = np.ptp(lon) > 300
    east, north = (lon + 180) / 360 if around else _spread(lon) * 0.8, _spread(lat)
    hue, light, chroma = 2 * np.pi * (east + 0.06), 0.52 + 0.28 * north, 0.15
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    lms = np.stack(
        [
            light + 0.3963377774 * a + 0.2158037573 * b,
            light - 0.1055613458 * a - 0.0638541728 * b,
            light - 0.0894841775 * a - 1.2914855480 * b,
        ]
    )
    rgb = _TO_RGB @ lms**3
    return np.asarray(
        255 * np.clip(np.where(rgb > 0.0031308, 1.055 * np.maximum(rgb, 0) ** (1 / 2.4) - 0.055, 12.92 * rgb), 0, 1)
    ).T


def _spread(values: Floats) -> Floats:
    return np.asarray((values - values.min()) / max(float(np.ptp(values)), 1e-12))


def world(lon: Floats, lat: Floats, colours_N3: Floats) -> str:
    """Draw images where they lie.

    Args:
        lon, lat: degrees, finite.
        colours_N3: 0 to 255.
    """
    frame = maps.Frame(lon, lat)
    x, y = (np.array([axis(v) for v in values.tolist()]) for axis, values in ((frame.across, lon), (frame.up, lat)))
    body = frame.graticule() + _dots(x, y, colours_N3, frame.width * frame.height)
    drawn = frame.svg(f"{len(lon)} images by place, coloured by their features", body, 34)
    return drawn.replace(f'viewBox="0 0 {maps.WIDE_PX} ', f'viewBox="-24 0 {maps.LEFT_PX + frame.width + 36:.0f} ')


def aspect(lon: Floats, lat: Floats) -> float:
    """Return how many times as wide as high the map is."""
    frame = maps.Frame(lon, lat)
    return frame.width / frame.height


def space(components_N2: Floats, lon: Floats, lat: Floats, shares: Sequence[float]) -> str:
    """Draw images in the plane of the first two principal components of their features, one scale for both.

    The farthest hundredth at each end lies on the edge.

    Args:
        components_N2: first and second component.
        lon, lat: degrees, give the colours.
        shares: of the variance, for the axes' names.
    """
    low, high = np.quantile(components_N2, [0.01, 0.99], axis=0)  # a few blank images lie far from all others
    half = max(float((high - low).max()) / 2 * 1.06, 1e-12)
    middle = (low + high) / 2
    across = Axis(middle[0] - half, middle[0] + half, 8, SPACE_PX)
    up = Axis(middle[1] - half, middle[1] + half, SPACE_PX, 8)
    x, y = (
        np.clip([axis(v) for v in column.tolist()], 10, SPACE_PX - 2)
        for axis, column in zip((across, up), components_N2.T, strict=True)
    )
    side = SPACE_PX - 8
    body = [
        f'<rect class="sea" x="8" y="8" width="{side}" height="{side}"/>',
        *_dots(x, y, place_colours(lon, lat), side * side),
    ]
    corners = [(left, top) for top in (14, SPACE_PX - 116) for left in (SPACE_PX - 118, 14)]
    covered = [int(((x > a) & (x < a + 112) & (y > b) & (y < b + 96)).sum()) for a, b in corners]
    body += _key(*corners[int(np.argmin(covered))], lon, lat)
    said = f"component 1, {100 * shares[0]:.0f} % of the variance; upwards component 2, {100 * shares[1]:.0f} %"
    body.append(f'<text x="{8 + side / 2:.0f}" y="{SPACE_PX + 22}" text-anchor="middle">{said}</text>')
    return _svg(SPACE_PX + 8, SPACE_PX + 34, f"{len(x)} images by their features, coloured by place", body)


def falling(curves: Mapping[str, Falling]) -> str:
    """Draw how alike images are against how far apart they lie, a line per encoder, the first one in front.

    Args:
        curves: of one set of images, at least one.
    """
    right = WIDE_PX - RIGHT_PX
    reach = max(max(float(np.abs(one.percentile - 50).max()) for one in curves.values()) * 1.15, 5)
    across = Axis(0, float(next(iter(curves.values())).edges_km[-1]), LEFT_PX, right)
    up = Axis(50 - reach, 50 + reach, TALL_PX - 46, 14)
    body = []
    for tick in up.ticks(5):
        y = up(tick)
        body.append(f'<line class="grid" x1="{LEFT_PX}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(f'<text x="{LEFT_PX - 8}" y="{y + 4:.1f}" text-anchor="end">{compact(tick)}</text>')
    names = [(across(tick), TALL_PX - 26, compact(tick)) for tick in across.ticks(8)]
    names.append(((LEFT_PX + right) / 2, TALL_PX - 6, "distance, km"))
    body += [f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{name}</text>' for x, y, name in names]
    body.append(f'<line class="mark" x1="{LEFT_PX}" x2="{right}" y1="{up(50):.1f}" y2="{up(50):.1f}"/>')
    ends = []
    for number, one in reversed(list(enumerate(curves.values()))):
        middles = (one.edges_km[:-1] + one.edges_km[1:]) / 2
        points = [(across(x), up(y)) for x, y in zip(middles.tolist(), one.percentile.tolist(), strict=True)]
        path = "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
        body.append(f'<path class="line l{number}" d="M{path}"/>')
        body += [f'<circle class="l{number}" cx="{x:.1f}" cy="{y:.1f}" r="3.4"/>' for x, y in points]
        ends.append(points[-1][1])
    for number, (name, y) in enumerate(zip(curves, _apart(ends[::-1], 19), strict=True)):
        body.append(f'<text class="end l{number}" x="{right + 10}" y="{y + 4:.1f}">{escape(name)}</text>')
    return _svg(WIDE_PX, TALL_PX, "similarity of pairs of images by their distance", body)


def _apart(places: Sequence[float], least: float) -> list[float]:
    """Push labels apart, from the top down, in the order of their places."""
    order = np.argsort(places, kind="stable")
    found, last = np.empty(len(places)), -np.inf
    for number in order:
        last = found[number] = max(places[number], last + least)
    return [float(place) for place in found]


def _dots(x: Floats, y: Floats, colours_N3: Floats, area_px: float) -> list[str]:
    """Draw dots, up to thousands of them one by one, else the mean colour of every small cell."""
    if len(x) > DOTS:
        return [_painted(x, y, colours_N3)]
    radius = float(np.clip(0.28 * np.sqrt(area_px / len(x)), 2.2, 8))
    codes = ["#{:02x}{:02x}{:02x}".format(*row) for row in np.rint(colours_N3).astype(int).tolist()]
    return [
        f'<circle fill="{code}" cx="{px:.1f}" cy="{py:.1f}" r="{radius:.1f}"/>'
        for code, px, py in zip(codes, x.tolist(), y.tolist(), strict=True)
    ]


def _painted(x: Floats, y: Floats, colours_N3: Floats) -> str:
    left, top = float(x.min()), float(y.min())
    column, row = ((v - low) // CELL_PX for v, low in ((x, left), (y, top)))
    width, height = int(column.max()) + 1, int(row.max()) + 1
    cell = (row * width + column).astype(np.int64)
    count = np.bincount(cell, minlength=width * height)
    mean = (
        np.stack([np.bincount(cell, band, width * height) for band in colours_N3.T], axis=1)
        / np.maximum(count, 1)[:, None]
    )
    pixels = np.concatenate([np.rint(mean), 255.0 * (count > 0)[:, None]], axis=1).astype(np.uint8)
    picture = Image.fromarray(pixels.reshape(height, width, 4))
    return _image(picture, left, top, width * CELL_PX, height * CELL_PX, "image-rendering:pixelated")


def _key(x: float, y: float, lon: Floats, lat: Floats) -> list[str]:
    """Draw which place has which colour."""
    across, down = np.linspace(lon.min(), lon.max(), 48), np.linspace(lat.max(), lat.min(), 32)
    colours = np.rint(place_colours(*(v.ravel() for v in np.meshgrid(across, down)))).astype(np.uint8)
    names = (("N", 56, 15), ("S", 56, 88), ("W", 11, 51), ("E", 101, 51))
    return [
        f'<rect class="under" x="{x}" y="{y}" width="112" height="96" rx="5"/>',
        _image(Image.fromarray(colours.reshape(32, 48, 3)), x + 22, y + 21, 67, 50),
        *(f'<text x="{x + dx}" y="{y + dy}" text-anchor="middle">{name}</text>' for name, dx, dy in names),
    ]


def _image(picture: Image.Image, x: float, y: float, width: float, height: float, style: str = "") -> str:
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return (
        f'<image x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" preserveAspectRatio="none" '
        f'style="{style}" href="{data_uri("image/png", stream.getvalue())}"/>'
    )


def _svg(width: float, height: float, title: str, body: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{"".join(body)}</svg>'
