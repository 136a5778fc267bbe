"""The demo: the whole path on a procedural Earth, offline, in minutes.

imagery -> manifest -> pretraining -> evaluation -> export -> report: ``terrasieve demo``, and its first step alone,
``terrasieve earth``.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from terrasieve import assess, manifest, recipe
from terrasieve.curate.engine import cores
from terrasieve.display import counting, out
from terrasieve.evaluate.protocol import rich_table
from terrasieve.imagery import earth
from terrasieve.pretrain import new_folder
from terrasieve.report import write_report
from terrasieve.watch import pretrain_watched

CHIPS = 2000


def write_earth(
    folder: Path, count: int, seed: int, *, on_chip: Callable[[int, int], None] | None = None, **how: Any
) -> pa.Table:
    """Write chips of the procedural Earth and their manifest, ``manifest.parquet``.

    Args:
        folder: to write into.
        count: number of chips.
        seed: of the planet and of the draw.
        on_chip: called with chips done and their total.
        how: see :func:`terrasieve.imagery.earth.write_chips`.

    Returns:
        The manifest.
    """
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if on_chip:
            on_chip(done, count)

    workers = cores()
    rows = earth.write_chips(folder, count, seed, workers=workers, on_chip=tick, **how)
    table = manifest.rows_to_table(rows)
    manifest.write(table, folder / "manifest.parquet")
    return table


def run(output: Path, steps: int | None, seed: int) -> bool:
    """Run the demo.

    Args:
        output: folder for imagery, run and backbone.
        steps: of training; None = the demo recipe's.
        seed: of everything.

    Returns:
        False when training was interrupted.
    """
    imagery = output / f"earth-{seed}"
    if not (imagery / "manifest.parquet").exists():
        with counting("earth", "chips") as tick:
            write_earth(imagery, CHIPS, seed, on_chip=tick)
    out.print(f"{CHIPS:,} chips of a procedural Earth, 96 px x 4 bands: {imagery}", markup=False)
    content = yaml.safe_load(resources.files("terrasieve").joinpath("demo.yaml").read_text(encoding="utf-8"))
    content |= {"data": str(imagery / "manifest.parquet"), "output": str(output), "seed": seed}
    settings = recipe.check(content | ({"steps": steps} if steps else {}), "demo.yaml")
    folder = new_folder(settings)
    if not pretrain_watched(settings, folder):
        return False
    with counting("features", "images") as tick:
        scores, task = assess.evaluate_run(folder, f"manifest:{imagery / 'manifest.parquet'}", on_images=tick)
    out.print(rich_table(scores))
    assess.export_run(folder, folder / "backbone")
    out.print(
        f"{len(task.class_names)} scene classes; the test chips lie in other 5-degree blocks than the training chips."
    )
    out.print(f"backbone: {folder / 'backbone'}", markup=False)
    out.print(f"report: {write_report(folder)}", markup=False)
    return True
