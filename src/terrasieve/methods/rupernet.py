"""TEMP stand-in until branch dense is merged."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from terrasieve.methods.dropping import DropSettings
from terrasieve.section import Section


class RUPerNetSettings(Section):
    name: Literal["rupernet"] = "rupernet"
    drop: DropSettings = DropSettings()
    classes: int = 0
    class_weights: tuple[float, ...] | None = None


class RUPerNet(nn.Module):
    def __init__(self, settings: RUPerNetSettings, encoder: Any, seed: int = 0) -> None:
        raise NotImplementedError
