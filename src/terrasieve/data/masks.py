"""TEMP stand-in until branch dense is merged."""

from __future__ import annotations

import numpy as np

from terrasieve.data.images import Images
from terrasieve.section import Section


class MaskSettings(Section):
    replace: tuple[str, str]
    classes: tuple[str, ...]
    values: tuple[int, ...] | None = None
    ignore: tuple[int, ...] = ()


class Masks:
    classes: tuple[str, ...]

    def read(self, row: int, crop: tuple[int, int, int, int] | None) -> np.ndarray:
        raise NotImplementedError


def find_masks(images: Images, settings: MaskSettings) -> Masks:
    raise NotImplementedError
