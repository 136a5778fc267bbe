"""Faster R-CNN on a plain ViT: horizontal boxes of objects.

A region proposal network says where something may be, a second head what it is and where exactly. Both are
torchvision's; the maps are a simple pyramid's, the RoI align is ``nn.rotated`` at angle 0 (the same numbers, faster).
Source: Ren et al., "Faster R-CNN", NeurIPS 2015; Li et al., "Exploring Plain Vision Transformer Backbones for Object
Detection", ECCV 2022. The loss is a mean over the sampled anchors and proposals of the micro-batch, so that
``accumulate`` is the whole batch but for images with fewer candidates than are sampled.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from terrasieve.batch import Batch, Output
from terrasieve.boxes.oriented import bounds, rectangle
from terrasieve.methods.detector import (
    LOSSES,
    OUTPUT_STD,
    Detector,
    DetectorSettings,
    anchors_of,
    images_of,
    learnt,
    narrowed,
    padded,
    shown,
    without_covered,
)
from terrasieve.methods.reconstruction import draw_noise
from terrasieve.methods.sampled import Sampler
from terrasieve.nn.encoder import Encoder, initialise
from terrasieve.nn.rotated import levels_of, rotated_roi_align

SIDE = 7  # cells of what the head sees of a proposal


class FasterRCNNSettings(DetectorSettings):
    """Faster R-CNN's choices, see ``DetectorSettings``."""

    name: Literal["faster_rcnn"] = "faster_rcnn"


class FasterRCNN(Detector):
    """Find objects by horizontal boxes."""

    def __init__(self, settings: FasterRCNNSettings, encoder: Encoder, seed: int = 0) -> None:
        """Build pyramid and heads around an encoder, their weights drawn from ``seed``.

        Raises:
            UserError: if there is no class.
        """
        super().__init__(settings, encoder, seed)
        self.settings = settings
        self.rpn = _Proposals(
            anchors_of(settings, self.trunk.strides),
            RPNHead(settings.width, len(settings.ratios)), 0.7, 0.3, settings.sampled[0], 0.5,
            {"training": 2 * settings.proposals, "testing": settings.proposals},
            {"training": settings.proposals, "testing": settings.proposals}, 0.7,
        )  # fmt: skip
        self.roi = _Head(
            _Upright(self.trunk.strides), TwoMLPHead(settings.width * SIDE**2, settings.hidden),
            FastRCNNPredictor(settings.hidden, settings.classes + 1), 0.5, 0.5, settings.sampled[1], 0.25, None,
            settings.least_score, settings.overlap, settings.most,
        )  # fmt: skip
        self.rpn.ignored = self.roi.ignored = settings.ignored
        self.rpn.fg_bg_sampler = Sampler(settings.sampled[0], 0.5)
        self.roi.fg_bg_sampler = Sampler(settings.sampled[1], 0.25)
        initialise(self.rpn, seed, "rpn")
        initialise(self.roi, seed, "roi")
        for layer in (self.rpn.head.cls_logits, self.rpn.head.bbox_pred, *self.roi.box_predictor.children()):
            narrowed(layer, seed, OUTPUT_STD)

    def forward(self, batch: Batch, generator: torch.Generator, *, picture: bool = False) -> Output:
        """Compute the loss, the sum of the four; for a picture, in evaluation mode, what is found instead."""
        maps, share, painted = self.trunk(batch, generator)
        metrics = {"kept_share": share}
        if picture:
            found_BKF = self._found(maps)
            painted |= {"found": rectangle(found_BKF[..., :4]), "found_classes": shown(found_BKF)}
            if batch.objects is not None:
                painted |= {"objects": rectangle(self._boxes(batch)), "objects_classes": batch.object_classes}
            return Output(maps[0].new_zeros(()), metrics, painted)
        assert batch.objects is not None and batch.object_classes is not None, "Faster R-CNN learns from boxes"
        boxes_BM4 = self._boxes(batch)
        targets = [
            {"boxes": boxes[sure], "labels": numbers[sure] + 1, "difficult": boxes[difficult]}
            for boxes, numbers, sure, difficult in zip(boxes_BM4, batch.object_classes, *learnt(batch), strict=True)
        ]
        levels = self._levels(maps)
        anchors = sum(x.shape[-2] * x.shape[-1] for x in levels.values()) * len(self.settings.ratios)
        self.rpn.fg_bg_sampler.noise_BA = draw_noise(batch, generator, anchors)
        most = self.settings.proposals + boxes_BM4.shape[1]
        self.roi.fg_bg_sampler.noise_BA = draw_noise(batch, generator, most)
        with torch.autocast(maps[0].device.type, enabled=False):
            proposals, losses = self.rpn(images_of(len(batch), maps[0], self.trunk.size_px), levels, targets)
            _, more = self.roi(levels, proposals, [self.trunk.size_px] * len(batch), targets)
        parts = {name: self.rpn.fg_bg_sampler.mean(loss) for name, loss in losses.items()}
        parts |= {name: self.roi.fg_bg_sampler.mean(loss) for name, loss in more.items()}
        return Output(sum((parts[name] for name in LOSSES), maps[0].new_zeros(())), metrics | _detached(parts))

    def _found(self, maps: list[Tensor]) -> Tensor:
        levels, count = self._levels(maps), len(maps[0])
        with torch.autocast(maps[0].device.type, enabled=False):
            proposals, _ = self.rpn(images_of(count, maps[0], self.trunk.size_px), levels)
            found, _ = self.roi(levels, proposals, [self.trunk.size_px] * count)
        rows = [torch.cat([f["boxes"], f["scores"][:, None], f["labels"][:, None] - 1.0], dim=1) for f in found]
        return padded(rows, self.settings.most, 6)

    def _boxes(self, batch: Batch) -> Tensor:
        """Return the horizontal boxes of what an image shows of its objects: (B, M, 4)."""
        assert batch.objects is not None
        height, width = self.trunk.size_px
        edge = torch.tensor([width, height, width, height], device=batch.image.device, dtype=torch.float32)
        return bounds(batch.objects).clamp_min(0).minimum(edge)

    def _levels(self, maps: list[Tensor]) -> dict[str, Tensor]:
        coarser = nn.functional.max_pool2d(maps[-1], 1, 2)
        return {str(level): map_ for level, map_ in enumerate([*maps, coarser])}


class _Proposals(RegionProposalNetwork):  # type: ignore[misc]
    """torchvision's, but it does not learn from anchors that a difficult object covers."""

    ignored: float

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        both = zip(labels, anchors, targets, strict=True)
        return [without_covered(label, own, true["difficult"], self.ignored) for label, own, true in both], boxes


class _Head(RoIHeads):  # type: ignore[misc]
    """torchvision's, but it does not learn from proposals that a difficult object covers; true boxes it learns from."""

    ignored: float
    difficult: list[Tensor]

    def select_training_samples(self, proposals: list[Tensor], targets: list[dict[str, Tensor]]) -> Any:
        self.difficult = [true["difficult"] for true in targets]
        return super().select_training_samples(proposals, targets)

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        matches, labels = super().assign_targets_to_proposals(proposals, gt_boxes, gt_labels)
        for label, own, true, difficult in zip(labels, proposals, gt_boxes, self.difficult, strict=True):
            count = len(own) - len(true)  # true boxes stand last
            label[:count] = without_covered(label[:count], own[:count], difficult, self.ignored)
        return matches, labels


class _Upright(nn.Module):
    """RoI align of torchvision's lists of horizontal proposals."""

    def __init__(self, strides: tuple[float, ...]) -> None:
        super().__init__()
        self.strides = strides

    def forward(self, levels: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        together = torch.cat(boxes)
        centre, size = (together[:, :2] + together[:, 2:]) / 2, together[:, 2:] - together[:, :2]
        upright = torch.cat([centre, size, torch.zeros_like(size[:, :1])], dim=1)
        counts = torch.tensor([len(own) for own in boxes], device=together.device)
        image = torch.arange(len(boxes), device=together.device).repeat_interleave(counts, output_size=len(together))
        maps = list(levels.values())[: len(self.strides)]
        return rotated_roi_align(maps, self.strides, upright, image, SIDE, levels_R=levels_of(upright, self.strides))


def _detached(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: losses[name].detach() for name in LOSSES}
