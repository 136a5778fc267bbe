"""The report of a run in every state, read as text; the browser test is beside it."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from terrasieve.errors import UserError
from terrasieve.report import Figure, write_report
from terrasieve.report.curves import Axis, compact, curve
from terrasieve.report.run_folder import read_run

from .run_of import HOSTILE, RECIPE, write_run


class Tags(HTMLParser):
    """Collects the tags and the addresses of a page, and checks that it is well nested."""

    VOID = frozenset(("meta", "link", "img", "br", "line", "circle", "polyline", "polygon"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def page_of(folder: Path) -> str:
    path = write_report(folder)
    assert path == folder / "report.html" and not list(folder.glob(".*partial"))
    return path.read_text()


def test_page_holds_everything_and_asks_for_nothing(tmp_path: Path) -> None:
    text = page_of(write_run(tmp_path / "run"))
    tags = Tags(text)
    assert "script" not in tags.tags and tags.tags.count("section") == 7 and tags.tags.count("svg") == 5
    assert all(address.startswith(("data:", "#")) for address in tags.addresses)
    assert re.findall(r"url\(|@import|https?://", text) == []
    for stated in (
        "unfinished",
        "560",
        "of 600",
        "0:04:55",
        "in 2 sessions",
        "61.2",
        "[56.7, 65.5]",
        "random init 33.8",
        "manifest hash",
        "95b0039a295c59aa321f24b6fa12ca82",
        "python 3.11, torch 2.13.0",
        "after step 300",
    ):
        assert stated in text, stated


def test_what_is_hostile_is_text(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a<b>&'run")
    text = write_report(
        folder, [Figure("<script>x</script>", "<img src=x onerror=y>", "<svg><script/></svg>")]
    ).read_text()
    assert "script" not in Tags(text).tags
    assert HOSTILE not in text and "&lt;script&gt;document.title=" in text
    assert "<b>.yaml" not in text and "recipes/&lt;b&gt;.yaml" in text
    assert "# <i>" not in text and "# &lt;i&gt;" in text and "a<b>&" not in text and "<img src=x" not in text


def test_log_survives_a_kill_a_resume_and_a_gap(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    steps = [line["step"] for line in run.steps]
    assert steps == [*range(2, 402, 2), *range(460, 562, 2)]
    assert run.resumes == [300] and len(run.skips) == 3 and run.state == "unfinished"
    assert run.seconds == pytest.approx(0.5 * 330 + 0.5 * 260)
    assert run.problems == ["half-written or foreign lines of log.jsonl, left out: 1"]
    assert dict(run.numbers("loss"))[240] is None


@pytest.mark.parametrize(
    ("ending", "state"), [("finish", "finished"), ("interrupted", "interrupted"), ("stop", "stopped")]
)
def test_state_is_that_of_the_last_session(tmp_path: Path, ending: str, state: str) -> None:
    folder = write_run(tmp_path / "run")
    with (folder / "log.jsonl").open("a") as log:
        log.write("\n" + json.dumps({"event": ending, "step": 600}) + "\n")
    assert read_run(folder).state == state
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps({"event": "resume", "step": 600}) + "\n")
    assert read_run(folder).state == "unfinished"


def test_a_run_without_scores_says_how_to_get_them(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "scores.json").unlink()
    assert "terrasieve evaluate" in page_of(folder)


def test_each_missing_or_broken_part_leaves_a_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for name, content in (("scores.json", "[{}]"), ("environment.json", "["), ("recipe.yaml", "a: [")):
        (folder / name).write_text(content)
    (folder / "pictures" / "step_00000540.png").write_bytes(b"\x89PNG\r\n\x1a\n half")
    text = page_of(folder)
    for stated in (
        "a score lacks",
        "environment.json cannot be read",
        "recipe.yaml cannot be read",
        "step_00000540.png",
    ):
        assert f"Note: {stated}" in text
    assert "After step 480" in text  # the latest of the pictures that can be read
    for name in ("scores.json", "environment.json", "recipe.yaml"):
        (folder / name).unlink()
    shutil.rmtree(folder / "pictures")
    (folder / "log.jsonl").write_text("")
    Tags(page_of(folder))
    with pytest.raises(UserError, match="no run folder"):
        write_report(tmp_path)


def test_pictures_are_thinned_evenly(tmp_path: Path) -> None:
    text = page_of(write_run(tmp_path / "run", pictures=40))
    steps = [int(step.replace(",", "")) for step in re.findall(r"<figcaption>step ([\d,]+)<", text)]
    assert steps == [60, 420, 840, 1260, 1620, 1980] and "After step 2,400" in text and "7 of 40 pictures" in text


def test_a_detectors_page_names_its_pictures_and_its_metric(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "recipe.yaml").write_text(RECIPE.replace("selective_mae", "faster_rcnn"))
    about = {"ratio": 0.123456789, "notes": ["random split; neighbours may leak", "few"]}
    score = {"encoder": "faster_rcnn", "protocol": "fine-tuned", "value": 0.5, "low": 0.4, "high": 0.6, "count": 4}
    rows = [score | {"metric": name, "settings": about} for name in ("ap50", "ap50/cattle")]
    (folder / "scores.json").write_text(json.dumps(rows))
    text = page_of(folder)
    for stated in (
        "true boxes",
        "found boxes",
        "AP50 of each class",
        "ratio 0.1235; random split; neighbours may leak; few",
    ):
        assert stated in text, stated
    assert "IoU of each class" not in text and "neither encoded nor predicted" not in text


def test_curve_places_points_and_breaks_at_gaps() -> None:
    points: list[tuple[int, float | None]] = [
        (0, 1.0),
        (10, 2.0),
        (20, None),
        (30, 2.0),
        (40, 3.0),
        (90, 3.0),
        (100, 0.0),
    ]
    svg = curve("x<y", points, [40], (0, 100))
    lines = re.findall(r'class="curve" points="([^"]+)"', svg)
    assert [len(line.split()) for line in lines] == [2, 2, 2]
    assert svg.count('class="bad"') == 1 and svg.count('class="mark"') == 1 and "x&lt;y" in svg
    start, stop = (float(lines[i].split()[j].split(",")[0]) for i, j in ((0, 0), (2, 1)))
    assert (start, stop) == (50.0, 390.0)
    heights = [float(pair.split(",")[1]) for line in lines for pair in line.split()]
    assert heights[3] == min(heights) and heights[5] == max(heights)  # svg counts from the top
    assert curve("x", [(1, None)], [], (0, 1)) == ""


def test_long_curves_keep_their_spikes() -> None:
    points: list[tuple[int, float | None]] = [(step, 1.0 + (step == 50_321)) for step in range(100_000)]
    svg = curve("loss", points, [], (0, 99_999))
    assert len(svg) < 20_000
    band = re.search(r'class="band" points="([^"]+)"', svg)
    assert band is not None
    tops = [float(pair.split(",")[1]) for pair in band[1].split()]
    assert tops.count(min(tops)) == 1


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0, 1, False, [0, 0.25, 0.5, 0.75, 1]),
        (0, 560, False, [0, 200, 400]),
        (1e-4, 1, True, [1e-4, 1e-3, 1e-2, 1e-1, 1]),
        (-3, 7, False, [-2.5, 0, 2.5, 5]),
    ],
)
def test_ticks_are_round(low: float, high: float, log: bool, expected: list[float]) -> None:
    assert Axis(low, high, 0, 100, log).ticks() == pytest.approx(expected)


def test_numbers_are_compact() -> None:
    written = [compact(v) for v in (0, 0.12345, 12.345, 1234.5, 123456, 2.5e6, 1.5e-4, -0.5)]
    assert written == ["0", "0.123", "12.3", "1234", "123k", "2.5M", "0.00015", "-0.5"]
