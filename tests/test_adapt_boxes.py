"""Detection as a whole: adapt from a recipe to scores, resume, predict, and mistakes in the recipe."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import torch
from PIL import Image

from terrasieve import manifest, recipe
from terrasieve.adapt import adapt
from terrasieve.boxes.overlap import iou_of_pairs
from terrasieve.curate.scan import scan
from terrasieve.data.catalog import boxes as tables
from terrasieve.errors import UserError
from terrasieve.evaluate import detections
from terrasieve.evaluate.detect import METRICS
from terrasieve.evaluate.protocol import read_scores
from terrasieve.predict import load_adapted, predict
from terrasieve.recipe import AdaptRecipe
from terrasieve.train.checkpoint import found

Tune = Callable[..., AdaptRecipe]


@pytest.fixture(scope="session")
def ships(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 16 georeferenced images with two bright bars each, and their oriented boxes."""
    root = tmp_path_factory.mktemp("ships")
    draw = np.random.Generator(np.random.Philox(11))
    place = {"crs": "EPSG:32721", "transform": rasterio.transform.from_origin(300000, 6100000, 2, 2)}
    rows = []
    y, x = (v + 0.5 for v in np.mgrid[:64, :64])
    for index in range(16):
        path = root / "images" / f"{index:02d}.tif"
        path.parent.mkdir(exist_ok=True)
        pixels = draw.integers(20, 40, (3, 64, 64))
        for side in (16, 48):
            cx, cy, angle = side + draw.uniform(-2, 2), draw.uniform(18, 46), draw.uniform(-1.5, 1.5)
            cos, sin = math.cos(angle), math.sin(angle)
            inside = abs((x - cx) * cos + (y - cy) * sin) < 12, abs((y - cy) * cos - (x - cx) * sin) < 4
            pixels[:, inside[0] & inside[1]] = 220
            corner = [
                (cx + u * cos - v * sin, cy + u * sin + v * cos) for u, v in ((-12, -4), (12, -4), (12, 4), (-12, 4))
            ]
            rows.append((manifest.row_id(str(path)), str(path), tables.oriented("ship", corner)))
        with rasterio.open(path, "w", driver="GTiff", width=64, height=64, count=3, dtype="uint8", **place) as file:
            file.write(pixels.astype(np.uint8))
    manifest.write(scan(root / "images", labels="none").table, root / "m.parquet")
    tables.write(tables.to_table(rows), root / "m.parquet")
    return root / "m.parquet"


@pytest.fixture
def tune(ships: Path, tmp_path: Path) -> Tune:
    """Make a detection recipe that trains in seconds; keyword arguments replace top-level keys."""

    def make(oriented: bool = False, **changes: Any) -> AdaptRecipe:
        small = {"width": 32, "hidden": 32, "scales": [2, 1], "anchor_cells": 4, "proposals": 40, "sampled": [32, 16]}
        content: dict[str, Any] = {
            "task": {"data": str(ships), "boxes": {"oriented": oriented}},
            "output": str(tmp_path / "runs"),
            "steps": 6,
            "batch_size": 4,
            "precision": "fp32",
            "image": {"size_px": 64, "augment": {"crop_scale": [0.6, 1.0]}},
            "encoder": {"name": "vit_tiny_patch16_224", "patch_px": 8, "depth": 1},
            "method": {"name": "oriented_rcnn" if oriented else "faster_rcnn", **small},
            "optim": {"base_lr": 0.05, "warmup": 0.0},
            "validate_every": 3,
            "loader": {"workers": 0},
            "log": {"every": 3, "picture_every": 3, "checkpoint_every": 100},
        }
        return recipe.check(content | changes, "test", AdaptRecipe)

    return make


@pytest.mark.parametrize("oriented", [False, True])
def test_six_steps_are_four_and_two(tune: Tune, tmp_path: Path, oriented: bool) -> None:
    settings = tune(oriented)
    adapt(settings, tmp_path / "whole")
    adapt(settings, tmp_path / "parts", stop_at=4)
    adapt(settings, tmp_path / "parts", resume=True)
    states = [torch.load(found(tmp_path / run / "checkpoints")[-1][1], weights_only=True) for run in ("whole", "parts")]
    for name, weight in states[0]["model"].items():
        assert torch.equal(weight, states[1]["model"][name]), name
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "val_ap50" in line]
    assert len(lines) == 2 and all(0 <= line["val_ap50"] <= 1 for line in lines)
    with Image.open(max((tmp_path / "whole" / "pictures").iterdir())) as shown:
        assert shown.width >= 4 * 64


@pytest.mark.parametrize("oriented", [False, True])
def test_predictions_lie_where_the_images_lie(
    tune: Tune, ships: Path, tmp_path: Path, oriented: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapt(tune(oriented, steps=2, image={"size_px": 32}), tmp_path / "run")
    scores = read_scores(tmp_path / "run" / "scores.json")
    assert {score.metric for score in scores} >= {*METRICS, "ap50/ship"}
    model = load_adapted(tmp_path / "run")
    truth = tables.read(ships).to_pylist()

    def oracle(batch: Any, _draw: torch.Generator) -> torch.Tensor:
        """Say what is true, in the 32 pixels that the network sees of 64."""
        own = [row for row in truth if row["uri"].endswith(f"{int(batch.index[0]):02d}.tif")]
        boxes = torch.tensor([row["obb" if oriented else "xyxy"] for row in own])
        boxes[:, :4] /= 2
        return torch.cat([boxes, torch.tensor([[0.9, 0], [0.8, 0]])], 1)[None]

    monkeypatch.setattr(type(model.method), "predict", lambda _self, batch, draw: oracle(batch, draw))
    written = predict(tmp_path / "run", ships, tmp_path / "out")
    assert written.failed == [] and len(written.paths) == 18
    table = pq.read_table(tmp_path / "out" / detections.TABLE).to_pylist()
    assert len(table) == len(truth) and {row["score"] for row in table} == {np.float32(0.9), np.float32(0.8)}
    for one, other in zip(table, sorted(truth, key=lambda row: row["uri"]), strict=True):
        assert (one["id"], one["name"]) == (other["id"], "ship")
        key = "obb" if oriented else "xyxy"
        if oriented:
            assert iou_of_pairs(torch.tensor(one[key]), torch.tensor(other[key])) > 0.999
        else:
            assert one[key] == pytest.approx(other[key], abs=1e-3) and one["obb"] is None
    features = json.loads((tmp_path / "out" / detections.GEOJSON).read_text())["features"]
    assert len(features) == len(truth)
    lon, lat = np.array(features[0]["geometry"]["coordinates"][0]).mean(0)
    row = manifest.read(ships).to_pylist()[0]
    assert abs(lon - row["lon"]) < 1e-3 and abs(lat - row["lat"]) < 1e-3


def test_recipes_that_do_not_fit_are_refused(tune: Tune, ships: Path) -> None:
    boxes = {"data": str(ships), "boxes": {}}
    for changes, words in (
        ({"task": {"data": str(ships)}}, "learns from task.boxes, the task has labels"),
        ({"method": {"name": "rvit"}}, "learns from labels, the task has task.boxes"),
        ({"task": {**boxes, "boxes": {"oriented": True}}}, "oriented ones"),
        ({"mixup": 0.5}, "for classification"),
        ({"task": {**boxes, "masks": {"replace": ["a", "b"], "classes": ["c", "d"]}}}, "both given"),
    ):
        with pytest.raises(UserError, match=words):
            tune(**changes)
    with pytest.raises(UserError, match="'ap99' is not a metric of this task; choose from ap50"):
        adapt(tune(monitor="ap99"), Path("never"))
