"""Audit: planted copies of every kind between two sets, splits of one set, the removal list and its application."""

from __future__ import annotations

import csv
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
from PIL import Image

from terrasieve import manifest
from terrasieve.curate import across, leaks
from terrasieve.curate.audit import Audit, AuditSettings, audit
from terrasieve.curate.audit_sets import gather
from terrasieve.curate.engine import Local
from terrasieve.curate.hashing import ORIENTATIONS
from terrasieve.curate.overlap import Bar
from terrasieve.curate.scan import scan
from terrasieve.curate.step import Work
from terrasieve.display import counting
from terrasieve.errors import UserError
from terrasieve.imagery.earth import RGB, render, sample_place
from terrasieve.report.audit_page import write_audit_report

BAR: Bar = counting
KIND_OF = {"bytes": "exact", "png": "pixels", "half": "near", "turned": "rotated", "shifted": "overlap"}


def save(path: Path, image: np.ndarray, quality: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality))


def town(number: int, size_px: int = 256) -> np.ndarray:
    """Render a scene with something to see."""
    for k in range(20):
        place = sample_place(100 * number + k, 3, gsd_m=1.0, size_px=size_px, bands=RGB, dtype="uint8")
        image = np.asarray(render(place, 3).image.transpose(1, 2, 0))
        if image.std() > 25:
            return image
    raise AssertionError("twenty scenes of open water")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pretraining folder of 8 images and an evaluation folder: a copy of each kind, and 3 images of its own."""
    root = tmp_path_factory.mktemp("sets")
    mine, theirs = root / "mine", root / "theirs"
    for number, kind in enumerate([*KIND_OF, "alone1", "alone2", "alone3"]):
        scene = town(number)
        image = scene[:200, :200]
        save(mine / f"{kind}.jpg", image)
        copy = theirs / f"{kind}.jpg"
        if kind == "bytes":
            save(copy, image)
        elif kind == "png":
            Image.fromarray(simplejpeg.decode_jpeg((mine / "png.jpg").read_bytes())).save(copy.with_suffix(".png"))
        elif kind == "half":
            save(copy, np.asarray(Image.fromarray(image).resize((100, 100), Image.Resampling.BOX)))
        elif kind == "turned":
            save(copy, np.rot90(image)[:, ::-1], 80)
        elif kind == "shifted":
            save(copy, scene[40:240, 50:250], 80)
        else:
            save(copy, town(number + 50)[:200, :200])
    return mine, theirs


def run(mine: Path, theirs: Path, folder: Path) -> tuple[Audit, Path]:
    found = gather(f"folder:{mine}", [f"set one=folder:{theirs}"], folder / "sets", splits=False, csv=None, bar=BAR)
    return audit(found.pretrain, found.evaluations, AuditSettings(), Work(folder, Local(1)), BAR), found.source


def test_each_kind_of_leak_is_found_once_and_nothing_else(sets: tuple[Path, Path], tmp_path: Path) -> None:
    result, source = run(*sets, tmp_path)
    rows = result.leaks.to_pylist()
    assert {Path(row["uri_a"]).stem: row["kind"] for row in rows} == KIND_OF and len(rows) == len(KIND_OF)
    assert all(Path(row["uri_a"]).stem == Path(row["uri_b"]).stem for row in rows)
    by_kind = {row["kind"]: row for row in rows}
    assert (by_kind["overlap"]["dx_px"], by_kind["overlap"]["dy_px"]) == (50, 40)
    assert by_kind["overlap"]["hash_bits"] > 8 and by_kind["rotated"]["hash_bits"] > 8  # a pHash alone misses both
    mine = np.asarray(Image.open(sets[0] / "turned.jpg").convert("L"), np.float32)
    quarters, mirrored = ORIENTATIONS[by_kind["rotated"]["orientation"]]
    other = np.rot90(np.asarray(Image.open(sets[1] / "turned.jpg").convert("L"), np.float32), quarters)
    other = other[:, ::-1] if mirrored else other
    assert np.corrcoef(mine.ravel(), other.ravel())[0, 1] > 0.98
    assert (result.pretrain, result.sets) == (8, {"set one": 8})
    assert result.lines()[0].startswith("set one: 5 of 8 images leak (62.5 %) from 5 of 8 pretraining images")
    kept = tmp_path / "clean.parquet"
    counts = leaks.apply(result.leaks, source, kept)
    assert (counts.rows, counts.kept, counts.dropped["leak"]) == (8, 3, 5)
    table = manifest.read(kept)
    for uri, keep, reason in zip(*(table[name].to_pylist() for name in ("uri", "keep", "reason")), strict=True):
        assert keep == Path(uri).stem.startswith("alone")
        assert reason == "" if keep else reason.startswith("leak: of set one, ")


def test_files_and_page_say_the_same(sets: tuple[Path, Path], tmp_path: Path) -> None:
    result, _ = run(*sets, tmp_path)
    leaks.write(result.leaks, tmp_path)
    assert pq.read_table(tmp_path / "leaks.parquet").equals(result.leaks)
    with (tmp_path / "removal.csv").open(newline="") as file:
        removal = list(csv.DictReader(file))
    assert [row["uri"] for row in removal] == sorted(set(result.leaks["uri_a"].to_pylist()))
    assert {row["id"] for row in removal} == set(result.leaks["id_a"].to_pylist())
    page = write_audit_report(tmp_path, "mine", result, AuditSettings()).read_text()
    assert page.count("<figure>") == 5 and "5 · 62.5 %" in page
    assert 'src="http' not in page and "<script" not in page and 'href="http' not in page


def test_a_rerun_reads_no_image_again(sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = run(*sets, tmp_path)
    monkeypatch.setattr("terrasieve.curate.matching.interest_points", None)
    monkeypatch.setattr("terrasieve.curate.look.grey", None)
    assert run(*sets, tmp_path)[0].leaks.equals(first.leaks)


def test_splits_of_one_set_are_compared(sets: tuple[Path, Path], tmp_path: Path) -> None:
    root = sets[0].parent
    table = scan([root / "mine", root / "theirs"], labels="none").table
    split = ["test" if "theirs" in uri else "train" for uri in table["uri"].to_pylist()]
    table = table.set_column(table.schema.get_field_index("split"), "split", [split])
    manifest.write(table, tmp_path / "both.parquet")
    found = gather(str(tmp_path / "both.parquet"), [], tmp_path / "sets", splits=True, csv=None, bar=BAR)
    result = audit(found.pretrain, found.evaluations, AuditSettings(), Work(tmp_path, Local(1)), BAR)
    assert sorted(result.leaks["kind"].to_pylist()) == sorted(KIND_OF.values())
    assert result.sets == {"test": 8} and result.pretrain == 8
    counts = leaks.apply(result.leaks, found.source, tmp_path / "clean.parquet")
    assert (counts.rows, counts.kept) == (16, 11)


def test_sets_without_a_leak_make_a_page_too(sets: tuple[Path, Path], tmp_path: Path) -> None:
    save(tmp_path / "other" / "one.jpg", town(90)[:200, :200])
    result, source = run(sets[0], tmp_path / "other", tmp_path)
    assert len(result.leaks) == 0 and result.lines() == [
        "set one: 0 of 1 images leak (0.0 %) from 0 of 8 pretraining images; pairs: none"
    ]
    leaks.write(result.leaks, tmp_path)
    assert "No leak" in write_audit_report(tmp_path, "mine", result, AuditSettings()).read_text()
    assert leaks.apply(result.leaks, source, tmp_path / "clean.parquet").kept == 8


@pytest.mark.parametrize(
    ("pretrain", "others", "splits", "words"),
    [
        ("folder:mine", [], False, "nothing to compare with"),
        ("folder:mine", ["folder:theirs"], True, "leave out the other sets"),
        ("folder:mine", [], True, "has the splits (none)"),
        ("nothing.parquet", ["folder:theirs"], False, "no manifest nothing.parquet"),
    ],
)
def test_mistakes_are_named(
    sets: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pretrain: str,
    others: list[str],
    splits: bool,
    words: str,
) -> None:
    monkeypatch.chdir(sets[0].parent)
    with pytest.raises(UserError) as caught:
        gather(pretrain, others, tmp_path, splits=splits, csv=None, bar=BAR)
    assert words in str(caught.value)


def test_copies_across_sets_are_those_of_all_pairs() -> None:
    draw = np.random.Generator(np.random.Philox(8))
    n = 120
    phash = draw.integers(0, 2**64, (n, 8), dtype=np.uint64)
    for k in range(0, n, 3):  # some that differ from another one in a few bits, in some orientation
        other, turn = int(draw.integers(n)), int(draw.integers(8))
        flips = np.bitwise_or.reduce(np.uint64(1) << draw.integers(0, 64, 5).astype(np.uint64))
        phash[k, turn] = phash[other, 0] ^ flips
    numbers, sides = np.arange(n) * 2 + 5, draw.integers(0, 3, n).astype(np.uint8)
    for distance in (3, 5, 8):
        found = across.near(phash, numbers, sides, distance)
        expected = set()
        for i, j in product(np.flatnonzero(sides == 0), np.flatnonzero(sides > 0)):
            bits = np.bitwise_count(phash[i, 0] ^ phash[j])
            if bits.min() <= distance:
                expected.add((numbers[i], numbers[j], int(bits.argmin()), int(bits.min())))
        assert set(zip(*(column.tolist() for column in found), strict=True)) == expected
    assert expected


def test_equal_keys_across_sets_are_those_of_all_pairs() -> None:
    draw = np.random.Generator(np.random.Philox(9))
    keys, sides = draw.integers(0, 5, (80, 2)).astype(np.uint64), draw.integers(0, 3, 80).astype(np.uint8)
    found = across.equal(keys, np.arange(80) + 7, sides)
    expected = {
        (i + 7, j + 7)
        for i, j in product(range(80), range(80))
        if sides[i] == 0 < sides[j] and (keys[i] == keys[j]).all()
    }
    assert set(map(tuple, found.tolist())) == expected and len(found) == len(expected) > 10


@pytest.mark.slow
def test_ucmerced_splits_leak_by_ground_alone(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "ucmerced"
    found = gather(
        f"folder:{folder / 'Images'}", [], tmp_path / "sets", splits=True, csv=folder / "split_80_20.csv", bar=BAR
    )
    result = audit(found.pretrain, found.evaluations, AuditSettings(), Work(tmp_path, Local(1)), BAR)
    assert found.name == "ucmerced" and result.sets == {"test": 420}
    pairs = {tuple(sorted((Path(row["uri_a"]).stem, Path(row["uri_b"]).stem))) for row in result.leaks.to_pylist()}
    assert {"overlap"} == set(result.leaks["kind"].to_pylist()) and len(pairs) == 7
    assert ("parkinglot20", "parkinglot28") in pairs
