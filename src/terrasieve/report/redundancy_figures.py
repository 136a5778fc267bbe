"""Figures of the redundancy page as SVG: histograms, spreads of groups, a map. No script, no font, no request.

Beside ``curves``, whose scales they share; colours come from the page's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from terrasieve.report import maps
from terrasieve.report.curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, compact

Values = NDArray[np.float64]
BINS = 40
ROW_PX, NAME_PX, WIDE_PX = 30, 190, 1000
POINTS = 3000  # more are drawn as means of cells
CELLS = 110


def limits(values: Values) -> tuple[float, float]:
    """Return where an axis begins and ends: the values' range, without the outermost thousandth on either side."""
    low, high = (float(v) for v in np.quantile(values, [0.001, 0.999]))
    return (low, high) if high - low > 1e-9 * max(abs(low), abs(high), 1e-9) else (low - 0.5, high + 0.5)


def histogram(name: str, values: Values) -> str:
    """Draw how many images have which value, with a line at the mean.

    Args:
        name: for the accessible title.
        values: one or more, finite; those beyond ``limits`` count in the outermost bars.
    """
    low, high = limits(values)
    bins = int(np.clip(2 * math.sqrt(len(values)), 8, BINS))
    counts, edges = np.histogram(values.clip(low, high), bins, (low, high))
    across, up = Axis(low, high, LEFT, WIDTH - RIGHT), Axis(0, counts.max(), HEIGHT - BOTTOM, TOP)
    body = []
    for tick in up.ticks(3):
        body.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>')
        body.append(f'<text x="{LEFT - 7}" y="{up(tick) + 4:.1f}" text-anchor="end">{compact(tick)}</text>')
    body += [_tick_label(across, tick, HEIGHT - 8) for tick in across.ticks(5)]
    width = (across(edges[1]) - across(edges[0])) * 0.92
    for count, edge in zip(counts, edges, strict=False):
        if count:
            top = up(float(count))
            body.append(
                f'<rect class="bar" x="{across(float(edge)):.1f}" y="{top:.1f}" width="{width:.1f}" '
                f'height="{HEIGHT - BOTTOM - top:.1f}"/>'
            )
    mean = across(float(values.clip(low, high).mean()))
    body.append(f'<line class="mark" x1="{mean:.1f}" x2="{mean:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    return _svg(f"{name}: mean {compact(float(values.mean()))} of {len(values)} images", WIDTH, HEIGHT, body)


def spreads(name: str, groups: Sequence[tuple[str, Values]]) -> str:
    """Draw one histogram per group on a common scale, with a tick at its mean: a row of name, bars and number each.

    Args:
        name: of the score.
        groups: (name, values), none empty, from top to bottom.
    """
    low, high = limits(np.concatenate([values for _, values in groups]))
    across = Axis(low, high, NAME_PX, WIDE_PX - 62)
    height = ROW_PX * len(groups) + 26
    bins = int(np.clip(2 * math.sqrt(np.median([len(values) for _, values in groups])), 12, 2 * BINS))
    body = []
    for tick in across.ticks(8):
        x = f"{across(tick):.1f}"
        body.append(f'<line class="grid" x1="{x}" x2="{x}" y1="2" y2="{height - 22}"/>')
        body.append(_tick_label(across, tick, height - 6))
    for number, (label, values) in enumerate(groups):
        floor = ROW_PX * (number + 1) - 3
        counts, edges = np.histogram(values.clip(low, high), bins, (low, high))
        tall = (ROW_PX - 6) / counts.max()
        steps = "".join(
            f"V{floor - tall * count:.1f}H{across(float(right)):.1f}"
            for count, right in zip(counts, edges[1:], strict=True)
        )
        body.append(f'<path class="hill" d="M{NAME_PX},{floor}{steps}V{floor}Z"/>')
        mean = across(float(values.clip(low, high).mean()))
        body.append(f'<line class="mean" x1="{mean:.1f}" x2="{mean:.1f}" y1="{floor - ROW_PX + 6}" y2="{floor}"/>')
        shown = label if len(label) <= 24 else f"{label[:23]}…"
        body.append(
            f'<text class="name" x="{NAME_PX - 8}" y="{floor - 6}" text-anchor="end">{escape(shown)} '
            f"<tspan>({len(values):,})</tspan></text>"
        )
        body.append(
            f'<text class="name" x="{WIDE_PX}" y="{floor - 6}" text-anchor="end">{compact(float(values.mean()))}</text>'
        )
    return _svg(f"{name} of {len(groups)} groups", WIDE_PX, height, body)


def world(name: str, lon: Values, lat: Values, values: Values) -> str:
    """Draw where the images lie, coloured by a score, on longitude and latitude.

    Args:
        name: of the score.
        lon, lat: degrees, finite.
        values: one per image.
    """
    low, high = (float(v) for v in np.quantile(values, [0.02, 0.98]))
    frame = maps.Frame(lon, lat)
    across, up, width, height = frame.across, frame.up, frame.width, frame.height
    body = frame.graticule()
    if len(values) > POINTS:
        places = np.array([(across(x), up(y)) for x, y in zip(lon, lat, strict=True)])
        body += _cells(places, values, low, high)
    else:
        radius = float(np.clip(0.25 * math.sqrt(width * height / len(values)), 2.2, 6))
        for x, y, value in zip(lon, lat, values, strict=True):
            shade = maps.shade(value, low, high)
            body.append(f'<circle class="s{shade}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="{radius:.1f}"/>')
    body += maps.legend(compact(low), compact(high), height + 38)
    return frame.svg(f"{name} of {len(values)} images by place", body, 72)


def _cells(places_N2: Values, values: Values, low: float, high: float) -> list[str]:
    side = (WIDE_PX - 70) / CELLS
    cell = (places_N2 // side).astype(np.int64)
    places, inverse, counts = np.unique(cell, axis=0, return_inverse=True, return_counts=True)
    mean = np.bincount(inverse.ravel(), values) / counts
    return [
        f'<rect class="s{maps.shade(v, low, high)}" x="{px * side:.1f}" y="{py * side:.1f}" '
        f'width="{side:.1f}" height="{side:.1f}"/>'
        for (px, py), v in zip(places.tolist(), mean.tolist(), strict=True)
    ]


def _tick_label(across: Axis, value: float, y: float) -> str:
    return f'<text x="{across(value):.1f}" y="{y}" text-anchor="middle">{compact(value)}</text>'


def _svg(title: str, width: float, height: float, body: Sequence[str]) -> str:
    opening = f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">'
    return opening + "".join(body) + "</svg>"
