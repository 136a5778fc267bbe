"""Measure of studies: what frozen features tell on places that pretraining never saw, and how they follow distance.

For ``study``; the parts and classes are ``family_data``'s ``places.csv``. k-NN and the probe are those of ``terrasieve
evaluate``, without intervals over test images: the study's are over seeds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import torch

from terrasieve.evaluate.geography import geographic_correlation
from terrasieve.evaluate.knn import knn_scores
from terrasieve.evaluate.probe import fit_probe
from terrasieve.evaluate.protocol import TEMPERATURE, K

PROBE_STEPS = 60  # of the 150 of terrasieve evaluate: a study fits hundreds of probes


def held_out_places(
    features_ND: np.ndarray,
    table: pa.Table,
    data: Path,
    *,
    places: str,
    parts: list[str],
    tasks: list[str],
    max_km: float,
    probe: bool = True,
) -> dict[str, float]:
    """Return overall accuracies and rank correlations, by "measure task part".

    Args:
        features_ND: of the manifest's kept rows; those that are not finite take no part.
        table: those rows.
        data: their manifest.
        places: ``places.csv``, which says of each uri its coordinates, part and classes.
        parts: test parts.
        tasks: columns of classes.
        max_km: of the rank correlation of similarity with distance within a part.
        probe: whether to fit linear probes.
    """
    known = pa.csv.read_csv(places)
    row_of = {uri: row for row, uri in enumerate(known["uri"].to_pylist())}
    known = known.take(pa.array([row_of[uri] for uri in table["uri"].to_pylist()]))
    features = torch.from_numpy(features_ND)
    part = np.where(features.isfinite().all(1).numpy(), np.array(known["part"].to_pylist()), "unread")
    rows = {name: torch.from_numpy(np.flatnonzero(part == name)) for name in ("train", *parts)}
    bank_ND = features[rows["train"]]
    found: dict[str, float] = {}
    for task in tasks:
        names, numbers = np.unique(known[task].to_pylist(), return_inverse=True)
        classes = torch.from_numpy(numbers)
        truth = {name: classes[own] for name, own in rows.items()}
        fitted = fit_probe(bank_ND, truth["train"], classes=len(names), seed=0, steps=PROBE_STEPS) if probe else None
        for name in parts:
            query_MD = features[rows[name]]
            given = {"k": K, "temperature": TEMPERATURE, "classes": len(names)}
            said = {"knn": knn_scores(bank_ND, truth["train"], query_MD, **given)}  # type: ignore[arg-type]
            said |= {"linear": fitted.scores(query_MD)} if fitted else {}
            found |= {f"{how} {task} {name}": _right(scores, truth[name]) for how, scores in said.items()}
    lon, lat = (known[name].to_numpy() for name in ("lon", "lat"))
    for name in parts:
        own = rows[name].numpy()
        found[f"distance {name}"] = geographic_correlation(
            features_ND[own], lon[own], lat[own], max_km, resamples=0
        ).value
    return found


def _right(scores_NC: torch.Tensor, truth_N: torch.Tensor) -> float:
    return float((scores_NC.argmax(1) == truth_N).double().mean())
