"""Arm: one run of a study, trained and measured in the process that calls it.

Called by ``run``, in a process of its own as a rule. Source of nothing random: a run depends on its recipe alone.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from terrasieve import assess, manifest, pretrain, recipe
from terrasieve.study.measures import MEASURES

_OF_MEASURE = ("kind", "data", "every", "prefix", "metrics")  # the other keys are the kind's own


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
        given = {key: value for key, value in measure.items() if key not in _OF_MEASURE}
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
