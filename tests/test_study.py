"""Studies: their files load arm by arm, the runner resumes and never sees a test place, the table is what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from terrasieve import manifest
from terrasieve.errors import UserError
from terrasieve.imagery.earth import write_chips
from terrasieve.study.page import write_page
from terrasieve.study.plan import load

ROOT = Path(__file__).resolve().parents[1]

STUDIES = sorted((ROOT / "recipes" / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_loads_and_names_its_data(path: Path) -> None:
    comment = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert "Data" in comment and f"studies/{path.name}" in comment, "data and command"
    found = load(str(path))
    assert found.against in found.arms


@pytest.mark.parametrize("path", [path for path in STUDIES if path.stem.startswith("neighbours")], ids=lambda p: p.stem)
def test_arms_see_equally_many_images(path: Path) -> None:
    found = load(str(path))
    images = set()
    for arm in found.arms.keys() - {"untrained"}:
        content = found.recipe_of(arm, 0)
        images.add(content["steps"] * content["batch_size"] * content["method"].get("images", 1))
    assert len(images) == 1


def test_mistakes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    content = yaml.safe_load(STUDIES[0].read_text())
    path.write_text(yaml.safe_dump(content | {"against": "nobody"}))
    with pytest.raises(UserError, match="nobody"):
        load(str(path))
    path.write_text(yaml.safe_dump(content | {"measures": [{"kind": "taste"}]}))
    with pytest.raises(UserError, match=r"taste.*scores"):
        load(str(path))


def _row(arm: str, seed: int, value: float, comparison: str = "images") -> dict[str, Any]:
    numbers = {"steps": 2, "images": 64, "cpu_s": 10.0, "wall_s": 1.0, "loss": 0.5, "skipped_steps": 0.0, "date": "x"}
    return {"arm": arm, "seed": seed, "comparison": comparison, "scores": {"knn overall_accuracy": value}, **numbers}


def test_table_pairs_seeds_and_the_reference_of_equal_images(tmp_path: Path) -> None:
    rows = [_row("mae", 0, 0.50), _row("mae", 1, 0.70), _row("ours", 0, 0.51), _row("ours", 1, 0.71)]
    rows += [_row("ours", 0, 0.53, "cpu"), _row("ours", 1, 0.75, "cpu")]
    text = write_page(tmp_path, "name", rows, "mae")
    equal_images, equal_time = text.split("Equal CPU time")
    # sqrt((.1^2 + .1^2) / 1); differences .01 and .01, then .03 and .05: 4 -+ 12.71 * sqrt(2) / sqrt(2)
    assert "| mae | 2 | 64 | 10 | 60.0 ± 14.1 |  |" in equal_images
    assert "| ours | 2 | 64 | 10 | 61.0 ± 14.1 | +1.0 [+1.0, +1.0] |" in equal_images
    assert "| ours | 2 | 64 | 10 | 64.0 ± 15.6 | +4.0 [-8.7, +16.7] |" in equal_time
    assert {path.name for path in tmp_path.iterdir()} == {"runs.csv", "table.md", "study.svg", "study.png"}


@pytest.mark.slow
def test_a_study_goes_on_where_it_was(tmp_path: Path) -> None:
    scenes = ("ocean", "forest")
    rows = write_chips(tmp_path / "earth", 24, 0, size_px=16, split="random", visits=2, scenes=scenes)
    manifest.write(manifest.rows_to_table(rows), tmp_path / "earth.parquet")
    content = {
        "name": "tiny",
        "against": "mae",
        "seeds": [0],
        "equal_cpu": ["pairs"],
        "trial": {"steps": 4, "rounds": 1},
        "recipe": {
            "data": str(tmp_path / "earth.parquet"), "steps": 4, "batch_size": 8, "image": {"size_px": 16},
            "encoder": {"name": "vit_tiny_patch16_224", "patch_px": 4, "depth": 1}, "loader": {"workers": 0},
            "method": {"name": "mae", "decoder": {"depth": 1, "width": 32, "heads": 2}},
        },
        "arms": {"mae": {}, "pairs": {"batch_size": 4, "method.name": "neighbor_mae"}},
        "measures": [{"kind": "scores", "protocols": ["knn"], "metrics": ["knn overall_accuracy"]}],
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))

    def run(*more: str, out: str = "out") -> list[dict[str, Any]]:
        command = [sys.executable, "-m", "terrasieve", "study", str(tmp_path / "tiny.yaml"), *more]
        subprocess.run([*command, "-o", str(tmp_path / out)], check=True, capture_output=True, cwd=tmp_path)
        return [json.loads(line) for line in (tmp_path / out / "runs.jsonl").read_text().splitlines()]

    first = run()
    assert [(row["arm"], row["comparison"]) for row in first] == [
        ("mae", "images"), ("pairs", "images"), ("pairs", "cpu")
    ]  # fmt: skip
    assert [row["images"] for row in first[:2]] == [32, 32]
    trained = manifest.read(tmp_path / "out" / "earth-train-1.parquet")
    assert set(trained["split"].to_pylist()) == {"train"}
    (tmp_path / "out" / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in first[1:]) + '{"half')
    again = run()
    assert [row["arm"] for row in again] == ["pairs", "pairs", "mae"]
    assert again[2]["scores"] == first[0]["scores"] and again[2]["loss"] == first[0]["loss"]
    assert len(run("seeds=[0,1]")) == 6
    rates = (tmp_path / "out" / "rates.json").read_text()
    (tmp_path / "out").rename(tmp_path / "moved")
    assert len(run("seeds=[0,1]", out="moved")) == 6, "where the folder lies is no reason to do anything again"
    assert (tmp_path / "moved" / "rates.json").read_text() == rates
