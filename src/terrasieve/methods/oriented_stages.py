"""Stages of Oriented R-CNN: the network that proposes oriented boxes, and the head that names and corrects them.

Before ``oriented_rcnn``. Anchors, matching and sampling are torchvision's, as in ``faster_rcnn``; boxes are coded by
``boxes.coding``. Source: Xie et al., "Oriented R-CNN for Object Detection", ICCV 2021.

Shapes: A anchors of an image over all levels, P proposals of an image, G objects of an image to be found, N difficult.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.ops import batched_nms, box_iou

from terrasieve.boxes.coding import from_differences, from_midpoints, to_differences, to_midpoints
from terrasieve.boxes.oriented import enclosing
from terrasieve.boxes.overlap import iou
from terrasieve.boxes.suppress import suppress
from terrasieve.methods.detector import without_covered
from terrasieve.methods.sampled import Sampler
from terrasieve.nn.rotated import rotated_roi_align

LEAST_PX = 1.0  # proposals with a shorter side are dropped
SIDE = 7
BEST_FIRST = 2000  # candidates of an image that suppression looks at


class Truths(NamedTuple):
    """True objects of an image: boxes (G, 5), classes (G,), boxes of difficult ones (N, 5)."""

    boxes: Tensor
    numbers: Tensor
    difficult: Tensor


class OrientedProposals(nn.Module):
    """Propose oriented boxes on a pyramid.

    Attributes:
        sampler: draws the anchors that it learns from.
    """

    def __init__(self, width: int, anchors: int, sampled: int, count: int, ignored: float) -> None:
        super().__init__()
        self.convolve = nn.Conv2d(width, width, 3, padding=1)
        self.score = nn.Conv2d(width, anchors, 1)
        self.place = nn.Conv2d(width, anchors * 6, 1)
        self.count, self.ignored = count, ignored
        self.sampler = Sampler(sampled, 0.5)
        self.matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)

    def forward(
        self, levels: list[Tensor], anchors_A4: Tensor, truth: list[Truths] | None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Propose (P, 5) boxes of each image, best first; with ``truth`` also the two losses."""
        scores, offsets, counts = [], [], []
        for map_ in levels:
            x = F.relu(self.convolve(map_))
            scores.append(self.score(x).permute(0, 2, 3, 1).flatten(1))
            offsets.append(self.place(x).unflatten(1, (-1, 6)).permute(0, 3, 4, 1, 2).flatten(1, 3))
            counts.append(scores[-1].shape[1])
        scores_BA, offsets_BA6 = torch.cat(scores, dim=1), torch.cat(offsets, dim=1)
        with torch.no_grad():
            proposals = self._proposed(scores_BA, offsets_BA6, anchors_A4, counts, 2 if truth is not None else 1)
        return proposals, {} if truth is None else self._losses(scores_BA, offsets_BA6, anchors_A4, truth)

    def _proposed(
        self, scores_BA: Tensor, offsets_BA6: Tensor, anchors_A4: Tensor, counts: list[int], more: int
    ) -> list[Tensor]:
        start, rows, level = 0, [], []
        for number, count in enumerate(counts):
            best = scores_BA[:, start : start + count].topk(min(more * self.count, count), dim=1).indices + start
            rows.append(best)
            level.append(torch.full((best.shape[1],), number, device=best.device))
            start += count
        rows_BK, level_K = torch.cat(rows, dim=1), torch.cat(level)
        proposals = []
        for scores, offsets, chosen in zip(scores_BA, offsets_BA6, rows_BK, strict=True):
            boxes = from_midpoints(offsets[chosen], anchors_A4[chosen])
            good = torch.nonzero(boxes[:, 3] >= LEAST_PX)[:, 0]
            # Enclosing boxes are compared, as the paper does: coarse enough here, and far cheaper.
            kept = batched_nms(enclosing(boxes[good]), scores[chosen[good]], level_K[good], 0.8)[: self.count]
            proposals.append(boxes[good[kept]])
        return proposals

    def _losses(
        self, scores_BA: Tensor, offsets_BA6: Tensor, anchors_A4: Tensor, truth: list[Truths]
    ) -> dict[str, Tensor]:
        labels, targets = [], []
        for true in truth:
            if len(true.boxes):
                match_A = self.matcher(box_iou(enclosing(true.boxes), anchors_A4))
                own = true.boxes[match_A.clamp_min(0)]
                # 1 for an object, 0 for none, -1 for neither
                labels.append(torch.where(match_A >= 0, 1, torch.where(match_A == Matcher.BETWEEN_THRESHOLDS, -1, 0)))
                targets.append(own)
            else:
                labels.append(torch.zeros(len(anchors_A4), dtype=torch.long, device=anchors_A4.device))
                targets.append(anchors_A4.new_zeros(len(anchors_A4), 5))
            labels[-1] = without_covered(labels[-1], anchors_A4, enclosing(true.difficult), self.ignored)
        positive, negative = (torch.stack(flags) for flags in self.sampler(labels))
        hits, chosen = torch.nonzero(positive, as_tuple=True), positive | negative
        wanted = to_midpoints(torch.stack(targets)[hits], anchors_A4[hits[1]])
        place = F.smooth_l1_loss(offsets_BA6[hits], wanted, beta=1 / 9, reduction="sum") / chosen.sum().clamp_min(1)
        scored = F.binary_cross_entropy_with_logits(scores_BA[chosen], positive[chosen].float())
        return {"loss_objectness": self.sampler.mean(scored), "loss_rpn_box_reg": place}


class OrientedHead(nn.Module):
    """Name proposals and correct them.

    Attributes:
        sampler: draws the proposals that it learns from.
    """

    def __init__(
        self, width: int, hidden: int, classes: int, sampled: int, strides: tuple[float, ...], ignored: float
    ) -> None:
        super().__init__()
        self.layers = TwoMLPHead(width * SIDE**2, hidden)
        self.classify = nn.Linear(hidden, classes + 1)  # 0 is background
        self.correct = nn.Linear(hidden, 5)
        self.strides, self.ignored = strides, ignored
        self.sampler = Sampler(sampled, 0.25)
        self.matcher = Matcher(0.5, 0.5, allow_low_quality_matches=False)

    def _read(self, maps: list[Tensor], proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        boxes = torch.cat(proposals)
        counts = torch.tensor([len(own) for own in proposals], device=boxes.device)
        image = torch.arange(len(proposals), device=boxes.device).repeat_interleave(counts, output_size=len(boxes))
        x = self.layers(rotated_roi_align(maps, self.strides, boxes, image, SIDE))
        return self.classify(x), self.correct(x)

    def losses(self, maps: list[Tensor], proposals: list[Tensor], truth: list[Truths]) -> dict[str, Tensor]:
        """Compute the two losses on sampled proposals, true boxes among them."""
        every, labels, wanted = [], [], []
        for own, true in zip(proposals, truth, strict=True):
            boxes = torch.cat([own, true.boxes])
            every.append(boxes)
            if len(true.boxes):
                match = self.matcher(iou(true.boxes, boxes))
                labels.append(torch.where(match >= 0, true.numbers[match.clamp_min(0)] + 1, 0))
                wanted.append(true.boxes[match.clamp_min(0)])
            else:
                labels.append(torch.zeros(len(boxes), dtype=torch.long, device=boxes.device))
                wanted.append(boxes)
            labels[-1][: len(own)] = without_covered(labels[-1][: len(own)], own, true.difficult, self.ignored)
        flags = [torch.nonzero(p | n)[:, 0] for p, n in zip(*self.sampler(labels), strict=True)]
        chosen = [own[rows] for own, rows in zip(every, flags, strict=True)]
        label_P, target_P5 = (
            torch.cat([own[rows] for own, rows in zip(values, flags, strict=True)]) for values in (labels, wanted)
        )
        scores, corrections = self._read(maps, chosen)
        hits = torch.nonzero(label_P > 0)[:, 0]
        differences = to_differences(target_P5[hits], torch.cat(chosen)[hits])
        place = F.smooth_l1_loss(corrections[hits], differences, beta=1.0, reduction="sum") / max(len(label_P), 1)
        return {"loss_classifier": self.sampler.mean(F.cross_entropy(scores, label_P)), "loss_box_reg": place}

    def found(
        self, maps: list[Tensor], proposals: list[Tensor], least: float, threshold: float, most: int
    ) -> list[Tensor]:
        """Find objects: (k, 7) of each image, best first: oriented box, score, class."""
        counts = [len(own) for own in proposals]
        scores, corrections = self._read(maps, proposals)
        chances, boxes = scores.softmax(1)[:, 1:], from_differences(corrections, torch.cat(proposals))
        rows = []
        for chance, own in zip(torch.split(chances, counts), torch.split(boxes, counts), strict=True):
            place, number = torch.nonzero((chance > least) & (own[:, 3:4] > 0), as_tuple=True)
            value, best = chance[place, number].sort(descending=True, stable=True)
            value, best = value[:BEST_FIRST], best[:BEST_FIRST]
            place, number = place[best], number[best]
            kept = suppress(own[place], value, threshold, number)[:most]
            rows.append(torch.cat([own[place[kept]], value[kept, None], number[kept, None].float()], dim=1))
        return rows
