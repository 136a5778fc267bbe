"""Dense scores: how well every pixel of a test set is classified, with bootstrap intervals over its images.

After a method's ``predict``; its scores are ``protocol.Score`` like all others. Every metric is made of confusion
matrices: one per image, counted on the device; a bootstrap resample weighs the images, so a thousand resamples are one
matrix product.

Shapes: n test images, C classes (true ones in rows, predicted ones in columns), R weightings of the images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from terrasieve.errors import UserError
from terrasieve.evaluate.metrics import Counts, by_support, f1, jaccard
from terrasieve.evaluate.protocol import Score
from terrasieve.evaluate.resampled import Made, scored


def confusion(predicted_BHW: Tensor, truth_BHW: Tensor, classes: int) -> Tensor:
    """Count the pixels of each true and predicted class, image by image, without waiting for the device.

    Args:
        predicted_BHW: class numbers, int64.
        truth_BHW: class numbers; those of ``classes`` and above, as 255 (``batch.IGNORED``), are not scored.
        classes: C.

    Returns:
        (B, C, C) int64 on the same device.
    """
    B = len(truth_BHW)
    truth, said = truth_BHW.long().flatten(1), predicted_BHW.long().flatten(1)
    pair_BP = torch.where(truth < classes, truth * classes + said, classes * classes)
    counts = torch.zeros(B, classes * classes + 1, dtype=torch.int64, device=pair_BP.device)
    counts.scatter_add_(1, pair_BP, torch.ones_like(pair_BP))
    return counts[:, :-1].view(B, classes, classes)


def counts_of(matrices_RCC: Tensor) -> Counts:
    """Sum hits, true and predicted pixels per class."""
    return Counts(matrices_RCC.diagonal(dim1=1, dim2=2), matrices_RCC.sum(2), matrices_RCC.sum(1))


def overall_accuracy(counts: Counts) -> Tensor:
    """Return the share of pixels that are right, (R,) in [0, 1]; micro F1 is the same."""
    return counts.hits_RC.sum(1) / counts.truth_RC.sum(1)


def macro_accuracy(counts: Counts) -> Tensor:
    """Return the mean over classes of the share of the class's pixels that is right, (R,); absent classes left out."""
    return (counts.hits_RC / counts.truth_RC).nanmean(1)


# A class neither true nor predicted in the whole test set is left out of means over classes, as torchmetrics does.
METRICS: dict[str, Callable[[Counts], Tensor]] = {
    "miou": lambda counts: jaccard(counts).nanmean(1),
    "overall_accuracy": overall_accuracy,
    "macro_accuracy": macro_accuracy,
    "jaccard_weighted": lambda counts: by_support(jaccard(counts), counts),
    "f1_macro": lambda counts: f1(counts).nanmean(1),
    "f1_micro": overall_accuracy,
    "f1_weighted": lambda counts: by_support(f1(counts), counts),
}


def values(matrices_nCC: Tensor, classes: Sequence[str] = ()) -> dict[str, float]:
    """Compute all metrics of a test set.

    Args:
        matrices_nCC: confusion of each image.
        classes: names; given, ``iou/NAME`` of each class follows the metrics (NaN for one that is not there).

    Returns:
        Name -> value in [0, 1], in the order of ``METRICS``; NaN where no pixel is scored.
    """
    found = _values(matrices_nCC.sum(0, keepdim=True).double().cpu(), classes)
    return {name: float(value_R[0]) for name, value_R in found.items()}


def score(matrices_nCC: Tensor, classes: Sequence[str], made: Made) -> list[Score]:
    """Score a segmentation of test images by every metric, with percentile bootstrap intervals over the images.

    Args:
        matrices_nCC: confusion of each image, (n, C, C).
        classes: names of the classes.
        made: by which method, and how the intervals are made.

    Returns:
        A score per metric, and per class that the test images or their predictions hold (``iou/NAME``).

    Raises:
        UserError: no image has a scored pixel.
    """
    matrices = matrices_nCC.double().cpu()
    n, C = matrices.shape[:2]
    if not matrices.any():
        raise UserError(f"{n} test images have no pixel that is scored; look at their masks and at task.masks.ignore.")

    def weighted(weights_Rn: Tensor) -> dict[str, Tensor]:
        return _values((weights_Rn @ matrices.flatten(1)).view(-1, C, C), classes)

    return scored(values(matrices_nCC, classes), weighted, n, made)


def _values(matrices_RCC: Tensor, classes: Sequence[str]) -> dict[str, Tensor]:
    counts = counts_of(matrices_RCC)
    found = {name: metric(counts) for name, metric in METRICS.items()}
    return found | {f"iou/{name}": iou_R for name, iou_R in zip(classes, jaccard(counts).unbind(1), strict=False)}
