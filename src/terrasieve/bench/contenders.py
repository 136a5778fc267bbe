"""Contenders: what the bench compares, and how each is made ready for a step.

Between ``yardsticks`` and ``run``. Sizes are the published ones: decoders of 512 x 16 heads whatever the encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from terrasieve import keyed
from terrasieve.batch import Batch, Rows
from terrasieve.bench.yardsticks import LightlyMAE, PlainMAE
from terrasieve.errors import UserError
from terrasieve.train import state
from terrasieve.train.distributed import World
from terrasieve.train.loop import train_step
from terrasieve.train.settings import TrainSettings
from terrasieve.train.state import State

CHANNELS = 3
ENCODERS = {
    "tiny": "vit_tiny_patch16_224",
    "small": "vit_small_patch16_224",
    "base": "vit_base_patch16_224",
    "large": "vit_large_patch16_224",
}


class Contender(NamedTuple):
    """A row of the bench: its title, the method's settings, and another library's model of it."""

    title: str
    method: dict[str, Any]
    yardstick: Callable[[TrainSettings, int], nn.Module] | None = None


CONTENDERS = {
    "mae": Contender("MAE", {"name": "mae"}),
    "selective_mae_12": Contender("SelectiveMAE, 12 decoder blocks", {"name": "selective_mae"}),
    "selective_mae_8": Contender("SelectiveMAE, 8 decoder blocks", {"name": "selective_mae", "decoder": {"depth": 8}}),
    "cross_mae": Contender("CrossMAE-style", {"name": "cross_mae"}),
    "neighbor_mae": Contender("NeighborMAE, pairs that do not overlap", {"name": "neighbor_mae"}),
    "neighbor_mae_25": Contender(
        "NeighborMAE, 25 % of targets by cross-attention",
        {"name": "neighbor_mae", "predict": 0.25},
    ),
    "neighbor_mae_rich": Contender(
        "NeighborMAE, 15 % rich tokens of the pair, 25 % of targets",
        {"name": "neighbor_mae", "policy": "hog", "mask": [0.85, 0.85], "predict": 0.25},
    ),
    "satmae_pp": Contender("SatMAE++-style, 1x and 2x", {"name": "satmae_pp"}),
    "mae_timm": Contender("MAE of timm blocks (yardstick)", {"name": "mae"}, PlainMAE),
    "mae_lightly": Contender("MAE of lightly modules (yardstick)", {"name": "mae"}, LightlyMAE),
}


@dataclass(frozen=True)
class Setup:
    """What all contenders of one comparison share. ``compile`` is train's: ``auto`` = on CUDA."""

    encoder: str
    precision: str
    device: str
    image_px: int
    batch_size: int
    compile: str = "auto"


def settings_for(name: str, setup: Setup) -> TrainSettings:
    """Write a contender's recipe. So long a run that progress stays 0, where SelectiveMAE's selection costs most."""
    return TrainSettings.model_validate(
        {
            "steps": 10**9,
            "batch_size": setup.batch_size,
            "precision": setup.precision,
            "device": setup.device,
            "compile": setup.compile,
            "image": {"size_px": setup.image_px, "mean": [127.5] * CHANNELS, "std": [73.6] * CHANNELS},
            "encoder": {"name": ENCODERS[setup.encoder]},
            "method": CONTENDERS[name].method,
        }
    )


def random_batch(setup: Setup) -> Batch:
    """Draw a batch of uint8 images that stays on the device."""
    B, device = setup.batch_size, torch.device(setup.device)
    draw = keyed.generator(0, "bench/images")
    image = torch.randint(0, 256, (B, CHANNELS, setup.image_px, setup.image_px), dtype=torch.uint8, generator=draw)
    unknown = torch.full((B,), torch.nan, dtype=torch.float64)
    return Batch(image, unknown, unknown, unknown, torch.arange(B), rows=Rows(0, B)).to(device)


def group_size(name: str) -> int:
    """Return how many images a contender sees together."""
    return int(CONTENDERS[name].method.get("images", 2)) if CONTENDERS[name].method["name"] == "neighbor_mae" else 1


def grouped(batch: Batch, images: int) -> Batch:
    """Make groups of a batch's images, side by side on the ground, where the published method encodes most.

    Raises:
        UserError: if the images do not make whole groups.
    """
    B, device = len(batch) // images, batch.image.device
    if B * images != len(batch):
        raise UserError(f"bench: {len(batch)} images do not make groups of {images}; choose another batch_size.")
    left = torch.arange(images, device=device, dtype=torch.float32)[:, None] * 2240
    boxes = left * torch.tensor([1, 0, 1, 0], device=device) + torch.tensor([0, 2240, 2240, 0], device=device)
    others = batch.image.view(B, images, *batch.image.shape[1:])[:, 1:]
    groups = replace(batch.part(0, B), image=batch.image[::images], rows=Rows(0, B))
    kinds = torch.zeros(B, images - 1, dtype=torch.int64, device=device)
    return replace(groups, neighbours=others, boxes=boxes.expand(B, -1, -1), kinds=kinds, overlap=(0.0,) * B)


def enlarged(batch: Batch, factor: int) -> Batch:
    """Make images as many times larger, for a method that averages them down to what the encoder sees."""
    larger = batch.image.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    return replace(batch, image=larger) if factor > 1 else batch


class Run:
    """A contender ready to step, with its batch in memory."""

    def __init__(self, name: str, setup: Setup, batch: Batch | None = None) -> None:
        """Build the model.

        Raises:
            ImportError: if the library that a yardstick comes from is not installed.
        """
        self.name, self.setup = name, setup
        self.batch = random_batch(setup) if batch is None else batch
        self.batch = grouped(self.batch, group_size(name)) if group_size(name) > 1 else self.batch
        settings, yardstick = settings_for(name, setup), CONTENDERS[name].yardstick
        self.batch = enlarged(self.batch, settings.enlarged)
        world = World(0, 1, torch.device(setup.device))
        self.state: State = (
            state.build(settings, world, CHANNELS)
            if yardstick is None
            else state.around(yardstick(settings, CHANNELS), settings, world)
        )
        self.done = 0

    def step(self) -> None:
        """Do one training step: forward, backward, gradient norm, clipping, AdamW."""
        train_step(self.state, self.batch, self.done)
        self.done += 1
