"""Backbones that are no ViT: built by timm, keyed weights, features of timm's own forward, exported and loaded back."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from terrasieve import export, keyed
from terrasieve.errors import UserError
from terrasieve.nn.convolution import ConvEncoder, encoder_of
from terrasieve.nn.encoder import Encoder
from terrasieve.nn.encoder_settings import EncoderSettings


def images_of(count: int = 3, size: int = 32, bands: int = 4) -> torch.Tensor:
    return torch.randn(count, bands, size, size, generator=keyed.generator(0, "test"))


def test_the_name_chooses_between_vit_and_other() -> None:
    assert isinstance(encoder_of(EncoderSettings(name="vit_tiny_patch16_224", patch_px=8), 4, (32, 32)), Encoder)
    assert isinstance(encoder_of(EncoderSettings(name="resnet18"), 4, (32, 32)), ConvEncoder)


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("mobilenetv3_small_050", 1024)])
def test_features_are_timms_and_weights_are_keyed(name: str, width: int) -> None:
    one, two, other = (encoder_of(EncoderSettings(name=name), 4, (32, 32), seed).eval() for seed in (1, 1, 2))
    model = timm.create_model(name, in_chans=4, num_classes=0, global_pool="avg").eval()
    model.load_state_dict(one.vit.state_dict())
    with torch.no_grad():
        assert torch.equal(one.features(images_of()), model(images_of()))
        assert one.features(images_of()).shape == (3, width) and one.width == width
        assert one.features(images_of(size=64)).shape == (3, width)
    state, same, different = (encoder.vit.state_dict() for encoder in (one, two, other))
    assert all(torch.equal(state[key], same[key]) for key in state)
    changed = {key for key in state if not torch.equal(state[key], different[key])}
    assert changed == {key for key, value in state.items() if value.ndim >= 2}


def test_convolutions_are_drawn_with_he_variance_per_group() -> None:
    resnet = encoder_of(EncoderSettings(name="resnet18"), 4, (32, 32)).vit.state_dict()
    assert resnet["layer3.0.conv1.weight"].std() == pytest.approx(math.sqrt(2 / (9 * 256)), rel=0.02)
    mobile = encoder_of(EncoderSettings(name="mobilenetv3_large_100"), 4, (32, 32)).vit
    deep = dict(mobile.named_modules())["blocks.5.2.conv_dw"]
    assert deep.groups == deep.out_channels > 1
    assert deep.weight.detach().std() == pytest.approx(math.sqrt(2 / 25), rel=0.05)


def test_what_only_a_vit_has_is_refused() -> None:
    for key, value in (("patch_px", 8), ("depth", 3), ("drop_path", 0.1)):
        with pytest.raises(ValidationError, match=f"{key}: only a ViT has this, and resnet18 is none"):
            EncoderSettings(**{"name": "resnet18", key: value})  # type: ignore[arg-type]
    settings = EncoderSettings(name="resnet18")
    assert EncoderSettings(**settings.model_dump()) == settings
    with pytest.raises(ValidationError, match="is a ViT, whose patches have a side"):
        EncoderSettings(name="vit_tiny_patch16_224", patch_px=0)
    with pytest.raises(UserError, match="resnet18 has no class token"):
        encoder_of(settings, 4, (32, 32)).features(images_of(), "cls")


def test_weights_of_ours_begin_a_run_and_others_are_refused(tmp_path: Path) -> None:
    first = encoder_of(EncoderSettings(name="resnet18"), 4, (32, 32), seed=5)
    save_file(first.vit.state_dict(), tmp_path / "w.safetensors")
    again = EncoderSettings(name="resnet18", weights=str(tmp_path / "w.safetensors"))
    state = encoder_of(again, 4, (32, 32)).vit.state_dict()
    assert all(torch.equal(state[key], value) for key, value in first.vit.state_dict().items())
    with pytest.raises(UserError, match=r"the weights see 4 \(not named\) bands, the images have 3"):
        encoder_of(again, 3, (32, 32))


def test_an_export_of_a_resnet_loads_in_timm_with_its_statistics(tmp_path: Path) -> None:
    encoder = encoder_of(EncoderSettings(name="resnet18"), 4, (32, 32))
    encoder.train().features(images_of(8) * 3 + 1)  # moves the running statistics
    about = {"mean": (0.0,) * 4, "std": (1.0,) * 4, "bands": ("blue", "green", "red", "nir"), "size_px": (32, 32)}
    args = {key: value for key, value in encoder.arguments.items() if key != "global_pool"}
    export.export(encoder.vit, tmp_path / "out", model_name=encoder.name, model_args=args, card={}, **about)  # type: ignore[arg-type]
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(loaded(images_of()), encoder.eval().features(images_of()))
    assert loaded.bn1.running_mean.abs().max() > 0


def test_a_vit_sees_crops_of_another_size_with_resampled_positions() -> None:
    """Against timm's own resampling when a ViT of the other size loads the weights."""
    encoder = encoder_of(EncoderSettings(name="vit_tiny_patch16_224", patch_px=8, depth=2), 4, (32, 32)).eval()
    assert isinstance(encoder, Encoder)
    smaller = timm.create_model("vit_tiny_patch16_224", **encoder.arguments | {"img_size": [16, 24], "num_classes": 0})
    smaller.eval()
    state = dict(encoder.vit.state_dict())
    state["pos_embed"] = timm.layers.resample_abs_pos_embed(state["pos_embed"], [2, 3], [4, 4], num_prefix_tokens=1)
    smaller.load_state_dict(state)
    images = images_of(size=32)[:, :, :16, :24]
    with torch.no_grad():
        expected = smaller.forward_features(images)[:, 1:].mean(1)
        assert torch.allclose(encoder.features(images), expected, atol=1e-5)
