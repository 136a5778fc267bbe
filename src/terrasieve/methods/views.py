"""Views: random crops and colours of a batch's images, made on the device, for any number of bands.

The first step of every contrastive method. Geometry is one affine resampling; what it draws is keyed by the step and
by a sample's place in the global batch, so that processes and micro-batches do not matter. Source: Burgert et al. 2026
for the two sets; METHODS.md, section 5. Images are normalised, so brightness and blur are in units of a band's standard
deviation and of pixels.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, conv2d, grid_sample, pad

from terrasieve.batch import Batch
from terrasieve.methods.reconstruction import draw_noise
from terrasieve.section import Section

_DRAWS = 12  # uniform numbers that a view needs
_BLUR_REACH = 3  # standard deviations


class ViewSettings(Section):
    """How a view differs from its image; every switch can be set alone.

    Attributes:
        crop_scale: smallest and largest share of the image's area.
        crop_ratio: smallest and largest width / height.
        flips: mirror left-right and up-down, each with probability 1/2.
        turns: turn by 0, 90, 180 or 270 degrees.
        brightness: largest shift, the same for all bands.
        contrast: largest relative change around each band's mean of the view.
        blur: probability of a Gaussian blur.
        blur_px: smallest and largest standard deviation of the blur.
        grey: probability that every band becomes the mean over bands.
    """

    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flips: bool = True
    turns: bool = True
    brightness: float = Field(default=0.0, ge=0)
    contrast: float = Field(default=0.0, ge=0, lt=1)
    blur: float = Field(default=0.0, ge=0, le=1)
    blur_px: tuple[float, float] = (0.1, 2.0)
    grey: float = Field(default=0.0, ge=0, le=1)


SETS = {
    "geometric": ViewSettings(),
    "standard": ViewSettings(brightness=0.1, contrast=0.3, blur=0.5, grey=0.2),
}
Views = Annotated[
    ViewSettings, BeforeValidator(lambda given: SETS.get(given, given) if isinstance(given, str) else given)
]


def draw_views(batch: Batch, generator: torch.Generator, settings: ViewSettings, side_px: int, count: int) -> Tensor:
    """Make views of every image of a batch; where a batch has neighbours, views are cut from them in turn.

    So with another date of each place as its neighbour (``views_from: same_place``) the first view is of the image's
    own date and the second of the other (Ayush et al., ICCV 2021; Manas et al., "Seasonal Contrast", ICCV 2021).

    Args:
        batch: normalised images, and neighbours if there are any, on the device.
        generator: of the step; advanced by the global batch's draws.
        settings: what may differ.
        side_px: height and width of a view.
        count: views of an image.

    Returns:
        (count, B, C, side_px, side_px) float32; where there is no data, 0.
    """
    B, C = batch.image.shape[:2]
    noise_VBU = draw_noise(batch, generator, count * _DRAWS).view(B, count, _DRAWS).transpose(0, 1)
    dates = [batch.image] if batch.neighbours is None else [batch.image, *batch.neighbours.unbind(1)]
    views = [_view(dates[n % len(dates)].float(), noise_BU, settings, side_px) for n, noise_BU in enumerate(noise_VBU)]
    return torch.stack(views).view(count, B, C, side_px, side_px)


def _view(image_BCHW: Tensor, noise_BU: Tensor, settings: ViewSettings, side_px: int) -> Tensor:
    u = noise_BU.unbind(1)
    view = _cut(image_BCHW, u[:7], settings, side_px)
    if settings.grey:
        view = torch.where((u[7] < settings.grey)[:, None, None, None], view.mean(dim=1, keepdim=True), view)
    if settings.contrast:
        mean = view.mean(dim=(2, 3), keepdim=True)
        view = mean + (view - mean) * (1 + settings.contrast * _signed(u[8]))
    if settings.brightness:
        view = view + settings.brightness * _signed(u[9])
    if settings.blur:
        low, high = settings.blur_px
        blurred = _blur(view, low + (high - low) * u[10], math.ceil(_BLUR_REACH * high))
        view = torch.where((u[11] < settings.blur)[:, None, None, None], blurred, view)
    return view


def _signed(u_B: Tensor) -> Tensor:
    return (2 * u_B - 1)[:, None, None, None]


def _cut(image_BCHW: Tensor, u: tuple[Tensor, ...], settings: ViewSettings, side_px: int) -> Tensor:
    """Crop, mirror, turn and resample in one step; an image much larger than the view is averaged down first."""
    shrink = min(image_BCHW.shape[-2:]) // (2 * side_px)
    if shrink > 1:
        image_BCHW = avg_pool2d(image_BCHW, shrink)
    area = settings.crop_scale[0] + (settings.crop_scale[1] - settings.crop_scale[0]) * u[0]
    low, high = (math.log(ratio) for ratio in settings.crop_ratio)
    stretch = (low + (high - low) * u[1]).exp()
    # A crop that would stick out is cut to the image, so that area and aspect are as drawn nearly always.
    width, height = (area * stretch).sqrt().clamp(max=1), (area / stretch).sqrt().clamp(max=1)
    x, y = (1 - width) * (2 * u[2] - 1), (1 - height) * (2 * u[3] - 1)
    mirror = [torch.where(u[4 + axis] < 0.5, -1.0, 1.0) if settings.flips else torch.ones_like(x) for axis in (0, 1)]
    quarters = (u[6] * 4).floor() if settings.turns else torch.zeros_like(x)
    cosine, sine = (quarters * (math.pi / 2)).cos().round(), (quarters * (math.pi / 2)).sin().round()
    theta_B23 = torch.stack(
        [
            torch.stack([width * mirror[0] * cosine, -width * mirror[0] * sine, x], dim=1),
            torch.stack([height * mirror[1] * sine, height * mirror[1] * cosine, y], dim=1),
        ],
        dim=1,
    )
    size = [len(x), image_BCHW.shape[1], side_px, side_px]
    grid = affine_grid(theta_B23, size, align_corners=False)
    return grid_sample(image_BCHW, grid, padding_mode="border", align_corners=False)


def _blur(view_BCHW: Tensor, deviation_B: Tensor, reach_px: int) -> Tensor:
    """Blur every image by its own Gaussian, along rows and then columns, with mirrored edges."""
    B, C, H, W = view_BCHW.shape
    reach = min(reach_px, H - 1, W - 1)
    place = torch.arange(-reach, reach + 1, device=view_BCHW.device)
    kernel_BK = torch.softmax(-0.5 * (place / deviation_B[:, None]).square(), dim=1)
    kernel = kernel_BK.repeat_interleave(C, dim=0)[:, None, None]
    x = pad(view_BCHW, (reach, reach, reach, reach), mode="reflect").view(1, B * C, H + 2 * reach, W + 2 * reach)
    x = conv2d(conv2d(x, kernel, groups=B * C), kernel.transpose(2, 3), groups=B * C)
    return x.view(B, C, H, W)
