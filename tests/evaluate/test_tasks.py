"""Tasks from folders, CSVs and manifests on real files, and what is said about wrong ones."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from terrasieve import manifest
from terrasieve.curate.scan import scan
from terrasieve.errors import UserError
from terrasieve.evaluate.tasks import load_task

SHARED = Path(os.environ.get("TERRASIEVE_SHARED", Path(__file__).resolve().parents[2] / "../shared"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of ten images in which every image has its own colour."""
    for number in range(30):
        path = tmp_path / "set" / "deep" / ("crop", "forest", "water")[number // 10] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    return tmp_path / "set"


def csv_of(folder: Path, lines: list[str], header: str = "path,class,split") -> Path:
    file = folder / "split.csv"
    file.write_text("\n".join([header, *lines]) + "\n")
    return file


def test_class_folders_with_a_random_split(folder: Path) -> None:
    task = load_task(f"folder:{folder}")
    assert task.name == "set" and task.kind == "multiclass" and task.class_names == ("crop", "forest", "water")
    assert torch.equal(task.targets, torch.arange(3).repeat_interleave(10))
    per_class = [[task.split[i] for i in range(30) if task.targets[i] == c].count("test") for c in range(3)]
    assert per_class == [2, 2, 2]
    assert task.split == load_task(f"folder:{folder}").split != load_task(f"folder:{folder}", seed=1).split
    assert load_task(f"folder:{folder}", "random:0.5").split.count("train") == 15
    assert "random split" in task.notes[0]


def test_a_path_with_dots_names_the_files_that_a_scan_finds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``folder:../shared`` is the first thing a user types; tasks and manifests have to name a file alike."""
    monkeypatch.chdir(folder / "deep")
    found = {row["uri"] for row in scan(folder, labels="none").table.to_pylist()}
    csv_of(folder, [f"./deep/../{path.relative_to(folder)},x,train" for path in sorted(folder.rglob("*.png"))[:-1]])
    assert set(load_task("folder:../../set").uris) == found
    with pytest.raises(UserError, match="no test samples"):  # all of them are found, all are for training
        load_task("folder:../../set", "split.csv")


def test_split_folders_are_respected(folder: Path) -> None:
    (folder / "deep").rename(folder / "train")
    for path in sorted((folder / "train").rglob("*[05].png")):
        target = folder / "test" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    task = load_task(f"folder:{folder}")
    assert [Path(u).parts[-3] for u in task.uris] == list(task.split)
    assert task.split.count("test") == 6


def test_csv_split_leaves_out_and_lists(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = sorted(folder.rglob("*.png"))
    lines = [
        f"{path.relative_to(folder)},{path.parent.name},{'test' if i % 5 == 0 else 'train'}"
        for i, path in enumerate(images[:-3])
    ]
    csv_of(folder, [*lines, "deep/water/gone.png,water,train"])
    task = load_task(f"folder:{folder}", "split.csv")
    assert task.split.count("test") == 6 and len(task.uris) == 27
    assert any("1 paths of split.csv are missing: deep/water/gone.png" in note for note in task.notes)
    assert any(note.startswith("3 images are not in split.csv") for note in task.notes)
    absolute = csv_of(folder, [line.replace("deep/", f"{folder}/deep/") for line in lines])
    (folder / "elsewhere").mkdir()
    absolute.rename(folder / "elsewhere" / "by_hand.csv")
    monkeypatch.chdir(folder / "elsewhere")  # relative to the working folder
    assert load_task(f"folder:{folder}", "by_hand.csv").uris == task.uris


def test_byte_duplicates_across_splits_are_counted(folder: Path) -> None:
    water = folder / "deep" / "water"
    lines = [
        f"deep/{p.parent.name}/{p.name},{p.parent.name},{'test' if p.name[1] == '0' else 'train'}"
        for p in sorted(folder.rglob("*.png"))
    ]
    (water / "20.png").write_bytes((water / "21.png").read_bytes())
    (water / "23.png").write_bytes((water / "24.png").read_bytes())  # both in train: no leak
    csv_of(folder, lines)
    task = load_task(f"folder:{folder}", "split.csv")
    assert task.leaked == 1 and "1 test images are byte for byte" in task.notes[-1]


def manifest_of(folder: Path, rows: list[dict]) -> str:
    path = folder / "task.parquet"
    common = {"width": 8, "height": 8, "bands": ["red", "green", "blue"], "dtype": "uint8", "keep": True, "reason": ""}
    full = [{**common, "id": str(i), "uri": str(folder / f"{i}.png"), **row} for i, row in enumerate(rows)]
    manifest.write(manifest.rows_to_table(full), path)
    return str(path)


def test_manifest_multiclass_with_windows(tmp_path: Path) -> None:
    rows = [
        {"label": "ab"[i % 2], "split": ("train", "val", "test")[i // 2 % 3], "window": [i, 0, 8, 8]} for i in range(12)
    ]
    rows += [{"label": "a", "split": "test", "keep": False}, {"split": "train"}]
    task = load_task(manifest_of(tmp_path, rows))
    assert task.kind == "multiclass" and task.windows[3] == (3, 0, 8, 8)
    assert task.split == ("train", "train", "val", "val", "test", "test") * 2
    assert task.notes == ("1 rows that are not kept are left out", "1 rows without a label are left out")


def test_manifest_multilabel(tmp_path: Path) -> None:
    labels = [["sea"], ["sea", "sand"], [], ["sand"], ["sea"], ["rock"]]
    rows = [{"labels": named, "split": "train" if i < 4 else "test"} for i, named in enumerate(labels)]
    task = load_task(f"manifest:{manifest_of(tmp_path, rows)}")
    assert task.kind == "multilabel" and task.class_names == ("rock", "sand", "sea")
    assert task.targets.tolist() == [[0, 0, 1], [0, 1, 1], [0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert any("without a training sample: rock" in note for note in task.notes)


def test_mistakes_say_what_to_do(folder: Path, tmp_path: Path) -> None:
    spec = f"folder:{folder}"
    water = "deep/water/20.png,water"
    train = "deep/crop/00.png,crop,train"
    for given, split, message in [
        ("flder:x", None, "did you mean folder:x"),
        (str(folder), None, f"did you mean folder:{folder}"),
        (f"folder:{folder}-gone", None, "there is no folder"),
        (f"folder:{folder}/deep/water", None, "holds no images in class folders"),
        (spec, "random:1.5", "random:0.8"),
        (spec, "nowhere.csv", "there is no split file"),
        (spec, ["deep/crop/99.png,crop,train"], "none of the 1 paths"),
        (spec, [f"{water},trian"], "did you mean 'train'"),
        (spec, [f"{water},train"], "no test samples"),
        (spec, [train, f"{water},test"], "1 of 2 classes without a training sample: water"),
        (spec, [train, train], "listed twice"),
        (spec, ["deep/crop/00.png,,train"], "line 2: an empty"),
    ]:
        name = str(csv_of(folder, split)) if isinstance(split, list) else split
        with pytest.raises(UserError, match=message):
            load_task(given, name)
    with pytest.raises(UserError, match="path and split are needed"):
        load_task(spec, str(csv_of(folder, [], header="file,part")))
    with pytest.raises(UserError, match="none of the 2 kept rows has a label"):
        load_task(manifest_of(tmp_path, [{}, {}]))


@pytest.mark.skipif(not (SHARED / "data/ucmerced").is_dir(), reason="needs UC Merced in shared/data")
def test_uc_merced_as_published() -> None:
    task = load_task(f"folder:{SHARED / 'data/ucmerced'}", "split_80_20.csv")
    assert (len(task.uris), len(task.class_names), task.split.count("test")) == (2100, 21, 420)
    assert task.leaked == 0 and task.notes == ()  # airplane01 == airplane02, both in train
