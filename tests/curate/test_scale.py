"""The script that curates 13 million synthetic rows, on few: what it plants is found, and memory stays small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "scale.py"


@pytest.mark.slow
def test_synthetic_rows_pass_through_every_step(tmp_path: Path) -> None:
    out = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), "--rows", "200000"], capture_output=True, text=True, check=True
    ).stdout
    steps = {line["step"]: line for line in map(json.loads, out.splitlines())}
    assert list(steps) == ["exclude", "exact", "sparse", "near"]
    assert all(step["rows"] == 200_000 for step in steps.values())
    assert steps["exclude"]["dropped"]["too_small"] == pytest.approx(2000, rel=0.15)
    assert steps["exact"]["dropped"]["exact_duplicate"] == pytest.approx(2000, rel=0.15)
    assert steps["sparse"]["dropped"]["low_information"] == pytest.approx(200_000 * 0.05 * 0.75, rel=0.1)
    images = int(steps["near"]["notes"][0].split()[0].replace(",", ""))
    assert images == pytest.approx(200_000 * 0.05 * 2 * 0.9, rel=0.12), "a copy and its original, if both are kept"
    assert max(step["peak_mb"] for step in steps.values()) < 1000
