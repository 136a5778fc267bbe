"""Display: progress bars with rate and time left on a terminal, silence elsewhere. For the command line and demo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table as RichTable
from rich.text import Text

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def loading() -> Iterator[None]:
    """Say on a terminal that libraries are being read: torch and timm take seconds, in which nothing else is seen."""
    with err.status("loading torch and timm") if err.is_terminal else nullcontext():
        yield


class RateColumn(ProgressColumn):
    """Things done per second."""

    def render(self, task: Task) -> Text:
        """Draw the rate."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields.get('unit', '')}/s" if speed else "", style="cyan")


@contextmanager
def counting(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar while counting; yields a function of (done, total). Quiet when standard error is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=None, unit=unit)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class TrainingBar:
    """The bar of a training run: steps, loss, images per second, time left."""

    def __init__(self, what: str = "pretrain") -> None:
        self._seen: dict[str, float] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", style="cyan"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=err,
            disable=not err.is_terminal,
        )
        self._task = self._progress.add_task(what, total=None, numbers="")

    def __enter__(self) -> TrainingBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, done: int, total: int) -> None:
        """Set the scale."""
        self._progress.reset(self._task, total=total, completed=done)

    def step(self, done: int) -> None:
        """Move to a step."""
        self._progress.update(self._task, completed=done)

    def log(self, line: dict[str, float]) -> None:
        """Show a log line's numbers, and the last validation's first one."""
        if line:
            numbers = f"loss {line['loss']:.4f}  {line['images_per_s']:,.0f} images/s  lr {line['lr']:.1e}"
            waits = line.get("data_wait", 0.0)
            numbers += f"  waits for images {100 * waits:.0f} %" if waits >= 0.1 else ""
            judged = {name.replace("_", " "): value for name, value in line.items() if name.startswith("val_")}
            self._seen = judged or self._seen
            shown = "".join(f"  {name} {value:.3f}" for name, value in [*self._seen.items()][:1])
            self._progress.update(self._task, numbers=numbers + shown)


class RunsBar:
    """The bar of a sweep: runs done, time passed and left, the last score."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA {task.fields[left]}"),
            TextColumn("{task.fields[last]}", style="cyan"),
            console=err,
            disable=not err.is_terminal,
        )
        self._task = self._progress.add_task("sweep", total=None, left="?", last="")

    def __enter__(self) -> RunsBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def move(self, done: int, total: int, left_s: float | None, last: str) -> None:
        """Show runs done of how many, an estimate of the seconds left, and the run that ended last."""
        left = "?" if left_s is None else str(timedelta(seconds=round(left_s)))
        self._progress.update(self._task, completed=done, total=total, left=left, last=last)

    def say(self, words: str) -> None:
        """Show what is being done beside the runs."""
        self._progress.update(self._task, description=words)


class StepsDisplay:
    """The display of a curation: a line per finished step, a bar for the one that runs, a table at the end."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<8}"),
            BarColumn(),
            TextColumn("{task.fields[numbers]}"),
            RateColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=err,
            disable=not err.is_terminal,
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> StepsDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begins(self, name: str) -> None:
        """Start the bar of a step."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(name, total=None, numbers="", unit="rows")

    def counts(self, done: int, total: int) -> None:
        """Move the bar; a total of 0 is not known yet."""
        if self._task is not None:
            numbers = f"{done:,}/{total:,}" if total else f"{done:,}"
            self._progress.update(self._task, completed=done, total=total or None, numbers=numbers)

    def ends(self, entry: dict[str, Any], before: bool) -> None:
        """Write the line of a finished step."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        dropped = ", ".join(f"{n:,} {code}" for code, n in entry["dropped"].items())
        took = "done before" if before else f"{entry['seconds']:,.1f} s"
        words = f"{entry['step']:<8} {entry['rows']:>11,} rows {entry['kept']:>11,} kept  {took:>11}"
        err.print(f"{words}  dropped: {dropped}" if dropped else words, markup=False, style="dim" if before else None)
        for note in [] if before else entry["notes"]:
            err.print(f"         {note}", markup=False, style="dim")

    def summary(self, entries: list[dict[str, Any]], folder: Path) -> None:
        """Print what was dropped and why, and where everything is."""
        table = RichTable(title="What was dropped, and why", title_justify="left", show_edge=False)
        table.add_column("step")
        table.add_column("reason")
        table.add_column("rows", justify="right")
        for entry in entries:
            for code, n in entry["dropped"].items():
                table.add_row(entry["step"], code, f"{n:,}")
        out.print(table if table.row_count else "Nothing was dropped.")
        last = next(entry for entry in reversed(entries) if entry["step"] != "shards")
        out.print(f"{last['kept']:,} of {last['rows']:,} rows are kept")
        for name in ("manifest.parquet", "report.html", "DATASHEET.html", "shards"):
            if (folder / name).exists():
                out.print(f"{name.split('.')[0].lower()}: {folder / name}", markup=False)
