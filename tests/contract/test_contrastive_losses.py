"""The contrastive methods compute their papers' losses: lightly's, or a naive loop's."""

from __future__ import annotations

import copy
from typing import Any

import lightly.loss
import pytest
import torch
from contrastive_methods import batch_of, draw, method_of, views_of
from torch.nn.functional import cosine_similarity

from terrasieve import keyed


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
