"""Run a suite: do what is left of it, keep a line for every finished job, and write the tables.

Last of the suite's files before its command. The folder holds ``results.jsonl  report.html  table.md  table.tex
table.json``; whatever happens, the same command goes on with what is not done.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from terrasieve.errors import UserError
from terrasieve.opened import Wanted
from terrasieve.report.suite_page import write_suite
from terrasieve.suite import encoders
from terrasieve.suite import jobs as planning
from terrasieve.suite import settings as suites
from terrasieve.suite.data import top
from terrasieve.suite.jobs import Job
from terrasieve.suite.score import score
from terrasieve.suite.table import content_of
from terrasieve.sweep.isolate import Ending, Task, run_all
from terrasieve.train.folder import environment, held
from terrasieve.train.loop import interruptible

RECORD = "results.jsonl"
Line = dict[str, Any]


@dataclass(frozen=True)
class Done:
    """How a suite ended: its rows, the report's path, the lines of failed jobs, and whether it was interrupted."""

    rows: list[dict[str, Any]]
    report: Path
    failed: list[Line]
    interrupted: bool


@dataclass(frozen=True)
class Progress:
    """How far a suite is: jobs done of how many, seconds left (None = not known), the last line, the job that runs."""

    done: int
    total: int
    left_s: float | None
    last: Line | None
    now: Job | None


def evaluate(
    encoder: str,
    name: str,
    folder: Path,
    *,
    wanted: Wanted = Wanted(),
    data: Path | None = None,
    again: bool = False,
    workers: int = 1,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Done:
    """Score an encoder on all tasks of a suite whose images are here.

    Args:
        encoder: a run, an export, a file of weights, timm:NAME or torchvision:NAME (``opened.open_encoder``).
        name: of the suite, or its file.
        folder: to write to; jobs that are done in it are not done again.
        wanted: of an encoder that does not say it itself.
        data: folder of data; None = see ``suite.data.top``.
        again: do everything again.
        workers: reading processes.
        on_progress: called at the beginning and after each job.

    Returns:
        How it ended. The tables are written in any case, after every job.

    Raises:
        UserError: for a mistake in the input.
    """
    import torch

    suite, protocols, file = suites.load(name)
    identity = encoders.identity(encoder, wanted)
    planned = planning.plan(suite, protocols, identity, top(data), encoders.untrainable(encoder))
    about = {"suite": suite.name, "about": suite.about, "file": file.name, "encoder": encoder}
    with held(folder, "--output"), interruptible() as stopped:
        record = folder / RECORD
        lines = {} if again else read(record)
        if again:
            _forget(record, planned)
        left = [job for job in planned if not job.absent and lines.get(job.key, {}).get("state") != "done"]
        total = sum(not job.absent for job in planned)
        by_name = {job.name: job for job in left}

        def written() -> tuple[list[dict[str, Any]], Path]:
            content = content_of(planned, protocols, lines, about | {"environment": environment()})
            return content["rows"], write_suite(folder, content)

        def ended(task: Task, ending: Ending) -> None:
            if ending.state == "interrupted":
                return
            job = by_name.pop(task.name)
            lines[job.key] = _line(job, ending)
            append(record, lines[job.key])
            written()
            told(lines[job.key])

        def told(last: Line | None) -> None:
            now = next(iter(by_name.values()), None)  # one at a time, in their order
            on_progress(Progress(total - len(by_name), total, _left_s(lines.values(), len(by_name)), last, now))

        told(None)
        threads = torch.get_num_threads()
        tasks = [
            Task(
                job.name,
                score,
                (encoders.located(encoder), wanted, job, folder.absolute(), threads, workers),
                folder.absolute() / "output" / f"{job.name}.txt",
            )
            for job in left
        ]
        interrupted = not run_all(tasks, 1, stopped, ended) if tasks else False
        rows, report = written()
    keys = {job.key for job in planned}
    failed = [line for key, line in lines.items() if key in keys and line["state"] == "failed"]
    return Done(rows, report, failed, interrupted)


def read(path: Path) -> dict[str, Line]:
    """Read the lines of finished jobs by their keys, the last of each; a line cut off by a crash is passed over."""
    found: dict[str, Line] = {}
    if not path.exists():
        return found
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, text in enumerate(lines, start=1):
        try:
            line = json.loads(text)
            found[line["key"]] = line
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                raise UserError(
                    f"{path}, line {number} is not of a suite: {error}. Remove it, or use --again."
                ) from error
    return found


def append(path: Path, line: Line) -> None:
    """Add a line and have it on the disk before going on; what a crash left of a line is cut away first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        file.truncate(file.read(size).rfind(b"\n") + 1)
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _forget(record: Path, jobs: Iterable[Job]) -> None:
    """Remove what was scored and trained before."""
    record.unlink(missing_ok=True)
    for job in jobs:
        shutil.rmtree(record.parent / "runs" / job.name, ignore_errors=True)


def _line(job: Job, ending: Ending) -> Line:
    """Make the line of a job that has ended."""
    result = ending.result or {"scores": [], "notes": [], "memory_mb": None, "run": None}
    about = {"key": job.key, "task": job.task.name, "protocols": [each.name for each in job.protocols]}
    return about | {
        "seed": job.seed, "state": ending.state, "message": ending.message, "seconds": ending.seconds, **result
    }  # fmt: skip


def _left_s(lines: Iterable[Line], left: int) -> float | None:
    """Estimate the seconds left from jobs done."""
    timed = [line["seconds"] for line in lines if line["state"] == "done"]
    return fmean(timed) * left if timed else (None if left else 0.0)
