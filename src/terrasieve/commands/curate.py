"""The command ``terrasieve curate``: its options, its one display, and what it says at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from terrasieve.errors import Interrupted

if TYPE_CHECKING:
    from terrasieve.display import StepsDisplay

EXAMPLES = (
    "Examples: terrasieve curate recipes/curate_shared.yaml -o curated  ·  "
    "terrasieve curate recipes/curate_shared.yaml -o curated slice.how=grid near.distance=6  ·  "
    "terrasieve curate recipes/curate_shared.yaml -o curated --engine ray"
)


def curate(
    recipe: Annotated[Path, typer.Argument(help="Recipe of the curation (YAML): sources and settings.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Settings in place of the recipe's, as slice.how=grid; see docs/curate.md."
        ),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write; one that is there goes on.")] = Path(
        "curated"
    ),
    engine: Annotated[str | None, typer.Option(help="local or ray; default: the recipe's.")] = None,
) -> None:
    """Curate imagery: scan sources, exclude, slice, find duplicates, verify; write manifest, report and datasheet.

    Each row of the manifest says why it was kept or dropped. Stop it anywhere and run it again: finished steps are not
    done again, and sources that were added cost only their own files.
    """
    from terrasieve.curate import pipeline
    from terrasieve.curate.recipe import load
    from terrasieve.display import StepsDisplay

    settings = load(recipe, [*(overrides or ()), *([f"engine={engine}"] if engine else [])])
    with StepsDisplay() as display:
        progress = pipeline.Progress(display.begins, display.counts, display.ends)
        try:
            entries = pipeline.curate(settings, output, progress)
            _describe(output, display)
        except KeyboardInterrupt:
            raise Interrupted("interrupted; finished steps stay, the same command goes on from here") from None
    display.summary(entries, output)


def _describe(folder: Path, display: StepsDisplay) -> None:
    """Write the report and the datasheet, unless they are newer than what they describe."""
    from terrasieve.report.curation_page import write_curation_report
    from terrasieve.report.datasheet import write_datasheet

    written: list[tuple[str, str, Callable[..., object]]] = [
        ("report", "report.html", write_curation_report),
        ("sheet", "DATASHEET.html", write_datasheet),
    ]
    described = [
        folder / name for name in ("manifest.parquet", "steps.json", "pairs.parquet", "datasheet_answers.yaml")
    ]
    for name, page, write in written:
        newest = max(path.stat().st_mtime_ns for path in described if path.exists())
        if not (folder / page).exists() or (folder / page).stat().st_mtime_ns < newest:
            display.begins(name)
            write(folder, tick=display.counts)
