"""NeighborMAE: images of neighbouring ground are masked, encoded and reconstructed together.

Source: Zeng et al., CVPR 2026; METHODS.md, section 4. Exactly the kept tokens are encoded (the released code hides
surplus ones with an attention mask). The loss is a mean over groups, so that it does not depend on how a batch is
divided; the published one is a mean over all masked pixels, the same where groups overlap equally.

Legend: B groups of K images, N patches of an image, M = K N of a group, T tokens kept of a batch; G = B rows of M
tokens where images are seen jointly, else B K of N.
"""

from __future__ import annotations

from typing import Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from terrasieve.batch import Batch, Output
from terrasieve.data.pairs import KINDS
from terrasieve.methods.neighbor_tokens import (
    Seen,
    ground_once,
    least_given_away,
    pool_anchors,
    random_patches,
    rich_patches,
)
from terrasieve.methods.reconstruction import draw_noise
from terrasieve.methods.visibility import cross_project, loss_weight, normalised, novelty
from terrasieve.nn.decoder import CrossDecoder, DecoderSettings, SelfDecoder
from terrasieve.nn.encoder import Encoded, Encoder, initialise
from terrasieve.nn.frames import FRAME, Frame, corner_embedding, mask_ratio, pair_iou, patch_corners, shared_frame
from terrasieve.nn.packed import Packing
from terrasieve.nn.patches import patchify
from terrasieve.section import Section
from terrasieve.sieve.policies import stage_shares
from terrasieve.sieve.ragged import Ragged, pack, scatter_ragged, take_ragged

__all__ = [
    "NeighborMAE",
    "NeighborMAESettings",
    "corner_embedding",
    "cross_project",
    "loss_weight",
    "mask_ratio",
    "novelty",
    "pair_iou",
    "patch_corners",
    "shared_frame",
]


class NeighborMAESettings(Section):
    """NeighborMAE's choices; the defaults are the paper's, with a pair's two images.

    Attributes:
        images: in a group, the anchor among them.
        mask: share of the patches that is hidden where crops do not overlap, and where they are the same ground.
        frame: what positions are measured in, see ``nn.frames.shared_frame``.
        metres_per_unit: of the frame "metres".
        joint: attention over all images of a group; False = each image for itself (ablation).
        weigh: weight each pixel's error by what the neighbours do not show; False = all alike (ablation).
        predict: share of the patches that is predicted, by cross-attention, where neighbours give least away (ours);
            None = all masked ones by self-attention (paper).
        unique: encode ground once: a patch of which an earlier image of the group shows at least half, with squared
            differences below this (in variances of the patch), is left out (ours); None = never.
        policy: how encoded patches are chosen: ``random`` within each image (paper); ``hog``: of all patches of the
            group the richest, grown by SelectiveMAE's PSTS, and targets weighted by richness (ours).
    """

    name: Literal["neighbor_mae"] = "neighbor_mae"
    images: int = Field(default=2, ge=2)
    mask: tuple[float, float] = (0.75, 0.85)
    frame: Frame = "axes"
    metres_per_unit: float = Field(default=80.0, gt=0)
    joint: bool = True
    weigh: bool = True
    predict: float | None = Field(default=None, gt=0, lt=1)
    unique: float | None = Field(default=None, gt=0)
    policy: Literal["random", "hog"] = "random"
    decoder: DecoderSettings = DecoderSettings(depth=8)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not all(0 < share < 1 for share in self.mask):
            raise ValueError(f"mask {self.mask}: both shares lie between 0 and 1")
        if self.predict is not None and self.predict > min(self.mask):
            raise ValueError(f"predict {self.predict} is more than the masked share {min(self.mask)}")
        if self.policy == "hog" and self.mask[0] != self.mask[1]:
            raise ValueError(f"policy hog chooses a fixed share; mask {self.mask} should be one number twice")
        if not self.joint and (self.unique is not None or self.policy == "hog" or self.predict is not None):
            raise ValueError("predict, unique and policy hog are about groups seen jointly; they need joint: true")
        if self.decoder.width % 8:
            raise ValueError(f"decoder.width {self.decoder.width} is not a multiple of 8, which four edges need")
        return self


class Slots(nn.Module):
    """A learned vector for each place in a group."""

    def __init__(self, images: int, width: int, seed: int, name: str) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(images, width))
        initialise(self, seed, name)


class NeighborMAE(nn.Module):
    """Encode few patches of images of neighbouring ground jointly and predict the others."""

    views: Literal["neighbours"] = "neighbours"

    def __init__(self, settings: NeighborMAESettings, encoder: Encoder, seed: int = 0) -> None:
        super().__init__()
        self.settings, self.encoder = settings, encoder
        encoder.positions.requires_grad_(False)  # patches stand in the group's frame, not on the grid
        self.lr_scale = float(settings.images)  # the paper's batch counts images, ours anchors
        self.slots = Slots(settings.images, encoder.width, seed, "slots")
        self.decoder_slots = Slots(settings.images, settings.decoder.width, seed, "decoder_slots")
        given = (settings.decoder, encoder.width, encoder.grid, encoder.patch_values, seed)
        self.decoder = SelfDecoder(*given) if settings.predict is None else CrossDecoder(*given)

    def forward(self, batch: Batch, generator: torch.Generator, *, picture: bool = False) -> Output:
        """Compute the loss: weighted squared error of normalised pixels, over the number of predicted ones."""
        seen = self.look(batch)
        noise_BM = draw_noise(batch, generator, seen.patches_BMP.shape[1])
        keep_BM, total = self.choose(seen, batch, noise_BM)
        encoded, layout, positions_TD = self.encode(seen, keep_BM, total)
        visible = seen.on_pixels(keep_BM)
        if self.settings.predict is None:
            targets_BM = ~keep_BM
            predicted_BMP = self._predict_all(seen, encoded, layout, targets_BM, total)
        else:
            ids_BQ = self._targets(seen, keep_BM, noise_BM)
            targets_BM = torch.zeros_like(keep_BM).scatter(1, ids_BQ, True)
            predicted_BMP = self._predict_some(seen, encoded, layout, positions_TD, ids_BQ)
        with torch.autocast(seen.images.device.type, enabled=False):
            prediction = seen.pixels_of(predicted_BMP.float())
            normal = normalised(seen.images, self.encoder.patch_px, seen.valid)
            scored = seen.on_pixels(targets_BM) * (1 if seen.valid is None else seen.valid)
            given = (seen.images, visible, seen.boxes, self.encoder.patch_px, seen.valid, normal)
            weight = loss_weight(prediction.detach(), *given) if self.settings.weigh else 1 - visible
            pixels_B = scored.sum((1, 2, 3)).clamp(min=1)
            error_B = (weight * scored * (prediction - normal[0]).square().mean(2)).sum((1, 2, 3)) / pixels_B
        metrics = self._metrics(seen, batch, keep_BM) | {"weight": ((weight * scored).sum((1, 2, 3)) / pixels_B).mean()}
        painted = {}
        if picture:
            guess = torch.where(scored[:, :, None] > 0, prediction * normal[2] + normal[1], seen.images)
            painted = self._paint(seen, keep_BM, targets_BM, guess, weight)
        return Output(error_B.mean(), metrics, painted, pool_anchors(encoded, layout, len(batch), self.encoder.patches))

    def after_step(self, step: int) -> None:
        """Do nothing: the method has no state beside its weights."""

    def lone_positions(self, weights: dict[str, Tensor]) -> Tensor:
        """Return the (1, 1 + N, D) positions of an image that is alone, in the frame [0, 32] and the first slot.

        With them, timm's model computes for an image what this method does for a group of one.

        Args:
            weights: of the method, by name.
        """
        corners_N4 = patch_corners(torch.tensor([[[0.0, FRAME, FRAME, 0.0]]]), self.encoder.grid)[0, 0]
        places_ND = corner_embedding(corners_N4, self.encoder.width) + weights["slots.token"][0].cpu()
        return torch.cat([weights["encoder.vit.pos_embed"][:, :1].cpu(), places_ND[None]], dim=1)

    def look(self, batch: Batch) -> Seen:
        """Lay out a batch's groups; a batch without neighbours is one of groups of one, in the frame [0, 32]."""
        images, valid = batch.image[:, None], None
        if batch.neighbours is None or batch.boxes is None:
            boxes = images.new_tensor([0.0, FRAME, FRAME, 0.0]).expand(len(batch), 1, 4)
        else:
            images = torch.cat([images, batch.neighbours], dim=1)
            boxes = shared_frame(batch.boxes, self.settings.frame, self.settings.metres_per_unit)
        if batch.valid is not None or batch.neighbours_valid is not None:
            real = images.new_ones(()).expand(images.shape[0], images.shape[1], *images.shape[3:])
            first = real[:, :1] if batch.valid is None else batch.valid[:, None].float()
            others = real[:, 1:] if batch.neighbours_valid is None else batch.neighbours_valid.float()
            valid = torch.cat([first, others], dim=1)
        patches_BMP = patchify(images.flatten(0, 1), self.encoder.patch_px).view(
            len(batch), -1, self.encoder.patch_values
        )
        corners_BM4 = patch_corners(boxes, self.encoder.grid).flatten(1, 2)
        return Seen(images, valid, boxes, patches_BMP, corners_BM4, self.encoder.patch_px)

    def choose(self, seen: Seen, batch: Batch, noise_BM: Tensor) -> tuple[Tensor, int | None]:
        """Choose the patches to encode: (B, M) bool, and their number where the host knows it."""
        B, K = seen.images.shape[:2]
        if self.settings.policy == "hog":
            with torch.no_grad():
                places_BM = torch.arange(noise_BM.numel(), device=noise_BM.device).view_as(noise_BM)
                tokens_BMD = self.encoder.embed(seen.patches_BMP, position=False)
                tokens_BMD = tokens_BMD + self._positions(seen, places_BM, self.slots)
                keep_BM = rich_patches(seen, tokens_BMD, K * self._most(), stage_shares(batch.progress), noise_BM)
            total: int | None = B * K * self._most()
        else:
            low, high = self.settings.mask
            counts = [self._kept(low + (high - low) * iou) for iou in batch.overlap or (0.0,) * B]
            noise_BM = (
                noise_BM if seen.valid is None else noise_BM + (seen.per_patch(seen.valid) == 0)
            )  # empty ones last
            keep_BM, total = random_patches(noise_BM, counts, K), K * sum(counts)
        if self.settings.unique is not None and K > 1:
            keep_BM, total = ground_once(seen, keep_BM, self.settings.unique), None
        return keep_BM, total

    def _kept(self, mask: float) -> int:
        return max(round(self.encoder.patches * (1 - mask)), 1)

    def _most(self) -> int:
        """Return how many patches of an image are encoded at most."""
        return self._kept(min(self.settings.mask))

    def _targets(self, seen: Seen, keep_BM: Tensor, noise_BM: Tensor) -> Tensor:
        assert self.settings.predict is not None
        K, N = seen.images.shape[1], self.encoder.patches
        count = max(min(round(self.settings.predict * K * N), K * (N - self._most())), 1)
        return least_given_away(seen, keep_BM, count, noise_BM, rich=self.settings.policy == "hog")

    def encode(self, seen: Seen, keep_BM: Tensor, total: int | None) -> tuple[Encoded, Ragged, Tensor]:
        """Encode exactly the patches that are True; also return their layout and their (T, D) positions."""
        M = seen.patches_BMP.shape[1] if self.settings.joint else self.encoder.patches
        layout = pack(keep_BM.view(-1, M), total)
        places_T = layout.rows_T * M + layout.ids_T
        positions_TD = self._positions(seen, places_T, self.slots)
        patches_GMP = seen.patches_BMP.view(-1, M, self.encoder.patch_values)
        return self.encoder.encode_kept(patches_GMP, layout, positions=positions_TD), layout, positions_TD

    def _positions(self, seen: Seen, places: Tensor, slots: Slots) -> Tensor:
        """Return the positions (..., D) of patches by their place among all of a batch."""
        corners = seen.corners_BM4.reshape(-1, 4)[places]
        slot = places // self.encoder.patches % seen.images.shape[1]
        return corner_embedding(corners, slots.token.shape[1]) + slots.token[slot]

    def _predict_all(
        self, seen: Seen, encoded: Encoded, layout: Ragged, targets_BM: Tensor, total: int | None
    ) -> Tensor:
        """Predict all masked patches by self-attention over all tokens of each group: (B, M, P), 0 elsewhere."""
        decoder = cast(SelfDecoder, self.decoder)
        G, M = len(layout), targets_BM.numel() // len(layout)
        places_GM = torch.arange(G * M, device=targets_BM.device).view(G, M)
        x_GMD = scatter_ragged(decoder.embed(encoded.tokens), layout, M, decoder.mask_token[0, 0])
        x_GMD = x_GMD + self._positions(seen, places_GM, self.decoder_slots)
        x = torch.cat([decoder.embed(encoded.cls_BD)[:, None].to(x_GMD.dtype), x_GMD], dim=1)
        for block in decoder.blocks:
            x = block(x)
        masked = pack(targets_BM.view(G, M), None if total is None else targets_BM.numel() - total)
        predicted_TP = decoder.predict(decoder.norm(take_ragged(x[:, 1:], masked)))
        return scatter_ragged(predicted_TP, masked, M, 0.0).view(*targets_BM.shape, -1)

    def _predict_some(
        self, seen: Seen, encoded: Encoded, layout: Ragged, positions_TD: Tensor, ids_BQ: Tensor
    ) -> Tensor:
        """Predict the patches at ids by cross-attention: (B, M, P), 0 elsewhere.

        The encoder's tokens are marked with their positions again, without which small models learn late (LOG.md).
        """
        decoder = cast(CrossDecoder, self.decoder)
        B, M = seen.patches_BMP.shape[:2]
        packing = Packing.of(layout, M)
        context_SE = packing.join(encoded.cls_BD, encoded.tokens + positions_TD)
        places_BQ = ids_BQ + torch.arange(B, device=ids_BQ.device)[:, None] * M
        x_BQD = decoder.mask_token + self._positions(seen, places_BQ, self.decoder_slots)
        for block in decoder.blocks:
            x_BQD = block(x_BQD, context_SE, packing)
        predicted_BQP: Tensor = decoder.predict(decoder.norm(x_BQD))
        zeros_BMP = predicted_BQP.new_zeros(B, M, predicted_BQP.shape[-1])
        return zeros_BMP.scatter(1, ids_BQ[..., None].expand_as(predicted_BQP), predicted_BQP)

    def _metrics(self, seen: Seen, batch: Batch, keep_BM: Tensor) -> dict[str, Tensor]:
        """Return what is worth a curve: tokens per image, overlap of crops, shares of the kinds of neighbours."""
        metrics = {"encoded": keep_BM.float().sum() / (keep_BM.shape[0] * seen.images.shape[1])}
        if batch.kinds is not None:
            metrics["overlap"] = pair_iou(seen.boxes[:, :2]).mean()
            metrics |= {f"share_{kind}": (batch.kinds == n).float().mean() for n, kind in enumerate(KINDS)}
        return metrics

    def _paint(
        self, seen: Seen, keep_BM: Tensor, targets_BM: Tensor, guess: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        """Lay a picture out, an image after the other: see ``train.picture``."""
        visible = seen.on_pixels(keep_BM) * (1 if seen.valid is None else seen.valid)
        warped, shown = cross_project(seen.images, visible, seen.boxes)
        inside = cross_project(seen.images, torch.ones_like(visible), seen.boxes)[1]
        p, N = self.encoder.patch_px, self.encoder.patches
        return {
            "patches": patchify(seen.images.flatten(0, 1), p),
            "kept": keep_BM.view(-1, N),
            "targets": targets_BM.view(-1, N),
            "predicted": patchify(guess.flatten(0, 1), p),
            "neighbour": warped.flatten(0, 1),
            "shown": shown.flatten(0, 1),
            "inside": inside.flatten(0, 1),
            "group": torch.tensor(seen.images.shape[1]),
            "weight": weight.flatten(0, 1),
        }
