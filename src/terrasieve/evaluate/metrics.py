"""Scores of a classifier on a test set, each with a percentile bootstrap interval.

Used by ``evaluate.protocol``. Every metric is written once, for weighted samples: a bootstrap resample is a vector of
counts, so a thousand resamples are a matrix product or a running sum instead of a thousand calls. scikit-learn and
torchmetrics are the oracles in the tests. Interval: Efron, "Bootstrap methods: another look at the jackknife", 1979.

Shapes: N test samples, C classes, R weightings of the samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

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
    truth_NC = one_hot(truth_N, scores_NC.shape[1]).double()
    right_N1 = (scores_NC.argmax(1) == truth_N).double()[:, None]
    return ((weights_RN @ (truth_NC * right_N1)) / (weights_RN @ truth_NC)).nanmean(1)


def class_f1_macro(scores_NC: Tensor, truth_N: Tensor, weights_RN: Tensor) -> Tensor:
    """Return the mean over classes of F1, (R,) float64; a class neither true nor predicted is left out."""
    return f1(_class_counts(scores_NC, truth_N, weights_RN)).nanmean(1)


def class_f1_weighted(scores_NC: Tensor, truth_N: Tensor, weights_RN: Tensor) -> Tensor:
    """Return F1 averaged over classes in proportion to their samples, (R,) float64."""
    counts = _class_counts(scores_NC, truth_N, weights_RN)
    return by_support(f1(counts), counts)


def class_jaccard_weighted(scores_NC: Tensor, truth_N: Tensor, weights_RN: Tensor) -> Tensor:
    """Return the Jaccard index averaged over classes in proportion to their samples, (R,) float64."""
    counts = _class_counts(scores_NC, truth_N, weights_RN)
    return by_support(jaccard(counts), counts)


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
    return f1(_label_counts(scores_NC, truth_NC, weights_RN)).nan_to_num(0.0).mean(1)


def f1_micro(scores_NC: Tensor, truth_NC: Tensor, weights_RN: Tensor) -> Tensor:
    """Return F1 at 0.5 over all (sample, label) pairs, (R,) float64."""
    hits_RC, truth_RC, said_RC = _label_counts(scores_NC, truth_NC, weights_RN)
    return 2 * hits_RC.sum(1) / (truth_RC + said_RC).sum(1)


def f1_weighted(scores_NC: Tensor, truth_NC: Tensor, weights_RN: Tensor) -> Tensor:
    """Return F1 at 0.5 averaged over labels in proportion to their positives, (R,) float64."""
    counts = _label_counts(scores_NC, truth_NC, weights_RN)
    return by_support(f1(counts), counts)


def jaccard_weighted(scores_NC: Tensor, truth_NC: Tensor, weights_RN: Tensor) -> Tensor:
    """Return the Jaccard index at 0.5 averaged over labels in proportion to their positives, (R,) float64."""
    counts = _label_counts(scores_NC, truth_NC, weights_RN)
    return by_support(jaccard(counts), counts)


class Counts(NamedTuple):
    """What F1 and Jaccard are made of, per weighting and class, each (R, C) float64.

    Attributes:
        hits_RC: true positives.
        truth_RC: true samples, labels or pixels of the class.
        said_RC: predicted ones.
    """

    hits_RC: Tensor
    truth_RC: Tensor
    said_RC: Tensor


def f1(counts: Counts) -> Tensor:
    """Return F1 per class, (R, C) in [0, 1]; NaN for a class neither true nor predicted."""
    return 2 * counts.hits_RC / (counts.truth_RC + counts.said_RC)


def jaccard(counts: Counts) -> Tensor:
    """Return intersection over union per class, (R, C) in [0, 1]; NaN for a class neither true nor predicted."""
    return counts.hits_RC / (counts.truth_RC + counts.said_RC - counts.hits_RC)


def by_support(values_RC: Tensor, counts: Counts) -> Tensor:
    """Average over classes in proportion to how much of each is true: (R, C) -> (R,)."""
    return (values_RC.nan_to_num(0.0) * counts.truth_RC).sum(1) / counts.truth_RC.sum(1)


# Micro F1 of a multi-class task is its overall accuracy.
METRICS: dict[Kind, dict[str, Metric]] = {
    "multiclass": {
        "overall_accuracy": overall_accuracy,
        "macro_accuracy": macro_accuracy,
        "f1_macro": class_f1_macro,
        "f1_weighted": class_f1_weighted,
        "jaccard_weighted": class_jaccard_weighted,
    },
    "multilabel": {
        "ap_macro": ap_macro,
        "ap_micro": ap_micro,
        "f1_macro": f1_macro,
        "f1_micro": f1_micro,
        "f1_weighted": f1_weighted,
        "jaccard_weighted": jaccard_weighted,
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


def with_intervals(
    points: Mapping[str, float], drawn: Mapping[str, Tensor], confidence: float
) -> Iterator[tuple[str, float, float, float]]:
    """Yield metric, value, and the percentile interval of its resamples; metrics without a value (NaN) are left out.

    Args:
        points: metric -> value.
        drawn: metric -> values of the resamples, (R,).
        confidence: mass of the interval.
    """
    tail = (1 - confidence) / 2
    for metric, point in points.items():
        if not math.isnan(point):
            low, high = np.nanquantile(drawn[metric].numpy(), [tail, 1 - tail])
            yield metric, point, float(low), float(high)


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
        metric(scores_NC, truth, resample_counts(draws, min(rows, resamples - start), count))
        for start in range(0, resamples, rows)
    ]
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(torch.cat(values).numpy(), [tail, 1 - tail])
    return float(low), float(high)


def resample_counts(draws: np.random.Generator, rows: int, count: int) -> Tensor:
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


def _label_counts(scores_NC: Tensor, truth_NC: Tensor, weights_RN: Tensor) -> Counts:
    """Count per label, at the threshold."""
    said_NC, true_NC = (scores_NC > THRESHOLD).double(), truth_NC.double()
    return Counts(weights_RN @ (said_NC * true_NC), weights_RN @ true_NC, weights_RN @ said_NC)


def _class_counts(scores_NC: Tensor, truth_N: Tensor, weights_RN: Tensor) -> Counts:
    """Count per class, of each sample the one with the highest score."""
    said_NC, true_NC = (one_hot(numbers, scores_NC.shape[1]).double() for numbers in (scores_NC.argmax(1), truth_N))
    return Counts(weights_RN @ (said_NC * true_NC), weights_RN @ true_NC, weights_RN @ said_NC)
