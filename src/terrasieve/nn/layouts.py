"""Layouts: in what shape published checkpoints come, told by their keys, and what of each is the encoder.

Between ``checkpoints``, which reads files, and ``weights``, which fits and loads. Key names and shapes are facts taken
from the projects' public repositories and TorchGeo 0.8.1 (named in ``docs/weights.md``); no code is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from terrasieve.errors import UserError
from terrasieve.nn.frames import FRAME, corner_embedding, patch_corners
from terrasieve.nn.position import sincos_1d

Kind = Literal["vit", "resnet", "groups", "other"]
Positions = Callable[[tuple[int, int], float], Tensor]  # grid, metres per pixel -> (1, 1 + N, D)

RGB = ("red", "green", "blue")
SENTINEL2 = (
    *("coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3"),
    *("nir", "nir08", "nir09", "cirrus", "swir1", "swir2"),
)
FMOW_SENTINEL = tuple(band for band in SENTINEL2 if band not in ("coastal", "nir09", "cirrus"))
BANDS = {3: RGB, 13: SENTINEL2}  # of files that say nothing of their bands; what else a count may mean is left open


class Layout(NamedTuple):
    """How one kind of checkpoint names its tensors.

    Attributes:
        name: of the method or program that writes it.
        marks: patterns, every one of which some key begins with.
        keep: prefix under which the encoder stands; "" = at the top.
        drop: patterns of keys that are no encoder: decoders, heads, momentum copies.
    """

    name: str
    marks: tuple[str, ...]
    keep: str
    drop: tuple[str, ...]


_DECODER = (r"decoder", r"mask_token")
_UP = (r"proj_up_", r"up_block")
_TUNED = (r"head\.", r"fc_norm\.")
_GROUPS = (r"patch_embed\.0\.proj\.", r"channel_embed")
# The first that fits counts. WRAPPED tells what stands around an encoder, PLAIN what the encoder is.
WRAPPED = (
    Layout("MoCo v2", (r"encoder_q\.",), "encoder_q.", (r"encoder_k\.", r"queue", r"encoder_q\.fc\.")),
    Layout(
        "MoCo v3",
        (r"base_encoder\.",),
        "base_encoder.",
        (r"momentum_encoder\.", r"predictor\.", r"base_encoder\.(head|fc)\."),
    ),
    Layout("DINO", (r"backbone\.", r"head\.(mlp|last_layer)"), "backbone.", (r"head\.", r"backbone\.(head|fc)\.")),
    Layout(
        "TorchGeo BYOL task",
        (r"model\.backbone\.model\.",),
        "model.backbone.model.",
        (r"model\.(target|predictor)", r"model\.backbone\._?projector\.", r"model\.backbone\.model\.(head|fc)\."),
    ),
    Layout(
        "TorchGeo MoCo or SimCLR task",
        (r"backbone\.",),
        "backbone.",
        (
            *(r"(backbone_momentum|projection_head\w*|prediction_head)\.", r"queue", r"augmentation\w*\."),
            r"backbone\.(head|fc)\.",
        ),
    ),
    Layout(
        "TorchGeo classification task",
        (r"model\.(conv1|patch_embed)\.",),
        "model.",
        (r"criterion\.", r"model\.(head|fc)\."),
    ),
    Layout(
        "TorchGeo segmentation task",
        (r"model\.encoder\.(conv1|patch_embed)\.",),
        "model.encoder.",
        (r"criterion\.", r"model\.(decoder|segmentation_head)\.", r"model\.encoder\.(head|fc)\."),
    ),
)
PLAIN = (
    Layout("SatMAE++ with channel groups", (*_GROUPS, r"proj_up_conv\."), "", (*_DECODER, *_UP, *_TUNED)),
    Layout("SatMAE with channel groups", _GROUPS, "", (*_DECODER, *_TUNED)),
    Layout("NeighborMAE", (r"patch_embed\.weight", r"img_embed"), "", (*_DECODER, r"cur_iter", r"pad_token")),
    Layout(
        "SelectiveMAE",
        (r"patch_embed\.proj\.", r"decoder_embed1\.", r"get_token_probs"),
        "",
        (*_DECODER, r"pos_embed_probs", r"get_token_probs", r"hog\.", r"token_select"),
    ),
    Layout(
        "CrossMAE",
        (r"patch_embed\.proj\.", r"decoder_blocks\.0\.cross_attn\."),
        "",
        (*_DECODER, r"wfm\.", r"dec_norms\."),
    ),
    Layout(
        "Scale-MAE",
        (r"patch_embed\.proj\.", r"(mask_token_decoder|fpn\.)"),
        "",
        (*_DECODER, r"fpn\.", r"fcn", r"pos_emb_projection\."),
    ),
    Layout(
        "Cross-Scale MAE", (r"patch_embed\.proj\.", r"decoder_embed\.", r"predictor"), "", (*_DECODER, r"predictor")
    ),
    Layout("SatMAE++", (r"patch_embed\.proj\.", r"proj_up_conv\."), "", (*_DECODER, *_UP)),
    Layout("MAE or SatMAE", (r"patch_embed\.proj\.", r"decoder_embed\."), "", _DECODER),
    Layout("torchvision ViT", (r"conv_proj\.", r"class_token", r"encoder\.layers\."), "", (r"heads\.",)),
    Layout("timm ViT", (r"patch_embed\.proj\.weight", r"blocks\.0\."), "", (r"head(_dist)?\.", r"mask_token")),
    Layout("ResNet of timm or torchvision", (r"conv1\.weight", r"layer1\.0\."), "", (r"fc\.",)),
)


class Recognised(NamedTuple):
    """An encoder's weights under timm's keys.

    Attributes:
        layout: name of the layout.
        kind: ``vit``, ``resnet``, ``groups`` (a ViT with several tokens at a place) or ``other``.
        state: its tensors.
        bands: names of its input channels, () where they are not known.
        dropped: what was left out, in words.
        positions: makes positions that are computed, not stored; None = ``pos_embed`` is resampled.
    """

    layout: str
    kind: Kind
    state: dict[str, Tensor]
    bands: tuple[str, ...]
    dropped: str
    positions: Positions | None = None


def recognise(state: Mapping[str, Tensor], origin: str) -> Recognised:
    """Tell a checkpoint's layout and take the encoder out of it, under timm's keys.

    Args:
        state: tensors by key.
        origin: file or name, for messages.

    Raises:
        UserError: a layout that cannot be mapped.
    """
    names, dropped, state = [], list[str](), dict(state)
    for table in (WRAPPED, PLAIN):
        layout = next((one for one in table if _fits(one, state)), None)
        if layout is None:
            continue
        gone = [key for key in state if any(re.match(drop, key) for drop in layout.drop)]
        outside = [key for key in state if key not in set(gone) and not key.startswith(layout.keep)]
        if outside:
            raise UserError(f"{origin}: {layout.name} layout; {left_over([*dropped, *gone], outside)}. {_HINT}")
        names.append(layout.name)
        dropped += gone
        state = {key.removeprefix(layout.keep): value for key, value in state.items() if key not in set(gone)}
    return _converted(", ".join(names), state, dropped, origin)


def left_over(dropped: list[str], unknown: list[str]) -> str:
    """Name what of a checkpoint is no encoder, and what nobody knows: ``left over: decoder (dropped), ...``."""
    parts = [f"{name} (dropped)" for name in _grouped(dropped)]
    parts += [f"{name} (unknown: refused)" for name in _grouped(unknown)]
    return f"left over: {', '.join(parts)}" if parts else "nothing left over"


def _grouped(keys: list[str]) -> list[str]:
    """Join keys of one part: its name where there are several, the whole key where there is one."""
    part = {key: "decoder" if key.startswith("decoder") else re.match(_PART, key)[0] for key in keys}  # type: ignore[index]
    count = Counter(part.values())
    return list(dict.fromkeys(name if count[name] > 1 else key for key, name in part.items()))


_PART = r"((model|backbone|encoder_q|base_encoder)\.)*[^.]*"  # its first name, after those of what stands around it


def _fits(layout: Layout, state: Mapping[str, Tensor]) -> bool:
    return all(any(re.match(mark, key) for key in state) for mark in layout.marks)


_HINT = (
    "Take those keys out, or give the backbone alone: a flat state dict with the keys of a timm model, as "
    "timm:NAME@PATH for one that is no plain ViT and no ResNet."
)


def _converted(name: str, state: dict[str, Tensor], gone: list[str], origin: str) -> Recognised:
    """Bring an encoder's own names and shapes to timm's."""
    dropped = left_over(gone, [])
    if name.endswith("channel groups"):
        return Recognised(name, "groups", state, FMOW_SENTINEL, dropped)
    if name.endswith("NeighborMAE"):
        return _neighbor_mae(name, state, dropped, origin)
    if name.endswith("torchvision ViT"):
        state = _torchvision_vit(state)
    if "patch_embed.proj.weight" in state:
        _refuse_what_timm_has_not(name, state, origin)
        bands = BANDS.get(state["patch_embed.proj.weight"].shape[1], ())
        scaled = _scaled_by_ground(state) if name.endswith("Scale-MAE") else None
        return Recognised(name, "vit", state, bands, dropped, scaled)
    if name.endswith("torchvision"):
        return Recognised(name, "resnet", state, BANDS.get(state["conv1.weight"].shape[1], ()), dropped)
    return Recognised(name or "no known layout", "other", state, (), dropped)


def _refuse_what_timm_has_not(name: str, state: dict[str, Tensor], origin: str) -> None:
    width = state["patch_embed.proj.weight"].shape[0]
    if "pos_embed" in state and state["pos_embed"].shape[-1] != width:
        raise UserError(
            f"{origin}: positions have {state['pos_embed'].shape[-1]} of {width} channels, as in SatMAE's temporal "
            "model, whose other channels encode the dates of three images. It cannot be mapped: a single image has no "
            "such input. Take SatMAE's fMoW-RGB or fMoW-Sentinel checkpoint."
        )
    if "norm.weight" not in state and "fc_norm.weight" in state:
        raise UserError(
            f"{origin}: {name} layout, fine-tuned with averaged tokens: fc_norm stands after the mean, where the "
            "encoder's norm stands before it, so features would not be those of its author. Take the pretrained "
            "checkpoint."
        )


def _neighbor_mae(name: str, state: dict[str, Tensor], dropped: str, origin: str, patch_px: int = 16) -> Recognised:
    """Reshape the linear patch embedding (rows, columns, bands) and compute positions of an image on its own."""
    flat = state.pop("patch_embed.weight")
    slots = state.pop("img_embed")
    bands, odd = divmod(flat.shape[1], patch_px**2)
    if odd:
        raise UserError(
            f"{origin}: {name} layout with {flat.shape[1]} values in a patch, no multiple of {patch_px} x {patch_px}."
        )
    weight = flat.reshape(-1, patch_px, patch_px, bands).permute(0, 3, 1, 2).contiguous()
    width = len(weight)

    def positions(grid: tuple[int, int], _: float) -> Tensor:
        alone = patch_corners(torch.tensor([[[0.0, FRAME, FRAME, 0.0]]]), grid)
        return torch.cat([torch.zeros(1, 1, width), corner_embedding(alone, width)[0] + slots[:, :1]], dim=1)

    state |= {"patch_embed.proj.weight": weight, "patch_embed.proj.bias": state.pop("patch_embed.bias")}
    return Recognised(name, "vit", state, BANDS.get(bands, ()), dropped, positions)


def _scaled_by_ground(state: dict[str, Tensor]) -> Positions:
    """Make Scale-MAE's positions: sine-cosine of a patch's place times the metres of a pixel; columns first."""
    width = state.pop("pos_embed").shape[-1] if "pos_embed" in state else len(state["patch_embed.proj.weight"])

    def positions(grid: tuple[int, int], gsd_m: float) -> Tensor:
        row, column = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
        halves = [sincos_1d(axis.flatten().double() * gsd_m, width // 2) for axis in (column, row)]
        return torch.cat([torch.zeros(1, width), torch.cat(halves, dim=-1).float()])[None]

    return positions


_TORCHVISION = {
    r"class_token": "cls_token",
    r"conv_proj\.": "patch_embed.proj.",
    r"encoder\.pos_embedding": "pos_embed",
    r"encoder\.ln\.": "norm.",
    r"encoder\.layers\.encoder_layer_(\d+)\.ln_(\d)\.": r"blocks.\1.norm\2.",
    r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_": r"blocks.\1.attn.qkv.",
    r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.": r"blocks.\1.attn.proj.",
    r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.": r"blocks.\1.mlp.fc1.",
    r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.": r"blocks.\1.mlp.fc2.",
}


def _torchvision_vit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give torchvision's ViT timm's keys; the tensors are the same."""
    renamed = {}
    for key, value in state.items():
        rule = next(((old, new) for old, new in _TORCHVISION.items() if re.match(old, key)), None)
        renamed[re.sub(f"^{rule[0]}", rule[1], key) if rule else key] = value
    return renamed
