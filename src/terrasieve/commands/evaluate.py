"""The command ``terrasieve evaluate``: its options and the tables that it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = (
    "Examples: terrasieve evaluate runs/my_run --task folder:ucmerced --split split_80_20.csv --protocol knn  ·  "
    "terrasieve evaluate runs/my_run --task manifest:earth/manifest.parquet --split blocks:5,buffer_km=50  ·  "
    "terrasieve evaluate runs/my_run --task manifest:flair.parquet --masks recipes/rupernet_flair.yaml"
)


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    task: Annotated[str, typer.Option(help="folder:PATH (class folders) or manifest:PATH.")],
    split: Annotated[
        str | None, typer.Option(help="CSV (path, split), random:0.8, blocks:2,buffer_km=10 or regions:8.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="Comma-separated: knn, linear; of masks knn.")] = "knn,linear",
    masks: Annotated[
        Path | None, typer.Option(help="YAML with masks: replace, classes, ... (as in a recipe of adapt).")
    ] = None,
    pool: Annotated[str, typer.Option(help="mean (patch tokens) or cls.")] = "mean",
    seed: Annotated[int, typer.Option(help="Of the probe, of blocks and regions, and of the intervals.")] = 0,
    workers: Annotated[int, typer.Option(help="Reading processes.")] = 1,
) -> None:
    """Score a run's encoder on a task, beside the untrained encoder and raw pixels, with 95 % intervals."""
    from terrasieve import assess
    from terrasieve.display import counting, out
    from terrasieve.errors import UserError
    from terrasieve.evaluate import geography
    from terrasieve.evaluate.protocol import rich_table
    from terrasieve.report import write_report

    if pool not in ("mean", "cls"):
        raise UserError(f"--pool: {pool!r} is not one of mean, cls.")
    with counting("features", "images") as tick:
        if masks is not None:
            from terrasieve.data.masks import masks_of
            from terrasieve.evaluate import patches

            if "knn" not in protocol.split(","):
                raise UserError(
                    f"--protocol {protocol}: images with masks are scored by knn; adapt trains a segmenter."
                )
            scores = assess.evaluate_masks(
                run, task, masks_of(masks), split=split, seed=seed, workers=workers, on_images=tick
            )
            notes = [*scores[0].settings["notes"], patches.said(scores[0].settings)]
        else:
            scores, found = assess.evaluate_run(
                run, task, split=split, protocols=protocol.split(","), pool=pool, seed=seed, workers=workers,  # type: ignore[arg-type]
                on_images=tick,
            )  # fmt: skip
            notes = scores[0].settings["notes"] if scores else list(found.notes)
    out.print(rich_table(scores))
    if masks is None and (correlations := geography.read(run / assess.GEOGRAPHY)):
        out.print(geography.rich_table(correlations))
    for note in notes:
        out.print(f"note: {note}", markup=False)
    out.print(f"report: {write_report(run)}", markup=False)
