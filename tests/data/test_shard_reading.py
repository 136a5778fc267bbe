"""Training from shards: order, cache, damage; the same batches wherever the shards lie and whoever reads them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from terrasieve import manifest, recipe
from terrasieve.batch import Batch
from terrasieve.curate.engine import Local
from terrasieve.curate.shards import ShardSettings, export_shards, read_index
from terrasieve.curate.step import Work
from terrasieve.data import images as imagery
from terrasieve.data import shard_cache
from terrasieve.data.augment import ImageSettings
from terrasieve.data.loader import LoaderSettings, settled, train_batches
from terrasieve.data.shard_cache import ShardCache
from terrasieve.data.shards import archives, shard_order
from terrasieve.errors import UserError
from terrasieve.imagery import members
from terrasieve.imagery.raster import UnreadableImage, read
from terrasieve.pretrain import pretrain, resumed
from terrasieve.recipe import Recipe


@pytest.fixture
def shards(small_manifest: Path, tmp_path: Path) -> Path:
    """24 images in 8 shards."""
    export_shards(small_manifest, tmp_path / "shards", ShardSettings(shard_mb=0.05), Work(tmp_path, Local(1)))
    assert read_index(tmp_path / "shards").num_rows == 8
    return tmp_path / "shards"


def at_url(shards: Path) -> str:
    return f"file://{shards}/manifest.parquet"


def images_of(path: Path | str) -> imagery.Images:
    return imagery.from_table(manifest.read(path))


def batches(images: imagery.Images, loader: LoaderSettings, rank: int = 0, world: int = 1, **more: Any) -> list[Batch]:
    how: dict[str, Any] = {"seed": 3, "steps": range(9), "batch_size": 8, "rank": rank, "world": world} | more
    return list(train_batches(images, ImageSettings(size_px=24), loader, **how))


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(torch.equal(a.image, b.image) for a, b in zip(one, other, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=90), st.sampled_from([(8, 8), (8, 4), (6, 1), (16, 2), (1, 1)]))
def test_the_order_is_a_permutation_that_reads_on_in_its_shards(files: list[int], shape: tuple[int, int]) -> None:
    shards, (batch_size, lanes) = np.unique(files, return_inverse=True)[1], shape
    order = shard_order(shards, 5, 2, batch_size, lanes)
    assert sorted(order) == list(range(len(files)))
    assert np.array_equal(order, shard_order(shards, 5, 2, batch_size, lanes))
    width = batch_size // lanes
    whole = len(order) // batch_size * batch_size
    rows = order[:whole].reshape(-1, lanes, width)
    visits = sum(len(np.flatnonzero(np.diff(shards[rows[:, lane].ravel()]))) + 1 for lane in range(lanes))
    assert visits <= len(set(files)) + lanes, "a shard is entered once, or twice where it is cut between two lanes"


def test_orders_are_drawn_by_seed_and_epoch() -> None:
    shards = np.repeat(np.arange(10), 30)
    orders = [tuple(shard_order(shards, seed, epoch, 8, 8)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    firsts = [shards[shard_order(shards, 0, epoch, 8, 8)[:8]] for epoch in range(40)]
    assert np.unique(firsts).size == 10 and min(len(set(first)) for first in firsts) >= 7


def test_batches_are_the_same_wherever_they_are_read(shards: Path, tmp_path: Path) -> None:
    far, near = images_of(at_url(shards)), images_of(shards / "manifest.parquet")
    assert settled(LoaderSettings(), far).order == "shards" and settled(LoaderSettings(), near).order == "uniform"
    how = {"cache": str(tmp_path / "cache"), "lanes": 4}
    oracle = batches(near, LoaderSettings(workers=0, order="shards", lanes=4))
    assert not (tmp_path / "cache").exists()
    for workers in (0, 2):
        assert same(oracle, batches(far, LoaderSettings(workers=workers, **how)))
    assert same(oracle[5:], batches(far, LoaderSettings(workers=1, **how), steps=range(5, 9)))
    halves = [batches(far, LoaderSettings(workers=rank, **how), rank, 2) for rank in (0, 1)]
    joined = [torch.cat([a.image, b.image]) for a, b in zip(*halves, strict=True)]
    assert all(torch.equal(batch.image, other) for batch, other in zip(oracle, joined, strict=True))
    assert not same(oracle, batches(near, LoaderSettings(workers=0)))


def fetched(cache: ShardCache, uri: str, path: Path) -> str:
    """Ask for an image until its shard is here."""
    deadline = time.monotonic() + 20
    while (near := cache.near(uri)) == uri:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert path.exists()
    return near


def test_shards_are_fetched_once_and_let_go(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, index = images_of(at_url(shards)), read_index(shards).to_pylist()
    copies = {row["shard"]: tmp_path / "cache" / f"{row['blake2b']}.tar" for row in index}
    limit = 3 * max(row["bytes"] for row in index)
    cache = ShardCache(tmp_path / "cache", limit)
    files, of = archives(images.uris)
    for number, file in enumerate(files):
        uri = images.uris[int(np.flatnonzero(of == number)[0])]
        copy = copies[file.rpartition("/")[2]]
        near = fetched(cache, uri, copy)
        assert members.parse(near).archive == str(copy)
        assert np.array_equal(read(near).array, read(uri).array)
        held = list((tmp_path / "cache").glob("*.tar"))
        assert copy in held and sum(path.stat().st_size for path in held) <= limit
        os.utime(copy, (1_000_000 + number, 1_000_000 + number))
    last = [copies[file.rpartition("/")[2]] for file in files[-2:]]
    assert set(last) < set(held) and not list((tmp_path / "cache").glob(".*")), "those used longest ago went first"
    monkeypatch.setattr(cache, "_fetch", None)
    assert cache.near(images.uris[-1]) != images.uris[-1], "no second fetch"
    assert cache.near("/data/a.tif") == "/data/a.tif"


def test_a_copy_that_is_damaged_or_gone_falls_back_to_the_original(shards: Path, tmp_path: Path) -> None:
    images = images_of(at_url(shards))
    cache = ShardCache(tmp_path / "cache", 10**9)
    oracle = images.read(0).array
    row = read_index(shards).to_pylist()[0]
    copy = tmp_path / "cache" / f"{row['blake2b']}.tar"
    fetched(cache, images.uris[0], copy)
    copy.write_bytes(copy.read_bytes()[:700])
    cached = imagery.replace(images, cache=cache)
    assert np.array_equal(cached.read(0).array, oracle) and not copy.exists()


def damage(shards: Path, images: imagery.Images, row: int) -> str:
    """Alter an image in its shard; returns its uri."""
    member = members.parse(images.uris[row])
    path = Path(member.archive.removeprefix("file://"))
    data = bytearray(path.read_bytes())
    data[member.offset + member.size // 2] ^= 1
    path.write_bytes(data)
    return member.uri


@pytest.mark.parametrize("where", ["local", "remote"])
def test_damage_is_named_and_skipped_or_fatal(shards: Path, tmp_path: Path, where: str) -> None:
    images = images_of(at_url(shards) if where == "remote" else shards / "manifest.parquet")
    uri = damage(shards, images, 7)
    how = {"cache": str(tmp_path / "cache"), "order": "shards"}
    found = batches(images, LoaderSettings(workers=0, **how))
    assert same(found, batches(images, LoaderSettings(workers=2, **how)))
    skips = [skip for batch in found for skip in batch.skipped]
    assert len(skips) == 3 and {skip.uri for skip in skips} == {uri}, "once in each of three epochs"
    assert all(skip.reason.startswith("damaged_shard: ") and "was altered" in skip.reason for skip in skips)
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"tar was altered: .*terrasieve shard -o FOLDER --verify"):
            batches(images, LoaderSettings(workers=workers, on_damage="stop", **how))


def test_a_damaged_shard_never_enters_the_cache(shards: Path, tmp_path: Path) -> None:
    images = images_of(at_url(shards))
    damage(shards, images, 0)
    for strict in (False, True):
        cache = ShardCache(tmp_path / "cache", 10**9, strict)
        cache.near(images.uris[0])
        deadline = time.monotonic() + 20
        while not cache.damaged and time.monotonic() < deadline:
            time.sleep(0.002)
        (said,) = cache.damaged.values()
        assert "000000.tar was altered" in said and "blake2b" in said
        assert not list((tmp_path / "cache").glob("*.tar"))
        if strict:
            with pytest.raises(UnreadableImage, match="damaged_shard"):
                cache.near(images.uris[1])
        else:
            assert cache.near(images.uris[1]) == images.uris[1], "the others of the shard are read by their range"


def test_a_cache_too_small_for_the_lanes_is_refused(shards: Path, tmp_path: Path, tiny: Callable[..., Recipe]) -> None:
    images = images_of(at_url(shards))
    how = {"workers": 0, "cache": str(tmp_path / "cache"), "cache_gb": 1.2e-4}
    with pytest.raises(UserError, match=r"loader\.cache_gb: 0\.00012 GB do not hold the 8 shards"):
        batches(images, LoaderSettings(**how))
    assert len(batches(images, LoaderSettings(lanes=2, **how))) == 9
    assert len(batches(images, LoaderSettings(order="uniform", **how))) == 9
    with pytest.raises(UserError, match=r"loader\.lanes 3 does not divide batch_size 4"):
        tiny(loader={"lanes": 3})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"loader\.cache: .* cannot be used"):
        batches(images, LoaderSettings(workers=0, cache=str(tmp_path / "file" / "cache")))


def test_old_partial_files_are_cleared(tmp_path: Path) -> None:
    old, new = tmp_path / ".a.tar.1.partial", tmp_path / ".b.tar.2.partial"
    for path in (old, new):
        path.write_text("")
    long_ago = time.time() - 2 * shard_cache.STALE_S
    os.utime(old, (long_ago, long_ago))
    ShardCache(tmp_path, 1)
    assert not old.exists() and new.exists()


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "weights.safetensors")


@pytest.mark.slow
def test_75_steps_from_a_url_are_40_there_and_35_from_here(
    shards: Path, tmp_path: Path, tiny: Callable[..., Recipe]
) -> None:
    """The shards are downloaded between stop and resume, and read by other workers: bitwise the same."""
    loader = {"workers": 0, "cache": str(tmp_path / "cache"), "lanes": 2}
    wanted = tiny(steps=75, data=at_url(shards), loader=loader)
    pretrain(wanted, tmp_path / "whole")
    assert recipe.load(tmp_path / "whole" / "recipe.yaml").loader.order == "shards"
    pretrain(
        wanted.model_copy(update={"loader": LoaderSettings(**loader | {"workers": 2})}), tmp_path / "parts", stop_at=40
    )  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"loader\.order, loader\.lanes would differ"):
        resumed(tmp_path / "parts", ["loader.order=uniform", "loader.lanes=4"])
    here = shards.rename(tmp_path / "downloaded") / "manifest.parquet"
    again = resumed(tmp_path / "parts", [f"data={here}", "loader.workers=1"])
    assert pretrain(again, tmp_path / "parts", resume=True).step == 75
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.slow
def test_two_processes_that_read_shards_are_one(shards: Path, tmp_path: Path, tiny: Callable[..., Recipe]) -> None:
    optim = {"base_lr": 1e-3, "warmup": 0.0}
    wanted = tiny(steps=8, data=at_url(shards), optim=optim, loader={"workers": 1, "cache": str(tmp_path / "cache")})
    pretrain(wanted, tmp_path / "one")
    (tmp_path / "two.yaml").write_text(recipe.dump(wanted))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", "-m", "terrasieve", "pretrain", str(tmp_path / "two.yaml")]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path / "two")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-6
    lines = (tmp_path / "two" / "log.jsonl").read_text().splitlines()
    assert not [line for line in map(json.loads, lines) if line.get("event") == "skip_image"]
