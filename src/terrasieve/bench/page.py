"""Page: the bench's result as JSON for machines and Markdown for people. Last step of the bench."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from terrasieve.bench.clock import PHASES
from terrasieve.files import written_aside

COLUMNS = ("", "images/s", "x MAE", "FLOP limit", "GFLOP/image", "matmul peak", "peak memory", "selection")


def write(
    result: dict[str, Any],
    out_dir: str | Path,
    name: str | None = None,
    lay_out: Callable[[dict[str, Any]], str] | None = None,
) -> tuple[Path, Path]:
    """Write ``NAME.json`` and ``NAME.md``; each appears only when it is whole.

    Args:
        result: of ``run_bench``, with ``measure_loading``'s under ``loader`` if wanted.
        out_dir: folder; is made.
        name: of the files; ``bench_<date>_<devices>`` if not given.
        lay_out: makes the Markdown; ``markdown`` if not given.

    Returns:
        Both paths.
    """
    devices = dict.fromkeys(group["device"] for group in result["groups"])
    name = name or "_".join(["bench", result["date"][:10], *devices])
    paths = Path(out_dir) / f"{name}.json", Path(out_dir) / f"{name}.md"
    for path, text in zip(paths, (json.dumps(result, indent=1) + "\n", (lay_out or markdown)(result)), strict=True):
        with written_aside(path) as aside:
            aside.write_text(text, encoding="utf-8")
    return paths


def markdown(result: dict[str, Any]) -> str:
    """Lay a result out as Markdown: what was measured on, then a table of costs and one of phases per group."""
    parts = [
        f"# Bench, {result['date'][:10]}",
        measured_on(result),
        "A step is forward, backward, gradient norm, clipping and AdamW. Everyone took turns in one process: images/s "
        "are medians over the rounds, *x MAE* is the median of the rounds' own ratios, *FLOP limit* is what it would "
        "be if every method ran as efficiently as MAE. *matmul peak* is the share of a large square product's rate.",
    ]
    for group in result["groups"]:
        parts += _group(group)
    if "loader" in result:
        loader = result["loader"]
        parts += [
            "## Loader",
            f"{loader['loader_images_per_s']:.0f} images/s from {loader['workers']} worker(s); the model takes "
            f"{loader['model_images_per_s']:.1f} images/s: {loader['ratio']:.2f} times as fast.",
        ]
    return "\n\n".join(parts) + "\n"


def measured_on(result: dict[str, Any]) -> str:
    """Say in a sentence or two what was measured on."""
    about, hardware, settings = result["versions"], result["hardware"], result["settings"]
    return (
        f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gb']:.0f} GB"
        + (f"; {hardware['gpu']}" if hardware["gpu"] else "")
        + f". Images of {settings['image_px']} px, batch {settings['batch_size']}, {settings['threads']} CPU thread(s),"
        f" {settings['repeats']} rounds. "
        + ", ".join(f"{name} {number or 'not installed'}" for name, number in about.items())
        + "."
    )


def _group(group: dict[str, Any]) -> list[str]:
    title = f"## ViT-{group['encoder']}, {group['precision']}, {group['device']}"
    if "skipped" in group:
        return [title, f"Not measured: {group['skipped']}."]
    mae = next((row["gflop_per_image"] for row in group["rows"] if row["name"] == "mae"), None)
    costs = [[row["title"], *_costs(row, mae)] for row in group["rows"]]
    phases = [
        [row["title"], *(f"{row['phases'][phase]:.1%}" for phase in PHASES)]
        for row in group["rows"]
        if row.get("phases")
    ]
    said = f"Matrix product: {group['matmul_gflop_per_s']:,.0f} GFLOP/s."
    if group["memory"]:
        said += f" Peak memory: {group['memory']}."
    return [title, said, table(COLUMNS, costs), table(("share of a step", *PHASES), phases)]


def _costs(row: dict[str, Any], mae: float | None) -> list[str]:
    if "missing" in row:
        return [row["missing"], *[""] * (len(COLUMNS) - 2)]
    return [
        f"{row['images_per_s']:.2f}" if row["images_per_s"] < 100 else f"{row['images_per_s']:,.0f}",
        "" if row["ratio_to_mae"] is None else f"{row['ratio_to_mae']:.2f}",
        "" if mae is None else f"{mae / row['gflop_per_image']:.2f}",
        f"{row['gflop_per_image']:.2f}",
        f"{row['matmul_share']:.0%}",
        f"{row['peak_memory_mb']:,.0f} MB" if "peak_memory_mb" in row else "",
        f"{row['phases']['selection']:.2%}" if row["phases"] else "",
    ]


def table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    """Write a Markdown table, the first column to the left."""
    widths = [max(len(line[i]) for line in [list(head), *rows]) for i in range(len(head))]

    def line(cells: list[str]) -> str:
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join([first, *rest])} |"

    rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:]), ""])
    return "\n".join([line(list(head)), rule, *(line(row) for row in rows)])
