"""The command ``terrasieve audit``: what of the evaluation sets stands in a pretraining set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = (
    "Examples: terrasieve audit imagery.parquet folder:ucmerced/Images -o audit --apply clean.parquet  ·  "
    "terrasieve audit --splits folder:ucmerced/Images --csv split_80_20.csv -o audit"
)


def audit(
    pretrain: Annotated[str, typer.Argument(help="Pretraining manifest, or folder:PATH of images.")],
    evaluations: Annotated[
        list[str] | None, typer.Argument(metavar="EVAL", help="Evaluation sets: manifests or folder:PATH.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write; an interrupted one goes on.")] = Path(
        "audit"
    ),
    apply: Annotated[Path | None, typer.Option(help="Write the pretraining manifest without what leaks.")] = None,
    splits: Annotated[bool, typer.Option("--splits", help="Compare the splits of one data set instead.")] = False,
    csv: Annotated[Path | None, typer.Option(help="CSV with splits of the folders' images.")] = None,
    kinds: Annotated[
        str, typer.Option(help="Comma-separated: what counts as a leak.")
    ] = "exact,pixels,near,rotated,overlap",
    distance: Annotated[int, typer.Option(help="Bits between pHashes of near copies.")] = 8,
    least_shared: Annotated[float, typer.Option(help="Shared ground, of the smaller image.")] = 0.2,
    examples: Annotated[int, typer.Option(help="Pairs shown of each kind.")] = 8,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one per core.")] = None,
) -> None:
    """Find evaluation images in a pretraining set, copied, turned or of the same ground, and say what to drop."""
    from terrasieve import settings_file
    from terrasieve.curate import audit as audits
    from terrasieve.curate import leaks
    from terrasieve.curate.audit_sets import gather
    from terrasieve.curate.engine import Local
    from terrasieve.curate.step import Work
    from terrasieve.display import counting, out
    from terrasieve.report.audit_page import write_audit_report

    given = {"kinds": kinds.split(","), "judge": {"distance": distance}, "overlap": {"least_shared": least_shared}}
    settings = settings_file.validate(given, "of the command line", audits.AuditSettings)
    work = Work(output, Local(workers))
    sets = gather(pretrain, evaluations or [], output / "sets", splits=splits, csv=csv, bar=counting)
    found = audits.audit(sets.pretrain, sets.evaluations, settings, work, counting)
    leaks.write(found.leaks, output)
    page = write_audit_report(output, sets.name, found, settings, examples)
    for line in found.lines():
        out.print(line, markup=False)
    if apply is not None:
        result = leaks.apply(found.leaks, sets.source, apply)
        out.print(f"{apply}: {result.rows:,} rows, {result.kept:,} kept", markup=False)
    out.print(f"page: {page}; to drop: {output / 'removal.csv'}", markup=False)
