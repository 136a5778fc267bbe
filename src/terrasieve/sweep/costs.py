"""Costs: have every policy and ratio of a sweep measured by ``bench.cost``, each measurement in a process of its own.

Between ``plan`` and ``run``. Speeds alone, one after another in one process; memory in a process each, side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from terrasieve import adapt, recipe
from terrasieve.batch import Batch
from terrasieve.bench import cost
from terrasieve.bench.memory import HOW
from terrasieve.data.loader import LoaderSettings, train_batches, whole_batches
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
    contents = [
        recipe_of(record.base, Setting(record.base.seed, *pair[::-1])).model_dump(mode="json") for pair in pairs
    ]
    files = [_weights(record, *pair) for pair in pairs]
    batches, output = task.with_name("batches.pt"), record.folder / "output" / "costs.txt"
    scoring = next((n for n, (policy, _) in enumerate(pairs) if policy not in (BASELINE, RANDOM)), 0)
    reading = [Task("batches", read_batches, (contents[scoring], task, batches), output)]
    speeds = [Task(part, rates, (contents, batches, part, files, rounds), output) for part in cost.PARTS]
    memory = [
        Task(f"{number} {part}", peak, (content, batches, part, file), output)
        for number, (content, file) in enumerate(zip(contents, files, strict=True))
        for part in cost.PARTS
    ]
    found: dict[str, Any] = {}

    def ended(measured: Task, ending: Ending) -> None:
        found[measured.name] = ending.result
        if ending.state == "failed":
            record.content["problems"].append(f"Measuring costs ({measured.name}) failed: {ending.message}")

    for words, tasks, side_by_side in (
        ("reading batches", reading, 1),
        (f"speeds of {len(pairs)} settings", speeds, 1),
        ("memory", memory, jobs),
    ):
        on_words(words)
        if not run_all(tasks, side_by_side, stopped, ended):
            return False
        if record.content["problems"]:
            record.write()
            return True
    rows: list[dict[str, Any]] = [{"policy": policy, "ratio": ratio} for policy, ratio in pairs]
    for number, row in enumerate(rows):
        row |= {part: found[part][number] | {"peak_memory_mb": found[f"{number} {part}"]} for part in cost.PARTS}
    record.content["costs"] = rows
    record.content["cost_notes"] = _notes(record.base, rounds, sum(file is not None for file in files))
    record.write()
    return True


def read_batches(content: dict[str, Any], task: Path, path: Path) -> None:
    """Keep a few batches of training, and of test images from all over the test set, in a file."""
    settings = recipe.check(content, "of the sweep", AdaptRecipe)
    divided: Divided = torch.load(task, weights_only=False)  # written by this sweep a moment ago
    parts = adapt.with_redundancy(settings, divided).parts
    train, test, size = parts["train"], parts["test"], settings.batch_size
    here = LoaderSettings(workers=0)
    steps = train_batches(
        train.images, settings.image, here, seed=settings.seed, steps=range(BATCHES), batch_size=size, truth=train.truth
    )
    count = len(test.images)
    rows = [place * count // (BATCHES * size) for place in range(BATCHES * size)]
    rows = [row for start in range(BATCHES) for row in rows[start::BATCHES]]  # each batch from all over, too
    whole = whole_batches(test.images, settings.image, here, size, truth=test.truth, rows=rows)
    torch.save({"train": list(steps), "inference": list(whole)}, path)


def rates(
    contents: list[dict[str, Any]], path: Path, part: cost.Part, files: list[Path | None], rounds: int
) -> list[dict[str, Any]]:
    """Measure all settings' speeds and FLOPs in turns, in this process."""
    recipes = [recipe.check(content, "of the sweep", AdaptRecipe) for content in contents]
    device = device_of(recipes[0])
    return cost.measure_rates(recipes, _load(path, part), part, weights=files, device=device, rounds=rounds)


def peak(content: dict[str, Any], path: Path, part: cost.Part, file: Path | None) -> float:
    """Measure a setting's peak memory in this process, which does nothing else."""
    settings = recipe.check(content, "of the sweep", AdaptRecipe)
    return cost.peak_mb(settings, _load(path, part)[0], part, device_of(settings), file)


def _weights(record: Record, policy: str, ratio: float) -> Path | None:
    """Find the trained weights of a setting, of whichever seed is done."""
    names = [row["run"] for row in record.content["runs"] if (row["policy"], row["ratio"]) == (policy, ratio)]
    files = [record.folder / "runs" / name / "model.safetensors" for name in names]
    return next((file for file in files if file.is_file()), None)


def device_of(settings: AdaptRecipe) -> str:
    """Say where a recipe runs."""
    return "cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu"


def _load(path: Path, part: cost.Part) -> list[Batch]:
    batches: dict[str, list[Batch]] = torch.load(path, weights_only=False)
    return batches[part]


def _notes(base: AdaptRecipe, rounds: int, trained: int) -> str:
    device = device_of(base)
    where = "one CPU thread" if device == "cpu" else torch.cuda.get_device_name()
    memory = cost.MEMORY_NOTE if device == "cpu" else HOW["cuda"]
    return (
        f"Costs: {where}, batch {base.batch_size}, scoring and selection included, {rounds} rounds in turns; training "
        f"on training images, inference on test images, with trained weights where a run is done ({trained} of the "
        f"settings), where kept is the share of patches encoded. Peak memory: {memory}. FLOPs: matrix products, "
        "convolutions and attention, forward and backward."
    )
