"""What is dropped by header: each rule against rows that break it, and every reason says by how much."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from terrasieve import manifest
from terrasieve.curate.engine import Local
from terrasieve.curate.exclude import ExcludeSettings, exclude
from terrasieve.curate.step import Work

GOOD = {"width": 256, "height": 256, "bands": ["red", "green", "blue"], "dtype": "uint8", "keep": True, "reason": ""}
BAD: dict[str, dict[str, Any]] = {
    "too_small: 300 x 63 px, less than 64": {"width": 300, "height": 63},
    "too_large: 1025 x 70 px, more than 1024": {"width": 1025, "height": 70},
    "modality: 1 bands": {"bands": ["gray"]},
    "modality: 14 bands": {"bands": [f"band_{i}" for i in range(14)]},
    "modality: no blue": {"bands": ["red", "green", "nir"]},
    "modality: dtype is float64": {"dtype": "float64"},
    "modality: sensor is sonar": {"sensor": "sonar"},
    "licence: licence is CC-BY-NC-4.0": {"licence": "CC-BY-NC-4.0"},
    "licence: licence is not known": {"licence": None},
    "label: label is cloud": {"label": "cloud"},
    "outside: longitude 9.00000, latitude 51.00000": {"lon": 9.0, "lat": 51.0},
    "outside: longitude nan, latitude nan": {"lon": None, "lat": None},
}
PLACE = {"lon": 179.5, "lat": 10.0, "licence": "CC0"}
SETTINGS = ExcludeSettings(
    min_bands=3,
    max_bands=13,
    bands=("red", "blue"),
    dtypes=("uint8", "uint16"),
    drop_sensors=("sonar",),
    licences=("CC0",),
    drop_labels=("cloud",),
    within=(170.0, -20.0, -170.0, 20.0),
)


def apply(rows: list[dict[str, Any]], settings: ExcludeSettings, folder: Path) -> list[str]:
    rows = [{"id": f"{i:016x}", "uri": f"/{i}", **row} for i, row in enumerate(rows)]
    manifest.write(manifest.rows_to_table(rows), folder / "in.parquet")
    result = exclude(folder / "in.parquet", folder / "out.parquet", settings, Work(folder, Local(1)))
    table = manifest.read(folder / "out.parquet", empty_ok=True)
    assert table["keep"].to_pylist() == [reason == "" for reason in table["reason"].to_pylist()]
    assert (result.rows, result.kept) == (len(rows), sum(table["keep"].to_pylist()))
    were = sum(row["keep"] for row in rows)
    assert sum(result.dropped.values()) == were - result.kept
    return [str(reason) for reason in table["reason"].to_pylist()]


def test_each_rule_names_what_it_drops(tmp_path: Path) -> None:
    rows = [GOOD | PLACE | change for change in BAD.values()]
    good = [GOOD | PLACE, GOOD | PLACE | {"lon": -171.0}, GOOD | PLACE | {"width": 64, "height": 1024}]
    assert apply(rows + good, SETTINGS, tmp_path) == [*BAD, "", "", ""]


def test_unknown_is_wanted_unless_a_list_says_what_is(tmp_path: Path) -> None:
    assert apply([GOOD], ExcludeSettings(), tmp_path) == [""]
    assert apply([GOOD], ExcludeSettings(drop_licences=("CC0",), drop_sensors=("x",)), tmp_path) == [""]
    assert apply([GOOD], ExcludeSettings(sensors=("x",)), tmp_path) == ["modality: sensor is not known"]


def test_what_was_dropped_before_keeps_its_reason(tmp_path: Path) -> None:
    gone = {"keep": False, "reason": "truncated: cut", "width": None, "height": None, "bands": None}
    assert apply([GOOD, GOOD | gone, GOOD | {"width": 2}], ExcludeSettings(), tmp_path) == [
        "",
        "truncated: cut",
        "too_small: 2 x 256 px, less than 64",
    ]


@pytest.mark.parametrize(
    "wrong", [{"max_px": 32}, {"min_bands": 4, "max_bands": 3}, {"within": (0, 50, 10, 40)}, {"max_no_data": 2}]
)
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ExcludeSettings(**wrong)


def test_rules_agree_with_a_loop(tmp_path: Path) -> None:
    draw = np.random.Generator(np.random.Philox(3))
    rows = [GOOD | {"width": int(w), "height": int(h)} for w, h in draw.integers(1, 300, (500, 2))]
    settings = ExcludeSettings(min_px=100, max_px=200)
    expected = [
        "too_small" if min(r["width"], r["height"]) < 100 else "too_large" if max(r["width"], r["height"]) > 200 else ""
        for r in rows
    ]
    assert [reason.partition(":")[0] for reason in apply(rows, settings, tmp_path)] == expected
