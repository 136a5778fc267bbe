"""Oriented R-CNN on a plain ViT: objects by boxes that are turned as they are.

Faster R-CNN, of which the first stage proposes oriented boxes by six numbers instead of four, and the second reads the
maps along them. Source: Xie et al., "Oriented R-CNN for Object Detection", ICCV 2021. Deviations: the pyramid is that
of a plain ViT (Li et al., ECCV 2022); anchors and samples are ``faster_rcnn``'s, and so is what is said there of the
loss.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator

from terrasieve.batch import Batch, Output
from terrasieve.boxes.oriented import corners, from_polygons
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
)
from terrasieve.methods.oriented_stages import OrientedHead, OrientedProposals, Truths
from terrasieve.methods.reconstruction import draw_noise
from terrasieve.nn.encoder import Encoder, initialise


class OrientedRCNNSettings(DetectorSettings):
    """Oriented R-CNN's choices, see ``DetectorSettings``; oriented boxes of neighbours overlap little."""

    name: Literal["oriented_rcnn"] = "oriented_rcnn"
    overlap: float = Field(default=0.1, gt=0, lt=1)


class OrientedRCNN(Detector):
    """Find objects by oriented boxes."""

    def __init__(self, settings: OrientedRCNNSettings, encoder: Encoder, seed: int = 0) -> None:
        """Build pyramid and stages around an encoder, their weights drawn from ``seed``.

        Raises:
            UserError: if there is no class.
        """
        super().__init__(settings, encoder, seed)
        self.settings = settings
        self.anchors: AnchorGenerator = anchors_of(settings, self.trunk.strides)
        self.rpn = OrientedProposals(
            settings.width, len(settings.ratios), settings.sampled[0], settings.proposals, settings.ignored
        )
        self.roi = OrientedHead(
            settings.width, settings.hidden, settings.classes, settings.sampled[1], self.trunk.strides, settings.ignored
        )
        initialise(self.rpn, seed, "rpn")
        initialise(self.roi, seed, "roi")
        for layer in (self.rpn.score, self.rpn.place, self.roi.classify, self.roi.correct):
            narrowed(layer, seed, OUTPUT_STD)

    def forward(self, batch: Batch, generator: torch.Generator, *, picture: bool = False) -> Output:
        """Compute the loss, the sum of the four; for a picture, in evaluation mode, what is found instead."""
        maps, share, painted = self.trunk(batch, generator)
        metrics = {"kept_share": share}
        if picture:
            found_BKF = self._found(maps)
            painted |= {"found": corners(found_BKF[..., :5]), "found_classes": shown(found_BKF)}
            if batch.objects is not None:
                painted |= {"objects": batch.objects, "objects_classes": batch.object_classes}
            return Output(maps[0].new_zeros(()), metrics, painted)
        assert batch.objects is not None and batch.object_classes is not None, "Oriented R-CNN learns from boxes"
        truth = [
            Truths(from_polygons(polygons[sure]), numbers[sure], from_polygons(polygons[difficult]))
            for polygons, numbers, sure, difficult in zip(
                batch.objects, batch.object_classes, *learnt(batch), strict=True
            )
        ]
        levels, anchors_A4 = self._levels(maps)
        self.rpn.sampler.noise_BA = draw_noise(batch, generator, len(anchors_A4))
        self.roi.sampler.noise_BA = draw_noise(batch, generator, self.settings.proposals + batch.objects.shape[1])
        with torch.autocast(maps[0].device.type, enabled=False):
            proposals, parts = self.rpn(levels, anchors_A4, truth)
            parts |= self.roi.losses(maps, proposals, truth)
        loss = sum((parts[name] for name in LOSSES), maps[0].new_zeros(()))
        return Output(loss, metrics | {name: parts[name].detach() for name in LOSSES})

    def _found(self, maps: list[Tensor]) -> Tensor:
        settings = self.settings
        levels, anchors_A4 = self._levels(maps)
        with torch.autocast(maps[0].device.type, enabled=False):
            proposals, _ = self.rpn(levels, anchors_A4, None)
            rows = self.roi.found(maps, proposals, settings.least_score, settings.overlap, settings.most)
        return padded(rows, settings.most, 7)

    def _levels(self, maps: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return the maps and a coarser one, and the anchors on all of them: (A, 4)."""
        levels = [*maps, nn.functional.max_pool2d(maps[-1], 1, 2)]
        anchors: Tensor = self.anchors(images_of(1, maps[0], self.trunk.size_px), levels)[0]
        return levels, anchors
