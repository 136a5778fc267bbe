"""Costs of dropping: rows of real steps, FLOPs as the tokens have it, shares as they are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from terrasieve import keyed
from terrasieve.batch import Batch
from terrasieve.bench import cost
from terrasieve.bench.cost import Contender
from terrasieve.sweep.isolate import Task, run_all
from terrasieve.train.checkpoint import gathered_weights, write_weights
from terrasieve.train.settings import AdaptSettings


def settings(policy: str = "none", ratio: float = 0.0, **more: Any) -> AdaptSettings:
    return AdaptSettings.model_validate(
        {
            "steps": 10,
            "batch_size": 4,
            "precision": "fp32",
            "device": "cpu",
            "task": {"data": "unused"},
            "image": {"size_px": 64, "bands": ["red", "green", "blue"], "mean": [127.0] * 3, "std": [70.0] * 3},
            "encoder": {"name": "vit_tiny_patch16_224", "patch_px": 8, "depth": 2},
            "method": {"name": "rvit", "classes": 5, "drop": {"policy": policy, "ratio": ratio, **more}},
        }
    )


def batches(count: int = 2) -> list[Batch]:
    draw = keyed.generator(0, "test")
    unknown = torch.full((4,), torch.nan, dtype=torch.float64)
    made = []
    for _ in range(count):
        image = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=draw)
        made.append(Batch(image, unknown, unknown, unknown, torch.arange(4), label=torch.arange(4)))
    return made


@pytest.mark.parametrize("part", cost.PARTS)
def test_rows(part: cost.Part) -> None:
    contenders = [settings(), settings("static", 0.5), settings("dynamic", 0.75), settings("random", 0.75)]
    rows = cost.measure_rates(contenders, batches(), part, rounds=3, warmup=1)
    assert [row["kept_share"] for row in rows][:2] == [1.0, 0.5] and rows[3]["kept_share"] == 0.25
    assert rows[2]["kept_share"] == 0.25 if part == "train" else 0.05 < rows[2]["kept_share"] < 0.6
    assert rows[0]["speed_up"] == 1
    for row in rows:
        assert len(row["seconds"]) == 3 and row["images_per_s"] == pytest.approx(4 / sorted(row["seconds"])[1])


def test_flops_are_those_of_the_kept_tokens() -> None:
    batch = batches()[0]
    width, patches = 192, 64

    def blocks(tokens: int) -> float:
        each = (
            2 * tokens * 12 * width**2 + 4 * tokens**2 * width
        )  # four linears of the block, two products of attention
        return 2 * each

    for kept, one in ((64, settings()), (16, settings("random", 0.75))):
        embedding = 2 * (patches if kept == 64 else kept) * 192 * width
        expected = blocks(kept + 1) + embedding + 2 * width * 5
        assert cost.gflop_per_image(one, batch, "inference") == pytest.approx(expected / 1e9, rel=0.02)
    # every product of the forward pass has two in the backward pass, but for the one into the pixels
    ratio = cost.gflop_per_image(settings(), batch, "train") / cost.gflop_per_image(settings(), batch, "inference")
    assert 2.8 < ratio < 3.2


def test_scoring_is_counted() -> None:
    batch = batches()[0]
    drawn, scored = (
        cost.gflop_per_image(settings(policy, 0.75), batch, "inference") for policy in ("random", "static")
    )
    assert scored > drawn  # all patches are embedded to be scored
    assert scored < cost.gflop_per_image(settings(), batch, "inference") / 2.5


def test_trained_weights_bring_their_threshold(tmp_path: Path) -> None:
    one = Contender(settings("dynamic", 0.5), 3, "cpu")
    one.state.method.dropping.threshold.fill_(-2.0)  # below every cosine: only k_min is kept
    write_weights(gathered_weights(one.state.model), tmp_path / "model.safetensors")
    (row,) = cost.measure_rates(
        [settings("dynamic", 0.5)], batches(), "inference", weights=[tmp_path / "model.safetensors"], rounds=1
    )
    assert row["kept_share"] == 1 / 64


@pytest.mark.slow
def test_peak_holds_at_least_weights_and_what_training_adds(tmp_path: Path) -> None:
    found: dict[str, Any] = {}
    wide = settings().model_copy(update={"encoder": settings().encoder.model_copy(update={"depth": 12})})
    tasks = [Task(part, cost.peak_mb, (wide, batches()[0], part), tmp_path / "output") for part in cost.PARTS]
    run_all(tasks, 1, on_end=lambda task, ending: found.setdefault(task.name, ending))
    weights_mb = sum(p.numel() * 4 for p in Contender(wide, 3, "cpu").state.parameters) / 1e6
    assert found["inference"].result > weights_mb, found
    assert found["train"].result > 4 * weights_mb  # weights, gradients, two moments
