"""Methods: one file per published method, and the unions of their settings.

A method is added by four touches: its file, one line in each of the two tables here, one recipe, one test of recorded
numbers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol, cast

import torch
from pydantic import Field
from torch import Tensor

from terrasieve.batch import Batch, Output
from terrasieve.methods.byol import BYOL, BYOLSettings
from terrasieve.methods.cross_mae import CrossMAE, CrossMAESettings
from terrasieve.methods.dino import DINO, DINOSettings
from terrasieve.methods.faster_rcnn import FasterRCNN, FasterRCNNSettings
from terrasieve.methods.mae import MAE, MAESettings
from terrasieve.methods.moco import MoCo, MoCoSettings
from terrasieve.methods.neighbor_mae import NeighborMAE, NeighborMAESettings
from terrasieve.methods.oriented_rcnn import OrientedRCNN, OrientedRCNNSettings
from terrasieve.methods.regularisers import Geographic, GeographySettings
from terrasieve.methods.rupernet import RUPerNet, RUPerNetSettings
from terrasieve.methods.rvit import RViT, RViTSettings
from terrasieve.methods.satmae_pp import SatMAEPP, SatMAEPPSettings
from terrasieve.methods.selective_mae import SelectiveMAE, SelectiveMAESettings
from terrasieve.methods.simclr import SimCLR, SimCLRSettings
from terrasieve.methods.simsiam import SimSiam, SimSiamSettings
from terrasieve.nn.convolution import ConvEncoder
from terrasieve.nn.encoder import Encoder

MethodSettings = Annotated[
    MAESettings
    | CrossMAESettings
    | SelectiveMAESettings
    | NeighborMAESettings
    | SatMAEPPSettings
    | MoCoSettings
    | SimCLRSettings
    | BYOLSettings
    | SimSiamSettings
    | DINOSettings,
    Field(discriminator="name"),
]

METHODS = {
    "mae": MAE,
    "cross_mae": CrossMAE,
    "selective_mae": SelectiveMAE,
    "neighbor_mae": NeighborMAE,
    "satmae_pp": SatMAEPP,
    "moco": MoCo,
    "simclr": SimCLR,
    "byol": BYOL,
    "simsiam": SimSiam,
    "dino": DINO,
}

# The supervised methods, which ``terrasieve adapt`` trains; they can also predict.
AdapterSettings = Annotated[
    RViTSettings | RUPerNetSettings | FasterRCNNSettings | OrientedRCNNSettings, Field(discriminator="name")
]

ADAPTERS = {"rvit": RViT, "rupernet": RUPerNet, "faster_rcnn": FasterRCNN, "oriented_rcnn": OrientedRCNN}


class Method(Protocol):
    """What the loop needs of a method: an ``nn.Module`` with these attributes.

    Attributes:
        views: images that a sample consists of.
        lr_scale: factor on the learning rate that the method's paper prescribes.
        encoder: the backbone that is trained and exported.
    """

    views: Literal[1, 2, "neighbours"]
    lr_scale: float
    encoder: Encoder | ConvEncoder

    def __call__(self, batch: Batch, generator: torch.Generator, *, picture: bool = False) -> Output:
        """Compute loss and metrics; ids are drawn first, from ``generator``."""
        ...

    def after_step(self, step: int) -> None:
        """Do what follows an optimiser step, e.g. update a momentum encoder."""
        ...


class Adapter(Method, Protocol):
    """What validation and prediction need of a supervised method beside that."""

    def predict(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Compute logits of normalised images: (B, C), or (B, C, H, W) for every pixel; of a detector (B, K, F + 2).

        A detection is a box of F numbers, a score, and a class, -1 where an image has less than K.
        """
        ...


def build(
    settings: MethodSettings | AdapterSettings,
    encoder: Encoder | ConvEncoder,
    seed: int = 0,
    geography: GeographySettings | None = None,
) -> torch.nn.Module:
    """Build a method around an encoder, and a regulariser around it; all but the encoder is drawn from ``seed``."""
    kinds: dict[str, Any] = {**METHODS, **ADAPTERS}
    method = cast(torch.nn.Module, kinds[settings.name](settings, encoder, seed))
    if geography is None:
        return method
    width = getattr(settings, "widths", (encoder.width,))[-1]
    return Geographic(geography, method, width, seed)
