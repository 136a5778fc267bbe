"""The commands ``terrasieve exclude``, ``slice``, ``hash``, ...: each step of a curation on its own over a manifest.

All are made from one table: a step has a name, a line of help and an example; what it does is in ``curate.steps``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

STEPS = {
    "exclude": (
        "Drop images by their headers: size, bands, data type, licence, place.",
        "min_px=64 'bands=[red, green, blue]'",
    ),
    "slice": ("Cut oversized scenes into virtual windows; no pixel is copied.", "size_px=512 how=grid overlap_px=64"),
    "hash": ("Hash images, and windows of scenes, into the folder's store; what is there is not hashed again.", ""),
    "inspect": ("Drop images by their pixels: unreadable, no data, blank. Needs the store.", "max_no_data=0.3"),
    "exact": ("Drop exact duplicates: equal bytes, then equal pixels. Needs the store.", ""),
    "sparse": ("Give images of low information (open water, cloud, snow) a quota of their own. Needs the store.", ""),
    "near": ("Group near-duplicates by perceptual hash, rotated and mirrored ones too. Needs the store.", "distance=6"),
    "verify": ("Judge near-duplicates by their thumbnails: duplicate, different, or for review. Needs the store.", ""),
}


def commands() -> Iterator[tuple[Callable[..., None], str]]:
    """Yield a command for each step, and its examples."""
    for name, (words, settings) in STEPS.items():
        yield _command(name, words), f"Example: terrasieve {name} in.parquet -o out.parquet {settings}".rstrip()


def _command(name: str, words: str) -> Callable[..., None]:
    def command(
        manifest: Annotated[Path, typer.Argument(help="Manifest to read.")],
        overrides: Annotated[
            list[str] | None,
            typer.Argument(metavar="KEY=VALUE", help="Settings of the step, listed in docs/curate.md."),
        ] = None,
        output: Annotated[Path, typer.Option("-o", "--output", help="Manifest to write: the same rows.")] = Path(
            f"{name}.parquet"
        ),
        folder: Annotated[
            Path, typer.Option("--folder", help="Of the curation: hashes, pairs and decisions lie in it.")
        ] = Path("curated"),
        workers: Annotated[int | None, typer.Option(help="Processes; default: one per core.")] = None,
        seed: Annotated[int, typer.Option(help="Of what the step draws.")] = 0,
    ) -> None:
        _run(name, manifest, output, folder, overrides or [], workers, seed)

    command.__name__ = name
    command.__doc__ = words
    return command


def _run(
    name: str, source: Path, target: Path, folder: Path, overrides: list[str], workers: int | None, seed: int
) -> None:
    from terrasieve.curate.engine import Local
    from terrasieve.curate.step import Work
    from terrasieve.curate.steps import STEPS as known
    from terrasieve.display import counting, out
    from terrasieve.errors import UserError
    from terrasieve.settings_file import override, validate

    if target.exists() and target.resolve() == source.resolve():
        raise UserError(f"-o: {target} is the manifest to read. Name another file; a step never changes its input.")
    step = known[name]
    if "pairs.parquet" in step.also and (folder / "steps.json").exists():
        raise UserError(
            f"--folder: {folder} holds a curation, whose pairs {name} would replace. Name a folder of its own, "
            f"--folder FOLDER, after `terrasieve hash {source} --folder FOLDER`; `terrasieve curate` runs {name} there."
        )
    settings = validate(override({}, overrides), f"of {name}", step.settings)
    with counting(name, "rows") as tick:
        result = step.run(source, target, settings, Work(folder, Local(workers), seed, tick))
    dropped = ", ".join(f"{n:,} {code}" for code, n in result.dropped.most_common())
    out.print(f"{result.rows:,} rows, {result.kept:,} kept; dropped here: {dropped or 'none'}", markup=False)
    for note in result.notes:
        out.print(note, markup=False)
    out.print(f"manifest: {target}", markup=False)
