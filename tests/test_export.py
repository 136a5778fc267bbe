"""Exported folders, loaded back through timm as a user does."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

from terrasieve.errors import UserError
from terrasieve.export import export
from terrasieve.keyed import generator

torch.set_num_threads(1)  # tiny tensors: on a busy machine threads wait for each other
BANDS = ["red", "green", "blue", "nir"]
SCORE = {
    "encoder": "pretrained",
    "protocol": "knn",
    "metric": "overall_accuracy",
    "value": 0.512,
    "low": 0.46,
    "high": 0.561,
    "count": 420,
    "settings": {"k": 20},
}
CARD = {
    "title": "Tiny",
    "method": "MAE",
    "manifest_hash": "abc123",
    "manifest_rows": 1680,
    "commit": "1234567",
    "recipe": "seed: 0\n",
    "scores": [SCORE],
    "data": "aerial | RGB",
}


def make(channels: int = 3, patch: int = 16, size: int = 96) -> tuple[torch.nn.Module, dict]:
    args = {"img_size": [size, size], "patch_size": patch, "in_chans": channels, "global_pool": "token", "depth": 2}
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **args).eval()
    with torch.no_grad():
        for parameter in vit.parameters():  # timm starts many at 0 or 1, which would hide a swap
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(0, "test-export")))
    return vit, args


def write(folder: Path, channels: int = 3, patch: int = 16, **changes: object) -> torch.nn.Module:
    vit, args = make(channels, patch)
    given = {
        "model_name": "vit_tiny_patch16_224",
        "model_args": args,
        "mean": [100.0] * channels,
        "std": [51.0] * channels,
        "bands": BANDS[:channels],
        "size_px": 96,
        "card": CARD,
    }
    export(vit, folder, **{**given, **changes})
    return vit


@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize(("channels", "patch"), [(3, 16), (4, 8)])
def test_exported_features_equal_the_source(tmp_path: Path, channels: int, patch: int, pool: str) -> None:
    vit = write(tmp_path / "backbone", channels, patch, pool=pool)
    image = torch.randn(2, channels, 96, 96, generator=generator(1, "test-export"))
    with torch.inference_mode():
        tokens = vit.forward_features(image)
        expected = tokens[:, 1:].mean(1) if pool == "mean" else tokens[:, 0]
        loaded = timm.create_model(f"local-dir:{tmp_path / 'backbone'}", pretrained=True).eval()
        torch.testing.assert_close(loaded(image), expected, atol=1e-5, rtol=1e-5)
        config = json.loads((tmp_path / "backbone/config.json").read_text())
        by_path = timm.create_model(
            config["architecture"], checkpoint_path=tmp_path / "backbone/model.safetensors", **config["model_args"]
        ).eval()
        torch.testing.assert_close(by_path(image), expected, atol=1e-5, rtol=1e-5)


def test_weights_load_strictly_under_the_encoder_s_own_arguments(tmp_path: Path) -> None:
    vit = write(tmp_path / "backbone")
    again = timm.create_model("vit_tiny_patch16_224", num_classes=0, **make()[1])
    assert not any(again.load_state_dict(load_file(tmp_path / "backbone/model.safetensors"), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(vit.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_head_can_be_put_on_for_fine_tuning(tmp_path: Path) -> None:
    write(tmp_path / "backbone", 4)
    model = timm.create_model(f"local-dir:{tmp_path / 'backbone'}", pretrained=True, num_classes=7)
    assert model(torch.zeros(1, 4, 96, 96)).shape == (1, 7)


def test_config_states_what_the_input_is(tmp_path: Path) -> None:
    write(tmp_path / "rgb")
    write(tmp_path / "ms", 4, dtype="uint16")
    rgb, ms = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("rgb", "ms"))
    assert rgb["pretrained_cfg"]["mean"] == pytest.approx([100 / 255] * 3)
    assert rgb["pretrained_cfg"]["std"] == pytest.approx([0.2] * 3)
    assert ms["pretrained_cfg"]["mean"] == [100.0] * 4 and ms["pretrained_cfg"]["input_size"] == [4, 96, 96]
    assert ms["terrasieve"]["bands"] == BANDS and ms["terrasieve"]["dtype"] == "uint16"
    assert ms["terrasieve"]["mean"] == [100.0] * 4 and ms["terrasieve"]["manifest_hash"] == "abc123"
    model = timm.create_model(f"local-dir:{tmp_path / 'rgb'}", pretrained=True)
    resolved = timm.data.resolve_model_data_config(model)
    assert resolved["input_size"] == (3, 96, 96) and resolved["std"] == pytest.approx((0.2,) * 3)


def test_the_card_s_code_runs_verbatim(tmp_path: Path) -> None:
    write(tmp_path / "my backbone", 4)
    card = (tmp_path / "my backbone/README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    done = subprocess.run(
        [sys.executable, "-c", code[1] + "print(tuple(features.shape))"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.stdout.strip() == "(2, 192)", done.stderr
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "apache-2.0" and front["library_name"] == "timm"
    for stated in ("# Tiny", "abc123", "1680 rows", "1234567", "51.2 [46.0, 56.1]", "aerial \\| RGB", "seed: 0"):
        assert stated in card


def test_existing_folders_are_kept_unless_told(tmp_path: Path) -> None:
    write(tmp_path / "backbone")
    before = (tmp_path / "backbone/config.json").stat().st_mtime_ns
    with pytest.raises(UserError, match="exists"):
        write(tmp_path / "backbone")
    assert (tmp_path / "backbone/config.json").stat().st_mtime_ns == before
    write(tmp_path / "backbone", 4, overwrite=True)
    assert json.loads((tmp_path / "backbone/config.json").read_text())["model_args"]["in_chans"] == 4
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="no earlier export"):
        write(tmp_path / "photos", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["backbone", "photos"]


def test_arguments_that_do_not_fit_leave_nothing_behind(tmp_path: Path) -> None:
    _, args = make()
    for changes, message in [
        ({"model_args": {**args, "patch_size": 8}}, "changes patch_embed.proj.weight, pos_embed"),
        ({"model_args": {**args, "depth": 3}}, "does not fit"),
        ({"model_name": "vit_none"}, "does not fit"),
        ({"mean": [1.0]}, "3 bands, 1 means"),
    ]:
        with pytest.raises(UserError, match=message):
            write(tmp_path / "backbone", **changes)
    assert list(tmp_path.iterdir()) == []
