"""Average precision: which detections are right, and the area under precision over recall.

Before ``detect``, which reads figures from it. Everything is kept per detection, with its image, so that a bootstrap
resample is a vector of weights of images. Two rules of matching: COCO's (Lin et al., ECCV 2014; pycocotools is the
oracle) and Pascal VOC's (Everingham et al., IJCV 2010), which DOTA's evaluation follows with oriented boxes (Xia et
al., CVPR 2018).

Shapes: G true objects, P detections of a class, T thresholds of the overlap, R weightings of the n images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terrasieve.boxes.overlap import areas, common_area_upright, iou

COUNTED, DIFFICULT, CROWD = 0, 1, 2  # flags of objects: neither a hit nor a miss of the latter two counts
MOST = 100  # detections of an image, over all classes, that are looked at: COCO's
Rule = Literal["coco", "voc"]
_CHUNK_VALUES = 2**22  # weights of detections held at once: 32 MiB of float64


class Objects(NamedTuple):
    """True objects, or detections, of one image.

    Attributes:
        boxes: (G, 4) horizontal or (G, 5) oriented.
        classes: (G,) int64.
        values: (G,) int64 flags of true objects (0 counted, 1 difficult, 2 a crowd), or scores of detections.
    """

    boxes: Tensor
    classes: Tensor
    values: Tensor


@dataclass(frozen=True)
class Matches:
    """What became of the detections of one class.

    Attributes:
        images_P: int64, the image of each detection; best score first.
        right_TP: bool, a hit.
        ignored_TP: bool, neither a hit nor a miss.
        positives_n: float64, counted objects of each image.
    """

    images_P: Tensor
    right_TP: Tensor
    ignored_TP: Tensor
    positives_n: Tensor


def match(
    found: list[Objects], truth: list[Objects], classes: int, thresholds: tuple[float, ...], rule: Rule
) -> list[Matches]:
    """Match detections with objects, image by image and class by class.

    Args:
        found: detections of each image; COCO's rule looks at the best 100 of an image and class, VOC's at all.
        truth: objects of each image.
        classes: C.
        thresholds: of the overlap. COCO: at least; VOC: more than.
        rule: COCO gives a detection the object that overlaps it most among those that no better one got; VOC the one
            that overlaps it most, and it is a miss if that is taken.

    Returns:
        One per class.
    """
    kept: list[list[tuple[int, Tensor, NDArray[np.int8]]]] = [[] for _ in range(classes)]
    positives = torch.zeros(classes, len(truth), dtype=torch.float64)
    limits = np.array(thresholds)
    for image, (said, true) in enumerate(zip(found, truth, strict=True)):
        counted = true.classes[true.values == COUNTED]
        positives[:, image] = torch.bincount(counted, minlength=classes).double()
        for number in torch.unique(said.classes).tolist():
            rows = torch.nonzero(said.classes == number)[:, 0]
            rows = rows[said.values[rows].argsort(descending=True, stable=True)]
            rows = rows[:MOST] if rule == "coco" else rows
            own = torch.nonzero(true.classes == number)[:, 0]
            flags = true.values[own].numpy()
            overlaps = overlap(said.boxes[rows], true.boxes[own], true.values[own] == CROWD).numpy()
            kept[number].append((image, said.values[rows], _judged(overlaps, flags, limits, rule == "coco")))
    return [_joined(parts, own_n, len(limits)) for parts, own_n in zip(kept, positives, strict=True)]


def _joined(parts: list[tuple[int, Tensor, NDArray[np.int8]]], positives_n: Tensor, count: int) -> Matches:
    """Rank the detections of all images; of equal scores the earlier image's comes first."""
    if not parts:
        nothing = torch.zeros(count, 0, dtype=torch.bool)
        return Matches(torch.zeros(0, dtype=torch.long), nothing, nothing, positives_n)
    order = torch.cat([scores for _, scores, _ in parts]).argsort(descending=True, stable=True)
    images = torch.cat([torch.full((len(scores),), image) for image, scores, _ in parts])
    verdict = torch.from_numpy(np.concatenate([verdict for _, _, verdict in parts], axis=1))[:, order]
    return Matches(images[order], verdict == 1, verdict == -1, positives_n)


def overlap(found: Tensor, true: Tensor, crowd_G: Tensor) -> Tensor:
    """Return the intersection over union of detections and objects, (P, G) float64; of a crowd, over the detection."""
    found, true = found.double(), true.double()
    if found.shape[-1] == 5:
        both = iou(found, true)
        common = both / (1 + both) * (areas(found)[:, None] + areas(true))
        own = areas(found)
    else:
        common = common_area_upright(found, true)
        own, other = ((boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(-1) for boxes in (found, true))
        union = own[:, None] + other - common
        both = torch.where(union > 0, common / union, 0.0)
    return torch.where(crowd_G, torch.where(own[:, None] > 0, common / own[:, None], 0.0), both)


def average_precision(matches: Matches, threshold: int, weights_Rn: Tensor, points: int | None) -> Tensor:
    """Average the precision over recall, (R,); NaN where no object is counted.

    Args:
        matches: of one class.
        threshold: which of them, an index.
        weights_Rn: float64, how often each image counts.
        points: recalls, evenly from 0 to 1, at which the envelope of the precision is read: 101 (COCO), 11 (VOC 2007);
            None = the whole area under it (VOC 2010 to 2012).
    """
    rows = max(1, _CHUNK_VALUES // max(1, len(matches.images_P)))
    return torch.cat([_averaged(matches, threshold, part, points) for part in torch.split(weights_Rn, rows)])


def _averaged(matches: Matches, threshold: int, weights_Rn: Tensor, points: int | None) -> Tensor:
    positives_R = weights_Rn @ matches.positives_n
    weights_RP = weights_Rn[:, matches.images_P]
    right_RP = (weights_RP * matches.right_TP[threshold]).cumsum(1)
    said_RP = (weights_RP * ~matches.ignored_TP[threshold]).cumsum(1)
    recall_RP = right_RP / positives_R[:, None]
    precision_RP = torch.where(said_RP > 0, right_RP / said_RP, 0.0)
    envelope_RP = precision_RP.flip(1).cummax(1).values.flip(1) if precision_RP.shape[1] else precision_RP
    if points is None:
        step_RP = torch.diff(recall_RP, dim=1, prepend=torch.zeros(len(recall_RP), 1, dtype=torch.float64))
        value_R = (step_RP * envelope_RP).sum(1)
    else:
        at = torch.from_numpy(np.linspace(0, 1, points)).expand(len(recall_RP), -1).contiguous()
        place = torch.searchsorted(recall_RP.contiguous(), at)
        padded = torch.cat([envelope_RP, torch.zeros(len(recall_RP), 1, dtype=torch.float64)], dim=1)
        value_R = padded.gather(1, place).mean(1)
    return torch.where(positives_R > 0, value_R, torch.nan)


@numba.njit(cache=True, nogil=True)
def _judged(
    overlaps: NDArray[np.float64], flags: NDArray[np.int64], thresholds: NDArray[np.float64], coco: bool
) -> NDArray[np.int8]:
    """Judge detections, best first: 1 right, 0 wrong, -1 ignored, (T, P)."""
    verdict = np.zeros((len(thresholds), overlaps.shape[0]), np.int8)
    for t in range(len(thresholds)):
        taken = np.zeros(len(flags), np.bool_)
        for d in range(overlaps.shape[0]):
            own = overlaps[d]
            best = _by_coco(own, flags, thresholds[t], taken) if coco else _by_voc(own, thresholds[t])
            if best >= 0:
                verdict[t, d] = -1 if flags[best] else int(not taken[best])
                taken[best] = True
    return verdict


@numba.njit(cache=True, nogil=True)
def _by_coco(
    overlaps: NDArray[np.float64], flags: NDArray[np.int64], threshold: float, taken: NDArray[np.bool_]
) -> int:
    """Return the object that a detection finds, the likest that no better one has found; -1 = none."""
    best, most = -1, min(threshold, 1 - 1e-10)
    for ignored in (False, True):  # an object that counts goes before any that does not
        if best >= 0:
            break
        for g in range(len(flags)):
            if (flags[g] != 0) != ignored or (taken[g] and flags[g] != 2) or overlaps[g] < most:
                continue
            best, most = g, overlaps[g]
    return best


@numba.njit(cache=True, nogil=True)
def _by_voc(overlaps: NDArray[np.float64], threshold: float) -> int:
    """Return the object that a detection finds, the likest of all; -1 = none."""
    best = -1
    for g in range(len(overlaps)):
        if best < 0 or overlaps[g] > overlaps[best]:
            best = g
    return best if best >= 0 and overlaps[best] > threshold else -1
