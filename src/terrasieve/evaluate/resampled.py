"""Resampled: scores of a test set with percentile bootstrap intervals over its images.

Between ``metrics`` and ``dense`` and ``detect``, which compute a metric for any weighting of the images. Pixels and
objects of an image depend on each other, therefore images are drawn, never pixels or objects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from terrasieve.evaluate.metrics import resample_counts, with_intervals
from terrasieve.evaluate.protocol import Score
from terrasieve.keyed import numpy_generator


class Made(NamedTuple):
    """What scores are made with.

    Attributes:
        name: of the method.
        protocol: how it was trained.
        seed: of the resamples; methods scored with the same one on the same images see the same resamples.
        about: what the figures were made with; JSON values.
        resamples: how many times n images are drawn with replacement.
        confidence: mass of the interval.
    """

    name: str
    protocol: str
    seed: int
    about: dict[str, Any]
    resamples: int = 1000
    confidence: float = 0.95


def scored(
    points: Mapping[str, float], weighted: Callable[[Tensor], Mapping[str, Tensor]], n: int, made: Made
) -> list[Score]:
    """Return a score with its interval per metric that has a value.

    Args:
        points: metric -> value on all images.
        weighted: (R, n) float64, how often each image counts -> metric -> (R,) values.
        n: test images.
        made: how.
    """
    weights_Rn = resample_counts(numpy_generator(made.seed, "bootstrap", n), made.resamples, n)
    intervals = with_intervals(points, weighted(weights_Rn), made.confidence)
    return [
        Score(made.name, made.protocol, metric, point, low, high, n, made.about)
        for metric, point, low, high in intervals
    ]
