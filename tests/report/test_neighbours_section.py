"""The report's section on neighbours: numbers of the survey, drawings inside their frames, broken files said."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from terrasieve.report.neighbours import neighbours
from terrasieve.report.run_folder import Run

SURVEY = {
    "images": 2000, "sample": 1000, "kinds": {"adjacent": 320, "alone": 680}, "overlap": 0.25,
    "doubts": {"no place": 3}, "examples": {"no place": ["<b>.tif"]},
    "pairs": [
        {"kind": "adjacent", "boxes": [[10.0, 50.1, 10.1, 50.0], [10.1, 50.1, 10.2, 50.0]]},
        {"kind": "alone", "boxes": [[11.0, 51.1, 11.1, 51.0], [11.05, 51.1, 11.1, 51.05]]},
    ],
}  # fmt: skip


def run_with(folder: Path, content: object) -> Run:
    (folder / "neighbours.json").write_text(json.dumps(content))
    return Run(folder, steps=[{"step": n, "share_adjacent": 0.25 * n, "share_alone": 1 - 0.25 * n} for n in (1, 2)])


def test_shares_and_drawings(tmp_path: Path) -> None:
    made = neighbours(run_with(tmp_path, SURVEY))
    assert made is not None
    assert [row[:3] for row in made["rows"]] == [
        ("adjacent", "32.0%", "37.5%"),
        ("alone: two crops of itself", "68.0%", "62.5%"),
    ]
    assert made["map"].count('class="crop') == 4
    around = [
        [float(v) for v in box] for box in re.findall(r'other" x="(.*?)" y="(.*?)" width="(.*?)" h', made["around"])
    ]
    # side 420, two anchor's sides to each side: the anchor from 157.5 to 262.5, the adjacent one to its right
    assert around == [pytest.approx([262.5, 157.5, 105.0], abs=0.06), pytest.approx([210.0, 157.5, 52.5], abs=0.06)]
    assert neighbours(Run(tmp_path / "none")) is None


@pytest.mark.parametrize(
    "broken",
    [[], {"images": 1}, SURVEY | {"pairs": [{"kind": "x", "boxes": []}]}, SURVEY | {"pairs": [{"kind": "near"}]},
     SURVEY | {"pairs": [{"kind": "near", "boxes": [[1, 1, 1, 1]]}]}],
)  # fmt: skip
def test_a_broken_survey_is_a_problem_not_an_end(tmp_path: Path, broken: object) -> None:
    run = run_with(tmp_path, broken)
    assert neighbours(run) is None
    assert run.problems[0].startswith("neighbours.json cannot be read")
