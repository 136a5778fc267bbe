"""The command ``terrasieve redundancy``: its options, its progress bar and what it says at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from terrasieve.errors import Interrupted

EXAMPLES = (
    "Examples: terrasieve redundancy ucm.parquet -o redundancy  ·  "
    "terrasieve redundancy ucm.parquet -o redundancy_mae --encoder runs/my_run --reduction largest"
)


def redundancy(
    manifest: Annotated[Path, typer.Argument(help="Manifest of the images.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write; an interrupted one goes on.")],
    encoder: Annotated[Path | None, typer.Option(help="Run folder or exported folder; default: raw patches.")] = None,
    of: Annotated[str | None, typer.Option(help="pixels, or with --encoder: embeddings, features.")] = None,
    reduction: Annotated[str | None, typer.Option(help="What ranks a patch: mean, largest or cover.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Cosine of the greedy cover; default: 0.9.")] = None,
    size_px: Annotated[int | None, typer.Option(help="Images are resampled to it; default: 224.")] = None,
    patch_px: Annotated[int | None, typer.Option(help="Side of a patch; default: 16.")] = None,
    bands: Annotated[str | None, typer.Option(help="Comma-separated; default: what all images have.")] = None,
    examples: Annotated[int, typer.Option(help="Images in the gallery.")] = 16,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one per core.")] = None,
) -> None:
    """Measure how redundant images are: a table (GeoParquet) and a page with histograms, map and masks."""
    from terrasieve import analyse
    from terrasieve.display import counting, out

    with counting("redundancy", "images") as tick:
        try:
            found = analyse.analyse(
                manifest, output, size_px=size_px, bands=tuple(bands.split(",")) if bands else None, encoder=encoder,
                of=of, reduction=reduction, threshold=threshold, patch_px=patch_px, examples=examples, workers=workers,
                on_images=tick,
            )  # fmt: skip
        except KeyboardInterrupt:
            raise Interrupted("interrupted; the same command goes on from here") from None
    for line in found.lines():
        out.print(line, markup=False)
