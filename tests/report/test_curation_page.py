"""The page of a curation: what it counts, which examples it shows, and that it opens whatever is missing."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from terrasieve import manifest
from terrasieve.curate.pairs import PAIRS
from terrasieve.curate.step import codes
from terrasieve.errors import UserError
from terrasieve.report import curation_examples as examples
from terrasieve.report.curation_bars import band_names, bars
from terrasieve.report.curation_page import write_curation_report

from .curated import write_curation


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("curation")
    return write_curation(root / "curated", root / "images")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "curated"))


def test_page_has_every_part_and_no_way_out(folder: Path) -> None:
    html = write_curation_report(folder).read_text()
    for part in ("steps", "dropped", "duplicates", "composition", "map", "recipe"):
        assert f'<section id="{part}">' in html, part
    assert "<script" not in html
    assert not re.search(r'(?:src|href)="(?!data:|#)', html)
    assert "terrasieve review" in html and "1 pair waits for a person" in html
    assert re.search(r"<dt>Kept</dt><dd class=\"value\">34</dd>", html)
    for code in ("near duplicate", "low information", "blank"):
        assert f'<h3 class="reason">{code}' in html
    assert html.count('class="nothing"') >= 1, "the broken file has no picture but a place"


def test_page_opens_without_steps_pairs_and_recipe(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "manifest.parquet", tmp_path / "alone.parquet")
    html = write_curation_report(tmp_path / "alone.parquet", tmp_path / "page").read_text()
    assert 'id="steps"' not in html and 'id="recipe"' not in html and 'class="waits"' not in html
    table = manifest.SCHEMA.empty_table()
    manifest.write(table, tmp_path / "empty.parquet")
    assert "Nothing." in write_curation_report(tmp_path / "empty.parquet", tmp_path / "empty").read_text()


def test_page_says_that_images_are_gone(folder: Path, tmp_path: Path) -> None:
    table = manifest.read(folder / "manifest.parquet")
    uris = pa.array([f"/gone/{n}.jpg" for n in range(len(table))])
    manifest.write(table.set_column(table.schema.get_field_index("uri"), "uri", uris), folder / "manifest.parquet")
    html = write_curation_report(folder).read_text()
    assert html.count("not readable") >= 6


def test_statistics_are_counted_once_and_anew_when_the_manifest_changes(folder: Path) -> None:
    write_curation_report(folder)
    path = folder / "statistics.json"
    path.write_text(path.read_text().replace('"rows": 41', '"rows": 4100', 1))
    assert "4,100" in write_curation_report(folder).read_text(), "read, not counted"
    manifest.write(manifest.read(folder / "manifest.parquet").slice(0, 30), folder / "manifest.parquet")
    assert "4,100" not in write_curation_report(folder).read_text()


def test_examples_do_not_depend_on_the_order_of_rows(folder: Path, tmp_path: Path) -> None:
    table = manifest.read(folder / "manifest.parquet")
    manifest.write(table.take(list(range(len(table)))[::-1]), tmp_path / "other.parquet")
    first, second = (examples.of_reasons(path, 3) for path in (folder / "manifest.parquet", tmp_path / "other.parquet"))
    assert {code: [row["id"] for row in rows] for code, rows in first.items()} == {
        code: [row["id"] for row in rows] for code, rows in second.items()
    }
    gone = table.filter(pc.invert(table["keep"]))
    code = codes(gone["reason"])
    for name, rows in first.items():
        ids = sorted(gone.filter(pc.equal(code, name))["id"].to_pylist())[:3]
        assert [row["id"] for row in rows] == ids


def test_groups_are_the_largest_with_kept_images_first(folder: Path) -> None:
    table = manifest.read(folder / "manifest.parquet")
    group = pa.array([7 if n < 9 else 3 if n < 12 else 5 if n == 20 else None for n in range(len(table))], pa.int64())
    manifest.write(table.set_column(table.schema.get_field_index("group"), "group", group), folder / "manifest.parquet")
    found = examples.of_groups(folder / "manifest.parquet", members=6)
    assert [size for size, _ in found] == [9, 3]
    kept = [row["keep"] for row in found[0][1]]
    assert kept == sorted(kept, reverse=True) and len(kept) == 6 and sum(kept) == 5


def test_pairs_nearest_to_the_line_are_shown(tmp_path: Path) -> None:
    rows = [
        {"id_a": f"{n:04x}", "id_b": "ffff", "kind": "near", "verdict": verdict, "correlation": n / 100}
        for n in range(90)
        for verdict in ("duplicate", "different")
    ]
    rows.append({"id_a": "a", "id_b": "b", "kind": "exact", "verdict": "duplicate"})
    pq.write_table(pa.Table.from_pylist(rows, schema=PAIRS), tmp_path / "pairs.parquet", row_group_size=20)
    found = examples.of_pairs(tmp_path / "pairs.parquet", 3)
    alike = {place: [round(100 * (row["correlation"] or 0)) for row in listed] for place, listed in found.items()}
    assert alike == {
        ("near", "duplicate"): [0, 1, 2],
        ("near", "different"): [89, 88, 87],
        ("exact", "duplicate"): [0],
    }


def test_rows_are_found_by_id_in_any_row_group(folder: Path, tmp_path: Path) -> None:
    table = pq.read_table(folder / "manifest.parquet")
    pq.write_table(table, tmp_path / "parts.parquet", row_group_size=4)
    ids = [table["id"][row].as_py() for row in (40, 3, 17)]
    found = examples.by_id(tmp_path / "parts.parquet", [*ids, "absent"])
    assert set(found) == set(ids)
    assert found[ids[1]]["uri"] == table["uri"][3].as_py()


def entry(value: object, rows: int = 2, kept: int = 1) -> dict[str, object]:
    return {"value": value, "rows": rows, "kept": kept}


def test_long_lists_of_sizes_and_distances_become_classes() -> None:
    sizes = [entry(f"{side} x {side}") for side in range(100, 300)] + [entry(None)]
    drawn = bars(sizes, "size")["bars"]
    assert [(bar.name, bar.rows, bar.kept) for bar in drawn] == [
        ("side 64 to 128", 56, 28),
        ("side 128 to 256", 256, 128),
        ("side 256 to 512", 88, 44),
        ("(unknown)", 2, 1),
    ]
    gsd = bars([entry(0.1 * n) for n in range(1, 30)], "gsd_m")["bars"]
    assert sum(bar.rows for bar in gsd) == 58
    assert gsd[0].name == "0.1 to 0.3"


def test_bars_are_parts_of_the_longest() -> None:
    drawn = bars([entry("a", 8, 2), entry(None, 4, 4)], "source")["bars"]
    assert [(bar.kept_percent, bar.gone_percent) for bar in drawn] == [(25, 75), (50, 0)]
    assert bars([entry(None, 4, 4)], "sensor")["bars"] == []
    many = bars([entry(str(n)) for n in range(30)], "category")
    assert (len(many["bars"]), many["left_out"]) == (14, 16)


def test_many_bands_are_named_by_their_ends() -> None:
    assert band_names("red,green") == "red, green"
    assert band_names(",".join(f"b{n}" for n in range(12))) == "b0, ..., b11 (12 bands)"


def test_a_damaged_list_of_steps_is_named(folder: Path) -> None:
    (folder / "steps.json").write_text('[{"rows": 3}]')
    with pytest.raises(UserError, match=r"steps\.json is not a list of steps"):
        write_curation_report(folder)
