"""The command ``terrasieve overlaps``: pairs of images that share ground, as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = (
    "Examples: terrasieve overlaps ucm.parquet -o pairs.parquet  ·  "
    "terrasieve overlaps scenes.parquet -o pairs.parquet --least-shared 0.05 --match all"
)


def overlaps(
    manifest: Annotated[Path, typer.Argument(help="Manifest of the images.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Table to write (Parquet, or CSV by its ending).")],
    least_shared: Annotated[float, typer.Option(help="Share of the smaller image that the other shows too.")] = 0.2,
    least_score: Annotated[float, typer.Option(help="Of matching by content, 0 to 1; see docs/overlap.md.")] = 0.5,
    match: Annotated[
        str, typer.Option(help="By content: unplaced (images without coordinates, against all), all or none.")
    ] = "unplaced",
    share: Annotated[float, typer.Option(help="Of the interest points indexed; 0.1 for millions of images.")] = 1.0,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one per core.")] = None,
) -> None:
    """Find pairs of images that show the same ground, by coordinates or by content, with offset and shared fraction.

    The pixel (x, y) of b is the pixel (x + dx_px, y + dy_px) of a. An interrupted search goes on from where it was.
    """
    import shutil

    from terrasieve import settings_file
    from terrasieve.curate.engine import Local
    from terrasieve.curate.overlap import Notes, OverlapSettings, find_overlaps, write_overlaps
    from terrasieve.curate.step import Work
    from terrasieve.display import counting, out

    given = {"least_shared": least_shared, "least_score": least_score, "match": match, "share": share}
    settings = settings_file.validate(given, "of the command line", OverlapSettings)
    folder, notes = output.with_name(f".{output.name}.work"), Notes()
    table = find_overlaps(manifest, settings, Work(folder, Local(workers)), bar=counting, notes=notes)
    write_overlaps(table, output)
    shutil.rmtree(folder, ignore_errors=True)
    found = {kind: table["by"].to_pylist().count(kind) for kind in ("footprint", "matching")}
    out.print(f"{len(table):,} pairs: {found['footprint']:,} by footprint, {found['matching']:,} by matching")
    for line in notes.lines():
        out.print(line, markup=False)
    out.print(f"table: {output}", markup=False)
