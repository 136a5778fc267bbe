"""The command ``terrasieve sweep``: options, a progress bar, a line per run. Imports what it needs when it runs.

Last of the sweep's files; the command line registers it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from terrasieve.errors import UserError

if TYPE_CHECKING:
    from terrasieve.recipe import AdaptRecipe
    from terrasieve.sweep.run import Progress, Swept

N = TypeVar("N", int, float)


def sweep(
    recipe: Annotated[str, typer.Argument(help="Recipe of terrasieve adapt (YAML).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the sweep; the same command goes on.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value or key.sub=value.")] = None,
    ratios: Annotated[str, typer.Option(help="Shares of patches dropped; 0 is always run.")] = "0,.25,.5,.6,.75,.85",
    policies: Annotated[
        str, typer.Option(help="Of static, dynamic, budget, random; random is always run.")
    ] = "static,dynamic,random",
    seeds: Annotated[str, typer.Option(help="Of the runs.")] = "0,1,2",
    jobs: Annotated[int, typer.Option(help="Runs side by side, one thread each.")] = 1,
    rounds: Annotated[int, typer.Option(help="Of measuring images/s, memory and FLOPs; 0 = do not measure.")] = 5,
) -> None:
    """Fine-tune at every ratio, policy and seed, measure what each costs, and report score against cost."""
    grid = {"ratios": _numbers("ratios", ratios, float), "seeds": _numbers("seeds", seeds, int)}
    from terrasieve.sweep.isolate import start_server

    start_server()  # it imports torch and the rest while this process does
    from terrasieve import recipe as recipes
    from terrasieve.recipe import AdaptRecipe

    base = recipes.load(recipe, overrides or [], AdaptRecipe)
    swept = _watched(base, output, policies=policies.split(","), jobs=jobs, rounds=rounds, **grid)
    if swept.interrupted:
        raise typer.Exit(130)
    if swept.failed or swept.problems:
        raise typer.Exit(1)


def _watched(base: AdaptRecipe, folder: Path, **how: Any) -> Swept:
    """Sweep with a progress bar and a line per run."""
    from terrasieve.display import RunsBar, err, out
    from terrasieve.sweep.run import sweep as do

    with RunsBar() as bar:

        def progress(at: Progress) -> None:
            said = "" if at.last is None else _line(at.last)
            bar.move(at.done, at.total, at.left_s, said)
            out.print(f"{at.done:>4} of {at.total}  {said or f'done already, in {folder}'}", markup=False)

        swept = do(base, folder, on_progress=progress, on_words=bar.say, **how)
    for problem in swept.problems:
        err.print(problem, markup=False)
    for row in swept.failed:
        err.print(f"{row['run']} failed: {row['message']}", markup=False)
    if swept.interrupted:
        out.print("interrupted; the same command goes on", markup=False)
    out.print(f"report: {swept.report}", markup=False)
    return swept


def _line(row: dict[str, Any]) -> str:
    from terrasieve.report.sweep_numbers import main_metric, words

    metric = main_metric([row])
    said = f"{100 * row['scores'][metric][0]:.1f} % {words(metric)}" if metric else row["state"]
    return f"{row['run']}: {said}, {row['seconds']:.0f} s"


def _numbers(name: str, text: str, kind: type[N]) -> list[N]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--{name}: {text!r} is not a list of numbers with commas, such as 0,1,2.") from error
