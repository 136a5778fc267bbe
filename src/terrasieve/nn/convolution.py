"""Backbones of timm that are no plain ViT, ResNets first: one vector of features per image.

Beside ``encoder``, for the methods that need no tokens (the contrastive ones); ``encoder_of`` chooses between the two.
Its state dict stays timm's, so an exported backbone loads into ``timm.create_model``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import timm
from torch import Tensor, nn, no_grad

from terrasieve import keyed
from terrasieve.errors import UserError
from terrasieve.nn import fitting, weights
from terrasieve.nn.encoder import Encoder, initialise
from terrasieve.nn.encoder_settings import EncoderSettings, Pool, is_vit
from terrasieve.nn.layouts import Recognised


class ConvEncoder(nn.Module):
    """A timm backbone, its last feature map averaged.

    Attributes:
        vit: the timm model, under the name that it has in ``Encoder``; ``vit.state_dict()`` is what is exported.
        width: of the features.
        arguments: what ``timm.create_model`` was given beside the name.
        notes: what was done to published weights, in words.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        channels: int,
        size_px: tuple[int, int],
        seed: int = 0,
        bands: Sequence[str] | None = None,
        content: Recognised | None = None,
    ) -> None:
        """Build the backbone with weights drawn from ``seed``.

        Args:
            settings: name and weights; ``patch_px``, ``depth`` and ``drop_path`` are a ViT's and must be left out.
            channels: number of bands.
            size_px: height and width of the images; backbones that depend on it (Swin) are built for it.
            seed: of the initial weights.
            bands: names of the bands, by which published weights are fitted to them.
            content: of ``settings.weights``, where that file has been read already.

        Raises:
            UserError: if timm cannot build it, or the weights to begin with cannot be had or do not fit.
        """
        super().__init__()
        self.name, self.notes = settings.name, list[str]()
        self.arguments: dict[str, Any] = {"in_chans": channels, "global_pool": "avg"}
        if is_vit(settings.name):  # with registers or the like, or Encoder would take it
            self.arguments |= {"fc_norm": False}  # its norm stays before the mean
        if timm.get_pretrained_cfg_value(settings.name, "fixed_input_size"):
            self.arguments["img_size"] = list(size_px)
        if settings.weights == "imagenet":
            self.vit, self.notes = weights.pretrained(settings.name, self.arguments, bands or ())
        else:
            try:
                self.vit = timm.create_model(settings.name, num_classes=0, **self.arguments)
            except (RuntimeError, TypeError, ValueError, AssertionError) as error:
                raise UserError(f"encoder.name: timm cannot build {settings.name!r}: {error}") from error
        self.width = int(cast(int, getattr(self.vit, "head_hidden_size", self.vit.num_features)))
        if settings.weights is None:
            _initialise(self.vit, seed)
        elif settings.weights != "imagenet":
            self.notes += _load(self.vit, settings, channels, bands or (), content)

    def features(self, images_BCHW: Tensor, pool: Pool = "mean") -> Tensor:
        """Compute one vector per image: (B, C, H, W) normalised -> (B, D), of images of any size that timm takes.

        Raises:
            UserError: if a class token is asked for.
        """
        if pool != "mean":
            raise UserError(f"pool {pool!r}: {self.name} has no class token; use mean.")
        features: Tensor = self.vit(images_BCHW)
        return features


def encoder_of(
    settings: EncoderSettings,
    channels: int,
    size_px: tuple[int, int],
    seed: int = 0,
    bands: Sequence[str] | None = None,
) -> Encoder | ConvEncoder:
    """Build the encoder that a name of timm's asks for: a ViT over patches, or any other backbone as it is."""
    kind = Encoder if is_vit(settings.name) else ConvEncoder
    return kind(settings, channels, size_px, seed, bands)


def _initialise(model: nn.Module, seed: int) -> None:
    """Draw convolutions as ResNets do (Kaiming normal, fan-out; He et al. 2015), the rest as ``initialise`` does.

    What timm sets to constants (scales of norms, layer scales) stays.
    """
    initialise(model, seed, "encoder")
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            draw = keyed.generator(seed, f"weights/encoder/{path}.weight")
            with no_grad():
                module.weight.normal_(std=math.sqrt(2 / fan_out), generator=draw)


def _load(
    model: nn.Module, settings: EncoderSettings, channels: int, bands: Sequence[str], content: Recognised | None
) -> list[str]:
    """Load weights of ours, or a file of published ones, all of them; return what was done in words.

    Raises:
        UserError: if they are of another backbone, or of bands that cannot be fitted.
    """
    source = Path(str(settings.weights))
    if source.is_file():
        return _load_file(model, settings.name, content or weights.published(source), source.name, channels, bands)
    found = weights.find(source)
    mine = model.state_dict()
    wrong = sorted(
        key
        for key in {*found.state, *mine}
        if key not in mine or key not in found.state or mine[key].shape != found.state[key].shape
    )
    if wrong:
        raise UserError(
            f"encoder.weights: {found.path} does not fit {settings.name}: {len(wrong)} tensors are missing, surplus or "
            f"of another shape, {wrong[0]} among them; set encoder.name={found.name or 'the one that they are of'} and "
            "the same image.bands."
        )
    model.load_state_dict(found.state)
    return []


def _load_file(
    model: nn.Module, name: str, found: Recognised, origin: str, channels: int, bands: Sequence[str]
) -> list[str]:
    """Load a file of published weights into timm's backbone of that name; return what was done in words.

    Raises:
        UserError: if they are of another backbone, or of bands that cannot be fitted.
    """
    first = f"{fitting.first_conv(model)}.weight"
    state, told = dict(found.state), ""
    if first in state:
        state[first], told = fitting.fit_bands(state[first], found.bands, bands, channels, origin)
    fitting.load_all(model, found, state, origin, f"They do not fit {name}: set encoder.name to what they are of.")
    return [f"{origin}: {found.layout} layout; {found.dropped}", *([told] if told else [])]
