"""Bars of the curation's page: kept and dropped rows by value of a column, long lists put together in classes."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Any, NamedTuple

TABLES = {
    "source": "Source",
    "category": "Category",
    "size": "Size, px",
    "gsd_m": "Ground sample distance, m",
    "year": "Year",
    "licence": "Licence",
    "sensor": "Sensor",
    "bands": "Bands",
    "dtype": "Type",
    "split": "Split",
}
LISTED = 14
_GSD_M = (0.1, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 100.0, 1000.0)
_SIDE_PX = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class Bar(NamedTuple):
    """A value, its rows, and the lengths of its two parts in per cent of the longest bar."""

    name: str
    kept: int
    rows: int
    kept_percent: float
    gone_percent: float


def bars(entries: list[dict[str, Any]], column: str) -> dict[str, Any]:
    """Lay a column's counts out as bars.

    Args:
        entries: {"value", "rows", "kept"} of ``curate.statistics``.
        column: a key of ``TABLES``; sizes and distances become classes where there are more than ``LISTED`` values.

    Returns:
        ``bars``, and ``left_out``, the number of values that are not drawn; no bars where nothing is known.
    """
    if len(entries) > LISTED and column in ("size", "gsd_m"):
        entries = _classes(entries, column)
    if all(entry["value"] is None for entry in entries):
        return {"bars": [], "left_out": 0}  # a bar that says "(unknown)" says nothing
    ordered = column in ("gsd_m", "year")
    shown = entries[-LISTED:] if ordered else entries[:LISTED]
    most = max((entry["rows"] for entry in shown), default=0) or 1
    drawn = [
        Bar(
            _name(entry["value"], column),
            entry["kept"],
            entry["rows"],
            100 * entry["kept"] / most,
            100 * (entry["rows"] - entry["kept"]) / most,
        )
        for entry in shown
    ]
    return {"bars": drawn, "left_out": len(entries) - len(shown)}


def band_names(joined: str) -> str:
    """Return comma-separated names of bands, of many the first, the last and their number."""
    names = joined.split(",")
    return ", ".join(names) if len(names) <= 5 else f"{names[0]}, ..., {names[-1]} ({len(names)} bands)"


def _name(value: Any, column: str) -> str:
    if value is None:
        return "(unknown)"
    if column == "bands":
        return band_names(str(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _classes(entries: list[dict[str, Any]], column: str) -> list[dict[str, Any]]:
    """Add up entries whose values lie in one class; null stays by itself, last."""
    edges: tuple[float, ...] = _GSD_M if column == "gsd_m" else _SIDE_PX
    sums: dict[int, list[int]] = {}
    for entry in entries:
        place = _place(entry["value"], column, edges)
        into = sums.setdefault(place, [0, 0])
        into[0] += entry["rows"]
        into[1] += entry["kept"]
    return [
        {"value": _range(place, edges, column), "rows": n, "kept": kept} for place, (n, kept) in sorted(sums.items())
    ]


def _place(value: Any, column: str, edges: tuple[float, ...]) -> int:
    if value is None or value == "(more values)":
        return len(edges) + 1
    if column == "gsd_m":
        return bisect_right(edges, value)
    width, height = map(int, value.split(" x "))
    return bisect_right(edges, math.sqrt(width * height))


def _range(place: int, edges: tuple[float, ...], column: str) -> str | None:
    if place > len(edges):
        return None
    side = "side " if column == "size" else ""
    if place == 0:
        return f"{side}below {edges[0]:g}"
    return (
        f"{side}{edges[place - 1]:g} and more"
        if place == len(edges)
        else f"{side}{edges[place - 1]:g} to {edges[place]:g}"
    )
