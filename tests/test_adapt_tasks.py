"""What fine-tuning is given and gives back: mistakes in recipes and tasks, maps, a table of classes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from terrasieve import manifest, recipe
from terrasieve.adapt import adapt, divide
from terrasieve.errors import UserError
from terrasieve.evaluate.protocol import read_scores
from terrasieve.predict import predict
from terrasieve.recipe import AdaptRecipe

Tune = Callable[..., AdaptRecipe]
STILL = {"size_px": 40, "augment": {"crop_scale": [1, 1], "crop_ratio": [1, 1]}}
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"methd": {}}, r"methd: there is no such key. Did you mean 'method'\?"),
    ({"method": {"name": "rvitt"}}, r"method\.name: 'rvitt' is not one of rvit, rupernet, .*Did you mean 'rvit'\?"),
    ({"method": {"name": "rvit", "drop": {"rato": 0.5}}}, r"method\.drop\.rato: .*Did you mean 'ratio'\?"),
    ({"task": {"dta": "x"}}, r"task\.dta: there is no such key. Did you mean 'data'\?"),
    ({"method": {"name": "rupernet"}}, r"rupernet learns from task\.masks, the task has labels; use rvit with labels"),
    ({"mixup": 0.8, "batch_size": 6, "accumulate": 2}, r"batch_size 6 / accumulate 2 has to be even"),
    ({"method": {"name": "rvit", "drop": {"policy": "static", "cached": True}}}, r"image\.augment\.crop_scale=\[1,1\]"),
    ({"layer_decay": 1.5}, r"layer_decay: .*less than or equal to 1; got 1\.5"),
    ({"data": "x.parquet", "task": None}, r"task: .*"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=lambda v: ",".join(v) if isinstance(v, dict) else "")
def test_mistakes_in_a_recipe_are_explained(tune: Tune, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tune(**changes)


def test_recipes_of_the_other_command_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("task: {data: x}\nsteps: 1\nmethod: {name: rvit}\n")
    (tmp_path / "p.yaml").write_text("data: x\nsteps: 1\nmethod: {name: mae}\n")
    with pytest.raises(UserError, match="is one of terrasieve adapt, not of terrasieve pretrain"):
        recipe.load(tmp_path / "a.yaml")
    with pytest.raises(UserError, match="is one of terrasieve pretrain, not of terrasieve adapt"):
        recipe.load(tmp_path / "p.yaml", (), AdaptRecipe)
    assert recipe.kind_of(tmp_path / "a.yaml") is AdaptRecipe
    (tmp_path / "c.yaml").write_text("name: x\nsources: [{name: a, paths: b}]\n")
    with pytest.raises(UserError, match="is one of terrasieve curate, not of terrasieve pretrain"):
        recipe.load(tmp_path / "c.yaml")


def labelled(small_manifest: Path, path: Path, **columns: Any) -> str:
    import pyarrow as pa

    table = manifest.read(small_manifest)
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
    manifest.write(table, path)
    return str(path)


def test_tasks_that_cannot_be_learned_are_refused(
    tune: Tune, dense: Tune, small_manifest: Path, tmp_path: Path
) -> None:
    def refused(message: str, settings: AdaptRecipe) -> None:
        with pytest.raises(UserError, match=message):
            adapt(settings, tmp_path / "run")
        assert not (tmp_path / "run").exists(), "a mistake leaves no run folder behind"

    bare = labelled(small_manifest, tmp_path / "bare.parquet", label=[None] * 24)
    refused("none of the 24 kept rows has a label", tune(task={"data": bare}))
    one = labelled(small_manifest, tmp_path / "one.parquet", split=["train"] * 22 + ["val", "test"])
    refused(r"1 val image\(s\) that can be read \(22 train, 1 val, 1 test\); at least 2", tune(task={"data": one}))
    odd = ["a"] * 20 + ["b"] * 4
    unseen = labelled(small_manifest, tmp_path / "unseen.parquet", label=odd, split=["train"] * 20 + ["test"] * 4)
    refused("1 of 2 classes without a training sample: b", tune(task={"data": unseen}))
    refused("monitor: 'miou' is not a metric of this task; choose from overall_accuracy", tune(monitor="miou"))
    refused("are named by a manifest", dense(task={**dense().task.model_dump(), "data": f"folder:{tmp_path}"}))
    masks = dense().task.masks
    assert masks is not None
    few = masks.model_copy(update={"classes": ("ground", "other"), "values": (0, 7)})
    refused(r"holds 1 \(\d+ pixels\), which is no class", dense(task={**dense().task.model_dump(), "masks": few}))


def test_a_manifest_with_both_kinds_of_labels_is_asked_which(tune: Tune, small_manifest: Path, tmp_path: Path) -> None:
    several = [["wet", "green"], ["green"], []] * 8
    both = labelled(small_manifest, tmp_path / "both.parquet", labels=several)
    assert divide(tune(task={"data": both})).kind == "multiclass"
    task = divide(tune(task={"data": both, "labels": "labels"}))
    assert (task.kind, task.classes) == ("multilabel", ("green", "wet"))
    adapt(tune(task={"data": both, "labels": "labels"}, mixup=0.5, steps=4), tmp_path / "run")
    metrics = [score.metric for score in read_scores(tmp_path / "run" / "scores.json")]
    assert metrics[:2] == ["ap_macro", "ap_micro"] and "jaccard_weighted" in metrics


def test_maps_lie_where_the_images_lie_and_show_the_squares(dense: Tune, masked_manifest: Path, tmp_path: Path) -> None:
    """The whole way of a segmentation: it learns the squares, and the maps of images agree with their masks."""
    settings = dense(steps=30, validate_every=30, optim={"base_lr": 0.1, "warmup": 0.1}, image=STILL)
    adapt(settings, tmp_path / "run")
    scores = {score.metric: score.value for score in read_scores(tmp_path / "run" / "scores.json")}
    assert scores["overall_accuracy"] > 0.85
    written = predict(tmp_path / "run", masked_manifest, tmp_path / "maps")
    assert [path.name for path in written.paths] == [f"{index:02d}.tif" for index in range(16)] and not written.failed
    right = []
    for path in written.paths:
        folder = masked_manifest.parent
        with (
            rasterio.open(path) as made,
            rasterio.open(folder / "images" / path.name) as image,
            rasterio.open(folder / "masks" / path.name) as mask,
        ):
            assert (made.crs, made.transform, made.shape) == (image.crs, image.transform, image.shape)
            right.append((made.read(1) == mask.read(1)).mean())
    assert np.mean(right) > 0.85


def test_classes_are_predicted_into_a_table(tune: Tune, small_manifest: Path, tmp_path: Path) -> None:
    adapt(tune(), tmp_path / "run")
    uris = manifest.read(small_manifest)["uri"].to_pylist()
    broken = labelled(small_manifest, tmp_path / "b.parquet", uri=[*uris[:-1], str(tmp_path / "gone.tif")])
    written = predict(tmp_path / "run", Path(broken), tmp_path / "out")
    assert [uri for uri, _ in written.failed] == [str(tmp_path / "gone.tif")]
    with written.paths[0].open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["uri"] for line in lines] == uris[:-1]
    for line in lines:
        chances = {name: float(line[name]) for name in ("rough", "smooth")}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-3)
        assert line["predicted"] == max(chances, key=lambda name: chances[name])
    with pytest.raises(UserError, match=r"holds no recipe\.yaml: it is no run of terrasieve adapt"):
        predict(tmp_path, small_manifest, tmp_path / "out")
