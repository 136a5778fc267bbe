"""Redundancy: the scores against naive loops, the table stopped and resumed, the trainer's cache of patch scores."""

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
from PIL import Image
from skimage.measure import shannon_entropy

from terrasieve import analyse, manifest
from terrasieve.batch import Batch
from terrasieve.curate.scan import scan
from terrasieve.data import images as imagery
from terrasieve.data.augment import ImageSettings, normalise
from terrasieve.data.samples import WholeSamples, collate
from terrasieve.errors import UserError
from terrasieve.evaluate import redundancy, redundancy_table
from terrasieve.evaluate.redundancy import SCORES, RedundancySettings, image_scores, patch_scores
from terrasieve.methods.dropping import Dropping, DropSettings
from terrasieve.nn.encoder import Encoder, EncoderSettings
from terrasieve.nn.patches import patchify
from terrasieve.sieve.richness import hog_energy

PATCH = 4
MEAN, STD = (900.0, 1000.0, 1100.0, 1200.0), (300.0, 250.0, 400.0, 350.0)
IMAGE = ImageSettings(size_px=32, mean=MEAN, std=STD)
HOW = {"size_px": 32, "patch_px": 8, "workers": 0}


def batch_of(count: int = 3, side: int = 24) -> Batch:
    """Normalised images; the second lacks data on the left, the third has twelve equal patches."""
    draw = np.random.Generator(np.random.Philox(5))
    image = torch.from_numpy(draw.normal(0.3, 1, (count, 3, side, side)).astype(np.float32))
    image[2, :, :8] = image[2, :, :4, :4].repeat(1, 2, 6)
    valid = torch.ones(count, side, side, dtype=torch.bool)
    valid[1, :, :10] = False  # two columns of patches, and half of the third
    nothing = torch.full((count,), math.nan, dtype=torch.float64)
    image = torch.where(valid[:, None], image, 0.0)
    return Batch(image, nothing, nothing, nothing, torch.arange(count), valid=valid)


def naive_scores(image: np.ndarray, valid: np.ndarray, threshold: float) -> dict[str, float]:
    side = image.shape[1] // PATCH
    cells = [
        (slice(PATCH * y, PATCH * y + PATCH), slice(PATCH * x, PATCH * x + PATCH))
        for y in range(side)
        for x in range(side)
    ]
    real = [n for n, cell in enumerate(cells) if valid[cell].any()]
    tokens = [image[:, cells[n][0], cells[n][1]].ravel().astype(np.float64) for n in real]
    units = [token / np.linalg.norm(token) for token in tokens]
    cosine = [[float(a @ b) for b in units] for a in units]
    others = [[c for j, c in enumerate(row) if j != i] for i, row in enumerate(cosine)]
    means = [sum(row) / len(row) for row in others]
    kept = [min(range(len(units)), key=lambda i: means[i])]
    while True:
        near = [max(cosine[i][j] for j in kept) for i in range(len(units))]
        left = [i for i in range(len(units)) if i not in kept and near[i] < threshold]
        if not left:
            break
        kept.append(min(left, key=lambda i: near[i]))
    hog = hog_energy(torch.from_numpy(image)[None], PATCH)[0].numpy().astype(np.float64)[real]
    quarter = len(real) / 4
    richest, held = sorted(hog, reverse=True), 0.0
    for n, energy in enumerate(richest):
        held += energy * min(max(quarter - n, 0), 1)
    grey = np.clip(np.floor((image.mean(axis=0)[valid] / 3 + 1) * 128), 0, 255)
    singular = np.linalg.svd(np.array(tokens), compute_uv=False)
    share = singular[singular > 1e-9 * singular[0]] / singular.sum()
    return {
        "real_patches": len(real),
        "cosine_mean": float(np.mean(means)),
        "cosine_largest": float(np.mean([max(row) for row in others])),
        "cover_kept": len(kept) / len(units),
        "hog_energy": float(hog.mean()),
        "hog_share": float(held / hog.sum()),
        "entropy_bits": float(shannon_entropy(grey, base=2)),
        "effective_rank": float(np.exp(-(share * np.log(share)).sum())),
    }


@pytest.mark.parametrize("threshold", [0.2, 0.9])
def test_scores_of_images_are_those_of_naive_loops(threshold: float) -> None:
    batch = batch_of()
    found = image_scores(batch, RedundancySettings(patch_px=PATCH, threshold=threshold))
    assert found["real_patches"].tolist() == [36, 24, 36]
    assert batch.valid is not None
    for n in range(3):
        wanted = naive_scores(batch.image[n].numpy(), batch.valid[n].numpy(), threshold)
        for name, value in wanted.items():
            assert found[name][n].item() == pytest.approx(value, rel=2e-5, abs=2e-5), (name, n)
    assert found["cover_kept"][2] <= 25 / 36  # twelve equal patches: one stands for all


def test_flat_images_and_images_without_data() -> None:
    batch = batch_of()
    flat = torch.ones(3, 3, 24, 24)
    assert batch.valid is not None
    batch.valid[0] = False
    batch.valid[1] = False
    batch.valid[1, :4, :4] = True  # one patch is left, which has nothing to be compared with
    found = image_scores(
        Batch(flat, batch.lon, batch.lat, batch.time, batch.index, valid=batch.valid), RedundancySettings(patch_px=4)
    )
    assert found["real_patches"].tolist() == [0, 1, 36]
    for name in SCORES:
        assert found[name][:2].isnan().all()
    same = {
        "cosine_mean": 1,
        "cosine_largest": 1,
        "cover_kept": 1 / 36,
        "hog_energy": 0,
        "hog_share": 0.25,
        "entropy_bits": 0,
        "effective_rank": 1,
    }
    for name, value in same.items():
        assert found[name][2].item() == pytest.approx(value, abs=1e-5), name


def write_scenes(folder: Path, count: int, side: int = 32) -> Path:
    """Write ``count`` PNGs from flat to rough, in three class folders, and index them."""
    draw = np.random.Generator(np.random.Philox(3))
    for n in range(count):
        path = folder / "images" / ("sea", "field", "town")[n % 3] / f"{n:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = draw.normal(0, 2 + 60 * (n % 3), (side, side, 3))
        Image.fromarray((128 + 40 * draw.normal(size=3) + noise).clip(0, 255).astype(np.uint8)).save(path)
    manifest.write(scan(folder / "images", workers=1).table, folder / "manifest.parquet")
    return folder / "manifest.parquet"


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


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(EncoderSettings(name="vit_tiny_patch16_224", patch_px=8, depth=2), 4, (32, 32), seed=1).eval()


@pytest.mark.parametrize("of", ["pixels", "embeddings"])
@pytest.mark.parametrize("reduction", ["mean", "largest", "cover"])
def test_cached_patch_scores_are_what_training_would_compute(
    small_manifest: Path, tmp_path: Path, encoder: Encoder, of: str, reduction: str
) -> None:
    images = imagery.from_table(manifest.read(small_manifest))
    drop = DropSettings(policy="static", ratio=0.5, of=of, reduction=reduction)
    path, done = tmp_path / "scores.npy", []
    scores = patch_scores(
        images, IMAGE, drop, 8, encoder, path, "key", lambda n, total: done.append((n, total)), workers=0
    )
    batch = normalise(
        collate([WholeSamples(images, IMAGE)[row] for row in range(24)]), torch.tensor(MEAN), torch.tensor(STD)
    )
    with torch.no_grad():
        wanted = Dropping(drop, 16).scores(encoder, batch, patchify(batch.image, 8))
    assert (scores.shape, scores.dtype, done[-1]) == ((24, 16), np.float32, (24, 24))
    assert np.array_equal(scores, wanted.numpy())
    assert isinstance(scores, np.memmap) and not scores.flags.writeable


def test_cached_patch_scores_are_kept_until_the_key_changes(
    small_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = imagery.from_table(manifest.read(small_manifest))
    path = tmp_path / "scores.npy"

    def make(key: str, size: int = 32) -> np.ndarray:
        return patch_scores(
            images, IMAGE.model_copy(update={"size_px": size}), DropSettings(of="pixels"), 8, None, path, key, workers=0
        )

    first = np.array(make("a"))
    made = path.stat().st_ino
    assert np.array_equal(make("a"), first) and path.stat().st_ino == made
    assert np.array_equal(make("b"), first) and path.stat().st_ino != made
    assert make("b", size=16).shape == (24, 4)
    assert make("a").shape == (24, 16)
    content = path.read_bytes()
    path.write_bytes(content[:-70])  # cut: no longer its key
    assert np.array_equal(make("a"), first)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(redundancy, "over_images", stop)
    assert np.array_equal(make("a"), first)
    with pytest.raises(KeyboardInterrupt):
        make("c")
    assert path.read_bytes() == content  # nothing half done under its name


def test_cached_patch_scores_of_what_cannot_be_seen(tmp_path: Path) -> None:
    path = write_scenes(tmp_path, 3)
    images = imagery.from_table(manifest.read(path))
    Path(images.uris[1]).unlink()
    image = ImageSettings(size_px=32, mean=(128.0,) * 3, std=(40.0,) * 3)
    scores = patch_scores(images, image, DropSettings(of="pixels"), 8, None, tmp_path / "s.npy", "k", workers=1)
    assert np.isinf(scores).all(axis=1).tolist() == [False, True, False]
    with pytest.raises(UserError, match="needs an encoder"):
        patch_scores(images, image, DropSettings(), 8, None, tmp_path / "t.npy", "k", workers=0)
    for wrong, px, words in (
        (image, 12, "does not divide"),
        (image, 32, "two patches or more"),
        (ImageSettings(size_px=32), 8, "mean and standard"),
    ):
        with pytest.raises(UserError, match=words):
            patch_scores(images, wrong, DropSettings(of="pixels"), px, None, tmp_path / "t.npy", "k", workers=0)
    assert not (tmp_path / "t.npy").exists()


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
