"""Samples: one image at a time, as the loader's workers make them.

Between ``images`` and ``loader``. A sample is a dict with TorchGeo's names: ``image``, ``lon``, ``lat``, ``time``,
``valid``, ``index``. Everything random about it is keyed by (seed, epoch, index).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from terrasieve import keyed
from terrasieve.batch import Batch, Skip
from terrasieve.data.augment import ImageSettings, random_crop, resize, resize_valid, turn
from terrasieve.data.images import Images
from terrasieve.errors import UserError
from terrasieve.imagery.unreadable import UnreadableImage

Sample = dict[str, Any]
SUBSTITUTES = 20


class TrainSamples(Dataset[Sample]):
    """Random crops of a manifest's images, indexed by (epoch, index)."""

    def __init__(self, images: Images, settings: ImageSettings, seed: int) -> None:
        self.images, self.settings, self.seed = images, settings, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Make a sample; an image that cannot be read is replaced by a keyed draw and listed under ``skipped``.

        Raises:
            UserError: if 20 images in a row cannot be read.
        """
        epoch, index = key
        skipped: list[Skip] = []
        row = index
        for attempt in range(SUBSTITUTES):
            try:
                sample = self._make(epoch, row)
            except UnreadableImage as error:
                skipped.append(Skip(error.uri, error.reason))
                row = int(keyed.numpy_generator(self.seed, "substitute", epoch, index, attempt).integers(len(self)))
                continue
            sample["skipped"] = skipped
            return sample
        raise UserError(
            f"{SUBSTITUTES} images in a row cannot be read, the last one {skipped[-1].uri}: {skipped[-1].reason}. "
            "Is the disk or the mount that holds them still there? Index the folder again to sort the broken ones out."
        )

    def _make(self, epoch: int, row: int) -> Sample:
        draw = keyed.numpy_generator(self.seed, "augment", epoch, row)
        height, width = self.settings.shape_px
        augment = self.settings.augment
        crop = random_crop(draw, int(self.images.windows[row, 2]), int(self.images.windows[row, 3]), augment)
        mirror_x, mirror_y = (bool(bit) and augment.flips for bit in draw.integers(0, 2, 2))
        quarters = int(draw.integers(4)) if augment.turns and width == height else 0
        sample = _read(self.images, row, crop, height, width)
        sample["image"] = turn(sample["image"], mirror_x, mirror_y, quarters)
        if sample["valid"] is not None:
            sample["valid"] = turn(sample["valid"], mirror_x, mirror_y, quarters)
        return sample


class WholeSamples(Dataset[Sample]):
    """Whole images, resampled to one size, without augmentation: for evaluation. Indexed by row."""

    def __init__(self, images: Images, settings: ImageSettings) -> None:
        self.images, self.settings = images, settings

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Sample:
        """Make a sample; an unreadable image raises, since an evaluation without it would be another one."""
        return {**_read(self.images, row, None, *self.settings.shape_px), "skipped": []}


def _read(images: Images, row: int, crop: tuple[int, int, int, int] | None, height: int, width: int) -> Sample:
    pixels = images.read(row, crop)
    valid = None if pixels.valid is None else resize_valid(torch.from_numpy(pixels.valid), height, width)
    array = pixels.array
    if pixels.valid is not None and array.dtype == np.float32:
        array = np.where(pixels.valid, array, np.float32(0))  # NaN would spread through the resampling
    # The layout is kept: JPEG pixels come interleaved, which the resampling of uint8 is fastest on.
    array = array if array.flags.writeable else array.copy(order="K")
    return {
        "image": resize(torch.from_numpy(array), height, width),
        "valid": valid,
        "lon": images.lon[row],
        "lat": images.lat[row],
        "time": images.time[row],
        "index": row,
    }


def collate(samples: list[Sample]) -> Batch:
    """Lay samples side by side."""
    valid: Tensor | None = None
    if any(sample["valid"] is not None for sample in samples):
        real = torch.ones(samples[0]["image"].shape[-2:], dtype=torch.bool)
        valid = torch.stack([real if s["valid"] is None else s["valid"] for s in samples])
    lon, lat, time = (torch.tensor([s[name] for s in samples], dtype=torch.float64) for name in ("lon", "lat", "time"))
    return Batch(
        image=torch.stack([sample["image"] for sample in samples]),
        lon=lon,
        lat=lat,
        time=time,
        index=torch.tensor([sample["index"] for sample in samples]),
        valid=valid,
        skipped=tuple(skip for sample in samples for skip in sample["skipped"]),
    )
