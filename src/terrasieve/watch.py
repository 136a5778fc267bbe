"""Watch a run: a progress bar while it trains, and at its end what a person wants to know.

Used by the command line and by ``demo``; ``pretrain`` and ``adapt`` themselves print nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from terrasieve import adapt, pretrain
from terrasieve.display import TrainingBar, err, out
from terrasieve.evaluate.protocol import metrics_table, read_scores
from terrasieve.recipe import AdaptRecipe, Recipe
from terrasieve.report import write_report
from terrasieve.train.distributed import World
from terrasieve.train.log import read_log
from terrasieve.train.loop import Outcome
from terrasieve.train.waiting import MUCH, advice


class Watch(TypedDict):
    """What a run tells while it trains."""

    on_start: Callable[[World, Recipe | AdaptRecipe, int, int], None]
    on_step: Callable[[int], None]
    on_log: Callable[[dict[str, float]], None]


def pretrain_watched(settings: Recipe, folder: Path, *, resume: bool = False, stop_at: int | None = None) -> bool:
    """Run a recipe with a progress bar, then write its report; tell whether it ended without an interruption."""
    with TrainingBar() as bar:
        watch: Watch = {"on_start": _announce(bar, folder), "on_step": bar.step, "on_log": _told(bar, settings)}
        outcome = pretrain.pretrain(settings, folder, resume=resume, stop_at=stop_at, on_note=_note, **watch)
    if leads():
        _conclude(outcome, folder, settings, over=outcome.step >= settings.steps)
    return not outcome.interrupted


def adapt_watched(settings: AdaptRecipe, folder: Path, *, resume: bool = False, stop_at: int | None = None) -> bool:
    """Fine-tune with a progress bar, then show the scores; tell whether it ended without an interruption."""
    with TrainingBar("adapt") as bar:
        watch: Watch = {"on_start": _announce(bar, folder), "on_step": bar.step, "on_log": _told(bar, settings)}
        outcome = adapt.adapt(settings, folder, resume=resume, stop_at=stop_at, **watch)
    if leads():
        over = not outcome.interrupted and (folder / "scores.json").exists()
        if over:
            scores = read_scores(folder / "scores.json")
            out.print(metrics_table(scores))
            for note in scores[0].settings["notes"]:
                out.print(f"note: {note}", markup=False)
            if outcome.step < settings.steps:
                out.print(f"stopped after step {outcome.step}: validation did not get better", markup=False)
        _conclude(outcome, folder, settings, over=over)
    return not outcome.interrupted


def leads() -> bool:
    """Whether this process is the one that speaks, under torchrun."""
    return int(os.environ.get("RANK", 0)) == 0


def _announce(bar: TrainingBar, folder: Path) -> Callable[[World, Recipe | AdaptRecipe, int, int], None]:
    """Say what is about to run, and set the bar's scale."""

    def start(world: World, found: Recipe | AdaptRecipe, images: int, done: int) -> None:
        if world.leads:
            bands = ", ".join(found.image.bands or ())
            steps = f"steps {done:,} to {found.steps:,}" if done < found.steps else f"all {done:,} steps are done"
            out.print(f"{found.name}: {images:,} images ({bands}), {steps}, {folder}", markup=False)
            bar.start(done, found.steps)

    return start


def _told(bar: TrainingBar, settings: Recipe | AdaptRecipe) -> Callable[[dict[str, float]], None]:
    """Show a log line's numbers, and say once if training waits for images."""
    told = False

    def line(numbers: dict[str, float]) -> None:
        nonlocal told
        bar.log(numbers)
        if numbers.get("data_wait", 0.0) > MUCH and not told and leads():
            told = True
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            cores = max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1)
            _note(advice(numbers["data_wait"], settings.loader.workers, cores))

    return line


def _note(text: str) -> None:
    err.print(f"note: {text}", markup=False)


def _conclude(outcome: Outcome, folder: Path, settings: Recipe | AdaptRecipe, *, over: bool) -> None:
    """Say what went wrong, how to go on, and where the report is."""
    if outcome.skipped_images or outcome.skipped_steps:
        err.print(
            f"{outcome.skipped_images} unreadable image(s) were replaced, {outcome.skipped_steps} step(s) left out "
            f"because a gradient was not finite; {folder / 'log.jsonl'} lists them.",
            markup=False,
        )
    for event in read_log(folder / "log.jsonl")[1]:
        if event["event"] == "collapse":
            err.print(
                f"warning: the effective rank of the embeddings was {event['effective_rank']:.2f} at step "
                f"{event['step']}, below {event['bound']:g}: they may have collapsed; see the report's curves.",
                markup=False,
            )
    if not over:
        what = "interrupted" if outcome.interrupted else "stopped"
        resume = f"terrasieve {settings.command} --resume {folder}"
        out.print(f"{what} after step {outcome.step}; go on with: {resume}", markup=False)
    out.print(f"report: {write_report(folder)}", markup=False)
