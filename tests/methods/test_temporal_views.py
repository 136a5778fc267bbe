"""Two views of two dates: a pixel's value tells place and date, so what the method saw can be read off its views."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

from terrasieve import keyed, manifest
from terrasieve.curate.scan import scan
from terrasieve.data import images as imagery
from terrasieve.data.augment import AugmentSettings, ImageSettings
from terrasieve.data.groups import Groups
from terrasieve.data.loader import LoaderSettings, train_batches
from terrasieve.data.pairs import KINDS, PairSettings
from terrasieve.methods import MethodSettings, build
from terrasieve.methods.dino import DINOSettings
from terrasieve.methods.siamese import two_views
from terrasieve.nn.convolution import encoder_of
from terrasieve.nn.encoder_settings import EncoderSettings
from terrasieve.pretrain import pretrain, resumed
from terrasieve.recipe import Recipe
from terrasieve.train.log import read_log
from terrasieve.train.picture import compose_views

PLACES, DATES, ALONE = 6, 3, 2  # and two places with one date
WHOLE = {"crop_scale": [1, 1], "crop_ratio": [1, 1]}
MEMBERS = get_args(get_args(MethodSettings)[0])
PAIRS = PairSettings(kinds=("same_place",))
SMALL: dict[str, dict[str, Any]] = {
    "moco": {"widths": (64, 32), "queue": 16},
    "simclr": {"widths": (64, 32)},
    "byol": {"widths": (64, 32), "predictor": 64},
    "simsiam": {"widths": (64, 64, 32), "predictor": 16},
    "dino": {"widths": (64, 64, 16), "prototypes": 48, "local_views": 4},
}


def value(place: int, date: int) -> int:
    return 1000 + 100 * place + 10 * date


@pytest.fixture(scope="session")
def dated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 20 flat images: six places at three dates, two at one."""
    root = tmp_path_factory.mktemp("dated")
    for place in range(PLACES + ALONE):
        for date in range(DATES if place < PLACES else 1):
            path = root / "images" / f"{place}_{date}.tif"
            path.parent.mkdir(exist_ok=True)
            where = {"crs": "EPSG:32721", "transform": from_origin(300000 + place * 5000, 6100000, 10, 10)}
            shape = {"width": 32, "height": 32, "count": 2, "dtype": "uint16"}
            with rasterio.open(path, "w", driver="GTiff", **shape, **where) as file:
                file.write(np.full((2, 32, 32), value(place, date), np.uint16))
    table = scan(root / "images", labels="none").table
    dates = [int(Path(uri).stem[-1]) for uri in table["uri"].to_pylist()]
    times = pa.array([datetime.datetime(2020 + date, 6, 1, tzinfo=datetime.UTC) for date in dates])
    column = table.schema.get_field_index("datetime")
    path = root / "manifest.parquet"
    manifest.write(
        table.set_column(column, table.schema.field(column), times.cast(table.schema.field(column).type)), path
    )
    return path


def batches(path: Path, workers: int = 0, rank: int = 0, world: int = 1, start: int = 0) -> list[Any]:
    table = manifest.read(path)
    image = ImageSettings(size_px=32, augment=AugmentSettings(crop_scale=(1, 1), crop_ratio=(1, 1)))
    how: dict[str, Any] = {"seed": 3, "steps": range(start, 12), "batch_size": 8, "rank": rank, "world": world}
    groups = Groups.of(table, PAIRS, 2, 3)
    return list(train_batches(imagery.from_table(table), image, LoaderSettings(workers=workers), groups=groups, **how))


def told(image_BCHW: torch.Tensor) -> list[tuple[int, int]]:
    """Read place and date off flat images."""
    assert torch.equal(image_BCHW.float().amax(dim=(1, 2, 3)), image_BCHW.float().amin(dim=(1, 2, 3)))
    numbers = image_BCHW[:, 0, 0, 0].long() - 1000
    return [(n // 100, n % 100 // 10) for n in numbers.tolist()]


def test_the_second_image_is_another_date_of_the_same_place(dated: Path) -> None:
    seen: dict[tuple[int, int], set[int]] = {}
    for batch in batches(dated):
        own, others = told(batch.image), told(batch.neighbours[:, 0])
        kinds = [KINDS[n] for n in batch.kinds[:, 0].tolist()]
        for (place, date), (other_place, other), kind in zip(own, others, kinds, strict=True):
            assert place == other_place
            assert (date != other) == (kind == "same_place") == (place < PLACES)
            assert kind in ("same_place", "alone")
            seen.setdefault((place, date), set()).add(other)
    assert len(seen) == PLACES * DATES + ALONE
    assert max(len(others) for others in seen.values()) == 2, "the date is drawn anew every epoch"


def test_dates_do_not_depend_on_workers_processes_or_where_a_run_was_resumed(dated: Path) -> None:
    alone = batches(dated)
    for other in (batches(dated, workers=2), batches(dated, start=5)):
        for a, b in zip(alone[len(alone) - len(other) :], other, strict=True):
            assert torch.equal(a.image, b.image) and torch.equal(a.neighbours, b.neighbours)
    for whole, first, second in zip(alone, batches(dated, 0, 0, 2), batches(dated, 1, 1, 2), strict=True):
        assert np.array_equal(whole.neighbours.numpy(), np.concatenate([first.neighbours, second.neighbours]))


@pytest.mark.parametrize("name", list(SMALL))
def test_views_are_of_both_dates_and_the_embedding_is_that_of_the_first(dated: Path, name: str) -> None:
    encoder = encoder_of(EncoderSettings(name="test_resnet"), 2, (32, 32))
    settings = next(s for s in MEMBERS if s.model_fields["name"].default == name)
    method = build(settings(**SMALL[name], views_from="same_place"), encoder).eval()
    batch = batches(dated)[0]
    ready = replace(batch, image=batch.image.float() / 1000 - 1, neighbours=batch.neighbours.float() / 1000 - 1)
    output = method(ready, keyed.generator(0, "mask"), picture=True)
    for view, image in (("view1", ready.image), ("view2", ready.neighbours[:, 0]), ("view3", ready.image)):
        if view in output.picture:
            shown = output.picture[view]
            assert torch.allclose(shown, image[:, :, :1, :1].expand_as(shown), atol=1e-5), view
    assert torch.equal(output.picture["other"], ready.neighbours[:, 0])
    drawn = compose_views(output.picture, ("a", "b"))
    assert drawn.shape[1] == (len(output.picture)) * 36, "a column each, with gaps"
    alone = sum(place >= PLACES for place, _ in told(batch.image)) / 8
    assert output.metrics["share_alone"].item() == pytest.approx(alone)
    assert output.metrics["share_same_place"].item() == pytest.approx(1 - alone)
    noisy = torch.randn(batch.image.shape, generator=keyed.generator(0, "test"))
    embedded = [
        method(replace(ready, image=image, neighbours=neighbours[:, None]), keyed.generator(0, "mask")).embeddings
        for image, neighbours in ((noisy, noisy), (noisy, noisy + 1), (noisy.flip(0), noisy))
    ]
    assert torch.equal(embedded[0], embedded[1]) and not torch.allclose(embedded[0], embedded[2], atol=1e-6)


def test_dinos_local_views_are_of_both_dates_in_turn(dated: Path) -> None:
    encoder = encoder_of(EncoderSettings(name="test_resnet"), 2, (32, 32))
    method: Any = build(DINOSettings(**SMALL["dino"], views_from="same_place"), encoder)
    batch = batches(dated)[0]
    ready = replace(batch, image=batch.image.float(), neighbours=batch.neighbours.float())
    local = method._local_views(ready, keyed.generator(0, "mask"))
    assert [told(view.round()) for view in local] == [told(batch.image), told(batch.neighbours[:, 0])] * 2


def test_without_another_date_the_views_are_those_of_the_image(dated: Path) -> None:
    """Bit for bit what ``same_image`` gives."""
    batch = batches(dated)[0]
    ready = replace(batch, image=batch.image.float(), neighbours=batch.image.float()[:, None])
    settings = DINOSettings()
    one = two_views(ready, keyed.generator(0, "mask"), settings)
    other = two_views(replace(ready, neighbours=None), keyed.generator(0, "mask"), settings)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def recipe_of(tiny: Callable[..., Recipe], dated: Path, **more: Any) -> Recipe:
    content: dict[str, Any] = {
        "data": str(dated),
        "steps": 16,
        "image": {"size_px": 32, "augment": WHOLE},
        "encoder": {"name": "test_resnet"},
        "method": {"name": "moco", "widths": [64, 32], "queue": 30, "views_from": "same_place"},
        "loader": {"workers": 0, "batches": {"name": "mixed", "radius_km": 12}},
        "geography": {"name": "georank"},
    }
    return tiny(**content | more)


def test_a_run_counts_its_dates_and_resumes_bitwise(tiny: Callable[..., Recipe], dated: Path, tmp_path: Path) -> None:
    """16 steps are 9 and 7, with two dates and batches by place."""
    said: list[str] = []
    settings = recipe_of(tiny, dated)
    pretrain(settings, tmp_path / "whole", on_note=said.append)
    assert "of 20 images looked at 90.0% have another date of the same place; the others, 10.0%, give" in "\n".join(
        said
    )
    pretrain(settings, tmp_path / "parts", stop_at=9)
    pretrain(resumed(tmp_path / "parts", ["loader.workers=2"]), tmp_path / "parts", resume=True)
    whole, parts = (
        torch.load(run / "checkpoints" / "step_00000016.pt", weights_only=True)["model"]
        for run in (tmp_path / "whole", tmp_path / "parts")
    )
    assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)
    steps, _ = read_log(tmp_path / "whole" / "log.jsonl")
    share = float(np.mean([line["share_alone"] for line in steps]))
    assert 0 < share < 0.3
    assert all(line["share_alone"] + line["share_same_place"] == pytest.approx(1) for line in steps)


def test_no_dates_at_all_is_said(tiny: Callable[..., Recipe], small_manifest: Path, tmp_path: Path) -> None:
    said: list[str] = []
    pretrain(recipe_of(tiny, small_manifest, steps=1), tmp_path / "run", on_note=said.append)
    assert "100.0%, give two views of themselves, as without method.views_from=same_place" in "\n".join(said)


@pytest.mark.slow
def test_two_processes_are_one(tiny: Callable[..., Recipe], dated: Path, tmp_path: Path) -> None:
    """A ViT, which has no batch norm: two processes draw and compute what one does."""
    from terrasieve import recipe

    vit = {"name": "vit_tiny_patch16_224", "patch_px": 8, "depth": 2}
    settings = recipe_of(tiny, dated, encoder=vit, steps=4, batch_size=8)
    pretrain(settings, tmp_path / "one")
    (tmp_path / "recipe.yaml").write_text(recipe.dump(settings))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", "-m", "terrasieve", "pretrain"]
    command += [str(tmp_path / "recipe.yaml"), "--folder", str(tmp_path / "two")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    one, two = (read_log(tmp_path / run / "log.jsonl")[0] for run in ("one", "two"))
    assert [line["share_alone"] for line in one] == [line["share_alone"] for line in two]
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in two], abs=1e-4)
