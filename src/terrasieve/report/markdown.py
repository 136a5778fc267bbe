"""Markdown: values of a manifest as text without markup, tables, shares. For the datasheet."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

LISTED = 40  # rows of a table


def plain(value: Any) -> str:
    """Return a value of a manifest or recipe as text in which Markdown sees no markup."""
    text = re.sub(r"\s+", " ", str(value)).strip()
    return re.sub(r"([\\`*_\[\]<>|#!~])", r"\\\1", text) if text else "(empty)"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: int = 0, listed: int = LISTED) -> str:
    """Lay rows out as a Markdown table of at most ``listed`` rows; the last ``numbers`` columns are aligned right."""
    rows = list(rows)
    rule = ["---"] * (len(header) - numbers) + ["---:"] * numbers
    shown = [header, rule, *([_cell(value) for value in row] for row in rows[:listed])]
    text = "\n".join(f"| {' | '.join(row)} |" for row in shown)
    return text if len(rows) <= listed else f"{text}\n\n{len(rows) - listed:,} more are in `statistics.json`."


def _cell(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "(unknown)" if value is None else plain(value)


def share(part: int, whole: int) -> str:
    """Return a share in per cent, never rounded to all or nothing unless it is."""
    if not whole:
        return "0 %"
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "< 0.1 %"
    if 99.9 < percent < 100:
        return "> 99.9 %"
    return f"{percent:.1f} %" if percent % 1 else f"{percent:.0f} %"
