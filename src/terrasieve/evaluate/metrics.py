"""Scores of a classifier on a test set, each with a percentile bootstrap interval.

Used by ``evaluate.protocol``. Every metric is written once, for weighted samples: a bootstrap resample is a vector of
counts, so a thousand resamples are a matrix product or a running sum instead of a thousand calls. scikit-learn and
torchmetrics are the oracles in the tests. Interval: Efron, "Bootstrap methods: another look at the jackknife", 1979.

Shapes: N test samples, C classes, R weightings of the samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from terrasieve.errors import UserError
from terrasieve.keyed import numpy_generator

Metric = Callable[[Tensor, Tensor, Tensor], Tensor]  # scores (N, C), truth (N,) or (N, C), weights (R, N) -> (R,)
Kind = Literal["multiclass", "multilabel"]
THRESHOLD = 0.5  # multi-label scores are shares or probabilities in [0, 1]
_CHUNK_VALUES = 2**23  # weights held at once while resampling: 64 MiB of float64


def overall_accuracy(scores_NC: Tensor, truth_N: Tensor, weights_RN: Tensor) -> Tensor:
    """Return the share of samples whose highest score is their class, (R,) float64 in [0, 1]."""
    right_N = (scores_NC.argmax(1) == truth_N).double()
    return weights_RN @ right_N / weights_RN.sum(1)


def macro_accuracy(scores_NC: Tensor, truth_N: Tensor, weights_RN: Tensor) -> Tensor:
    """Return the mean over classes of the accuracy within the class, (R,) float64.

    Classes without samples are left out.
    """
    truth_NC = torch.nn.functional.one_hot(truth_N, scores_NC.shape[1]).double()
    right_N1 = (scores_NC.argmax(1) == truth_N).double()[:, None]
    return ((weights_RN @ (truth_NC * right_N1)) / (weights_RN @ truth_NC)).nanmean(1)


def ap_macro(scores_NC: Tensor, truth_NC: Tensor, weights_RN: Tensor) -> Tensor:
    """Return the mean over labels of the average precision, (R,) float64; labels without positives are left out."""
    every = torch.arange(len(scores_NC))
    columns = [_average_precision(s, t, every, weights_RN) for s, t in zip(scores_NC.T, truth_NC.T, strict=True)]
    return torch.stack(columns, 1).nanmean(1)


def ap_micro(scores_NC: Tensor, truth_NC: Tensor, weights_RN: Tensor) -> Tensor:
    """Return the average precision over all (sample, label) pairs ranked together, (R,) float64."""
    sample = torch.arange(len(scores_NC)).repeat_interleave(scores_NC.shape[1])
    return _average_precision(scores_NC.flatten(), truth_NC.flatten(), sample, weights_RN)


def f1_macro(scores_NC: Tensor, truth_NC: Tensor, weights_RN: Tensor) -> Tensor:
    """Return the mean over labels of F1 at 0.5, (R,) float64; a label neither true nor predicted counts as 0."""
    hits_RC, truth_RC, said_RC = _label_counts(scores_NC, truth_NC, weights_RN)
    return (2 * hits_RC / (truth_RC + said_RC)).nan_to_num(0.0).mean(1)


def f1_micro(scores_NC: Tensor, truth_NC: Tensor, weights_RN: Tensor) -> Tensor:
    """Return F1 at 0.5 over all (sample, label) pairs, (R,) float64."""
    hits_RC, truth_RC, said_RC = _label_counts(scores_NC, truth_NC, weights_RN)
    return 2 * hits_RC.sum(1) / (truth_RC + said_RC).sum(1)


def f1_weighted(scores_NC: Tensor, truth_NC: Tensor, weights_RN: Tensor) -> Tensor:
    """Return F1 at 0.5 averaged over labels in proportion to their positives, (R,) float64."""
    hits_RC, truth_RC, said_RC = _label_counts(scores_NC, truth_NC, weights_RN)
    f1_RC = (2 * hits_RC / (truth_RC + said_RC)).nan_to_num(0.0)
    return (f1_RC * truth_RC).sum(1) / truth_RC.sum(1)


METRICS: dict[Kind, dict[str, Metric]] = {
    "multiclass": {"overall_accuracy": overall_accuracy, "macro_accuracy": macro_accuracy},
    "multilabel": {
        "ap_macro": ap_macro,
        "ap_micro": ap_micro,
        "f1_macro": f1_macro,
        "f1_micro": f1_micro,
        "f1_weighted": f1_weighted,
    },
}


def value(metric: Metric, scores_NC: Tensor, truth: Tensor) -> float:
    """Return the metric on the samples as they are.

    Args:
        metric: one of this file's, or any function of the same form.
        scores_NC: (N, C) float; the higher, the more likely.
        truth: (N,) int64 class numbers, or (N, C) of 0 and 1.
    """
    return float(metric(scores_NC, truth, torch.ones(1, len(scores_NC), dtype=torch.float64))[0])


def bootstrap(
    metric: Metric,
    scores_NC: Tensor,
    truth: Tensor,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a metric over test samples.

    Encoders scored on the same test set with the same seed see the same resamples. The interval covers the choice of
    test samples only, not the seeds of pretraining.

    Args:
        metric: as for :func:`value`.
        scores_NC: (N, C) float.
        truth: (N,) int64 or (N, C) of 0 and 1.
        resamples: how many times N samples are drawn with replacement.
        seed: key of the draws.
        confidence: mass of the interval, in (0, 1).

    Returns:
        (low, high).

    Raises:
        UserError: no test samples, or a setting out of range.
    """
    count = len(scores_NC)
    if count == 0 or resamples < 1 or not 0 < confidence < 1:
        raise UserError(
            f"bootstrap needs test samples, resamples >= 1 and confidence in (0, 1); "
            f"got {count} samples, resamples={resamples}, confidence={confidence}"
        )
    draws = numpy_generator(seed, "bootstrap", count)
    rows = max(1, _CHUNK_VALUES // max(1, truth.numel()))
    values = [
        metric(scores_NC, truth, _resample_counts(draws, min(rows, resamples - start), count))
        for start in range(0, resamples, rows)
    ]
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(torch.cat(values).numpy(), [tail, 1 - tail])
    return float(low), float(high)


def _resample_counts(draws: np.random.Generator, rows: int, count: int) -> Tensor:
    """Count how often each sample is drawn when ``count`` are drawn with replacement, (rows, count) float64."""
    drawn = draws.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
    return torch.from_numpy(counts.astype(np.float64))


def _average_precision(score_P: Tensor, truth_P: Tensor, sample_P: Tensor, weights_RN: Tensor) -> Tensor:
    """Average the precision over the positives of a ranking, (R,); equal scores count as one threshold.

    P ranked pairs; ``sample_P`` says whose weight a pair carries. NaN where the weights leave no positive.
    """
    order_P = score_P.argsort(descending=True, stable=True)
    _, group_P, sizes = torch.unique_consecutive(score_P[order_P], return_inverse=True, return_counts=True)
    threshold_P = (sizes.cumsum(0) - 1)[group_P]
    weights_RP = weights_RN[:, sample_P[order_P]]
    positive_RP = weights_RP * truth_P[order_P].double()
    precision_RP = (positive_RP.cumsum(1) / weights_RP.cumsum(1))[:, threshold_P]
    # Before the first drawn sample both sums are 0; its weight is 0 too, so the precision there does not count.
    return (positive_RP * precision_RP.nan_to_num(0.0)).sum(1) / positive_RP.sum(1)


def _label_counts(scores_NC: Tensor, truth_NC: Tensor, weights_RN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum true positives, positives and predicted positives per label, three (R, C) float64."""
    said_NC = (scores_NC > THRESHOLD).double()
    true_NC = truth_NC.double()
    return weights_RN @ (said_NC * true_NC), weights_RN @ true_NC, weights_RN @ said_NC
