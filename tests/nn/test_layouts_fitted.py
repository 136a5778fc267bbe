"""Published layouts that differ from what is asked: fitted, taken from a library by name, or refused by name."""

# ruff: noqa: E501 - key names are published as they are
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from published_layouts import WIDTH, decoder, features, images, satmae, vit
from safetensors.torch import save_file
from timm.layers.patch_embed import resample_patch_embed

from terrasieve.errors import UserError
from terrasieve.nn.backbones import open_backbone
from terrasieve.nn.convolution import encoder_of
from terrasieve.nn.encoder import Encoder
from terrasieve.nn.encoder_settings import EncoderSettings
from terrasieve.nn.layouts import FMOW_SENTINEL, RGB, SENTINEL2


def test_bands_patch_and_positions_are_fitted_where_they_differ(tmp_path: Path) -> None:
    model = vit()
    save_file(model.state_dict(), tmp_path / "v.safetensors")
    conv = model.state_dict()["patch_embed.proj.weight"]

    def encoder(bands: tuple[str, ...], patch: int = 16) -> Encoder:
        settings = EncoderSettings(
            name="vit_tiny_patch16_224", depth=2, patch_px=patch, weights=str(tmp_path / "v.safetensors")
        )
        return Encoder(settings, len(bands), (64, 64), bands=bands)

    swapped = encoder(("blue", "green", "red"))
    assert torch.equal(swapped.vit.patch_embed.proj.weight, conv.flip(1)) and "bands mapped by name" in swapped.notes
    two = encoder(("green", "red"))
    assert torch.equal(two.vit.patch_embed.proj.weight, conv[:, [1, 0]]) and "blue" in two.notes[1]
    four = encoder(("blue", "green", "red", "nir"))
    by_name = torch.cat([conv.flip(1), conv.mean(1, keepdim=True)], 1) * 3 / 4
    assert torch.allclose(four.vit.patch_embed.proj.weight, by_name) and "nir, which the weights lack" in four.notes[1]
    radar = encoder(("vv", "vh"))
    assert torch.allclose(radar.vit.patch_embed.proj.weight, conv[:, :2] * 3 / 2) and "repeated" in radar.notes[1]
    fine = encoder(RGB, 8)
    assert torch.equal(fine.vit.patch_embed.proj.weight, resample_patch_embed(conv, [8, 8]))
    assert fine.positions.shape == (1, 65, WIDTH) and len(fine.notes) == 3


@pytest.mark.parametrize(
    ("change", "bands", "said"),
    [
        ({"foo.bar": torch.zeros(1)}, RGB, r"decoder \(dropped\).*left over: foo.bar \(unknown: refused\)"),
        ({"blocks.0.ls1.gamma": torch.zeros(WIDTH)}, RGB, r"blocks.0.ls1.gamma \(unknown: refused\)"),
        ({"norm.weight": None}, RGB, "1 tensors are missing, e.g. norm.weight"),
        ({"norm.weight": None, "fc_norm.weight": torch.zeros(WIDTH)}, RGB, "fine-tuned with averaged tokens"),
        ({"pos_embed": torch.zeros(1, 17, 128)}, RGB, "SatMAE's temporal model"),
        ({"pos_embed": torch.zeros(1, 13, WIDTH)}, RGB, "positions of 12 patches, which are no square"),
        ({"patch_embed.proj.weight": torch.zeros(200, 3, 16, 16), "pos_embed": torch.zeros(1, 17, 200)}, RGB, "width 200"),
        ({"patch_embed.proj.weight": torch.zeros(WIDTH, 5, 16, 16)}, RGB, r"see 5 \(not named\) bands, the images have 3"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(change: dict[str, Any], bands: tuple[str, ...], said: str, tmp_path: Path) -> None:
    state = {**vit().state_dict(), **decoder(), **change}
    torch.save({"model": {key: value for key, value in state.items() if value is not None}}, tmp_path / "c.pth")
    with pytest.raises(UserError, match=said):
        open_backbone(str(tmp_path / "c.pth"), bands, 64)


def test_checkpoints_that_cannot_be_mapped_say_why(tmp_path: Path) -> None:
    torch.save({"model": satmae(sizes=(3, 7))}, tmp_path / "groups.pth")
    torch.save({"model": satmae()}, tmp_path / "g.pth")
    torch.save({"epoch": 1}, tmp_path / "none.pth")
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "pickled.pth")
    torch.save({"state_dict": {"foo.weight": torch.zeros(1)}}, tmp_path / "foo.pth")
    around = {
        "encoder_q.conv1.weight": torch.zeros(1),
        "encoder_q.layer1.0.conv1.weight": torch.zeros(1),
        "odd": torch.zeros(1),
    }
    torch.save({"state_dict": around}, tmp_path / "around.pth")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04cut")
    (tmp_path / "notes.txt").write_text("no weights")
    for name, said in (
        ("groups.pth", r"groups of \[3, 7\] bands"),
        ("none.pth", "holds no weights where they should be"),
        ("pickled.pth", "nothing pickled is run here"),
        ("foo.pth", "no layout is known with keys such as foo.weight"),
        ("around.pth", r"MoCo v2 layout; left over: odd \(unknown: refused\)"),
        ("cut.pth", "cannot be read"),
        ("notes.txt", "none of the endings"),
        ("absent.pth", "no run, no exported folder, no file of weights"),
    ):
        with pytest.raises(UserError, match=said):
            open_backbone(str(tmp_path / name), FMOW_SENTINEL)
    with pytest.raises(UserError, match="the images lack rededge1"):
        open_backbone(str(tmp_path / "g.pth"), RGB)
    with pytest.raises(UserError, match="terrasieve evaluate takes it"):
        Encoder(EncoderSettings(name="vit_tiny_patch16_224", depth=2, weights=str(tmp_path / "g.pth")), 10, (32, 32))
    with pytest.raises(UserError, match="only Scale-MAE's positions"):
        torch.save(vit().state_dict(), tmp_path / "v.pth")
        open_backbone(str(tmp_path / "v.pth"), RGB, gsd_m=1.0)


def test_libraries_models_by_name(tmp_path: Path) -> None:
    image = images()
    plain = open_backbone("timm:vit_tiny_patch16_224@random", RGB, 64)
    assert isinstance(plain.encoder, Encoder) and plain.untrained is None and plain.encoder.patch_px == 16
    registers = open_backbone("timm:vit_small_patch14_reg4_dinov2@random", RGB, 28)  # no plain ViT: as timm has it
    for opened, size in ((plain, 64), (registers, 28)):
        assert features(opened.encoder, images(3, size)).isfinite().all()
    resnet = timm.create_model("resnet18", num_classes=0).eval()
    torch.save(resnet.state_dict(), tmp_path / "r.pt")
    for spec in ("timm:resnet18@" + str(tmp_path / "r.pt"), str(tmp_path / "r.pt")):
        with torch.no_grad():
            assert torch.equal(features(open_backbone(spec, RGB, 64).encoder, image), resnet(image))
    one, two = (open_backbone("torchvision:mobilenet_v3_small@random", (*RGB, "nir"), 64, seed=3) for _ in range(2))
    assert one.encoder.width == 1024
    assert torch.equal(features(one.encoder, images(4)), features(two.encoder, images(4)))
    for spec, said in (
        ("timm:resnet81", "did you mean timm:resnet"),
        ("torchvision:resnet51@random", "did you mean torchvision:resnet50"),
        ("torchvision:vit_b_16@random", r"cannot take images of 64 px: Wrong image height.*\(224 px then\)"),
    ):
        with pytest.raises(UserError, match=said):
            open_backbone(spec, RGB, 64)
    with pytest.raises(UserError, match="--gsd-m is for Scale-MAE"):
        open_backbone("timm:resnet18@random", RGB, gsd_m=1.0)


def test_a_resnet_begins_a_run_with_published_weights(tmp_path: Path) -> None:
    model = timm.create_model("resnet18", num_classes=0, in_chans=13)
    state = {f"module.encoder_q.{key}": value for key, value in model.state_dict().items()}
    torch.save(
        {"state_dict": {**state, "module.encoder_q.fc.0.weight": torch.zeros(1)}}, tmp_path / "B13_rn18_moco.pth"
    )
    settings = EncoderSettings(name="resnet18", weights=str(tmp_path / "B13_rn18_moco.pth"))
    bands = ("red", "green", "blue", "nir")
    encoder = encoder_of(settings, 4, (64, 64), bands=bands)
    where = [SENTINEL2.index(band) for band in bands]
    assert torch.equal(encoder.vit.conv1.weight, model.conv1.weight[:, where])
    with pytest.raises(UserError, match=r"resnet34: set encoder\.name"):
        encoder_of(settings.model_copy(update={"name": "resnet34"}), 4, (64, 64), bands=bands)
