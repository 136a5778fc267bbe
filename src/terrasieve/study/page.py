"""Page of a study: its table in Markdown, its runs as CSV, and the scores against measured training time.

After ``study``, whose rows it shows. Seeds are the samples: mean and standard deviation over them, and the difference
to the reference seed by seed, whose runs see the same images in the same order, with Student's 95 % interval.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from terrasieve.report.sweep_figures import INK, SOFT, STYLE
from terrasieve.report.sweep_numbers import estimate, words

TITLES = {"images": "Equal images", "cpu": "Equal CPU time"}
COLOURS = ("#1d6b4f", "#d08419", "#3b6fb6", "#a23e48", "#7a5195", "#4c9f9f", "#8c6d31", "#c06aa1", "#5b8c3a", "#444444")
MARKERS = "os^DvP*X<>"
SHOWN = 2  # metrics in the plot: the first ones that were measured


def write_page(folder: Path, name: str, rows: Sequence[dict[str, Any]], against: str) -> str:
    """Write runs.csv, table.md, study.svg and study.png; return the table."""
    metrics = list(dict.fromkeys(metric for row in rows for metric in row["scores"]))
    _write_csv(folder / "runs.csv", rows, metrics)
    text = "\n".join(table(rows, comparison, metrics, against) for comparison in TITLES)
    (folder / "table.md").write_text(f"# {name}\n\n{text}", encoding="utf-8")
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = draw(rows, metrics[:SHOWN])
        for ending in ("svg", "png"):
            figure.savefig(folder / f"study.{ending}", dpi=150)
    return text


def table(rows: Sequence[dict[str, Any]], comparison: str, metrics: Sequence[str], against: str) -> str:
    """Lay one comparison out in Markdown, per cent; "" when nothing of it was run."""
    mine = [row for row in rows if row["comparison"] == comparison]
    if not mine:
        return ""
    # at equal time the reference is the run of equal images: its own time is the budget
    reference = {row["seed"]: row["scores"] for row in rows if row["arm"] == against and row["comparison"] == "images"}
    heads = [head for metric in metrics for head in (_title(metric), f"against {against}")]
    lines = [f"{TITLES[comparison]}:\n", f"| arm | seeds | images | CPU s | {' | '.join(heads)} |"]
    lines.append("|---|" + "---:|" * (3 + len(heads)))
    for arm in dict.fromkeys(row["arm"] for row in mine):
        own = [row for row in mine if row["arm"] == arm]
        cells = [arm, str(len(own)), f"{fmean(row['images'] for row in own):,.0f}", _seconds(own)]
        for metric in metrics:
            values = {row["seed"]: row["scores"][metric] for row in own if metric in row["scores"]}
            pairs = [value - reference[seed][metric] for seed, value in values.items() if seed in reference]
            cells += [mean_and_spread(list(values.values()))]
            cells += [str(estimate(pairs)) if pairs and arm != against else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def mean_and_spread(values: Sequence[float]) -> str:
    """Write mean and standard deviation in per cent."""
    around = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{around}" if values else ""


def draw(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> Figure:
    """Draw scores against CPU time: means, with all seeds as a bar; filled at equal images, hollow at equal time."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    figure = Figure(figsize=(4.9 * len(metrics) + 0.2, 4.4), layout="constrained")
    across = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, metric in zip(across, metrics, strict=True):
        for number, arm in enumerate(arms):
            colour = COLOURS[number % len(COLOURS)]
            for comparison in TITLES:
                own = [row for row in rows if row["arm"] == arm and row["comparison"] == comparison]
                values = [100 * row["scores"][metric] for row in own if metric in row["scores"]]
                if not values:
                    continue
                middle, seconds = fmean(values), fmean(row["cpu_s"] for row in own)
                if not math.isfinite(seconds):  # untrained
                    axes.axhline(middle, color=SOFT, linewidth=1, linestyle=":", label=arm)
                    continue
                spread = [[middle - min(values)], [max(values) - middle]]
                axes.errorbar(
                    seconds, middle, spread, color=colour, marker=MARKERS[number % len(MARKERS)], markersize=7,
                    markerfacecolor=colour if comparison == "images" else "white", linewidth=0, elinewidth=1.2,
                    label=arm if comparison == "images" else None,
                )  # fmt: skip
        axes.set_xlabel("training, CPU s (filled: equal images; hollow: equal CPU time)", fontsize=8.5)
        axes.set_ylabel(f"{_title(metric)}, %")
        axes.set_title("")
    entries = dict(zip(*reversed(across[0].get_legend_handles_labels()), strict=True))
    figure.legend(
        entries.values(), entries.keys(), loc="outside upper left", ncols=min(len(entries), 2 * len(metrics) + 1),
        frameon=False, fontsize=8.5, labelcolor=INK,
    )  # fmt: skip
    return figure


def _title(metric: str) -> str:
    protocol, _, rest = metric.partition(" ")
    return f"{ {'knn': 'k-NN', 'linear': 'probe'}.get(protocol, protocol) } {words(rest)}".strip()


def _seconds(rows: Sequence[dict[str, Any]]) -> str:
    mean = fmean(row["cpu_s"] for row in rows)
    return f"{mean:.0f}" if math.isfinite(mean) else "0"


def _write_csv(path: Path, rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> None:
    names = ["arm", "comparison", "seed", "steps", "images", "cpu_s", "wall_s", "loss", "skipped_steps", "date"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*names, *metrics])
        for row in rows:
            plain = [f"{row[name]:.5g}" if isinstance(row[name], float) else row[name] for name in names]
            writer.writerow([*plain, *(f"{row['scores'].get(metric, math.nan):.5f}" for metric in metrics)])
