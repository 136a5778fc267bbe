"""The datasheet: what it knows, what it asks, and that a person's answers outlive it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from terrasieve.cli import app
from terrasieve.errors import UserError
from terrasieve.report.datasheet import write_datasheet
from terrasieve.report.datasheet_answers import FILLED
from terrasieve.report.datasheet_questions import KEYS, SECTIONS
from terrasieve.report.markdown import share

from .curated import HOSTILE, write_curation


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("datasheet")
    return write_curation(root / "curated", root / "images")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "curated"))


def section(text: str, words: str) -> str:
    return text.split(f"### {words}\n")[1].split("\n### ")[0].split("\n## ")[0].strip()


def test_keys_are_unique_and_every_answer_has_a_question() -> None:
    assert len(set(KEYS)) == len(KEYS)
    assert set(FILLED) <= set(KEYS)
    assert list(SECTIONS) == [
        *("Motivation", "Composition", "Collection", "Preprocessing", "Uses", "Distribution", "Maintenance")
    ]


def test_the_sheet_says_what_the_files_know(folder: Path) -> None:
    sheet = write_datasheet(folder)
    text = sheet.markdown.read_text()
    assert "34 kept of 41 scanned." in section(text, "How many items are there, and from where?")
    assert "| survey | 15 | 20 |" in section(text, "How many items are there, and from where?")
    assert "| field | 14 | 20 |" in section(text, "Which categories, and how many of each?")
    dropped = section(text, "What was dropped, and why?")
    assert re.search(r"\| near\\_duplicate \| survey \| 4 \|", dropped)
    assert "| scan | unreadable 1 | 41 | 40 |" in section(text, "What was done to the items?").replace("\\", "")
    assert "1 pair waits" in section(text, "Which errors, noise and repetition remain?")
    assert "<https://example.org/a>" in section(text, "How was each item acquired?")
    assert "25 kept images have no licence" in section(text, "Under which licences?")
    assert section(text, "What was it made for?").startswith("**TO BE ANSWERED** (`purpose`)")
    asked = text.count("**TO BE ANSWERED** (`")
    assert asked == sheet.questions - sheet.answered
    assert (sheet.html.read_text().count("<b>TO BE ANSWERED</b>"), sheet.questions) == (asked, len(KEYS))


def test_nothing_in_a_manifest_or_recipe_becomes_markup(folder: Path) -> None:
    html = write_datasheet(folder).html.read_text()
    assert "<script" not in html
    assert "&lt;script&gt;document.title='owned'&lt;/script&gt;|*x*" in html
    assert 'href="javascript' not in html
    assert not re.search(r'src="(?!data:)', html)


def test_answers_outlive_the_sheet(folder: Path) -> None:
    first = write_datasheet(folder)
    assert set(yaml.safe_load(first.answers.read_text())) == {key for key in KEYS if not known(first, key)}
    answers = {"purpose": "To **test**.\n\n- one\n- two", "count": "Counted twice.", "makers": "  "}
    first.answers.write_text(yaml.safe_dump(answers))
    second = write_datasheet(folder)
    text = second.markdown.read_text()
    assert second.answered == first.answered + 1
    assert section(text, "What was it made for?") == answers["purpose"]
    assert section(text, "How many items are there, and from where?").endswith("Counted twice.")
    assert "<strong>test</strong>" in second.html.read_text()
    assert yaml.safe_load(second.answers.read_text()) == answers
    assert write_datasheet(folder).markdown.read_text() == text
    assert not second.notes


def known(sheet, key: str) -> bool:  # type: ignore[no-untyped-def]
    return f"(`{key}`)" not in sheet.markdown.read_text()


def test_a_sheet_edited_by_hand_is_put_aside(folder: Path) -> None:
    sheet = write_datasheet(folder)
    edited = sheet.markdown.read_text().replace("**TO BE ANSWERED** (`funding`)", "Nobody paid.", 1)
    for number in (1, 2):
        sheet.markdown.write_text(edited)
        again = write_datasheet(folder)
        assert again.notes and f"DATASHEET.edited-{number}.md" in again.notes[0]
        assert (folder / f"DATASHEET.edited-{number}.md").read_text() == edited
    assert not write_datasheet(folder).notes


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("purpos: x", "did you mean 'purpose'"),
        ("zzz: x", "the keys are purpose, makers"),
        ("purpose: [1]", r"the answer to 'purpose' is \[1\]"),
        ("purpose: x\npurpose: y", "stands twice"),
    ],
)
def test_wrong_answers_are_named(folder: Path, content: str, says: str) -> None:
    (folder / "datasheet_answers.yaml").write_text(content)
    with pytest.raises(UserError, match=says):
        write_datasheet(folder)


def test_a_manifest_alone_has_a_sheet_by_command(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "manifest.parquet", tmp_path / "alone.parquet")
    said = CliRunner().invoke(app, ["datasheet", str(tmp_path / "alone.parquet"), "-o", str(tmp_path / "sheet")])
    assert said.exit_code == 0, said.output
    text = (tmp_path / "sheet" / "DATASHEET.md").read_text()
    assert text.startswith("# Datasheet: alone\n")
    assert "(`processing`)" in text and "(`acquisition`)" in text, "no steps and no recipe: a person is asked"
    assert "are for you: write answers into" in said.output


def test_a_folder_without_a_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no manifest\.parquet"):
        write_datasheet(tmp_path)


def test_shares_are_never_rounded_to_all_or_nothing() -> None:
    assert [share(*pair) for pair in ((0, 9), (9, 9), (1, 13_000_000), (12_999_999, 13_000_000), (1, 4), (0, 0))] == [
        *("0 %", "100 %", "< 0.1 %", "> 99.9 %", "25 %", "0 %")
    ]


def test_the_hostile_name_is_what_the_tests_think(folder: Path) -> None:
    assert HOSTILE in yaml.safe_load((folder / "recipe.yaml").read_text())["sources"][0]["name"]
