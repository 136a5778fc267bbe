"""Fitting: an encoder's published weights brought to other bands, another patch and another grid.

Between ``layouts`` and the loading in ``weights``. All by timm: patch embeddings by ``resample_patch_embed``
(FlexiViT, Beyer et al., CVPR 2023: the pseudo-inverse of resizing), positions by ``resample_abs_pos_embed``, filters of
RGB repeated over bands without names by ``adapt_input_conv``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models._manipulate import adapt_input_conv
from torch import Tensor, nn

from terrasieve.errors import UserError
from terrasieve.nn.layouts import RGB, Recognised, left_over

DEPTHS = {
    (2, 2, 2, 2, False): "resnet18",
    (3, 4, 6, 3, False): "resnet34",
    (3, 4, 6, 3, True): "resnet50",
    (3, 4, 23, 3, True): "resnet101",
    (3, 8, 36, 3, True): "resnet152",
}
WIDTHS = {192: "tiny_patch16", 384: "small_patch16", 768: "base_patch16", 1024: "large_patch16", 1280: "huge_patch14"}


def vit_name(state: Mapping[str, Tensor], origin: str) -> str:
    """Name timm's ViT of these weights by their width, which decides the number of heads as well.

    Raises:
        UserError: a width that none of the named ViTs has.
    """
    return vit_name_of(state["patch_embed.proj.weight"].shape[0], origin)


def vit_name_of(width: int, origin: str) -> str:
    """Name timm's ViT of a width, see :func:`vit_name`."""
    if width not in WIDTHS:
        raise UserError(
            f"{origin}: a ViT of width {width}; the widths {', '.join(map(str, WIDTHS))} are known. Name timm's model "
            "with timm:NAME@PATH, or as encoder.name."
        )
    return f"vit_{WIDTHS[width]}_224"


def resnet_name(state: Mapping[str, Tensor], origin: str) -> str:
    """Name the ResNet of these weights by its numbers of blocks.

    Raises:
        UserError: none that is known.
    """
    blocks = [len({key.split(".")[1] for key in state if key.startswith(f"layer{n}.")}) for n in (1, 2, 3, 4)]
    name = DEPTHS.get((*blocks, "layer1.0.conv3.weight" in state))  # type: ignore[arg-type]
    if name is None or state["layer1.0.conv2.weight"].shape[0] != 64:
        raise UserError(
            f"{origin}: a ResNet with {blocks} blocks that is none of {', '.join(DEPTHS.values())}; name timm's model "
            "with timm:NAME@PATH, or as encoder.name."
        )
    return name


def depth(state: Mapping[str, Tensor]) -> int:
    """Count a ViT's blocks."""
    return 1 + max((int(key.split(".")[1]) for key in state if key.startswith("blocks.")), default=-1)


def side(state: Mapping[str, Tensor]) -> int | None:
    """Return the side of the square grid that stored positions are of; None where none are, or no square."""
    if "pos_embed" not in state:
        return None
    patches = state["pos_embed"].shape[1] - 1
    return math.isqrt(patches) if math.isqrt(patches) ** 2 == patches else None


def fit_bands(
    weight_OIHW: Tensor, theirs: Sequence[str], mine: Sequence[str], count: int, origin: str
) -> tuple[Tensor, str]:
    """Bring the first filters to the bands of the images: mapped by name, repeated where they are of RGB, or refused.

    Args:
        weight_OIHW: I input channels, named ``theirs`` (empty: not known).
        mine: bands of the images, () = not known, then only ``count`` counts.
        count: of the bands of the images.
        origin: file or model, for messages.

    Returns:
        Filters of ``count`` channels, and what was done in words ("" where nothing was).

    Raises:
        UserError: where there is no honest way.
    """
    channels, order = weight_OIHW.shape[1], list(theirs)
    strange = [band for band in mine if band not in order]
    if channels == count and (tuple(mine) == tuple(theirs) or not (mine and theirs)):
        return weight_OIHW, ""
    if mine and not strange:
        rest = [band for band in order if band not in mine]
        without = f"; {', '.join(rest)}, which the images lack, count as average" if rest else ""
        return weight_OIHW[:, [order.index(band) for band in mine]], f"bands mapped by name{without}"
    if channels == count and len(strange) == count:
        return weight_OIHW, f"{count} bands taken in the order of the weights ({', '.join(theirs)})"
    if channels == 3 and 0 < len(strange) < count:
        mean = weight_OIHW.mean(dim=1)
        filters = [mean if band in strange else weight_OIHW[:, order.index(band)] for band in mine]
        told = f"bands mapped by name; {', '.join(strange)}, which the weights lack, repeat the mean of their filters"
        return torch.stack(filters, dim=1) * (channels / count), told
    if channels == 3:
        fitted = adapt_input_conv(count, weight_OIHW, channels)
        return fitted, f"filters of {', '.join(order or RGB)} repeated over {', '.join(mine) or f'{count} bands'}"
    named = [f"{n} ({', '.join(names) or 'not named'})" for n, names in ((channels, theirs), (count, mine))]
    raise UserError(
        f"{origin}: the weights see {named[0]} bands, the images have {named[1]}. Choose bands that the weights know "
        "(--bands, image.bands), as many as they see where their names are not known, or weights of RGB."
    )


def first_conv(model: nn.Module) -> str:
    """Name a model's first convolution, which sees the bands; "" where it has none."""
    return next((path for path, module in model.named_modules() if isinstance(module, nn.Conv2d)), "")


def fit_vit(
    found: Recognised,
    patch_px: int,
    grid: tuple[int, int],
    mine: Sequence[str],
    count: int,
    gsd_m: float | None,
    origin: str,
) -> tuple[dict[str, Tensor], list[str]]:
    """Fit a ViT's weights: bands, patch, positions.

    Returns:
        The state dict, and what was changed in words.
    """
    state, notes = dict(found.state), list[str]()
    weight, told = fit_bands(state["patch_embed.proj.weight"], found.bands, mine, count, origin)
    notes += [told] if told else []
    if weight.shape[-1] != patch_px:
        notes.append(f"patch embedding resampled from {weight.shape[-1]} to {patch_px} px")
        weight = resample_patch_embed(weight, [patch_px, patch_px])
    state["patch_embed.proj.weight"] = weight
    if gsd_m is not None and not found.layout.endswith("Scale-MAE"):
        raise UserError(
            f"encoder.gsd_m: only Scale-MAE's positions depend on the ground sample distance, and {origin} has the "
            f"{found.layout} layout; leave it out."
        )
    if found.positions is not None:
        state["pos_embed"] = found.positions(grid, gsd_m or 1.0)
        if found.layout.endswith("Scale-MAE"):
            notes.append(f"positions for {gsd_m or 1:g} m per pixel{'' if gsd_m else ' (gsd_m was not told)'}")
    elif "pos_embed" in state:
        state["pos_embed"], told = _fit_positions(state["pos_embed"], grid, origin)
        notes += [told] if told else []
    return state, notes


def _fit_positions(positions: Tensor, grid: tuple[int, int], origin: str) -> tuple[Tensor, str]:
    patches = positions.shape[1] - 1
    if patches == grid[0] * grid[1]:
        return positions, ""
    old = math.isqrt(patches)
    if old * old != patches:
        raise UserError(
            f"encoder.weights: {origin} has positions of {patches} patches, which are no square; give the run's or "
            "the exported folder, which says how they lie."
        )
    fitted = resample_abs_pos_embed(positions, list(grid), [old, old], num_prefix_tokens=1)
    return fitted, f"positions resampled from {old} x {old} to {grid[0]} x {grid[1]} patches"


def load_all(model: nn.Module, found: Recognised, state: Mapping[str, Tensor], origin: str, advice: str) -> None:
    """Load a state dict, every tensor of both sides.

    Raises:
        UserError: naming what is left over, missing or of another shape.
    """
    mine = model.state_dict()
    unknown = [key for key in state if key not in mine]
    missing = [key for key in mine if key not in state]
    other = [
        f"{key} {tuple(value.shape)} for {tuple(mine[key].shape)}"
        for key, value in state.items()
        if key in mine and mine[key].shape != value.shape
    ]
    if not (unknown or missing or other):
        model.load_state_dict(dict(state))
        return
    told = [f"{found.dropped}; {left_over([], unknown)}" if unknown else found.dropped]
    told += [f"{len(missing)} tensors are missing, e.g. {', '.join(missing[:3])}"] if missing else []
    told += [f"{len(other)} of another shape, e.g. {other[0]}"] if other else []
    raise UserError(f"encoder.weights: {origin} has the layout of {found.layout}: {'; '.join(told)}. {advice}")
