"""Any backbone as an encoder of images: published checkpoints, timm's models and torchvision's, by one spelling.

Above ``encoder``, ``convolution`` and ``group_channels``; ``opened`` puts images before it. ``timm:NAME`` and
``torchvision:NAME`` are pretrained, ``timm:NAME@random`` is not, ``timm:NAME@PATH`` has the weights of a file, and a
path alone is a checkpoint that ``layouts`` recognises.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import timm
import torch
import torchvision
from timm.models._manipulate import adapt_input_conv
from torch import Tensor, nn

from terrasieve import keyed
from terrasieve.errors import UserError
from terrasieve.nn import fitting, weights
from terrasieve.nn.convolution import ConvEncoder, first_conv
from terrasieve.nn.encoder import Encoder, initialise
from terrasieve.nn.encoder_settings import EncoderSettings, Pool, is_vit
from terrasieve.nn.group_channels import GroupEncoder
from terrasieve.nn.layouts import Recognised

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std of [0, 1], red first


class TorchvisionEncoder(nn.Module):
    """A torchvision model without its classifier.

    Attributes:
        vit: the model, under the name that it has in ``Encoder``.
        width: of the features.
    """

    def __init__(self, name: str, model: nn.Module, channels: int) -> None:
        """Take the classifier off and fit the first convolution to the bands."""
        super().__init__()
        self.name, self.vit, self.notes = name, model, list[str]()
        self.arguments: dict[str, Any] = {"in_chans": channels}
        self.width = _behead(model, name)
        first = first_conv(model)
        conv = cast(nn.Conv2d, model.get_submodule(first))
        if conv.in_channels != channels:
            fitted = adapt_input_conv(channels, conv.weight.data, conv.in_channels)
            conv.weight, conv.in_channels = nn.Parameter(fitted), channels
            self.notes.append(f"filters of RGB spread over {channels} bands (timm's rule), whatever their wavelength")

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
        untrained: the same with random weights; None where ``encoder`` is that.
        size_px: height and width that it wants.
        standard: mean and standard deviation of each band in [0, 1] that it was trained with; None = not known.
        notes: what was recognised, left out and changed.
    """

    encoder: AnyEncoder
    untrained: AnyEncoder | None
    size_px: tuple[int, int]
    standard: tuple[tuple[float, ...], tuple[float, ...]] | None
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
        opened = _of_timm if library == "timm" else _of_torchvision
        return opened(name, source, bands, size_px, seed, gsd_m)
    path = Path(spec)
    if not path.is_file():
        raise UserError(
            f"{spec}: no run, no exported folder, no file of weights and no timm:NAME or torchvision:NAME. "
            "Examples: runs/my_run, mae_pretrain_vit_base.pth, timm:resnet50, timm:vit_small_patch16_224@random."
        )
    found = weights.published(path)
    if found.kind == "groups":
        return _groups(found, path, bands, size_px, seed)
    if found.kind == "vit":
        return _vit(fitting.vit_name(found.state, path.name), found, str(path), bands, size_px, seed, gsd_m)
    if found.kind == "resnet":
        name = fitting.resnet_name(found.state, path.name)
        return _built(EncoderSettings(name=name, weights=str(path), gsd_m=gsd_m), bands, size_px or 224, seed, None)
    raise UserError(
        f"{path}: no layout is known with keys such as {', '.join(list(found.state)[:3])}. Name the timm model that it "
        f"is of: timm:NAME@{path}; docs/weights.md lists what is recognised."
    )


def _vit(
    name: str, found: Recognised, source: str, bands: Sequence[str], size_px: int | None, seed: int, gsd_m: float | None
) -> Backbone:
    patch_px = found.state["patch_embed.proj.weight"].shape[-1]
    size = size_px or patch_px * (fitting.side(found.state) or 224 // patch_px)
    count = fitting.depth(found.state)
    settings = EncoderSettings(name=name, patch_px=patch_px, depth=count, weights=source, gsd_m=gsd_m)
    return _built(settings, bands, size, seed, None)


def _groups(found: Recognised, path: Path, bands: Sequence[str], size_px: int | None, seed: int) -> Backbone:
    own = (fitting.side(found.state) or 12) * found.state["patch_embed.0.proj.weight"].shape[-1]
    size = (size_px or own, size_px or own)
    encoder, untrained = (GroupEncoder(found, bands, size, path.name) for _ in range(2))
    untrained.randomised(seed)
    return Backbone(encoder.eval(), untrained.eval(), size, None, tuple(encoder.notes))


def _of_timm(
    name: str, source: str, bands: Sequence[str], size_px: int | None, seed: int, gsd_m: float | None
) -> Backbone:
    if not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        raise UserError(f"timm:{name}: timm has no such model{f'; did you mean timm:{near[0]}' if near else ''}.")
    known = timm.get_pretrained_cfg(name)
    size = size_px or (known.input_size[-1] if known else 224)
    patch_px = patch_px_of(name) if is_vit(name) else 0
    given = {"random": None, "": "imagenet"}.get(source, source)
    settings = EncoderSettings(name=name, patch_px=patch_px, weights=given, gsd_m=gsd_m)
    standard = (tuple(known.mean), tuple(known.std)) if known and given == "imagenet" else None
    return _built(settings, bands, size, seed, standard)


def patch_px_of(name: str) -> int:
    """Return the side of the patches of one of timm's ViTs."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    return int(model.patch_embed.patch_size[0])


def _built(
    settings: EncoderSettings,
    bands: Sequence[str],
    size_px: int,
    seed: int,
    standard: tuple[tuple[float, ...], tuple[float, ...]] | None,
) -> Backbone:
    """Build an encoder of ours, a plain ViT over patches where it is one, and the untrained one beside it."""
    size = (size_px, size_px)
    plain = settings.model_copy(update={"weights": None})
    kind: type[Encoder | ConvEncoder] = Encoder if is_vit(settings.name) else ConvEncoder
    try:
        encoder = kind(settings, len(bands), size, seed, bands).eval()
    except UserError as error:
        if "is not a plain ViT" not in str(error):
            raise
        kind = ConvEncoder
        encoder = kind(settings, len(bands), size, seed, bands).eval()
    untrained = kind(plain, len(bands), size, seed).eval() if settings.weights else None
    return Backbone(encoder, untrained, size, standard, tuple(encoder.notes))


def _of_torchvision(
    name: str, source: str, bands: Sequence[str], size_px: int | None, seed: int, _: float | None
) -> Backbone:
    if name not in torchvision.models.list_models(module=torchvision.models):
        near = difflib.get_close_matches(name, torchvision.models.list_models(module=torchvision.models), n=1)
        said = f"; did you mean torchvision:{near[0]}" if near else ""
        raise UserError(f"torchvision:{name}: torchvision has no such classifier{said}.")
    if source not in ("", "random"):
        raise UserError(f"torchvision:{name}@{source}: give the file alone, or timm:NAME@{source}.")
    try:
        model = torchvision.models.get_model(name, weights=None if source else "DEFAULT")
    except Exception as error:  # urllib's and the cache's
        raise UserError(
            f"torchvision:{name}: no pretrained weights: {error}. They are fetched once into TORCH_HOME; "
            "copy them there, or take torchvision:NAME@random."
        ) from error
    size = size_px or 224
    encoder = TorchvisionEncoder(name, model, len(bands)).eval()
    untrained = TorchvisionEncoder(name, torchvision.models.get_model(name, weights=None), len(bands)).eval()
    untrained.randomised(seed)
    if source:
        return Backbone(untrained, None, (size, size), None, tuple(encoder.notes))
    return Backbone(encoder, untrained, (size, size), IMAGENET, tuple(encoder.notes))


def _behead(model: nn.Module, name: str) -> int:
    """Put nothing in the place of the classifier's last layer; return how many features reach it."""
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(f"torchvision:{name}: it has no linear classifier that could be taken off.")
    parent, _, child = linear[-1].rpartition(".")
    width = int(cast(nn.Linear, model.get_submodule(linear[-1])).in_features)
    setattr(model.get_submodule(parent), child, nn.Identity())
    return width
