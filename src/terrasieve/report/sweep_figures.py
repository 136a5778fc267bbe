"""Figures of a sweep: the score against the ratio and against what was measured, random dropping always among them.

Between ``sweep_numbers`` and ``sweep_page``. Drawn once by matplotlib; the page's copies take their colours from its
style sheet, the files for documents (SVG and PNG) are on white.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from terrasieve.report.sweep_numbers import BASELINE, CLAIM, RANDOM, Cell, pareto, words

INK, SOFT, LINE = "#1d2521", "#5d6a63", "#e2e1da"
COLOURS = {"static": "#1d6b4f", "dynamic": "#d08419", "budget": "#3b6fb6", RANDOM: "#7b8580", BASELINE: INK}
MARKERS = {"static": "o", "dynamic": "s", "budget": "^", RANDOM: "X", BASELINE: "D"}
VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line"}
VARIABLES |= {colour: f"--{name}" for name, colour in COLOURS.items() if name != BASELINE}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "terrasieve",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": SOFT,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
}


class Panel(NamedTuple):
    """What a figure has on its horizontal axis: a name for files, words, which cost, and whether more is better."""

    name: str
    title: str
    axis: str
    part: str = ""
    cost: str = ""
    more_is_better: bool = False

    def place(self, cell: Cell) -> float:
        """Return where a cell stands on the axis; NaN where its cost was not measured."""
        return cell.measured(self.part, self.cost) if self.part else cell.ratio


PANELS = (
    Panel("ratio", "Against the share of patches dropped", "share of patches dropped"),
    Panel("training_rate", "Against training speed", "training, images/s", "train", "images_per_s", True),
    Panel("inference_rate", "Against inference speed", "inference, images/s", "inference", "images_per_s", True),
    Panel("training_memory", "Against memory in training", "training, peak MB", "train", "peak_memory_mb"),
    Panel("inference_memory", "Against memory in inference", "inference, peak MB", "inference", "peak_memory_mb"),
    Panel("training_flops", "Against FLOPs of training", "training, GFLOP/image", "train", "gflop_per_image"),
    Panel("inference_flops", "Against FLOPs of inference", "inference, GFLOP/image", "inference", "gflop_per_image"),
)
OVERVIEW = PANELS[:3]


def drawable(cells: Sequence[Cell]) -> list[Panel]:
    """Return the panels for which something was measured."""
    return [panel for panel in PANELS if any(math.isfinite(panel.place(c)) for c in cells if c.policy != BASELINE)]


def draw(cells: Sequence[Cell], panels: Sequence[Panel], metric: str) -> Figure:
    """Draw panels side by side, with one legend.

    Args:
        cells: of ``sweep_numbers.cells``.
        panels: one or several of ``drawable``.
        metric: name of the score.
    """
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(4.9 * len(panels) + 0.2, 3.75), layout="constrained")
        across = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, panel in zip(across, panels, strict=True):
            _panel(axes, cells, panel)
        across[0].set_ylabel(f"{words(metric)}, test, %")
        labelled = [pair for axes in across for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
        entries = {label: handle for handle, label in labelled}
        figure.legend(
            entries.values(), entries.keys(), loc="outside upper left", ncols=3 if len(panels) == 1 else len(entries),
            frameon=False, columnspacing=1.4, handletextpad=0.5, labelcolor=SOFT,
        )  # fmt: skip
    return figure


def themed_svg(figure: Figure, title: str) -> str:
    """Return an ``<svg>`` element whose colours are the page's, without width and height."""
    text = svg(figure, transparent=True)
    text = text[text.index("<svg") :]
    for colour, variable in VARIABLES.items():
        text = re.sub(colour, f"var({variable})", text, flags=re.IGNORECASE)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", re.sub(r' height="[\d.]+pt"', "", text, count=1))
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


def svg(figure: Figure, transparent: bool = False) -> str:
    """Return a figure as the text of an SVG file."""
    content = io.StringIO()
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure.savefig(content, format="svg", transparent=transparent, metadata={"Date": None})
    return content.getvalue()


def png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG on white."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def _panel(axes: Axes, cells: Sequence[Cell], panel: Panel) -> None:
    base = [cell for cell in cells if cell.policy == BASELINE]
    if base:
        mean = 100 * base[0].score.mean
        axes.axhline(mean, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.axhline(CLAIM * mean, color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)), label=f"{CLAIM:.1%} of undropped")
    for policy in dict.fromkeys(cell.policy for cell in cells):
        mine = [cell for cell in cells if cell.policy == policy and math.isfinite(panel.place(cell))]
        if mine:
            _policy(axes, policy, base if policy != BASELINE else [], mine, panel)
    if panel.part:
        _front(axes, cells, panel)
    hint = "" if not panel.part else " (more is better)" if panel.more_is_better else " (less is better)"
    axes.set_xlabel(panel.axis + hint)
    if panel.part:
        axes.set_xlim(left=0)
    low, high = _limits(cells)
    axes.set_ylim(low, high)


def _policy(axes: Axes, policy: str, base: list[Cell], mine: list[Cell], panel: Panel) -> None:
    colour = COLOURS.get(policy, INK)
    xs = [panel.place(cell) for cell in mine]
    low, high = ([100 * getattr(cell.score, end) for cell in mine] for end in ("low", "high"))
    line = [cell for cell in base if math.isfinite(panel.place(cell))] + mine
    axes.plot(
        [panel.place(cell) for cell in line], [100 * cell.score.mean for cell in line], color=colour, zorder=3,
        label="undropped" if policy == BASELINE else policy, marker=MARKERS.get(policy, "o"), markeredgewidth=0,
        markersize=6, markevery=range(len(line) - len(mine), len(line)),
        linestyle="" if policy == BASELINE else "--" if policy == RANDOM else "-", linewidth=1.6,
    )  # fmt: skip
    for x, cell in zip(xs, mine, strict=True):
        seeds = [100 * value for value in cell.scores.values()]
        axes.plot([x] * len(seeds), seeds, ".", color=colour, alpha=0.6, markersize=5, markeredgewidth=0, zorder=2)
    if panel.part or len(mine) == 1:
        axes.vlines(xs, low, high, color=colour, alpha=0.3, linewidth=2, zorder=1)
    else:
        axes.fill_between(xs, low, high, color=colour, alpha=0.12, linewidth=0, zorder=1)


def _front(axes: Axes, cells: Sequence[Cell], panel: Panel) -> None:
    """Ring the points of the Pareto front, and say of the best point of each ratio which ratio it is."""
    shown = [(panel.place(cell), 100 * cell.score.mean, cell.ratio) for cell in cells]
    sign = 1 if panel.more_is_better else -1
    on_front = pareto([(sign * x, y) for x, y, _ in shown])
    front = [(x, y) for (x, y, _), on in zip(shown, on_front, strict=True) if on]
    axes.plot(
        [x for x, _ in front], [y for _, y in front], "o", markersize=10, markerfacecolor="none", markeredgecolor=INK,
        markeredgewidth=0.8, zorder=5, label="Pareto front",
    )  # fmt: skip
    for ratio in sorted({ratio for _, _, ratio in shown if ratio}):
        best = max(((y, x) for x, y, r in shown if r == ratio and math.isfinite(x)), default=None)
        if best:
            axes.annotate(
                f"{ratio:g}", best[::-1], xytext=(0, 8), textcoords="offset points", ha="center", fontsize=8.5
            )


def _limits(cells: Sequence[Cell]) -> tuple[float, float]:
    """Span every seed's score, and of the intervals what does not squash them: Student's t is wide with two seeds."""
    seeds = [100 * value for cell in cells for value in cell.scores.values()]
    low, high = min(seeds), max(seeds)
    span = max(high - low, 1.0)
    ends = [100 * end for cell in cells for end in (cell.score.low, cell.score.high) if math.isfinite(end)]
    low, high = max(min([low, *ends]), low - 0.4 * span), min(max([high, *ends]), high + 0.4 * span)
    return max(low - 0.06 * span, -1.0), min(high + 0.14 * span, 104.0)
