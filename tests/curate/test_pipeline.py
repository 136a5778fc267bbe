"""The pipeline killed at each step, out of disk, given another source: the same manifest, and nothing done twice."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml
from PIL import Image
from rasterio.transform import from_origin

from terrasieve import manifest
from terrasieve.curate import pipeline, recipe
from terrasieve.curate.steps import STEPS
from terrasieve.errors import UserError

KILLED = """
import os, signal, sys
from pathlib import Path
from terrasieve.curate import pipeline, recipe

def main():
    running = []
    def counts(done, total):
        if running[-1] == sys.argv[3]:
            os.kill(os.getpid(), signal.SIGKILL)
    pipeline.curate(recipe.load(sys.argv[1]), Path(sys.argv[2]), pipeline.Progress(running.append, counts))

if __name__ == "__main__":
    main()
"""

INTERRUPTED = """
import os, signal, sys
from terrasieve import cli, display

def main():
    running = []
    def counts(self, done, total):
        if running[-1] == "hash" and done:
            os.killpg(0, signal.SIGINT)
    display.StepsDisplay.begins = lambda self, name: running.append(name)
    display.StepsDisplay.counts = counts
    cli.main()

if __name__ == "__main__":
    main()
"""


def pictures(folder: Path, count: int, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(first, first + count):
        draw = np.random.Generator(np.random.Philox(index))
        coarse = draw.integers(0, 255, (12, 12, 3), np.uint8)
        Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC).save(folder / f"{index:03d}.png")
    return folder


@pytest.fixture
def pile(tmp_path: Path) -> Path:
    """A recipe over pictures, a copy of one, a scene to be sliced, a broken file."""
    folder = pictures(tmp_path / "in" / "a", 12)
    (folder / "copy.png").write_bytes((folder / "003.png").read_bytes())
    (folder / "cut.png").write_bytes((folder / "004.png").read_bytes()[:500])
    draw = np.random.Generator(np.random.Philox(99))
    place = {"crs": "EPSG:32721", "transform": from_origin(300000, 6100000, 10, 10)}
    shape = {"width": 400, "height": 300, "count": 1, "dtype": "uint8"}
    with rasterio.open(tmp_path / "in" / "scene.tif", "w", driver="GTiff", **shape, **place) as file:
        file.write(draw.integers(0, 255, (1, 30, 40), np.uint8).repeat(10, 1).repeat(10, 2))
    return write(tmp_path / "recipe.yaml", [{"name": "in", "paths": str(tmp_path / "in")}])


def write(path: Path, sources: list[dict[str, Any]]) -> Path:
    content = {"name": "t", "workers": 1, "sources": sources, "slice": {"over_px": 128, "size_px": 96, "how": "grid"}}
    path.write_text(yaml.safe_dump(content))
    return path


def finished(folder: Path) -> Counter[str]:
    """Count how often each step was brought to its end."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return Counter(line["ends"] for line in lines if "ends" in line)


def run(path: Path, folder: Path, *overrides: str) -> list[dict[str, Any]]:
    return pipeline.curate(recipe.load(path, overrides), folder)


def digest(folder: Path) -> str:
    return manifest.content_hash(folder / "manifest.parquet")


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if "partial" in path.name or path.name == "spool.parquet"]


@pytest.mark.slow
def test_killed_at_each_step_it_goes_on_where_it_was(pile: Path, tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    folder = tmp_path / "out"
    for step in ["list", "scan", *STEPS]:
        done = subprocess.run([sys.executable, script, pile, folder, step], capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, (step, done.stderr)
        assert not (folder / "manifest.parquet").exists()
    entries = run(pile, folder)
    assert [entry["step"] for entry in entries] == ["scan", *STEPS]
    assert finished(folder) == Counter(["scan", *STEPS]), "each step ends once"
    run(pile, tmp_path / "whole")
    assert digest(folder) == digest(tmp_path / "whole")
    assert leftovers(folder) == []
    run(pile, folder)
    assert finished(folder) == Counter(["scan", *STEPS]), "a run that is done does nothing"


def test_every_row_says_why_it_is_not_kept(pile: Path, tmp_path: Path) -> None:
    entries = run(pile, tmp_path / "out")
    table = manifest.read(tmp_path / "out" / "manifest.parquet")
    for row in table.to_pylist():
        assert row["keep"] == (row["reason"] == "") and (row["keep"] or ":" in row["reason"])
    assert {row["reason"].partition(":")[0] for row in table.to_pylist()} >= {"", "truncated", "sliced"}
    assert entries[-1]["rows"] == len(table) and entries[-1]["kept"] == sum(table["keep"].to_pylist())
    dropped = Counter[str]()
    for entry in entries:
        dropped.update(entry["dropped"])
        path = tmp_path / "out" / "steps" / f"{entry['step']}.parquet"
        assert manifest.read(path, ["keep"]).num_rows == entry["rows"]
    assert sum(dropped.values()) == entries[-1]["rows"] - entries[-1]["kept"]
    assert json.loads((tmp_path / "out" / "steps.json").read_text()) == entries
    assert recipe.load(tmp_path / "out" / "recipe.yaml") == recipe.load(pile)


def test_settings_that_change_redo_the_steps_behind_them(pile: Path, tmp_path: Path) -> None:
    run(pile, tmp_path / "out")
    run(pile, tmp_path / "out", "slice.size_px=64")
    redone = {"slice", *list(STEPS)[list(STEPS).index("slice") :]}
    assert finished(tmp_path / "out") == Counter({name: 1 + (name in redone) for name in ["scan", *STEPS]})
    run(pile, tmp_path / "fresh", "slice.size_px=64")
    assert digest(tmp_path / "out") == digest(tmp_path / "fresh")


def test_a_source_that_is_added_gives_what_a_fresh_run_gives(pile: Path, tmp_path: Path) -> None:
    run(pile, tmp_path / "out")
    old = yaml.safe_load(pile.read_text())["sources"]
    pictures(tmp_path / "more", 5, first=10)  # 10 and 11 are in the first source, too
    write(pile, [{"name": "more", "paths": str(tmp_path / "more")}, *old])
    entries = run(pile, tmp_path / "out")
    assert "taken over, for their files are the same: 15." in " ".join(entries[0]["notes"])
    run(pile, tmp_path / "fresh")
    assert digest(tmp_path / "out") == digest(tmp_path / "fresh")


def test_two_runs_never_write_into_one_folder(pile: Path, tmp_path: Path) -> None:
    def second(name: str) -> None:
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
            run(pile, tmp_path / "out")

    pipeline.curate(recipe.load(pile), tmp_path / "out", pipeline.Progress(begins=second))


@pytest.mark.parametrize("limit", [600, 3_000, 8_000])
def test_a_full_disk_costs_the_step_that_met_it(pile: Path, tmp_path: Path, limit: int) -> None:
    command = [sys.executable, "-m", "terrasieve", "curate", str(pile), "-o", str(tmp_path / "out")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},  # or the limit cuts Python's own files
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2, done.stderr
    assert "Is the disk full" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "manifest.parquet").exists() and leftovers(tmp_path / "out") == []
    run(pile, tmp_path / "out")
    run(pile, tmp_path / "fresh")
    assert digest(tmp_path / "out") == digest(tmp_path / "fresh")


def test_ctrl_c_leaves_a_curation_that_goes_on(pile: Path, tmp_path: Path) -> None:
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    pictures(tmp_path / "in" / "b", 70, first=200)
    command = [sys.executable, script, "curate", pile, "-o", tmp_path / "out", "workers=2", "hash.part=16"]
    done = subprocess.run(command, capture_output=True, text=True, start_new_session=True)
    assert done.returncode == 130, done.stderr
    assert "the same command goes on from here" in done.stderr and "Traceback" not in done.stderr
    assert set(finished(tmp_path / "out")) == {"scan", "exclude", "slice"}
    entries = run(pile, tmp_path / "out", "hash.part=16")
    known = next(entry["notes"][0] for entry in entries if entry["step"] == "hash")
    assert ", 0 known from before" not in known, "what was hashed before the interruption stays"
    run(pile, tmp_path / "fresh", "hash.part=16")
    assert digest(tmp_path / "out") == digest(tmp_path / "fresh")


def test_a_folder_that_changes_while_it_is_curated(pile: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in" / "a"

    def change(entry: dict[str, Any], before: bool) -> None:
        if entry["step"] == "slice":
            (folder / "001.png").unlink()
            (folder / "002.png").write_bytes((folder / "007.png").read_bytes())
            (folder / "005.png").write_bytes(b"no image any more")
            pictures(folder, 1, first=50)

    pipeline.curate(recipe.load(pile), tmp_path / "out", pipeline.Progress(ends=change))
    table = manifest.read(tmp_path / "out" / "manifest.parquet")
    rows = {Path(row["uri"]).name: row for row in table.to_pylist()}
    assert {name: rows[name]["reason"].partition(":")[0] for name in ("001.png", "002.png", "005.png")} == {
        "001.png": "missing",
        "002.png": "changed",
        "005.png": "not_an_image",
    }
    assert "050.png" not in rows
    run(pile, tmp_path / "out")
    run(pile, tmp_path / "fresh")
    assert digest(tmp_path / "out") == digest(tmp_path / "fresh"), "a rerun sees the folder as it is now"


def test_the_folder_lies_outside_its_sources(pile: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lies inside"):
        run(pile, tmp_path / "in" / "a" / "out")
    assert not (tmp_path / "in" / "a" / "out").exists()


def test_broken_bookkeeping_is_named(pile: Path, tmp_path: Path) -> None:
    run(pile, tmp_path / "out")
    (tmp_path / "out" / "steps.json").write_text("[")
    with pytest.raises(UserError, match=r"steps\.json"):
        run(pile, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": []}, "sources"),
        ({"sources": [{"name": "a", "paths": "."}, {"name": "a", "paths": "."}]}, "two sources are named 'a'"),
        ({"exclude": {"max_px": 100}}, "would be dropped uncut"),
        ({"slise": {}}, "Did you mean 'slice'"),
    ],
)
def test_recipes_that_cannot_be(pile: Path, change: dict[str, Any], message: str) -> None:
    pile.write_text(yaml.safe_dump(yaml.safe_load(pile.read_text()) | change))
    with pytest.raises(UserError, match=message):
        recipe.load(pile)


def recipes() -> Iterator[Path]:
    return (Path(__file__).resolve().parents[2] / "recipes").glob("curate_*.yaml")


@pytest.mark.parametrize("path", recipes(), ids=lambda path: path.stem)
def test_recipes_of_the_project_load(path: Path) -> None:
    assert recipe.load(path).sources
