"""The command ``terrasieve split``: its options and what it says at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SHOWN = 30  # classes
EXAMPLES = (
    "Examples: terrasieve split imagery.parquet -o split.csv --by blocks --buffer-km 10  ·  "
    "terrasieve split imagery.parquet -o shifted.parquet --by regions --regions 8 --test .25 --val 0"
)


def split(
    manifest: Annotated[Path, typer.Argument(help="Manifest of the images.")],
    output: Annotated[Path, typer.Option("-o", "--output", help=".csv (path, split) or .parquet (the manifest).")],
    by: Annotated[str, typer.Option(help="blocks (squares), regions (clusters of places) or random.")] = "blocks",
    buffer_km: Annotated[
        float | None, typer.Option(help="Leave out what is nearer to held-out images; 0: the same ground.")
    ] = None,
    block_deg: Annotated[
        float | None, typer.Option(help="Side of a block; default: as large as 40 blocks allow.")
    ] = None,
    regions: Annotated[int, typer.Option(help="Clusters of places.")] = 10,
    test: Annotated[float, typer.Option(help="Share of the images.")] = 0.2,
    val: Annotated[float, typer.Option(help="Share of the images.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
) -> None:
    """Divide images into train, val and test by where they lie, nothing of train near what is held out."""
    from rich.table import Table

    from terrasieve.display import counting, out
    from terrasieve.evaluate import split_files, splits

    content: dict[str, object] = {
        "by": by, "buffer_km": buffer_km, "block_deg": block_deg, "regions": regions, "test": test, "val": val,
        "seed": seed,
    }  # fmt: skip
    settings = splits.checked(content, "terrasieve split")
    with counting("split", "images") as tick:
        found = split_files.write_split(manifest, output, settings, tick)
    counts = split_files.label_counts(found)
    if counts:
        table = Table(title="images of each class, the rarest in train first", title_justify="left", show_edge=False)
        table.add_column("class")
        for name in splits.PARTS:
            table.add_column(name, justify="right")
        for name, row in counts[:SHOWN]:
            table.add_row(name, *(f"{count:,}" for count in row))
        table.caption = f"{len(counts) - SHOWN} more classes" if len(counts) > SHOWN else None
        out.print(table)
    for line in found.lines():
        out.print(line, markup=False)
    out.print(f"split: {', '.join(map(str, found.files))}", markup=False)
