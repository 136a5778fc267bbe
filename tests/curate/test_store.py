"""The hash store: what it keeps, what it hashes again, and what becomes of files that cannot be read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from terrasieve import keyed, manifest
from terrasieve.curate import hashing, store
from terrasieve.curate.engine import LOST, Local
from terrasieve.curate.look import Part
from terrasieve.curate.scan import scan
from terrasieve.curate.step import Work, numbers
from terrasieve.errors import UserError
from terrasieve.imagery.grey import grey

SETTINGS = store.HashSettings(part=5)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve PNGs and their manifest."""
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(12):
        write_png(folder / f"{n:02d}.png", n)
    manifest.write(scan(folder).table, tmp_path / "scan.parquet")
    return tmp_path


def write_png(path: Path, seed: int) -> None:
    small = keyed.numpy_generator(seed, "test_store").integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC).save(path)


def hashed(folder: Path, engine: Any = None) -> list[str]:
    """Run the step; return its notes."""
    work = Work(folder, engine or Local(1))
    return store.hash_images(folder / "scan.parquet", folder / "hash.parquet", SETTINGS, work).notes


def test_every_image_is_known_by_its_id(images: Path) -> None:
    assert hashed(images) == ["12 images hashed, 0 known from before."]
    table = manifest.read(images / "hash.parquet")
    opened = store.open_store(images / "hashes")
    rows = opened.rows(numbers(table["id"]))
    uris = table["uri"].to_pylist()
    thumbs = np.stack([grey(uri, None, ["red", "green", "blue"]).thumb for uri in uris])
    np.testing.assert_array_equal(opened.thumbs(rows[::-1]), thumbs[::-1])
    np.testing.assert_array_equal(opened.column("phash")[rows], hashing.hashes(thumbs).phash)
    np.testing.assert_array_equal(table["phash"].to_numpy(), hashing.hashes(thumbs).phash[:, 0])
    np.testing.assert_array_equal(opened.column("dhash")[rows], hashing.hashes(thumbs).dhash)
    assert (opened.column("valid_share") == 1).all() and not opened.column("reason").any()
    assert opened.column("bytes_hash").any(axis=1).all() and not opened.column("pixel_hash").any()
    assert (opened.rows(np.array([1, 2**63], np.uint64)) == -1).all()


def test_only_what_is_new_or_changed_is_hashed(images: Path) -> None:
    hashed(images)
    assert hashed(images) == ["0 images hashed, 12 known from before."]
    write_png(images / "images" / "03.png", 99)
    os.utime(images / "images" / "03.png", ns=(1, 1))
    write_png(images / "images" / "12.png", 12)
    manifest.write(scan(images / "images").table, images / "scan.parquet")
    before = manifest.read(images / "hash.parquet", ["phash"])["phash"].to_pylist()
    assert hashed(images) == ["2 images hashed, 11 known from before."]
    after = manifest.read(images / "hash.parquet", ["phash"])["phash"].to_pylist()
    assert [n for n in range(12) if before[n] != after[n]] == [3]


def test_a_run_that_was_killed_goes_on(images: Path) -> None:
    hashed(images)
    whole = manifest.content_hash(images / "hash.parquet")
    parts = sorted((images / "hashes").glob("part-*.arrow"))
    parts[0].unlink()
    (images / "hashes" / f".{parts[0].name}.77.partial").write_bytes(b"half")
    notes = hashed(images)
    assert notes != ["0 images hashed, 12 known from before."] and notes != ["12 images hashed, 0 known from before."]
    assert manifest.content_hash(images / "hash.parquet") == whole
    assert not list((images / "hashes").glob(".*"))


class Deadly:
    """An engine whose processes end when they meet a certain row."""

    workers = 1

    def __init__(self, row: int) -> None:
        self.row = row

    def run(self, work: Any, parts: list[Part]) -> Iterator[tuple[int, Any]]:
        for number, part in enumerate(parts):
            yield number, LOST if self.row in part.rows else work(part)


def test_an_image_that_ends_its_process_costs_no_other(images: Path) -> None:
    hashed(images, Deadly(7))
    table = manifest.read(images / "hash.parquet")
    opened = store.open_store(images / "hashes")
    reasons = opened.column("reason")[opened.rows(numbers(table["id"]))]
    assert [n for n in range(12) if reasons[n]] == [7]
    assert reasons[7] == "unreadable: reading it ends the process"
    assert table["phash"].is_null().to_pylist() == [n == 7 for n in range(12)]


def test_an_image_that_cannot_be_read_has_a_reason_and_no_hash(images: Path) -> None:
    (images / "images" / "05.png").write_bytes((images / "images" / "05.png").read_bytes()[:300])
    (images / "images" / "06.png").unlink()
    hashed(images)
    opened = store.open_store(images / "hashes")
    table = manifest.read(images / "hash.parquet")
    reasons = opened.column("reason")[opened.rows(numbers(table["id"]))]
    assert [str(reason).partition(":")[0] for reason in reasons[[4, 5, 6]]] == ["", "truncated", "missing"]
    assert table["phash"][5].as_py() is None and table["phash"][6].as_py() is None


def test_a_damaged_part_is_named(images: Path) -> None:
    hashed(images)
    part = next((images / "hashes").glob("part-*.arrow"))
    part.write_bytes(part.read_bytes()[:200])
    with pytest.raises(UserError, match=part.name):
        hashed(images)


def test_two_processes_hash_as_one_does(images: Path, tmp_path: Path) -> None:
    hashed(images)
    one = manifest.content_hash(images / "hash.parquet")
    shutil.rmtree(images / "hashes")
    hashed(images, Local(2))
    assert manifest.content_hash(images / "hash.parquet") == one


def test_an_empty_store_knows_nothing(tmp_path: Path) -> None:
    opened = store.open_store(tmp_path)
    assert len(opened) == 0 and (opened.rows(np.zeros(3, np.uint64)) == -1).all()
    assert opened.column("phash").shape == (0, 8) and opened.thumbs(np.zeros(0, np.int64)).shape == (0, 32, 32)


def test_ids_as_numbers() -> None:
    ids = ["00000000000000ff", "fedcba9876543210"]
    assert numbers(pa.chunked_array([ids])).tolist() == [255, 0xFEDCBA9876543210]
    assert store.names(np.array([255, 0xFEDCBA9876543210], np.uint64)) == ids
