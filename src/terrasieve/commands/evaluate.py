"""The command ``terrasieve evaluate``: its options and the tables that it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

EXAMPLES = (
    "Examples: terrasieve evaluate runs/my_run --task folder:ucmerced --split split_80_20.csv --protocol knn  ·  "
    "terrasieve evaluate runs/my_run --task manifest:earth/manifest.parquet --split blocks:5,buffer_km=50  ·  "
    "terrasieve evaluate runs/my_run --task manifest:flair.parquet --masks recipes/rupernet_flair.yaml  ·  "
    "terrasieve evaluate mae_pretrain_vit_base.pth --task folder:ucmerced  ·  "
    "terrasieve evaluate timm:resnet50 --task folder:ucmerced --bands red,green,blue  ·  "
    "terrasieve evaluate runs/my_run --suite papers --data DATA"
)


AnyEncoder = Annotated[
    str,
    typer.Argument(
        help=r"Folder of a run or an export, a file of weights, timm:NAME\[@random|@FILE], torchvision:NAME."
    ),
]


def evaluate(
    encoder: AnyEncoder,
    task: Annotated[
        str | None, typer.Option(help="folder:PATH, manifest:PATH or catalog:NAME@PATH; or --suite.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="CSV (path, split), random:0.8, blocks:2,buffer_km=10 or regions:8.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="Comma-separated: knn, linear; of masks knn.")] = "knn,linear",
    masks: Annotated[
        Path | None, typer.Option(help="YAML with masks: replace, classes, ... (as in a recipe of adapt).")
    ] = None,
    pool: Annotated[str, typer.Option(help="mean (patch tokens) or cls.")] = "mean",
    bands: Annotated[str | None, typer.Option(help="Of an encoder that is no run: comma-separated, in order.")] = None,
    size_px: Annotated[
        int | None, typer.Option(help="Likewise: side of the images; default: as it was trained.")
    ] = None,
    gsd_m: Annotated[float | None, typer.Option(help="Likewise: metres per pixel, for Scale-MAE's positions.")] = None,
    seed: Annotated[int, typer.Option(help="Of the probe, of blocks and regions, and of the intervals.")] = 0,
    workers: Annotated[int, typer.Option(help="Reading processes.")] = 1,
    suite: Annotated[str | None, typer.Option(help="Many tasks, one table: papers, real or a YAML file.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Of a suite: folder of data sets; default: $TERRASIEVE_DATA or here.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="JSON file for the scores; of a suite its folder, else RUN/suites/NAME."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Of a suite: do what is done already, too.")] = False,
) -> None:
    """Score an encoder, a run's or another, on tasks, beside itself untrained and raw pixels, with 95 % intervals."""
    from terrasieve.errors import UserError

    if (task is None) == (suite is None):
        raise UserError("Give one of --task (one task) and --suite (many, as papers).")
    if suite is not None and (split or masks):
        raise UserError("--split and --masks are of one task; a suite's file says both of each of its tasks.")
    if pool not in ("mean", "cls"):
        raise UserError(f"--pool: {pool!r} is not one of mean, cls.")
    wanted: dict[str, Any] = {"bands": tuple(bands.split(",")) if bands else None, "size_px": size_px, "gsd_m": gsd_m}
    if suite is not None:
        from terrasieve.commands.suite import evaluate_suite

        evaluate_suite(encoder, suite, output, data, again, workers, wanted)
    else:
        options = {"split": split, "seed": seed, "workers": workers}
        protocols = [name.strip() for name in protocol.split(",")]
        _evaluate_task(encoder, str(task), protocols, masks, pool, wanted, output, options)


def _evaluate_task(
    encoder: str,
    task: str,
    protocols: list[str],
    masks: Path | None,
    pool: Any,
    wanted: dict[str, Any],
    output: Path | None,
    options: dict[str, Any],
) -> None:
    """Score one task and print its table, notes and where the report is."""
    from terrasieve.display import counting, loading, out
    from terrasieve.errors import UserError

    with loading():
        from terrasieve import assess, opened
        from terrasieve.data import catalog
        from terrasieve.data.masks import masks_of
        from terrasieve.evaluate import geography
        from terrasieve.evaluate.protocol import rich_table, write_scores
        from terrasieve.report import write_report

    settings = masks_of(masks) if masks is not None else catalog.masks_of(task)
    with counting("features", "images") as tick:
        if settings is not None:
            from terrasieve.evaluate import patches

            if "knn" not in protocols:
                raise UserError(
                    f"--protocol {','.join(protocols)}: images with masks are scored by knn; adapt trains a segmenter."
                )
            scores = assess.evaluate_masks(
                encoder, task, settings, wanted=opened.Wanted(**wanted), on_images=tick, **options
            )
            notes = [*scores[0].settings["notes"], patches.said(scores[0].settings)]
        else:
            scores, found = assess.evaluate_run(
                encoder, task, wanted=opened.Wanted(**wanted), protocols=protocols, pool=pool, on_images=tick, **options
            )
            notes = scores[0].settings["notes"] if scores else list(found.notes)
    is_run = opened.is_run(encoder)
    kept = "scores.json and the report" if is_run else str(output or "the JSON file (-o FILE)")
    out.print(rich_table(scores, kept))
    if is_run and settings is None and (correlations := geography.read(Path(encoder) / assess.GEOGRAPHY)):
        out.print(geography.rich_table(correlations))
    for note in [*notes, *(unfinished(Path(encoder)) if is_run else [])]:
        out.print(f"note: {note}", markup=False)
    if output is not None:
        write_scores(scores, output)
        out.print(f"scores: {output}", markup=False)
    if is_run:
        out.print(f"report: {write_report(Path(encoder))}", markup=False)


def unfinished(run: Path) -> list[str]:
    """Say how far a run came that did not reach its end: its scores are easily taken for those of the recipe."""
    from terrasieve.report.run_folder import read_run

    found = read_run(run)
    if found.state == "finished" or not found.events:
        return []
    return [f"the run is {found.state}, at step {found.events[-1].get('step')} of {found.settings.get('steps')}"]
