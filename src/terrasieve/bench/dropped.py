"""Dropped patches: what ``ragged`` compares, a small classifier and the forms in which it takes what is kept."""

from __future__ import annotations

from typing import Literal, cast

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from terrasieve import keyed
from terrasieve.batch import Batch, Output, Rows
from terrasieve.bench.contenders import CHANNELS, Setup, settings_for
from terrasieve.data.augment import normalise
from terrasieve.methods.dropping import Dropping, DropSettings
from terrasieve.nn.encoder import Encoder
from terrasieve.nn.patches import patchify
from terrasieve.sieve.ragged import Ragged, mean_ragged, padded, take_ragged
from terrasieve.train import state
from terrasieve.train.loop import train_step

Form = Literal["undropped", "fixed", "ragged", "padded"]
POLICIES: dict[Form, Literal["none", "static", "dynamic"]] = {
    "undropped": "none",
    "fixed": "static",
    "ragged": "dynamic",
    "padded": "dynamic",
}
CLASSES = 10


class Classifier(nn.Module):
    """The smallest whole model around ``Dropping`` and ``encode_kept``: mean over tokens, a linear head.

    All contenders share one, with its weights; each puts its own ``form`` and ``dropping`` in before its turn.
    """

    views = 1
    lr_scale = 1.0
    form: Form = "undropped"

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        settings = settings_for("mae", setup)
        self.encoder = Encoder(settings.encoder, CHANNELS, settings.image.shape_px)
        self.dropping = Dropping(DropSettings(), self.encoder.patches)
        self.head = nn.Linear(self.encoder.width, CLASSES)

    def predict(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Choose, encode and classify: (B, classes)."""
        patches_BNP = patchify(batch.image, self.encoder.patch_px)
        return self.classify(patches_BNP, self.dropping(self.encoder, batch, patches_BNP, generator))

    def classify(self, patches_BNP: Tensor, kept: Tensor | Ragged | None) -> Tensor:
        """Classify by the kept patches: (B, classes)."""
        if self.form == "padded" and isinstance(kept, Ragged):
            pooled_BD = encode_padded(self.encoder, patches_BNP, kept)
        else:
            tokens = self.encoder.encode_kept(patches_BNP, kept).tokens
            pooled_BD = mean_ragged(tokens, kept) if isinstance(kept, Ragged) else tokens.mean(dim=1)
        return cast(Tensor, self.head(pooled_BD))

    def forward(self, batch: Batch, generator: torch.Generator) -> Output:
        """Compute a cross-entropy against classes that mean nothing."""
        logits_BC = self.predict(batch, generator).float()
        return Output(nn.functional.cross_entropy(logits_BC, batch.index % CLASSES))

    def after_step(self, step: int) -> None:
        """Do nothing."""


def encode_padded(encoder: Encoder, patches_BNP: Tensor, layout: Ragged) -> Tensor:
    """Encode as one would without packing: padded to the longest, dense attention under a mask; means (B, D)."""
    tokens_TD = encoder.embed(take_ragged(patches_BNP, layout)[None], layout.ids_T[None])[0]
    tokens_BLD, real_BL = padded(tokens_TD, layout)
    cls = (cast(Tensor, encoder.vit.cls_token) + encoder.positions[:, :1]).expand(len(layout), -1, -1)
    x = torch.cat([cls.to(tokens_BLD.dtype), tokens_BLD], dim=1)
    mask = nn.functional.pad(real_BL, (1, 0), value=True)[:, None, None]
    for block in encoder.vit.blocks:
        x = Block.forward(cast(Block, block), x, attn_mask=mask)
    tokens_BLD = encoder.vit.norm(x)[:, 1:] * real_BL[..., None]
    summed_BD: Tensor = tokens_BLD.sum(dim=1)
    return summed_BD / real_BL.sum(dim=1, keepdim=True)


class Contender:
    """A form and a ratio, ready to take turns at training and at inference.

    Attributes:
        lengths: patches kept of each image.
        slots: tokens computed, padding included.
    """

    def __init__(self, form: Form, ratio: float, ready: state.State, batch: Batch) -> None:
        self.form, self.ratio, self.state, self.batch = form, ratio, ready, batch
        self.model = cast(Classifier, ready.method)
        self.micro = normalise(batch, ready.mean, ready.std)
        self.patches_BNP = patchify(self.micro.image, self.model.encoder.patch_px)
        self.draw = keyed.generator(0, "bench/ragged", device=ready.world.device)
        self.dropping = Dropping(DropSettings(policy=POLICIES[form], ratio=ratio), self.model.encoder.patches)
        self.dropping.to(ready.world.device)
        kept = self.score()
        B, N = self.patches_BNP.shape[:2]
        self.lengths = [N] * B
        if kept is not None:
            self.lengths = kept.offsets.diff().tolist() if isinstance(kept, Ragged) else [kept.shape[1]] * B
        self.slots = B * max(self.lengths) if form == "padded" else sum(self.lengths)

    def train(self) -> None:
        """Do one training step: forward, backward, gradient norm, clipping, AdamW."""
        self._sit()
        self.model.train()
        train_step(self.state, self.batch, 0)

    def predict(self) -> None:
        """Classify the batch; the threshold of ``dynamic`` is the one that training found."""
        self._sit()
        self.model.eval()
        with torch.no_grad(), self._autocast():
            self.model.predict(normalise(self.batch, self.state.mean, self.state.std), self.draw)

    def score(self) -> Tensor | Ragged | None:
        """Score and select alone."""
        with torch.no_grad(), self._autocast():
            return cast(
                Tensor | Ragged | None, self.dropping(self.model.encoder, self.micro, self.patches_BNP, self.draw)
            )

    def _sit(self) -> None:
        self.model.form, self.model.dropping = self.form, self.dropping

    def _autocast(self) -> torch.autocast:
        dtype = self.state.dtype
        return torch.autocast(self.state.world.device.type, dtype, enabled=dtype != torch.float32)


def busy_batch(setup: Setup) -> Batch:
    """Draw images that are busy in a share of 5 to 95 % of their 16 px patches and flat elsewhere, on the device.

    So the number of patches that a threshold keeps differs between images as it does between sea and city.
    """
    B, px, device = setup.batch_size, setup.image_px, torch.device(setup.device)
    draw = keyed.generator(0, "bench/busy")
    share_B = torch.linspace(0.05, 0.95, B)
    cells = px // 16
    busy = torch.rand(B, 1, cells, cells, generator=draw) < share_B[:, None, None, None]
    level = 60 * torch.randn(B, CHANNELS, 1, 1, generator=draw)
    level = level + busy * 60 * torch.randn(B, CHANNELS, cells, cells, generator=draw)
    image = 127.5 + level.repeat_interleave(16, 2).repeat_interleave(16, 3)
    image = image + 6 * torch.randn(B, CHANNELS, px, px, generator=draw)
    unknown = torch.full((B,), torch.nan, dtype=torch.float64)
    places = (unknown, unknown, unknown, torch.arange(B))
    return Batch(image.clamp(0, 255).to(torch.uint8), *places, rows=Rows(0, B)).to(device)
