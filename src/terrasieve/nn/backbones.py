"""Any backbone as an encoder of images: published checkpoints, timm's models and torchvision's, by one spelling.

Above ``encoder``, ``convolution`` and ``group_channels``; ``opened`` puts images before it. ``timm:NAME`` and
``torchvision:NAME`` are pretrained, with ``@random`` they are not, ``timm:NAME@PATH`` has the weights of a file, and a
path alone is a checkpoint that ``layouts`` recognises.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import timm
import torch
import torchvision
from torch import Tensor, nn

from terrasieve import keyed
from terrasieve.errors import UserError
from terrasieve.nn import fitting, weights
from terrasieve.nn.convolution import ConvEncoder
from terrasieve.nn.encoder import Encoder, initialise
from terrasieve.nn.encoder_settings import EncoderSettings, Pool, is_vit
from terrasieve.nn.group_channels import GroupEncoder
from terrasieve.nn.layouts import RGB, Recognised
from terrasieve.nn.packed import is_plain

Standard = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of pixels in [0, 1], red first


class TorchvisionEncoder(nn.Module):
    """A torchvision model without its classifier.

    Attributes:
        vit: the model, under the name that it has in ``Encoder``.
        width: of the features.
    """

    def __init__(self, name: str, model: nn.Module, bands: Sequence[str]) -> None:
        """Take the classifier off and fit the first convolution, of RGB, to the bands."""
        super().__init__()
        self.name, self.vit = name, model
        self.width = _behead(model, name)
        conv = cast(nn.Conv2d, model.get_submodule(fitting.first_conv(model)))
        fitted, told = fitting.fit_bands(conv.weight.data, RGB, bands, len(bands), f"torchvision:{name}")
        conv.weight, conv.in_channels = nn.Parameter(fitted), len(bands)
        self.notes = [told] if told else []

    def randomised(self, seed: int) -> None:
        """Draw weights by key, positions too, which torchvision draws at random."""
        initialise(self.vit, seed, "encoder")
        for path, parameter in self.vit.named_parameters():
            if "pos_embed" in path:
                nn.init.normal_(parameter, std=0.02, generator=keyed.generator(seed, f"weights/encoder/{path}"))

    def features(self, images_BCHW: Tensor, pool: Pool = "mean") -> Tensor:
        """Compute one vector per image, as the model gives it to its classifier: (B, C, H, W) -> (B, D)."""
        if pool != "mean":
            raise UserError(f"pool {pool!r}: what {self.name} pools is its own affair; use mean.")
        found: Tensor = self.vit(images_BCHW)
        return found.flatten(1)


AnyEncoder = Encoder | ConvEncoder | GroupEncoder | TorchvisionEncoder


class Backbone(NamedTuple):
    """An encoder, opened.

    Attributes:
        encoder: with its weights.
        untrained: builds the same with random weights; None where ``encoder`` is that.
        size_px: height and width that it wants.
        standard: of the pixels that it was trained with; None = not known.
        notes: what was recognised, left out and changed.
    """

    encoder: AnyEncoder
    untrained: Callable[[], AnyEncoder] | None
    size_px: tuple[int, int]
    standard: Standard | None
    notes: tuple[str, ...]


def open_backbone(
    spec: str, bands: Sequence[str], size_px: int | None = None, seed: int = 0, gsd_m: float | None = None
) -> Backbone:
    """Build the encoder that a spelling names, for images of these bands.

    Args:
        spec: see the head of this file.
        bands: names, in the order of the images' channels.
        size_px: side of the images; None = what the backbone was trained at.
        seed: of random weights.
        gsd_m: metres per pixel, for Scale-MAE's positions.

    Raises:
        UserError: an unknown name, or weights that cannot be had, recognised or fitted.
    """
    library, colon, rest = spec.partition(":")
    if colon and library in ("timm", "torchvision"):
        name, _, source = rest.partition("@")
        if library == "timm":
            return _of_timm(name, source, bands, size_px, seed, gsd_m)
        _refuse_metres(spec, gsd_m)
        return _of_torchvision(name, source, bands, size_px, seed)
    path = Path(spec)
    if not path.is_file():
        raise UserError(
            f"{spec}: no run, no exported folder, no file of weights and no timm:NAME or torchvision:NAME. "
            "Examples: runs/my_run, mae_pretrain_vit_base.pth, timm:resnet50, timm:vit_small_patch16_224@random."
        )
    found = weights.published(path)
    if found.kind == "vit":
        return _vit(found, path, bands, size_px, seed, gsd_m)
    _refuse_metres(spec, gsd_m)
    if found.kind == "groups":
        return _groups(found, path, bands, size_px, seed)
    if found.kind == "resnet":
        settings = EncoderSettings(name=fitting.resnet_name(found.state, path.name), weights=str(path))
        return _built(ConvEncoder, settings, bands, size_px or 224, seed, found)
    raise UserError(
        f"{path}: no layout is known with keys such as {', '.join(list(found.state)[:3])}. Name the timm model that it "
        f"is of: timm:NAME@{path}; docs/weights.md lists what is recognised."
    )


def _refuse_metres(spec: str, gsd_m: float | None) -> None:
    if gsd_m is not None:
        raise UserError(f"{spec}: --gsd-m is for Scale-MAE's positions, which this encoder has not; leave it out.")


def _vit(
    found: Recognised, path: Path, bands: Sequence[str], size_px: int | None, seed: int, gsd_m: float | None
) -> Backbone:
    patch_px = found.state["patch_embed.proj.weight"].shape[-1]
    size = size_px or patch_px * (fitting.side(found.state) or 224 // patch_px)
    name, depth = fitting.vit_name(found.state, path.name), fitting.depth(found.state)
    settings = EncoderSettings(name=name, patch_px=patch_px, depth=depth, weights=str(path), gsd_m=gsd_m)
    return _built(Encoder, settings, bands, size, seed, found)


def _groups(found: Recognised, path: Path, bands: Sequence[str], size_px: int | None, seed: int) -> Backbone:
    own = (fitting.side(found.state) or 12) * found.state["patch_embed.0.proj.weight"].shape[-1]
    size = (size_px or own, size_px or own)
    encoder = GroupEncoder(found, bands, size, path.name).eval()

    def untrained() -> AnyEncoder:
        other = copy.deepcopy(encoder)
        other.randomised(seed)
        return other

    return Backbone(encoder, untrained, size, None, tuple(encoder.notes))


def _of_timm(
    name: str, source: str, bands: Sequence[str], size_px: int | None, seed: int, gsd_m: float | None
) -> Backbone:
    check_timm(name)
    known = timm.get_pretrained_cfg(name)
    size = size_px or (known.input_size[-1] if known else 224)
    given = {"random": None, "": "imagenet"}.get(source, source)
    standard = (tuple(known.mean), tuple(known.std)) if known and given == "imagenet" else None
    kind, patch_px = kind_of(name)
    if given in (None, "imagenet") or kind is ConvEncoder:
        _refuse_metres(f"timm:{name}", gsd_m)
    settings = EncoderSettings(name=name, patch_px=patch_px, weights=given, gsd_m=gsd_m)
    return _built(kind, settings, bands, size, seed)._replace(standard=standard)


def check_timm(name: str) -> None:
    """Raise a UserError where timm has no model of this name."""
    if not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        raise UserError(f"timm:{name}: timm has no such model{f'; did you mean timm:{near[0]}' if near else ''}.")


def kind_of(name: str) -> tuple[type[Encoder | ConvEncoder], int]:
    """Tell whether timm's model is a plain ViT or goes as it is, and the side of its patches, 0 without."""
    if not is_vit(name):
        return ConvEncoder, 0
    with torch.device("meta"):
        model: Any = timm.create_model(name, num_classes=0)
    return Encoder if is_plain(model) else ConvEncoder, int(model.patch_embed.patch_size[0])


def _built(
    kind: type[Encoder | ConvEncoder],
    settings: EncoderSettings,
    bands: Sequence[str],
    size_px: int,
    seed: int,
    content: Recognised | None = None,
) -> Backbone:
    """Build an encoder of ours; say how the untrained one beside it is built."""
    size = (size_px, size_px)
    plain = settings.model_copy(update={"weights": None, "gsd_m": None})
    encoder = kind(settings, len(bands), size, seed, bands, content).eval()

    def untrained() -> AnyEncoder:
        return kind(plain, len(bands), size, seed).eval()

    return Backbone(encoder, untrained if settings.weights else None, size, None, tuple(encoder.notes))


def _of_torchvision(name: str, source: str, bands: Sequence[str], size_px: int | None, seed: int) -> Backbone:
    if name not in torchvision.models.list_models(module=torchvision.models):
        near = difflib.get_close_matches(name, torchvision.models.list_models(module=torchvision.models), n=1)
        said = f"; did you mean torchvision:{near[0]}" if near else ""
        raise UserError(f"torchvision:{name}: torchvision has no such classifier{said}.")
    if source not in ("", "random"):
        raise UserError(f"torchvision:{name}@{source}: give the file alone, or timm:NAME@{source}.")
    best: Any = torchvision.models.get_model_weights(name).DEFAULT
    try:
        model = torchvision.models.get_model(name, weights=None if source else best)
    except Exception as error:  # urllib's and the cache's
        raise UserError(
            f"torchvision:{name}: no pretrained weights: {error}. They are fetched once into TORCH_HOME; "
            f"copy them there, or take torchvision:{name}@random."
        ) from error
    preset = best.transforms()
    size = (size_px or preset.crop_size[0],) * 2
    encoder = TorchvisionEncoder(name, model, bands).eval()
    _try(encoder, len(bands), size, preset.crop_size[0])
    if source:
        encoder.randomised(seed)
        return Backbone(encoder, None, size, None, ())

    def untrained() -> AnyEncoder:
        other = TorchvisionEncoder(name, torchvision.models.get_model(name, weights=None), bands).eval()
        other.randomised(seed)
        return other

    return Backbone(encoder, untrained, size, (tuple(preset.mean), tuple(preset.std)), tuple(encoder.notes))


def _try(encoder: TorchvisionEncoder, channels: int, size_px: tuple[int, int], native_px: int) -> None:
    """Encode one empty image, since torchvision's models tell only then what size they cannot take."""
    try:
        with torch.no_grad():
            encoder.features(torch.zeros(1, channels, *size_px))
    except (AssertionError, RuntimeError) as error:
        raise UserError(
            f"torchvision:{encoder.name}: cannot take images of {size_px[0]} px: {error} Leave out --size-px "
            f"({native_px} px then), or take timm's model, whose positions are resampled."
        ) from error


def _behead(model: nn.Module, name: str) -> int:
    """Put nothing in the place of the classifier's last layer; return how many features reach it."""
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(f"torchvision:{name}: it has no linear classifier that could be taken off.")
    parent, _, child = linear[-1].rpartition(".")
    width = int(cast(nn.Linear, model.get_submodule(linear[-1])).in_features)
    setattr(model.get_submodule(parent), child, nn.Identity())
    return width
