"""Curves of a run as SVG: no script, no font, colours from the page's style sheet.

Between ``run_folder`` and ``page``. A curve of many points is drawn as the mean of each bucket over a band from its
smallest to its largest value, so a spike stays visible whatever the length of the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from statistics import fmean, median

WIDTH, HEIGHT = 400, 210
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 12, 26
BUCKETS = 140
GAP = 3.5  # a distance of so many usual ones between two log lines breaks the curve
Point = tuple[float, float]
Bucket = tuple[float, float, float, float]  # x, mean, smallest, largest


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic scale from values to pixels."""

    low: float
    high: float
    start_px: float
    stop_px: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the place of a value in pixels."""
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start_px + (at - low) / ((high - low) or 1.0) * (self.stop_px - self.start_px)

    def ticks(self, count: int = 4) -> list[float]:
        """Return round values within the scale, about ``count`` of them."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            return [10.0**power for power in range(first, last + 1, max(1, math.ceil((last - first) / count)))]
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
        unit = next(u * power for u in (1, 2, 2.5, 5, 10) if u * power >= rough * 0.999)
        first = math.ceil(self.low / unit - 1e-9)
        return [unit * n for n in range(first, math.floor(self.high / unit + 1e-9) + 1)]


def curve(
    name: str, points: list[tuple[int, float | None]], resumes: list[int], steps: tuple[int, int], *, log: bool = True
) -> str:
    """Draw one number of the log against the step.

    Args:
        name: what it is, for the accessible title.
        points: (step, value), ascending; None where the value was not finite.
        resumes: steps after which a resume went on, marked by a dashed line.
        steps: first and last of the horizontal axis, shared by all curves of a page.
        log: use a logarithmic scale where the values span more than a factor of 50.

    Returns:
        An ``<svg>`` element (classes curve, band, dot, grid, mark, bad); "" without a finite value.
    """
    values = [value for _, value in points if value is not None]
    if not values:
        return ""
    across = Axis(steps[0], max(steps[1], steps[0] + 1), LEFT, WIDTH - RIGHT)
    up = _value_axis(values, log)
    body = [_frame(across, up)]
    for step in resumes:
        x = f"{across(step):.1f}"
        body.append(f'<line class="mark" x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    body += [_stroke(_bucketed(part, len(values)), across, up) for part in _parts(points)]
    for step, value in points:
        if value is None:
            body.append(f'<circle class="bad" cx="{across(step):.1f}" cy="{HEIGHT - BOTTOM}" r="3"/>')
    title = escape(f"{name}, {compact(values[0])} first, {compact(values[-1])} last")
    opening = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">'
    return opening + "".join(body) + "</svg>"


def compact(value: float) -> str:
    """Write a number with three significant digits, thousands as k and M."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size >= 1000:
        return f"{value:.0f}"
    if size >= 1e-3 or size == 0:
        return f"{value:.3g}"
    return f"{value:.2g}".replace("e-0", "e-")


def _value_axis(values: list[float], log: bool) -> Axis:
    low, high = min(values), max(values)
    if log and low > 0 and high / low > 50:
        low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high))
        return Axis(low, high, HEIGHT - BOTTOM, TOP, log=True)
    from_zero = 0 <= low < 0.6 * high
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return Axis(0.0 if from_zero else low - margin, high + margin, HEIGHT - BOTTOM, TOP)


def _frame(across: Axis, up: Axis) -> str:
    lines = []
    for value in up.ticks():
        y = up(value)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{compact(value)}</text>')
    for value in across.ticks(5):
        if value == int(value):
            x = across(value)
            anchor = "end" if x > WIDTH - RIGHT - 14 else "middle"
            x = min(x, WIDTH - 2)
            lines.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{compact(value)}</text>')
    return "".join(lines)


def _stroke(buckets: list[Bucket], across: Axis, up: Axis) -> str:
    if len(buckets) == 1:
        x, mean, _, _ = buckets[0]
        return f'<circle class="dot" cx="{across(x):.1f}" cy="{up(mean):.1f}" r="2.2"/>'
    band = ""
    if any(high > low for _, _, low, high in buckets):
        edge = [(x, high) for x, _, _, high in buckets] + [(x, low) for x, _, low, _ in reversed(buckets)]
        band = f'<polygon class="band" points="{_path(edge, across, up)}"/>'
    means = [(x, mean) for x, mean, _, _ in buckets]
    return band + f'<polyline class="curve" points="{_path(means, across, up)}"/>'


def _parts(points: list[tuple[int, float | None]]) -> list[list[Point]]:
    """Cut the curve where log lines are missing or values are not finite."""
    usual = median([after[0] - before[0] for before, after in pairwise(points)] or [1])
    parts: list[list[Point]] = [[]]
    previous = points[0][0]
    for step, value in points:
        if value is None or step - previous > GAP * usual:
            parts.append([])
        if value is not None:
            parts[-1].append((float(step), value))
        previous = step
    return [part for part in parts if part]


def _bucketed(part: list[Point], total: int) -> list[Bucket]:
    size = math.ceil(total / BUCKETS)
    groups = [part[start : start + size] for start in range(0, len(part), size)]
    return [
        (fmean(x for x, _ in group), fmean(y for _, y in group), min(y for _, y in group), max(y for _, y in group))
        for group in groups
    ]


def _path(points: list[Point], across: Axis, up: Axis) -> str:
    return " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
