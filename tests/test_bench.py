"""The bench: real rows, FLOPs as published, another library's model learning, no raster library needed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from terrasieve import keyed
from terrasieve.bench import CONTENDERS, page, run_bench, write
from terrasieve.bench import run as bench_run
from terrasieve.bench.clock import PHASES
from terrasieve.bench.contenders import Run, Setup
from terrasieve.bench.flops import gflop_per_image
from terrasieve.bench.memory import cpu_peak_mb
from terrasieve.data.augment import normalise
from terrasieve.errors import UserError

SMALL = Setup("tiny", "fp32", "cpu", 32, 2)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def result() -> dict:
    made = run_bench(
        encoders=("tiny",), precisions=("fp32",), devices=("cpu",), image_px=48, batch_size=2, repeats=2, warmup=1,
        peak_memory=False,
    )  # fmt: skip
    return made


def test_every_contender_is_timed(result: dict) -> None:
    (group,) = result["groups"]
    assert [row["name"] for row in group["rows"]] == list(CONTENDERS)
    for row in group["rows"]:
        assert len(row["step_s"]) == 2
        assert row["images_per_s"] == pytest.approx(2 / (sum(row["step_s"]) / 2))
        assert row["matmul_share"] == pytest.approx(
            row["images_per_s"] * row["gflop_per_image"] / group["matmul_gflop_per_s"]
        )
    assert group["rows"][0]["ratio_to_mae"] == 1
    assert result["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_phases_divide_the_step(result: dict) -> None:
    rows = {row["name"]: row["phases"] for row in result["groups"][0]["rows"]}
    for name in ("mae", "selective_mae_12", "selective_mae_8", "cross_mae"):
        assert set(rows[name]) == set(PHASES)
        assert all(share > 0 for share in rows[name].values())
        assert sum(rows[name].values()) == pytest.approx(1, abs=0.2)  # medians of shares
    assert rows["selective_mae_12"]["selection"] > rows["cross_mae"]["selection"]  # HOG and PSTS against a sort
    assert rows["mae_timm"] is None


def test_written_pages_hold_the_result(result: dict, tmp_path) -> None:
    numbers, text = write(result, tmp_path / "new")
    assert json.loads(numbers.read_text()) == result
    assert numbers.name == f"bench_{result['date'][:10]}_cpu.json"
    lines = text.read_text().splitlines()
    for row in result["groups"][0]["rows"]:
        cells = next(line.split("|") for line in lines if line.startswith(f"| {row['title']} "))
        assert float(cells[5]) == pytest.approx(row["gflop_per_image"], abs=0.006)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted([numbers.name, text.name])


def test_missing_library_and_hardware_are_reported(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "lightly.models.modules", None)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    made = run_bench(
        encoders=("tiny",), methods=("mae_lightly",), precisions=("fp32", "bf16"), devices=("cpu",), image_px=32,
        batch_size=1, repeats=1, threads=2, peak_memory=False,
    )  # fmt: skip
    assert torch.get_num_threads() == 1  # as it was before
    timed, skipped = made["groups"]
    assert timed["rows"][0]["missing"] == "lightly is not installed"
    assert "bf16" in skipped["skipped"]
    assert "is not installed" in page.markdown(made)
    assert "Not measured: this processor does not compute in bf16." in page.markdown(made)


@pytest.mark.parametrize(
    ("name", "published", "tolerance"),
    [
        ("mae_timm", 58.82, 1e-4),  # embeds and predicts every patch, as the published count does
        ("mae", 58.82, 0.01),  # embeds the kept patches alone, predicts the masked ones alone: 0.8 % less
        ("selective_mae_12", 27.07, 0.01),
        ("selective_mae_8", 23.38, 0.01),
        ("cross_mae", 38.71, 0.01),
    ],
)
def test_flops_are_the_published_ones(name: str, published: float, tolerance: float) -> None:
    """METHODS.md, sections 1-3: GFLOP per image, forward and backward, ViT-B/16 at 224 px."""
    counted = gflop_per_image(name, Setup("base", "fp32", "cpu", 224, 16))
    assert counted == pytest.approx(published, rel=tolerance)


@pytest.mark.parametrize("name", ["mae_timm", "mae_lightly"])
def test_yardsticks_train_every_weight(name: str) -> None:
    """A yardstick that left weights out of the backward pass would be an easy one."""
    run = Run(name, SMALL)
    ready = run.state
    micro = normalise(run.batch, ready.mean, ready.std)
    loss = ready.model(micro, keyed.generator(0, "mask")).loss
    loss.backward()
    assert 0.5 < loss.item() < 5  # targets have variance 1
    idle = {key for key, value in ready.model.named_parameters() if value.requires_grad and value.grad is None}
    assert idle == ({"encoder.mask_token"} if name == "mae_lightly" else set())


@pytest.mark.slow
def test_peak_memory_holds_at_least_weights_gradients_and_moments() -> None:
    run = Run("mae", SMALL)
    weights_mb = sum(parameter.numel() for parameter in run.state.parameters) * 4 / 1e6
    peak = cpu_peak_mb("mae", SMALL, 1)
    assert 4 * weights_mb < peak < 40 * weights_mb


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"encoders": ("huge",)}, "'huge' is not one of tiny, small"),
        ({"methods": ()}, "method"),
        ({"image_px": 100}, "not a multiple of the 16 px patch"),
        ({"repeats": 0}, "at least 1"),
        ({"devices": ("cuda",)}, "torch sees none"),
    ],
)
def test_mistakes_are_explained(wrong: dict, said: str, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=said):
        bench_run.run_bench(**wrong)


@pytest.mark.slow
def test_runs_without_raster_libraries() -> None:
    """An accelerator machine has torch, timm and numpy, but none of these."""
    code = """
import sys
for name in ("rasterio", "pyproj", "shapely", "simplejpeg", "lightly", "torchmetrics"):
    sys.modules[name] = None
from terrasieve.bench import run_bench
made = run_bench(encoders=("tiny",), precisions=("fp32",), devices=("cpu",), image_px=32, batch_size=1, repeats=1,
                 methods=("selective_mae_8", "mae_lightly"), peak_memory=False)
first, second = made["groups"][0]["rows"]
assert first["images_per_s"] > 0 and second["missing"] == "lightly is not installed", made
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
