"""The command ``terrasieve subset``: its options and what it says at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = (
    "Examples: terrasieve subset ucm.parquet -o subsets/ucm.parquet --share .25,.5 --run runs/my_run  ·  "
    "terrasieve subset curated/manifest.parquet -o rich.parquet --share .25 --by hog --balance geography"
)


def subset(
    manifest: Annotated[Path, typer.Argument(help="Manifest of the images.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Manifest to write; of several shares: a stem.")],
    share: Annotated[str, typer.Option(help="Comma-separated shares to keep; each lies within the next.")] = "0.25",
    by: Annotated[str, typer.Option(help="What is rich: density (few alike), hog, entropy; or random.")] = "density",
    balance: Annotated[str, typer.Option(help="Spread evenly over clusters, geography or none.")] = "clusters",
    embeddings: Annotated[Path | None, typer.Option(help=".npy, a row per kept image; default: thumbnails.")] = None,
    run: Annotated[Path | None, typer.Option(help="Run whose encoder gives the embeddings.")] = None,
    neighbours: Annotated[int, typer.Option(help="Of an image, for density.")] = 10,
    clusters: Annotated[str | None, typer.Option(help="Comma-separated numbers, coarse to fine, e.g. 10,100.")] = None,
    seed: Annotated[int, typer.Option(help="Of the clusters and of the order of equals.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one per core.")] = None,
) -> None:
    """Write smaller, richer manifests: images that repeat the least, spread evenly; and a page that shows them."""
    from pydantic import ValidationError

    from terrasieve import subsets
    from terrasieve.curate.subset import SubsetSettings
    from terrasieve.display import counting, out
    from terrasieve.errors import UserError

    try:
        levels = tuple(int(part) for part in clusters.split(",")) if clusters else None
        shares = [float(part) for part in share.split(",")]
    except ValueError as error:
        raise UserError(f"--share and --clusters take comma-separated numbers: {error}.") from error
    try:
        settings = SubsetSettings.model_validate(
            {"by": by, "balance": balance, "neighbours": neighbours, "clusters": levels, "seed": seed}
        )
    except ValidationError as error:
        lines = [f"--{problem['loc'][0]}: {problem['msg']}; got {problem['input']!r}" for problem in error.errors()]
        raise UserError("\n".join(lines)) from error
    with counting("subset", "images") as tick:
        written, page = subsets.write_subsets(
            manifest, output, shares, settings, embeddings=embeddings, run=run, workers=workers, tick=tick
        )
    for found in written:
        out.print(f"{100 * found.share:g} %: {found.kept:,} images, {found.path}", markup=False)
    out.print(f"report: {page}", markup=False)
