"""Costs: have every policy and ratio of a sweep measured by ``bench.cost``, each measurement in a process of its own.

Between ``plan`` and ``run``. Speeds alone, one after another in one process; memory in a process each, side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch

from terrasieve import adapt, recipe
from terrasieve.batch import Batch
from terrasieve.bench import cost
from terrasieve.bench.memory import HOW
from terrasieve.data.loader import LoaderSettings, train_batches
from terrasieve.evaluate.parts import Divided
from terrasieve.recipe import AdaptRecipe
from terrasieve.report.sweep_numbers import BASELINE, RANDOM
from terrasieve.sweep.isolate import Ending, Task, run_all
from terrasieve.sweep.plan import Setting, recipe_of

BATCHES = 4


class Record(Protocol):
    """What is needed of a sweep's record."""

    folder: Path
    base: AdaptRecipe
    content: dict[str, Any]

    def write(self) -> None:
        """Keep it."""
        ...


def measure(
    record: Record,
    settings: Sequence[Setting],
    task: Path,
    jobs: int,
    rounds: int,
    stopped: Callable[[], bool],
    on_words: Callable[[str], None],
) -> bool:
    """Measure what is not in the record yet, all anew where something is missing, since speeds are against ratio 0.

    Returns:
        False when interrupted. What fails is told in the record's problems.
    """
    known = {(row["policy"], row["ratio"]) for row in record.content["costs"]}
    wanted = {(one.policy, one.ratio) for one in settings}
    if wanted <= known:
        return True
    pairs = sorted(wanted | known, key=lambda pair: (pair[1], pair[0]))  # ratio 0 first
    recipes = [recipe_of(record.base, Setting(record.base.seed, ratio, policy)) for policy, ratio in pairs]
    contents = [one.model_dump(mode="json") for one in recipes]
    rows: list[dict[str, Any]] = [{"policy": policy, "ratio": ratio} for policy, ratio in pairs]
    batches, output = task.with_name("batches.pt"), record.folder / "output" / "costs.txt"
    scoring = next((n for n, (policy, _) in enumerate(pairs) if policy not in (BASELINE, RANDOM)), 0)
    reading = Task("batches", read_batches, (contents[scoring], task, batches), output)
    speeds = Task("speeds", rates, (contents, batches, rounds), output)
    memory = [
        Task(f"{number} {part}", peak, (content, batches, part), output)
        for number, content in enumerate(contents)
        for part in cost.PARTS
    ]
    found: dict[str, Any] = {}

    def ended(measured: Task, ending: Ending) -> None:
        found[measured.name] = ending.result
        if ending.state == "failed":
            record.content["problems"].append(f"Measuring costs ({measured.name}) failed: {ending.message}")

    for words, tasks, side_by_side in (
        ("reading batches", [reading], 1),
        (f"measuring the speed of {len(pairs)} settings", [speeds], 1),
        ("measuring memory", memory, jobs),
    ):
        on_words(words)
        if not run_all(tasks, side_by_side, stopped, ended):
            return False
        if record.content["problems"]:
            record.write()
            return True
    for number, row in enumerate(rows):
        row |= found["speeds"][number]
        for part in cost.PARTS:
            row[part]["peak_memory_mb"] = found[f"{number} {part}"]
    record.content["costs"] = rows
    record.content["cost_notes"] = _notes(record.base, rounds)
    record.write()
    return True


def read_batches(content: dict[str, Any], task: Path, path: Path) -> None:
    """Keep a few of a recipe's training batches in a file."""
    settings = recipe.check(content, "of the sweep", AdaptRecipe)
    divided: Divided = torch.load(task, weights_only=False)  # written by this sweep a moment ago
    train = adapt.with_redundancy(settings, divided).parts["train"]
    batches = train_batches(
        train.images, settings.image, LoaderSettings(workers=0), seed=settings.seed, steps=range(BATCHES),
        batch_size=settings.batch_size, truth=train.truth,
    )  # fmt: skip
    torch.save(list(islice(batches, BATCHES)), path)


def rates(contents: list[dict[str, Any]], path: Path, rounds: int) -> list[dict[str, Any]]:
    """Measure all settings' speeds and FLOPs in turns, in this process."""
    recipes = [recipe.check(content, "of the sweep", AdaptRecipe) for content in contents]
    return cost.measure_rates(recipes, _load(path), device=device_of(recipes[0]), rounds=rounds)


def peak(content: dict[str, Any], path: Path, part: cost.Part) -> float:
    """Measure a setting's peak memory in this process, which does nothing else."""
    settings = recipe.check(content, "of the sweep", AdaptRecipe)
    return cost.peak_mb(settings, _load(path)[0], part, device_of(settings))


def device_of(settings: AdaptRecipe) -> str:
    """Say where a recipe runs."""
    return "cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu"


def _load(path: Path) -> list[Batch]:
    batches: list[Batch] = torch.load(path, weights_only=False)
    return batches


def _notes(base: AdaptRecipe, rounds: int) -> str:
    device = device_of(base)
    where = "one CPU thread" if device == "cpu" else torch.cuda.get_device_name()
    memory = cost.MEMORY_NOTE if device == "cpu" else HOW["cuda"]
    return (
        f"Costs: {where}, batch {base.batch_size}, real images, scoring and selection included, {rounds} rounds in "
        f"turns; peak memory is {memory}; FLOPs are matrix products, convolutions and attention, forward and backward."
    )
