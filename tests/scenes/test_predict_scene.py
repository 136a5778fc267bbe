"""A segmentation of a whole scene: every pixel's class in its place, with colours, names and probabilities."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

from terrasieve import predict_scene
from terrasieve.batch import Batch
from terrasieve.data.augment import ImageSettings
from terrasieve.errors import UserError
from terrasieve.train.picture import palette

from .scene_file import NAMES, write_scene

LEVELS = (40.0, 100.0, 160.0)


class ByBrightness(torch.nn.Module):
    """Tells three levels of the first band apart, pixel by pixel."""

    def predict(self, batch: Batch, _: torch.Generator) -> torch.Tensor:
        return torch.stack([-((batch.image[:, 0] - level) ** 2) / 500 for level in LEVELS], dim=1)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    image = ImageSettings(size_px=16, bands=NAMES, mean=(0.0, 0.0), std=(1.0, 1.0))
    settings = SimpleNamespace(image=image, seed=0, task=SimpleNamespace(masks=object(), boxes=None))
    model: Any = SimpleNamespace(settings=settings, method=ByBrightness(), classes=("a", "b", "c"), image_px=(16, 16))
    monkeypatch.setattr(predict_scene, "load_adapted", lambda _: model)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def test_every_pixel_gets_its_class_its_place_and_its_colour(run: Path, tmp_path: Path) -> None:
    path = write_scene(tmp_path / "scene.tif", 53, 71, nodata=0)
    with rasterio.open(path, "r+") as file:
        pixels = file.read()
        pixels[:, :9, :13] = 0
        file.write(pixels)
    said: list[int] = []

    def stop(done: int, total: int) -> None:
        said.append(done)
        if len(said) == 3:
            raise KeyboardInterrupt

    out = tmp_path / "map.tif"
    with pytest.raises(KeyboardInterrupt):
        predict_scene.predict_scene(run, path, out, probability=True, on_windows=stop)
    assert not out.exists()
    done = predict_scene.predict_scene(run, path, out, probability=True)
    assert done.before > 0
    logits = -((pixels[0].astype(float) - np.array(LEVELS)[:, None, None]) ** 2) / 500
    expected = logits.argmax(0).astype(np.uint8)
    expected[:9, :13] = 255
    chance = np.exp(logits - logits.max(0))
    with rasterio.open(path) as source, rasterio.open(out) as file:
        assert file.crs == source.crs and file.transform == source.transform and file.nodata == 255
        found, sure = file.read()
        assert np.array_equal(found, expected)
        real = expected < 255
        assert np.abs(sure[real] - 100 * (chance / chance.sum(0)).max(0)[real]).max() <= 0.51
        assert (sure[~real] == 255).all()
        assert file.tags()["classes"] == "a,b,c" and file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert [file.colormap(1)[n][:3] for n in range(3)] == [tuple(colour) for colour in palette(3)]
    for number, name in enumerate("abc"):
        assert done.shares[name] == pytest.approx((expected == number).sum() / real.sum())


def test_a_strip_that_does_not_fit_and_another_ending_are_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_scene(tmp_path / "scene.tif", 30, 40)
    with pytest.raises(UserError, match="ends in"):
        predict_scene.predict_scene(run, path, tmp_path / "map")
    monkeypatch.setattr(predict_scene, "LARGEST_VALUES", 1000)
    with pytest.raises(UserError, match="smaller windows"):
        predict_scene.predict_scene(run, path, tmp_path / "map.tif")
