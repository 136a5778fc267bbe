"""Page of the family's studies: a matrix of methods and regularisers in Markdown, and what geography changes as a plot.

After ``family``; reads ``runs.jsonl`` of its folders: ``python benchmarks/family_page.py STUDY_FOLDER... -o family``
writes ``family.md``, ``family.csv`` and ``family.png``. An arm's name is ``method-regulariser``; intervals are
Student's, 95 %, over seeds, and differences are taken seed by seed, since both start from the same weights and see the
same images.
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from terrasieve.report.sweep_figures import INK, LINE, SOFT, STYLE
from terrasieve.report.sweep_numbers import Estimate, estimate

NONE, UNTRAINED = "none", "untrained"
NAMES = {
    NONE: "baseline", "georank": "GeoRank", "correlation": "correlation", "geobasic": "GeoBasic",
    "aware": "geography-aware", "tile2vec": "Tile2Vec", "moco": "MoCo", "simclr": "SimCLR", "byol": "BYOL",
    "simsiam": "SimSiam", "dino": "DINO", "knn": "k-NN", "linear": "probe",
    "distance": "similarity against distance",
}  # fmt: skip
COLOURS = {"moco": "#1d6b4f", "simclr": "#d08419", "byol": "#3b6fb6", "simsiam": "#a23e48", "dino": "#7a5195"}
Scores = dict[str, dict[str, dict[int, float]]]  # metric -> arm -> seed -> value


def main(folders: list[Path], output: Annotated[Path, typer.Option("-o", "--output")]) -> None:
    """Write tables, plot and CSV of studies, one panel each per metric."""
    found = {folder.name: read(folder) for folder in folders}
    text = [f"### {title(name)}\n\n{tables(scores)}" for name, scores in found.items()]
    output.with_suffix(".md").write_text("\n".join(text), encoding="utf-8")
    with output.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["study", "metric", "arm", "seed", "value"])
        for name, scores in found.items():
            for metric, arms in scores.items():
                writer.writerows(
                    [name, metric, arm, seed, f"{v:.5f}"] for arm, seeds in arms.items() for seed, v in seeds.items()
                )
    with rc_context(STYLE):  # type: ignore[arg-type]
        draw(found).savefig(output.with_suffix(".png"), dpi=150)
    print("\n".join(text))


def read(folder: Path) -> Scores:
    """Read the latest row of every arm and seed; half a line of a killed study is left out."""
    found: Scores = {}
    for line in (folder / "runs.jsonl").read_text(encoding="utf-8").splitlines():
        if line.endswith("}"):
            row: dict[str, Any] = json.loads(line)
            for metric, value in row["scores"].items():
                found.setdefault(metric, {}).setdefault(row["arm"], {})[row["seed"]] = value
    return found


def title(name: str) -> str:
    """Turn a folder's name into a heading."""
    return name.removeprefix("family_").replace("_", " ").title()


def spoken(metric: str) -> str:
    """Turn a metric's name into words: "knn scene blocks" -> "k-NN, scene, blocks"."""
    return ", ".join(NAMES.get(part, part) for part in metric.split(" "))


def differences(arms: dict[str, dict[int, float]], arm: str) -> list[float]:
    """Return what a regulariser adds to its method alone, seed by seed."""
    alone = arms.get(f"{arm.split('-')[0]}-{NONE}", {})
    return [arms[arm][seed] - alone[seed] for seed in sorted(alone.keys() & arms[arm].keys())]


def tables(scores: Scores) -> str:
    """Lay out a matrix per metric: the baseline's mean with interval, and what each regulariser changes."""
    lines: list[str] = []
    for metric, arms in scores.items():
        methods = list(dict.fromkeys(arm.split("-")[0] for arm in arms if "-" in arm))
        kinds = list(dict.fromkeys(arm.split("-")[1] for arm in arms if "-" in arm))
        untrained = f"; untrained {plain(arms[UNTRAINED])}" if UNTRAINED in arms else ""
        lines += [f"**{spoken(metric)}** (x 100{untrained})\n"]
        lines += [f"| | {' | '.join(NAMES[kind] for kind in kinds)} |", "|---|" + "---:|" * len(kinds)]
        for method in methods:
            cells = []
            for kind in kinds:
                arm = f"{method}-{kind}"
                if arm not in arms:
                    cells.append("")
                elif kind == NONE:
                    cells.append(plain(arms[arm]))
                else:
                    change = differences(arms, arm)
                    cells.append(marked(estimate(change)) if change else plain(arms[arm]))
            lines.append(f"| {NAMES[method]} | {' | '.join(cells)} |")
        means = [average(arms, methods, kind) for kind in kinds]
        cells = [
            "" if one is None else marked(one) if kind != NONE else shown(one)
            for kind, one in zip(kinds, means, strict=True)
        ]
        lines += [f"| all methods | {' | '.join(cells)} |", ""]
    return "\n".join(lines)


def average(arms: dict[str, dict[int, float]], methods: list[str], kind: str) -> Estimate | None:
    """Average over all methods, seed by seed: the baseline itself, or what a regulariser changes; None if one lacks."""
    if any(f"{method}-{kind}" not in arms for method in methods):
        return None
    change = {
        method: {
            seed: value - (0 if kind == NONE else arms[f"{method}-{NONE}"].get(seed, math.nan))
            for seed, value in arms[f"{method}-{kind}"].items()
        }
        for method in methods
    }
    seeds = set.intersection(*(set(of) for of in change.values()))
    values = [fmean(of[seed] for of in change.values()) for seed in sorted(seeds)]
    values = [value for value in values if math.isfinite(value)]
    return estimate(values) if values else None


def plain(values: dict[int, float]) -> str:
    """Write a mean with its interval over seeds."""
    return shown(estimate(list(values.values())))


def shown(e: Estimate) -> str:
    """Write an estimate as a value, not as a difference."""
    return f"{100 * e.mean:.1f}" + (f" [{100 * e.low:.1f}, {100 * e.high:.1f}]" if e.seeds > 1 else "")


def marked(change: Estimate) -> str:
    """Write a difference, bold where its interval leaves out 0."""
    sure = change.seeds > 1 and (change.low > 0 or change.high < 0)
    return f"**{change}**" if sure else str(change)


def draw(found: dict[str, Scores]) -> Figure:
    """Draw what every regulariser changes: a row of panels per study, a panel per metric."""
    wide = max(len(scores) for scores in found.values())
    figure = Figure(figsize=(3.1 * wide + 1, 3.0 * len(found) + 0.4), layout="constrained")
    grid = figure.subplots(len(found), wide, squeeze=False)
    for (name, scores), row in zip(found.items(), grid, strict=True):
        for axes in row[len(scores) :]:
            axes.set_axis_off()
        for place, (axes, (metric, arms)) in enumerate(zip(row, scores.items(), strict=False)):
            panel(axes, arms)
            axes.set_title(spoken(metric), fontsize=8.5, color=INK)
            if place:
                axes.set_yticklabels([])
            else:
                axes.set_ylabel(title(name), color=INK)
    entries = {
        text: handle for axes in grid.flat for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=6, frameon=False, labelcolor=INK)
    words = "change against the same method without geography, x 100: mean, bar over all seeds"
    figure.supxlabel(f"{words}; filled: the 95 % interval leaves out 0", fontsize=8.5)
    return figure


def panel(axes: Axes, arms: dict[str, dict[int, float]]) -> None:
    """Draw one metric: regularisers from top to bottom, methods as colours."""
    kinds = [kind for kind in NAMES if any(arm.endswith(f"-{kind}") for arm in arms) and kind != NONE]
    methods = [method for method in COLOURS if any(arm.startswith(method) for arm in arms)]
    axes.axvline(0, color=SOFT, linewidth=1)
    for row, kind in enumerate(kinds):
        there = [method for method in methods if f"{method}-{kind}" in arms]
        for place, method in enumerate(there):
            seeds = differences(arms, f"{method}-{kind}")
            if not seeds:
                continue
            change = estimate(seeds)
            around = [[100 * (change.mean - min(seeds))], [100 * (max(seeds) - change.mean)]]
            sure = change.seeds > 1 and (change.low > 0 or change.high < 0)
            y = row + 0.13 * (place - (len(there) - 1) / 2)
            axes.errorbar(
                100 * change.mean, y, xerr=around, color=COLOURS[method], marker="o",
                markerfacecolor=COLOURS[method] if sure else "white", markersize=4.5, linewidth=1.2,
                label=NAMES[method] if row == 0 else None,
            )  # fmt: skip
    axes.set_yticks(range(len(kinds)), [NAMES[kind] for kind in kinds])
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.grid(axis="x", color=LINE)


if __name__ == "__main__":
    typer.run(main)
