"""Encoders of a suite: what tells one from others, where its tables go, and how it is built to be trained on.

Beside ``data``, before ``jobs``. An encoder is spelt as for ``opened``: a folder, a file, timm:NAME, torchvision:NAME.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from terrasieve.errors import UserError
from terrasieve.nn import fitting, weights
from terrasieve.nn.backbones import check_timm, kind_of
from terrasieve.nn.encoder import Encoder
from terrasieve.nn.encoder_settings import EncoderSettings
from terrasieve.opened import Wanted, bands_of

PATCHES = "patch_embed.proj.weight"


def located(spec: str) -> str:
    """Return a spelling that means the same from any working folder."""
    name, at, path = spec.partition("@") if spec.startswith("timm:") else ("", "", spec)
    return f"{name}{at}{Path(path).absolute()}" if path and Path(path).exists() else spec


def folder_of(spec: str, suite: str) -> Path:
    """Return where a suite's tables go unless another folder is named: a run keeps its own."""
    name = Path(suite).stem
    if Path(spec).is_dir():
        return Path(spec) / "suites" / name
    return Path("suites") / name / re.sub(r"[^\w.-]+", "-", spec).strip("-.")


def identity(spec: str, wanted: Wanted = Wanted()) -> str:
    """Tell an encoder from others: by the hash of its weights, or by its name where there is no file of them.

    Raises:
        UserError: there is no such encoder, or it says itself what is wanted of it.
    """
    bands_of(spec, wanted)
    name, _, path = spec.partition("@") if spec.startswith("timm:") else ("", "", spec)
    if spec.startswith("timm:"):
        check_timm((name or spec).removeprefix("timm:"))
    said = "".join(f"|{key}={value}" for key, value in wanted._asdict().items() if value is not None)
    for file in (Path(path, "weights.safetensors"), Path(path, "model.safetensors"), Path(path)):
        if path and file.is_file():
            with file.open("rb") as stream:
                return f"{name}{hashlib.file_digest(stream, 'blake2b').hexdigest()}{said}"
    return spec + said


def untrainable(spec: str) -> str:
    """Return why an encoder cannot be trained on; "" = it can."""
    try:
        trained_on(spec)
    except UserError as error:
        return str(error)
    return ""


def trained_on(spec: str, gsd_m: float | None = None) -> EncoderSettings:
    """Return a recipe's section ``encoder`` that trains on from these weights.

    Raises:
        UserError: it is no plain ViT, which is what ``adapt`` trains.
    """
    if spec.startswith("timm:"):
        name, _, source = spec.removeprefix("timm:").partition("@")
        kind, patch_px = kind_of(name)
        if kind is not Encoder:
            raise _no_vit(spec, name)
        given = {"random": None, "": "imagenet"}.get(source, source)
        return EncoderSettings(name=name, patch_px=patch_px, weights=given, gsd_m=gsd_m)
    if spec.startswith("torchvision:"):
        raise _no_vit(spec, "a model of torchvision")
    if Path(spec).is_dir():
        found = weights.find(Path(spec))
        state, name = found.state, found.name or ""
    else:
        published = weights.published(Path(spec))
        state, name = published.state, ""
    if PATCHES not in state:
        raise _no_vit(spec, name or "of another kind")
    return EncoderSettings(
        name=name or fitting.vit_name(state, spec),
        patch_px=state[PATCHES].shape[-1],
        depth=fitting.depth(state),
        weights=spec,
        gsd_m=gsd_m,
    )


def _no_vit(spec: str, name: str) -> UserError:
    return UserError(f"only plain ViTs are trained on, and {spec} is {name}; its frozen features are scored")
