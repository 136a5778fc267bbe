"""Siamese: what the contrastive methods share, from views and heads to the momentum encoder.

Heads are lightly's; what changes from step to step beside the trained weights (momentum encoder, queue, centre) is
kept in parameters and buffers and moves in ``after_step`` alone, so that a picture or a validation leaves it as it was,
checkpoints hold it, and no batch that is not finite gets into it. Source: METHODS.md, section 5.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from terrasieve.batch import Batch, Output
from terrasieve.data.pairs import KINDS, Kind
from terrasieve.errors import UserError
from terrasieve.methods.collapse import monitors
from terrasieve.methods.views import Views, ViewSettings, draw_views
from terrasieve.nn.convolution import ConvEncoder
from terrasieve.nn.encoder import Encoder, initialise
from terrasieve.section import Section

Backbone = Encoder | ConvEncoder
_DATES: tuple[Kind, Kind] = ("same_place", "alone")


class SiameseSettings(Section):
    """What every contrastive method has.

    Attributes:
        views: how views differ: ``geometric``, ``standard``, or switch by switch (see ``methods.views``).
        view_px: side of a view; None = the shorter side of the batch's images.
        views_from: what two views are cut from: same_image, or same_place, two dates of one place as the manifest's
            footprints and times tell (``pairs.same_iou``, ``pairs.min_days``). An image without another date gives
            two views of itself; ``share_alone`` in the log counts them.
    """

    views: Views = ViewSettings()
    view_px: int | None = Field(default=None, gt=0)
    views_from: Literal["same_image", "same_place"] = "same_image"


def two_views(batch: Batch, generator: torch.Generator, settings: SiameseSettings) -> tuple[Tensor, Tensor]:
    """Draw two views of every image, or of an image and its other date, each (B, C, side, side)."""
    first, second = draw_views(batch, generator, settings.views, side_of(batch, settings.view_px), 2)
    return first, second


def side_of(batch: Batch, side_px: int | None) -> int:
    """Return a view's side in pixels: as asked, or the shorter one of the images."""
    return side_px or min(batch.image.shape[-2:])


def check_side(encoder: Backbone, key: str, side_px: int | None) -> None:
    """Refuse views that a ViT cannot cut into patches.

    Raises:
        UserError: naming the key.
    """
    if side_px and isinstance(encoder, Encoder) and side_px % encoder.patch_px:
        raise UserError(
            f"method.{key}: a patch of {encoder.patch_px} px does not divide a view of {side_px} px; use a multiple."
        )


def head(widths: Sequence[int], seed: int, name: str, *, norm: bool = True, last_norm: bool = False) -> nn.Module:
    """Build lightly's projection head: linear layers with ReLU between them, weights drawn from ``seed``.

    Args:
        widths: of the input, the hidden layers and the output.
        seed: of the initial weights.
        name: of the stream that they are drawn from.
        norm: batch norm before every ReLU.
        last_norm: batch norm after the last layer, without scale and shift.
    """
    from lightly.models.modules.heads import ProjectionHead

    blocks: list[tuple[int, int, nn.Module | None, nn.Module | None]] = [
        (before, after, nn.BatchNorm1d(after) if norm else None, nn.ReLU(inplace=True))
        for before, after in pairwise(widths[:-1])
    ]
    blocks.append((widths[-2], widths[-1], nn.BatchNorm1d(widths[-1], affine=False) if last_norm else None, None))
    built = cast(nn.Module, ProjectionHead(blocks))
    initialise(built, seed, name)
    return built


def float_of(head: nn.Module, features_BD: Tensor) -> Tensor:
    """Apply a head and leave the run's precision: losses are computed in float32."""
    return cast(Tensor, head(features_BD)).float()


class Target(nn.Module):
    """A momentum encoder: a copy of backbone and head that follows them and is never trained itself."""

    def __init__(self, encoder: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = copy.deepcopy(encoder), copy.deepcopy(head)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, view_BCHW: Tensor) -> Tensor:
        """Project views without a gradient; batch norm sees this batch's statistics, as in training."""
        return float_of(self.head, self.encoder.features(view_BCHW))

    @torch.no_grad()
    def follow(self, encoder: Backbone, head: nn.Module, momentum: float) -> None:
        """Move every weight towards what it is a copy of: momentum x own + (1 - momentum) x theirs."""
        own: list[Tensor] = [*self.parameters()]
        theirs: list[Tensor] = [*encoder.parameters(), *head.parameters()]
        torch._foreach_lerp_(own, theirs, 1 - momentum)


def momentum_at(progress: float, start: float) -> float:
    """Return the momentum: a cosine from ``start`` to 1 over the whole run, whatever its epochs.

    Args:
        progress: fraction of training done, 0 to 1.
        start: at the beginning.
    """
    return 1 - (1 - start) * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2


def finish(loss: Tensor, embeddings_BD: Tensor, batch: Batch, views: Sequence[Tensor], picture: bool) -> Output:
    """Put a contrastive method's output together, with the numbers that tell of collapse and of other dates."""
    dates = {"image": batch.image, **({} if batch.neighbours is None else {"other": batch.neighbours[:, 0]})}
    shown = {**dates, **{f"view{n}": view for n, view in enumerate(views, 1)}} if picture else {}
    metrics = monitors(embeddings_BD)
    if batch.kinds is not None:
        metrics |= {f"share_{kind}": (batch.kinds == KINDS.index(kind)).float().mean() for kind in _DATES}
    return Output(loss, metrics, shown, embeddings_BD)
