"""Sources into the first manifest: order, tars, files named twice, hostile folders, reruns that read what is new."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from terrasieve import manifest
from terrasieve.curate import collect, listing, step
from terrasieve.curate import scan as scanning
from terrasieve.curate.collect import ScanSettings
from terrasieve.curate.engine import Local
from terrasieve.curate.folders import files_below
from terrasieve.curate.listing import SourceSettings
from terrasieve.curate.scan import scan
from terrasieve.curate.step import Result, Work
from terrasieve.errors import UserError
from terrasieve.imagery.raster import read


def picture(path: Path, value: int = 0, size: tuple[int, int] = (48, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.Generator(np.random.Philox(value)).integers(0, 255, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def run(folder: Path, *sources: dict[str, Any], **settings: Any) -> tuple[pa.Table, Result]:
    made = tuple(SourceSettings.model_validate(source) for source in sources)
    folder.mkdir(exist_ok=True)
    found = listing.list_sources(made, folder / "spool.parquet", lambda done, total: None)
    result = collect.collect(found, made, folder / "scan.parquet", ScanSettings(**settings), Work(folder, Local(1)))
    return manifest.read(folder / "scan.parquet", empty_ok=True), result


def test_the_same_rows_as_the_index_has(tmp_path: Path, shared_data: Path) -> None:
    for name in ("neon_tree_crowns", "bigearthnet_v2_samples", "landsat_scenes"):
        table, _ = run(tmp_path / name, {"name": "a", "paths": str(shared_data / name)})
        expected = scan(shared_data / name).table
        for column in manifest.SCHEMA.names:
            if column != "source":
                assert table[column].equals(expected[column]), (name, column)


def test_files_come_in_order_of_their_path(tmp_path: Path) -> None:
    for name in ("a/z.png", "a.b/x.png", "a-b.png", "a/b/c.png", "B.png", "a0/y.png", "é.png", ".hidden/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    expected = sorted(str(path) for path in tmp_path.rglob("*.png") if ".hidden" not in str(path))
    assert list(files_below(str(tmp_path), pytest.fail)) == expected and len(expected) == 7


def test_sources_fill_what_files_do_not_say(tmp_path: Path) -> None:
    for name in ("x", "y"):
        for index in range(2):
            picture(tmp_path / "a" / name / f"{name}{index}.png", index)
            picture(tmp_path / "b" / f"{name}{index}.png", 9 + index)
    (tmp_path / "b.csv").write_text("path,licence,lon,lat,source\nb/x0.png,CC0,10,50,else\n")
    first = {"name": "first", "paths": str(tmp_path / "b"), "licence": "CC-BY-4.0", "gsd_m": 0.5, "split": "test"}
    table, _ = run(
        tmp_path / "out", first | {"csv": str(tmp_path / "b.csv")}, {"name": "second", "paths": str(tmp_path / "a")}
    )
    rows = table.to_pylist()
    assert [row["source"] for row in rows] == ["first"] * 4 + ["second"] * 4, "order of sources is priority"
    assert [row["licence"] for row in rows] == ["CC0", "CC-BY-4.0", "CC-BY-4.0", "CC-BY-4.0", None, None, None, None]
    assert (rows[0]["lon"], rows[0]["split"], rows[0]["gsd_m"]) == (10, "test", 0.5)
    assert [row["label"] for row in rows] == [None] * 4 + ["x", "x", "y", "y"]


def test_what_patterns_leave_out_is_counted(tmp_path: Path) -> None:
    for name in ("a.png", "mask.png", "deep/mask.png", "b.tif.txt"):
        picture(tmp_path / "in" / name) if name.endswith("png") else (tmp_path / "in" / name).touch()
    table, result = run(tmp_path / "out", {"name": "s", "paths": str(tmp_path / "in"), "leave_out": ["mask.*"]})
    assert [Path(uri).name for uri in table["uri"].to_pylist()] == ["a.png"]
    assert result.notes == [
        "Not images by extension, passed over: .txt (1).",
        "Images left out by a source's pattern: s (2).",
    ]


def member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def test_members_of_tars(tmp_path: Path) -> None:
    data = {index: picture(tmp_path / f"{index}.png", index).read_bytes() for index in range(4)}
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        member(tar, "a/000.png", data[0])
        member(tar, "a/000.cls", b"forest\n")
        member(tar, "a/000.json", json.dumps({"lon": 7.5, "lat": 51, "labels": ["x", "y"], "odd": 1}).encode())
        member(tar, "001.txt", b"river")
        member(tar, "001.rgb.png", data[1])
        member(tar, "002.png", data[2])
        member(tar, "002.txt", b"An aerial picture of a harbour with many boats and a mole.")
        member(tar, "\udce9.png", data[3])
        member(tar, "notes.md", b"")
    table, result = run(tmp_path / "out", {"name": "t", "paths": str(tmp_path / "s.tar"), "labels": "none"})
    rows = table.to_pylist()
    assert [row["label"] for row in rows] == ["forest", "river", None, None]
    assert (rows[0]["lon"], rows[0]["lat"], rows[0]["labels"]) == (7.5, 51, ["x", "y"])
    assert all(row["keep"] and (row["width"], row["height"]) == (48, 40) for row in rows)
    for row, index in zip(rows, range(4), strict=True):
        expected = np.asarray(Image.open(io.BytesIO(data[index]))).transpose(2, 0, 1)
        assert np.array_equal(read(row["uri"]).array, expected)
    assert result.notes == ["Not images by extension, passed over: .md (1)."]


def test_broken_tars_keep_what_stands_before_the_break(tmp_path: Path) -> None:
    data = picture(tmp_path / "x.png", 1, (200, 200)).read_bytes()
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        member(tar, "0.png", data)
        member(tar, "1.png", data)
    whole = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "cut.tar").write_bytes(whole[: len(data) + 5000])
    (tmp_path / "tars" / "noise.tar").write_bytes(bytes(range(256)) * 9)
    with tarfile.open(tmp_path / "tars" / "packed.tar", "w:gz") as tar:
        member(tar, "0.png", data)
    table, _ = run(tmp_path / "out", {"name": "t", "paths": str(tmp_path / "tars")})
    rows = table.select(["uri", "keep", "reason"]).to_pylist()
    assert "#name=0.png" in rows[0]["uri"] and rows[0]["keep"]
    assert "#name=1.png" in rows[1]["uri"]
    reasons = [row["reason"].partition(":")[0] for row in rows]
    assert reasons == ["", "damaged_shard", "truncated", "unreadable", "unreadable"], rows


def test_one_file_under_several_names_has_one_kept_row(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "x.png", 1)
    picture(tmp_path / "a" / "y.png", 2)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "link.png").symlink_to(tmp_path / "a" / "x.png")
    os.link(tmp_path / "a" / "y.png", tmp_path / "b" / "hard.png")
    (tmp_path / "a" / "round").symlink_to(tmp_path / "a")  # a loop
    (tmp_path / "a" / "self.png").symlink_to(tmp_path / "a" / "self.png")  # and a link to itself
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    table, result = run(
        tmp_path / "out",
        {"name": "b", "paths": str(tmp_path / "b")},
        {"name": "a", "paths": [str(tmp_path / "a"), str(tmp_path / "b")]},
    )
    rows = [(row["source"], Path(row["uri"]).name, row["reason"].partition(":")[0]) for row in table.to_pylist()]
    assert rows == [
        ("b", "hard.png", ""),
        ("b", "link.png", ""),
        ("a", "gone.png", "missing"),
        ("a", "self.png", "unreadable"),
        ("a", "x.png", "listed_twice"),
        ("a", "y.png", "listed_twice"),
        ("a", "hard.png", "listed_twice"),
        ("a", "link.png", "listed_twice"),
    ]
    assert result.kept == 2
    kept = table.filter(table["keep"])["id"].to_pylist()
    assert len(set(kept)) == len(kept)


def bomb(path: Path) -> None:
    """A PNG of 200 kB that declares 40,000 x 40,000 pixels, and holds them: all zero."""
    side = 40_000

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    press = zlib.compressobj(9)
    rows = bytes(side // 8 + 1) * 1000
    data = b"".join(press.compress(rows) for _ in range(side // 1000)) + press.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def test_hostile_files_are_rows_with_a_reason(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    picture(folder / "good.png")
    bomb(folder / "bomb.png")
    good = (folder / "good.png").read_bytes()
    (folder / "lies.png").write_bytes(good[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + good[24:])
    (folder / "cut.png").write_bytes(good[:-20])
    Path(os.fsdecode(os.fsencode(folder) + b"/\xe9t\xe9.png")).write_bytes(good)
    os.mkfifo(folder / "pipe.png")
    table, _ = run(tmp_path / "out", {"name": "s", "paths": str(folder)})
    reasons = {Path(row["uri"]).name: row["reason"].partition(":")[0] for row in table.to_pylist()}
    assert reasons == {
        "bomb.png": "huge_header",
        "cut.png": "truncated",
        "good.png": "",
        "lies.png": "huge_header",
        "pipe.png": "not_an_image",
        "\ufffdt\ufffd.png": "unreadable",
    }


def test_a_rerun_reads_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "CHUNK", 3)
    monkeypatch.setattr(step, "ROW_GROUP", 3)
    monkeypatch.setattr(collect, "CHUNK", 3)
    for index in range(8):
        picture(tmp_path / "a" / f"{index}.png", index)
    source = {"name": "a", "paths": str(tmp_path / "a")}
    opened: list[str] = []

    def spy(entries: list[dict[str, Any]], **how: Any) -> Any:
        opened.extend(Path(entry["uri"]).name for entry in entries if "reason" not in entry)
        return inspect(entries, **how)

    inspect = scanning.inspect_files
    monkeypatch.setattr(scanning, "inspect_files", spy)
    run(tmp_path / "out", source)
    assert len(opened) == 8
    opened.clear()
    picture(tmp_path / "a" / "10.png", 10)
    picture(tmp_path / "a" / "3.png", 33, (60, 60))
    (tmp_path / "a" / "5.png").unlink()
    picture(tmp_path / "b" / "0.png", 11)
    sources = ({"name": "b", "paths": str(tmp_path / "b")}, source)
    again, result = run(tmp_path / "out", *sources)
    assert opened == ["0.png", "10.png", "3.png"]
    assert result.notes == ["Rows of an earlier scan taken over, for their files are the same: 6."]
    fresh, _ = run(tmp_path / "fresh", *sources)
    assert again.equals(fresh), "as if it had been read anew"
    opened.clear()
    run(tmp_path / "out", *[each | {"licence": "CC0"} for each in sources])
    assert len(opened) == 9, "another licence changes every row"
    (tmp_path / "out" / "listing.parquet").unlink()
    assert run(tmp_path / "out", *sources)[0].equals(fresh), "without its listing an earlier scan is of no use"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"name": "s", "paths": "nowhere"}, "no file or folder nowhere"),
        ({"name": "s", "paths": ".", "pattern": "*.xyz"}, "Source 's': no image under"),
    ],
)
def test_sources_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png")
    with pytest.raises(UserError, match=message):
        run(tmp_path / "out", source)
