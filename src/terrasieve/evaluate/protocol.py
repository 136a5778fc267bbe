"""From an encoder and a task to scores: extract features, run the protocols, tabulate.

Stands after ``data`` and ``nn``, from which it takes nothing but batches and a callable; ``report`` and the command
line show its scores. Protocols and metrics: METHODS.md, section 9.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from terrasieve.batch import Batch
from terrasieve.errors import UserError
from terrasieve.evaluate import knn, probe
from terrasieve.evaluate.metrics import METRICS, Kind, bootstrap, value

if TYPE_CHECKING:
    from rich.table import Table

PRETRAINED, RANDOM_INIT, RAW_PIXELS = "pretrained", "random init", "raw pixels"
PROTOCOLS = ("knn", "linear")
FINE_TUNED = "fine-tuned"  # the protocol of a model that was trained on the task itself
K = 20
TEMPERATURE = 0.07


@dataclass(frozen=True)
class Score:
    """One metric of one encoder under one protocol.

    Attributes:
        encoder: "pretrained", "random init", "raw pixels" or another name.
        protocol: "knn", "linear" or "fine-tuned".
        metric: key of ``metrics.METRICS``, or of ``dense.METRICS``.
        value: in [0, 1].
        low, high: 95 % percentile bootstrap interval over the test samples.
        count: test samples.
        settings: what the figure was made with (task, k, temperature, weight decay, seed, ...); JSON values only.
    """

    encoder: str
    protocol: str
    metric: str
    value: float
    low: float
    high: float
    count: int
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the score as a dict that ``json`` can write."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Score:
        """Return the score of a dict; unknown keys are ignored, a missing one is a UserError."""
        missing = [f.name for f in fields(cls) if f.name not in data]
        if missing:
            raise UserError(f"a score lacks {', '.join(missing)}: {json.dumps(data)[:200]}; run the evaluation again")
        return cls(**{f.name: data[f.name] for f in fields(cls)})


@dataclass(frozen=True)
class Features:
    """Features and targets of one encoder on one task.

    Attributes:
        train_ND, val_ND, test_ND: (N, D) float; ``val_ND`` None where the task has no validation split.
        train_targets, val_targets, test_targets: (N,) int64 class numbers, or (N, C) multi-hot.
        classes: C.
    """

    train_ND: Tensor
    train_targets: Tensor
    test_ND: Tensor
    test_targets: Tensor
    classes: int
    val_ND: Tensor | None = None
    val_targets: Tensor | None = None

    @classmethod
    def of(cls, features_ND: Tensor, targets: Tensor, split: Sequence[str], classes: int) -> Features:
        """Divide the features of a whole task by its split ("train", "val", "test" per sample)."""
        rows = {name: torch.tensor([part == name for part in split]) for name in ("train", "val", "test")}
        val = rows["val"] if rows["val"].any() else None
        return cls(
            train_ND=features_ND[rows["train"]],
            train_targets=targets[rows["train"]],
            test_ND=features_ND[rows["test"]],
            test_targets=targets[rows["test"]],
            classes=classes,
            val_ND=None if val is None else features_ND[val],
            val_targets=None if val is None else targets[val],
        )

    @property
    def kind(self) -> Kind:
        """Return "multilabel" for multi-hot targets, else "multiclass"."""
        return "multilabel" if self.test_targets.ndim == 2 else "multiclass"


def extract(
    feature_fn: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    *,
    on_batch: Callable[[Batch], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the features of all batches.

    Args:
        feature_fn: image (B, C, H, W) -> features (B, D), e.g. ``encoder.features`` or :func:`raw_pixels`.
        batches: as the feature function wants them: normalised, on its device.
        on_batch: called after each batch, for progress and for counting ``batch.skipped``.

    Returns:
        features (N, D) float32 on the CPU, and index (N,) int64: the manifest row of each, by which targets are looked
        up, so that a replaced or reordered image never gets another one's label.

    Raises:
        UserError: no batch, or a feature that is not finite.
    """
    features, index = [], []
    with torch.inference_mode():
        for batch in batches:
            features.append(feature_fn(batch.image).float().cpu())
            index.append(batch.index.cpu())
            if on_batch is not None:
                on_batch(batch)
    if not features:
        raise UserError("feature extraction: the task gave no images")
    features_ND, index_N = torch.cat(features).clone(), torch.cat(index)
    broken_N = ~features_ND.isfinite().all(1)
    if broken_N.any():
        rows = index_N[broken_N][:5].tolist()
        raise UserError(
            f"feature extraction: {int(broken_N.sum())} of {len(features_ND)} images give features that are not finite "
            f"(rows {rows}); the weights have diverged, or the images hold NaN that is not marked as no-data"
        )
    return features_ND, index_N


def raw_pixels(image_BCHW: Tensor, side: int = 16) -> Tensor:
    """Average the image over a ``side`` x ``side`` grid and flatten it: the baseline that learned nothing.

    Nothing more is standardised: k-NN would gain from taking each image's brightness out, the probe would lose.

    Args:
        image_BCHW: float, normalised per band as for the encoder, so that no band outweighs the others.
        side: cells per edge.

    Returns:
        (B, C * side * side) float32.
    """
    return torch.nn.functional.adaptive_avg_pool2d(image_BCHW.float(), side).flatten(1)


def check_protocols(names: Sequence[str]) -> None:
    """Refuse an unknown protocol: before features are computed, which takes minutes."""
    if unknown := [name for name in names if name not in PROTOCOLS]:
        raise UserError(f"unknown protocol {unknown[0]!r}; choose from {', '.join(PROTOCOLS)}")


def run_protocols(
    features_by_encoder: dict[str, Features],
    protocols: Sequence[str] = PROTOCOLS,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
    *,
    k: int = K,
    temperature: float = TEMPERATURE,
) -> list[Score]:
    """Score every encoder under every protocol, with intervals.

    Args:
        features_by_encoder: name -> features, all of one task.
        protocols: of "knn" and "linear".
        seed: keys the probe's held-out part and the bootstrap.
        settings: written into every score (task, commit, ...).
        k, temperature: of k-NN; of a smaller bank all are neighbours.

    Returns:
        Scores in the order of encoders, protocols and ``METRICS``.

    Raises:
        UserError: an unknown protocol, or a task without train or test samples.
    """
    check_protocols(protocols)
    scores = []
    for encoder, features in features_by_encoder.items():
        if len(features.train_ND) == 0 or len(features.test_ND) == 0:
            raise UserError(
                f"{encoder}: {len(features.train_ND)} train and {len(features.test_ND)} test samples; "
                "both are needed to evaluate"
            )
        for protocol in protocols:
            if protocol == "knn":
                predicted_NC, chosen = _run_knn(features, k, temperature)
            else:
                predicted_NC, chosen = _run_linear(features, seed)
            for metric, function in METRICS[features.kind].items():
                point = value(function, predicted_NC, features.test_targets)
                low, high = bootstrap(function, predicted_NC, features.test_targets, seed=seed)
                made_with = {**(settings or {}), **chosen, "seed": seed, "train_count": len(features.train_ND)}
                scores.append(Score(encoder, protocol, metric, point, low, high, len(predicted_NC), made_with))
    return scores


def write_scores(scores: Sequence[Score], path: Path) -> None:
    """Write scores as a JSON list, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps([score.to_json() for score in scores], indent=1) + "\n")
    partial.replace(path)


def read_scores(path: Path) -> list[Score]:
    """Read what :func:`write_scores` wrote; anything else is a UserError."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read scores from {path}: {error}; run the evaluation again") from error
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise UserError(f"{path} is not a list of scores; run the evaluation again")
    return [Score.from_json(item) for item in data]


def rich_table(scores: Sequence[Score], rest: str = "scores.json and the report") -> Table:
    """Lay scores out for the terminal: a row per encoder and protocol, the two main metrics in per cent.

    ``rest`` says where the other metrics are.
    """
    from rich.table import Table

    header, rows = _grid(scores)
    table = Table(title=f"{scores[0].count} test samples, 95 % intervals" if scores else "no scores")
    shown = 4  # more would not fit 80 columns
    table.caption = f"{len(header) - shown} more metrics in {rest}" if len(header) > shown else None
    for position, name in enumerate(header[:shown]):
        table.add_column(name, justify="left" if position < 2 else "right", no_wrap=position < 2)
    for row in rows:
        table.add_row(*row[:shown])
    return table


def metrics_table(scores: Sequence[Score]) -> Table:
    """Lay the scores of one model out as a table for the terminal, a row per metric, in per cent."""
    from rich.table import Table

    table = Table(title=f"{scores[0].encoder}, {scores[0].count} test images, 95 % intervals")
    for name in ("metric", "value", "interval"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for s in scores:
        table.add_row(s.metric.replace("_", " "), f"{100 * s.value:.1f}", f"[{100 * s.low:.1f}, {100 * s.high:.1f}]")
    return table


def markdown_table(scores: Sequence[Score]) -> str:
    """Lay scores out as a Markdown table (see :func:`rich_table`); ends with a newline."""
    header, rows = _grid(scores)
    rule = ["---" if position < 2 else "---:" for position in range(len(header))]
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in [header, rule, *rows]
    )


def _run_knn(features: Features, k: int, temperature: float) -> tuple[Tensor, dict[str, Any]]:
    k = min(k, len(features.train_ND))
    bank, targets = features.train_ND, features.train_targets
    scores = knn.knn_scores(bank, targets, features.test_ND, k=k, temperature=temperature, classes=features.classes)
    return scores, {"k": k, "temperature": temperature}


def _run_linear(features: Features, seed: int) -> tuple[Tensor, dict[str, Any]]:
    given = (features.train_ND, features.train_targets, features.val_ND, features.val_targets)
    fitted = probe.fit_probe(*given, classes=features.classes, seed=seed)
    logits = fitted.scores(features.test_ND)
    chosen = {
        "weight_decay": fitted.weight_decay,
        "chosen_on": "val" if features.val_ND is not None else "held-out train",
    }
    return logits.sigmoid() if features.kind == "multilabel" else logits, chosen


def _grid(scores: Sequence[Score]) -> tuple[list[str], list[list[str]]]:
    metrics = list(dict.fromkeys(score.metric for score in scores))
    cells = {
        (s.encoder, s.protocol, s.metric): f"{100 * s.value:.1f} [{100 * s.low:.1f}, {100 * s.high:.1f}]"
        for s in scores
    }
    pairs = dict.fromkeys((score.encoder, score.protocol) for score in scores)
    rows = [[*pair, *(cells.get((*pair, metric), "") for metric in metrics)] for pair in pairs]
    return ["encoder", "protocol", *(metric.replace("_", " ") for metric in metrics)], rows
