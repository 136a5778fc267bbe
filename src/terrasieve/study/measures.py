"""Measures of a study: what is asked of every arm's frozen features.

Called by ``arm`` after training. A measure takes (features of the kept rows, their table, the manifest's path) and its
own settings, and returns numbers by name, those in per cent as shares of 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from terrasieve.evaluate import protocol, tasks
from terrasieve.evaluate.protocol import Features
from terrasieve.study.places import held_out_places

Measure = Callable[..., dict[str, float]]


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


MEASURES: dict[str, Measure] = {"scores": scores, "held_out_places": held_out_places}
