"""Published layouts: state dicts with the published key names, small, recognised and loaded.

Where timm can build the module, features are equal.
"""

# ruff: noqa: E501 - key names are published as they are
from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import timm
import torch
from published_layouts import EXTRA, WIDTH, decoder, expected, features, images, normal, satmae, vit
from safetensors.torch import save_file

from terrasieve import keyed
from terrasieve.nn.backbones import open_backbone
from terrasieve.nn.encoder import Encoder
from terrasieve.nn.encoder_settings import EncoderSettings
from terrasieve.nn.frames import corner_embedding, patch_corners
from terrasieve.nn.group_channels import GroupEncoder
from terrasieve.nn.layouts import FMOW_SENTINEL, RGB, SENTINEL2, recognise
from terrasieve.nn.position import sincos_2d


@pytest.mark.parametrize("name", EXTRA)
def test_vits_give_the_features_of_their_source(name: str, tmp_path: Path) -> None:
    model = vit()
    path = tmp_path / "ckpt.pth"
    torch.save({"model": model.state_dict() | EXTRA[name], "args": argparse.Namespace(lr=1.0), "epoch": 3}, path)
    opened = open_backbone(str(path), RGB)
    torch.testing.assert_close(features(opened.encoder, images()), expected(model, images()), atol=1e-5, rtol=1e-4)
    assert opened.size_px == (64, 64) and f"{name} layout" in opened.notes[0] and "(dropped)" in opened.notes[0]
    assert "unknown" not in opened.notes[0] and ("decoder (dropped)" in opened.notes[0]) == (name != "timm ViT")
    settings = EncoderSettings(name="vit_tiny_patch16_224", depth=2, weights=str(path))
    assert torch.equal(
        Encoder(settings, 3, (64, 64)).vit.state_dict()["norm.weight"], model.state_dict()["norm.weight"]
    )
    assert not torch.equal(opened.untrained().vit.cls_token, opened.encoder.vit.cls_token)


@pytest.mark.parametrize("kind", ["vit", "resnet", "groups"])
def test_a_file_is_read_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = {"vit": vit, "resnet": lambda: timm.create_model("resnet18", num_classes=0)}
    torch.save(satmae() if kind == "groups" else states[kind]().state_dict(), tmp_path / "c.pth")
    reads, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda path, **how: reads.append(path) or load(path, **how))
    opened = open_backbone(str(tmp_path / "c.pth"), FMOW_SENTINEL if kind == "groups" else RGB)
    assert opened.untrained() is not opened.encoder and len(reads) == 1


WRAPPERS: dict[str, tuple[str, str | None, list[str]]] = {
    "MoCo v2": ("module.encoder_q.", "state_dict", ["module.encoder_k.conv1.weight", "module.queue", "module.queue_ptr"]),
    "MoCo v3": ("module.base_encoder.", "state_dict", ["module.momentum_encoder.cls_token", "module.predictor.0.weight"]),
    "DINO": ("backbone.", "teacher", ["head.mlp.0.weight", "head.last_layer.weight_g"]),
    "TorchGeo MoCo or SimCLR task": ("backbone.", "state_dict", ["backbone_momentum.conv1.weight", "projection_head.layers.0.weight", "augmentation1.RandomBrightness_1.p"]),
    "TorchGeo BYOL task": ("model.backbone.model.", "state_dict", ["model.target.model.conv1.weight", "model.predictor.mlp.0.weight", "model.backbone._projector.mlp.0.weight"]),
    "TorchGeo classification task": ("model.", "state_dict", ["criterion.weight"]),
    "TorchGeo segmentation task": ("model.encoder.", "state_dict", ["model.decoder.blocks.0.conv1.0.weight", "model.segmentation_head.0.weight"]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "vit") for name in WRAPPERS), ("MoCo v2", "resnet"), ("TorchGeo BYOL task", "resnet")]
)
def test_what_stands_around_an_encoder_is_taken_off(name: str, kind: str, tmp_path: Path) -> None:
    """SSL4EO-S12's 13 bands; the head that MoCo puts in the classifier's place goes as well."""
    prefix, container, other = WRAPPERS[name]
    model = vit(13) if kind == "vit" else timm.create_model("resnet18", num_classes=0, in_chans=13).eval()
    head = {"vit": "head.0.weight", "resnet": "fc.0.weight"}[kind]
    state = {f"{prefix}{key}": value for key, value in {**model.state_dict(), head: torch.zeros(3, 3)}.items()}
    state |= {key: torch.zeros(2, 2) for key in other}
    content = {container: state, "student": {}, "epoch": 99} if container else state
    torch.save(content, tmp_path / "ckpt.pth")
    opened = open_backbone(str(tmp_path / "ckpt.pth"), SENTINEL2, 64)
    image = images(13)
    with torch.no_grad():
        wanted = expected(model, image) if kind == "vit" else model(image)
    torch.testing.assert_close(features(opened.encoder, image), wanted, atol=1e-5, rtol=1e-4)
    assert opened.notes[0].startswith(f"ckpt.pth: {name}, ") and "unknown" not in opened.notes[0]


def test_torchvision_s_vit_is_timm_s(tmp_path: Path) -> None:
    from torchvision.models.vision_transformer import VisionTransformer

    theirs = VisionTransformer(64, 16, 2, 3, WIDTH, 4 * WIDTH, num_classes=7).eval()  # epsilon 1e-6 as timm's
    with torch.no_grad():
        theirs.heads = torch.nn.Identity()
        torch.nn.init.normal_(theirs.conv_proj.bias, generator=keyed.generator(0, "bias"))
        save_file(theirs.state_dict() | {"heads.head.weight": torch.zeros(7, WIDTH)}, tmp_path / "vit.safetensors")
        cls = open_backbone(str(tmp_path / "vit.safetensors"), RGB).encoder.features(images(), "cls")
        torch.testing.assert_close(cls, theirs(images()), atol=1e-5, rtol=1e-4)


def test_neighbor_mae_s_linear_patches_and_computed_positions(tmp_path: Path) -> None:
    """Against a timm ViT whose convolution and positions are written by a loop from the published definition."""
    model, slots = vit(), normal(1, 2, WIDTH)
    state = model.state_dict()
    conv = state.pop("patch_embed.proj.weight")
    flat = torch.zeros(WIDTH, 768)
    for row in range(16):
        for column in range(16):
            for band in range(3):
                flat[:, (row * 16 + column) * 3 + band] = conv[:, band, row, column]
    state |= {"patch_embed.weight": flat, "patch_embed.bias": state.pop("patch_embed.proj.bias")}
    del state["pos_embed"]
    extra = {"img_embed": slots, "cur_iter": torch.zeros(1), "decoder_img_embed": normal(1, 2, 8)}
    torch.save({"model": state | decoder() | extra}, tmp_path / "n.pth")
    for size, side in ((64, 4), (32, 2)):
        at = [[32 * c / side, 32 - 32 * r / side, 32 * (c + 1) / side, 32 - 32 * (r + 1) / side] for r in range(side) for c in range(side)]  # fmt: skip
        assert torch.allclose(patch_corners(torch.tensor([[[0.0, 32, 32, 0]]]), side)[0, 0], torch.tensor(at))
        places = corner_embedding(torch.tensor(at), WIDTH) + slots[0, 0]
        source = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=0, img_size=size).eval()
        positions = torch.cat([torch.zeros(1, WIDTH), places])[None]
        source.load_state_dict(model.state_dict() | {"pos_embed": positions})
        encoder = open_backbone(str(tmp_path / "n.pth"), RGB, size).encoder
        wanted = expected(source, images(3, size))
        torch.testing.assert_close(features(encoder, images(3, size)), wanted, atol=1e-5, rtol=1e-4)


def test_scale_mae_s_positions_follow_the_metres_of_a_pixel(tmp_path: Path) -> None:
    model = vit()
    extra = {"mask_token_decoder": torch.zeros(1, 1, 8), "fpn.fpn1.0.weight": torch.zeros(1), "fcn_high.conv.weight": torch.zeros(1)}  # fmt: skip
    torch.save({"model": model.state_dict() | decoder() | extra}, tmp_path / "s.pth")
    opened = open_backbone(str(tmp_path / "s.pth"), RGB, 64)
    plain = sincos_2d(4, 4, WIDTH)
    assert torch.allclose(opened.encoder.positions[0, 1:], plain, atol=1e-6)
    assert any("1 m per pixel (gsd_m was not told)" in note for note in opened.notes)
    half = open_backbone(str(tmp_path / "s.pth"), RGB, 128, gsd_m=0.5).encoder.positions[0, 1:].view(8, 8, -1)
    assert torch.allclose(half[::2, ::2].reshape(16, -1), plain, atol=1e-5)  # every second patch of half the metres
    assert not open_backbone(str(tmp_path / "s.pth"), RGB, 64).encoder.positions.requires_grad


@pytest.mark.parametrize("plus", [False, True])
def test_satmae_s_groups_of_bands(plus: bool, tmp_path: Path) -> None:
    """Against the model written out token by token."""
    extra = (
        {"proj_up_conv.weight": torch.zeros(40, 10, 1, 1), "up_block1.up_norm.weight": torch.zeros(40)} if plus else {}
    )
    state = satmae(extra)
    torch.save({"model": state}, tmp_path / "g.pth")
    opened = open_backbone(str(tmp_path / "g.pth"), FMOW_SENTINEL)
    assert isinstance(opened.encoder, GroupEncoder) and opened.size_px == (32, 32)
    image, model, tokens = images(10, 32), vit(), []
    for group, bands in enumerate(((0, 1, 2, 6), (3, 4, 5, 7), (8, 9))):
        for place in range(16):
            y, x = divmod(place, 4)
            patch = image[:, bands, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].flatten(1)
            token = (
                patch @ state[f"patch_embed.{group}.proj.weight"].flatten(1).T + state[f"patch_embed.{group}.proj.bias"]
            )
            tokens.append(token + torch.cat([state["pos_embed"][0, 1 + place], state["channel_embed"][0, group]]))
    with torch.no_grad():
        joined = torch.cat([state["cls_token"].expand(2, 1, -1), torch.stack(tokens, 1)], 1)
        wanted = model.norm(model.blocks(joined))
    torch.testing.assert_close(features(opened.encoder, image), wanted[:, 1:].mean(1), atol=1e-5, rtol=1e-4)
    maps = opened.encoder.feature_map(image)
    torch.testing.assert_close(
        maps[:, :, 1, 2], wanted[:, 1:].unflatten(1, (3, 16))[:, :, 6].mean(1), atol=1e-5, rtol=1e-4
    )
    shuffled = [*reversed(FMOW_SENTINEL), "coastal"]
    other = open_backbone(str(tmp_path / "g.pth"), shuffled)
    given = torch.cat([image.flip(1), image[:, :1]], dim=1)
    torch.testing.assert_close(features(other.encoder, given), wanted[:, 1:].mean(1), atol=1e-5, rtol=1e-4)
    assert "not seen: coastal" in other.notes
    assert open_backbone(str(tmp_path / "g.pth"), FMOW_SENTINEL, 48).encoder.features(images(10, 48)).shape == (
        2,
        WIDTH,
    )
    assert torch.equal(opened.untrained().vit.norm.weight, torch.ones(WIDTH))


def test_recognise_is_told_by_keys_alone() -> None:
    assert recognise(vit().state_dict(), "x").layout == "timm ViT"
    assert recognise(vit().state_dict() | EXTRA["SelectiveMAE"], "x").layout == "SelectiveMAE"
    assert recognise({"a": torch.zeros(1)}, "x").kind == "other"
