"""Entries: an exported backbone for TorchGeo and torchvision users, and as a graph for ONNX and ``torch.export``.

Called by ``export``, which writes the folder that these stand in; each is checked against the encoder before the folder
gets its name. TorchGeo and torchvision know weights as members of a ``WeightsEnum`` (``torchvision.models``,
"Multi-weight support API"); TorchGeo's keep the bands in ``meta``.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from terrasieve.errors import UserError

FILES = {  # of each format beside timm's
    "torchgeo": "torchgeo_weights.py",
    "torchvision": "torchvision_weights.py",
    "onnx": "model.onnx",
    "torch_export": "model.pt2",
}
FORMATS = ("timm", *FILES)
ATOL = 1e-5


def add(folder: Path, formats: tuple[str, ...]) -> None:
    """Write further formats into an exported folder and check each against timm's model.

    Args:
        folder: with ``config.json`` and ``model.safetensors``.
        formats: of ``FORMATS``, checked; ``timm`` is there already.

    Raises:
        UserError: a format that gives other features.
    """
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    channels, height, width = config["pretrained_cfg"]["input_size"]
    images = torch.linspace(-2, 2, 3 * channels * height * width).view(3, channels, height, width).sin()
    with torch.no_grad():
        expected = model(images)
        for name in further(formats):
            found = _WRITERS[name](folder, model, config, images)
            if not torch.allclose(found, expected, atol=ATOL, rtol=ATOL):
                raise UserError(
                    f"export --format {name}: its features differ from the encoder's by up to "
                    f"{float((found - expected).abs().max()):.1e}, more than {ATOL}; nothing is written."
                )


def check(formats: tuple[str, ...]) -> None:
    """Refuse unknown formats and such whose library is not installed, before anything is written."""
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"--format {name!r}: choose from {', '.join(FORMATS)}, or several with commas.")
    if "onnx" in formats:
        try:
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"--format onnx needs {error.name}: pip install 'terrasieve[onnx]' (or uv sync --extra onnx)."
            ) from error


def further(formats: tuple[str, ...]) -> list[str]:
    """Return the formats beside timm's, each once."""
    return [name for name in FILES if name in formats]


def usage(formats: tuple[str, ...]) -> str:
    """Say in Markdown how the files beside timm's are loaded; "" where there are none."""
    names = further(formats)
    parts = [f"\n{FILES[name]}:\n```python\n{_USAGE[name]}```\n" for name in names]
    return "\n## Other formats\n" + "".join(parts) if names else ""


def _entry(name: str) -> Any:
    def write(folder: Path, model: nn.Module, config: dict[str, Any], images: Tensor) -> Tensor:
        """Write the module, import it as a user does and build the model through it."""
        torch.save(model.state_dict(), folder / "model.pth")
        digest = hashlib.sha256((folder / "model.pth").read_bytes()).hexdigest()[:8]
        file = f"backbone-{digest}.pth"  # torch.hub checks the file by its name and caches it under that
        (folder / "model.pth").replace(folder / file)
        path = folder / FILES[name]
        path.write_text(_MODULE.format(**_words(name, config), file=file), encoding="utf-8")
        scope: dict[str, Any] = {"__file__": str(path), "__name__": f"{name}_weights"}
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), scope)
        built: Tensor = scope["backbone"](scope["Backbone_Weights"].PRETRAINED).eval()(images)
        return built

    return write


def _words(name: str, config: dict[str, Any]) -> dict[str, Any]:
    about = config["terrasieve"]
    meta = {
        "dataset": about.get("manifest_hash"),
        "in_chans": len(about["bands"]),
        "img_size": about["size_px"][0],
        "model": config["architecture"],
        "bands": about["bands"],
        "mean": about["mean"],
        "std": about["std"],
        "ssl_method": about.get("method"),
        "license": config["pretrained_cfg"]["license"],
    }
    options = {key: value for key, value in config["model_args"].items() if key != "num_classes"}
    return {
        "name": name,
        "meta": _literal({key: value for key, value in meta.items() if value is not None}),
        "options": _literal(options),
        "architecture": repr(config["architecture"]),
        "size": repr(list(about["size_px"])),
    }


def _literal(values: dict[str, Any]) -> str:
    rows = "".join(f"    {key!r}: {value!r},\n" for key, value in values.items())
    return f"{{\n{rows}}}"


def _onnx(folder: Path, model: nn.Module, config: dict[str, Any], images: Tensor) -> Tensor:
    import onnxruntime

    path = folder / FILES["onnx"]
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of torch about itself
        torch.onnx.export(
            model, (images[:2],), path, input_names=["images"], output_names=["features"], dynamo=True, verbose=False,
            dynamic_shapes=({0: batch},), external_data=False, optimize=True,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _torch_export(folder: Path, model: nn.Module, config: dict[str, Any], images: Tensor) -> Tensor:
    path = folder / FILES["torch_export"]
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of torch about itself
        torch.export.save(torch.export.export(model, (images[:2],), dynamic_shapes=({0: batch},)), path)
    found: Tensor = torch.export.load(path).module()(images)
    return found


_WRITERS: dict[str, Any] = {
    "torchgeo": _entry("torchgeo"),
    "torchvision": _entry("torchvision"),
    "onnx": _onnx,
    "torch_export": _torch_export,
}

_ENTRY = """\
from {name}_weights import Backbone_Weights, backbone  # this folder on the path

weights = Backbone_Weights.PRETRAINED
features = backbone(weights).eval()(weights.transforms()(images))
"""
_USAGE = {
    "torchgeo": _ENTRY.format(name="torchgeo"),
    "torchvision": _ENTRY.format(name="torchvision"),
    "onnx": """\
import onnxruntime

session = onnxruntime.InferenceSession(folder / "model.onnx")
(features,) = session.run(None, {"images": ((images - mean) / std).numpy()})
""",
    "torch_export": """\
features = torch.export.load(folder / "model.pt2").module()((images - mean) / std)
""",
}

_MODULE = '''"""Weights of this folder as {name} knows them. Written by terrasieve; needs timm, torch and torchvision.

    from {name}_weights import Backbone_Weights, backbone
    weights = Backbone_Weights.PRETRAINED
    model = backbone(weights).eval()
    features = model(weights.transforms()(images))  # digital numbers, bands in the order of weights.meta["bands"]
"""

from functools import partial
from pathlib import Path

import timm
import torch
import torchvision.transforms.v2 as T
from torchvision.models._api import Weights, WeightsEnum

_META = {meta}
_OPTIONS = {options}


def _transforms():
    resize = T.Resize({size}, antialias=True)
    return torch.nn.Sequential(resize, T.ToDtype(torch.float32), T.Normalize(_META["mean"], _META["std"]))


class Backbone_Weights(WeightsEnum):
    PRETRAINED = Weights(
        # put the file's address here when you publish it
        url=(Path(__file__).resolve().parent / "{file}").as_uri(),
        transforms=partial(_transforms),
        meta=_META,
    )
    DEFAULT = PRETRAINED


def backbone(weights=None, **options):
    """Build the backbone, (B, C, H, W) -> (B, D); options go to timm.create_model, e.g. num_classes=10."""
    model = timm.create_model({architecture}, **{{**_OPTIONS, "num_classes": 0, **options}})
    if weights is not None:
        local = weights.url.startswith("file:")
        path = Path(__file__).resolve().parent / "{file}"
        state = torch.load(path, weights_only=True) if local else weights.get_state_dict(check_hash=True)
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert not unexpected and all(key.startswith(("head.", "fc.")) for key in missing), (missing, unexpected)
    return model
'''
