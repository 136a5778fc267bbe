"""Optimisers: LARS against a loop, SGD and Adam against torch's plain ones, none moves on a step that is not finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from terrasieve import keyed
from terrasieve.batch import Batch, Rows
from terrasieve.recipe import Recipe
from terrasieve.train.distributed import World
from terrasieve.train.loop import train_step
from terrasieve.train.optim import optimiser
from terrasieve.train.settings import OptimSettings
from terrasieve.train.state import State, build

NAMES = ["adamw", "adam", "sgd", "lars"]


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        draw = keyed.generator(0, "small")
        self.weight = torch.nn.Parameter(torch.randn(4, 3, generator=draw))
        self.zero = torch.nn.Parameter(torch.zeros(2, 2))
        self.bias = torch.nn.Parameter(torch.randn(4, generator=draw))


def set_grads(model: torch.nn.Module, step: int) -> None:
    for name, parameter in model.named_parameters():
        parameter.grad = torch.randn(parameter.shape, generator=keyed.generator(step, name))


def test_lars_is_a_loop() -> None:
    model, twin = Small(), Small()
    settings = OptimSettings(name="lars", momentum=0.8, trust=0.02, weight_decay=0.1)
    lars = optimiser(model, settings)
    velocity = {name: torch.zeros_like(p) for name, p in twin.named_parameters()}
    for step in range(5):
        rate = 0.3 + step / 10
        set_grads(model, step)
        for group in lars.param_groups:
            group["lr"].fill_(rate)
        kept = {name: p.grad.clone() for name, p in model.named_parameters()}
        lars.step()
        with torch.no_grad():
            for name, w in twin.named_parameters():
                g = kept[name].clone()
                if w.ndim >= 2:
                    g += 0.1 * w
                    if w.norm() > 0 and g.norm() > 0:
                        g *= 0.02 * w.norm() / g.norm()
                velocity[name] = 0.8 * velocity[name] + g
                w -= rate * velocity[name]
        for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
            assert torch.allclose(mine, theirs, atol=1e-6), name
            assert torch.equal(mine.grad, kept[name]), "gradients are left alone"


PLAIN: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95)),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.01, betas=(0.9, 0.95)),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9),
}


@pytest.mark.parametrize("name", list(PLAIN))
def test_the_others_are_torchs(name: str) -> None:
    model, twin = Small(), Small()
    mine = optimiser(model, OptimSettings(name=name, weight_decay=0.1))  # type: ignore[arg-type]
    groups = [
        {"params": [twin.weight, twin.zero], "weight_decay": 0.1},
        {"params": [twin.bias], "weight_decay": 0.0},
    ]
    theirs = PLAIN[name](groups)
    for step in range(4):
        for group in mine.param_groups:
            group["lr"].fill_(0.01)
        set_grads(model, step)
        set_grads(twin, step)
        mine.step()
        theirs.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def state_of(settings: Recipe) -> State:
    image = settings.image.model_copy(update={"mean": (0.0,) * 4, "std": (1000.0,) * 4})
    return build(settings.model_copy(update={"image": image}), World(0, 1, torch.device("cpu")), 4)


def batch_of(count: int = 4) -> Batch:
    nowhere = torch.full((count,), torch.nan, dtype=torch.float64)
    pixels = torch.randint(0, 4000, (count, 4, 32, 32), generator=keyed.generator(0, "test")).float()
    return Batch(pixels, nowhere, nowhere, nowhere, torch.arange(count), rows=Rows(0, count))


SMALL: dict[str, dict[str, Any]] = {
    "moco": {"widths": [32, 16], "queue": 6},
    "simclr": {"widths": [32, 16]},
    "byol": {"widths": [32, 16], "predictor": 32},
    "simsiam": {"widths": [32, 32, 16], "predictor": 8},
    "dino": {"widths": [32, 32, 16], "prototypes": 32},
}


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize(
    ("name", "method"), [*((n, "moco") for n in NAMES), *(("sgd", m) for m in SMALL if m != "moco")]
)
def test_a_step_that_is_not_finite_leaves_everything_as_it_was(
    tiny: Callable[..., Recipe], name: str, method: str, first: bool
) -> None:
    """Weights, velocities, batch norm's statistics, queue and centre; the momentum encoder alone follows on."""
    optim = {"name": name, "base_lr": 0.5, "warmup": 0.0}
    state = state_of(tiny(method={"name": method, **SMALL[method]}, encoder={"name": "test_resnet"}, optim=optim))
    if not first:
        train_step(state, batch_of(), 0)
    before = {key: value.clone() for key, value in state.model.state_dict().items()}
    moments = [{k: v.clone() for k, v in entry.items()} for entry in state.optimizer.state.values()]
    poisoned = replace(batch_of(), image=torch.full((4, 4, 32, 32), float("nan")))
    assert not train_step(state, poisoned, 1)["grad_norm"].isfinite()
    assert state.skipped == 1
    for key, value in state.model.state_dict().items():
        assert value.isfinite().all(), key
        follows = key.startswith("target.") and "running" not in key and "num_batches" not in key
        assert follows or key == "place" or torch.equal(value, before[key]), key
    for entry, old in zip(state.optimizer.state.values(), moments, strict=bool(moments)):
        assert all(torch.equal(entry[key], old[key]) for key in old)
    norms = train_step(state, batch_of(), 2)["grad_norm"]
    assert norms.isfinite() and state.skipped == 1
    moved = [not torch.equal(value, before[key]) for key, value in state.model.state_dict().items()]
    assert sum(moved) > 10 and all(value.isfinite().all() for value in state.model.state_dict().values())
