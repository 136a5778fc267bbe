"""Suites: what is here is scored, the rest listed; finished jobs are kept; tables say whose figures are whose."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from suite_data import MASKS, pretrained, write_data
from terrasieve.errors import UserError
from terrasieve.report.suite_page import HEADER, columns, escaped, latex, markdown, missing
from terrasieve.suite import encoders, jobs, run, settings
from terrasieve.suite.table import content_of

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
SAMPLES = {"folder": "fields", "image": "image.tif", "bands": ["red", "green", "blue", "nir"]}
SHORT = ["steps=2", "validate_every=2", "batch_size=2", "image.size_px=32", "method.width=16"]
PUBLISHED = {"paper": "A & B 2026", "table": "table 5", "metric": "OA", "values": {"ViT-B": 96.64}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def encoder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained(data, tmp_path_factory.mktemp("run"))


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


def test_latex_sees_no_markup() -> None:
    assert escaped("50 % of a_b & c\\d ±1") == "50 \\% of a\\_b \\& c\\textbackslash{}d $\\pm$1"


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
