"""DINO: a student sees parts, a teacher the whole, and both should say the same (Caron et al., ICCV 2021).

METHODS.md, section 5. The teacher is a momentum encoder whose outputs are centred and sharpened. Each image gives two
global views to both and some local ones, smaller and nearer, to the student alone. With ``views_from: same_place`` the
two global views are of two dates, and the local ones of both in turn.

Legend: K prototypes, V views of the student, the first two also of the teacher.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

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
    side_of,
    two_views,
)
from terrasieve.methods.views import draw_views
from terrasieve.nn.encoder import initialise


class DINOSettings(SiameseSettings):
    """DINO's choices.

    Attributes:
        widths: hidden layers and bottleneck of the head.
        prototypes: outputs of the head.
        local_views: views that only the student sees.
        local_px: their side; None = half of a global view's, for a ViT a multiple of the patch.
        local_scale: smallest and largest share of the image's area in them.
        student_temperature: of the student's outputs.
        teacher_temperature: of the teacher's outputs, at the start and from the end of the warm-up on.
        teacher_warmup: share of the run over which it goes linearly from one to the other.
        centre_momentum: of the mean of the teacher's outputs.
        momentum: of the teacher's weights at the start; it ends at 1.
    """

    name: Literal["dino"] = "dino"
    widths: tuple[int, int, int] = (512, 512, 64)
    prototypes: int = Field(default=2048, gt=1)
    local_views: int = Field(default=4, ge=0)
    local_px: int | None = Field(default=None, gt=0)
    local_scale: tuple[float, float] = (0.05, 0.4)
    student_temperature: float = Field(default=0.1, gt=0)
    teacher_temperature: tuple[float, float] = (0.04, 0.04)
    teacher_warmup: float = Field(default=0.3, ge=0, le=1)
    centre_momentum: float = Field(default=0.9, ge=0, lt=1)
    momentum: float = Field(default=0.996, ge=0, le=1)


class DINO(nn.Module):
    """Self-distillation without labels."""

    views = 1
    lr_scale = 1.0
    centre: Tensor

    def __init__(self, settings: DINOSettings, encoder: Backbone, seed: int = 0) -> None:
        super().__init__()
        check_side(encoder, "view_px", settings.view_px)
        check_side(encoder, "local_px", settings.local_px)
        self.settings, self.encoder = settings, encoder
        self.head = PrototypeHead((encoder.width, *settings.widths), settings.prototypes, seed)
        self.target = Target(encoder, self.head)
        self.local = settings.views.model_copy(update={"crop_scale": settings.local_scale})
        self.register_buffer("centre", torch.zeros(settings.prototypes))
        self._means: list[Tensor] = []
        self._progress = 0.0

    def forward(self, batch: Batch, generator: torch.Generator, *, picture: bool = False) -> Output:
        """Compute the loss: cross-entropy of the student's views under the teacher's, pairs of one view left out."""
        whole = two_views(batch, generator, self.settings)
        parts = self._local_views(batch, generator)
        teacher_2BK = torch.stack(self.target(torch.cat(whole)).chunk(2))
        if self.training:
            self._means.append(teacher_2BK.mean(dim=(0, 1)))
            self._progress = batch.progress
        embedded_ND = [self.encoder.features(torch.cat(views)) for views in (whole, parts) if views]
        bottleneck_ND = self.head.bottleneck(torch.cat(embedded_ND))
        student_VBK = torch.stack(torch.split(self.head.compare(bottleneck_ND), len(batch)))
        temperature = teacher_temperature(batch.progress, self.settings)
        loss = distil(student_VBK, teacher_2BK, self.centre, self.settings.student_temperature, temperature)
        return finish(loss, bottleneck_ND[: len(batch)], batch, (*whole, *parts[:1]), picture)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Let the teacher follow, and its centre the mean of its outputs over all processes."""
        self.target.follow(self.encoder, self.head, momentum_at(self._progress, self.settings.momentum))
        mean_K = gather_rows(torch.stack(self._means)).mean(dim=0)
        self._means.clear()
        moved_K = self.centre.lerp(mean_K, 1 - self.settings.centre_momentum)
        self.centre.copy_(torch.where(mean_K.isfinite().all(), moved_K, self.centre))

    def _local_views(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, ...]:
        if not self.settings.local_views:
            return ()
        patch_px = getattr(self.encoder, "patch_px", 1)
        half_px = max(side_of(batch, self.settings.view_px) // 2 // patch_px, 1) * patch_px
        side_px = self.settings.local_px or half_px
        return tuple(draw_views(batch, generator, self.local, side_px, self.settings.local_views))


class PrototypeHead(nn.Module):
    """lightly's head down to a bottleneck of unit length, then the cosine to each of K prototypes."""

    def __init__(self, widths: tuple[int, ...], prototypes: int, seed: int) -> None:
        super().__init__()
        self.layers = head(widths, seed, "dino", norm=False)
        for place, layer in enumerate(cast(nn.Sequential, self.layers.layers)):
            if isinstance(layer, nn.ReLU):
                cast(nn.Sequential, self.layers.layers)[place] = nn.GELU()
        self.prototypes = nn.Linear(widths[-1], prototypes, bias=False)
        initialise(self.prototypes, seed, "dino/prototypes")

    def bottleneck(self, features_BD: Tensor) -> Tensor:
        """Return the bottleneck, unit length, float32."""
        return normalize(float_of(self.layers, features_BD), dim=1)

    def compare(self, bottleneck_BD: Tensor) -> Tensor:
        """Return the cosine to every prototype: the paper's weight-normalised layer, its lengths fixed to 1."""
        with torch.autocast(bottleneck_BD.device.type, enabled=False):
            return bottleneck_BD @ normalize(self.prototypes.weight, dim=1).T

    def forward(self, features_BD: Tensor) -> Tensor:
        """Return what the loss compares: (B, D) -> (B, K)."""
        return self.compare(self.bottleneck(features_BD))


def teacher_temperature(progress: float, settings: DINOSettings) -> float:
    """Return the teacher's temperature: linear over the warm-up's share of the run, then constant."""
    start, end = settings.teacher_temperature
    share = min(progress / settings.teacher_warmup, 1.0) if settings.teacher_warmup else 1.0
    return start + (end - start) * share


def distil(student_VBK: Tensor, teacher_2BK: Tensor, centre_K: Tensor, student_t: float, teacher_t: float) -> Tensor:
    """Return the mean cross-entropy over images and pairs of different views."""
    with torch.autocast(student_VBK.device.type, enabled=False):
        aims_2BK = ((teacher_2BK - centre_K) / teacher_t).softmax(dim=-1)
        said_VBK = (student_VBK / student_t).log_softmax(dim=-1)
        losses_2V = -torch.einsum("tbk,vbk->tv", aims_2BK, said_VBK)
        pairs = losses_2V.numel() - 2
        return (losses_2V.sum() - losses_2V.diagonal().sum()) / (pairs * student_VBK.shape[1])
