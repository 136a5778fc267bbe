"""Dropping redundant patches before the encoder: settings, and the module that chooses what is kept.

Between a batch's patches and ``Encoder.encode_kept``; the supervised methods (``rvit`` and ``rupernet``, which share
``Classifier``, and the detectors) own one, and the redundancy analysis scores with it. Source: Papazafeiropoulos et al.
2026, "Hide and Seek"; METHODS.md, section 7.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from terrasieve.batch import Batch
from terrasieve.errors import UserError
from terrasieve.methods.reconstruction import draw_noise, share_valid
from terrasieve.nn.encoder import Encoder
from terrasieve.nn.patches import patchify
from terrasieve.section import Section
from terrasieve.sieve.dropping import budget_keep, calibrated, dynamic_keep, static_ids
from terrasieve.sieve.ragged import Ragged, pack
from terrasieve.sieve.similarity import Reduction, redundancy


class DropSettings(Section):
    """Which patches are dropped, and when.

    Attributes:
        policy: ``none``; ``static``: the same number of the least redundant patches in every image; ``dynamic``: all
            below a threshold, so numbers differ; ``random``: the same number at random; ``budget``: a fixed number in
            the batch, shared among its images by redundancy.
        ratio: share of the patches that is dropped, in [0, 1).
        threshold: of ``dynamic``, a cosine. None = calibrated to ``ratio`` while training: every batch keeps just that
            many tokens, and a running mean of the thresholds that do it is what decides at inference.
        k_min: patches that every image keeps.
        reduction: of a patch's similarities to the others: ``mean``, ``largest`` or greedy ``cover``.
        of: what is compared: patch ``embeddings`` before positions, or raw normalised ``pixels``.
        floor: of ``budget``, the share of the tokens that is drawn at random.
        when: ``always``, or only in ``training``, or only at ``inference``.
        cached: take the scores from the batch, computed once per manifest.
    """

    policy: Literal["none", "static", "dynamic", "random", "budget"] = "none"
    ratio: float = Field(default=0.0, ge=0, lt=1)
    threshold: float | None = Field(default=None, gt=-1, le=1)
    k_min: int = Field(default=1, ge=1)
    reduction: Reduction = "mean"
    of: Literal["embeddings", "pixels"] = "embeddings"
    floor: float = Field(default=0.1, ge=0, le=1)
    when: Literal["always", "training", "inference"] = "always"
    cached: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.threshold is not None and self.policy != "dynamic":
            raise ValueError(f"threshold {self.threshold} is for policy dynamic, not {self.policy}; leave it out")
        if self.threshold is not None and self.ratio:
            raise ValueError(f"give threshold {self.threshold} or ratio {self.ratio}, not both")
        return self


class Dropping(nn.Module):
    """Choose the patches to keep.

    Attributes:
        threshold: () running mean of the calibrated thresholds; +inf before the first.
    """

    momentum = 0.05

    def __init__(self, settings: DropSettings, patches: int) -> None:
        """Prepare for images of ``patches`` patches.

        Raises:
            UserError: if k_min is more than there are.
        """
        super().__init__()
        if settings.k_min > patches:
            raise UserError(f"drop.k_min: {settings.k_min} patches are to be kept, an image has {patches}; lower it.")
        self.settings = settings
        self.count = max(round((1 - settings.ratio) * patches), settings.k_min)
        self.threshold: Tensor
        self.register_buffer("threshold", torch.tensor(torch.inf))

    @property
    def active(self) -> bool:
        """Whether patches are dropped now, in training or at inference."""
        now = "training" if self.training else "inference"
        return self.settings.policy != "none" and self.settings.when in ("always", now)

    def forward(
        self, encoder: Encoder, batch: Batch, patches_BNP: Tensor, generator: torch.Generator
    ) -> Tensor | Ragged | None:
        """Return ids (B, K) ascending, a ragged layout, or None for all; see ``Encoder.encode_kept``.

        Raises:
            UserError: if cached scores are asked for and the batch has none.
        """
        if not self.active:
            return None
        settings = self.settings
        if settings.policy == "random":
            return static_ids(self._chance(encoder, batch, patches_BNP, generator), self.count)
        score_BN = self.scores(encoder, batch, patches_BNP)
        if settings.policy == "static":
            return static_ids(score_BN, self.count)
        tokens = self.count * len(batch)
        if settings.policy == "budget":
            noise_BN = draw_noise(batch, generator, score_BN.shape[1])
            return pack(budget_keep(score_BN, tokens, settings.floor, noise_BN, settings.k_min), tokens)
        if settings.threshold is not None:
            return pack(dynamic_keep(score_BN, settings.threshold, settings.k_min))
        if self.training:
            self._calibrate(score_BN, tokens)
            return pack(budget_keep(score_BN, tokens, 0.0, score_BN, settings.k_min), tokens)
        return pack(dynamic_keep(score_BN, self._learnt(score_BN, tokens), settings.k_min))

    def scores(self, encoder: Encoder, batch: Batch, patches_BNP: Tensor) -> Tensor:
        """Score the redundancy of every patch: (B, N) float32, +inf without data.

        Raises:
            UserError: if cached scores are asked for and the batch has none.
        """
        if self.settings.cached:
            if batch.redundancy is None:
                raise UserError("drop.cached: the batch carries no scores; compute them first, or set cached=false.")
            return batch.redundancy
        with torch.no_grad():
            of_pixels = self.settings.of == "pixels"
            tokens_BND = patches_BNP if of_pixels else encoder.embed(patches_BNP, position=False)
        share_BN = share_valid(batch, encoder.patch_px)
        return redundancy(tokens_BND, self.settings.reduction, None if share_BN is None else share_BN > 0)

    def _chance(self, encoder: Encoder, batch: Batch, patches_BNP: Tensor, generator: torch.Generator) -> Tensor:
        """Return noise (B, N), +inf for patches without data, so that they go first under every policy."""
        noise_BN = draw_noise(batch, generator, patches_BNP.shape[1])
        share_BN = share_valid(batch, encoder.patch_px)
        return noise_BN if share_BN is None else noise_BN.masked_fill(share_BN == 0, torch.inf)

    def _calibrate(self, score_BN: Tensor, tokens: int) -> None:
        """Move the running threshold towards what this batch would need; no cosine reaches 2."""
        needed = calibrated(score_BN, tokens).clamp(max=2.0)
        moved = torch.where(self.threshold.isinf(), needed, torch.lerp(self.threshold, needed, self.momentum))
        self.threshold.copy_(moved)

    def _learnt(self, score_BN: Tensor, tokens: int) -> Tensor:
        """Return the running threshold; before any training, the batch's own."""
        return torch.where(self.threshold.isinf(), calibrated(score_BN, tokens), self.threshold)


def kept_flags(kept: Tensor | Ragged | None, patches_BNP: Tensor) -> Tensor:
    """Mark the kept patches: (B, N) bool."""
    shape, device = patches_BNP.shape[:2], patches_BNP.device
    if kept is None:
        return torch.ones(shape, dtype=torch.bool, device=device)
    flags_BN = torch.zeros(shape, dtype=torch.bool, device=device)
    if isinstance(kept, Ragged):
        return flags_BN.index_put((kept.rows_T, kept.ids_T), torch.ones_like(kept.ids_T, dtype=torch.bool))
    return flags_BN.scatter(1, kept, True)


def kept_share(kept: Tensor | Ragged | None, patches_BNP: Tensor) -> Tensor:
    """Return the share of patches that is kept: () float32, without waiting for the device."""
    every = patches_BNP.shape[0] * patches_BNP.shape[1]
    count = every if kept is None else len(kept.ids_T) if isinstance(kept, Ragged) else kept.numel()
    return torch.full((), count / every, device=patches_BNP.device)


class Classifier(nn.Module):
    """What ``rvit`` and ``rupernet`` are to the loop; a subclass has ``logits``, from kept patches to classes.

    Attributes:
        encoder: the backbone that is trained and exported.
        weights_C: of the classes' losses.
    """

    views = 1
    lr_scale = 1.0
    weights_C: Tensor

    def __init__(
        self, encoder: Encoder, drop: DropSettings, classes: int, class_weights: tuple[float, ...] | None
    ) -> None:
        """Take an encoder before which patches are dropped."""
        super().__init__()
        self.encoder = encoder
        self.dropping = Dropping(drop, encoder.patches)
        self.register_buffer("weights_C", torch.tensor(class_weights or [1.0] * classes), persistent=False)

    def keep(self, batch: Batch, patches_BNP: Tensor, generator: torch.Generator) -> Tensor | Ragged | None:
        """Choose the patches that are encoded: ids (B, K), a ragged layout, or None for all."""
        kept: Tensor | Ragged | None = self.dropping(self.encoder, batch, patches_BNP, generator)
        return kept

    def logits(self, patches_BNP: Tensor, kept: Tensor | Ragged | None, path_noise_BE: Tensor | None = None) -> Tensor:
        """Encode the kept patches and classify: (B, C, ...) float32."""
        raise NotImplementedError

    def classified(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor | Ragged | None, Tensor]:
        """Drop patches of normalised images and classify: all patches, what was kept, logits."""
        patches_BNP = patchify(batch.image, self.encoder.patch_px)
        kept = self.keep(batch, patches_BNP, generator)
        path_noise_BE = None
        if self.training and self.encoder.drop_path:
            path_noise_BE = draw_noise(batch, generator, 2 * len(self.encoder.vit.blocks))
        return patches_BNP, kept, self.logits(patches_BNP, kept, path_noise_BE)

    def predict(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Classify normalised images, or their pixels: logits (B, C, ...) float32."""
        return self.classified(batch, generator)[2]

    def after_step(self, step: int) -> None:
        """Do nothing: what dropping remembers, it updates as it drops."""
