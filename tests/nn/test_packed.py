"""Packed tokens give what padded dense attention with a mask gives, outputs and gradients, whatever the lengths."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from terrasieve import keyed
from terrasieve.nn import packed
from terrasieve.nn.encoder import Encoder, EncoderSettings
from terrasieve.nn.packed import Packing
from terrasieve.nn.patches import take
from terrasieve.sieve.ragged import Ragged, pack, padded, take_ragged

TINY = EncoderSettings(name="vit_tiny_patch16_224", patch_px=8, depth=2)
N = 16


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=keyed.generator(seed, "test"))


def encoder_of(**changes: Any) -> Encoder:
    encoder = Encoder(TINY.model_copy(update=changes), 3, (32, 32))
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith("bias"):  # zero at first, which would hide a bias left out
                parameter.copy_(noise(*parameter.shape, seed=len(name)) * 0.1)
    return encoder


def layout_of(lengths: list[int], seed: int = 0) -> Ragged:
    order = torch.rand(len(lengths), N, generator=keyed.generator(seed, "test")).argsort(dim=1).argsort(dim=1)
    return pack(order < torch.tensor(lengths)[:, None])


def oracle(encoder: Encoder, patches: Tensor, layout: Ragged) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Encode by timm's own block over padded tokens, under a mask."""
    embedded = encoder.embed(patches)
    block_BLD, mask_BL = padded(take_ragged(embedded, layout), layout)
    cls = (encoder.vit.cls_token + encoder.positions[:, :1]).expand(len(layout), -1, -1)
    x, mask_BL = torch.cat([cls, block_BLD], dim=1), F.pad(mask_BL, (1, 0), value=True)
    taps = []
    for block in encoder.vit.blocks:
        x = Block.forward(block, x, attn_mask=mask_BL[:, None, None])
        taps.append(x[:, 1:][mask_BL[:, 1:]])
    x = encoder.vit.norm(x)
    return x[:, 0], x[:, 1:][mask_BL[:, 1:]], taps


def agree(one: Tensor, two: Tensor) -> None:
    assert (one - two).abs().max() <= 1e-5 * max(1.0, two.abs().max().item())


def weighted(cls: Tensor, tokens: Tensor, taps: list[Tensor]) -> Tensor:
    """Reduce outputs so that every one of them has a gradient of its own."""
    parts = [cls, tokens, *taps]
    return torch.stack([(part * noise(*part.shape, seed=i)).sum() for i, part in enumerate(parts)]).sum()


def gradients(encoder: Encoder, run: Callable[[Tensor], tuple[Tensor, Tensor, list[Tensor]]], patches: Tensor) -> Any:
    encoder.zero_grad()
    leaf = patches.clone().requires_grad_()
    outputs = run(leaf)
    weighted(*outputs).backward()
    made = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.requires_grad}
    return outputs, made | {"patches": leaf.grad}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, N), min_size=1, max_size=6), st.integers(0, 999))
def test_any_lengths(lengths: list[int], seed: int) -> None:
    encoder, patches, layout = encoder_of(), noise(len(lengths), N, 192, seed=seed), layout_of(lengths, seed)
    ours = gradients(encoder, lambda p: encoder.encode_kept(p, layout, (0, 1)), patches)
    theirs = gradients(encoder, lambda p: oracle(encoder, p, layout), patches)
    for a, b in zip([*ours[0][:2], *ours[0][2]], [*theirs[0][:2], *theirs[0][2]], strict=True):
        agree(a, b)
    assert ours[1].keys() == theirs[1].keys()
    for name in ours[1]:
        agree(ours[1][name], theirs[1][name])


@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [5, 5, 5, 5], [N, N]])
def test_equal_lengths_are_a_batch_of_fixed_length(lengths: list[int]) -> None:
    encoder, patches, layout = encoder_of().eval(), noise(len(lengths), N, 192), layout_of(lengths)
    ids = layout.ids_T.view(len(lengths), -1)
    ragged, fixed = encoder.encode_kept(patches, layout, (1, 0)), encoder.encode_kept(patches, ids, (1, 0))
    agree(ragged.cls_BD, fixed.cls_BD)
    agree(ragged.tokens.view_as(fixed.tokens), fixed.tokens)
    for a, b in zip(ragged.taps, fixed.taps, strict=True):
        agree(a.view_as(b), b)
    if lengths[0] == N:
        whole = encoder.encode_kept(patches, None)
        agree(ragged.cls_BD, whole.cls_BD)


def test_fixed_lengths_are_the_forward_of_pretraining_and_taps_are_the_blocks_outputs() -> None:
    encoder, patches = encoder_of().eval(), noise(2, N, 192)
    ids = torch.tensor([[1, 4, 9], [0, 2, 15]])
    encoded = encoder.encode_kept(patches, ids, (0,))
    whole = encoder(take(patches, ids), ids)
    agree(torch.cat([encoded.cls_BD[:, None], encoded.tokens], dim=1), whole)
    agree(encoded.taps[0], encoder(take(patches, ids), ids, every_block=True)[0][:, 1:])
    with pytest.raises(ValueError, match="blocks are 0 to 1"):
        encoder.encode_kept(patches, ids, (2,))


def test_other_parts_of_timms_blocks_are_not_forgotten() -> None:
    """Norms of queries, keys and of what was read, layer scale: what plain ViTs of timm may have."""
    options = {"qk_norm": True, "init_values": 0.3, "scale_attn_norm": True}
    encoder = encoder_of()
    encoder.vit = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, depth=2, img_size=32, patch_size=8, **options
    )
    for block in encoder.vit.blocks:
        assert not isinstance(block.attn.q_norm, torch.nn.Identity)
        block.__class__ = packed.PackedBlock
    layout, patches = layout_of([3, 1, 16]), noise(3, N, 192)
    ours, theirs = encoder.encode_kept(patches, layout, (0, 1)), oracle(encoder, patches, layout)
    agree(ours.tokens, theirs[1])
    agree(ours.taps[0], theirs[2][0])


def test_autocast_agrees_to_half_precision() -> None:
    encoder, patches, layout = encoder_of(), noise(3, N, 192), layout_of([2, 16, 7])
    exact = encoder.encode_kept(patches, layout)
    with torch.autocast("cpu", torch.bfloat16):
        rough = encoder.encode_kept(patches, layout)
        weighted(*rough).backward()
    assert (rough.tokens - exact.tokens).abs().max() < 0.1
    assert not torch.equal(rough.tokens.float(), exact.tokens)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters() if p.requires_grad)


def test_activations_may_be_computed_again() -> None:
    encoder, layout = encoder_of(), layout_of([4, 1, 9])
    block, packing = encoder.vit.blocks[0], Packing.of(layout, N)
    made = []
    for again in (False, True):
        x = noise(17, 192).requires_grad_()
        out = checkpoint(block, x, packing, use_reentrant=False) if again else block(x, packing)
        (out * noise(17, 192, seed=1)).sum().backward()
        made.append((out, x.grad, block.attn.qkv.weight.grad.clone()))
        block.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


def test_paths_are_dropped_image_by_image_alike_in_both_layouts() -> None:
    encoder = encoder_of(drop_path=0.5, depth=3).train()
    patches, layout = noise(4, N, 192), layout_of([5] * 4)
    ids = layout.ids_T.view(4, 5)
    path_noise = torch.rand(4, 6, generator=keyed.generator(0, "paths"))
    ragged = encoder.encode_kept(patches, layout, (2,), path_noise)
    fixed = encoder.encode_kept(patches, ids, (2,), path_noise)
    agree(ragged.tokens.view_as(fixed.tokens), fixed.tokens)
    # by hand: rates 0, .25, .5; a branch is left out, or made up for
    x = torch.cat([(encoder.vit.cls_token + encoder.positions[:, :1]).expand(4, -1, -1),
                   encoder.embed(take(patches, ids), ids)], dim=1)  # fmt: skip
    for number, block in enumerate(encoder.vit.blocks):
        rate = 0.25 * number
        for branch in range(2):
            y = block.mlp(block.norm2(x)) if branch else block.attn(block.norm1(x))
            kept = path_noise[:, 2 * number + branch] >= rate
            x = x + y * (kept / (1 - rate))[:, None, None]
    agree(fixed.taps[0], x[:, 1:])
    assert (path_noise[:, 2:4] < 0.25).any() and (path_noise[:, 4:] < 0.5).any()
    with pytest.raises(ValueError, match="path_noise_BE"):
        encoder.encode_kept(patches, ids)
    agree(encoder.eval().encode_kept(patches, ids).tokens, encoder_of(depth=3).encode_kept(patches, ids).tokens)


def test_cuda_paths_call_their_kernels_rightly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be checked without CUDA: the flash kernel's arguments, and FlexAttention's mask, run eagerly."""
    encoder, layout = encoder_of(), layout_of([3, 1, 16, 7])
    packing, x = Packing.of(layout, N), noise(31, 192)
    attention = encoder.vit.blocks[0].attn
    expected = packed.packed_attention(attention, x, packing)

    monkeypatch.setattr(packed, "_compiled", lambda function: function)
    mask = packed._block_mask(packing.rows_S)
    with torch.no_grad():
        agree(packed.packed_attention(attention, x, Packing(**vars(packing) | {"mask": mask})), expected)

    def kernel(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, _: Tensor, longest: int, __: int) -> Tensor:
        assert q.shape == k.shape == v.shape == (31, 3, 64) and starts.dtype == torch.int32 and longest == 17
        ends = starts.tolist()
        images = [[t[a:b].transpose(0, 1) for t in (q, k, v)] for a, b in pairwise(ends)]
        return torch.cat([F.scaled_dot_product_attention(*parts).transpose(0, 1) for parts in images])

    monkeypatch.setattr(packed, "varlen_attn", kernel)
    unknown = Packing.of(Ragged(layout.ids_T, layout.rows_T, layout.offsets, ()), N)
    parts = attention.qkv(x).view(31, 3, 3, 64).unbind(1)
    agree(packed._by_flash(*parts, unknown), packed._by_image(*parts, packing))


RANKS = """
import sys, torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, sys.argv[1])
from test_packed import encoder_of, layout_of, noise, weighted, N

class Whole(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = encoder_of()

    def forward(self, patches, layout):
        encoded = self.encoder.encode_kept(patches, layout)
        return encoded.cls_BD.square().sum() + encoded.tokens.sin().sum()

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, lengths = dist.get_rank(), [3, 16, 1, 9]
patches = noise(4, N, 192)
mine = slice(0, 1) if rank == 0 else slice(1, 4)
alone, spread = Whole(), DistributedDataParallel(Whole())
keep = torch.zeros(4, N, dtype=torch.bool)
whole = layout_of(lengths)
keep[whole.rows_T, whole.ids_T] = True
from terrasieve.sieve.ragged import pack
(alone(patches, whole) / 2).backward()
spread(patches[mine], pack(keep[mine])).backward()
for one, two in zip(alone.parameters(), spread.module.parameters()):
    if one.requires_grad:
        assert (one.grad - two.grad).abs().max() <= 1e-5 * max(1.0, one.grad.abs().max().item())
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_with_other_lengths_are_one(tmp_path: Any) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", str(script), os.path.dirname(__file__)]  # noqa: PTH120
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
