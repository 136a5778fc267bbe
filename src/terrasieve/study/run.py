"""Run: do what is left of a study, a line per finished run, then its table and its plot.

Every run has a process of its own and adds a line to DIR/runs.jsonl; the same command goes on where it was
interrupted, and does a run again whose recipe or measures have changed. Seeds are the outer loop, so that an
interrupted study still has whole seeds. ``page`` writes DIR/table.md, runs.csv and study.svg/.png.

Arms are compared as the study file has them (as a rule: equal images), and, those that ``equal_cpu`` names, again at
the reference's CPU time: steps are scaled by each arm's rate, measured in short trials in which all arms take turns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from terrasieve import manifest
from terrasieve.errors import UserError
from terrasieve.files import written_aside
from terrasieve.study.arm import run_one, trial
from terrasieve.study.page import TITLES, write_page
from terrasieve.study.plan import Study
from terrasieve.sweep.isolate import Ending, Task, run_all
from terrasieve.train.folder import environment, held, write_json
from terrasieve.train.loop import interruptible

RunTasks = Callable[[Sequence[Task], int, Callable[[], bool], Callable[[Task, Ending], None]], bool]


@dataclass(frozen=True)
class Progress:
    """Where a study stands.

    Attributes:
        done: runs, of ``total``.
        total: runs.
        left_s: estimate of what is left; None before the first run.
        last: what the last run's line says, "" at the start.
    """

    done: int
    total: int
    left_s: float | None
    last: str


@dataclass(frozen=True)
class Studied:
    """What became of a study.

    Attributes:
        whole: nothing was interrupted and nothing failed.
        interrupted: by Ctrl-C or SIGTERM.
        failed: runs, with why.
        table: Markdown, also in DIR/table.md; "" when no run is done.
    """

    whole: bool
    interrupted: bool
    failed: list[str]
    table: str


class Runner:
    """Does what is left of a study and keeps its lines."""

    def __init__(
        self, study: Study, folder: Path, on_progress: Callable[[Progress], None], run_tasks: RunTasks
    ) -> None:
        self.folder, self.on_progress, self.run_tasks = folder, on_progress, run_tasks
        data = study.recipe.get("data", "")
        self.measures = [
            {**m, "data": _rows(m.get("data", data), folder, every=m.get("every", 1))} for m in study.measures
        ]
        own = {**study.recipe, "data": _rows(data, folder, split="train")} if study.train_only else study.recipe
        self.study = study.model_copy(update={"recipe": own})
        self.data_key = manifest.content_hash(manifest.read(own["data"]))
        self.path = folder / "runs.jsonl"
        self.done = _lines(self.path)
        self.failed: list[str] = []
        self.planned: list[dict[str, Any]] = []

    def run(self, jobs: int, stopped: Callable[[], bool]) -> bool:
        """Do all runs; False when interrupted."""
        steps: list[tuple[str, str, int | None]] = [("images", arm, None) for arm in self.study.arms]
        if self.study.equal_cpu:
            shares = self.rates(stopped)
            if shares is None:
                return False
            reference = self.study.recipe_of(self.study.against, 0)["steps"]
            steps += [("cpu", arm, max(round(reference * shares[arm]), 1)) for arm in self.study.equal_cpu]
        tasks = self.plan([(*one, seed) for seed in self.study.seeds for one in steps])
        began, seconds = len(self.planned) - len(tasks), [0.0]
        self.on_progress(Progress(began, len(self.planned), None, ""))

        def on_end(task: Task, ending: Ending) -> None:
            about = next(one for one in self.planned if one["key"] == task.name)
            seconds.append(ending.seconds)
            if ending.state == "done":
                row = {**about, **ending.result, "date": datetime.now(UTC).isoformat(timespec="seconds")}
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                self.done[task.name] = row
            name = f"{about['arm']}, {TITLES[about['comparison']].lower()}, seed {about['seed']}"
            if ending.state == "failed":
                self.failed.append(f"{name}: {ending.message}")
            said = _said(ending) if ending.state == "done" else ending.state
            count, left = len(seconds) - 1, len(tasks) - len(seconds) + 1
            left_s = sum(seconds) / count * left / jobs
            self.on_progress(Progress(began + count, len(self.planned), left_s, f"{name}: {said}"))

        return self.run_tasks(tasks, jobs, stopped, on_end)

    def plan(self, runs: Sequence[tuple[str, str, int | None, int]]) -> list[Task]:
        """Lay out all runs, (comparison, arm, steps, seed), and return what is left of them."""
        tasks: dict[str, Task] = {}
        for comparison, arm, steps, seed in runs:
            content = self.study.recipe_of(arm, seed, steps)
            key = _key({**content, "data": self.data_key}, self.study.measures)
            self.planned.append({"arm": arm, "comparison": comparison, "seed": seed, "key": key})
            run = self.folder / "runs" / f"{arm}-{comparison}-seed{seed}"
            if key not in self.done:
                output = self.folder / "output" / f"{run.name}.txt"
                tasks.setdefault(key, Task(key, run_one, (content, run, self.measures), output))
        return list(tasks.values())

    def rates(self, stopped: Callable[[], bool]) -> dict[str, float] | None:
        """Measure how many steps of each arm take the time of one of the reference: medians of ratios in turns."""
        arms = list(dict.fromkeys([self.study.against, *self.study.equal_cpu]))
        recipes = {arm: self.study.recipe_of(arm, 0, self.study.trial["steps"]) for arm in arms}
        content = [{**recipes[arm], "data": self.data_key} for arm in arms]  # not where the folder of the study lies
        key = _key(content, self.study.trial)
        path = self.folder / "rates.json"
        stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if stored.get("key") != key:
            found: dict[str, list[float]] = {arm: [] for arm in arms}
            turns = [
                Task(arm, trial, (recipes[arm], self.folder / "trial"), self.folder / "output" / "trial.txt")
                for _ in range(self.study.trial["rounds"])
                for arm in arms
            ]

            def on_end(task: Task, ending: Ending) -> None:
                if ending.state == "failed":
                    raise UserError(f"The trial of {task.name} failed: {ending.message}")
                found[task.name].append(ending.result)
                done = sum(map(len, found.values()))
                said = f"trial of {task.name}: {1000 * ending.result:.1f} ms CPU a step"
                self.on_progress(Progress(done, len(turns), None, said))

            if not self.run_tasks(turns, 1, stopped, on_end):
                return None
            stored = {"key": key, "cpu_s_per_step": found}
            write_json(path, stored)
        per_step = stored["cpu_s_per_step"]
        ours = per_step[self.study.against]
        return {arm: median(a / b for a, b in zip(ours, per_step[arm], strict=True)) for arm in arms}

    def write(self) -> str:
        """Write environment, table and plot of what is done; return the table."""
        rows = [{**self.done[about["key"]], **about} for about in self.planned if about["key"] in self.done]
        write_json(self.folder / "environment.json", environment(threads=1, study=self.study.model_dump(mode="json")))
        return write_page(self.folder, self.study.name, rows, self.study.against) if rows else ""


def run_study(
    study: Study,
    folder: Path,
    *,
    jobs: int = 1,
    on_progress: Callable[[Progress], None] = lambda at: None,
    run_tasks: RunTasks = run_all,
) -> Studied:
    """Do what is left of a study and write its table and plot.

    Args:
        study: what to run.
        folder: made; an earlier study there goes on.
        jobs: runs side by side, one thread each; trials run alone.
        on_progress: called at the start and after every run.
        run_tasks: how runs are run.

    Raises:
        UserError: the manifests cannot be read, a trial fails, or another process works in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder), interruptible() as stopped:
        runner = Runner(study, folder, on_progress, run_tasks)
        whole = runner.run(jobs, stopped)
        return Studied(whole and not runner.failed, not whole, runner.failed, runner.write())


def _said(ending: Ending) -> str:
    scores = ", ".join(f"{name} {value:.3f}" for name, value in ending.result["scores"].items())
    return f"{scores} ({ending.seconds:.0f} s)"


def _lines(path: Path) -> dict[str, dict[str, Any]]:
    """Read finished runs by their keys; half a line, of a study that was killed, is taken away."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    whole = [line for line in lines if line.endswith("}")]
    if len(whole) < len(lines):
        with written_aside(path) as aside:
            aside.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")
    return {row["key"]: row for row in map(json.loads, whole)}


def _rows(data: str, folder: Path, *, split: str | None = None, every: int = 1) -> str:
    """Write a manifest of some of a manifest's kept rows into the study's folder and return its path."""
    table = manifest.read(data)
    chosen = pc.fill_null(table["keep"], False)
    chosen = chosen if split is None else pc.and_(chosen, pc.fill_null(pc.equal(table["split"], split), False))
    table = table.filter(chosen)
    path = folder / f"{Path(data).stem}-{split or 'all'}-{every}.parquet"
    manifest.write(table.take(pa.array(range(0, len(table), every))), path)
    return str(path)


def _key(*content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()
