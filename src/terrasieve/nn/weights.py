"""Weights: where an encoder's training begins, when not at random.

Called by ``encoder`` and ``convolution``: timm's pretrained weights, ours from a run's or an exported folder, taken as
they are, or a file of published ones, recognised by ``layouts`` and fitted by ``fitting``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import timm
import yaml
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from terrasieve.errors import UserError
from terrasieve.nn import checkpoints, fitting
from terrasieve.nn.encoder_settings import EncoderSettings
from terrasieve.nn.layouts import RGB, Recognised, recognise
from terrasieve.nn.packed import PackedBlock, is_plain


class Found(NamedTuple):
    """Weights and what is known of them: the ViT's name, bands, and the grid of patches, rows and columns."""

    path: Path
    state: dict[str, Tensor]
    name: str | None = None
    bands: tuple[str, ...] = ()
    grid: tuple[int, int] | None = None


def plain_vit(
    settings: EncoderSettings, arguments: dict[str, Any], bands: Sequence[str], notes: list[str]
) -> VisionTransformer:
    """Build timm's ViT, whose blocks learn to take packed tokens; note what was done to its weights.

    Raises:
        UserError: timm has no plain ViT of that name, or its weights cannot be had.
    """
    if settings.weights == "imagenet":
        model, notes[:] = pretrained(settings.name, arguments, bands)
    else:
        try:
            model = timm.create_model(settings.name, num_classes=0, **arguments)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            raise UserError(f"encoder.name: timm cannot build {settings.name!r}: {error}") from error
    if not is_plain(model):
        raise UserError(
            f"encoder.name: {settings.name!r} is not a plain ViT with one class token. "
            "Use vit_tiny_patch16_224, vit_small_patch16_224, vit_base_patch16_224 or vit_large_patch16_224."
        )
    vit = cast(VisionTransformer, model)
    for block in vit.blocks:
        block.__class__ = PackedBlock  # the same parts under the same names, so the state dict stays timm's
    return vit


def pretrained(name: str, arguments: dict[str, Any], bands: Sequence[str] = ()) -> tuple[nn.Module, list[str]]:
    """Build timm's backbone with the weights that timm has for it, of RGB; patch and grid are fitted by timm.

    Args:
        name: of the backbone.
        arguments: of ``timm.create_model``.
        bands: names of the images' bands, to which the first filters are fitted; () = by timm's rule.

    Returns:
        The backbone, and what was done in words.

    Raises:
        UserError: if they cannot be fetched or do not fit.
    """
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0, **arguments)
        conv = model.get_submodule(fitting.first_conv(model))
        if tuple(bands) == RGB or not set(bands) & set(RGB) or getattr(conv, "in_channels", 0) != len(bands):
            told = f"filters of {', '.join(RGB)} repeated over {', '.join(bands)}"
            return model, [told] if bands and tuple(bands) != RGB else []
        of_rgb = timm.create_model(name, pretrained=True, num_classes=0, **arguments | {"in_chans": 3})
        filters = cast(nn.Conv2d, of_rgb.get_submodule(fitting.first_conv(of_rgb))).weight.data
        fitted, told = fitting.fit_bands(filters, RGB, bands, len(bands), name)
        cast(nn.Conv2d, conv).weight.data = fitted
        return model, [told]
    except UserError:
        raise
    except Exception as error:  # the hub's client raises errors of several libraries
        raise UserError(
            f"encoder.weights: timm's pretrained weights of {name!r} cannot be had: {_first_line(error)} They are "
            "fetched once from the Hugging Face hub and kept in its cache; on a machine without network, copy the "
            "cache (HF_HOME) from one that has them, or begin from a file (encoder.weights=FILE, timm:NAME@FILE) or at "
            "random (encoder.weights=null, timm:NAME@random)."
        ) from error


def load(
    vit: VisionTransformer,
    source: str,
    patch_px: int,
    grid: tuple[int, int],
    bands: Sequence[str] = (),
    gsd_m: float | None = None,
    content: Recognised | None = None,
) -> list[str]:
    """Load weights into a ViT, all of them; positions are resampled if the grid of patches is another.

    Args:
        vit: is changed in place.
        source: a run's or an exported folder, whose bands and patch have to be the ViT's; or a file, which is fitted.
        patch_px, grid: of the ViT.
        bands: names of the images' bands, () = not known.
        gsd_m: metres per pixel of the images, for Scale-MAE's positions.
        content: of the file, where it has been read already.

    Returns:
        What was recognised, left out and changed, in words.

    Raises:
        UserError: if there are none, or they are of another ViT.
    """
    path = Path(source)
    if path.is_file():
        content = content or published(path)
        if content.kind != "vit":
            raise UserError(f"encoder.weights: {path} does not hold a plain ViT: {_other(content)}")
        return _load_file(vit, content, path.name, patch_px, grid, bands, gsd_m)
    found = find(path)
    _check(found, cast(dict[str, Tensor], vit.state_dict()), patch_px)
    positions = resample_abs_pos_embed(found.state["pos_embed"], list(grid), list(found.grid or grid), 1)
    vit.load_state_dict(found.state | {"pos_embed": positions})
    return []


def _load_file(
    vit: VisionTransformer,
    found: Recognised,
    origin: str,
    patch_px: int,
    grid: tuple[int, int],
    bands: Sequence[str],
    gsd_m: float | None,
) -> list[str]:
    state, notes = fitting.fit_vit(found, patch_px, grid, bands, vit.patch_embed.proj.in_channels, gsd_m, origin)
    width, blocks = len(state["patch_embed.proj.weight"]), fitting.depth(state)
    advice = f"A ViT of width {width} and {blocks} blocks: set encoder.name and encoder.depth to one, or take others."
    fitting.load_all(vit, found, state, origin, advice)
    return [f"{origin}: {found.layout} layout; {found.dropped}", *notes]


def published(path: Path) -> Recognised:
    """Read a file of weights and recognise its layout.

    Raises:
        UserError: a file that cannot be read or mapped.
    """
    if path.suffix not in checkpoints.SUFFIXES:
        raise UserError(
            f"encoder.weights: {path} has none of the endings {', '.join(checkpoints.SUFFIXES)} of a file of weights."
        )
    return recognise(checkpoints.read(path), f"encoder.weights: {path.name}")


def _other(found: Recognised) -> str:
    return {
        "groups": f"the {found.layout} layout has several tokens at a place, each of a group of bands, which a method "
        "that masks a grid of patches cannot train; terrasieve evaluate takes it.",
        "resnet": "it is a ResNet; set encoder.name to it.",
        "other": f"no layout is known with keys such as {', '.join(list(found.state)[:3])}; see docs/weights.md.",
    }[found.kind]


def find(path: Path) -> Found:
    """Read weights and what stands beside them.

    Raises:
        UserError: if ``path`` is none of what is known.
    """
    if path.is_dir() and (path / "recipe.yaml").is_file():
        if not (path / "weights.safetensors").is_file():
            raise UserError(
                f"encoder.weights: the run {path} has no weights.safetensors yet; let it end, or stop it with Ctrl-C."
            )
        recipe = yaml.safe_load((path / "recipe.yaml").read_text(encoding="utf-8"))
        image, encoder = recipe.get("image", {}), recipe.get("encoder", {})
        size, patch_px = image.get("size_px"), encoder.get("patch_px", 16)
        return Found(
            path,
            checkpoints.read(path / "weights.safetensors"),
            encoder.get("name"),
            tuple(image.get("bands") or ()),
            _grid(size, patch_px) if patch_px else None,
        )
    if path.is_dir() and (path / "config.json").is_file() and (path / "model.safetensors").is_file():
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        arguments, about = config.get("model_args", {}), config.get("terrasieve", {})
        grid = _grid(arguments.get("img_size"), arguments.get("patch_size", 16))
        bands = tuple(about.get("bands") or ())
        return Found(path, checkpoints.read(path / "model.safetensors"), config.get("architecture"), bands, grid)
    raise UserError(
        f"encoder.weights: {str(path)!r} {'holds no weights' if path.exists() else 'does not exist'}. Give 'imagenet', "
        "a run's folder (with recipe.yaml and weights.safetensors), an exported folder (config.json and "
        f"model.safetensors) or a file of weights ({', '.join(checkpoints.SUFFIXES)})."
    )


def _check(found: Found, mine: dict[str, Tensor], patch_px: int) -> None:
    """Compare what decides a ViT's shape, so that a mismatch is told in the recipe's words."""
    if "patch_embed.proj.weight" not in found.state or "pos_embed" not in found.state:
        raise UserError(f"encoder.weights: {found.path} does not hold a ViT of ours (no patch_embed, no pos_embed).")
    width, bands, patch, _ = found.state["patch_embed.proj.weight"].shape
    my_width, my_bands = mine["patch_embed.proj.weight"].shape[:2]
    named = f" ({', '.join(found.bands)})" if found.bands else ""
    origin = f" of {found.name}" if found.name else ""
    for what, theirs, wanted, mend in (
        ("width", width, my_width, f"set encoder.name to the ViT that they are of{origin and f', {found.name}'}"),
        ("number of bands", f"{bands}{named}", str(my_bands), "choose the same bands with image.bands"),
        ("patch_px", patch, patch_px, f"set encoder.patch_px={patch}"),
        ("depth", fitting.depth(found.state), fitting.depth(mine), f"set encoder.depth={fitting.depth(found.state)}"),
    ):
        if str(theirs).partition(" ")[0] != str(wanted):
            raise UserError(
                f"encoder.weights: the weights{origin} in {found.path} have {what} {theirs}, the encoder of this "
                f"recipe has {wanted}; {mend}, or take other weights."
            )
    wrong = sorted(
        key
        for key in {*found.state, *mine}
        if key != "pos_embed"
        and (key not in mine or key not in found.state or mine[key].shape != found.state[key].shape)
    )
    if wrong:
        raise UserError(
            f"encoder.weights: {found.path} is of another ViT: {len(wrong)} tensors are missing, surplus or of another "
            f"shape, {wrong[0]} among them; set encoder.name to the ViT that the weights are of."
        )


def _grid(size: Any, patch_px: int) -> tuple[int, int] | None:
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return int(height) // patch_px, int(width) // patch_px


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0]
    return line if line.endswith(".") else f"{line}."
