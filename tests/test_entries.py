"""Formats of an export, loaded as users of each do; features equal the encoder's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from terrasieve import keyed
from terrasieve.entries import FORMATS
from terrasieve.errors import UserError
from terrasieve.export import export
from terrasieve.nn.convolution import encoder_of
from terrasieve.nn.encoder_settings import EncoderSettings

BANDS = ["red", "green", "blue", "nir"]
ENCODERS = {
    "vit": EncoderSettings(name="vit_tiny_patch16_224", patch_px=16, depth=1),
    "resnet": EncoderSettings(name="resnet18"),
}


def write(folder: Path, kind: str, formats: tuple[str, ...]) -> nn.Module:
    encoder = encoder_of(ENCODERS[kind], 4, (32, 32)).eval()
    args = {key: value for key, value in encoder.arguments.items() if key != "global_pool"}
    about = {"mean": [100.0] * 4, "std": [50.0] * 4, "bands": BANDS, "size_px": 32, "card": {"method": "mae"}}
    export(encoder.vit, folder, model_name=encoder.name, model_args=args, formats=formats, **about)  # type: ignore[arg-type]
    return encoder


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 4, 32, 32, generator=keyed.generator(0, "test-entries"))


@pytest.mark.parametrize("kind", ENCODERS)
def test_graphs_take_any_number_of_images(kind: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    encoder = write(tmp_path / "out", kind, ("timm", "onnx", "torch_export"))
    session = onnxruntime.InferenceSession(str(tmp_path / "out/model.onnx"))
    graph = torch.export.load(tmp_path / "out/model.pt2").module()
    with torch.no_grad():
        for count in (1, 5):
            expected = encoder.features(images(count))
            (found,) = session.run(None, {"images": images(count).numpy()})
            torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(graph(images(count)), expected, atol=1e-5, rtol=1e-5)


def test_the_card_s_code_of_every_format_runs_verbatim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    write(tmp_path / "out", "vit", FORMATS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "out")
    blocks = re.findall(r"```python\n(.*?)```", (tmp_path / "out/README.md").read_text(), re.DOTALL)
    assert len(blocks) == len(FORMATS)
    scope: dict[str, Any] = {}
    for block in blocks:
        exec(block, scope)
        found = torch.as_tensor(scope.pop("features")).detach()
        expected = scope.setdefault("expected", found)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_entries_are_imported_and_build_the_backbone(tmp_path: Path) -> None:
    encoder = write(tmp_path / "out", "resnet", ("torchgeo", "torchvision"))
    pixels = images(2) * 50 + 100
    with torch.no_grad():
        expected = encoder.features((pixels - 100) / 50)
    torch.save({"pixels": pixels, "expected": expected}, tmp_path / "case.pt")
    code = (
        "import torch, torchgeo_weights, torchvision_weights\n"
        "case = torch.load('../case.pt')\n"
        "for entry in (torchgeo_weights, torchvision_weights):\n"
        "    w, backbone = entry.Backbone_Weights.PRETRAINED, entry.backbone\n"
        "    with torch.no_grad(): found = backbone(w).eval()(w.transforms()(case['pixels']))\n"
        "    torch.testing.assert_close(found, case['expected'], atol=1e-5, rtol=1e-5)\n"
        "    assert w.get_state_dict(check_hash=True).keys() == backbone().state_dict().keys()\n"
        "    assert backbone(w, num_classes=3)(case['pixels']).shape == (2, 3)\n"
        "    print(w.meta['bands'], w.meta['in_chans'], w.meta['model'])\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "out", capture_output=True, text=True, env=environment, check=False
    )
    said = [line for line in done.stdout.splitlines() if not line.startswith("Downloading")]  # torch.hub's copying
    assert said == 2 * [f"{BANDS} 4 resnet18"], done.stderr


def test_unknown_formats_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--format 'onx': choose from timm, torchgeo"):
        write(tmp_path / "out", "vit", ("onx",))
    assert not list(tmp_path.iterdir())
