"""The command line. Every command imports what it needs when it runs, so that ``--help`` answers at once.

Exit codes: 0 done, 2 a mistake in the input (one message, no traceback), 130 interrupted and resumable.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from terrasieve import __version__, training
from terrasieve.commands import (
    audit,
    bench,
    boxes,
    curate,
    datasets,
    datasheet,
    embed,
    evaluate,
    map,
    overlaps,
    redundancy,
    review,
    search,
    shard,
    split,
    steps,
    study,
    subset,
)
from terrasieve.errors import UserError
from terrasieve.sweep.command import sweep

app = typer.Typer(
    name="terrasieve",
    help="Earth-observation imagery in, foundation model out, at a fraction of the usual compute.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start here: terrasieve demo",
)


def main() -> None:
    """Run the command line and turn mistakes into one message and an exit code."""
    # Threads that spin while they wait starve the loader's workers: 18 instead of 110 images/s on two cores (LOG.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except UserError as error:
        sys.stderr.write(f"terrasieve: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("terrasieve: interrupted\n")
        sys.exit(130)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"terrasieve {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: terrasieve earth -o earth -n 2000")
def earth(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    count: Annotated[int, typer.Option("-n", "--count", help="Number of chips.")] = 2000,
    size_px: Annotated[int, typer.Option(help="Side of a chip in pixels.")] = 96,
    gsd_m: Annotated[float, typer.Option(help="Ground sample distance in metres.")] = 10.0,
    bands: Annotated[str, typer.Option(help="Comma-separated bands of GeoTIFFs.")] = "blue,green,red,nir",
    format: Annotated[str, typer.Option(help="tif (uint16 reflectance) or jpg (RGB).")] = "tif",
    masks: Annotated[bool, typer.Option(help="Also write land-cover masks.")] = False,
    split: Annotated[str, typer.Option(help="block (by geography) or random.")] = "block",
    scenes: Annotated[str | None, typer.Option(help="Comma-separated kinds of places; default: all.")] = None,
    visits: Annotated[int, typer.Option(help="Chips of each place, at dates of their own.")] = 1,
    shift: Annotated[float, typer.Option(help="Of later visits, at most this share of a chip's side.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the planet and of the draw.")] = 0,
) -> None:
    """Write chips of a procedural Earth with exact ground truth, and their manifest."""
    from terrasieve import demo
    from terrasieve.display import counting, out

    with counting("earth", "chips") as tick:
        table = demo.write_earth(
            output, count, seed, size_px=size_px, gsd_m=gsd_m, bands=tuple(bands.split(",")), format=format,
            masks=masks, split=split, visits=visits, shift=shift, on_chip=tick,
            **({"scenes": tuple(scenes.split(","))} if scenes else {}),
        )  # fmt: skip
    out.print(f"{table.num_rows:,} chips in {output}, manifest {output / 'manifest.parquet'}")


@app.command(epilog="Example: terrasieve index imagery/ -o imagery.parquet")
def index(
    paths: Annotated[list[Path], typer.Argument(help="Folders, files, or CSV files that name images.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Manifest to write (GeoParquet).")],
    csv: Annotated[
        Path | None, typer.Option(help="CSV with coordinates, labels or splits of files or folders.")
    ] = None,
    labels: Annotated[str, typer.Option(help="auto, folder or none: whether folders name classes.")] = "auto",
    pattern: Annotated[str | None, typer.Option(help="Glob that file names have to match.")] = None,
    verify: Annotated[str, typer.Option(help="header, ends (finds cut files) or decode (every pixel).")] = "ends",
    workers: Annotated[int | None, typer.Option(help="Processes; default: one per core.")] = None,
) -> None:
    """Index imagery into a manifest. Files that cannot be read become rows with a reason, and are counted."""
    from terrasieve import manifest
    from terrasieve.curate.scan import scan
    from terrasieve.display import counting, out

    _choose("labels", labels, ("auto", "folder", "none"))
    _choose("verify", verify, ("header", "ends", "decode"))
    if output.suffix not in (".parquet", ".geoparquet"):
        raise UserError(f"-o {output}: a manifest is a GeoParquet file; let its name end in .parquet.")
    with counting("index", "files") as tick:
        result = scan(
            paths, csv=csv, labels=labels, pattern=pattern, verify=verify, workers=workers, on_file=tick  # type: ignore[arg-type]
        )  # fmt: skip
    manifest.write(result.table, output)
    for line in result.summary.lines():
        out.print(line, markup=False)
    out.print(f"manifest: {output}", markup=False)


@app.command(epilog="Example: terrasieve export runs/my_run -o backbone/ --format timm,onnx")
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier export.")] = False,
    format: Annotated[
        str, typer.Option(help="Beside timm's, comma-separated: torchgeo, torchvision, onnx, torch_export.")
    ] = "timm",
) -> None:
    """Write a run's encoder as a folder that timm loads, with a model card, and in other formats, each checked."""
    from terrasieve import assess, entries
    from terrasieve.display import out

    formats = tuple(name.strip() for name in format.split(","))
    assess.export_run(run, output, overwrite=overwrite, formats=formats)
    out.print(f"{output}: load with timm.create_model('local-dir:{output}', pretrained=True)", markup=False)
    for name in entries.further(formats):
        out.print(f"{output / entries.FILES[name]}: {name}; {output / 'README.md'} says how to load it", markup=False)


@app.command(epilog="Example: terrasieve report runs/my_run")
def report(run: Annotated[Path, typer.Argument(help="Folder of a run.")]) -> None:
    """Write the run's report, one self-contained HTML page."""
    from terrasieve.display import out
    from terrasieve.report import write_report

    out.print(f"report: {write_report(run)}", markup=False)


@app.command(epilog="Example: terrasieve demo -o demo")
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")] = Path("demo"),
    steps: Annotated[int | None, typer.Option(help="Training steps; default: the demo recipe's.")] = None,
    seed: Annotated[int, typer.Option(help="Of the planet, the draw and the run.")] = 0,
) -> None:
    """Do it all on a procedural Earth: write imagery, index, pretrain, evaluate, export, report. Under five minutes."""
    from terrasieve import demo as demonstration

    if not demonstration.run(output, steps, seed):
        raise typer.Exit(130)


COMMANDS: list[tuple[Callable[..., None], str]] = [
    (
        training.pretrain,
        "Examples: terrasieve pretrain recipes/selective_mae_vit_small_ucmerced.yaml data=ucm.parquet steps=300  ·  "
        "terrasieve pretrain --resume runs/my_run  ·  torchrun --nproc-per-node 8 -m terrasieve pretrain RECIPE",
    ),
    (
        training.adapt,
        "Examples: terrasieve adapt recipes/rvit_tiny_ucmerced.yaml task.data=folder:ucmerced "
        "method.drop.ratio=0.75  ·  terrasieve adapt --resume runs/my_run",
    ),
    (training.predict, training.PREDICT_EXAMPLES),
    (sweep, "Example: terrasieve sweep recipes/rvit_tiny_ucmerced.yaml -o sweeps/ucmerced --jobs 2"),
    (study.study, study.EXAMPLES),
    (evaluate.evaluate, evaluate.EXAMPLES),
    (embed.embed, embed.EXAMPLES),
    (search.search, search.EXAMPLES),
    (map.map_, map.EXAMPLES),
    (redundancy.redundancy, redundancy.EXAMPLES),
    (review.review, review.EXAMPLES),
    (overlaps.overlaps, overlaps.EXAMPLES),
    (audit.audit, audit.EXAMPLES),
    (bench.bench, bench.EXAMPLES),
    (curate.curate, curate.EXAMPLES),
    *steps.commands(),
    (review.review, review.EXAMPLES),
    (shard.shard, shard.EXAMPLES),
    (datasheet.datasheet, datasheet.EXAMPLES),
    (datasets.datasets, datasets.EXAMPLES),
    (subset.subset, subset.EXAMPLES),
    (boxes.boxes, boxes.EXAMPLES),
    (split.split, split.EXAMPLES),
]
for _command, _examples in COMMANDS:
    app.command(epilog=_examples)(_command)


def _choose(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"--{name}: {value!r} is not one of {', '.join(allowed)}.")


if __name__ == "__main__":
    main()
