"""k-NN of patches: counts, sample and confusion against naive loops, votes against scikit-learn, real masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from terrasieve import assess, manifest, recipe
from terrasieve.batch import Batch
from terrasieve.curate.scan import scan
from terrasieve.data.masks import MaskSettings, masks_of
from terrasieve.errors import UserError
from terrasieve.evaluate import dense, patches
from terrasieve.evaluate.knn import knn_scores
from terrasieve.keyed import generator, numpy_generator
from terrasieve.nn.convolution import encoder_of
from terrasieve.nn.encoder_settings import EncoderSettings
from terrasieve.pretrain import new_folder, pretrain


def random_masks(count: int, height: int, width: int, classes: int) -> torch.Tensor:
    mask = numpy_generator(0, "masks").integers(0, classes + 1, (count, height, width))
    return torch.from_numpy(np.where(mask == classes, 255, mask))


def test_class_counts_equal_a_loop_over_pixels() -> None:
    mask = random_masks(3, 20, 14, 4)
    found = patches.class_counts(mask, (5, 3), 4)
    expected = torch.zeros(3, 15, 4, dtype=torch.int64)
    for b in range(3):
        for y in range(20):
            for x in range(14):
                if mask[b, y, x] != 255:
                    expected[b, (y * 5 // 20) * 3 + x * 3 // 14, mask[b, y, x]] += 1
    assert torch.equal(found, expected)
    assert torch.equal(found, patches.class_counts(mask.to(torch.uint8), (5, 3), 4))


def batches_of(masks: torch.Tensor, images: torch.Tensor, size: int) -> list[Batch]:
    nan = torch.full((len(masks),), float("nan"))
    parts = [slice(start, start + size) for start in range(0, len(masks), size)]
    rows = torch.arange(len(masks))
    return [Batch(images[p], nan[p], nan[p], nan[p], rows[p], mask=masks[p]) for p in parts]


def test_a_sample_is_bounded_keyed_by_image_and_blind_to_batches() -> None:
    masks, images = random_masks(7, 16, 16, 3), torch.randn(7, 2, 16, 16, generator=generator(0, "images"))
    masks[2] = 255  # nothing is scored
    masks[3, :, 4:] = 255  # one column of cells is
    maps = lambda x: {"raw": patches.raw_map(x, (4, 4)), "mean": x.mean(1, keepdim=True)[:, :, ::4, ::4]}  # noqa: E731
    first = patches.sample(maps, batches_of(masks, images, 2), 3, lambda row: 5, 0)
    again = patches.sample(maps, batches_of(masks, images, 7), 3, lambda row: 5, 0)
    other = patches.sample(maps, batches_of(masks, images, 7), 3, lambda row: 5, 1)
    assert torch.bincount(first.image_P, minlength=7).tolist() == [5, 5, 0, 4, 5, 5, 5]
    assert torch.equal(first.features["raw"], again.features["raw"])
    assert not torch.equal(first.features["mean"], other.features["mean"])
    every = patches.sample(maps, batches_of(masks, images, 3), 3, lambda row: 99, 0)
    place = 0
    for row in range(7):
        for cell in range(16):
            y, x = 4 * (cell // 4), 4 * (cell % 4)
            inside = masks[row, y : y + 4, x : x + 4]
            if (inside == 255).all():
                continue
            assert every.image_P[place] == row
            assert torch.equal(every.features["raw"][place], images[row, :, y : y + 4, x : x + 4].flatten())
            assert every.features["mean"][place] == images[row, :, y, x].mean()
            assert every.counts_PC[place].tolist() == [int((inside == c).sum()) for c in range(3)]
            place += 1
    assert place == len(every.image_P)
    with pytest.raises(UserError, match="no pixel that is scored"):
        patches.sample(maps, batches_of(masks[2:3], images[2:3], 1), 3, lambda row: 5, 0)


def test_confusion_and_ceiling_equal_painting_every_patch() -> None:
    masks, images = random_masks(4, 12, 12, 3), torch.randn(4, 1, 12, 12, generator=generator(0, "images"))
    maps = lambda x: {"raw": patches.raw_map(x, (3, 3))}  # noqa: E731
    every = patches.sample(maps, batches_of(masks, images, 4), 3, lambda row: 9, 0)
    said = torch.randint(0, 3, (36,), generator=generator(0, "said"))
    painted = said.view(4, 3, 3).repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert torch.equal(patches.confusion(every, said), dense.confusion(painted, masks, 3))
    best = every.counts_PC.argmax(1)
    assert dense.values(patches.confusion(every, best))["overall_accuracy"] == pytest.approx(
        float(every.counts_PC.amax(1).sum() / every.counts_PC.sum())
    )


@pytest.mark.parametrize("multilabel", [False, True])
def test_votes_equal_scikit_learn(multilabel: bool) -> None:
    draw = numpy_generator(0, "features")
    bank, queries = draw.normal(size=(120, 6)), draw.normal(size=(30, 6))
    truth = draw.integers(0, 2, (120, 5)) if multilabel else draw.integers(0, 4, 120)
    oracle = KNeighborsClassifier(20, weights=lambda d: np.exp((1 - d) / 0.07), metric="cosine").fit(bank, truth)
    said = oracle.predict_proba(queries)
    expected = np.stack([p[:, 1] for p in said], 1) if multilabel else said
    found = knn_scores(*(torch.from_numpy(v) for v in (bank, truth, queries)), k=20, temperature=0.07)
    assert found.numpy() == pytest.approx(expected, abs=1e-5)


def test_shares_vote_and_the_even_split_of_patches() -> None:
    parts = ["train"] * 4 + ["val"] + ["test"]
    per_image = patches.budget(parts, most=10)
    assert [per_image(row) for row in range(6)] == [2, 2, 2, 2, 0, 10]
    features = torch.eye(2).repeat(3, 1)
    counts = torch.tensor([[3, 1], [0, 4]]).repeat(3, 1)
    images = torch.tensor([0, 0, 1, 1, 2, 2])
    found = patches.score(
        patches.Patches({"exact": features}, counts, images), ["train", "train", "test"], ["a", "b"], 0, {}
    )
    k = found[0].settings["k"]
    assert k == 4  # of every patch's four, those that are orthogonal weigh e^(-14)
    assert found[0].metric == "miou"
    assert found[0].value == found[0].settings["miou_ceiling"] == pytest.approx((3 / 4 + 4 / 5) / 2)


@pytest.mark.parametrize(
    ("name", "side"), [("vit_tiny_patch16_224", 4), ("resnet18", 1), ("swin_tiny_patch4_window7_224", 1)]
)
def test_maps_of_every_kind_of_backbone_average_to_its_features(name: str, side: int) -> None:
    patch = {"patch_px": 8, "depth": 1} if name.startswith("vit") else {}
    settings = EncoderSettings.model_validate({"name": name, **patch})
    encoder = encoder_of(settings, 3, (32, 32)).eval()
    image = torch.randn(2, 3, 32, 32, generator=generator(0, "image"))
    with torch.inference_mode():
        found = patches.feature_map(encoder, image)
        assert found.shape == (2, encoder.width, side, side)
        assert torch.allclose(found.mean((2, 3)), encoder.features(image), atol=1e-5)


def run_of(folder: Path, data: Path, size_px: int = 64) -> Path:
    content: dict[str, Any] = {
        "name": "tiny", "data": str(data), "output": str(folder), "steps": 2, "batch_size": 2, "precision": "fp32",
        "image": {"size_px": size_px}, "encoder": {"name": "vit_tiny_patch16_224", "patch_px": 8, "depth": 1},
        "method": {"name": "mae", "decoder": {"depth": 1, "width": 32, "heads": 4}}, "loader": {"workers": 0},
        "log": {"every": 1, "picture_every": 0, "checkpoint_every": 100},
    }  # fmt: skip
    settings = recipe.check(content, "test")
    run = new_folder(settings)
    pretrain(settings, run)
    return run


SETS = {
    "flair2_samples": ("*aerial.tif", {"replace": ["aerial.tif", "mask.tif"], "classes": [f"c{n}" for n in range(14)]}),
    "spacenet7_samples": ("*images.tif", {"replace": ["images.tif", "mask.tif"], "classes": ["other", "building"]}),
}


@pytest.mark.parametrize("name", SETS)
def test_real_masks_are_scored_beside_the_baselines(shared_data: Path, tmp_path: Path, name: str) -> None:
    pattern, masks = SETS[name]
    manifest.write(scan(shared_data / name, pattern=pattern, labels="none").table, tmp_path / "m.parquet")
    run = run_of(tmp_path, tmp_path / "m.parquet")
    spec = f"manifest:{tmp_path / 'm.parquet'}"
    scores = assess.evaluate_masks(run, spec, MaskSettings.model_validate(masks), split="random:0.6", workers=0)
    assert {s.encoder for s in scores} == {"pretrained", "random init", "raw pixels"}
    first = [s for s in scores if s.metric == "miou"]
    assert all(0 < s.value <= s.settings["miou_ceiling"] + 1e-9 <= 1 for s in first)
    assert {s.count for s in first} == {2}
    assert first[0].settings["train_patches"] <= 3 * 64
    assert "3 training images" in patches.said(first[0].settings)
    again = assess.evaluate_masks(run, spec, MaskSettings.model_validate(masks), split="random:0.6", workers=0)
    assert again == scores
    assert assess.protocol.read_scores(run / "scores.json") == scores


@pytest.mark.parametrize(
    ("name", "pattern"), [("bigearthnet_v2_samples", "*s2.tif"), ("treesatai_samples", "*aerial.tif")]
)
def test_real_images_of_several_labels_are_scored_by_knn(
    shared_data: Path, tmp_path: Path, name: str, pattern: str
) -> None:
    import csv

    with (shared_data / name / "locations.csv").open() as stream:
        known = {line["sample"]: line["labels"].split(";") for line in csv.DictReader(stream)}
    rows = scan(shared_data / name, pattern=pattern, labels="none").table.to_pylist()
    for row in rows:
        row["labels"] = known[Path(row["uri"]).parent.name]
    manifest.write(manifest.rows_to_table(rows), tmp_path / "m.parquet")
    run = run_of(tmp_path, tmp_path / "m.parquet", 32)
    spec = f"manifest:{tmp_path / 'm.parquet'}"
    scores, task = assess.evaluate_run(run, spec, split="blocks:0.05,val=0,test=.3", protocols=["knn"], workers=0)
    assert task.kind == "multilabel"
    assert [s.metric for s in scores[:2]] == ["ap_macro", "ap_micro"]
    assert all(0 < s.low <= s.value <= s.high <= 1 for s in scores if s.metric.startswith("ap"))
    assert any("blocks of 0.05 degrees" in note for note in task.notes)


def test_masks_are_read_from_recipes_and_mistakes_named(tmp_path: Path) -> None:
    from_recipe = masks_of(Path(__file__).parents[2] / "recipes" / "rupernet_flair.yaml")
    assert from_recipe.replace == ("aerial.tif", "mask.tif")
    (tmp_path / "m.yaml").write_text("masks: {replace: [a, b], classes: [x, y]}\n")
    assert masks_of(tmp_path / "m.yaml").classes == ("x", "y")
    (tmp_path / "m.yaml").write_text("replace: [a, b]\nclases: [x, y]\n")
    with pytest.raises(UserError, match="classes"):
        masks_of(tmp_path / "m.yaml")
