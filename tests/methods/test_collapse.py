"""Collapse monitors: against numpy and loops; a run whose embeddings collapse says so in log, report and terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from terrasieve import keyed
from terrasieve.batch import Batch, Rows
from terrasieve.methods.collapse import monitors
from terrasieve.recipe import Recipe
from terrasieve.report import write_report
from terrasieve.train.distributed import World
from terrasieve.train.loop import train_step
from terrasieve.train.state import build
from terrasieve.watch import pretrain_watched


def numbers(embeddings: torch.Tensor) -> dict[str, float]:
    return {name: value.item() for name, value in monitors(embeddings).items()}


@pytest.mark.parametrize(("count", "width"), [(40, 6), (6, 40)])
def test_monitors_are_numpys(count: int, width: int) -> None:
    z = torch.randn(count, width, generator=keyed.generator(0, "z")) + 0.5
    unit = (z / z.norm(dim=1, keepdim=True)).double().numpy()
    values = np.linalg.eigvalsh(np.cov(unit.T, bias=True))
    found = numbers(z)
    assert found["effective_rank"] == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-3)
    assert found["spread"] == pytest.approx(unit.std(axis=0).mean() * math.sqrt(width), rel=1e-4)
    pairs = [math.exp(-2 * ((unit[i] - unit[j]) ** 2).sum()) for i in range(count) for j in range(count) if i != j]
    assert found["uniformity"] == pytest.approx(math.log(np.mean(pairs)), abs=1e-4)


def test_what_they_say_of_a_sphere_a_line_and_a_point() -> None:
    noise = torch.randn(512, 32, generator=keyed.generator(0, "z"))
    sphere = numbers(noise)
    assert sphere["effective_rank"] > 28 and sphere["spread"] == pytest.approx(1, abs=0.02)
    assert sphere["uniformity"] < -3.5
    line = numbers(noise[:, :1] * torch.ones(32) + 1e-3 * noise)
    assert line["effective_rank"] == pytest.approx(1, abs=0.05)
    for point in (torch.ones(512, 32), torch.ones(512, 32) + 1e-6 * noise):
        found = numbers(point)
        assert found["effective_rank"] < 0.01 and found["spread"] < 1e-3
        assert found["uniformity"] == pytest.approx(0, abs=1e-2)
    assert all(math.isfinite(value) for value in numbers(torch.ones(1, 4)).values())


SIMSIAM = {"name": "simsiam", "widths": [64, 64, 32], "predictor": 16, "stop_gradient": False, "view_px": 16}


def test_a_collapse_is_told_in_log_report_and_terminal(
    tiny: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny(
        steps=30,
        batch_size=24,
        encoder={"name": "test_resnet"},
        method=SIMSIAM,
        optim={"name": "sgd", "base_lr": 8.0, "clip": None, "warmup": 0.0},
    )
    assert pretrain_watched(settings, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    (first, *_) = [line for line in lines if line.get("event") == "collapse"]
    ranks = {line["step"]: line["effective_rank"] for line in lines if "loss" in line}
    assert ranks[first["step"]] == first["effective_rank"] < first["bound"] == 2
    assert all(rank >= 2 for step, rank in ranks.items() if step < first["step"])
    assert "may have collapsed" in " ".join(capsys.readouterr().err.split())
    page = write_report(tmp_path / "run").read_text()
    assert "the effective rank of the embeddings was below 2" in page
    assert "Effective rank of the embeddings" in page and "second view" in page


WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "multinomial", "is_nonzero"}


class Watchful(TorchDispatchMode):
    """Note every operation for whose result a host would have to wait for an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[1].split(".")[0]
        if name in WAITS or (name == "index" and any(t is not None and t.dtype == torch.bool for t in args[1])):
            self.waits.append(func.name())
        return func(*args, **(kwargs or {}))


GEOGRAPHY = [
    {"name": "georank"},
    {"name": "georank_correlation"},
    {"name": "geobasic"},
    {"name": "geography_aware", "clusters": 2},
    {"name": "tile2vec"},
]
METHODS = [
    {"name": "moco", "widths": [32, 16], "queue": 6},
    {"name": "simclr", "widths": [32, 16]},
    {"name": "byol", "widths": [32, 16], "predictor": 32},
    {"name": "simsiam", "widths": [32, 32, 16], "predictor": 8},
    {"name": "dino", "widths": [32, 32, 16], "prototypes": 32, "views": "standard"},
]


@pytest.mark.parametrize("number", range(5), ids=[m["name"] for m in METHODS])
def test_a_step_never_makes_the_host_wait(tiny: Callable[..., Recipe], number: int) -> None:
    optim = {"name": ("sgd", "lars", "adam", "lars", "adamw")[number], "clip": 1.0}
    settings = tiny(method=METHODS[number], encoder={"name": "test_resnet"}, geography=GEOGRAPHY[number], optim=optim)
    image = settings.image.model_copy(update={"mean": (0.0,) * 4, "std": (1000.0,) * 4})
    state = build(settings.model_copy(update={"image": image}), World(0, 1, torch.device("cpu")), 4)
    somewhere = torch.arange(4, dtype=torch.float64)
    pixels = torch.randint(0, 4000, (4, 4, 32, 32), generator=keyed.generator(0, "test")).float()
    batch = Batch(pixels, somewhere, somewhere, somewhere, torch.arange(4), rows=Rows(0, 4))
    train_step(state, replace(batch), 0)
    with Watchful() as watchful:
        train_step(state, batch, 1)
    assert not watchful.waits
    with Watchful() as watchful:
        _ = float(somewhere[0]), somewhere[somewhere > 1]
    assert len(watchful.waits) >= 2, "the watch sees what it should"
