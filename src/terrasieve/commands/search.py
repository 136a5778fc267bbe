"""The command ``terrasieve search``: its options and what it says at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = (
    "Examples: terrasieve search vectors.parquet --like airplane00.jpg -o alike.html  ·  "
    "terrasieve search features.tif --like 13.41,52.52 -n 100 -o alike.html"
)
SAID = 5


def search(
    embeddings: Annotated[
        Path, typer.Argument(help="Of terrasieve embed: vectors (.parquet), or a scene's COG (.tif).")
    ],
    like: Annotated[str, typer.Option(help="Id or file name of a row, or LON,LAT in degrees.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Page to write (.html).")],
    count: Annotated[int, typer.Option("-n", "--count", help="Results.")] = 50,
    pool: Annotated[int, typer.Option(help="Places that the page holds and can compare, about 2 kB each.")] = 2000,
) -> None:
    """Find what looks like one image or place: a page with a map, on which every result can be asked in its turn."""
    from terrasieve import searching
    from terrasieve.display import counting, err, out

    with counting("search", "thumbnails") as tick:
        found = searching.search(embeddings, like, output, count=count, pool=pool, on_images=tick)
    for uri, reason in found.failed[:SAID]:
        err.print(f"no picture of {uri}: {reason}", markup=False)
    if len(found.failed) > SAID:
        err.print(f"no picture of {len(found.failed) - SAID:,} more images", markup=False)
    for name, uri, score in found.hits[:SAID]:
        out.print(f"{score:.3f}  {name}  {uri}", markup=False, soft_wrap=True)
    out.print(f"{output}: {len(found.hits):,} of {found.searched:,}", markup=False)
