"""Statistics of a manifest against a naive loop over its rows."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from terrasieve import manifest
from terrasieve.curate import statistics
from terrasieve.errors import UserError

REASONS = ("near_duplicate: of 00ff, 3 bits", "blank: std 0.1", "odd reason without a colon")


def rows_of(count: int = 300) -> list[dict[str, Any]]:
    draw = np.random.Generator(np.random.Philox(key=5))

    def maybe(value: Any) -> Any:
        return None if draw.random() < 0.2 else value

    rows = []
    for number in range(count):
        keep = bool(draw.random() < 0.7)
        label = maybe(f"class {draw.integers(4)}")
        rows.append(
            {
                "id": f"{number:016x}",
                "uri": f"/images/{number}.tif",
                "window": None if number % 3 else [0, 0, 64, 64],
                "width": int(draw.integers(1, 4)) * 64,
                "height": 64,
                "bands": maybe(["red", "green"]),
                "dtype": ["uint8", "uint16"][number % 2],
                "sensor": maybe("s2"),
                "gsd_m": maybe(float(draw.choice([0.30001, 0.3, 10.0, 123.0]))),
                "datetime": maybe(datetime(2015 + int(draw.integers(5)), 1 + int(draw.integers(12)), 3, tzinfo=UTC)),
                "lon": (lon := maybe(float(draw.uniform(-180, 180)))),
                "lat": None if lon is None else float(draw.uniform(-89, 89)),
                "source": maybe(f"source {draw.integers(3)}"),
                "licence": maybe("CC0-1.0"),
                "split": maybe("train"),
                "label": label,
                "labels": None if label else [f"class {n}" for n in range(draw.integers(3))],
                "group": maybe(int(draw.integers(60))),
                "keep": keep,
                "reason": "" if keep else REASONS[draw.integers(3)],
            }
        )
    return rows


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows = rows_of()
    path = tmp_path_factory.mktemp("statistics") / "manifest.parquet"
    manifest.write(manifest.rows_to_table(rows), path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "ROW_GROUP", 37)  # so that tallies are added up over batches
        found = statistics.statistics(path)
    return rows, found


def naive(rows: list[dict[str, Any]], values: Any) -> dict[Any, tuple[int, int]]:
    """Count values(row) -> list of values, as (rows, kept)."""
    all_rows, kept = Counter(), Counter()
    for row in rows:
        for value in values(row):
            all_rows[value] += 1
            kept[value] += row["keep"]
    return {value: (count, kept[value]) for value, count in all_rows.items()}


BY = {
    "source": lambda row: [row["source"]],
    "category": lambda row: [row["label"]] if row["label"] or not row["labels"] else row["labels"],
    "size": lambda row: [f"{row['width']} x {row['height']}"],
    "bands": lambda row: [row["bands"] and ",".join(row["bands"])],
    "dtype": lambda row: [row["dtype"]],
    "sensor": lambda row: [row["sensor"]],
    "gsd_m": lambda row: [row["gsd_m"] and float(f"{row['gsd_m']:.2g}")],
    "year": lambda row: [row["datetime"] and f"{row['datetime']:%Y}"],
    "month": lambda row: [row["datetime"] and f"{row['datetime']:%Y-%m}"],
    "licence": lambda row: [row["licence"]],
    "split": lambda row: [row["split"]],
}


def test_all_columns_are_counted(counted: tuple[list[dict[str, Any]], dict[str, Any]]) -> None:
    assert set(BY) == set(counted[1]["by"])


@pytest.mark.parametrize("name", BY)
def test_counts_equal_a_naive_loop(name: str, counted: tuple[list[dict[str, Any]], dict[str, Any]]) -> None:
    rows, found = counted
    listed = found["by"][name]
    assert {entry["value"]: (entry["rows"], entry["kept"]) for entry in listed} == naive(rows, BY[name])
    assert len(listed) == len({entry["value"] for entry in listed})
    known = [entry for entry in listed if entry["value"] is not None]
    key = (lambda e: e["value"]) if name in ("gsd_m", "year", "month") else (lambda e: -e["rows"])
    assert known == sorted(known, key=key)


def test_totals_equal_a_naive_loop(counted: tuple[list[dict[str, Any]], dict[str, Any]]) -> None:
    rows, found = counted
    kept = [row for row in rows if row["keep"]]
    assert (found["rows"], found["kept"]) == (len(rows), len(kept))
    assert found["windows"] == sum(row["window"] is not None for row in rows)
    assert found["pixels_kept"] == sum(row["width"] * row["height"] for row in kept)
    area_m2 = sum(row["width"] * row["height"] * row["gsd_m"] ** 2 for row in kept if row["gsd_m"])
    assert found["area_kept_km2"] == pytest.approx(area_m2 / 1e6, abs=1e-3)
    dates = sorted(str(row["datetime"].date()) for row in kept if row["datetime"])
    assert [found["first_date"], found["last_date"]] == [dates[0], dates[-1]]
    dropped = Counter((row["source"], row["reason"].split(":")[0]) for row in rows if not row["keep"])
    assert {(entry["source"], entry["code"]): entry["rows"] for entry in found["dropped"]} == dropped
    assert json.loads(json.dumps(found)) == found


def test_groups_and_map_equal_a_naive_loop(counted: tuple[list[dict[str, Any]], dict[str, Any]]) -> None:
    rows, found = counted
    sizes = Counter(row["group"] for row in rows if row["group"] is not None)
    several = {group for group, size in sizes.items() if size > 1}
    assert found["groups"]["groups"] == len(several)
    assert found["groups"]["rows"] == sum(sizes[group] for group in several)
    assert found["groups"]["kept"] == sum(row["keep"] for row in rows if row["group"] in several)
    assert dict(found["groups"]["sizes"]) == Counter(sizes[group] for group in several)
    assert found["map"]["cell_deg"] == 2.0
    assert found["map"]["without"] == sum(row["lon"] is None for row in rows)
    cells = naive(
        [row for row in rows if row["lon"] is not None],
        lambda row: [(float(np.floor(row["lon"] / 2) * 2), float(np.floor(row["lat"] / 2) * 2))],
    )
    assert {(west, south): (n, kept) for west, south, n, kept in found["map"]["cells"]} == cells


def test_close_places_get_small_cells_and_the_date_line_one_side(tmp_path: Path) -> None:
    rows = [row | {"lon": 10 + 0.001 * n, "lat": 50.0} for n, row in enumerate(rows_of(30))]
    manifest.write(manifest.rows_to_table(rows), tmp_path / "near.parquet")
    found = statistics.statistics(tmp_path / "near.parquet")["map"]
    assert found["cell_deg"] < 0.001
    assert len(found["cells"]) > 25
    rows = [row | {"lon": lon, "lat": 90.0} for lon, row in zip((180.0, -180.0), rows_of(2), strict=True)]
    manifest.write(manifest.rows_to_table(rows), tmp_path / "line.parquet")
    (cell,) = statistics.statistics(tmp_path / "line.parquet")["map"]["cells"]
    assert cell[0] == -180
    assert cell[2] == 2


def test_a_column_of_endless_values_is_counted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "DISTINCT", 3)
    rows = [row | {"label": f"text {n}"} for n, row in enumerate(rows_of(20))]
    manifest.write(manifest.rows_to_table(rows), tmp_path / "manifest.parquet")
    listed = statistics.statistics(tmp_path / "manifest.parquet")["by"]["category"]
    assert [entry["value"] for entry in listed][-1] == "(more values)"
    assert sum(entry["rows"] for entry in listed) == 20
    assert len(listed) == 4


def test_pairs_are_counted_by_kind_verdict_and_judge(tmp_path: Path) -> None:
    manifest.write(manifest.rows_to_table(rows_of(5)), tmp_path / "manifest.parquet")
    pairs = [("near", "review", "rule"), ("near", "duplicate", "rule"), ("near", "duplicate", "rule")]
    table = pa.table({name: [pair[n] for pair in pairs] for n, name in enumerate(("kind", "verdict", "by"))})
    pq.write_table(table, tmp_path / "pairs.parquet")
    found = statistics.statistics(tmp_path / "manifest.parquet", tmp_path / "pairs.parquet")["pairs"]
    assert found == [
        {"kind": "near", "verdict": "duplicate", "by": "rule", "pairs": 2},
        {"kind": "near", "verdict": "review", "by": "rule", "pairs": 1},
    ]
    (tmp_path / "pairs.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"pairs\.parquet is no table of pairs"):
        statistics.statistics(tmp_path / "manifest.parquet", tmp_path / "pairs.parquet")


def test_an_empty_manifest_is_counted(tmp_path: Path) -> None:
    manifest.write(manifest.SCHEMA.empty_table(), tmp_path / "manifest.parquet")
    found = statistics.statistics(tmp_path / "manifest.parquet")
    assert (found["rows"], found["kept"], found["map"]["cells"], found["groups"]["largest"]) == (0, 0, [], 0)
