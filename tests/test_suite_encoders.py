"""Encoders of a suite: how they are told apart, what they read, windows over large images, a frozen one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from suite_data import MASKS, pretrained, write_data
from terrasieve import recipe
from terrasieve.assess import export_run
from terrasieve.batch import Batch
from terrasieve.curate.scan import scan
from terrasieve.data import images as imagery
from terrasieve.data.augment import ImageSettings
from terrasieve.data.images import Images
from terrasieve.data.masks import MaskSettings, find_masks
from terrasieve.errors import UserError
from terrasieve.evaluate import dense, sliding
from terrasieve.evaluate.fitted import Reading, fitted
from terrasieve.opened import Wanted
from terrasieve.recipe import AdaptRecipe
from terrasieve.suite import encoders
from terrasieve.train.distributed import World
from terrasieve.train.state import build

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def encoder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained(data, tmp_path_factory.mktemp("run"))


def test_images_are_read_by_the_bands_and_statistics_that_are_asked_for(data: Path) -> None:
    table = scan(data / "pictures").table
    images = imagery.from_table(table, ("blue", "green", "red"))
    parts = ["train" if "dark" in uri else "test" for uri in images.uris]
    own = ImageSettings(bands=("nir", "red", "green"), mean=(1.0, 2.0, 3.0), std=(1.0, 1.0, 1.0))
    kept = fitted(own, images, parts, Reading(), 0)
    assert kept.bands == ("blue", "green", "red") and kept.mean == own.mean
    found = fitted(own, images, parts, Reading(own_statistics=True), 0)
    pixels = np.stack([images.read(row).array for row, part in enumerate(parts) if part == "train"]).astype(float)
    assert found.mean == pytest.approx(pixels.mean((0, 2, 3)), abs=0.01)
    assert found.std == pytest.approx(pixels.std((0, 2, 3)), abs=0.01)
    with pytest.raises(UserError, match="3 of the task"):
        fitted(own.model_copy(update={"bands": ("red",)}), images, parts, Reading(), 0)


def field_images(data: Path) -> tuple[Images, Any]:
    table = scan(data / "fields", pattern="image.tif", labels="none").table
    images = imagery.from_table(table, ("red",))
    return images, find_masks(images, MaskSettings.model_validate(MASKS), None)


def bright(batch: Batch, _: torch.Generator) -> torch.Tensor:
    """Call bright pixels fields: a segmenter that is right whatever the windows."""
    return torch.cat([-batch.image, batch.image], dim=1)


def test_sliding_windows_see_every_pixel_once_at_full_size(data: Path) -> None:
    images, masks = field_images(data)
    seen = ImageSettings(size_px=20, bands=("red",), mean=(95.0,), std=(75.0,))
    found = sliding.confusions(bright, images, masks, [4, 1], seen, overlap=1 / 3)
    for matrix, row in zip(found, (4, 1), strict=True):
        assert matrix.diagonal().tolist() == np.bincount(masks.read(row).ravel(), minlength=2).tolist()
        assert matrix.sum() == 48 * 48 == matrix.diagonal().sum()

    def wrong(batch: Batch, draw: torch.Generator) -> torch.Tensor:
        return bright(batch, draw).flip(1)

    matrix = sliding.confusions(wrong, images, masks, [0], seen, overlap=0.5)[0]
    assert matrix.diagonal().sum() == 0 and dense.values(matrix[None])["miou"] == 0


def test_a_frozen_encoder_stays_and_its_head_learns(encoder: Path) -> None:
    content = {
        "task": {"data": "m.parquet"}, "steps": 1, "batch_size": 2, "frozen": True, "precision": "fp32",
        "image": {"size_px": 32, "bands": ["red", "green", "blue"], "mean": [0, 0, 0], "std": [1, 1, 1]},
        "encoder": {"name": "vit_tiny_patch16_224", "patch_px": 8, "depth": 2, "weights": str(encoder)},
        "method": {"name": "rvit", "classes": 2},
    }  # fmt: skip
    state = build(recipe.check(content, "test", AdaptRecipe), ALONE, 3)
    trained = {name for name, parameter in state.method.named_parameters() if parameter.requires_grad}
    assert trained == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert sum(len(group["params"]) for group in state.optimizer.param_groups) == len(trained)
    with pytest.raises(UserError, match="frozen"):
        recipe.check({**content, "encoder": {**content["encoder"], "drop_path": 0.1}}, "test", AdaptRecipe)


def test_encoders_are_told_apart_and_only_plain_vits_are_trained_on(encoder: Path, tmp_path: Path) -> None:
    assert encoders.trained_on(str(encoder)).model_dump(exclude_unset=True) == {
        "name": "vit_tiny_patch16_224", "patch_px": 8, "depth": 2, "weights": str(encoder), "gsd_m": None,
    }, "no key that a protocol may set"  # fmt: skip
    export_run(encoder, tmp_path / "export")
    assert encoders.trained_on(str(tmp_path / "export")).patch_px == 8
    assert encoders.trained_on("timm:vit_tiny_patch16_224@random").weights is None
    assert encoders.untrainable("timm:vit_tiny_patch16_224") == ""
    for spec in ("timm:resnet18", "torchvision:resnet18"):
        assert "only plain ViTs are trained on" in encoders.untrainable(spec)
        assert encoders.identity(spec) == spec != encoders.identity(spec, Wanted(size_px=64))
    told = {encoders.identity(str(path)) for path in (encoder, encoder / "weights.safetensors")}
    assert len(told) == 1, "the weights are what it is"
    with pytest.raises(UserError, match="did you mean timm:resnet18"):
        encoders.identity("timm:resnet81")
    with pytest.raises(UserError, match="is not a run folder"):
        encoders.identity(str(tmp_path / "none"))
    assert encoders.folder_of(str(encoder), "real") == encoder / "suites" / "real"
    assert encoders.folder_of("timm:resnet18", "a/b.yaml") == Path("suites/b/timm-resnet18")
    assert encoders.located("timm:resnet18") == "timm:resnet18"
