"""The encoder is timm's, the decoders do what their equations say, patches come back."""

from __future__ import annotations

import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from terrasieve.nn.decoder import CrossDecoder, DecoderSettings, SelfDecoder
from terrasieve.nn.encoder import Encoder, EncoderSettings
from terrasieve.nn.patches import patchify, take, unpatchify
from terrasieve.nn.position import sincos_2d

TINY = EncoderSettings(name="vit_tiny_patch16_224", patch_px=8)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 2, 8]))
def test_unpatchify_inverts_patchify(bands: int, rows: int, columns: int, patch_px: int) -> None:
    images = noise(2, bands, rows * patch_px, columns * patch_px)
    assert torch.equal(unpatchify(patchify(images, patch_px), patch_px, *images.shape[-2:]), images)


def test_all_patches_give_what_timm_gives_on_any_size_and_band_count() -> None:
    for size, bands in (((32, 32), 3), ((24, 48), 5)):
        encoder = Encoder(TINY, bands, size).eval()
        images = noise(2, bands, *size)
        ours, theirs = encoder.encode(images), encoder.vit.forward_features(images)
        assert (ours - theirs).abs().max() < 1e-5
        assert torch.equal(encoder.features(images, "cls"), ours[:, 0])


def test_a_subset_is_encoded_at_its_own_positions() -> None:
    encoder = Encoder(TINY, 3, (32, 32)).eval()
    images, ids = noise(2, 3, 32, 32), torch.tensor([[5, 1, 9], [0, 15, 7]])
    vit = encoder.vit
    every = vit.patch_embed(images) + encoder.positions[:, 1:]
    x = torch.cat([(vit.cls_token + encoder.positions[:, :1]).expand(2, -1, -1), take(every, ids)], dim=1)
    expected = vit.norm(vit.blocks(x))
    assert (encoder.encode(images, ids) - expected).abs().max() < 1e-5


def test_state_dict_is_timms_and_the_seed_decides_the_weights() -> None:
    encoder = Encoder(TINY, 4, (32, 32), seed=3)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, **encoder.arguments)
    plain.load_state_dict(encoder.vit.state_dict(), strict=True)
    again, other = Encoder(TINY, 4, (32, 32), seed=3), Encoder(TINY, 4, (32, 32), seed=4)
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), again.parameters(), strict=True))
    assert not torch.equal(encoder.vit.blocks[0].mlp.fc1.weight, other.vit.blocks[0].mlp.fc1.weight)


def test_positions_are_the_formula() -> None:
    table = sincos_2d(3, 5, 16)
    row, column, k = 2, 4, 1
    w = 10000.0 ** (-k / 4)
    values = table[row * 5 + column]
    expected = torch.tensor([column * w, row * w]).sin()
    assert torch.allclose(values[[k, 8 + k]], expected, atol=1e-6)
    assert torch.allclose(values[[4 + k, 12 + k]], torch.tensor([column * w, row * w]).cos(), atol=1e-6)


def test_self_decoder_does_not_depend_on_the_order_of_tokens() -> None:
    decoder = SelfDecoder(DecoderSettings(depth=2, width=32, heads=4), 24, (4, 4), 192).eval()
    tokens, order = noise(1, 17, 24)[:, :7], torch.randperm(16, generator=torch.Generator().manual_seed(1))[None]
    kept, targets = order[:, :6], order[:, 6:]
    straight = decoder(tokens, kept, targets)
    shuffle = torch.tensor([3, 0, 5, 1, 2, 4])
    shuffled = torch.cat([tokens[:, :1], tokens[:, 1:][:, shuffle]], dim=1)
    assert (decoder(shuffled, kept[:, shuffle], targets.flip(1)).flip(1) - straight).abs().max() < 1e-5


def test_cross_decoder_predicts_each_patch_independently_of_the_others() -> None:
    decoder = CrossDecoder(DecoderSettings(depth=3, width=32, heads=4), 24, (4, 4), 192, encoder_depth=2, mix=True)
    blocks = [noise(2, 7, 24, seed=1), noise(2, 7, 24, seed=2)]
    targets = torch.tensor([[1, 5, 9], [0, 2, 15]])
    together = decoder(blocks, targets, targets)
    alone = torch.cat([decoder(blocks, targets, targets[:, i : i + 1]) for i in range(3)], dim=1)
    assert (together - alone).abs().max() < 1e-5
