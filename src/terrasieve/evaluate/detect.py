"""Detection scores: how well the objects of a test set are found, with bootstrap intervals over its images.

After a method's ``predict``; its scores are ``protocol.Score`` like all others, horizontal and oriented boxes alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from terrasieve.boxes.oriented import bounds, from_polygons
from terrasieve.errors import UserError
from terrasieve.evaluate.average_precision import COUNTED, DIFFICULT, Matches, Objects, Rule, average_precision, match
from terrasieve.evaluate.protocol import Score
from terrasieve.evaluate.resampled import Made, scored

THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
# Name -> rule of matching, which of the thresholds, points of recall.
METRICS: dict[str, tuple[Rule, range, int | None]] = {
    "ap50": ("coco", range(1), 101),
    "ap50_95": ("coco", range(10), 101),
    "ap75": ("coco", range(5, 6), 101),
    "voc07_ap50": ("voc", range(1), 11),
    "voc12_ap50": ("voc", range(1), None),
}
Matched = dict[Rule, list[Matches]]


def matched(found: list[Objects], truth: list[Objects], classes: int) -> Matched:
    """Match detections with objects by both rules; image by image, boxes in one frame."""
    return {
        "coco": match(found, truth, classes, THRESHOLDS, "coco"),
        "voc": match(found, truth, classes, THRESHOLDS[:1], "voc"),
    }


def of_detections(detections_KF: Tensor) -> Objects:
    """Read what a detector's ``predict`` returns for one image: (K, F + 2), a box, a score and a class or -1 each."""
    there = detections_KF[:, -1] >= 0
    return Objects(detections_KF[there, :-2], detections_KF[there, -1].long(), detections_KF[there, -2])


def of_truth(polygons: Tensor, numbers: Tensor, difficult: Tensor, width: int) -> Objects:
    """Make the true objects of one image of their corners: horizontal boxes (``width`` 4) or oriented ones (5)."""
    boxes = bounds(polygons) if width == 4 else from_polygons(polygons)
    return Objects(boxes, numbers, torch.where(difficult, DIFFICULT, COUNTED))


def values(found: Matched, classes: Sequence[str] = ()) -> dict[str, float]:
    """Compute all metrics of a test set.

    Args:
        found: see :func:`matched`.
        classes: names; given, ``ap50/NAME`` of each class follows the metrics.

    Returns:
        Name -> value in [0, 1], in the order of ``METRICS``; NaN where no object is counted. Classes that have none are
        left out of means over classes.
    """
    images = _images(found)
    drawn = _values(found, torch.ones(1, images, dtype=torch.float64), classes)
    return {name: float(value_R[0]) for name, value_R in drawn.items()}


def score(found: Matched, classes: Sequence[str], made: Made) -> list[Score]:
    """Score the detections in test images by every metric, with percentile bootstrap intervals over the images.

    Args:
        found: see :func:`matched`.
        classes: names of the classes.
        made: by which method, and how the intervals are made.

    Returns:
        A score per metric, and per class that the test images hold (``ap50/NAME``).

    Raises:
        UserError: no image has an object that counts.
    """
    n = _images(found)
    points = values(found, classes)
    if np.isnan(points["ap50"]):
        raise UserError(f"{n} test images have no object that is counted; look at task.boxes and the split.")
    return scored(points, lambda weights_Rn: _values(found, weights_Rn, classes), n, made)


def _images(found: Matched) -> int:
    return len(found["coco"][0].positives_n)


def _values(found: Matched, weights_Rn: Tensor, classes: Sequence[str]) -> dict[str, Tensor]:
    cached: dict[tuple[Rule, int, int | None], Tensor] = {}

    def per_class(rule: Rule, threshold: int, points: int | None) -> Tensor:
        key = (rule, threshold, points)
        if key not in cached:
            every = [average_precision(own, threshold, weights_Rn, points) for own in found[rule]]
            cached[key] = torch.stack(every, dim=1)
        return cached[key]

    result = {
        name: torch.stack([per_class(rule, threshold, points) for threshold in chosen]).mean(0).nanmean(1)
        for name, (rule, chosen, points) in METRICS.items()
    }
    return result | {f"ap50/{name}": v for name, v in zip(classes, per_class("coco", 0, 101).unbind(1), strict=False)}
