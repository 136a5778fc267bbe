"""SimSiam: predict the other view's projection, which takes no gradient (Chen & He, CVPR 2021; METHODS.md, section 5).

Neither negatives nor a momentum encoder: the stop-gradient alone keeps it from collapsing.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from terrasieve.batch import Batch, Output
from terrasieve.methods.byol import apart
from terrasieve.methods.siamese import Backbone, SiameseSettings, check_side, finish, float_of, head, two_views


class SimSiamSettings(SiameseSettings):
    """SimSiam's choices.

    Attributes:
        widths: hidden layers and output of the head.
        predictor: hidden layer of the predictor, whose output is as wide as the head's.
        stop_gradient: False lets it collapse: the paper's ablation.
    """

    name: Literal["simsiam"] = "simsiam"
    widths: tuple[int, int, int] = (512, 512, 128)
    predictor: int = Field(default=64, gt=0)
    stop_gradient: bool = True


class SimSiam(nn.Module):
    """Prediction of the other view, both ways."""

    views = 1
    lr_scale = 1.0

    def __init__(self, settings: SimSiamSettings, encoder: Backbone, seed: int = 0) -> None:
        super().__init__()
        check_side(encoder, "view_px", settings.view_px)
        self.settings, self.encoder = settings, encoder
        out = settings.widths[-1]
        self.head = head((encoder.width, *settings.widths), seed, "simsiam", last_norm=True)
        self.predictor = head((out, settings.predictor, out), seed, "simsiam/predictor")

    def forward(self, batch: Batch, generator: torch.Generator, *, picture: bool = False) -> Output:
        """Compute the loss: the mean of both directions' negative cosine, -1 to 1."""
        views = two_views(batch, generator, self.settings)
        projected = [float_of(self.head, self.encoder.features(view)) for view in views]
        predicted = [float_of(self.predictor, z_BD) for z_BD in projected]
        aims = [z_BD.detach() if self.settings.stop_gradient else z_BD for z_BD in projected]
        loss = (apart(predicted[0], aims[1]) + apart(predicted[1], aims[0])) / 2
        return finish(loss, projected[0], batch, views, picture)

    def after_step(self, step: int) -> None:
        """Do nothing: SimSiam has no state beside its weights."""
