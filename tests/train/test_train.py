"""The loop's parts: schedule, decay groups, finiteness guard, several processes, full disks, held folders."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from terrasieve import keyed, recipe
from terrasieve.batch import Batch, Rows
from terrasieve.errors import UserError
from terrasieve.pretrain import pretrain
from terrasieve.recipe import Recipe
from terrasieve.train.checkpoint import found
from terrasieve.train.distributed import World
from terrasieve.train.loop import train_step
from terrasieve.train.optim import lr_at, optimiser, peak_lr
from terrasieve.train.settings import OptimSettings
from terrasieve.train.state import State, build

ALONE = World(0, 1, torch.device("cpu"))


def state_of(settings: Recipe) -> State:
    image = settings.image.model_copy(update={"mean": (0.0,) * 4, "std": (1000.0,) * 4})
    return build(settings.model_copy(update={"image": image}), ALONE, 4)


def batch_of(count: int = 4) -> Batch:
    nowhere = torch.full((count,), torch.nan, dtype=torch.float64)
    pixels = torch.randint(0, 4000, (count, 4, 32, 32), generator=keyed.generator(0, "test"))
    return Batch(pixels.to(torch.uint16), nowhere, nowhere, nowhere, torch.arange(count), rows=Rows(0, count))


def test_schedule_warms_up_linearly_and_ends_a_cosine() -> None:
    settings = OptimSettings(base_lr=1.5e-4, warmup=0.1)
    peak = peak_lr(settings, 1024, 0.25 / 0.85)
    assert peak == pytest.approx(1.5e-4 * 4 * 0.25 / 0.85)
    rates = [lr_at(step, 100, settings, peak) for step in range(100)]
    assert rates[0] == pytest.approx(peak / 10)
    assert rates[9] == rates[10] == pytest.approx(peak)
    assert rates[55] == pytest.approx(peak * 0.5 * (1 + math.cos(math.pi / 2)))
    assert rates[99] < 0.001 * peak


def test_decay_spares_norms_biases_and_tokens(tiny: Callable[..., Recipe]) -> None:
    state = state_of(tiny())
    decayed = {id(p) for p in state.optimizer.param_groups[0]["params"]}
    named = dict(state.model.named_parameters())
    assert all(p.ndim >= 2 for name, p in named.items() if id(p) in decayed)
    assert not [name for name, p in named.items() if id(p) in decayed and ("token" in name or "norm" in name)]
    count = sum(len(group["params"]) for group in optimiser(state.model, OptimSettings()).param_groups)
    assert count == sum(p.requires_grad for p in named.values())


def test_a_step_whose_gradient_is_not_finite_leaves_everything_as_it_was(tiny: Callable[..., Recipe]) -> None:
    state = state_of(tiny())
    train_step(state, batch_of(), 0)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    moments = [{k: v.clone() for k, v in entry.items()} for entry in state.optimizer.state.values()]
    poisoned = replace(batch_of(), image=torch.full((4, 4, 32, 32), float("nan")))
    assert not train_step(state, poisoned, 1)["grad_norm"].isfinite()
    assert state.skipped == 1
    assert all(torch.equal(value, before[name]) for name, value in state.model.state_dict().items())
    for entry, old in zip(state.optimizer.state.values(), moments, strict=True):
        assert all(torch.equal(entry[key], old[key]) for key in old)
    train_step(state, batch_of(), 2)
    assert state.skipped == 1
    assert any(not torch.equal(value, before[name]) for name, value in state.model.state_dict().items())


def test_accumulation_changes_memory_not_the_step(tiny: Callable[..., Recipe]) -> None:
    norms = []
    for parts in (1, 2, 4):
        state = state_of(tiny(accumulate=parts))
        norms.append(train_step(state, batch_of(), 0)["grad_norm"])
    assert torch.allclose(torch.stack(norms), norms[0], rtol=1e-5)


def test_unreadable_images_in_mid_epoch_are_replaced_counted_and_listed(
    tiny: Callable[..., Recipe], tmp_path: Path, small_manifest: Path
) -> None:
    import pyarrow as pa

    from terrasieve import manifest

    table = manifest.read(small_manifest)
    broken = tmp_path / "gone.tif"
    uris = [str(broken) if row == 3 else uri for row, uri in enumerate(table["uri"].to_pylist())]
    changed = table.set_column(table.schema.get_field_index("uri"), "uri", pa.array(uris))
    manifest.write(changed, tmp_path / "changed.parquet")
    for workers in (0, 2):
        settings = tiny(data=str(tmp_path / "changed.parquet"), loader={"workers": workers})
        outcome = pretrain(settings, tmp_path / f"run{workers}")
        assert outcome.skipped_images == 1
        lines = [json.loads(x) for x in (tmp_path / f"run{workers}" / "log.jsonl").read_text().splitlines()]
        (skip,) = [line for line in lines if line.get("event") == "skip_image"]
        assert skip["uri"] == str(broken)
        assert "missing" in skip["reason"]
    weights = [load_file(tmp_path / f"run{workers}" / "weights.safetensors") for workers in (0, 2)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def torchrun(settings: Recipe, run: Path, *more: str) -> None:
    path = run.parent / f"{run.name}.yaml"
    path.write_text(recipe.dump(settings))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m", "terrasieve", "pretrain"]
    done = subprocess.run(
        [*command, str(path), *more, "--folder", str(run)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("method", ["selective_mae", "mae", "cross_mae", "neighbor_mae", "satmae_pp"])
def test_two_processes_are_one(tiny: Callable[..., Recipe], tmp_path: Path, parallel: str, method: str) -> None:
    """Two gloo ranks with the same global batch agree with one process to 1e-6."""
    decoder = {"depth": 2, "width": 32, "heads": 4}
    optim = {"base_lr": 1e-3, "warmup": 0.0}
    how = {"pairs": {"kinds": ["near"]}, "parallel": parallel, "accumulate": 2, "optim": optim}
    settings = tiny(steps=4, method={"name": method, "decoder": decoder}, **how)
    pretrain(settings, tmp_path / "one")
    torchrun(settings, tmp_path / "two")
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-6
    logs = [[json.loads(x) for x in (tmp_path / n / "log.jsonl").read_text().splitlines()] for n in ("one", "two")]
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in logs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_are_one_with_a_queue_and_a_momentum_encoder(
    tiny: Callable[..., Recipe], tmp_path: Path, parallel: str
) -> None:
    method = {"name": "moco", "widths": [32, 16], "queue": 10, "momentum": 0.5}
    with pytest.raises(UserError, match=r"optim\.name sgd does not go with parallel fsdp"):
        tiny(optim={"name": "sgd"}, parallel="fsdp")
    optim = {"name": "sgd", "base_lr": 1.0} if parallel == "ddp" else {"base_lr": 1e-3}
    settings = tiny(steps=4, method=method, optim=optim, parallel=parallel, geography={"name": "georank"})
    pretrain(settings, tmp_path / "one")
    torchrun(settings, tmp_path / "two")
    one, two = (torch.load(found(tmp_path / name / "checkpoints")[-1][1])["model"] for name in ("one", "two"))
    assert one.keys() == two.keys() and "method.queue" in one
    for name, value in one.items():
        assert torch.allclose(value.float(), two[name].float(), atol=2e-5), name


@pytest.mark.slow
def test_a_run_of_two_sharded_processes_resumes_as_one(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    settings = tiny(steps=4, optim={"base_lr": 1e-3, "warmup": 0.0}, parallel="fsdp")
    pretrain(settings, tmp_path / "one")
    torchrun(settings, tmp_path / "two", "--stop-at", "2")
    pretrain(recipe.load(tmp_path / "two" / "recipe.yaml"), tmp_path / "two", resume=True)
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-6


FULL = """
import resource, sys
from pathlib import Path
from terrasieve import recipe
from terrasieve.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.argv = ["terrasieve", "pretrain", sys.argv[1], "--folder", sys.argv[2]]
main()
"""


def test_a_full_disk_is_one_message_and_leaves_nothing_half_written(
    tiny: Callable[..., Recipe], tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.dump(tiny(steps=2)))
    command = [sys.executable, "-c", FULL, str(path), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2, done.stderr
    assert "disk full" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_a_folder_in_use_is_refused(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    from terrasieve.train.folder import held

    free = FULL.replace("resource.setrlimit", "lambda *_: None  #")
    command = [sys.executable, "-c", free, str(_written(tiny, tmp_path)), str(tmp_path / "run")]
    with held(tmp_path / "run"):
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    assert f"in use by process {os.getpid()}" in done.stderr


def _written(tiny: Callable[..., Recipe], tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.dump(tiny(steps=2)))
    return path


def test_batches_that_cannot_be_divided_are_refused(
    tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    from terrasieve.train.distributed import join

    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="batch_size 4 is not a multiple of 3 processes"), join(tiny()):
        pass
