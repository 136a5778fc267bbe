"""Fitted: how a task's images are read for an encoder that was trained on others: which bands, normalised by what.

Between a task's images and ``protocol``; ``assess`` and the suites use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from terrasieve.data import images as imagery
from terrasieve.data.augment import ImageSettings
from terrasieve.errors import UserError
from terrasieve.evaluate.protocol import TEMPERATURE, K


class Reading(NamedTuple):
    """How a task's images are read and scored.

    Attributes:
        bands: of the task, one for each of the encoder's, in their order; None = those of the same names.
        own_statistics: normalise by the task's training images, not by what the encoder was trained on.
        keep: write the scores into the run's folder.
        k, temperature: of k-NN.
    """

    bands: tuple[str, ...] | None = None
    own_statistics: bool = False
    keep: bool = True
    k: int = K
    temperature: float = TEMPERATURE


def fitted(
    image: ImageSettings, images: imagery.Images, parts: Sequence[str], reading: Reading, seed: int
) -> ImageSettings:
    """Put a task's bands, and if they are asked for its mean and standard deviation, in the place of the encoder's.

    Args:
        image: of the encoder.
        images: of the task, with the bands that are read.
        parts: train, val or test of each.
        reading: what is asked for.
        seed: of the training images that are measured.

    Raises:
        UserError: another number of bands than the encoder takes.
    """
    own = image.bands or ()
    if len(images.bands) != len(own):
        raise UserError(
            f"bands: {len(images.bands)} of the task ({', '.join(images.bands)}) for {len(own)} of the encoder "
            f"({', '.join(own)}); name one of the task's for each of them, in their order."
        )
    found: dict[str, tuple[str, ...] | tuple[float, ...]] = {"bands": images.bands}
    if reading.own_statistics:
        train = images.take(np.flatnonzero([part == "train" for part in parts]))
        found["mean"], found["std"] = imagery.band_statistics(train, seed)
    return image.model_copy(update=found)
