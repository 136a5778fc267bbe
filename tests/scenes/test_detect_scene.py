"""Objects of a whole scene: each found once, where it lies, whatever the windows; the files; a real detector's way."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from rasterio.transform import from_origin
from scipy.ndimage import find_objects, label
from typer.testing import CliRunner

from terrasieve import methods, predict_scene, recipe
from terrasieve.batch import Batch
from terrasieve.boxes.oriented import from_polygons
from terrasieve.cli import app
from terrasieve.data.augment import ImageSettings
from terrasieve.errors import UserError
from terrasieve.nn.encoder import Encoder
from terrasieve.recipe import AdaptRecipe
from terrasieve.scenes import found
from terrasieve.scenes.windows import Tiling

PLACE = {"crs": "EPSG:32721", "transform": from_origin(500000, 6100000, 2, 2)}
MOST = 12
Run = Callable[..., Path]


class Spots(torch.nn.Module):
    """Finds bright spots, also the parts of them that a window's edge leaves; the brighter, the surer.

    Boxes are a little too large on the side of odd columns, as a detector's are from window to window.
    """

    def __init__(self, oriented: bool, jitter_px: float = 0.0) -> None:
        super().__init__()
        self.oriented, self.jitter_px, self.calls = oriented, jitter_px, 0

    def predict(self, batch: Batch, _: torch.Generator) -> torch.Tensor:
        out = torch.full((len(batch), MOST, 7 if self.oriented else 6), -1.0)
        for number, pixels in enumerate(batch.image[:, 0].numpy()):
            self.calls += 1
            spots, _count = label(pixels > 100)
            shift = self.jitter_px * (-1) ** self.calls
            for place, (rows, columns) in enumerate(find_objects(spots)):
                box = [columns.start + shift, rows.start, columns.stop + shift, rows.stop]
                if self.oriented:
                    y, x = np.nonzero(spots[rows, columns])
                    box = [*_frame(x + columns.start + shift, y + rows.start)]
                peak = float(pixels[rows, columns].max())
                out[number, place] = torch.tensor([*box, peak / 256, float(peak > 200)])
        return out


def _frame(x: np.ndarray, y: np.ndarray) -> list[float]:
    corner = np.concatenate([np.stack([x + a, y + b], 1) for a in (0, 1) for b in (0, 1)])
    outline = shapely.get_coordinates(shapely.minimum_rotated_rectangle(shapely.multipoints(corner)))[:4]
    box: list[float] = from_polygons(torch.from_numpy(outline)).tolist()
    return box


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A detection run of windows of 32 px whose detector finds spots."""

    def make(oriented: bool = False, jitter_px: float = 0.0) -> Path:
        image = ImageSettings(size_px=32, bands=("red",), mean=(0.0,), std=(1.0,))
        settings = SimpleNamespace(
            image=image, seed=0, task=SimpleNamespace(masks=None, boxes=object()), method=SimpleNamespace(most=MOST)
        )
        model: Any = SimpleNamespace(
            settings=settings, method=Spots(oriented, jitter_px), classes=("dim", "bright"), image_px=(32, 32)
        )
        monkeypatch.setattr(predict_scene, "load_adapted", lambda _: model)
        (tmp_path / "model.safetensors").write_bytes(b"weights")
        return tmp_path

    return make


def write_spots(path: Path, spots: list[tuple[int, int, int, int, int]], side: int = 100, **how: Any) -> Path:
    """Write a dark scene with bright rectangles: left, top, width, height in pixels, value."""
    pixels = np.full((side, side), 20, np.uint8)
    for left, top, width, height, value in spots:
        pixels[top : top + height, left : left + width] = value
    shape = {"count": 1, "height": side, "width": side, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", **shape, **(PLACE | how)) as file:
        file.write(pixels, 1)
        file.descriptions = ("red",)
    return path


# Windows of 32 px with an overlap of 8 begin at 0, 24, 48, 68; seams lie at 28, 52 and 74 (after an overlap of 12).
SPOTS = [
    (24, 4, 8, 8, 150),  # centre on a seam, in two windows' overlap exactly
    (26, 50, 5, 5, 240),  # centre near a seam of columns and one of rows: in four windows
    (49, 20, 6, 7, 160),
    (45, 45, 7, 7, 170),  # at the corner of four windows' own parts
    (70, 70, 8, 8, 180),
    (0, 90, 6, 6, 250),  # cut by the scene itself
    (93, 93, 7, 7, 190),
    (10, 60, 4, 8, 140),  # inside one window
]


@pytest.mark.parametrize("jitter_px", [0.0, 0.75])
@pytest.mark.parametrize("oriented", [False, True])
@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.7])
def test_an_object_on_a_seam_is_found_once_where_it_lies(
    run: Run, tmp_path: Path, oriented: bool, overlap: float, jitter_px: float
) -> None:
    scene = write_spots(tmp_path / "scene.tif", SPOTS)
    done = predict_scene.detect_scene(run(oriented, jitter_px), scene, tmp_path / "found.gpkg", overlap=overlap)
    assert done.counts == {"dim": 6, "bright": 2}
    frame = geopandas.read_file(tmp_path / "found.gpkg")
    assert frame.crs == "EPSG:32721" and list(frame["score"]) == sorted(frame["score"], reverse=True)
    for left, top, width, height, value in SPOTS:
        own = frame[(frame["score"] - value / 256).abs() < 1e-4]
        assert len(own) == 1 and own["class"].item() == ("bright" if value > 200 else "dim")
        west, north = 500000 + 2 * left, 6100000 - 2 * top
        expected = shapely.box(west, north - 2 * height, west + 2 * width, north)
        tolerance = 2 * (2 * jitter_px) * (2 * height) + 1e-3  # a strip on each side
        assert own.geometry.item().symmetric_difference(expected).area <= tolerance


def test_merging_is_what_a_naive_loop_does() -> None:
    draw = np.random.Generator(np.random.Philox(5))
    plan = Tiling(1, 100, 100, (32, 32), (8, 8))
    down, across = plan.down, plan.across
    rows, boxes = [], []
    for i, top in enumerate(down):
        row = np.full((1, len(across), 30 * found.FIELDS), -1.0)
        for j, left in enumerate(across):
            for n in range(30):
                x, y = left + draw.uniform(0, 32), top + draw.uniform(0, 32)
                w, h = draw.uniform(2, 9, 2)
                score, number = round(draw.uniform(), 9), int(draw.integers(2))
                row[0, j, n * 10 : n * 10 + 10] = [
                    x - w, y - h, x + w, y - h, x + w, y + h, x - w, y + h, score, number
                ]  # fmt: skip
                outside = 0.0
                for starts, k, place in ((across, j, x), (down, i, y)):
                    if k:
                        shared = starts[k - 1] + 32 - starts[k]
                        outside = max(outside, (starts[k] + shared / 2 - place) / shared)
                    if k + 1 < len(starts):
                        shared = starts[k] + 32 - starts[k + 1]
                        outside = max(outside, (place - starts[k + 1] - shared / 2) / shared)
                if outside < 0.25:
                    boxes.append((outside > 0, -score, number, (i, j), shapely.box(x - w, y - h, x + w, y + h)))
        rows.append(row)
    kept: list[Any] = []
    for box in sorted(boxes, key=lambda box: box[:2]):
        for other in kept:
            common = box[4].intersection(other[4]).area
            if box[2:3] == other[2:3] and box[3] != other[3] and common > 0.5 * min(box[4].area, other[4].area):
                break
        else:
            kept.append(box)
    merged = found.merged(iter(rows), plan)
    assert 100 < len(kept) < len(boxes) - 50
    assert merged.scores.tolist() == sorted((-box[1] for box in kept), reverse=True)
    assert found.merged(iter(rows), plan, 0.5).scores.min() >= 0.5


def test_neighbours_of_one_window_are_left_alone(run: Run, tmp_path: Path) -> None:
    """Two classes at one place, and two objects side by side, are all told."""
    scene = write_spots(tmp_path / "scene.tif", [(25, 4, 3, 6, 150), (29, 4, 3, 6, 150), (27, 11, 6, 3, 220)])
    done = predict_scene.detect_scene(run(), scene, tmp_path / "found.gpkg")
    assert done.counts == {"dim": 2, "bright": 1}


def test_geojson_is_in_degrees_and_windows_may_be_of_another_size(run: Run, tmp_path: Path) -> None:
    scene = write_spots(tmp_path / "scene.tif", [(40, 60, 20, 16, 150)], side=130)
    predict_scene.detect_scene(run(), scene, tmp_path / "found.geojson", window_px=(64, 64))
    content = json.loads((tmp_path / "found.geojson").read_text())
    (feature,) = content["features"]
    assert "crs" not in content and feature["properties"] == {
        "class": "dim",
        "score": pytest.approx(150 / 256, abs=0.1),
    }
    ring = shapely.Polygon(feature["geometry"]["coordinates"][0])
    assert ring.exterior.is_ccw and ring.is_valid
    expected = geopandas.GeoSeries([shapely.box(500080, 6099848, 500120, 6099880)], crs="EPSG:32721")
    metres = geopandas.GeoSeries([ring], crs="OGC:CRS84").to_crs("EPSG:32721")
    assert metres.item().hausdorff_distance(expected.item()) < 4.1  # two pixels of the scene are one that is seen


def test_an_interrupted_search_goes_on_to_the_same_objects(run: Run, tmp_path: Path) -> None:
    scene, folder = write_spots(tmp_path / "scene.tif", SPOTS), run()
    predict_scene.detect_scene(folder, scene, tmp_path / "whole.geojson")

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_scene.detect_scene(folder, scene, tmp_path / "out.geojson", on_windows=stop)
    assert not (tmp_path / "out.geojson").exists()
    done = predict_scene.detect_scene(folder, scene, tmp_path / "out.geojson")
    assert done.before == 2
    assert (tmp_path / "out.geojson").read_bytes() == (tmp_path / "whole.geojson").read_bytes()
    assert not predict_scene.folder_beside(tmp_path / "out.geojson").exists()


def test_a_scene_without_objects_or_data_gives_an_empty_layer(run: Run, tmp_path: Path) -> None:
    folder = run()
    scene = write_spots(tmp_path / "scene.tif", [], nodata=20)
    for name in ("found.gpkg", "found.geojson"):
        assert sum(predict_scene.detect_scene(folder, scene, tmp_path / name).counts.values()) == 0
        assert len(geopandas.read_file(tmp_path / name)) == 0
    model = predict_scene.load_adapted(folder)
    assert model.method.calls == 0  # type: ignore[union-attr]


def test_mistakes_are_named(run: Run, tmp_path: Path) -> None:
    folder = run()
    nowhere = write_spots(tmp_path / "nowhere.tif", SPOTS, crs=None, transform=None)
    with pytest.raises(UserError, match="does not say where it lies"):
        predict_scene.detect_scene(folder, nowhere, tmp_path / "found.gpkg")
    local = write_spots(tmp_path / "local.tif", SPOTS, crs='LOCAL_CS["plan",UNIT["metre",1]]')
    with pytest.raises(UserError, match=r"has no degrees on Earth.*write a .gpkg"):
        predict_scene.detect_scene(folder, local, tmp_path / "found.geojson")
    assert sum(predict_scene.detect_scene(folder, local, tmp_path / "found.gpkg").counts.values()) == len(SPOTS)
    with pytest.raises(UserError, match="--window: 0 x 0"):
        predict_scene.detect_scene(folder, local, tmp_path / "found.gpkg", window_px=(0, 0))
    with pytest.raises(UserError, match=r"finds boxes; give a name that ends in .gpkg or .geojson"):
        predict_scene.predict_scene(folder, nowhere, tmp_path / "map.tif")
    with pytest.raises(UserError, match=r"ends in .gpkg or .geojson"):
        predict_scene.detect_scene(folder, nowhere, tmp_path / "found.shp")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-o", "found.gpkg", "--probability"], "--probability is for a scene's map"),
        (["-o", "map.tif", "--least-score", "0.5"], "--least-score is for a scene's boxes"),
        (["-o", "folder"], "one file is made; give a .tif, of boxes a .gpkg or .geojson"),
    ],
)
def test_options_of_the_command_that_do_not_fit_are_named(tmp_path: Path, options: list[str], words: str) -> None:
    scene = write_spots(tmp_path / "scene.tif", SPOTS)
    result = CliRunner().invoke(app, ["predict", str(tmp_path), str(scene), *options])
    assert isinstance(result.exception, UserError) and words in str(result.exception)


@pytest.mark.parametrize("oriented", [False, True])
def test_the_real_detectors_run_on_a_scene(tmp_path: Path, oriented: bool) -> None:
    """Untrained weights find nothing of use, but they go the whole way, from a run's folder by the command."""
    from safetensors.torch import save_file

    small: dict[str, Any] = {"classes": 2, "least_score": 0.01, "most": 5}
    small |= {"width": 32, "hidden": 32, "scales": [2, 1], "anchor_cells": 4, "proposals": 40, "sampled": [32, 16]}
    content = {
        "name": "small", "task": {"data": "none.parquet", "boxes": {"oriented": oriented}}, "steps": 1,
        "image": {"size_px": 32, "bands": ["red"], "mean": [50.0], "std": [50.0]},
        "encoder": {"name": "vit_tiny_patch16_224", "patch_px": 8, "depth": 1},
        "method": {"name": "oriented_rcnn" if oriented else "faster_rcnn", **small},
    }  # fmt: skip
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(json.dumps(content), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps({"classes": ["a", "b"], "image_px": [32, 32]}))
    settings = recipe.load(folder / "recipe.yaml", (), AdaptRecipe)
    built = methods.build(settings.method, Encoder(settings.encoder, 1, (32, 32), 0), 0)
    save_file(built.state_dict(), folder / "model.safetensors")
    scene = write_spots(tmp_path / "scene.tif", SPOTS)
    result = CliRunner().invoke(app, ["predict", str(folder), str(scene), "-o", str(tmp_path / "found.gpkg")])
    assert result.exit_code == 0, result.output
    frame = geopandas.read_file(tmp_path / "found.gpkg")
    assert set(frame["class"]) <= {"a", "b"} and frame["score"].between(0.01, 1).all() and len(frame)
    assert frame.geometry.within(shapely.box(499900, 6099700, 500300, 6100100)).all()
    if oriented:
        assert not math.isclose(frame.geometry.iloc[0].area, frame.geometry.iloc[0].envelope.area)
