"""BYOL: predict what a momentum encoder makes of the other view (Grill et al., NeurIPS 2020; METHODS.md, section 5).

No negatives; the loss is lightly's negative cosine. Source: as above.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from terrasieve.batch import Batch, Output
from terrasieve.methods.siamese import (
    Backbone,
    SiameseSettings,
    Target,
    check_side,
    finish,
    float_of,
    head,
    momentum_at,
    two_views,
)


class BYOLSettings(SiameseSettings):
    """BYOL's choices.

    Attributes:
        widths: hidden layer and output of the head.
        predictor: hidden layer of the predictor, whose output is as wide as the head's.
        momentum: of the momentum encoder at the start; it ends at 1.
    """

    name: Literal["byol"] = "byol"
    widths: tuple[int, int] = (1024, 256)
    predictor: int = Field(default=1024, gt=0)
    momentum: float = Field(default=0.996, ge=0, le=1)


class BYOL(nn.Module):
    """Prediction of a momentum encoder's view, both ways."""

    views = 1
    lr_scale = 1.0

    def __init__(self, settings: BYOLSettings, encoder: Backbone, seed: int = 0) -> None:
        super().__init__()
        check_side(encoder, "view_px", settings.view_px)
        self.settings, self.encoder = settings, encoder
        out = settings.widths[1]
        self.head = head((encoder.width, *settings.widths), seed, "byol")
        self.predictor = head((out, settings.predictor, out), seed, "byol/predictor")
        self.target = Target(encoder, self.head)
        self._progress = 0.0

    def forward(self, batch: Batch, generator: torch.Generator, *, picture: bool = False) -> Output:
        """Compute the loss: the mean of both directions' negative cosine, -1 to 1."""
        views = two_views(batch, generator, self.settings)
        projected = [float_of(self.head, self.encoder.features(view)) for view in views]
        predicted = [float_of(self.predictor, z_BD) for z_BD in projected]
        aims = [self.target(view) for view in views]
        if self.training:
            self._progress = batch.progress
        loss = (apart(predicted[0], aims[1]) + apart(predicted[1], aims[0])) / 2
        return finish(loss, projected[0], batch, views, picture)

    def after_step(self, step: int) -> None:
        """Let the momentum encoder follow."""
        self.target.follow(self.encoder, self.head, momentum_at(self._progress, self.settings.momentum))


def apart(predicted_BD: Tensor, aim_BD: Tensor) -> Tensor:
    """Return the negative cosine of predictions and aims, in float32."""
    from lightly.loss import NegativeCosineSimilarity

    with torch.autocast(predicted_BD.device.type, enabled=False):
        loss: Tensor = NegativeCosineSimilarity()(predicted_BD, aim_BD)
        return loss
