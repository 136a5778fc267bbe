"""MoCo v2: tell a view's own image from those in a queue of earlier ones (Chen et al. 2020; METHODS.md, section 5).

Keys come from a momentum encoder. With several processes on CUDA batch norm takes the statistics of the global batch,
so a query and its key share no small group by which they could know each other; that is what the paper shuffles for.
On CPUs (gloo) every process has its own statistics and does not shuffle.

Legend: q query, k key, Q places in the queue, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from terrasieve import keyed
from terrasieve.batch import Batch, Output
from terrasieve.methods.gather import gather_rows
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


class MoCoSettings(SiameseSettings):
    """MoCo v2's choices; the defaults are GeoRank's, the paper's in brackets.

    Attributes:
        widths: hidden layer and output of the head.
        temperature: of the similarities (.2).
        queue: keys kept (65536).
        momentum: of the momentum encoder at the start; it ends at 1 (.999 throughout).
    """

    name: Literal["moco"] = "moco"
    widths: tuple[int, int] = (2048, 128)
    temperature: float = Field(default=0.04, gt=0)
    queue: int = Field(default=4096, gt=0)
    momentum: float = Field(default=0.996, ge=0, le=1)


class MoCo(nn.Module):
    """Momentum contrast of two views."""

    views = 1
    lr_scale = 1.0
    queue: Tensor
    place: Tensor

    def __init__(self, settings: MoCoSettings, encoder: Backbone, seed: int = 0) -> None:
        super().__init__()
        check_side(encoder, "view_px", settings.view_px)
        self.settings, self.encoder = settings, encoder
        self.head = head((encoder.width, *settings.widths), seed, "moco", norm=False)
        self.target = Target(encoder, self.head)
        draw = keyed.generator(seed, "weights/moco/queue")
        keys = torch.randn(settings.queue, settings.widths[1], generator=draw, device="cpu")
        self.register_buffer("queue", normalize(keys, dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self._keys: list[Tensor] = []
        self._progress = 0.0

    def forward(self, batch: Batch, generator: torch.Generator, *, picture: bool = False) -> Output:
        """Compute the loss: cross-entropy of the key among the queue."""
        first, second = two_views(batch, generator, self.settings)
        q_BD = normalize(float_of(self.head, self.encoder.features(first)), dim=1)
        k_BD = normalize(self.target(second), dim=1)
        if self.training:
            self._keys.append(k_BD)
            self._progress = batch.progress
        with torch.autocast(q_BD.device.type, enabled=False):
            own_B1 = (q_BD * k_BD).sum(dim=1, keepdim=True)
            logits = torch.cat([own_B1, q_BD @ self.queue.T], dim=1) / self.settings.temperature
        loss = cross_entropy(logits, torch.zeros(len(batch), dtype=torch.int64, device=logits.device))
        return finish(loss, q_BD, batch, (first, second), picture)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Let the momentum encoder follow, and put all processes' keys over the oldest, in the order of ranks."""
        self.target.follow(self.encoder, self.head, momentum_at(self._progress, self.settings.momentum))
        Q = len(self.queue)
        keys_ND = gather_rows(torch.cat(self._keys))[-Q:]
        self._keys.clear()
        places_N = (self.place + torch.arange(len(keys_ND), device=keys_ND.device)) % Q
        finite_N1 = keys_ND.isfinite().all(dim=1, keepdim=True)
        self.queue[places_N] = torch.where(finite_N1, keys_ND, self.queue[places_N])
        self.place.add_(len(keys_ND)).remainder_(Q)
