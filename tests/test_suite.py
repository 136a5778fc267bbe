"""Suites: what is here is scored, the rest listed; finished jobs are kept; tables say whose figures are whose."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import yaml

from terrasieve import manifest, recipe
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
from terrasieve.pretrain import pretrain
from terrasieve.recipe import AdaptRecipe
from terrasieve.report.suite_page import HEADER, columns, escaped, latex, markdown, missing
from terrasieve.suite import encoders, jobs, run, settings
from terrasieve.suite.table import content_of
from terrasieve.train.distributed import World
from terrasieve.train.state import build

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
ALONE = World(0, 1, torch.device("cpu"))


def random(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of 24 pictures, and 6 samples with masks."""
    root = tmp_path_factory.mktemp("data")
    for index in range(24):
        path = root / "pictures" / ("dark", "light")[index % 2] / f"{index:02d}.tif"
        write(path, random(index).integers(0, 90, (3, 32, 32)) + 90 * (index % 2))
    lines = ["sample,split,labels"]
    for index in range(6):
        mask = random(index).integers(0, 2, (1, 6, 6)).repeat(8, 1).repeat(8, 2)
        folder = root / "fields" / f"s{index}"
        write(folder / "image.tif", np.concatenate([mask * 150 + 20, mask * 90, mask * 40, mask * 10]))
        write(folder / "mask.tif", mask)
        lines.append(f"s{index},{('train', 'train', 'train', 'validation', 'test', 'test')[index]},field;road")
    (root / "fields" / "locations.csv").write_text("\n".join(lines) + "\n")
    return root


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"width": pixels.shape[2], "height": pixels.shape[1], "count": len(pixels), "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", **shape) as file:
        file.write(pixels.astype(np.uint8))
        for band, name in enumerate(("red", "green", "blue", "nir")[: len(pixels)], 1):
            file.set_band_description(band, name)


@pytest.fixture(scope="module")
def encoder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    root = tmp_path_factory.mktemp("run")
    manifest.write(scan(data / "pictures").table, root / "m.parquet")
    content: dict[str, Any] = {
        "data": str(root / "m.parquet"), "steps": 2, "batch_size": 4, "precision": "fp32", "image": {"size_px": 32},
        "encoder": {"name": "vit_tiny_patch16_224", "patch_px": 8, "depth": 2},
        "method": {"name": "mae", "decoder": {"depth": 1, "width": 32, "heads": 4}},
        "loader": {"workers": 0}, "log": {"every": 1, "picture_every": 0, "checkpoint_every": 10},
    }  # fmt: skip
    pretrain(recipe.check(content, "test"), root / "run")
    return root / "run"


SAMPLES = {"folder": "fields", "image": "image.tif", "bands": ["red", "green", "blue", "nir"]}
MASKS = {"replace": ["image.tif", "mask.tif"], "classes": ["ground", "field"]}
SHORT = ["steps=2", "validate_every=2", "batch_size=2", "image.size_px=32", "method.width=16"]
PUBLISHED = {"paper": "A & B 2026", "table": "table 5", "metric": "OA", "values": {"ViT-B": 96.64}}


def suite(path: Path, **changes: Any) -> Path:
    tasks = [
        {"name": "pictures", "data": "folder:pictures", "protocols": ["knn", "linear"]},
        {"name": "labels", "samples": SAMPLES, "protocols": ["knn"], "metric": "ap_micro"},
        {"name": "masks", "samples": SAMPLES, "masks": MASKS, "protocols": ["upernet_frozen"], "overrides": SHORT},
        {"name": "away", "data": "catalog:eurosat", "protocols": ["knn"], "published": [PUBLISHED]},
    ]
    tasks[0] |= {"published": [PUBLISHED], "split": "random:0.7"}
    path.write_text(yaml.safe_dump({"name": "own", "tasks": tasks, **changes}))
    return path


@pytest.mark.slow
def test_a_suite_goes_on_where_it_was_interrupted(data: Path, encoder: Path, tmp_path: Path) -> None:
    """Every kind of task; the second call does what is left, and nothing else; a torn line is no line."""
    file, folder = suite(tmp_path / "own.yaml"), tmp_path / "out"
    done = run.evaluate(str(encoder), str(file), folder, data=data, workers=0)
    assert not done.failed and not done.interrupted
    states = {(row["task"], row["protocol"]): row["state"] for row in done.rows}
    assert states == {
        ("pictures", "knn"): "done", ("pictures", "linear"): "done", ("labels", "knn"): "done",
        ("masks", "upernet_frozen"): "done", ("away", "knn"): "absent",
    }  # fmt: skip
    by_name = {(row["task"], row["protocol"]): row for row in done.rows}
    assert by_name["pictures", "knn"]["score"]["count"] == 8 and by_name["pictures", "knn"]["untrained"] is not None
    assert by_name["masks", "upernet_frozen"]["score"]["count"] == 2
    assert by_name["masks", "upernet_frozen"]["memory_mb"] > 0
    assert "eurosat" in by_name["away", "knn"]["message"]
    for name in ("report.html", "table.md", "table.tex", "table.json"):
        assert "eurosat" in (folder / name).read_text() or name == "table.tex"

    record = folder / "results.jsonl"
    lines = record.read_text().splitlines(keepends=True)
    assert len(lines) == 3  # one job for both protocols on frozen features
    record.write_text(lines[0] + lines[2] + lines[1][:40])
    seen: list[str] = []
    again = run.evaluate(
        str(encoder),
        str(file),
        folder,
        data=data,
        workers=0,
        on_progress=lambda at: seen.append(at.last and at.last["task"]),
    )
    assert seen == [None, json.loads(lines[1])["task"]]
    assert [json.loads(line)["key"] for line in record.read_text().splitlines()] == [
        json.loads(lines[place])["key"] for place in (0, 2, 1)
    ]
    trained = next((folder / "runs").iterdir())
    (trained / "of_before").touch()
    anew = run.evaluate(str(encoder), str(file), folder, data=data, workers=0, again=True)
    assert [row["state"] for row in anew.rows] == [row["state"] for row in done.rows]
    assert trained.is_dir() and not (trained / "of_before").exists()
    assert len(record.read_text().splitlines()) == 3
    strip = [{key: row[key] for key in ("task", "score", "state")} for row in done.rows]
    assert [{key: row[key] for key in ("task", "score", "state")} for row in again.rows] == strip


def line(job: jobs.Job, values: dict[str, float], **more: Any) -> dict[str, Any]:
    """Make a finished job's line with scores of two protocols on frozen features, or of a training."""
    scores = [
        {"encoder": name, "protocol": protocol, "metric": "overall_accuracy", "value": value, "low": value - 0.1,
         "high": value + 0.1, "count": 40, "settings": {}}
        for (name, protocol), value in values.items()
    ]  # fmt: skip
    about = {"key": job.key, "task": job.task.name, "seed": job.seed, "state": "done", "message": "", "seconds": 60.0}
    return {**about, "scores": scores, "notes": ["a note"], "memory_mb": 100.0, **more}


def test_rows_are_means_over_seeds_beside_the_untrained_encoder(data: Path, tmp_path: Path) -> None:
    task = {"name": "pictures", "data": "folder:pictures", "protocols": ["knn", "finetune_classification"]}
    task |= {"metric": "overall_accuracy", "published": [{**PUBLISHED, "protocol": "finetune_classification"}]}
    suite, protocols, _ = settings.load(str(suite_file(tmp_path, [task], seeds=[0, 1, 2])))
    planned = jobs.plan(suite, protocols, "encoder", data)
    assert [(len(job.protocols), job.seed) for job in planned] == [(1, 0), (1, 0), (1, 1), (1, 2)]
    lines = {planned[0].key: line(planned[0], {("pretrained", "knn"): 0.6, ("random init", "knn"): 0.4})}
    for job, value in zip(planned[1:3], (0.7, 0.9), strict=True):
        lines[job.key] = line(job, {("rvit", "fine-tuned"): value})
    content = content_of(planned, protocols, lines, {})
    knn, tuned = content["rows"]
    assert content["seconds"] == 180, "protocols of one job share its time"
    assert knn["score"]["value"] == 0.6 and knn["untrained"]["value"] == 0.4 and knn["state"] == "done"
    assert tuned["score"] == pytest.approx(
        {"value": 0.8, "low": 0.7, "high": 0.9, "deviation": np.std([0.7, 0.9], ddof=1), "count": 40}
    )
    assert not knn["published"] and tuned["published"][0]["values"] == {"ViT-B": 96.64}
    assert tuned["state"] == "partly" and tuned["seeds"] == [0, 1] and tuned["seconds"] == 120
    about = {"suite": "s", "about": "", "encoder": "e_1"}
    text = markdown(content_of(planned, protocols, lines, about))
    assert "80.0 ±14.1 [70.0, 90.0]" in text and "96.64 ViT-B (A & B 2026, table 5, OA)" in text and "2 of 3" in text
    assert "- pictures: a note\n" in text
    table = latex(content_of(planned, protocols, lines, about))
    assert "A \\& B 2026" in table and "e\\_1" in table and "80.0 $\\pm$14.1" in table
    widths = {each.count(" & ") for each in table.splitlines() if each.endswith("\\\\")}
    assert widths == {6} and "{lllrrlr}" in table


def suite_file(folder: Path, tasks: list[dict[str, Any]], **more: Any) -> Path:
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump({"name": "own", "tasks": tasks, **more}))
    return path


def test_a_key_changes_with_what_the_result_depends_on_and_with_nothing_else(data: Path, tmp_path: Path) -> None:
    def keys(encoder: str = "e", **changes: Any) -> list[str]:
        task = {"name": "t", "data": "folder:pictures", "protocols": ["knn", "linear"], **changes}
        suite, protocols, _ = settings.load(str(suite_file(tmp_path, [task])))
        return [job.key for job in jobs.plan(suite, protocols, encoder, data)]

    assert len(keys()) == 1 and keys() == keys(published=[PUBLISHED], metric="macro_accuracy")
    assert keys() == keys(overrides=["steps=2"]), "of trainings"
    assert keys(protocols=["finetune_classification"]) != keys(
        protocols=["finetune_classification"], overrides=["steps=2"]
    )
    others = [keys("f"), keys(split="random:0.5"), keys(normalise="encoder"), keys(protocols=["knn"])]
    assert len({tuple(each) for each in [keys(), *others]}) == 5


@pytest.mark.parametrize("kind", ["suites", "protocols"])
def test_recipes_of_the_project_are_whole_and_name_their_source(kind: str) -> None:
    files = sorted((RECIPES / kind).glob("*.yaml"))
    assert len(files) >= 2
    for file in files:
        if kind == "suites":
            suite, _, found = settings.load(file.stem)
            assert found == file and suite.name == file.stem
            assert all(each.paper and each.table for task in suite.tasks for each in task.published)
            continue
        protocol = settings.load_protocol(file)
        assert protocol.name == file.stem
        assert re.search(r"(table|slides)", protocol.source) and re.search(r"20\d\d", protocol.source)


def test_papers_says_what_is_printed() -> None:
    """A few figures, typed again from METHODS.md, section 9."""
    suite, _, _ = settings.load("papers")
    printed = {task.name: list(task.published[0].values.values()) for task in suite.tasks if task.published}
    assert printed["aid_50"] == [98.30, 98.48] and printed["resisc45_10"] == [92.53, 94.16]
    assert printed["dior_r"] == [67.69, 71.75] and printed["spacenet1"] == [79.44, 79.48]
    assert printed["eurosat"] == [85.09, 82.42] and printed["sen4agrinet_tiles"] == [35.17, 35.42]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"published": [{**PUBLISHED, "protocol": "linear"}]}, "is not one of its protocols"),
        ({"data": None}, "give one of data and samples"),
        ({"protocols": ["kn"]}, "Did you mean knn"),
        ({"metrik": "miou"}, "metrik: there is no such key"),
        ({"masks": MASKS, "protocols": ["linear"]}, "which linear does not score"),
        ({"protocols": ["finetune_classification"], "overrides": ["optim.base_lrr=1"]}, "base_lr"),
        ({"protocols": ["upernet_frozen"]}, "learns from task.masks"),
    ],
)
def test_mistakes_in_a_suite_are_explained(task: dict[str, Any], message: str, tmp_path: Path) -> None:
    content = {"name": "t", "data": "folder:pictures", "protocols": ["knn"], **task}
    with pytest.raises(UserError, match=re.escape(message)):
        settings.load(str(suite_file(tmp_path, [content])))


def test_a_damaged_record_is_told_and_a_torn_last_line_is_cut_away(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    run.append(path, {"key": "a", "n": 1})
    with path.open("a") as file:
        file.write('{"key": "b"')
    assert run.read(path) == {"a": {"key": "a", "n": 1}}
    run.append(path, {"key": "c"})
    assert list(run.read(path)) == ["a", "c"]
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(UserError, match="line 1 is not of a suite"):
        run.read(path)


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


def test_latex_sees_no_markup() -> None:
    assert escaped("50 % of a_b & c\\d ±1") == "50 \\% of a\\_b \\& c\\textbackslash{}d $\\pm$1"


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


def test_what_an_encoder_cannot_do_is_left_out_with_the_reason(data: Path, tmp_path: Path) -> None:
    """A random ResNet of timm: scored in the place of a trained encoder; it is not fine-tuned."""
    task = {"name": "pictures", "data": "folder:pictures", "protocols": ["knn", "finetune_classification"]}
    suite, protocols, _ = settings.load(str(suite_file(tmp_path, [task])))
    planned = jobs.plan(suite, protocols, "e", data, encoders.untrainable("timm:resnet18@random"))
    assert [bool(job.absent) for job in planned] == [False, True]
    lines = {planned[0].key: line(planned[0], {("random init", "knn"): 0.4, ("raw pixels", "knn"): 0.3})}
    knn, tuned = content_of(planned, protocols, lines, {})["rows"]
    assert knn["score"]["value"] == 0.4 and knn["state"] == "done"
    assert tuned["state"] == "absent" and "resnet18" in tuned["message"]
    assert missing([knn, tuned], "absent") == [("pictures: finetune_classification", tuned["message"])]
    assert [HEADER[place] for place in columns([knn])] == [
        "task", "protocol", "metric", "score", "untrained", "seeds", "test", "time", "memory"
    ]  # fmt: skip
