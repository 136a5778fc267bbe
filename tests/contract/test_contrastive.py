"""The contrastive methods keep the contract: alone, in parts, in a run, and in two processes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from contrastive_methods import MEMBERS, SMALL, batch_of, draw, method_of

from terrasieve.errors import UserError
from terrasieve.methods import METHODS
from terrasieve.methods.dino import teacher_temperature
from terrasieve.methods.siamese import momentum_at
from terrasieve.pretrain import pretrain
from terrasieve.recipe import Recipe

NAMES = list(SMALL)
names = pytest.mark.parametrize("name", NAMES)
backbones = pytest.mark.parametrize("backbone", ["test_resnet", "vit_tiny_patch16_224"])


def test_every_contrastive_method_is_tested() -> None:
    assert set(MEMBERS) == set(SMALL) <= set(METHODS)


@names
@backbones
def test_loss_is_finite_and_every_parameter_learns(name: str, backbone: str) -> None:
    method = method_of(name, backbone)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * (parameter == 0).all())  # a ResNet's blocks begin as the identity
    output = method(batch_of(), draw())
    assert output.loss.isfinite()
    assert output.embeddings.shape == (8, SMALL[name]["widths"][-1]) and output.embeddings.requires_grad
    output.loss.backward()
    for path, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), path
            assert parameter.grad.abs().sum() > 0 or parameter.ndim < 2, path
        else:
            assert path.startswith("target.") or path.endswith("pos_embed"), path


@names
def test_same_generator_same_bits(name: str) -> None:
    method, batch = method_of(name).eval(), batch_of()
    losses = [method(batch, draw(step)).loss for step in (3, 3, 4)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


@pytest.mark.parametrize("name", ["moco", "dino"])
def test_a_batch_in_parts_is_the_batch_where_nothing_depends_on_the_batch(name: str) -> None:
    """MoCo and DINO on a ViT: no batch norm, no negatives of the batch. The others' losses are the micro-batch's."""
    whole, parts = method_of(name, "vit_tiny_patch16_224"), method_of(name, "vit_tiny_patch16_224")
    batch = batch_of()
    loss = whole(batch, draw(5)).loss
    losses = [parts(batch.part(start, start + 4), draw(5)).loss for start in (0, 4)]
    assert torch.allclose(torch.stack(losses).mean(), loss, atol=1e-5)
    for method in (whole, parts):
        method.after_step(0)
    for (path, one), other in zip(whole.named_buffers(), parts.buffers(), strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-6), path


@names
def test_a_picture_leaves_everything_as_it_was(name: str) -> None:
    method = method_of(name)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    with torch.no_grad():
        picture = method.eval()(batch_of(), draw(), picture=True).picture
    assert list(picture) == ["image", "view1", "view2", *(["view3"] if name == "dino" else [])]
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    method(batch_of(), draw())
    method.train()
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())


@names
def test_learns_eight_chips(name: str) -> None:
    method, batch = method_of(name, view_px=16, **({"queue": 64} if name == "moco" else {})), batch_of()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=2e-3)
    losses, spread = [], 0.0
    for step in range(60):
        output = method(replace(batch, progress=step / 60), draw(step % 4))
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step)
        losses.append(output.loss.item())
        spread = output.metrics["spread"].item()
    tail = sum(losses[-4:]) / 4
    # MoCo's queue begins with noise, which is easily told from any image; it is full of keys after 8 steps.
    first = sum(losses[8:12]) / 4 if name == "moco" else sum(losses[:4]) / 4
    assert tail < first - 0.1
    assert spread > 0.5


def test_schedules_span_the_whole_run_and_do_not_wrap() -> None:
    course = [momentum_at(step / 1000, 0.996) for step in range(1001)]
    assert course[0] == 0.996 and course[-1] == 1.0
    assert all(later > earlier for earlier, later in pairwise(course))
    assert course[500] == pytest.approx(0.998) and momentum_at(1.5, 0.996) == 1.0
    assert course[250] == pytest.approx(1 - 0.004 * (1 + math.cos(math.pi / 4)) / 2)
    warm = MEMBERS["dino"](teacher_temperature=(0.02, 0.06), teacher_warmup=0.5)
    found = [teacher_temperature(share, warm) for share in (0.0, 0.25, 0.5, 1.0)]
    assert found == pytest.approx([0.02, 0.04, 0.06, 0.06])


@pytest.mark.parametrize("name", ["moco", "byol", "dino"])
def test_the_momentum_of_a_run_follows_its_progress(name: str, tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    """Two epochs and a bit: a schedule by epochs would have wrapped."""
    seen: list[float] = []
    settings = tiny(steps=15, encoder={"name": "test_resnet"}, method={"name": name, **SMALL[name]})
    from terrasieve.methods.siamese import Target

    original = Target.follow
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Target, "follow", lambda *a: (seen.append(a[3]), original(*a))[1])
        pretrain(settings, tmp_path / "run")
    assert seen == pytest.approx([momentum_at(step / 15, 0.996) for step in range(15)])
    assert seen == sorted(seen) and seen[-1] > 0.9999


def test_what_cannot_work_is_refused(tiny: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match=r"method\.view_px: a patch of 8 px does not divide a view of 20 px"):
        method_of("moco", "vit_tiny_patch16_224", view_px=20)
    with pytest.raises(UserError, match=r"method\.local_px: a patch of 8 px"):
        method_of("dino", "vit_tiny_patch16_224", local_px=12)
    with pytest.raises(UserError, match="compares the images of a batch"):
        tiny(method={"name": "simclr"}, batch_size=1)
    with pytest.raises(UserError, match=r"method mae works on the patches of a ViT, and .* resnet18 is none"):
        tiny(method={"name": "mae"}, encoder={"name": "resnet18"})


TWO = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[3])
from contrastive_methods import batch_of, draw, method_of
rank, path = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{path}/rendezvous", rank=rank, world_size=2)
torch.set_num_threads(1)
for name in ("simclr", "moco", "dino"):
    method = method_of(name, "vit_tiny_patch16_224")
    method.train() if name != "simclr" else method.eval()  # batch norm's running statistics: the same for all
    output = method(batch_of().part(rank * 4, rank * 4 + 4), draw())
    output.loss.backward()
    method.after_step(0)
    grads = [p.grad for p in method.parameters() if p.grad is not None]
    torch.save((output.loss.detach(), grads, dict(method.named_buffers())), f"{path}/{name}{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    """Loss and averaged gradients, and the queue in the order of ranks, to 1e-6; SimCLR without batch statistics."""
    here = str(Path(__file__).parent)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(rank), str(tmp_path), here], env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=200) for process in running] == [0, 0]
    for name in ("simclr", "moco", "dino"):
        method = method_of(name, "vit_tiny_patch16_224")
        method.train() if name != "simclr" else method.eval()
        output = method(batch_of(), draw())
        output.loss.backward()
        method.after_step(0)
        losses, grads, buffers = zip(*(torch.load(tmp_path / f"{name}{rank}.pt") for rank in range(2)), strict=True)
        assert torch.allclose(torch.stack(losses).mean(), output.loss.detach(), atol=1e-5)
        whole = [p.grad for p in method.parameters() if p.grad is not None]
        for one, two, expected in zip(*grads, whole, strict=True):
            assert torch.allclose((one + two) / 2, expected, atol=2e-6)
        for path, buffer in method.named_buffers():
            for part in buffers:
                assert torch.allclose(part[path].float(), buffer.float(), atol=1e-6), path
