"""The command ``terrasieve datasets``: the catalog of public data sets, and what is wrong with a copy of one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = (
    "Examples: terrasieve datasets -d DATA  ·  terrasieve datasets eurosat -d DATA/eurosat  ·  "
    "terrasieve datasets dior-r -d DATA/dior-r -o dior-r.parquet"
)


def datasets(
    name: Annotated[str | None, typer.Argument(help="Data set, NAME or NAME/VARIANT; none: list all.")] = None,
    folder: Annotated[
        Path | None, typer.Option("-d", "--folder", help="Folder of the copy, or of all; default: $TERRASIEVE_DATA.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Manifest to write, boxes beside it.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch what has a plain address; resumes.")] = False,
    checksums: Annotated[bool, typer.Option(help="Compare archives that are there with published checksums.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of docs/datasets.md.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes for -o; default: one per core.")] = None,
) -> None:
    """List public data sets and which are here; say how to obtain one, and what a copy lacks."""
    from terrasieve import cataloguing
    from terrasieve.display import counting, err, out

    if markdown:
        typer.echo(cataloguing.markdown(), nl=False)
        return
    if name is None:
        out.print(cataloguing.overview(folder))
        return
    entry, variant, place = cataloguing.named(name, folder)
    if download:
        with counting(f"download {entry.name}", "bytes") as tick:
            for line in cataloguing.fetch(entry, place, tick):
                out.print(line, markup=False)
    if place is None or not place.is_dir():
        out.print("\n".join(cataloguing.how_to_obtain(entry)), markup=False, soft_wrap=True)
        where = (
            f"There is no folder {place}." if place else "Give the folder of a copy with -d, or set TERRASIEVE_DATA."
        )
        out.print(f"\nNot here: {where}", markup=False)
        raise typer.Exit(1 if folder else 0)
    checked = cataloguing.check(entry, variant, place, checksums=checksums)
    out.print("\n".join(checked.lines), markup=False, soft_wrap=True)
    if output is not None:
        with counting(f"index {entry.name}", "images") as tick:
            for line in cataloguing.write_manifest(checked, output, workers, tick):
                out.print(line, markup=False)
    if not checked.whole:
        err.print("terrasieve: the copy is not whole, see above", markup=False)
        raise typer.Exit(1)
