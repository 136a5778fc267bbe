"""Steps stream manifests: every row stays, reasons are counted, the file is a manifest that others open."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from terrasieve import manifest
from terrasieve.curate import step
from terrasieve.curate.engine import LOST, Local
from terrasieve.errors import UserError


def test_rewrite_streams_every_row(small_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "ROW_GROUP", 7)
    target, seen = tmp_path / "out.parquet", []

    def change(table: pa.Table, first: int) -> pa.Table:
        seen.append((first, len(table)))
        return step.drop(table, np.array([0, 1]), ["blank: flat", "no_data: 90 %"])

    result = step.rewrite(small_manifest, target, change)
    assert seen == [(0, 7), (7, 7), (14, 7), (21, 3)]
    before, after = manifest.read(small_manifest), manifest.read(target)
    assert after["id"].equals(before["id"])
    assert (result.rows, result.kept) == (24, 16)
    assert result.dropped == Counter({"blank": 4, "no_data": 4})
    assert sorted(set(pc.unique(after["reason"]).to_pylist())) == ["", "blank: flat", "no_data: 90 %"]
    assert list(geopandas.read_parquet(target).total_bounds) == pytest.approx(
        list(geopandas.read_parquet(small_manifest).total_bounds)
    )
    again = step.rewrite(target, tmp_path / "again.parquet", lambda table, _: table)
    assert again.dropped == Counter() and again.kept == 16, "what was dropped before is not this step's"


def test_rewrite_leaves_nothing_behind_when_it_fails(small_manifest: Path, tmp_path: Path) -> None:
    def change(table: pa.Table, first: int) -> pa.Table:
        raise UserError("no")

    with pytest.raises(UserError):
        step.rewrite(small_manifest, tmp_path / "out.parquet", change)
    assert list(tmp_path.iterdir()) == []


def work(part: int) -> int:
    if part == 3:
        os._exit(9)
    time.sleep(0.02)
    return part * part


def fails(part: int) -> int:
    raise UserError(f"part {part}")


def test_a_part_that_ends_its_process_costs_no_other() -> None:
    found = dict(Local(2).run(work, range(8)))
    assert found == {k: k * k if k != 3 else LOST for k in range(8)}
    assert type(found[3]) is type(LOST)


def test_errors_of_workers_are_the_callers() -> None:
    with pytest.raises(UserError, match="part"):
        list(Local(2).run(fails, range(4)))
    assert dict(Local(1).run(abs, [-1, -2])) == {0: 1, 1: 2}
