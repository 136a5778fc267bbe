"""The table of redundancy: in order, stopped and resumed, with a reason for every row that has no scores."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import geopandas
import numpy as np
import pyarrow as pa
import pytest
import torch
from scenes_by_class import write_scenes

from terrasieve import analyse, manifest
from terrasieve.batch import Batch
from terrasieve.curate.scan import scan
from terrasieve.data import images as imagery
from terrasieve.data.augment import ImageSettings
from terrasieve.errors import UserError
from terrasieve.evaluate import redundancy_table
from terrasieve.nn.patches import patchify

HOW = {"size_px": 32, "patch_px": 8, "workers": 0}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), 600)


@pytest.fixture(scope="module")
def whole(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The table of an uninterrupted analysis in this process."""
    return analyse.analyse(scenes, tmp_path_factory.mktemp("whole"), **HOW).table


def test_table_orders_scenes_and_opens_in_geopandas(small_manifest: Path, tmp_path: Path, whole: pa.Table) -> None:
    rows = whole.to_pandas().groupby("label")
    assert rows.cosine_mean.mean().idxmin() == "town"
    assert rows.cover_kept.mean()["sea"] < rows.cover_kept.mean()["town"]
    assert rows.hog_energy.mean()["sea"] < rows.hog_energy.mean()["field"] < rows.hog_energy.mean()["town"]
    done = analyse.analyse(small_manifest, tmp_path, **HOW)
    opened = geopandas.read_parquet(tmp_path / "redundancy.parquet")
    assert opened.crs.to_epsg() == 4326 or opened.crs.to_string() == "OGC:CRS84"
    assert opened.id.tolist() == manifest.read(small_manifest)["id"].to_pylist()
    assert (opened.patches == 16).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        "redundancy.parquet",
        "report.html",
        "settings.json",
    ]
    assert done.page.exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(scenes: Path, whole: pa.Table, tmp_path: Path, workers: int) -> None:
    assert analyse.analyse(scenes, tmp_path, **HOW | {"workers": workers}).table.equals(whole)


def start(scenes: Path, folder: Path) -> subprocess.Popen[str]:
    command = ["redundancy", str(scenes), "-o", str(folder), "--size-px", "32", "--patch-px", "8", "--workers", "1"]
    return subprocess.Popen([sys.executable, "-m", "terrasieve", *command], stderr=subprocess.PIPE, text=True)


def wait_for_a_part(folder: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while not list(folder.glob("parts/[0-9]*.parquet")):
        assert process.poll() is None and time.monotonic() < end, process.stderr and process.stderr.read()
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_it_goes_on_where_it_was(scenes: Path, whole: pa.Table, tmp_path: Path) -> None:
    process = start(scenes, tmp_path)
    wait_for_a_part(tmp_path, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "redundancy.parquet").exists()
    done: list[int] = []
    again = analyse.analyse(scenes, tmp_path, **HOW, on_images=lambda n, total: done.append(n))
    assert done[0] > 256 and done[-1] == 600
    assert again.table.equals(whole)
    assert not (tmp_path / "parts").exists()
    once_more: list[int] = []
    assert analyse.analyse(scenes, tmp_path, **HOW, on_images=lambda n, _: once_more.append(n)).table.equals(whole)
    assert not once_more


@pytest.mark.slow
def test_ctrl_c_leaves_the_parts(scenes: Path, tmp_path: Path) -> None:
    process = start(scenes, tmp_path)
    wait_for_a_part(tmp_path, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in said) == (130, False), said
    assert "the same command goes on" in said
    assert list(tmp_path.glob("parts/[0-9]*.parquet"))


def test_another_analysis_in_the_folder_is_named(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({"manifest_hash": "0" * 32}))
    with pytest.raises(UserError, match=r"manifest_hash = 0000.*another folder with -o"):
        analyse.analyse(scenes, tmp_path, **HOW)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(UserError, match=r"settings\.json"):
        analyse.analyse(scenes, tmp_path, **HOW)


def test_every_row_has_its_scores_or_a_reason(tmp_path: Path) -> None:
    from rasterio import open as write_raster

    path = write_scenes(tmp_path, 9)
    empty = tmp_path / "images" / "sea" / "empty.tif"
    with write_raster(
        empty, "w", driver="GTiff", width=32, height=32, count=3, dtype="uint8", nodata=0, photometric="rgb"
    ) as file:
        file.write(np.zeros((3, 32, 32), np.uint8))
    (tmp_path / "images" / "sea" / "text.png").write_text("no image")
    manifest.write(scan(tmp_path / "images").table, path)
    cut = tmp_path / "images" / "town" / "00002.png"
    content = cut.read_bytes()
    cut.write_bytes(content[: len(content) // 2])  # after it was indexed
    found = analyse.analyse(path, tmp_path / "out", **HOW)
    rows = {Path(row["uri"]).name: row for row in found.table.to_pylist()}
    assert len(rows) == 11
    assert rows["text.png"]["reason"].startswith("not kept: not_an_image")
    assert rows["empty.tif"]["reason"] == "no_data: 0 of 16 patches are real"
    assert rows["empty.tif"]["no_data_patches"] == 16
    assert rows["00002.png"]["reason"].startswith(("truncated", "unreadable"))
    for name, row in rows.items():
        assert (row["reason"] == "") == (row["cosine_mean"] is not None) == (name[:5].isdigit() and name != "00002.png")
    lines = found.lines()
    assert lines[0] == "8 images scored"
    assert "not scored: 1 no_data" in lines
    page = found.page.read_text()
    assert "3 rows of the manifest" in page and "empty.tif" in page


def test_a_lost_mount_is_named_and_comes_back(tmp_path: Path) -> None:
    path = write_scenes(tmp_path, 9)

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analyse.analyse(path, tmp_path / "out", **HOW, on_images=stop)
    (tmp_path / "images").rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"None of the 9 images could be scored: 9 missing\..*Is the disk or the mount"):
        analyse.analyse(path, tmp_path / "out", **HOW)
    with pytest.raises(UserError, match=r"None of 9 sampled images"):
        analyse.analyse(path, tmp_path / "other", **HOW)
    (tmp_path / "away").rename(tmp_path / "images")
    again = analyse.analyse(path, tmp_path / "out", **HOW)  # the parts that lacked it are done again
    assert again.lines()[0] == "9 images scored"


def test_means_have_bootstrap_intervals(whole: pa.Table) -> None:
    values = redundancy_table.scores_of(whole)
    for number, (name, (mean, low, high)) in enumerate(redundancy_table.means(whole).items()):
        column = values[:, number]
        assert mean == pytest.approx(column.mean()), name
        assert low < mean < high
        assert high - low == pytest.approx(2 * 1.96 * column.std() / math.sqrt(len(column)), rel=0.12)


def test_another_device_scores_in_this_process(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers read, this process scores: on the meta device no numbers, but the right shapes."""
    from terrasieve.evaluate.reading import over_images

    images = imagery.from_table(manifest.read(scenes))
    image = ImageSettings(size_px=32, mean=(128.0,) * 3, std=(40.0,) * 3)
    pids: list[int] = []

    def score(batch: Batch) -> torch.Size:
        pids.append(os.getpid())
        assert batch.image.device.type == "meta"
        return patchify(batch.image, 8).shape

    found = list(over_images(images, image, score, [range(5), range(5, 8)], 1, "meta"))
    assert [tuple(scored.values) for scored in found] == [(5, 16, 192), (3, 16, 192)]
    assert set(pids) == {os.getpid()}
