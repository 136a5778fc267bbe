"""The page of a sweep in every state, its CSV and its figures."""

from __future__ import annotations

import csv
import re
import xml.etree.ElementTree as ET
from pathlib import Path

from PIL import Image

from terrasieve.report import sweep_figures as figures
from terrasieve.report import sweep_numbers as numbers
from terrasieve.report.sweep_page import write_sweep_page

from .sweep_rows import sweep_content
from .test_report import Tags


class SvgTags(Tags):
    VOID = Tags.VOID | {"use", "path"}


def test_page_holds_everything_and_asks_for_nothing(tmp_path: Path) -> None:
    path = write_sweep_page(tmp_path, sweep_content())
    text = path.read_text()
    tags = SvgTags(text)
    assert "script" not in tags.tags and tags.tags.count("svg") == len(figures.PANELS)
    assert all(address.startswith(("data:", "#")) for address in tags.addresses)
    assert "@import" not in text and not re.findall(r"url\((?!#)", text)
    for stated in (
        "21 of 21",
        "Static beats random dropping at 0.5",
        "static: up to 0.5 (training 1.80 ×, inference 1.80 × the images/s at 2.00 × fewer FLOPs)",
        "81.0 [78.5, 83.5]",
        "-3.1 [-3.3, -2.9]",
        "98.8%",
        "21 done.",
        "a machine",
    ):
        assert stated in text, stated
    assert not list(tmp_path.rglob(".*partial"))
    assert "#1d6b4f" not in text[text.index("<svg") :].lower()  # colours come from the style sheet


def test_files_for_documents(tmp_path: Path) -> None:
    write_sweep_page(tmp_path, sweep_content())
    made = {path.name for path in (tmp_path / "figures").iterdir()}
    assert made == {"overview.png", "overview.svg", *(f"{panel.name}.svg" for panel in figures.PANELS)}
    for path in (tmp_path / "figures").glob("*.svg"):
        root = ET.fromstring(path.read_text())
        words = "".join(root.itertext())
        assert "random" in words and "undropped" in words, path
        assert "static" in words and "dynamic" in words
    with Image.open(tmp_path / "figures" / "overview.png") as image:
        assert image.width > 2 * image.height


def test_csv_has_every_run(tmp_path: Path) -> None:
    content = sweep_content()
    write_sweep_page(tmp_path, content)
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [row["run"] for row in rows] == [run["run"] for run in content["runs"]]
    last = rows[-1]
    assert float(last["overall_accuracy"]) == 0.75 and float(last["overall_accuracy_high"]) == 0.78
    assert float(last["train_images_per_s"]) == 400 and float(last["inference_kept_share"]) == 0.25


def test_points_stand_where_the_rows_are() -> None:
    content = sweep_content()
    cells = numbers.cells(content["runs"], content["costs"], "overall_accuracy")
    axes = figures.draw(cells, [figures.PANELS[1]], "overall_accuracy").axes[0]
    line = next(line for line in axes.get_lines() if line.get_label() == "random")
    assert [round(x) for x in line.get_xdata()] == [100, 200, 400]  # from the undropped model on
    assert [round(y, 6) for y in line.get_ydata()] == [81.0, 80.0, 72.0]
    ring = next(line for line in axes.get_lines() if line.get_label() == "Pareto front")
    points = [(c.measured("train", "images_per_s"), c.score.mean) for c in cells]
    assert len(ring.get_xdata()) == sum(numbers.pareto(points)) < len(cells)


def test_page_without_costs_or_without_scores(tmp_path: Path) -> None:
    content = sweep_content(seeds=1) | {"costs": []}
    assert SvgTags(write_sweep_page(tmp_path, content).read_text()).tags.count("svg") == 1
    for run in content["runs"]:
        run |= {"state": "failed", "scores": {}, "message": "<script>disk full</script>", "seconds": None}
    text = write_sweep_page(tmp_path, content).read_text()
    tags = SvgTags(text)
    assert "svg" not in tags.tags and "script" not in tags.tags
    assert "&lt;script&gt;disk full" in text and "No run has finished yet" in text
