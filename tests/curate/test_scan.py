"""Scanning real folders: labels, places, order, and every kind of broken file as a row with its reason."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from images_to_scan import rows, save

from terrasieve import manifest
from terrasieve.curate import engine
from terrasieve.curate import scan as scanning
from terrasieve.curate.scan import scan
from terrasieve.errors import UserError
from terrasieve.imagery.headers import header

SHARED = Path(os.environ.get("TERRASIEVE_SHARED", Path(__file__).resolve().parents[2] / "../shared")) / "data"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared imagery is not on this machine (TERRASIEVE_SHARED)")


def break_files(folder: Path) -> dict[str, str]:
    """Write one file of each broken kind; return the code that each has to get."""
    jpeg, png, tiff = (save(folder / f"whole.{kind}", 64).read_bytes() for kind in ("jpg", "png", "tif"))
    huge = jpeg.index(b"\xff\xc0") + 5
    kinds = {
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "cut.png": (png[:-20], "truncated"),
        "cut.tif": (tiff[: len(tiff) // 2], "truncated"),
        "empty.tif": (b"", "empty"),
        "page.jpg": (b"<html>404 not found</html>", "not_an_image"),
        "huge.jpg": (jpeg[:huge] + b"\xff\xff\xff\xff" + jpeg[huge + 4 :], "huge_header"),
        "garbled.jpg": (jpeg[:3] + bytes(200), "unreadable"),
        # Its tags: 8 x 8 pixels, 8 bits, no compression, black is zero, 0 samples per pixel.
        "zero.tif": (
            b"II*\0\x08\0\0\0\x06\0"
            + b"".join(
                tag.to_bytes(2, "little") + b"\x03\0\x01\0\0\0" + value.to_bytes(4, "little")
                for tag, value in ((256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (277, 0))
            )
            + bytes(80),
            "zero_band",
        ),
    }
    for name, (data, _) in kinds.items():
        (folder / name).write_bytes(data)
    (folder / "gone.tif").symlink_to(folder / "nowhere.tif")
    return {name: code for name, (_, code) in kinds.items()} | {"gone.tif": "missing"}


def test_broken_files_become_rows_with_reasons(tmp_path):
    expected = break_files(tmp_path)
    result = scan(tmp_path)
    for name, row in rows(result).items():
        code = expected.get(name, "")
        assert row["keep"] == (not code) and row["reason"].partition(":")[0] == code, name
        assert row["id"] and (not code or len(row["reason"]) > len(code) + 2)
    assert result.summary.kept == 3 and result.summary.files == 12
    assert result.summary.reasons == Counter(expected.values())
    assert "dropped: 3 truncated" in result.summary.lines()
    manifest.write(result.table, tmp_path / "m.parquet")
    assert manifest.read(tmp_path / "m.parquet").num_rows == 12


def test_what_each_degree_of_verification_finds(tmp_path):
    jpeg = save(tmp_path / "a.jpg", 64).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    tiff = save(tmp_path / "a.tif", 64)
    with (
        rasterio.open(tiff) as file,
        rasterio.open(tmp_path / "rotten.tif", "w", **(file.profile | {"compress": "deflate"})) as rotten,
    ):
        rotten.write(file.read())
    data = bytearray((tmp_path / "rotten.tif").read_bytes())
    data[-2000:-1500] = bytes(500)  # whole by its length, but its stream is broken
    (tmp_path / "rotten.tif").write_bytes(bytes(data))
    with rasterio.open(tmp_path / "void.tif", "w", "GTiff", 8, 8, 1, dtype="uint8", nodata=0) as file:
        file.write(np.zeros((1, 8, 8), np.uint8))
    bad = {
        verify: {name for name, row in rows(scan(tmp_path, verify=verify)).items() if not row["keep"]}
        for verify in ("header", "ends", "decode")
    }
    assert bad == {"header": set(), "ends": {"cut.jpg"}, "decode": {"cut.jpg", "rotten.tif", "void.tif"}}
    assert rows(scan(tmp_path, verify="decode"))["void.tif"]["reason"] == "no_data: not one pixel is real"


DENIED = """
import json, os, sys
import PIL.Image
from terrasieve.curate.scan import scan
if os.geteuid() == 0:
    os.setuid(65534)
found = scan(sys.argv[1])
print(json.dumps([found.table.select(["uri", "keep", "reason"]).to_pylist(), found.summary.reasons]))
"""


def test_files_and_folders_that_may_not_be_read():
    folder = Path(tempfile.mkdtemp())  # pytest's own folders are closed to the user that the child becomes
    try:
        folder.chmod(0o755)
        save(folder / "open.jpg")
        save(folder / "closed.jpg").chmod(0)
        save(folder / "shut" / "inner.jpg")
        (folder / "shut").chmod(0)
        done = subprocess.run([sys.executable, "-c", DENIED, folder], capture_output=True, text=True, check=True)
        found, reasons = json.loads(done.stdout)
        codes = {Path(row["uri"]).name: row["reason"].partition(":")[0] for row in found}
        assert codes == {"open.jpg": "", "closed.jpg": "permission_denied", "shut": "permission_denied"}
        assert reasons == {"permission_denied": 2}
    finally:
        (folder / "shut").chmod(0o755)
        shutil.rmtree(folder)


def test_a_file_that_kills_its_reader_is_one_row(tmp_path, monkeypatch):
    for i in range(10):
        save(tmp_path / f"{i}.jpg", seed=i)

    def deadly(uri, **options):
        if uri.endswith(("3.jpg", "7.jpg")):
            os._exit(139)
        return header(uri, **options)

    monkeypatch.setattr(scanning, "header", deadly)
    monkeypatch.setattr(scanning, "_ALONE", 1)
    monkeypatch.setattr(scanning, "_PART", 4)
    # forked, so that the workers have the deadly header
    monkeypatch.setattr(engine, "_pool", lambda workers: ProcessPoolExecutor(workers, get_context("fork")))
    result = scan(tmp_path, workers=2)
    assert [row["keep"] for row in result.table.to_pylist()] == [i not in (3, 7) for i in range(10)]
    assert rows(result)["3.jpg"]["reason"] == "unreadable: reading it ends the process"


def test_order_and_content_do_not_depend_on_the_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(scanning, "_ALONE", 1)
    monkeypatch.setattr(scanning, "_PART", 3)
    for i in range(20):
        save(tmp_path / "ab"[i % 2] / f"{i}.{('jpg', 'png', 'tif')[i % 3]}", seed=i)
    break_files(tmp_path / "b")
    calls = []
    one = scan(tmp_path, workers=1, on_file=lambda done, total: calls.append((done, total)))
    two = scan([tmp_path / "b", tmp_path], workers=2, labels="folder")
    assert calls == [(min(done + 3, 32), 32) for done in range(0, 32, 3)]
    assert one.table.drop_columns("label").equals(two.table.drop_columns("label"))
    assert one.table["uri"].to_pylist() == sorted(one.table["uri"].to_pylist())
    assert one.summary.reasons == two.summary.reasons and one.summary.formats == two.summary.formats


def test_labels_from_class_folders(tmp_path):
    for name in ("forest/a1", "forest/a2", "lake/b1", "lake/b2"):
        save(tmp_path / "set" / "Images" / f"{name}.jpg")
    labels = {name: row["label"] for name, row in rows(scan(tmp_path / "set")).items()}
    assert labels == {"a1.jpg": "forest", "a2.jpg": "forest", "b1.jpg": "lake", "b2.jpg": "lake"}
    assert scan(tmp_path, labels="none").summary.labels == {}
    save(tmp_path / "set" / "Images" / "overview.jpg")  # an image beside the folders: they are no classes
    assert scan(tmp_path).summary.labels == {}
    assert scan(tmp_path, labels="folder").summary.labels == {"forest": 2, "lake": 2, "Images": 1}
    assert scan(tmp_path / "set/Images/lake/b1.jpg", labels="folder").summary.labels == {"lake": 1}


def test_splits_from_folders_and_samples_that_are_no_classes(tmp_path):
    for split in ("train", "validation"):
        for name in ("forest/a1", "forest/a2", "lake/b1", "lake/b2"):
            save(tmp_path / "set" / split / f"{name}.jpg")
    found = scan(tmp_path / "set").summary
    assert found.splits == {"train": 4, "val": 4} and found.labels == {"forest": 4, "lake": 4}
    for sample in ("s1", "s2", "s3"):
        save(tmp_path / "samples" / sample / "s1.tif")
        save(tmp_path / "samples" / sample / "s2.tif")
    found = scan(tmp_path / "samples").summary
    assert not found.labels and "same file names" in found.notes[0]


def test_what_is_passed_over_is_counted(tmp_path):
    save(tmp_path / "a.jpg")
    save(tmp_path / "deep" / "b.JPG".lower())
    for name in ("SOURCE.md", "a.jpg.aux.xml", ".hidden.jpg", "README"):
        (tmp_path / name).write_text("text")
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    save(tmp_path / ".cache" / "c.jpg")
    result = scan(tmp_path)
    assert sorted(rows(result)) == ["a.jpg", "b.jpg"]
    assert result.summary.ignored == {".md": 1, ".xml": 1, "": 1}
    assert "no extension (1)" in "\n".join(result.summary.lines())
    deep = scan(tmp_path, pattern="deep/*")
    assert sorted(rows(deep)) == ["b.jpg"] and "do not match 'deep/*': 1" in deep.summary.notes[0]
    assert sorted(rows(scan(tmp_path, pattern="a.*"))) == ["a.jpg"]
    everything = scan(tmp_path, all_files=True)
    assert everything.summary.files == 5 and everything.summary.reasons == {"not_an_image": 3}
    twice = scan([tmp_path, tmp_path / "a.jpg"]).summary
    assert twice.files == 2 and twice.notes == ["Named more than once, with one row each: 1 files."]


def test_a_name_that_is_not_utf8(tmp_path):
    save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").rename(tmp_path / os.fsdecode(b"\xff.jpg"))
    save(tmp_path / "ü b.jpg")
    result = scan(tmp_path)
    assert result.summary.kept == 1 and result.summary.reasons == {"unreadable": 1}
    manifest.write(result.table, tmp_path / "m.parquet")


def test_nothing_to_index(tmp_path):
    with pytest.raises(UserError, match="There is no file or folder"):
        scan(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"No image under .*passed over: 1 \.txt"):
        scan(tmp_path)


@real
def test_uc_merced_has_its_21_classes():
    folder = SHARED / "ucmerced"
    result = scan(folder / "Images", csv=folder / "split_80_20.csv", workers=1)
    assert result.summary.kept == result.summary.files == 2100 and not result.summary.notes
    assert len(result.summary.labels) == 21 and set(result.summary.labels.values()) == {100}
    assert result.summary.splits == {"train": 1680, "test": 420}
    assert scan(folder, workers=1).table.drop_columns("split").equals(result.table.drop_columns("split"))


@real
def test_every_real_image_is_usable():
    large = ("ucmerced", "s2_buenos_aires_chips", "pastis_samples")  # the last holds HDF5 only
    folders = [path for path in SHARED.iterdir() if path.is_dir() and path.name not in large]
    result = scan(folders, workers=1)
    assert result.summary.kept == result.summary.files > 100
    assert set(result.summary.formats) == {"tiff", "jpeg", "png"} and not result.summary.labels
    chips = scan(SHARED / "s2_buenos_aires_chips/locations.csv", workers=1)
    for row in chips.table.to_pylist()[::100]:
        assert shapely.from_wkb(row["geometry"]).distance(shapely.Point(row["lon"], row["lat"])) < 1e-3
