"""Run: do what is left of a sweep, keep its rows, and write its report.

After ``plan``. Everything that computes happens in processes of ``isolate``; this one only waits and writes. The folder
holds ``sweep.json  sweep.csv  report.html  figures/  runs/  output/``; whatever happens, the same command goes on.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from terrasieve import adapt, manifest, recipe
from terrasieve.errors import UserError
from terrasieve.evaluate.protocol import Score
from terrasieve.recipe import AdaptRecipe
from terrasieve.report.sweep_page import write_sweep_page
from terrasieve.sweep import costs as costing
from terrasieve.sweep import plan as planning
from terrasieve.sweep.isolate import Ending, Task, parent_is_gone, run_all
from terrasieve.sweep.plan import Setting
from terrasieve.train.folder import environment, held, write_json
from terrasieve.train.loop import interruptible

RECORD = "sweep.json"


@dataclass(frozen=True)
class Swept:
    """How a sweep ended: its rows, the report's path, and whether it was interrupted."""

    rows: list[dict[str, Any]]
    report: Path
    interrupted: bool
    problems: tuple[str, ...] = ()

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Return the rows of runs that failed."""
        return [row for row in self.rows if row["state"] == "failed"]


@dataclass(frozen=True)
class Progress:
    """How far a sweep is: runs done of how many, seconds left (None when not known), the row that ended last."""

    done: int
    total: int
    left_s: float | None
    last: dict[str, Any] | None


def sweep(
    base: AdaptRecipe,
    folder: Path,
    *,
    ratios: Sequence[float] = planning.RATIOS,
    policies: Sequence[str] = ("static", "dynamic", "random"),
    seeds: Sequence[int] = (0, 1, 2),
    jobs: int = 1,
    rounds: int = 5,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_words: Callable[[str], None] = lambda words: None,
) -> Swept:
    """Run a recipe at every ratio, policy and seed, measure what each setting costs, and write the report.

    Args:
        base: the recipe; ratio, policy and seed of its own do not matter.
        folder: of the sweep. Runs in it that are done are not done again, interrupted ones go on.
        ratios: shares of patches dropped; 0 is always among them.
        policies: of static, dynamic, budget, random; random is always among them.
        seeds: of the runs.
        jobs: runs side by side, each with one thread.
        rounds: of the cost measurement; 0 = none.
        on_progress: called at the beginning and after each run.
        on_words: told what is being done beside the runs.

    Returns:
        How it ended. The report is written in any case.

    Raises:
        UserError: for a mistake in the input, or a folder that holds another sweep.
    """
    settings = planning.plan(ratios, policies, seeds)
    planning.check_base(base, settings)
    if jobs < 1:
        raise UserError(f"sweep: --jobs {jobs} is less than 1.")
    with held(folder), tempfile.TemporaryDirectory() as scratch, interruptible() as stopped:
        on_words("reading the task")
        task = Path(scratch) / "task.pt"
        record = _Record(folder, _prepared(base, folder, task, stopped))
        on_words("sweep")
        interrupted = not _run(record, settings, task, jobs, stopped, on_progress)
        if rounds and not interrupted:
            interrupted = not costing.measure(record, settings, task, jobs, rounds, stopped, on_words)
        on_words("writing the report")
        report = write_sweep_page(folder, record.content)
        rows = [record.rows[setting.name] for setting in settings]
        return Swept(rows, report, interrupted, tuple(record.content["problems"]))


class _Record:
    """The content of ``sweep.json``, which is written anew after every run.

    Attributes:
        base: the recipe, completed.
        rows: run's name -> row; also those of earlier calls with other ratios, policies or seeds.
    """

    def __init__(self, folder: Path, prepared: dict[str, Any]) -> None:
        """Take up an earlier record.

        Raises:
            UserError: if it is one of another recipe or other images.
        """
        self.folder, self.path = folder, folder / RECORD
        self.base = recipe.check(prepared["recipe"], "of the sweep", AdaptRecipe)
        self.content: dict[str, Any] = {
            "name": self.base.name,
            "runs": [],
            "costs": [],
            "cost_notes": "",
            "problems": [],
            "environment": environment(manifest_hash=prepared["manifest_hash"]),
            "recipe": self.base.model_dump(mode="json"),
        }
        if self.path.exists():
            self._take_up(prepared["manifest_hash"])
        self.rows: dict[str, dict[str, Any]] = {row["run"]: row for row in self.content["runs"]}

    def _take_up(self, manifest_hash: str) -> None:
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            before = recipe.check(stored["recipe"], str(self.path), AdaptRecipe)
            kept = {name: stored[name] for name in ("runs", "costs", "cost_notes")}
            stored_hash = stored["environment"]["manifest_hash"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path} cannot be read ({error}); sweep into another folder.") from error
        keys = planning.differing(before, self.base)
        if keys:
            raise UserError(
                f"{self.folder} holds a sweep of another recipe: {', '.join(keys)} differ. Ratios, policies and seeds "
                "may be added to it; sweep a changed recipe into another folder."
            )
        if stored_hash != manifest_hash:
            raise UserError(
                f"{self.folder} holds a sweep over other images: their manifest's hash is {manifest_hash} instead of "
                f"{stored_hash}. Sweep into another folder."
            )
        self.content |= kept

    def put(self, setting: Setting, state: str, message: str = "", seconds: float | None = None, **more: Any) -> None:
        """Replace a run's row; its seconds add up over sessions."""
        before = self.rows.get(setting.name, {}).get("seconds")
        total = before if seconds is None else seconds + (before or 0.0)
        about = {"run": setting.name, "policy": setting.policy, "ratio": setting.ratio, "seed": setting.seed}
        empty: dict[str, Any] = {"scores": {}, "count": None}
        self.rows[setting.name] = {**about, "state": state, "message": message, "seconds": total, **empty, **more}

    def put_scores(self, setting: Setting, scores: Sequence[Score], seconds: float | None = None) -> None:
        """Put the row of a run that is done."""
        found = {score.metric: [score.value, score.low, score.high] for score in scores}
        best = scores[0].settings.get("best_step")
        self.put(setting, "done", "", seconds, scores=found, count=scores[0].count, best_step=best)

    def write(self) -> None:
        """Write ``sweep.json``, whole or not at all."""
        self.content["runs"] = list(self.rows.values())
        write_json(self.path, self.content)


def _prepared(base: AdaptRecipe, folder: Path, task: Path, stopped: Callable[[], bool]) -> dict[str, Any]:
    """Find the task and complete the recipe, once and in a process of its own: all runs normalise alike."""
    preparing = Task("prepare", prepare, (base.model_dump(mode="json"), task), folder / "output" / "prepare.txt")
    endings: list[Ending] = []
    run_all([preparing], 1, stopped, lambda _, ending: endings.append(ending))
    if not endings or endings[0].state == "interrupted":
        raise KeyboardInterrupt
    if endings[0].state == "failed":
        raise UserError(endings[0].message)
    result: dict[str, Any] = endings[0].result
    return result


def prepare(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Keep a recipe's images in a file; return the recipe completed with what they say, and their hash."""
    base = recipe.check(content, "of the sweep", AdaptRecipe)
    task = adapt.divide(base)
    torch.save(task, path)
    completed = adapt.completed(base, task)
    return {"recipe": completed.model_dump(mode="json"), "manifest_hash": manifest.content_hash(task.table)}


def _run(
    record: _Record,
    settings: Sequence[Setting],
    task: Path,
    jobs: int,
    stopped: Callable[[], bool],
    on_progress: Callable[[Progress], None],
) -> bool:
    """Do the runs that are not done; return False when interrupted."""
    tasks: dict[str, tuple[Task, Setting]] = {}
    for setting in settings:
        wanted, place = planning.recipe_of(record.base, setting), record.folder / "runs" / setting.name
        state, scores = planning.standing(place, wanted)
        if state == "done":
            record.put_scores(setting, scores)
            continue
        record.put(setting, "unfinished" if state == "unfinished" else "waiting")
        arguments = (wanted.model_dump(mode="json"), task, place, state == "unfinished")
        output = record.folder / "output" / f"{setting.name}.txt"
        tasks[setting.name] = (Task(setting.name, run_one, arguments, output), setting)
    total, left = len(settings), dict.fromkeys(tasks)

    def ended(task: Task, ending: Ending) -> None:
        setting = tasks[task.name][1]
        left.pop(task.name)
        wanted = planning.recipe_of(record.base, setting)
        _, scores = planning.standing(record.folder / "runs" / setting.name, wanted)
        if ending.state == "done" and scores:
            record.put_scores(setting, scores, ending.seconds)
        elif ending.state == "done":
            record.put(setting, "failed", "the run ended without scores.json", ending.seconds)
        else:
            record.put(setting, ending.state, ending.message, ending.seconds)
        record.write()
        on_progress(Progress(total - len(left), total, _left_s(record, left, jobs), record.rows[setting.name]))

    record.write()
    on_progress(Progress(total - len(left), total, _left_s(record, left, jobs), None))
    return run_all([task for task, _ in tasks.values()], jobs, stopped, ended)


def run_one(content: dict[str, Any], task: Path, run: Path, resume: bool) -> None:
    """Do one run in this process; it stops, resumably, when the sweep dies."""
    divided = torch.load(task, weights_only=False)  # written by this sweep a moment ago

    def step(_: int) -> None:
        if parent_is_gone():
            raise KeyboardInterrupt

    settings = recipe.check(content, f"of run {run.name}", AdaptRecipe)
    if adapt.adapt(settings, run, resume=resume, task=divided, on_step=step).interrupted:
        raise KeyboardInterrupt


def _left_s(record: _Record, left: dict[str, None], jobs: int) -> float | None:
    """Estimate the seconds left from runs done: of the same ratio, or else of any."""
    timed = [row for row in record.rows.values() if row["state"] == "done" and row["seconds"]]
    if not timed:
        return None if left else 0.0
    by_ratio = {row["ratio"]: [r["seconds"] for r in timed if r["ratio"] == row["ratio"]] for row in timed}
    usual = fmean(row["seconds"] for row in timed)
    expected = [fmean(by_ratio.get(record.rows[name]["ratio"], [usual])) for name in left]
    return sum(expected) / min(jobs, max(len(left), 1))
