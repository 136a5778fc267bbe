"""Weights come whole from runs, exports and bare files, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers.pos_embed import resample_abs_pos_embed

from terrasieve import keyed
from terrasieve.assess import export_run, load_run
from terrasieve.errors import UserError
from terrasieve.nn.encoder import Encoder, EncoderSettings
from terrasieve.pretrain import pretrain
from terrasieve.recipe import Recipe


def encoder_of(source: Path | str, size: int | tuple[int, int] = 32, bands: int = 4, **changes: Any) -> Encoder:
    content = {"name": "vit_tiny_patch16_224", "patch_px": 8, "depth": 2, "weights": str(source)} | changes
    return Encoder(EncoderSettings(**content), bands, (size, size) if isinstance(size, int) else size)


@pytest.fixture
def run(tiny: Callable[..., Recipe], tmp_path: Path) -> Path:
    settings = tiny(steps=2, encoder={"name": "vit_tiny_patch16_224", "patch_px": 8, "depth": 2})
    pretrain(settings, tmp_path / "run")
    return tmp_path / "run"


def same(one: Encoder, two: Encoder, but: str = "") -> None:
    mine, theirs = one.vit.state_dict(), two.vit.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine if name != but)


def test_a_run_an_export_and_a_file_give_the_weights_of_the_run(run: Path, tmp_path: Path) -> None:
    trained = load_run(run)[1]
    export_run(run, tmp_path / "exported")
    bare = tmp_path / "bare.safetensors"
    save_file(trained.vit.state_dict(), bare)
    for source in (run, tmp_path / "exported", bare):
        loaded = encoder_of(source)
        same(loaded, trained)
        assert not loaded.positions.requires_grad
    assert not torch.equal(encoder_of(bare).vit.cls_token, encoder_of(bare, weights=None).vit.cls_token)


def test_positions_follow_the_grid(run: Path, tmp_path: Path) -> None:
    trained = load_run(run)[1]
    for size, grid in ((64, (8, 8)), ((16, 48), (2, 6))):
        loaded = encoder_of(run, size)
        same(loaded, trained, but="pos_embed")
        expected = resample_abs_pos_embed(trained.positions, list(grid), [4, 4], num_prefix_tokens=1)
        assert torch.equal(loaded.positions, expected)
        images = torch.randn(
            1, 4, *([size, size] if isinstance(size, int) else size), generator=keyed.generator(0, "t")
        )
        assert loaded.eval().features(images).isfinite().all()
    wide = tmp_path / "wide.safetensors"
    save_file(encoder_of(run, (16, 48)).vit.state_dict(), wide)
    assert encoder_of(wide, (16, 48)).positions.shape == (1, 13, 192)
    with pytest.raises(UserError, match="12 patches, which are no square"):
        encoder_of(wide, 64)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bands": 3}, r"number of bands 4 \(blue, green, red, nir\), the encoder of this recipe has 3"),
        ({"patch_px": 16}, "patch_px 8, the encoder of this recipe has 16; set encoder.patch_px=8"),
        ({"depth": 3}, "depth 2, the encoder of this recipe has 3; set encoder.depth=2"),
        ({"name": "vit_small_patch16_224"}, "vit_tiny_patch16_224 .* width 192, the encoder of this recipe has 384"),
    ],
)
def test_weights_of_something_else_are_refused_in_the_recipes_words(
    run: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        encoder_of(run, **changes)


def test_what_holds_no_weights_is_refused(run: Path, tmp_path: Path) -> None:
    state = load_run(run)[1].vit.state_dict()
    lacking = tmp_path / "lacking.safetensors"
    save_file({name: tensor for name, tensor in state.items() if name != "norm.bias"}, lacking)
    other = tmp_path / "other.safetensors"
    save_file({"conv.weight": torch.zeros(1)}, other)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(lacking.read_bytes()[:1000])
    (run / "weights.safetensors").unlink()
    for source, said in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path, "holds no weights"),
        (run, "no weights.safetensors yet"),
        (lacking, "1 tensors are missing.*norm.bias"),
        (other, "no layout is known with keys such as conv.weight"),
        (cut, "cannot be read"),
    ):
        with pytest.raises(UserError, match=said):
            encoder_of(source)


def test_imagenet_weights_without_network_are_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="pretrained weights of 'vit_tiny_patch16_224' cannot be had"):
        encoder_of("imagenet")


def test_imagenet_weights_are_fitted_by_timm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As fetched, so loaded: timm reads a file of its own kind in place of the hub's."""
    theirs = timm.create_model("vit_tiny_patch16_224", depth=2)
    path = tmp_path / "model.safetensors"
    save_file(theirs.state_dict(), path)
    create = timm.create_model

    def from_file(name: str, pretrained: bool = False, **options: Any) -> Any:
        overlay = {"file": str(path)} if pretrained else None
        return create(name, pretrained=pretrained, pretrained_cfg_overlay=overlay, **options)

    monkeypatch.setattr(timm, "create_model", from_file)
    loaded = encoder_of("imagenet", 64, 3, patch_px=16)
    assert torch.equal(loaded.vit.blocks[1].mlp.fc1.weight, theirs.blocks[1].mlp.fc1.weight)
    assert torch.equal(loaded.positions, resample_abs_pos_embed(theirs.pos_embed, [4, 4], [14, 14]))
    assert loaded.positions.requires_grad
    assert encoder_of("imagenet", 64, 5, patch_px=16).vit.patch_embed.proj.weight.shape == (192, 5, 16, 16)
    settings = EncoderSettings(name="vit_tiny_patch16_224", depth=2, weights="imagenet")
    swapped = Encoder(settings, 3, (64, 64), bands=("blue", "green", "red"))
    red_first = loaded.vit.patch_embed.proj.weight
    assert torch.equal(swapped.vit.patch_embed.proj.weight, red_first.flip(1)) and "by name" in swapped.notes[0]
