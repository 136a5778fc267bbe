"""The part of ``terrasieve evaluate`` that scores an encoder on a suite: a progress bar, a line per job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from terrasieve.suite.run import Progress


def evaluate_suite(
    encoder: str,
    suite: str,
    output: Path | None,
    data: Path | None,
    again: bool,
    workers: int,
    wanted: dict[str, Any],
) -> None:
    """Score an encoder on a suite, print the table, and say what is not here."""
    from terrasieve.sweep.isolate import start_server

    start_server()  # it imports torch and the rest while this process does
    from terrasieve.display import RunsBar, err, out
    from terrasieve.opened import Wanted
    from terrasieve.report.suite_page import HEADER, MISSING, NUMBERS, SCORED, cells, columns, missing
    from terrasieve.suite.data import top
    from terrasieve.suite.encoders import folder_of
    from terrasieve.suite.run import evaluate

    folder = output or folder_of(encoder, suite)
    with RunsBar() as bar:

        def progress(at: Progress) -> None:
            now = "" if at.now is None else f"{at.now.task.name}: {', '.join(each.name for each in at.now.protocols)}"
            bar.move(at.done, at.total, at.left_s, now)
            bar.say("suite")
            if at.last is not None:
                name = f"{at.last['task']}: {', '.join(at.last['protocols'])}, seed {at.last['seed']}"
                said = f"{at.last['seconds']:.0f} s" if at.last["state"] == "done" else at.last["message"]
                out.print(f"{at.done:>4} of {at.total}  {name}  {said}", markup=False)

        done = evaluate(
            encoder, suite, folder, wanted=Wanted(**wanted), data=data, again=again, workers=workers,
            on_progress=progress,
        )  # fmt: skip
    from rich.table import Table

    scored = [row for row in done.rows if row["state"] in SCORED]
    table = Table(title=f"{encoder}, per cent, 95 % intervals")
    shown = [place for place in columns(scored) if HEADER[place] not in ("published", "memory", "seeds")]
    for place in shown:
        table.add_column(HEADER[place], justify="right" if HEADER[place] in NUMBERS else "left")
    for row in scored:
        table.add_row(*(cells(row)[place] for place in shown))
    if scored:
        out.print(table)
    for state in ("failed", "absent"):
        for name, why in missing(done.rows, state):
            out.print(f"{MISSING[state].lower()}: {name}: {why}", markup=False)
    if done.rows and all(row["state"] == "absent" for row in done.rows):
        err.print(f"nothing was scored: no data set of {suite} is in {top(data)}; see --data", markup=False)
    if done.interrupted:
        waiting = sum(row["state"] == "waiting" for row in done.rows)
        err.print(f"interrupted, {waiting} of {len(done.rows)} rows are left; the same command goes on", markup=False)
    out.print(f"report: {done.report}", markup=False)
    if done.interrupted or done.failed:
        raise typer.Exit(130 if done.interrupted else 1)
