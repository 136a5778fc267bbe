"""Neighbours in a run's report: where sampled pairs lie, and how a neighbour's crop lies to its anchor's.

Between ``run_folder`` and ``page``; the numbers are those of ``data.survey``, written before training. SVG, no script.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any

import numpy as np
from markupsafe import Markup

from terrasieve.report.maps import Frame
from terrasieve.report.run_folder import Run, number

KINDS = ("same_place", "overlap", "adjacent", "near", "site", "alone")
WORDS = {
    "same_place": "same place, other date",
    "overlap": "overlapping",
    "adjacent": "adjacent",
    "near": "near",
    "site": "same folder",
    "alone": "alone: two crops of itself",
}
SIDE_PX, AROUND = 420, 2.0  # of the drawing; anchors' sides to each side of the anchor's middle
LEAST_PX = 5.0


def neighbours(run: Run) -> dict[str, Any] | None:
    """Return what the page's section shows, None for a run without neighbours.

    What cannot be read is added to ``run.problems``.

    Returns:
        ``rows`` of words, share of images that have such a neighbour, share drawn in training, and class; ``doubts``;
        ``map`` and ``around``, SVG, empty without places; ``sample``, ``images``, ``overlap``, ``drawn``.
    """
    path = run.folder / "neighbours.json"
    if not path.is_file():
        return None
    try:
        found = _checked(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        run.problems.append(f"neighbours.json cannot be read: {error}")
        return None
    rows = []
    for n, kind in enumerate(KINDS):
        drawn = [value for _, value in run.numbers(f"share_{kind}") if value is not None]
        have = found["kinds"].get(kind, 0) / max(found["sample"], 1)
        if have or any(drawn):
            rows.append((WORDS[kind], f"{have:.1%}", f"{np.mean(drawn):.1%}" if drawn else "", f"k{n}"))
    pairs = [pair for pair in found["pairs"] if len(pair["boxes"]) > 1]
    doubts = [(count, words, found["examples"].get(words, [])) for words, count in found["doubts"].items()]
    return {
        "sample": found["sample"],
        "images": found["images"],
        "overlap": f"{found['overlap']:.2f}",
        "rows": rows,
        "doubts": doubts,
        "map": Markup(_map(pairs)) if pairs else "",  # made of numbers and words of ours
        "around": Markup(_around(pairs)) if pairs else "",
        "drawn": len(pairs),
    }


def _map(pairs: list[dict[str, Any]]) -> str:
    """Draw all crops where they lie; those too small to be seen as dots of a few pixels."""
    boxes = np.array([box for pair in pairs for box in pair["boxes"]], np.float64)
    frame = Frame(boxes[:, [0, 2]].ravel(), boxes[:, [1, 3]].ravel())
    body = frame.graticule()
    for pair in pairs:
        for slot, (west, north, east, south) in enumerate(pair["boxes"]):
            left, right, top, bottom = frame.across(west), frame.across(east), frame.up(north), frame.up(south)
            more_x, more_y = (max(0.0, LEAST_PX - side) / 2 for side in (right - left, bottom - top))
            body.append(
                f'<rect class="crop k{KINDS.index(pair["kind"])}{" other" if slot else ""}" x="{left - more_x:.1f}" '
                f'y="{top - more_y:.1f}" width="{right - left + 2 * more_x:.1f}" '
                f'height="{bottom - top + 2 * more_y:.1f}"/>'
            )
    return frame.svg(f"Crops of {len(pairs)} groups on the map", body, 36)


def _around(pairs: list[dict[str, Any]]) -> str:
    """Draw every neighbour's crop relative to its anchor's, which is the square in the middle."""
    unit = SIDE_PX / (2 * AROUND)
    body = [f'<rect class="sea" x="0" y="0" width="{SIDE_PX}" height="{SIDE_PX}"/>']
    for pair in pairs:
        west, north, east, south = pair["boxes"][0]
        for other in pair["boxes"][1:]:
            x = [((edge - west) / (east - west) - 0.5 + AROUND) * unit for edge in (other[0], other[2])]
            y = [((north - edge) / (north - south) - 0.5 + AROUND) * unit for edge in (other[1], other[3])]
            body.append(
                f'<rect class="crop k{KINDS.index(pair["kind"])} other" x="{x[0]:.1f}" y="{y[0]:.1f}" '
                f'width="{x[1] - x[0]:.1f}" height="{y[1] - y[0]:.1f}"/>'
            )
    corner = (AROUND - 0.5) * unit
    body.append(f'<rect class="anchor" x="{corner}" y="{corner}" width="{unit}" height="{unit}"/>')
    title = escape(f"Crops of {len(pairs)} neighbours around their anchor's")
    return f'<svg viewBox="0 0 {SIDE_PX} {SIDE_PX}" role="img" aria-label="{title}">' + "".join(body) + "</svg>"


def _checked(content: Any) -> dict[str, Any]:
    """Return what ``data.survey`` wrote; raise ValueError, TypeError or KeyError where it is something else."""
    numbers = ("images", "sample", "overlap")
    whole = isinstance(content, dict) and all(number(content.get(name)) is not None for name in numbers)
    if not whole or not all(isinstance(content.get(name), dict) for name in ("kinds", "doubts", "examples")):
        raise ValueError("not a survey of neighbours")
    for pair in content.get("pairs", ()):
        boxes = np.array(pair["boxes"], np.float64)
        if pair["kind"] not in KINDS or boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
            raise ValueError("a pair is not a kind and boxes")
        if not ((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 1] > boxes[:, 3])).all():
            raise ValueError("a pair's box is empty")
    return dict(content) | {"pairs": list(content.get("pairs", ()))}
