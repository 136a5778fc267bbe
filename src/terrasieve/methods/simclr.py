"""SimCLR: tell the other view of an image from all other views of the batch (Chen et al., ICML 2020).

METHODS.md, section 5. The loss is lightly's; with several processes the others are those of the global batch, with
gradients to all of them.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from terrasieve.batch import Batch, Output
from terrasieve.methods.gather import processes
from terrasieve.methods.siamese import Backbone, SiameseSettings, check_side, finish, float_of, head, two_views


class SimCLRSettings(SiameseSettings):
    """SimCLR's choices.

    Attributes:
        widths: hidden layer and output of the head.
        temperature: of the similarities.
    """

    name: Literal["simclr"] = "simclr"
    widths: tuple[int, int] = (2048, 2048)
    temperature: float = Field(default=0.5, gt=0)


class SimCLR(nn.Module):
    """Contrast of two views within the batch."""

    views = 1
    lr_scale = 1.0

    def __init__(self, settings: SimCLRSettings, encoder: Backbone, seed: int = 0) -> None:
        super().__init__()
        check_side(encoder, "view_px", settings.view_px)
        self.settings, self.encoder = settings, encoder
        self.head = head((encoder.width, *settings.widths), seed, "simclr", last_norm=True)

    def forward(self, batch: Batch, generator: torch.Generator, *, picture: bool = False) -> Output:
        """Compute the loss: normalised temperature-scaled cross-entropy over the global batch."""
        from lightly.loss import NTXentLoss

        views = two_views(batch, generator, self.settings)
        # One pass for both: batch norm sees the two views together, as the paper has it.
        first, second = float_of(self.head, self.encoder.features(torch.cat(views))).chunk(2)
        with torch.autocast(first.device.type, enabled=False):
            loss = NTXentLoss(self.settings.temperature, gather_distributed=processes() > 1)(first, second)
        return finish(loss, first, batch, views, picture)

    def after_step(self, step: int) -> None:
        """Do nothing: SimCLR has no state beside its weights."""
