"""The catalog: every data set is read from a small copy in its true layout, and a wrong one is told what it lacks."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from copies_of_sets import WRITERS, Copies
from files_of_sets import picture
from typer.testing import CliRunner

from terrasieve import cataloguing, cli
from terrasieve.curate import catalogued
from terrasieve.data import catalog, images
from terrasieve.data.catalog import download
from terrasieve.data.catalog.copy import files_below
from terrasieve.data.catalog.entry import Archive
from terrasieve.data.masks import find_masks
from terrasieve.errors import UserError


def test_every_entry_has_a_copy() -> None:
    assert set(WRITERS) == set(catalog.ENTRIES)


@pytest.mark.parametrize("name", sorted(catalog.ENTRIES))
def test_true_layout(name: str, copies: Copies) -> None:
    root, wanted = copies[name]
    found = catalogued.gather(f"catalog:{name}@{root}")
    table = catalogued.table_of(found, workers=1)
    reasons = [reason for reason in table["reason"].to_pylist() if reason]
    assert not reasons, reasons
    if "splits" in wanted:
        assert Counter(table["split"].to_pylist()) == wanted["splits"]
    assert set(table["split"].to_pylist()) >= wanted.get("splits_of", set())
    assert {len(bands) for bands in table["bands"].to_pylist()} == {wanted["bands"]}
    entry = catalog.find(name)
    read = images.from_table(table)
    assert entry.bands in ((), read.bands)
    first, last = read.read(0), read.read(len(read) - 1)
    assert first.array.shape[0] == wanted["bands"]
    assert last.array.std() > 0
    given = {label for item in found.items for label in (item.labels or (item.label,)) if label}
    if "boxes" in wanted:
        drawn = catalogued.boxes_of(found, table)
        assert drawn is not None
        assert drawn.num_rows == wanted["boxes"]
        assert set(drawn["id"].to_pylist()) == set(table["id"].to_pylist())
        given = set(drawn["name"].to_pylist())
    if "classes" in wanted:
        assert given == wanted["classes"]
        assert not entry.classes or given <= set(entry.classes)
    if "numbers" in wanted:
        settings = entry.masks_of("")
        assert settings is not None
        masked = table.filter(pc.is_valid(table["split"]))
        truth = find_masks(images.from_table(masked), settings, found.masks)
        assert {int(number) for row in range(len(truth)) for number in np.unique(truth.read(row))} == wanted["numbers"]
    if "placed" in wanted:
        assert np.allclose((table["lon"][0].as_py(), table["lat"][0].as_py()), wanted["placed"], atol=1e-3)
    if entry.coordinates and name != "so2sat":  # whose places are in files of their own, see below
        assert table["lon"].null_count == 0, "the source holds coordinates, so the manifest does"


@pytest.mark.parametrize("name", sorted(catalog.ENTRIES))
def test_wrong_layout_gets_the_diagnosis(name: str, copies: Copies, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no copy of .*\n?.*Expected:"):
        catalogued.gather(f"catalog:{name}@{tmp_path}")
    root, _ = copies[name]
    broken = tmp_path / "deep" / name
    shutil.copytree(root, broken)
    whole = catalogued.gather(f"catalog:{name}@{root}")
    gone = files_below(whole.items[0].uri)[0]
    (broken / whole.root.relative_to(root) / gone).unlink()
    run = CliRunner().invoke(cli.app, ["datasets", name, "-d", str(tmp_path)])
    said = " ".join(run.output.split())
    if name == "sen4agrinet":  # whose makers publish neither a list nor a number
        assert run.exit_code == 0
        assert "11 images are here" in said
        return
    assert run.exit_code == 1, "a copy that is not whole"
    assert COUNTED.get(name, gone) in said, said


# Their makers publish no list of images: what is gone cannot be named, only counted.
COUNTED = {
    "aid": "AID/Airport: 9 of 360 images are here",
    "millionaid": "2 images listed by this copy, 1,000,848 published",
}


def test_missing_and_damaged_lists(copies: Copies, tmp_path: Path) -> None:
    root, _ = copies["dior"]
    broken = tmp_path / "dior"
    shutil.copytree(root, broken)
    (broken / "ImageSets/Main/val.txt").unlink()
    (broken / "Annotations/Horizontal Bounding Boxes/00001.xml").write_text("<annotation><object>")
    (broken / "Annotations/Horizontal Bounding Boxes/00002.xml").unlink()
    found = catalogued.gather(f"catalog:dior@{broken}")
    said = "\n".join(found.notes)
    assert "there is no list ImageSets/Main/val.txt or Main/val.txt" in said
    assert "00001.xml cannot be read" in said
    assert "train: boxes of 1 images missing, first: Annotations/Horizontal Bounding Boxes/00002.xml" in said
    assert "test: 2 images listed by this copy, 11,738 published" in said


def test_an_unknown_class_is_told(copies: Copies, tmp_path: Path) -> None:
    root, _ = copies["dior"]
    broken = tmp_path / "dior"
    shutil.copytree(root, broken)
    path = broken / "Annotations/Horizontal Bounding Boxes/00001.xml"
    path.write_text(path.read_text().replace("ship", "spaceship"))
    assert "unknown class 'spaceship'" in "\n".join(catalogued.gather(f"catalog:dior@{broken}").notes)


def test_wrong_bands_are_a_reason(copies: Copies, tmp_path: Path) -> None:
    broken = tmp_path / "eurosat"
    shutil.copytree(copies["eurosat"][0], broken)
    path = next(broken.rglob("Forest_2.tif"))
    picture(path.with_suffix(".png"))
    path.with_suffix(".png").replace(path)
    table = catalogued.table_of(catalogued.gather(f"catalog:eurosat@{broken}"), workers=1)
    assert next(reason for reason in table["reason"].to_pylist() if reason).startswith("other_bands: 13 bands")


def test_download_resumes_and_checks(tmp_path: Path) -> None:
    data = b"0123456789" * 1000
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.zip").write_bytes(data)
    url = (tmp_path / "far" / "a.zip").as_uri()
    here = tmp_path / "here"
    here.mkdir()
    (here / "a.zip.part").write_bytes(data[:4321])
    seen: list[int] = []
    archive = Archive("a.zip", url, hashlib.md5(data).hexdigest())
    assert "checksum right" in download.fetch(archive, here, lambda done, total: seen.append(done))
    assert seen == [10_000]
    assert (here / "a.zip").read_bytes() == data
    assert "here already" in download.fetch(archive, here)
    with pytest.raises(UserError, match="came with the checksum"):
        download.fetch(Archive("b.zip", url, "0" * 32), here)
    assert not (here / "b.zip").exists()
    with pytest.raises(UserError, match="Is the network closed"):
        download.fetch(Archive("c.zip", (tmp_path / "nowhere.zip").as_uri()), here)


def test_checksums_of_archives(tmp_path: Path, copies: Copies) -> None:
    root = tmp_path / "eurosat"
    shutil.copytree(copies["eurosat"][0], root)
    run = CliRunner().invoke(cli.app, ["datasets", "eurosat", "-d", str(root), "--checksums"])
    assert "eurosat-val.txt: its checksum is not the published one" in " ".join(run.output.split())


def test_real_ucmerced(shared_data: Path) -> None:
    found = catalogued.gather(f"catalog:ucmerced/50@{shared_data / 'ucmerced'}")
    assert not found.notes, "the copy is whole"
    assert Counter(item.split for item in found.items) == {"train": 1050, "test": 1050}


def test_overview_and_table(copies: Copies) -> None:
    run = CliRunner().invoke(cli.app, ["datasets", "-d", str(next(iter(copies.values()))[0].parent)])
    assert run.exit_code == 0
    for name in catalog.ENTRIES:
        assert name in run.output
        assert f"`{name}`" in cataloguing.markdown()
    docs = Path(__file__).resolve().parents[2] / "docs" / "datasets.md"
    assert cataloguing.markdown() in docs.read_text(), "make it again: terrasieve datasets --markdown"


def test_torchgeo_fetches_what_has_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "packages" / "torchgeo" / "datasets"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text(
        "class SpaceNet1:\n"
        "    def __init__(self, root, download, checksum):\n"
        "        assert download and checksum\n"
        "        root.mkdir()\n"
        "        (root / 'fetched').touch()\n"
    )
    monkeypatch.syspath_prepend(str(package.parents[1]))
    lines = list(cataloguing.fetch(catalog.find("spacenet1"), tmp_path / "here"))
    assert (tmp_path / "here" / "fetched").exists()
    assert "SpaceNet1" in lines[0]
    with pytest.raises(UserError, match="TorchGeo could not fetch"):  # the folder is there already
        list(cataloguing.fetch(catalog.find("spacenet1"), tmp_path / "here"))
    with pytest.raises(UserError, match="has no BeninSmallHolderCashews"):
        list(cataloguing.fetch(catalog.find("cashew-plant"), tmp_path / "here"))
    with pytest.raises(UserError, match="has no plain address"):
        list(cataloguing.fetch(catalog.find("aid"), tmp_path / "here"))
