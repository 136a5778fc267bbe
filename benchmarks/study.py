"""Study: named arms of one recipe, several seeds, scored alike; a line per run, then a table and a plot.

Run: python benchmarks/study.py recipes/studies/NAME.yaml -o DIR [recipe.key=value ...] [--dry]

Every run has a process of its own and adds a line to DIR/runs.jsonl; the same command goes on where it was
interrupted, and does a run again whose recipe or measures have changed. Seeds are the outer loop, so that an
interrupted study still has whole seeds. ``study_page`` writes DIR/table.md, runs.csv and study.svg/.png.

Arms are compared as the study file has them (as a rule: equal images), and, those that ``equal_cpu`` names, again at
the reference's CPU time: steps are scaled by each arm's rate, measured in short trials in which all arms take turns.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from study_file import Study
from study_page import write_page
from study_places import held_out_places

from terrasieve import assess, manifest, pretrain, recipe
from terrasieve.errors import UserError
from terrasieve.evaluate import protocol, tasks
from terrasieve.evaluate.protocol import Features
from terrasieve.files import written_aside
from terrasieve.settings_file import override, read, validate
from terrasieve.sweep.isolate import Ending, Task, run_all
from terrasieve.train.folder import environment, held, write_json
from terrasieve.train.loop import interruptible

DRY_STEPS = 5
OF_MEASURE = ("kind", "data", "every", "prefix", "metrics")  # the other keys are the kind's own
Measure = Callable[..., dict[str, float]]


def load(path: str, overrides: Sequence[str] = ()) -> Study:
    """Read a study file; overrides are of its recipe's or its own keys (``recipe.steps=100``, ``seeds=[0]``)."""
    study = validate(override(read(path), overrides), path, Study)
    for arm in [study.against, *study.equal_cpu]:
        if arm not in study.arms:
            raise UserError(f"{path}: there is no arm {arm!r}; the arms are {', '.join(study.arms)}.")
    for measure in study.measures:
        if measure.get("kind") not in MEASURES:
            raise UserError(f"{path}: measure {measure.get('kind')!r} is not one of {', '.join(MEASURES)}.")
    for arm in study.arms:
        study.recipe_of(arm, 0)
    return study


def scores(
    features_ND: np.ndarray,
    table: pa.Table,
    data: Path,
    *,
    split: str | None = None,
    labels: str | None = None,
    protocols: Sequence[str] = protocol.PROTOCOLS,
    seed: int = 0,
) -> dict[str, float]:
    """Score features by k-NN and linear probe, by a manifest's labels and split: "protocol metric" -> [0, 1]."""
    task = tasks.load_task(f"manifest:{data}", split, column=labels, seed=seed)
    windows = [tuple(window) if window else None for window in table["window"].to_pylist()]
    row_of = {key: row for row, key in enumerate(zip(table["uri"].to_pylist(), windows, strict=True))}
    rows = np.array([row_of[key] for key in zip(task.uris, task.windows, strict=True)])
    found = torch.from_numpy(features_ND[rows])
    there = found.isfinite().all(1)
    parts = [part for part, is_there in zip(task.split, there.tolist(), strict=True) if is_there]
    of = Features.of(found[there], task.targets[there], parts, len(task.class_names))
    made = protocol.run_protocols({"encoder": of}, protocols, seed)
    return {f"{score.protocol} {score.metric}": score.value for score in made}


# (features of kept rows, their table, manifest's path, **settings)
MEASURES: dict[str, Measure] = {"scores": scores, "held_out_places": held_out_places}


def run_one(content: dict[str, Any], folder: Path, measures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Train and measure an arm, in this process; what a line of runs.jsonl says of it."""
    trained = train(content, folder)
    shutil.rmtree(folder / "checkpoints")
    found: dict[str, float] = {}
    features: dict[str, np.ndarray] = {}
    for measure in measures:
        data = measure["data"]
        table = manifest.read(data)
        if data not in features:
            features[data] = assess.embed_run(folder, table, workers=0)
        given = {key: value for key, value in measure.items() if key not in OF_MEASURE}
        values = MEASURES[measure["kind"]](features[data], table, Path(data), **given)
        kept = measure.get("metrics") or list(values)
        values = {name: value for name, value in values.items() if name in kept}
        found |= {f"{measure.get('prefix', '')}{name}": value for name, value in values.items()}
    return {**trained, "scores": found}


def train(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train by the library; the CPU time of the steps alone, without reading the manifest and the last checkpoint."""
    settings = recipe.check(content, f"of {folder.name}")
    shutil.rmtree(folder, ignore_errors=True)
    marks: list[float] = []
    losses: list[float] = []
    began = time.monotonic()
    ended = pretrain.pretrain(
        settings,
        folder,
        on_step=lambda done: marks.append(time.process_time()),
        on_log=lambda line: losses.append(line["loss"]),
    )
    if ended.interrupted:
        raise KeyboardInterrupt
    # the first step warms up and the last one writes; both are counted at the others' mean
    per_step_s = (marks[-2] - marks[0]) / (len(marks) - 2) if len(marks) > 2 else float("nan")
    images = settings.steps * settings.batch_size * getattr(settings.method, "images", 1)
    return {
        "steps": settings.steps,
        "images": images,
        "cpu_s": per_step_s * settings.steps,
        "wall_s": time.monotonic() - began,
        "loss": losses[-1],
        "skipped_steps": ended.skipped_steps,
    }


def trial(content: dict[str, Any], folder: Path) -> float:
    """Return an arm's CPU seconds per step, over a schedule of its own."""
    made = train(content, folder)
    shutil.rmtree(folder)
    return float(made["cpu_s"] / made["steps"])


class Runner:
    """Does what is left of a study and keeps its lines."""

    def __init__(self, study: Study, folder: Path, stopped: Callable[[], bool]) -> None:
        self.study, self.folder, self.stopped = study, folder, stopped
        self.path = folder / "runs.jsonl"
        self.failed = 0
        data = study.recipe.get("data", "")
        self.measures = [
            {**m, "data": _rows(m.get("data", data), folder, every=m.get("every", 1))} for m in study.measures
        ]
        if study.train_only:
            own = {**study.recipe, "data": _rows(data, folder, split="train")}
            self.study = study.model_copy(update={"recipe": own})
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        whole = [line for line in lines if line.endswith("}")]  # a killed study left half a line
        self.done: dict[str, dict[str, Any]] = {row["key"]: row for row in map(json.loads, whole)}
        if len(whole) < len(lines):
            with written_aside(self.path) as aside:
                aside.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")

    def run(self) -> bool:
        """Do all runs; False when interrupted."""
        budgets = [("images", arm, None) for arm in self.study.arms]
        if self.study.equal_cpu:
            shares = self.rates()
            if shares is None:
                return False
            for arm in self.study.equal_cpu:
                reference = self.study.recipe_of(self.study.against, 0)["steps"]
                budgets.append(("cpu", arm, max(round(reference * shares[arm]), 1)))
        data_key = manifest.content_hash(manifest.read(self.study.recipe["data"]))
        planned = [(*budget, seed) for seed in self.study.seeds for budget in budgets]
        self.rows, waiting = [], []
        for comparison, arm, steps, seed in planned:
            content = self.study.recipe_of(arm, seed, steps)
            key = _key({**content, "data": data_key}, self.study.measures)
            about = {"arm": arm, "comparison": comparison, "seed": seed, "key": key}
            self.rows.append(about)
            if key not in self.done and all(task.name != key for task, _ in waiting):
                run = self.folder / "runs" / f"{arm}-{comparison}-seed{seed}"
                output = self.folder / "output" / f"{run.name}.txt"
                waiting.append((Task(key, run_one, (content, run, self.measures), output), about))
        print(f"{len(planned)} runs, {len(waiting)} to do", flush=True)
        abouts = {task.name: about for task, about in waiting}

        def on_end(task: Task, ending: Ending) -> None:
            about = abouts[task.name]
            if ending.state == "done":
                row = {**about, **ending.result, "date": datetime.now(UTC).isoformat(timespec="seconds")}
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                self.done[task.name] = row
            self.failed += ending.state == "failed"
            said = json.dumps(self.done.get(task.name, {}).get("scores", ending.message))
            print(f"{datetime.now():%H:%M:%S} {about['arm']} {about['comparison']} seed {about['seed']}:", end=" ")
            print(f"{ending.state} {ending.seconds:.0f} s {said}", flush=True)

        return run_all([task for task, _ in waiting], 1, self.stopped, on_end)

    def rates(self) -> dict[str, float] | None:
        """Measure how many steps of each arm take the time of one of the reference: medians of ratios in turns."""
        arms = list(dict.fromkeys([self.study.against, *self.study.equal_cpu]))
        recipes = {arm: self.study.recipe_of(arm, 0, self.study.trial["steps"]) for arm in arms}
        key = _key(recipes, self.study.trial)
        path = self.folder / "rates.json"
        stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if stored.get("key") != key:
            found: dict[str, list[float]] = {arm: [] for arm in arms}
            turns = [
                Task(f"{arm}", trial, (recipes[arm], self.folder / "trial"), self.folder / "output" / "trial.txt")
                for _ in range(self.study.trial["rounds"])
                for arm in arms
            ]

            def on_end(task: Task, ending: Ending) -> None:
                if ending.state == "failed":
                    raise UserError(f"trial of {task.name}: {ending.message}")
                found[task.name].append(ending.result)
                print(f"trial {task.name}: {1000 * ending.result:.1f} ms CPU a step", flush=True)

            if not run_all(turns, 1, self.stopped, on_end):
                return None
            stored = {"key": key, "cpu_s_per_step": found}
            write_json(path, stored)
        per_step = stored["cpu_s_per_step"]
        ours = per_step[self.study.against]
        return {arm: median(a / b for a, b in zip(ours, per_step[arm], strict=True)) for arm in arms}

    def write(self) -> None:
        """Write environment, table and plot of what is done."""
        rows = [{**self.done[about["key"]], **about} for about in self.rows if about["key"] in self.done]
        write_json(self.folder / "environment.json", environment(threads=1, study=self.study.model_dump(mode="json")))
        if rows:
            print(write_page(self.folder, self.study.name, rows, self.study.against))


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="YAML file")
    parser.add_argument("overrides", nargs="*", help="key=value of the study, e.g. seeds=[0] or recipe.steps=100")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder; the same command goes on")
    parser.add_argument("--dry", action="store_true", help=f"every arm for {DRY_STEPS} steps, one seed")
    args = parser.parse_intermixed_args()
    try:
        study = load(args.study, args.overrides)
        if args.dry:
            args.output = args.output / "dry"
            arms = {arm: {**changes, "steps": DRY_STEPS} for arm, changes in study.arms.items()}
            study = study.model_copy(update={"arms": arms, "seeds": study.seeds[:1], "equal_cpu": ()})
        args.output.mkdir(parents=True, exist_ok=True)
        with held(args.output), interruptible() as stopped:
            runner = Runner(study, args.output, stopped)
            whole = runner.run()
            runner.write()
    except UserError as error:
        sys.exit(str(error))
    if runner.failed:
        sys.exit(f"{runner.failed} run(s) failed; the same command does them again.")
    sys.exit(0 if whole else 130)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    main()
