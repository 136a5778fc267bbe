"""The contrastive methods keep the contract, and each computes its paper's loss: lightly's, or a naive loop's."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import lightly.loss
import pytest
import torch
from torch.nn.functional import cosine_similarity

from terrasieve import keyed
from terrasieve.batch import Batch, Rows
from terrasieve.errors import UserError
from terrasieve.methods import METHODS, MethodSettings, build
from terrasieve.methods.dino import teacher_temperature
from terrasieve.methods.siamese import SiameseSettings, momentum_at
from terrasieve.nn.convolution import encoder_of
from terrasieve.nn.encoder_settings import EncoderSettings
from terrasieve.pretrain import pretrain
from terrasieve.recipe import Recipe

MEMBERS = {
    m.model_fields["name"].default: m for m in get_args(get_args(MethodSettings)[0]) if issubclass(m, SiameseSettings)
}
SMALL: dict[str, dict[str, Any]] = {
    "moco": {"widths": (64, 32), "queue": 16},
    "simclr": {"widths": (64, 32)},
    "byol": {"widths": (64, 32), "predictor": 64},
    "simsiam": {"widths": (64, 64, 32), "predictor": 16},
    "dino": {"widths": (64, 64, 16), "prototypes": 48, "local_views": 2},
}
NAMES = list(SMALL)
names = pytest.mark.parametrize("name", NAMES)
backbones = pytest.mark.parametrize("backbone", ["test_resnet", "vit_tiny_patch16_224"])


def method_of(name: str, backbone: str = "test_resnet", size: int = 32, **choices: Any) -> Any:
    more = {"patch_px": 8, "depth": 2} if backbone.startswith("vit") else {}
    encoder = encoder_of(EncoderSettings(name=backbone, **more), 4, (size, size))  # type: ignore[arg-type]
    return build(MEMBERS[name](**SMALL[name] | choices), encoder)


def batch_of(count: int = 8, size: int = 32, progress: float = 0.0) -> Batch:
    nowhere = torch.full((count,), torch.nan, dtype=torch.float64)
    image = torch.randn(count, 4, size, size, generator=keyed.generator(0, "test"))
    image = torch.nn.functional.avg_pool2d(image, 9, 1, 4) * 9
    rows = Rows(0, count)
    return Batch(image, nowhere, nowhere, nowhere, torch.arange(count), progress=progress, rows=rows)


def draw(step: int = 0) -> torch.Generator:
    return keyed.generator(0, "mask", step)


def views_of(method: Any, batch: Batch, step: int = 0) -> list[torch.Tensor]:
    painted = method(batch, draw(step), picture=True).picture
    return [view for key, view in painted.items() if key.startswith("view")]


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


def test_moco_is_lightlys_loss_over_a_queue_of_all_keys_in_order() -> None:
    method = method_of("moco")
    assert torch.allclose(method.queue.norm(dim=1), torch.ones(16))
    bank, at = method.queue.clone(), 0
    for step in range(5):  # 8 keys into 16 places: wraps twice
        twin = copy.deepcopy(method)
        loss = method(batch_of(), draw(step)).loss
        first, _ = views_of(twin, batch_of(), step)
        q, keys = twin.head(twin.encoder.features(first)), method_keys(method)
        reference = lightly.loss.NTXentLoss(temperature=0.04, memory_bank_size=(16, 32))
        reference.memory_bank.bank = bank.clone()
        assert torch.allclose(loss, reference(q, keys), atol=1e-4)
        method.after_step(step)
        bank[at : at + 8], at = keys, (at + 8) % 16
        assert torch.equal(method.queue, bank) and int(method.place) == at


def method_keys(method: Any) -> torch.Tensor:
    return torch.cat(method._keys)


def test_a_queue_that_a_batch_does_not_divide_wraps() -> None:
    method = method_of("moco", queue=20)
    seen = []
    for step in range(4):
        method(batch_of(), draw(step))
        seen += list(method_keys(method))
        method.after_step(step)
    for n, key in enumerate(seen[-20:], len(seen) - 20):
        assert torch.equal(method.queue[n % 20], key)
    small = method_of("moco", queue=6)
    small(batch_of(), draw())
    keys = method_keys(small)
    small.after_step(0)
    assert torch.equal(small.queue, keys[-6:])


def test_simclr_is_a_loop_over_all_other_views() -> None:
    method = method_of("simclr", temperature=0.3).eval()
    loss = method(batch_of(), draw()).loss
    z = torch.cat([method.head(method.encoder.features(view)) for view in views_of(method, batch_of())])
    terms = []
    for i in range(16):
        similar = [cosine_similarity(z[i], z[j], dim=0) / 0.3 for j in range(16) if j != i]
        own = cosine_similarity(z[i], z[(i + 8) % 16], dim=0) / 0.3
        terms.append(torch.stack(similar).logsumexp(0) - own)
    assert torch.allclose(loss, torch.stack(terms).mean(), atol=1e-5)
    assert torch.allclose(loss, lightly.loss.NTXentLoss(temperature=0.3)(*z.chunk(2)), atol=1e-5)


@pytest.mark.parametrize("stop", [True, False])
def test_simsiam_takes_no_gradient_of_the_target(stop: bool) -> None:
    """The gradient of a loop that detaches the projections, and another one without the stop."""
    method = method_of("simsiam", stop_gradient=stop).eval()
    method(batch_of(), draw()).loss.backward()
    mine = [p.grad.clone() for p in method.encoder.parameters()]
    method.zero_grad()
    z = [method.head(method.encoder.features(view)) for view in views_of(method, batch_of())]
    p = [method.predictor(part) for part in z]
    loss = -(cosine_similarity(p[0], z[1].detach()) + cosine_similarity(p[1], z[0].detach())).mean() / 2
    loss.backward()
    same = [torch.allclose(a, b.grad, atol=1e-6) for a, b in zip(mine, method.encoder.parameters(), strict=True)]
    assert all(same) if stop else not all(same)


@pytest.mark.parametrize("stop", [True, False])
def test_simsiam_without_the_stop_gradient_collapses(stop: bool) -> None:
    method = method_of("simsiam", stop_gradient=stop, view_px=16)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.5, momentum=0.9)
    batch, output = batch_of(32), None
    for step in range(60):
        output = method(batch, draw(step))
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert output is not None
    rank, loss = output.metrics["effective_rank"].item(), output.loss.item()
    if stop:
        assert rank > 2.5
    else:
        assert rank < 1.5 and loss < -0.97, "a perfect loss, and nothing learnt"


def test_byol_aims_at_the_momentum_encoder_which_follows() -> None:
    method = method_of("byol", momentum=0.9)
    with torch.no_grad():
        for parameter in method.target.parameters():
            parameter.mul_(1.1)
    method.eval()
    loss = method(batch_of(), draw()).loss
    views = views_of(method, batch_of())
    p = [method.predictor(method.head(method.encoder.features(view))) for view in views]
    t = [method.target.head(method.target.encoder.features(view)) for view in views]
    assert torch.allclose(loss, -(cosine_similarity(p[0], t[1]) + cosine_similarity(p[1], t[0])).mean() / 2, atol=1e-6)
    method.train()
    method(batch_of(progress=0.5), draw())
    before = [p.clone() for p in method.target.parameters()]
    online = [*method.encoder.parameters(), *method.head.parameters()]
    method.after_step(0)
    for old, other, now in zip(before, online, method.target.parameters(), strict=True):
        assert torch.allclose(now, 0.95 * old + 0.05 * other, atol=1e-6)
        assert not now.requires_grad


def test_dino_is_lightlys_loss_and_its_centre_moves_after_the_step() -> None:
    method = method_of("dino")
    method.centre.normal_(generator=keyed.generator(0, "centre"))
    twin = copy.deepcopy(method).eval()
    loss = method.eval()(batch_of(), draw()).loss
    views = views_of(twin, batch_of())  # two global ones and the first of two local ones
    assert views[2].shape[-1] == 16
    alone = method_of("dino", local_views=0).eval()
    alone.centre.copy_(method.centre)
    reference = lightly.loss.DINOLoss(output_dim=48, teacher_temp=0.04, student_temp=0.1)
    reference.center.copy_(method.centre)
    student = [twin.head(twin.encoder.features(view)) for view in views[:2]]
    teacher = [twin.target(view) for view in views[:2]]
    expected = reference(teacher, student)
    assert torch.allclose(alone(batch_of(), draw()).loss, expected, atol=1e-4)
    assert not torch.allclose(loss, expected, atol=1e-3), "local views take part"
    before = alone.centre.clone()
    alone.train()(batch_of(), draw())
    assert torch.equal(alone.centre, before)
    mean = alone._means[0]
    alone.after_step(0)
    assert torch.allclose(alone.centre, 0.9 * before + 0.1 * mean, atol=1e-6)


def test_dino_with_local_views_is_a_loop() -> None:
    from terrasieve.methods.dino import distil

    student = torch.randn(4, 3, 7, generator=keyed.generator(0, "s"))
    teacher, centre = student[:2] * 2 + 0.3, torch.linspace(-1, 1, 7)
    terms = []
    for t in range(2):
        for v in range(4):
            if t != v:
                aim = ((teacher[t] - centre) / 0.04).softmax(-1)
                terms.append(-(aim * (student[v] / 0.1).log_softmax(-1)).sum(-1).mean())
    assert torch.allclose(distil(student, teacher, centre, 0.1, 0.04), torch.stack(terms).mean(), atol=1e-5)


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
from test_contrastive import batch_of, draw, method_of
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
