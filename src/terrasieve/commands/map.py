"""The command ``terrasieve map``: its options and what it says at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = "Example: terrasieve map runs/my_run earth/manifest.parquet -o map.html"


def map_(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    manifest: Annotated[Path, typer.Argument(help="Manifest of images with coordinates.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Page to write (.html).")],
    max_km: Annotated[float, typer.Option(help="Pairs of images farther apart are not counted.")] = 3000.0,
    most: Annotated[int, typer.Option(help="Images; of more so many are drawn.")] = 50_000,
    seed: Annotated[int, typer.Option(help="Of the draw and of the intervals.")] = 0,
    workers: Annotated[int, typer.Option(help="Reading processes.")] = 1,
) -> None:
    """Show where images lie and what a run's encoder makes of them: the map by features, the features by place."""
    from terrasieve import mapping
    from terrasieve.display import counting, out
    from terrasieve.evaluate import geography

    with counting("features", "images") as tick:
        found = mapping.write_map(
            run, manifest, output, max_km=max_km, most=most, seed=seed, workers=workers, on_images=tick
        )
    if found.correlations:
        out.print(geography.rich_table(found.correlations, max_km, "test images" if found.held_out else "images"))
    for note in found.notes:
        out.print(f"note: {note}", markup=False)
    out.print(f"map: {output}", markup=False)


map_.__name__ = "map"
