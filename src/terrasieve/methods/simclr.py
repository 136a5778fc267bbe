"""SimCLR: tell the other view of an image from all other views of the batch (Chen et al., ICML 2020).

METHODS.md, section 5. With several processes the others are those of the global batch, with gradients to all of them.
The loss is not lightly's, which indexes by a mask and so makes the host wait; it is tested against it.

Legend: B images here, N images of all processes, two views each.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from terrasieve.batch import Batch, Output
from terrasieve.methods.gather import gather_rows, process
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
        views = two_views(batch, generator, self.settings)
        # One pass for both: batch norm sees the two views together, as the paper has it.
        first, second = float_of(self.head, self.encoder.features(torch.cat(views))).chunk(2)
        loss = nt_xent(first, second, self.settings.temperature)
        return finish(loss, first, batch, views, picture)

    def after_step(self, step: int) -> None:
        """Do nothing: SimCLR has no state beside its weights."""


def nt_xent(first_BD: Tensor, second_BD: Tensor, temperature: float) -> Tensor:
    """Return the normalised temperature-scaled cross-entropy of each local view's other one among all other views."""
    views = [normalize(view_BD, dim=1) for view_BD in (first_BD, second_BD)]
    others = [gather_rows(view_BD) for view_BD in views]
    B, N = len(first_BD), len(others[0])
    place_B = torch.arange(B, device=first_BD.device) + process() * B
    itself, other = torch.cat([place_B, place_B + N]), torch.cat([place_B + N, place_B])
    with torch.autocast(first_BD.device.type, enabled=False):
        similar = torch.cat(views) @ torch.cat(others).T / temperature
        return cross_entropy(similar.scatter(1, itself[:, None], -torch.inf), other)
