"""The command ``terrasieve boxes``: annotations of objects, in their usual forms, into the table beside a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = "Example: terrasieve index trees/ -o trees.parquet; terrasieve boxes trees.parquet trees/"


def boxes(
    manifest: Annotated[Path, typer.Argument(help="Manifest of the images.")],
    annotations: Annotated[
        list[Path], typer.Argument(help="Files or folders: COCO .json, Pascal VOC .xml, .csv, .geojson, DOTA .txt.")
    ],
) -> None:
    """Read the boxes of a manifest's images and write them beside it, for terrasieve adapt with task.boxes."""
    from collections import Counter

    from terrasieve.curate import box_files
    from terrasieve.display import out

    path, table, notes = box_files.write_beside(manifest, annotations)
    counts = Counter(table["name"].to_pylist())
    classes = ", ".join(f"{name} {count:,}" for name, count in counts.most_common())
    out.print(f"{table.num_rows:,} boxes in {len(set(table['id'].to_pylist())):,} images: {classes}", markup=False)
    for note in notes:
        out.print(f"note: {note}", markup=False)
    out.print(f"boxes: {path}", markup=False)
