"""Export: a pretrained backbone as a folder that timm loads, with a model card.

Last stage of a run, from the weights and what is known of them to ``model.safetensors``, ``config.json`` and
``README.md``. Source of the layout: timm's hub format (``timm.models._hub``, 1.0.31), checked by loading the folder
back before it gets its name.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import timm
import torch
import yaml
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import terrasieve
from terrasieve import entries
from terrasieve.errors import UserError
from terrasieve.evaluate.protocol import Score, markdown_table

Pool = Literal["mean", "cls"]


class Card(TypedDict, total=False):
    """What the model card says beside what the weights say themselves; all optional.

    Keys:
        title: first heading. method: e.g. "SelectiveMAE". data: sentence on the imagery. licence: of the weights, an
        SPDX name. limits: list of sentences. recipe: the resolved recipe as YAML. manifest_hash, manifest_rows: of the
        pretraining manifest. commit: of terrasieve. scores: dicts of ``evaluate.protocol.Score``.
    """

    title: str
    method: str
    data: str
    licence: str
    limits: list[str]
    recipe: str
    manifest_hash: str
    manifest_rows: int
    commit: str | None
    scores: list[dict[str, Any]]


def export(
    vit: nn.Module,
    out_dir: str | Path,
    *,
    model_name: str,
    model_args: dict[str, Any],
    mean: Sequence[float],
    std: Sequence[float],
    bands: Sequence[str],
    size_px: int | Sequence[int],
    card: Card,
    dtype: str = "uint8",
    pool: Pool = "mean",
    overwrite: bool = False,
    formats: tuple[str, ...] = (),
) -> None:
    """Write a folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads; it gives (B, D) features.

    Args:
        vit: a timm VisionTransformer, or another backbone of timm, with num_classes=0.
        out_dir: the folder to make.
        model_name: timm's name of the architecture.
        model_args: what ``timm.create_model`` was given (img_size, patch_size, in_chans, ...); JSON values.
        mean, std: per band, digital numbers.
        bands: names in the order of the input channels.
        size_px: side, or height and width, that the encoder was trained at.
        card: see :class:`Card`.
        dtype: numpy name of the digital numbers; uint8 makes timm's mean and std those of pixels in [0, 1].
        pool: mean over patch tokens, or the class token; after the final norm.
        overwrite: replace an earlier export.
        formats: of ``entries.FORMATS``, written beside timm's and checked against it.

    Raises:
        UserError: the folder exists or cannot be written, or the arguments do not describe the weights.
    """
    out_dir = Path(out_dir).absolute()
    if not len(mean) == len(std) == len(bands):
        raise UserError(f"export: {len(bands)} bands, {len(mean)} means and {len(std)} standard deviations; one each")
    _check_target(out_dir, overwrite)
    entries.check(formats)
    size = (size_px, size_px) if isinstance(size_px, int) else tuple(size_px)
    about = {
        "version": terrasieve.__version__,
        "bands": list(bands),
        "mean": list(map(float, mean)),
        "std": list(map(float, std)),
        "dtype": dtype,
        "size_px": list(size),
        "pooling": pool,
        **{key: card.get(key) for key in ("method", "manifest_hash", "manifest_rows", "commit", "recipe")},
    }
    _write(vit, out_dir, _config(vit, model_name, model_args, about, card.get("licence", "apache-2.0")), card, formats)


def _write(vit: nn.Module, out_dir: Path, config: dict[str, Any], card: Card, formats: tuple[str, ...]) -> None:
    """Build the folder under another name, load it back, then give it its own."""
    state = {
        name: (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in vit.state_dict().items()
    }
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=out_dir.parent, prefix=f".{out_dir.name}."))
    except OSError as error:
        raise UserError(
            f"export: cannot write into {out_dir.parent}: {error.strerror}; choose another place"
        ) from error
    try:
        save_file(state, staged / "model.safetensors", metadata={"format": "pt"})
        (staged / "model.safetensors").chmod(0o644)  # safetensors lets nobody else read it
        (staged / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (staged / "README.md").write_text(_readme(out_dir.name, vit, config, card, formats), encoding="utf-8")
        _check_loads(staged, config["architecture"], state)
        entries.add(staged, formats)
        staged.chmod(0o755)
        _publish(staged, out_dir)
    except OSError as error:
        raise UserError(f"export: cannot write {out_dir}: {error.strerror}; choose another place") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _check_target(out_dir: Path, overwrite: bool) -> None:
    if not out_dir.exists():
        return
    if not overwrite:
        raise UserError(f"export: {out_dir} exists; choose another folder, or allow overwriting it (--overwrite)")
    if not (out_dir / "config.json").is_file() or not (out_dir / "model.safetensors").is_file():
        raise UserError(f"export: {out_dir} is no earlier export, so it is not replaced; choose another folder")


def _config(vit: nn.Module, name: str, args: dict[str, Any], about: dict[str, Any], licence: str) -> dict[str, Any]:
    size = about["size_px"]
    # Without fc_norm=False timm would rename the final norm when it averages the tokens.
    sized = {"img_size": size}
    pooled = {"global_pool": "avg", "fc_norm": False} if about["pooling"] == "mean" else {"global_pool": "token"}
    if not isinstance(vit, VisionTransformer):
        sized, pooled = {}, {"global_pool": "avg"}
    known = getattr(vit, "pretrained_cfg", {})
    full_scale = 255.0 if about["dtype"] == "uint8" else 1.0
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": cast(int, vit.num_features),
        "global_pool": pooled["global_pool"],
        "model_args": {**args, **sized, "in_chans": len(about["bands"]), "num_classes": 0, **pooled},
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [len(about["bands"]), *size],
            "fixed_input_size": "img_size" in args or bool(sized),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": [value / full_scale for value in about["mean"]],
            "std": [value / full_scale for value in about["std"]],
            "num_classes": 0,
            "first_conv": known.get("first_conv", "patch_embed.proj"),
            "classifier": known.get("classifier", "head"),
            "license": licence,
        },
        "terrasieve": about,
    }


def _check_loads(folder: Path, model_name: str, state: dict[str, Tensor]) -> None:
    """Build the model as a user would and compare every tensor."""
    try:
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict()
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"export: {model_name!r} with these arguments does not fit the weights: {error}") from error
    different = [key for key in {*loaded, *state} if key not in state or not _same(loaded.get(key), state[key])]
    if different:
        raise UserError(f"export: {model_name!r} with these arguments lacks or changes {', '.join(sorted(different))}")


def _same(loaded: Tensor | None, saved: Tensor) -> bool:
    return loaded is not None and torch.equal(loaded, saved)


def _publish(staged: Path, out_dir: Path) -> None:
    if not out_dir.exists():
        os.rename(staged, out_dir)  # noqa: PTH104 - fails on a folder made meanwhile, as it should
        return
    old = Path(tempfile.mkdtemp(dir=out_dir.parent, prefix=f".{out_dir.name}.old."))
    out_dir.replace(old)
    staged.replace(out_dir)
    shutil.rmtree(old)


def _readme(folder: str, vit: nn.Module, config: dict[str, Any], card: Card, formats: tuple[str, ...]) -> str:
    about = config["terrasieve"]
    licence = card.get("licence", "Apache-2.0")
    front = {
        "library_name": "timm",
        "pipeline_tag": "image-feature-extraction",
        "license": licence.lower(),
        "tags": ["earth-observation", "remote-sensing", "self-supervised", "terrasieve"],
    }
    size = " x ".join(str(side) for side in about["size_px"])
    count = sum(parameter.numel() for parameter in vit.parameters())
    facts = [
        (
            "architecture",
            f"`{config['architecture']}`, {count / 1e6:.1f} M parameters, {config['num_features']} features",
        ),
        ("pretraining", card.get("method", "not stated")),
        ("input", f"{size} px, {about['dtype']}, bands {', '.join(about['bands'])}"),
        ("mean of each band", ", ".join(f"{value:.5g}" for value in about["mean"])),
        ("deviation of each band", ", ".join(f"{value:.5g}" for value in about["std"])),
        ("pooling", "class token" if about["pooling"] == "cls" else "mean over the last feature map"),
        ("data", card.get("data", "not stated")),
        ("manifest", f"`{card.get('manifest_hash', 'not stated')}`, {card.get('manifest_rows', '?')} rows"),
        ("made by", f"terrasieve {about['version']}, commit `{card.get('commit') or 'not stated'}`"),
        ("licence of the weights", licence),
    ]
    scores = [Score.from_json(score) for score in card.get("scores", [])]
    told = "Frozen encoder; 95 % bootstrap intervals over the test images, in per cent.\n\n" + markdown_table(scores)
    limits = card.get("limits") or [
        "Trained for the bands, resolution and places of its manifest; anything else is untested.",
        "Intervals cover the choice of test images, not the seed of pretraining.",
    ]
    cells = "".join(f"| {name} | {_cell(value)} |\n" for name, value in facts)
    recipe = f"\n## Recipe\n```yaml\n{card['recipe'].strip()}\n```\n" if card.get("recipe") else ""
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n# {card.get('title', folder)}\n\n"
        f"| | |\n| --- | --- |\n{cells}\n## Load\n```python\n{_EXAMPLE.format(folder=json.dumps(folder))}```\n"
        f"{entries.usage(formats)}\n"
        f"## Scores\n{told if scores else 'Not evaluated.' + chr(10)}\n## Limits\n"
        + "".join(f"- {limit}\n" for limit in limits)
        + recipe
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


_EXAMPLE = """\
import json
from pathlib import Path

import timm
import torch

folder = Path({folder})  # the folder that holds this file
about = json.loads((folder / "config.json").read_text())["terrasieve"]
model = timm.create_model(f"local-dir:{{folder}}", pretrained=True).eval()

images = torch.zeros(2, len(about["bands"]), *about["size_px"])  # yours: digital numbers, bands in this order
mean, std = (torch.tensor(about[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
with torch.inference_mode():
    features = model((images - mean) / std)
"""
