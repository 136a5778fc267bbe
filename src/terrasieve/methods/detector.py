"""Detector: what the detectors share, from a batch to the maps that their heads read, and their settings.

Before ``faster_rcnn``, which adds a region proposal network and a head. As in the other supervised methods, redundant
patches may be dropped before the encoder and filled in after it (METHODS.md, section 7).
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from terrasieve import keyed
from terrasieve.batch import Batch
from terrasieve.boxes.overlap import covered
from terrasieve.errors import UserError
from terrasieve.methods.dropping import Dropping, DropSettings, kept_flags, kept_share
from terrasieve.methods.reconstruction import draw_noise
from terrasieve.nn.encoder import Encoder
from terrasieve.nn.fill import Fill
from terrasieve.nn.patches import patchify
from terrasieve.nn.pyramid import ALLOWED_SCALES, SCALES
from terrasieve.nn.simple_pyramid import SimplePyramid
from terrasieve.section import Section
from terrasieve.sieve.ragged import Ragged

OUTPUT_STD = 0.01  # of the weights that make scores and boxes, so that training begins with anchors as they are
LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")
PICTURED_SCORE = 0.3  # detections with less are not drawn


class DetectorSettings(Section):
    """A detector's choices; ``terrasieve adapt`` fills in what the task says.

    Attributes:
        drop: which patches are left out, and when. ``none`` makes it a plain detector.
        fill: of the dropped places, see ``rupernet``.
        scales: how much finer than the grid of patches each level is; each is half of the one before.
        width: channels of the pyramid.
        anchor_cells: side of a square anchor, in cells of its level.
        ratios: height / width of the anchors.
        proposals: that the head looks at per image.
        sampled: anchors and proposals of an image that the two stages learn from.
        hidden: width of the head's two layers.
        most: detections of an image.
        least_score: detections with less are left out.
        overlap: a detection that overlaps a better one of its class by more is left out.
        ignored: an anchor or proposal that a difficult object covers by this share of its own area or more is not
            learnt from, neither as an object nor as background.
        classes: C, filled in from the task.
        class_weights: not for detectors.
    """

    drop: DropSettings = DropSettings()
    fill: Fill = "learned"
    scales: tuple[float, ...] = SCALES
    width: int = Field(default=256, gt=0, multiple_of=16)
    anchor_cells: float = Field(default=8.0, gt=0)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    proposals: int = Field(default=1000, ge=1)
    sampled: tuple[int, int] = (256, 512)
    hidden: int = Field(default=1024, ge=1)
    most: int = Field(default=100, ge=1)
    least_score: float = Field(default=0.05, ge=0, lt=1)
    overlap: float = Field(default=0.5, gt=0, lt=1)
    ignored: float = Field(default=0.5, gt=0, le=1)
    classes: int = Field(default=0, ge=0)
    class_weights: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        halves = all(a == 2 * b for a, b in zip(self.scales, self.scales[1:], strict=False))
        if not self.scales or not halves or not set(self.scales) <= set(ALLOWED_SCALES):
            allowed = ", ".join(f"{scale:g}" for scale in ALLOWED_SCALES)
            raise ValueError(f"scales {self.scales}: give some of {allowed}, each half of the one before")
        if self.fill == "learned" and self.drop.policy != "none" and self.drop.when == "inference":
            raise ValueError("fill learned: nothing is dropped in training, so nothing would be learnt; choose another")
        if self.class_weights is not None:
            raise ValueError("class_weights: detectors do not weight classes; leave class_weights=none")
        return self


class Trunk(nn.Module):
    """Drop redundant patches, encode the rest, fill, and make the pyramid.

    Attributes:
        size_px: height and width of the images.
        cells: number of cells of each level, the last one twice as coarse as the pyramid's last.
    """

    def __init__(self, settings: DetectorSettings, encoder: Encoder, seed: int) -> None:
        super().__init__()
        if settings.classes < 1:
            raise UserError("method.classes: 0; a detector needs at least one class of objects.")
        self.fill = settings.fill
        self.encoder = encoder
        self.dropping = Dropping(settings.drop, encoder.patches)
        self.pyramid = SimplePyramid(encoder, settings.width, settings.scales, settings.fill, seed)
        if settings.drop.policy == "none":
            self.pyramid.tokens.filler.requires_grad_(False)  # it never takes part, which DDP would wait for
        self.size_px = (encoder.grid[0] * encoder.patch_px, encoder.grid[1] * encoder.patch_px)

    @property
    def strides(self) -> tuple[float, ...]:
        """Pixels per cell of each map."""
        return self.pyramid.strides

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
        """Make maps of normalised images.

        Returns:
            (B, width, h, w) float32 per level, finest first; ``kept_share``, () ; what a picture needs.
        """
        encoder = self.encoder
        patches_BNP = patchify(batch.image, encoder.patch_px)
        kept: Tensor | Ragged | None = self.dropping(encoder, batch, patches_BNP, generator)
        path_noise_BE = None
        if self.training and encoder.drop_path:
            path_noise_BE = draw_noise(batch, generator, 2 * len(encoder.vit.blocks))
        encoded = encoder.encode_kept(patches_BNP, kept, path_noise_BE=path_noise_BE)
        content_BND = None
        if self.fill == "copy" and kept is not None:
            with torch.no_grad():
                content_BND = encoder.embed(patches_BNP, position=False)
        maps = [map_.float() for map_ in self.pyramid(encoded.tokens, kept, content_BND)]
        painted = {"patches": patches_BNP, "kept": kept_flags(kept, patches_BNP)}
        return maps, kept_share(kept, patches_BNP), painted


class Detector(nn.Module):
    """What a detector is to the loop; a subclass adds its stages, ``forward``, and ``_found``, from maps to objects."""

    views = 1
    lr_scale = 1.0

    def __init__(self, settings: DetectorSettings, encoder: Encoder, seed: int) -> None:
        """Build the way to the maps around an encoder, its weights drawn from ``seed``.

        Raises:
            UserError: if there is no class.
        """
        super().__init__()
        self.trunk = Trunk(settings, encoder, seed)

    @property
    def encoder(self) -> Encoder:
        """The backbone that is trained and exported."""
        return self.trunk.encoder

    def predict(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Find objects in normalised images: (B, most, 6 or 7) float32, best first.

        A row is a box in pixels (left, top, right, bottom, or an oriented one), score, class; class -1 where there are
        fewer.
        """
        maps, _, _ = self.trunk(batch, generator)
        return self._found(maps)

    def after_step(self, step: int) -> None:
        """Do nothing: what dropping remembers, it updates as it drops."""

    def _found(self, maps: list[Tensor]) -> Tensor:
        raise NotImplementedError


def learnt(batch: Batch) -> tuple[Tensor, Tensor]:
    """Tell which objects a detector learns to find, and which are difficult: (B, M) bool each."""
    assert batch.object_classes is not None, "a detector learns from boxes"
    there = batch.object_classes >= 0
    difficult = torch.zeros_like(there) if batch.object_difficult is None else there & batch.object_difficult
    return there & ~difficult, difficult


def without_covered(labels_A: Tensor, boxes: Tensor, difficult: Tensor, share: float) -> Tensor:
    """Make candidates -1, neither positive nor negative, of whose own area a difficult object covers a share."""
    return torch.where(covered(boxes, difficult) >= share, -1, labels_A)


def padded(rows: list[Tensor], count: int, width: int) -> Tensor:
    """Lay detections side by side, (B, count, width); what is missing has class -1."""
    out = torch.full((len(rows), count, width), -1.0, device=rows[0].device)
    for image, own in enumerate(rows):
        out[image, : len(own)] = own
    return out


def shown(found_BKF: Tensor) -> Tensor:
    """Return the classes of detections (..., box, score, class), -1 of those too unlikely to be drawn: (B, K) int64."""
    return torch.where(found_BKF[..., -2] >= PICTURED_SCORE, found_BKF[..., -1], -1.0).long()


def anchors_of(settings: DetectorSettings, strides: tuple[float, ...]) -> AnchorGenerator:
    """Make the anchors of a pyramid and of one coarser level."""
    levels = (*strides, 2 * strides[-1])
    return AnchorGenerator(
        tuple((settings.anchor_cells * stride,) for stride in levels), (settings.ratios,) * len(levels)
    )


def images_of(count: int, like: Tensor, size_px: tuple[int, int]) -> ImageList:
    """Return what torchvision looks at of images: their size."""
    return ImageList(like.new_empty(1).expand(count, 1, *size_px), [size_px] * count)


def narrowed(layer: nn.Module, seed: int, std: float) -> None:
    """Draw a layer's weights anew, normal with a small standard deviation, and set its biases to 0."""
    for name, parameter in layer.named_parameters():
        if parameter.is_meta:
            continue
        shape = "x".join(map(str, parameter.shape))
        with torch.no_grad():
            if name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(std=std, generator=keyed.generator(seed, f"weights/outputs/{name}/{shape}"))
