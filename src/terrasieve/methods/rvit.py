"""RViT: a ViT that classifies images by the patches that are not redundant.

Patches are scored and dropped before the encoder, in training, inference or both; any timm ViT serves. Source:
Papazafeiropoulos et al. 2026, "Hide and Seek"; METHODS.md, section 7.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from terrasieve.batch import Batch, Output
from terrasieve.methods.dropping import Classifier, DropSettings, kept_flags, kept_share
from terrasieve.nn.encoder import Encoder, Pool, initialise
from terrasieve.section import Section
from terrasieve.sieve.ragged import Ragged, mean_ragged


class RViTSettings(Section):
    """RViT's choices; ``terrasieve adapt`` fills in what the task says.

    Attributes:
        drop: which patches are left out, and when. ``none`` makes it a plain ViT.
        pool: mean over the kept patch tokens, or the class token.
        smoothing: label smoothing of multi-class targets.
        classes: C, filled in from the task.
        multilabel: whether an image may have several labels, filled in from the task.
        class_weights: per class, filled in when ``class_weights`` is ``balanced``: factors of the classes' losses
            (multi-class), or of the positives' (multi-label).
    """

    name: Literal["rvit"] = "rvit"
    drop: DropSettings = DropSettings()
    pool: Pool = "mean"
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    classes: int = Field(default=0, ge=0)
    multilabel: bool = False
    class_weights: tuple[float, ...] | None = None


class RViT(Classifier):
    """Drop redundant patches, encode the rest, pool, norm, one linear layer."""

    def __init__(self, settings: RViTSettings, encoder: Encoder, seed: int = 0) -> None:
        super().__init__(encoder, settings.drop, settings.classes, settings.class_weights)
        self.settings = settings
        self.norm = nn.LayerNorm(encoder.width, eps=1e-6)
        self.head = nn.Linear(encoder.width, settings.classes)
        initialise(self.head, seed, "head")

    def logits(self, patches_BNP: Tensor, kept: Tensor | Ragged | None, path_noise_BE: Tensor | None = None) -> Tensor:
        """Encode the kept patches and classify: (B, C) float32; a softmax or a sigmoid makes them probabilities."""
        encoded = self.encoder.encode_kept(patches_BNP, kept, path_noise_BE=path_noise_BE)
        if self.settings.pool == "cls":
            pooled_BD = encoded.cls_BD
        elif isinstance(kept, Ragged):
            pooled_BD = mean_ragged(encoded.tokens, kept)
        else:
            pooled_BD = encoded.tokens.mean(dim=1)
        logits: Tensor = self.head(self.norm(pooled_BD)).float()
        return logits

    def forward(self, batch: Batch, generator: torch.Generator, *, picture: bool = False) -> Output:
        """Compute the loss: cross-entropy, or binary cross-entropy, per class where images have several labels."""
        assert batch.label is not None, "RViT learns from labels"
        patches_BNP, kept, logits_BC = self.classified(batch, generator)
        loss = self.loss(logits_BC, batch.label)
        painted = {"patches": patches_BNP, "kept": kept_flags(kept, patches_BNP)} if picture else {}
        return Output(loss, {"kept_share": kept_share(kept, patches_BNP)}, painted)

    def loss(self, logits_BC: Tensor, label: Tensor) -> Tensor:
        """Compare logits with labels, (B,) class numbers or (B, C) multi-hot or soft: () mean over the batch.

        The mean is over samples, weighted or not, so micro-batches and processes add up to the whole batch.
        """
        settings = self.settings
        target_BC = F.one_hot(label, settings.classes).to(logits_BC.dtype) if label.ndim == 1 else label
        if settings.multilabel:
            return F.binary_cross_entropy_with_logits(logits_BC, target_BC, pos_weight=self.weights_C)
        target_BC = target_BC * (1 - settings.smoothing) + settings.smoothing / settings.classes
        return -(self.weights_C * target_BC * logits_BC.log_softmax(dim=1)).sum(dim=1).mean()
