"""The command ``terrasieve datasheet``: its options and what it says at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = (
    "Examples: terrasieve datasheet curated/  ·  terrasieve datasheet ucm.parquet -o sheet/ --answers answers.yaml"
)


def datasheet(
    path: Annotated[Path, typer.Argument(metavar="DIR|MANIFEST", help="Folder of a curation, or a manifest.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder to write; default: beside it.")] = None,
    answers: Annotated[Path | None, typer.Option(help="Your answers; default: datasheet_answers.yaml there.")] = None,
) -> None:
    """Write DATASHEET.md and .html: Gebru's questions, answered from the manifest, gaps marked for you to fill in."""
    from terrasieve.display import counting, out
    from terrasieve.report.datasheet import write_datasheet

    with counting("statistics", "rows") as tick:
        sheet = write_datasheet(path, output, answers, tick)
    for note in sheet.notes:
        out.print(f"note: {note}", markup=False)
    out.print(f"datasheet: {sheet.markdown}, {sheet.html}", markup=False)
    left = sheet.questions - sheet.answered
    out.print(f"{sheet.answered} of {sheet.questions} questions answered", markup=False)
    if left:
        out.print(f"{left} are for you: write answers into {sheet.answers}, then run this again", markup=False)
