"""Small contrastive methods, and a batch for them."""

from __future__ import annotations

from typing import Any, get_args

import torch

from terrasieve import keyed
from terrasieve.batch import Batch, Rows
from terrasieve.methods import MethodSettings, build
from terrasieve.methods.siamese import SiameseSettings
from terrasieve.nn.convolution import encoder_of
from terrasieve.nn.encoder_settings import EncoderSettings

MEMBERS = {
    m.model_fields["name"].default: m for m in get_args(get_args(MethodSettings)[0]) if issubclass(m, SiameseSettings)
}
SMALL: dict[str, dict[str, Any]] = {
    "moco": {"widths": (64, 32), "queue": 16},
    "simclr": {"widths": (64, 32)},
    "byol": {"widths": (64, 32), "predictor": 64},
    "simsiam": {"widths": (64, 64, 32), "predictor": 16},
    "dino": {"widths": (64, 64, 16), "prototypes": 48, "local_views": 2},
}


def method_of(name: str, backbone: str = "test_resnet", size: int = 32, **choices: Any) -> Any:
    more = {"patch_px": 8, "depth": 2} if backbone.startswith("vit") else {}
    encoder = encoder_of(EncoderSettings(name=backbone, **more), 4, (size, size))  # type: ignore[arg-type]
    return build(MEMBERS[name](**SMALL[name] | choices), encoder)


def batch_of(count: int = 8, size: int = 32, progress: float = 0.0) -> Batch:
    nowhere = torch.full((count,), torch.nan, dtype=torch.float64)
    image = torch.randn(count, 4, size, size, generator=keyed.generator(0, "test"))
    image = torch.nn.functional.avg_pool2d(image, 9, 1, 4) * 9
    rows = Rows(0, count)
    return Batch(image, nowhere, nowhere, nowhere, torch.arange(count), progress=progress, rows=rows)


def draw(step: int = 0) -> torch.Generator:
    return keyed.generator(0, "mask", step)


def views_of(method: Any, batch: Batch, step: int = 0) -> list[torch.Tensor]:
    painted = method(batch, draw(step), picture=True).picture
    return [view for key, view in painted.items() if key.startswith("view")]
