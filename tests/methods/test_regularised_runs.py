"""Runs with geography: what they write, coordinates that are swapped, and the part of the recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from terrasieve import manifest
from terrasieve.errors import UserError
from terrasieve.methods.moco import MoCoSettings
from terrasieve.methods.regularisers import (
    GeoRankSettings,
)
from terrasieve.pretrain import pretrain
from terrasieve.recipe import Recipe

TINY = {"name": "moco", "widths": [32, 16], "queue": 8}


def test_a_run_with_geography_writes_timms_weights_and_its_numbers(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    settings = tiny(
        method=TINY,
        encoder={"name": "test_resnet"},
        geography={"name": "tile2vec"},
        log={"every": 1, "picture_every": 3},
    )
    pretrain(settings, tmp_path / "run")
    import timm
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "run" / "weights.safetensors")
    timm.create_model("test_resnet", in_chans=4, num_classes=0).load_state_dict(weights)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 6
    for line in steps:
        assert {"method_loss", "geography_loss", "neighbour_share", "effective_rank", "spread", "uniformity"} <= set(
            line
        )
    assert (tmp_path / "run" / "pictures" / "step_00000006.png").exists()


def test_swapped_coordinates_are_found_when_the_run_starts(
    tiny: Callable[..., Recipe], small_manifest: Path, tmp_path: Path
) -> None:
    table = manifest.read(small_manifest)
    far = np.full(table.num_rows, -120.0)
    far[:4] = 20.0
    for name, values in (("lat", far), ("lon", np.full(table.num_rows, 35.0))):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    manifest.write(table, tmp_path / "swapped.parquet")
    how = {"method": TINY, "encoder": {"name": "test_resnet"}, "data": str(tmp_path / "swapped.parquet")}
    with pytest.raises(UserError, match=r"20 of 24 rows .* swapped"):
        pretrain(tiny(**how, geography={"name": "georank"}), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
    pretrain(tiny(**how, steps=1), tmp_path / "without")
    nowhere = pa.array(np.full(table.num_rows, np.nan))
    table = table.set_column(table.schema.get_field_index("lat"), "lat", nowhere)
    manifest.write(table, tmp_path / "swapped.parquet")
    with pytest.raises(UserError, match="none of the manifest's 24 images has lon and lat"):
        pretrain(tiny(**how, geography={"name": "georank"}), tmp_path / "run2")


def test_the_union_of_the_recipe_is_discriminated_by_name(tiny: Callable[..., Recipe]) -> None:
    settings = tiny(method=TINY, geography={"name": "georank", "alpha": 0.5, "epsilon": 0.1, "max_km": 3000})
    assert settings.geography == GeoRankSettings() and isinstance(settings.method, MoCoSettings)
    with pytest.raises(UserError, match=r"Did you mean 'georank'"):
        tiny(geography={"name": "geo_rank"})
    with pytest.raises(UserError, match=r"geography\.epsilom: .*Did you mean 'epsilon'"):
        tiny(geography={"name": "georank", "epsilom": 1})
