"""RUPerNet: UPerNet over a plain ViT that encodes only the patches that are not redundant.

Patches are scored and dropped, the rest encoded, and the places of the dropped ones filled in before the pyramid; with
nothing dropped it is UPerNet. Source: Papazafeiropoulos et al. 2026, "Hide and Seek"; METHODS.md, section 7.
"""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from terrasieve.batch import IGNORED, Batch, Output
from terrasieve.errors import UserError
from terrasieve.methods.dropping import Classifier, DropSettings, kept_flags, kept_share
from terrasieve.nn.encoder import Encoder, initialise
from terrasieve.nn.fill import Fill
from terrasieve.nn.heads import UPerNet
from terrasieve.nn.pyramid import ALLOWED_SCALES, SCALES, TokenPyramid
from terrasieve.section import Section
from terrasieve.sieve.ragged import Ragged


class RUPerNetSettings(Section):
    """RUPerNet's choices; ``terrasieve adapt`` fills in what the task says.

    Attributes:
        drop: which patches are left out, and when. ``none`` makes it a plain UPerNet.
        fill: of the dropped places: a ``learned`` token, ``zeros``, ``bilinear`` from the kept ones around, or a
            ``copy`` of the most similar kept one.
        taps: blocks, counted from 0, of which the pyramid is made, finest level first; the last one is the encoder's
            last. None = four at even distances.
        scales: how much finer than the grid of patches each level is.
        width: channels of the pyramid and of the head, which is most of their cost.
        classes: C, filled in from the task.
        class_weights: factor on the loss of each class's pixels, filled in when they are to be balanced.
    """

    name: Literal["rupernet"] = "rupernet"
    drop: DropSettings = DropSettings()
    fill: Fill = "learned"
    taps: tuple[int, ...] | None = None
    scales: tuple[float, ...] = SCALES
    width: int = Field(default=256, gt=0, multiple_of=16)
    classes: int = Field(default=0, ge=0, le=IGNORED)
    class_weights: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        falling = all(a > b for a, b in zip(self.scales, self.scales[1:], strict=False))
        if len(self.scales) < 2 or not falling or not set(self.scales) <= set(ALLOWED_SCALES):
            allowed = ", ".join(f"{scale:g}" for scale in ALLOWED_SCALES)
            raise ValueError(f"scales {self.scales}: give at least two of {allowed}, the finest first")
        if self.taps is not None and len(self.taps) != len(self.scales):
            raise ValueError(f"taps {self.taps}: give {len(self.scales)}, one for each of the scales")
        if self.fill == "learned" and self.drop.policy != "none" and self.drop.when == "inference":
            raise ValueError("fill learned: nothing is dropped in training, so nothing would be learnt; choose another")
        if self.class_weights is not None and self.classes and len(self.class_weights) != self.classes:
            raise ValueError(f"class_weights: {len(self.class_weights)} weights for {self.classes} classes")
        return self


class RUPerNet(Classifier):
    """Drop redundant patches, encode the rest, fill, and classify every pixel."""

    def __init__(self, settings: RUPerNetSettings, encoder: Encoder, seed: int = 0) -> None:
        """Build pyramid and head around an encoder, their weights drawn from ``seed``.

        Raises:
            UserError: if there are less than two classes, or a tap that the encoder lacks.
        """
        if settings.classes < 2:
            raise UserError(f"method.classes: {settings.classes}; a segmentation tells at least 2 classes apart.")
        super().__init__(encoder, settings.drop, settings.classes, settings.class_weights)
        self.settings = settings
        self.taps = _taps(settings, len(encoder.vit.blocks))
        self.pyramid = TokenPyramid(encoder.width, settings.width, encoder.grid, settings.scales, settings.fill)
        self.head = UPerNet(settings.width, len(settings.scales), settings.classes)
        initialise(self.pyramid, seed, "pyramid")
        if settings.drop.policy == "none":
            self.pyramid.filler.requires_grad_(False)  # it never takes part, which DDP would wait for
        initialise(self.head, seed, "head")

    def logits(self, patches_BNP: Tensor, kept: Tensor | Ragged | None, path_noise_BE: Tensor | None = None) -> Tensor:
        """Encode the kept patches and classify every pixel: (B, C, H, W) float32."""
        encoder = self.encoder
        encoded = encoder.encode_kept(patches_BNP, kept, self.taps[:-1], path_noise_BE)
        content_BND = None
        if self.settings.fill == "copy" and kept is not None:
            with torch.no_grad():
                content_BND = encoder.embed(patches_BNP, position=False)
        maps = self.pyramid([*encoded.taps, encoded.tokens], kept, content_BND)
        size_px = (encoder.grid[0] * encoder.patch_px, encoder.grid[1] * encoder.patch_px)
        logits: Tensor = self.head(maps, size_px)
        return logits.float()

    def forward(self, batch: Batch, generator: torch.Generator, *, picture: bool = False) -> Output:
        """Compute the loss: cross-entropy of the pixels that have a class and data."""
        assert batch.mask is not None, "RUPerNet learns from masks"
        patches_BNP, kept, logits = self.classified(batch, generator)
        mask = batch.mask if batch.valid is None else batch.mask.masked_fill(~batch.valid, IGNORED)
        painted = {}
        if picture:
            painted = {"patches": patches_BNP, "kept": kept_flags(kept, patches_BNP), "mask": batch.mask}
            painted["predicted_mask"] = logits.detach().argmax(dim=1)
        return Output(self.loss(logits, mask), {"kept_share": kept_share(kept, patches_BNP)}, painted)

    def loss(self, logits_BCHW: Tensor, mask_BHW: Tensor) -> Tensor:
        """Return the class-weighted cross-entropy, () float32: the mean over all pixels, to which ignored ones add 0.

        Not the mean over the scored pixels: this one adds up over micro-batches and processes to the whole batch's,
        and a batch without any scored pixel gives 0.
        """
        losses = F.cross_entropy(logits_BCHW, mask_BHW, self.weights_C, ignore_index=IGNORED, reduction="sum")
        return losses / mask_BHW.numel()


def _taps(settings: RUPerNetSettings, depth: int) -> tuple[int, ...]:
    """Return the blocks to tap; a shallow encoder is tapped twice at the same one."""
    levels = len(settings.scales)
    taps = settings.taps or tuple(math.ceil((level + 1) * depth / levels) - 1 for level in range(levels))
    if taps[-1] != depth - 1 or not all(0 <= tap < depth for tap in taps):
        raise UserError(
            f"method.taps: {taps} of an encoder whose blocks are 0 to {depth - 1}; end with {depth - 1}, since blocks "
            "after the last tap would be computed for nothing, or shorten it by encoder.depth."
        )
    return taps
