"""The datasheet of a data set: DATASHEET.md and DATASHEET.html, filled from the manifest, gaps left to a person.

Last step of a curation. What a person answers stands in ``datasheet_answers.yaml``, which is written once and never
again, so that the sheet can be made anew. Source of the topics: Gebru et al., "Datasheets for Datasets", CACM 2021.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from pathlib import Path
from typing import Any, NamedTuple

from markdown_it import MarkdownIt
from markupsafe import Markup

from terrasieve import settings_file
from terrasieve.curate.step import Tick
from terrasieve.errors import UserError
from terrasieve.files import written_aside
from terrasieve.report import curation_folder
from terrasieve.report.curation_folder import Curation
from terrasieve.report.datasheet_answers import FILLED
from terrasieve.report.datasheet_questions import KEYS, SECTIONS, Question
from terrasieve.report.markdown import plain
from terrasieve.report.render import write_page

ANSWERS = "datasheet_answers.yaml"
OPEN = "TO BE ANSWERED"
_STAMP = re.compile(r"\n<!-- made by terrasieve, ([0-9a-f]{32}) -->\n\Z")


class Datasheet(NamedTuple):
    """What was written.

    Attributes:
        markdown, html, answers: files.
        answered, questions: numbers.
        notes: what a person should know, one sentence each.
    """

    markdown: Path
    html: Path
    answers: Path
    answered: int
    questions: int
    notes: list[str]


class Entry(NamedTuple):
    """A question with its answer in Markdown; None = nobody has answered it."""

    question: Question
    answer: str | None


def write_datasheet(
    path: Path, output: Path | None = None, answers: Path | None = None, tick: Tick | None = None
) -> Datasheet:
    """Write the datasheet of a curation or of a manifest.

    Args:
        path: folder of a curation, or a manifest file.
        output: folder to write; None = the folder, or the manifest's.
        answers: YAML of a person's answers by key; None = ``datasheet_answers.yaml`` in the output folder, which is
            written with all keys where it is absent.
        tick: told rows counted and their number.

    Raises:
        UserError: no curation and no manifest; an unknown key or another type in the answers.
    """
    curation = curation_folder.load(path, output, tick)
    own = answers or curation.folder / ANSWERS
    given = _given(own) if answers or own.is_file() else {}
    sections = {
        title: [Entry(question, _answer(curation, question.key, given)) for question in questions]
        for title, questions in SECTIONS.items()
    }
    if not own.is_file():
        with written_aside(own) as aside:
            aside.write_text(_blank(sections), encoding="utf-8")
    notes = _write_markdown(curation, sections, own.name)
    answered = sum(entry.answer is not None for entries in sections.values() for entry in entries)
    html = _write_html(curation, sections, answered, own.name)
    return Datasheet(curation.folder / "DATASHEET.md", html, own, answered, len(KEYS), notes)


def _given(path: Path) -> dict[str, str]:
    """Read a person's answers; an empty one is none."""
    if not path.is_file():
        raise UserError(f"There is no file of answers {path}. Leave --answers out, and one is written to fill in.")
    content = settings_file.read(path)
    for key, value in content.items():
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(KEYS)}."
            raise UserError(f"{path}: no question of the datasheet has the key {key!r}; {hint}")
        if not isinstance(value, str | None):
            raise UserError(f"{path}: the answer to {key!r} is {value!r}; write text, in quotes or after a bar (|).")
    return {key: value.strip() for key, value in content.items() if value and value.strip()}


def _answer(curation: Curation, key: str, given: dict[str, str]) -> str | None:
    known = FILLED[key](curation) if key in FILLED else None
    return "\n\n".join(part for part in (known, given.get(key)) if part) or None


def _blank(sections: dict[str, list[Entry]]) -> str:
    """Return the file of answers to fill in: open questions first, those that the manifest answers below."""
    entries = [entry for listed in sections.values() for entry in listed]
    lines = [
        "# What only people know of this data set. Write Markdown after a key, in quotes or on indented",
        "# lines after a bar (|), then run `terrasieve datasheet` again. This file is yours: it is never written over.",
    ]
    for entry in entries:
        if entry.answer is None:
            lines += ["", f"# {entry.question.words} ({entry.question.hint})", f'{entry.question.key}: ""']
    lines += ["", "# Answered from the manifest; what you write here is added to that."]
    for entry in entries:
        if entry.answer is not None:
            lines += ["", f"# {entry.question.words} ({entry.question.hint})", f'#{entry.question.key}: ""']
    return "\n".join(lines) + "\n"


def _write_markdown(curation: Curation, sections: dict[str, list[Entry]], answers: str) -> list[str]:
    """Write DATASHEET.md; one that a person edited is put aside, not lost."""
    found = curation.statistics
    lines = [
        f"# Datasheet: {plain(curation.name)}",
        f"{found['kept']:,} images kept of {found['rows']:,}. Questions after Gebru et al., Datasheets for Datasets; "
        f"gaps say **{OPEN}**: answer them in `{answers}`, then run `terrasieve datasheet` again.",
    ]
    for title, entries in sections.items():
        lines.append(f"## {title}")
        for question, answer in entries:
            lines += [f"### {question.words}", answer or f"**{OPEN}** (`{question.key}`): {question.hint}."]
    text = "\n\n".join(lines) + "\n"
    path, notes = curation.folder / "DATASHEET.md", []
    if path.is_file() and not _untouched(path.read_text(encoding="utf-8", errors="replace")):
        aside = next(p for n in range(1, 10_000) if not (p := path.with_name(f"DATASHEET.edited-{n}.md")).exists())
        path.rename(aside)
        notes.append(f"DATASHEET.md had been edited by hand; it is now {aside.name}. Move the answers to {answers}.")
    with written_aside(path) as partial:
        partial.write_text(f"{text}\n<!-- made by terrasieve, {_digest(text)} -->\n", encoding="utf-8")
    return notes


def _untouched(text: str) -> bool:
    stamp = _STAMP.search(text)
    return stamp is not None and stamp[1] == _digest(text[: stamp.start()])


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _write_html(curation: Curation, sections: dict[str, list[Entry]], answered: int, answers: str) -> Path:
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")

    def rendered(entry: Entry) -> dict[str, Any]:
        answer = None if entry.answer is None else Markup(markdown.render(entry.answer))
        return {"question": entry.question, "answer": answer}

    found = curation.statistics
    return write_page(
        "datasheet.html.j2",
        curation.folder / "DATASHEET.html",
        name=curation.name,
        rows=found["rows"],
        kept=found["kept"],
        answered=answered,
        questions=len(KEYS),
        answers=answers,
        sections={title: [rendered(entry) for entry in entries] for title, entries in sections.items()},
    )
