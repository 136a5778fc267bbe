"""Maps as SVG: an extent, its graticule and what lies in it. No coast lines, no tiles, no request.

Used by the pages of redundancy and of curation; colours come from the page's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from terrasieve.report.curves import Axis, compact

WIDE_PX, LEFT_PX, TOP_PX, TALL_PX = 1000, 60, 8, 640
SHADES = 9  # classes s0 to s8
SMALLEST_PX = 6.0  # side of a cell
Values = NDArray[np.float64]


class Frame:
    """A map's extent in degrees and its axes."""

    def __init__(self, lon: Values, lat: Values) -> None:
        """Fit longitudes and latitudes, degrees, finite, with a margin; a degree is as long as at their middle."""
        x, y = (float(v.min() + v.max()) / 2 for v in (lon, lat))
        squeeze = max(math.cos(math.radians(y)), 0.2)  # a degree of longitude is so much shorter than one of latitude
        half_x, half_y = float(np.ptp(lon)) / 2, float(np.ptp(lat)) / 2
        half_y = max(half_y, 0.15 * half_x * squeeze, 5e-4) * 1.06
        half_x = max(half_x * 1.06, 0.5 * half_y / squeeze)
        west, east, south, north = (
            max(x - half_x, -180),
            min(x + half_x, 180),
            max(y - half_y, -90),
            min(y + half_y, 90),
        )
        scale = min((WIDE_PX - LEFT_PX - 10) / ((east - west) * squeeze), TALL_PX / (north - south))
        self.width, self.height = scale * (east - west) * squeeze, scale * (north - south)
        self.across = Axis(west, east, LEFT_PX, LEFT_PX + self.width)
        self.up = Axis(south, north, self.height + TOP_PX, TOP_PX)

    def graticule(self) -> list[str]:
        """Draw the background, and lines of round degrees with their names."""
        right, bottom = LEFT_PX + self.width, TOP_PX + self.height
        body = [f'<rect class="sea" x="{LEFT_PX}" y="8" width="{self.width:.1f}" height="{self.height:.1f}"/>']
        for tick in self.across.ticks(6):
            x = f"{self.across(tick):.1f}"
            body.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP_PX}" y2="{bottom:.1f}"/>')
            body.append(f'<text x="{x}" y="{bottom + 16:.1f}" text-anchor="middle">{degrees(tick, "E", "W")}</text>')
        for tick in self.up.ticks(5):
            y = self.up(tick)
            body.append(f'<line class="grid" x1="{LEFT_PX}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
            body.append(f'<text x="{LEFT_PX - 6}" y="{y + 4:.1f}" text-anchor="end">{degrees(tick, "N", "S")}</text>')
        return body

    def svg(self, title: str, body: Sequence[str], below_px: float = 24) -> str:
        """Put a map together, with room below it for a legend."""
        return (
            f'<svg viewBox="0 0 {WIDE_PX} {self.height + below_px:.0f}" role="img" aria-label="{escape(title)}">'
            + "".join(body)
            + "</svg>"
        )


def counts(cells: Sequence[Sequence[float]], cell_deg: float) -> str:
    """Draw the number of kept images per cell; cells of which nothing is kept are outlined.

    Args:
        cells: (west and south edge in degrees, rows, kept), at least one.
        cell_deg: side of a cell.
    """
    west, south, _, kept = (np.array(column, np.float64) for column in zip(*cells, strict=True))
    frame = Frame(np.concatenate([west, west + cell_deg]), np.concatenate([south, south + cell_deg]))
    most = float(kept.max())
    body = frame.graticule()
    for x, y, count in zip(west.tolist(), south.tolist(), kept.tolist(), strict=True):
        left, right, top, bottom = frame.across(x), frame.across(x + cell_deg), frame.up(y + cell_deg), frame.up(y)
        more_x, more_y = (max(0.0, SMALLEST_PX - side) / 2 for side in (right - left, bottom - top))
        kind = f"s{shade(math.log1p(count), 0, math.log1p(most))}" if count else "none"
        body.append(
            f'<rect class="{kind}" x="{left - more_x:.1f}" y="{top - more_y:.1f}" '
            f'width="{right - left + 2 * more_x:.1f}" height="{bottom - top + 2 * more_y:.1f}"/>'
        )
    body += legend("1", compact(most), frame.height + 38)
    return frame.svg(f"{len(cells)} cells with {kept.sum():.0f} kept images", body, 72)


def legend(low: str, high: str, y: float) -> list[str]:
    """Draw the scale of shades with its ends' names."""
    step = 34
    boxes = [
        f'<rect class="s{number}" x="{LEFT_PX + step * number}" y="{y:.1f}" width="{step}" height="10"/>'
        for number in range(SHADES)
    ]
    ends = ((LEFT_PX, low, "start"), (LEFT_PX + step * SHADES, high, "end"))
    return boxes + [f'<text x="{x}" y="{y + 26:.1f}" text-anchor="{at}">{escape(name)}</text>' for x, name, at in ends]


def shade(value: float, low: float, high: float) -> int:
    """Return the number of a value's shade between two ends."""
    return int(np.clip((value - low) / ((high - low) or 1.0) * SHADES, 0, SHADES - 1))


def degrees(value: float, plus: str, minus: str) -> str:
    """Write a longitude or latitude with its side."""
    return f"{abs(value):.6g}°{plus if value > 0 else minus if value < 0 else ''}"
