"""The bench of dropped patches: same results in every form, FLOPs as counted, pages that hold the numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from terrasieve.bench import ragged
from terrasieve.bench.contenders import Setup, settings_for
from terrasieve.bench.dropped import Classifier, Contender, busy_batch, encode_padded
from terrasieve.bench.flops import CPU_ATTENTION
from terrasieve.errors import UserError
from terrasieve.sieve.ragged import mean_ragged
from terrasieve.train import state
from terrasieve.train.distributed import World

SMALL = Setup("tiny", "fp32", "cpu", 64, 3)


@pytest.fixture(scope="module")
def result() -> dict:
    return ragged.run_ragged(
        encoders=("tiny",), devices=("cpu",), ratios=(0.5, 0.75), image_px=64, batch_size=3, repeats=2
    )


def contender(form: str, ratio: float) -> Contender:
    ready = state.around(Classifier(SMALL), settings_for("mae", SMALL), World(0, 1, torch.device("cpu")))
    return Contender(form, ratio, ready, busy_batch(SMALL))  # type: ignore[arg-type]


def test_rows_say_what_was_kept_and_how_fast(result: dict) -> None:
    assert [group["part"] for group in result["groups"]] == ["training", "inference"]
    for group in result["groups"]:
        assert [(row["form"], row["ratio"]) for row in group["rows"]] == [
            ("undropped", 0.0),
            *((form, ratio) for ratio in (0.5, 0.75) for form in ("fixed", "ragged", "padded")),
        ]
        first = group["rows"][0]
        for row in group["rows"]:
            assert sum(row["lengths"]) == pytest.approx(3 * 16 * (1 - row["ratio"]))
            assert row["images_per_s"] == pytest.approx(3 / (sum(row["step_s"]) / 2))
            assert row["tokens_per_s"] == pytest.approx(row["images_per_s"] * sum(row["lengths"]) / 3)
            assert row["padding"] == pytest.approx(
                1 - sum(row["lengths"]) / (3 * max(row["lengths"])) if row["form"] == "padded" else 0
            )
            assert (row["scoring"] > 0) == (row["form"] != "undropped")
            limit = row["gflop_per_image"] / first["gflop_per_image"]
            ratios = [b / a for a, b in zip(first["step_s"], row["step_s"], strict=True)]
            assert row["over_flop_limit"] == pytest.approx(sum(ratios) / 2 / limit)
            assert row["speedup"] == pytest.approx(sum(1 / ratio for ratio in ratios) / 2)
        assert len(set(group["rows"][2]["lengths"])) > 1 and len(set(group["rows"][1]["lengths"])) == 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("form", ["undropped", "fixed", "ragged"])
def test_flops_are_those_that_a_whole_batch_takes(form: str, training: bool) -> None:
    """But for scoring, an embedding of all patches; counted again on the batch with its own lengths."""
    one = contender(form, 0.0 if form == "undropped" else 0.6)
    one.model.form, one.model.dropping = one.form, one.dropping
    kept = one.score()
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    with counter, torch.set_grad_enabled(training):
        logits = one.model.train(training).classify(one.patches_BNP, kept)
        if training:
            logits.sum().backward()
    gflop = ragged._gflop(SMALL, training)
    assert sum(map(gflop, one.lengths)) == pytest.approx(counter.get_total_flops() / 1e9, rel=1e-6)


def test_padded_is_ragged_with_padding() -> None:
    one = contender("padded", 0.6)
    kept = one.score()
    encoder = one.model.encoder.eval()
    packed = mean_ragged(encoder.encode_kept(one.patches_BNP, kept).tokens, kept)
    assert (encode_padded(encoder, one.patches_BNP, kept) - packed).abs().max() < 1e-5


def test_pages_hold_the_numbers(result: dict, tmp_path: Path) -> None:
    numbers, text = ragged.write(result, tmp_path)
    assert json.loads(numbers.read_text()) == result
    assert numbers.name == f"ragged_{result['date'][:10]}_cpu.json"
    lines = [line.split("|") for line in text.read_text().splitlines() if line.startswith("| ragged")]
    rows = [row for group in result["groups"] for row in group["rows"] if row["form"] == "ragged"]
    for cells, row in zip(lines, rows, strict=True):
        assert float(cells[4]) == pytest.approx(row["speedup"], abs=0.006)
        assert float(cells[9]) == pytest.approx(row["over_flop_limit"], abs=0.006)


def test_mistakes_are_explained() -> None:
    with pytest.raises(UserError, match=r"ratios 0.5, 1.2 are not shares"):
        ragged.run_ragged(ratios=(0.5, 1.2))
    with pytest.raises(UserError, match="'huge' is not one of tiny"):
        ragged.run_ragged(encoders=("huge",))


@pytest.mark.slow
def test_the_command_runs_where_there_is_no_raster_library(tmp_path: Path) -> None:
    code = f"""
import sys
for name in ("rasterio", "pyproj", "shapely", "simplejpeg", "lightly", "torchmetrics"):
    sys.modules[name] = None
sys.argv = ["terrasieve", "bench", "--ragged", "--precision", "fp32", "--device", "cpu", "--image-px", "32",
            "--batch-size", "2", "--repeats", "1", "--ratio", "0.5", "-o", {str(tmp_path)!r}]
from terrasieve.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("ragged_*_cpu.*"))) == 2
