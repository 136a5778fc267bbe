"""Augmentation: keyed by seed, epoch and index, so that it does not depend on workers or on where a run was resumed.

In the loader's workers, on whole pixels: uint8 and uint16 stay what they are until they are on the device. Then
``normalise``, the only place where digital numbers become what a network sees.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor

from terrasieve.batch import Batch
from terrasieve.section import Section


class AugmentSettings(Section):
    """Geometric augmentation, MAE's with the flips and turns that a view from above allows.

    Attributes:
        crop_scale: smallest and largest share of the image's area in a random crop.
        crop_ratio: smallest and largest width / height of a crop.
        flips: mirror left-right and up-down, each with probability 1/2.
        turns: turn by 0, 90, 180 or 270 degrees (square images only).
    """

    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flips: bool = True
    turns: bool = True


class ImageSettings(Section):
    """What a sample is.

    Attributes:
        size_px: side, or height and width, in pixels, of the images that the network sees.
        bands: names of the bands to read; None = all that the manifest's images have.
        mean: per band, digital numbers; None = measured from the data and written into the run's recipe.
        std: likewise.
        augment: of training samples.
    """

    size_px: PositiveInt | tuple[PositiveInt, PositiveInt] = 224
    bands: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = Field(default=None)
    augment: AugmentSettings = AugmentSettings()

    @property
    def shape_px(self) -> tuple[int, int]:
        """Height and width."""
        return (self.size_px, self.size_px) if isinstance(self.size_px, int) else self.size_px

    def enlarged(self, factor: int) -> ImageSettings:
        """Return the settings of samples ``factor`` times as large."""
        height, width = self.shape_px
        return self.model_copy(update={"size_px": (height * factor, width * factor)})


def random_crop(
    draw: np.random.Generator, width: int, height: int, settings: AugmentSettings
) -> tuple[int, int, int, int]:
    """Draw a crop (x, y, width, height) of random area and aspect; the whole image when ten draws do not fit."""
    low, high = (math.log(ratio) for ratio in settings.crop_ratio)
    for _ in range(10):
        area = width * height * draw.uniform(*settings.crop_scale)
        ratio = math.exp(draw.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(draw.integers(width - w + 1)), int(draw.integers(height - h + 1)), w, h
    return 0, 0, width, height


def resize(image_CHW: Tensor, height: int, width: int) -> Tensor:
    """Resample to a size with an anti-aliased bilinear filter, keeping the type.

    Args:
        image_CHW: uint8, uint16 or float32.
        height: pixels.
        width: pixels.
    """
    if tuple(image_CHW.shape[-2:]) == (height, width):
        return image_CHW
    as_float = image_CHW if image_CHW.dtype is torch.uint8 else image_CHW.float()
    out = F.interpolate(as_float[None], size=(height, width), mode="bilinear", antialias=True, align_corners=False)[0]
    return out.round().to(image_CHW.dtype) if image_CHW.dtype is torch.uint16 else out


def resize_valid(valid_HW: Tensor, height: int, width: int) -> Tensor:
    """Resample a mask of real pixels; a pixel is real where all it was made from was real."""
    if tuple(valid_HW.shape) == (height, width):
        return valid_HW
    share = F.interpolate(valid_HW[None, None].float(), size=(height, width), mode="bilinear", antialias=True)[0, 0]
    return share > 0.999


def turn(tensor_HW: Tensor, mirror_x: bool, mirror_y: bool, quarters: int) -> Tensor:
    """Mirror and turn the last two axes."""
    # torch moves no uint16 about; the same bits as int16 it does
    bits_HW = tensor_HW.view(torch.int16) if tensor_HW.dtype is torch.uint16 else tensor_HW
    bits_HW = torch.flip(bits_HW, [axis for axis, on in ((-1, mirror_x), (-2, mirror_y)) if on])
    return torch.rot90(bits_HW, quarters, (-2, -1)).view(tensor_HW.dtype)


def normalise(batch: Batch, mean_C: Tensor, std_C: Tensor) -> Batch:
    """Turn digital numbers into float32, (x - mean) / std per band, 0 where there is no data. Runs on the device.

    Masks travel as uint8 and become int64 here.
    """
    image = _normalised(batch.image, batch.valid, mean_C, std_C)
    neighbours = batch.neighbours
    if neighbours is not None:
        neighbours = _normalised(neighbours, batch.neighbours_valid, mean_C, std_C)
    mask = None if batch.mask is None else batch.mask.long()
    return replace(batch, image=image, neighbours=neighbours, mask=mask)


def _normalised(image: Tensor, valid: Tensor | None, mean_C: Tensor, std_C: Tensor) -> Tensor:
    scaled = torch.sub(image.float(), mean_C.view(-1, 1, 1)).div_(std_C.view(-1, 1, 1))
    return scaled if valid is None else torch.where(valid.unsqueeze(-3), scaled, 0.0)
