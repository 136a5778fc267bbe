"""A small real sweep: its runs are those of ``adapt``, nothing is done twice, and one that dies leaves the others."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from terrasieve import recipe
from terrasieve.adapt import adapt
from terrasieve.errors import UserError
from terrasieve.evaluate.protocol import read_scores
from terrasieve.recipe import AdaptRecipe
from terrasieve.sweep import plan
from terrasieve.sweep.plan import Setting
from terrasieve.sweep.run import Progress, Swept, sweep

NAMES = ["none-0-seed0", "random-0.5-seed0", "static-0.5-seed0"]
GRID: dict[str, Any] = {"ratios": [0.5], "policies": ["static"], "seeds": [0]}


@pytest.fixture(scope="module")
def swept(small: Callable[..., AdaptRecipe], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Swept]:
    folder = tmp_path_factory.mktemp("sweep")
    seen: list[Progress] = []
    made = sweep(small(), folder, **GRID, jobs=2, rounds=1, on_progress=seen.append)
    assert [one.done for one in seen] == [0, 1, 2, 3] and seen[0].left_s is None and seen[-1].left_s == 0
    return folder, made


def scores_of(run: Path) -> dict[str, tuple[float, float, float]]:
    return {score.metric: (score.value, score.low, score.high) for score in read_scores(run / "scores.json")}


@pytest.mark.slow
def test_its_runs_are_those_of_adapt(
    swept: tuple[Path, Swept], small: Callable[..., AdaptRecipe], tmp_path: Path
) -> None:
    folder, made = swept
    assert [row["run"] for row in made.rows] == NAMES
    assert not made.interrupted and not made.failed and not made.problems
    adapt(plan.recipe_of(small(), Setting(0, 0.5, "static")), tmp_path / "alone")
    alone = scores_of(tmp_path / "alone")
    assert scores_of(folder / "runs" / NAMES[2]) == alone
    assert made.rows[2]["scores"] == {metric: list(values) for metric, values in alone.items()}


@pytest.mark.slow
def test_its_files(swept: tuple[Path, Swept]) -> None:
    folder, made = swept
    content = json.loads((folder / "sweep.json").read_text())
    assert content["runs"] == made.rows and made.report == folder / "report.html"
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {
        *("sweep.json", "sweep.csv", "report.html", "figures", "runs", "output")
    }
    costs = {(row["policy"], row["ratio"]): row for row in content["costs"]}
    assert set(costs) == {("none", 0.0), ("static", 0.5), ("random", 0.5)}
    for part in ("train", "inference"):
        assert [costs[key][part]["kept_share"] for key in costs] == [1.0, 0.5, 0.5]
        assert costs["none", 0.0][part]["speed_up"] == 1
        for row in costs.values():
            assert row[part]["images_per_s"] == pytest.approx(4 / row[part]["seconds"][0])
            assert row[part]["peak_memory_mb"] > 0
        whole, scored, drawn = (costs[key][part]["gflop_per_image"] for key in sorted(costs, key=lambda k: k[0]))
        assert whole > drawn or whole > scored  # sorted by policy: none, random, static
    rows = list(csv.DictReader((folder / "sweep.csv").open()))
    assert [row["run"] for row in rows] == NAMES and all(float(row["train_images_per_s"]) > 0 for row in rows)


@pytest.mark.slow
def test_what_is_done_is_kept_what_is_cut_short_goes_on_and_what_dies_dies_alone(
    swept: tuple[Path, Swept], small: Callable[..., AdaptRecipe], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(swept[0], folder)
    runs = folder / "runs"
    before, kept = scores_of(runs / "random-0.5-seed0"), (runs / "none-0-seed0" / "scores.json").stat().st_mtime_ns
    base = recipe.check(json.loads((folder / "sweep.json").read_text())["recipe"], "test", AdaptRecipe)
    for name in ("random-0.5-seed0", "static-0.5-seed0"):
        shutil.rmtree(runs / name)
    adapt(plan.recipe_of(base, Setting(0, 0.5, "random")), runs / "random-0.5-seed0", stop_at=2)
    (runs / "static-0.5-seed0").write_text("in the way")
    made = sweep(small(), folder, **GRID, rounds=1)
    assert [row["state"] for row in made.rows] == ["done", "done", "failed"]
    assert "Cannot write into the folder" in made.failed[0]["message"]
    assert scores_of(runs / "random-0.5-seed0") == before  # bitwise, though it stopped after two steps
    assert '"resume", "step": 2' in (runs / "random-0.5-seed0" / "log.jsonl").read_text()
    assert (runs / "none-0-seed0" / "scores.json").stat().st_mtime_ns == kept
    assert json.loads((folder / "sweep.json").read_text())["costs"] == swept_costs(swept)
    assert "Cannot write into the folder" in made.report.read_text()


def swept_costs(swept: tuple[Path, Swept]) -> Any:
    return json.loads((swept[0] / "sweep.json").read_text())["costs"]


@pytest.mark.slow
def test_another_sweep_is_refused(swept: tuple[Path, Swept], small: Callable[..., AdaptRecipe]) -> None:
    with pytest.raises(UserError, match=r"another recipe: steps, optim\.base_lr differ"):
        sweep(small(steps=5, optim={"base_lr": 0.5}), swept[0], **GRID)
    with pytest.raises(UserError, match="--jobs 0"):
        sweep(small(), swept[0], **GRID, jobs=0)


def test_a_broken_record_is_said(small: Callable[..., AdaptRecipe], tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text('{"runs": [')
    with pytest.raises(UserError, match="cannot be read"):
        sweep(small(), tmp_path, **GRID)


@pytest.mark.slow
def test_a_task_that_is_not_there(small: Callable[..., AdaptRecipe], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        sweep(small(task={"data": "folder:nowhere"}), tmp_path, **GRID)


def command(*arguments: object) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "terrasieve", "sweep", *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_by_the_same_command(
    small: Callable[..., AdaptRecipe], tmp_path: Path, number: signal.Signals
) -> None:
    path, folder = tmp_path / "recipe.yaml", tmp_path / "sweep"
    path.write_text(recipe.dump(small(steps=200, validate_every=200)))
    given = (path, "-o", folder, "--ratios", "0.5", "--policies", "static", "--seeds", "0", "--rounds", "0")
    started = command(*given, "--jobs", "2")
    logs = [folder / "runs" / name / "log.jsonl" for name in NAMES[:2]]
    while not all(log.exists() and '"step": 2' in log.read_text() for log in logs):
        assert started.poll() is None, started.communicate()
        time.sleep(0.05)
    os.kill(started.pid, number)
    said, _ = started.communicate(timeout=120)
    assert started.returncode == 130 and "the same command goes on" in said
    assert all('"interrupted"' in log.read_text() for log in logs)
    assert (folder / "report.html").exists()
    again = command(*given, "--jobs", "2")
    said, complaints = again.communicate(timeout=300)
    assert again.returncode == 0, complaints
    assert all('"resume"' in log.read_text() for log in logs)
    assert len(list((folder / "runs").glob("*/scores.json"))) == 3


@pytest.mark.slow
def test_no_run_outlives_a_killed_sweep(small: Callable[..., AdaptRecipe], tmp_path: Path) -> None:
    path, folder = tmp_path / "recipe.yaml", tmp_path / "sweep"
    path.write_text(recipe.dump(small(steps=100_000, validate_every=100_000)))
    given = (path, "-o", folder, "--ratios", "0.5", "--policies", "static", "--seeds", "0", "--rounds", "0")
    started = command(*given)
    log = folder / "runs" / NAMES[0] / "log.jsonl"
    while not (log.exists() and '"step": 2' in log.read_text()):
        assert started.poll() is None, started.communicate()
        time.sleep(0.05)
    started.kill()
    started.communicate()
    holder = int((folder / "runs" / NAMES[0] / ".lock").read_text())
    for _ in range(600):
        if not Path(f"/proc/{holder}").exists():
            return
        time.sleep(0.1)
    raise AssertionError("the run goes on without its sweep")
