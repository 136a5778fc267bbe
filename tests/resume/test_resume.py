"""A run that was stopped anywhere is, after a resume, bitwise the run that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from terrasieve import recipe
from terrasieve.errors import UserError
from terrasieve.pretrain import pretrain, resumed
from terrasieve.recipe import Recipe
from terrasieve.train.checkpoint import found
from terrasieve.train.log import read_log


def state(run: Path) -> dict[str, torch.Tensor]:
    """Flatten the newest checkpoint's weights and moments."""
    content = torch.load(found(run / "checkpoints")[-1][1], weights_only=True)
    moments = {
        f"{name}.{key}": v for name, values in content["optimizer"]["state"].items() for key, v in values.items()
    }
    return content["model"] | moments


def assert_bitwise(one: Path, other: Path) -> None:
    a, b = state(one), state(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    a, b = (load_file(run / "weights.safetensors") for run in (one, other))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "method": {
                "name": "selective_mae",
                "policy": "hog_sampled",
                "decoder": {"depth": 2, "width": 32, "heads": 4},
            }
        },
        pytest.param(
            {
                "method": {"name": "mae", "decoder": {"depth": 1, "width": 32, "heads": 4}},
                "precision": "bf16",
                "accumulate": 2,
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {
                "method": {"name": "moco", "widths": [64, 32], "queue": 30},  # a queue that no batch divides
                "encoder": {"name": "test_resnet"},
                "optim": {"name": "sgd", "base_lr": 0.5},
            },
            marks=pytest.mark.slow,
        ),
        {
            "method": {"name": "byol", "widths": [64, 32], "predictor": 64},
            "encoder": {"name": "test_resnet"},
            "optim": {"name": "lars", "base_lr": 5.0},
            "geography": {"name": "geography_aware", "clusters": 3},
        },
        pytest.param(
            {
                "method": {"name": "neighbor_mae", "unique": 0.5, "decoder": {"depth": 1, "width": 32, "heads": 4}},
                "pairs": {"kinds": ["near"], "max_km": 5},
                "accumulate": 2,
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {
                "method": {"name": "satmae_pp", "width": 8, "decoder": {"depth": 1, "width": 32, "heads": 4}},
                "image": {"size_px": 16},
                "geography": {"name": "georank"},
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=["selective_mae", "mae-bf16-accumulated", "moco-sgd", "byol-lars-geography", "neighbor_mae", "satmae_pp"],
)
def test_75_steps_are_40_and_35(tiny: Callable[..., Recipe], tmp_path: Path, changes: dict) -> None:  # type: ignore[type-arg]
    settings = tiny(steps=75, loader={"workers": 0}, **changes)
    pretrain(settings, tmp_path / "whole")
    other = settings.model_copy(update={"loader": settings.loader.model_copy(update={"workers": 2})})
    outcome = pretrain(other, tmp_path / "parts", stop_at=40)
    assert (outcome.step, outcome.interrupted) == (40, False)
    assert (tmp_path / "parts" / "weights.safetensors").exists()
    again = resumed(tmp_path / "parts", ["loader.workers=1"])
    assert pretrain(again, tmp_path / "parts", resume=True).step == 75
    assert_bitwise(tmp_path / "whole", tmp_path / "parts")
    steps, events = read_log(tmp_path / "parts" / "log.jsonl")
    assert [line["step"] for line in steps] == [*range(2, 41, 2), *range(42, 75, 2), 75]
    assert [event["event"] for event in events] == ["start", "stop", "resume", "finish"]


def start(settings: Recipe, run: Path, *more: str) -> subprocess.Popen[str]:
    path = run.parent / f"{run.name}.yaml"
    path.write_text(recipe.dump(settings))
    command = [sys.executable, "-m", "terrasieve", "pretrain", str(path), *more, "--folder", str(run)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as here: another number of threads rounds sums otherwise
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=one_thread)


@pytest.mark.slow
def test_killed_in_the_middle_of_a_checkpoint(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    """SIGKILL while the file is being written: the last whole checkpoint stands, and the rest is done again."""
    encoder = {"name": "vit_small_patch16_224", "patch_px": 16}  # 260 MB a checkpoint: long enough to be caught
    log = {"every": 1, "picture_every": 0, "checkpoint_every": 1}
    settings = tiny(steps=6, encoder=encoder, log=log)
    pretrain(settings, tmp_path / "whole")
    process = start(settings, tmp_path / "killed")
    folder, deadline = tmp_path / "killed" / "checkpoints", time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if found(folder) and list(folder.glob(".*.partial")):
            process.send_signal(signal.SIGSTOP)  # looked at while it stands still: the write may have ended meanwhile
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            if any(path.stat().st_size > 1_000_000 for path in folder.glob(".*.partial")):
                process.send_signal(signal.SIGKILL)
                break
            process.send_signal(signal.SIGCONT)
        time.sleep(0.001)
    assert process.wait() == -signal.SIGKILL
    assert list(folder.glob(".*.partial")), "the write was interrupted"
    whole = found(folder)
    assert 1 <= whole[-1][0] < 6
    torch.load(whole[-1][1], weights_only=True)  # whole
    assert pretrain(resumed(tmp_path / "killed", []), tmp_path / "killed", resume=True).step == 6
    assert not list(folder.glob(".*.partial"))
    assert_bitwise(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_ctrl_c_leaves_a_resumable_run(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    settings = tiny(steps=4000, loader={"workers": 1})
    process = start(settings, tmp_path / "run")
    log, deadline = tmp_path / "run" / "log.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and '"step": 6,' not in (log.read_text() if log.exists() else ""):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "--resume" in out
    assert "Traceback" not in err
    _, events = read_log(log)
    assert events[-1]["event"] == "interrupted"
    done = events[-1]["step"]
    assert found(tmp_path / "run" / "checkpoints")[-1][0] == done
    again = resumed(tmp_path / "run", [])
    assert pretrain(again, tmp_path / "run", resume=True, stop_at=done + 2).step == done + 2


def test_a_broken_checkpoint_falls_back_to_the_one_before(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    settings = tiny(steps=6, log={"every": 1, "picture_every": 0, "checkpoint_every": 2})
    pretrain(settings, tmp_path / "run", stop_at=4)
    newest = found(tmp_path / "run" / "checkpoints")[-1][1]
    newest.write_bytes(newest.read_bytes()[:5000])
    assert pretrain(settings, tmp_path / "run", resume=True).step == 6
    _, events = read_log(tmp_path / "run" / "log.jsonl")
    assert [e["event"] for e in events] == ["start", "stop", "broken_checkpoint", "resume", "finish"]
    assert events[3]["step"] == 2
    for _, path in found(tmp_path / "run" / "checkpoints"):
        path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"No checkpoint in .* can be read"):
        pretrain(settings, tmp_path / "run", resume=True)


def test_a_resumed_run_keeps_its_number_of_threads(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    """Two threads add up in another order than one, so the number belongs to the run, not to who resumes it."""
    torch.set_num_threads(2)
    pretrain(tiny(), tmp_path / "run", stop_at=2)
    torch.set_num_threads(1)
    pretrain(resumed(tmp_path / "run", []), tmp_path / "run", resume=True)
    assert torch.get_num_threads() == 2


def test_a_resumed_run_keeps_its_recipe_and_its_manifest(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain(tiny(), run, stop_at=2)
    with pytest.raises(UserError, match=r"steps, method would differ"):
        resumed(run, ["steps=7", "method.encode=0.2"])
    with pytest.raises(UserError, match="holds a run already"):
        pretrain(tiny(), run)
    about = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(about | {"manifest_hash": "another"}))
    with pytest.raises(UserError, match="is not the one"):
        pretrain(resumed(run, []), run, resume=True)
    with pytest.raises(UserError, match=r"holds no recipe\.yaml"):
        resumed(tmp_path, [])
