"""The command `terrasieve study`: its options, a progress bar, a line per run, the table at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = (
    "Examples: terrasieve study recipes/studies/neighbours_ucmerced.yaml -o studies/ucmerced --dry  \u00b7  "
    "terrasieve study recipes/studies/family_earth.yaml -o studies/earth seeds=[0] recipe.steps=500 --only 'moco-*'"
)


def study(
    file: Annotated[str, typer.Argument(help="Study (YAML): a recipe, named arms, seeds, what is measured.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the study; the same command goes on.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, e.g. recipe.steps=100.")] = None,
    only: Annotated[str | None, typer.Option(help="Comma-separated arms, e.g. 'moco-*'; the reference too.")] = None,
    jobs: Annotated[int, typer.Option(help="Runs side by side, one thread each.", min=1)] = 1,
    dry: Annotated[bool, typer.Option("--dry", help="Every arm for 5 steps, one seed, in OUTPUT/dry.")] = False,
) -> None:
    """Pretrain named arms of a recipe over seeds, score them alike, compare them at equal images and equal CPU time."""
    from terrasieve.sweep.isolate import start_server

    start_server()  # it imports torch and the rest while this process does
    from terrasieve.display import RunsBar, err, out
    from terrasieve.study.plan import load
    from terrasieve.study.run import Progress, run_study

    asked = load(file, overrides or [])
    asked = asked.only(only.split(",")) if only else asked
    asked, output = (asked.dry(), output / "dry") if dry else (asked, output)
    with RunsBar() as bar:

        def progress(at: Progress) -> None:
            bar.move(at.done, at.total, at.left_s, at.last)
            out.print(f"{at.done:>4} of {at.total}  {at.last or f'done already, in {output}'}", markup=False)

        studied = run_study(asked, output, jobs=jobs, on_progress=progress)
    out.print(studied.table, markup=False)
    for line in studied.failed:
        err.print(f"failed: {line}", markup=False)
    if studied.interrupted:
        out.print("interrupted; the same command goes on", markup=False)
        raise typer.Exit(130)
    out.print(f"table: {output / 'table.md'}, plot: {output / 'study.svg'}", markup=False)
    if studied.failed:
        raise typer.Exit(1)
