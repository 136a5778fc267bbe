"""The command line. Every command imports what it needs when it runs, so that ``--help`` answers at once.

Exit codes: 0 done, 2 a mistake in the input (one message, no traceback), 130 interrupted and resumable.
"""

from __future__ import annotations

import errno
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
from terrasieve.errors import Interrupted, UserError
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
        sys.exit(130 if isinstance(error, Interrupted) else 2)
    except Exception as error:
        said = _said(error)
        if not said:
            raise
        sys.stderr.write(f"terrasieve: {said}\n")
        sys.exit(2)
    except SystemExit as end:
        # typer makes an exit of Ctrl-C and says nothing; a training that stopped resumably has spoken
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):
            sys.stderr.write(
                "terrasieve: interrupted. The same command begins again, or goes on where its help says so.\n"
            )
        raise


# Mistakes of a path, a right or a disk, not of the program; where nothing nearer to them has said what to do.
_SURROUNDINGS = {
    errno.EACCES: "Choose another place, or ask for the right to write there",
    errno.EPERM: "Choose another place, or ask for the right to write there",
    errno.EROFS: "Choose a place that can be written",
    errno.EEXIST: "Choose another name",
    errno.ENOTDIR: "Choose another name; a part of this path is a file",
    errno.EISDIR: "Name a file",
    errno.ENOENT: "Check the path",
    errno.ENAMETOOLONG: "Choose a shorter name",
    errno.ENOSPC: "Free some space, then run the command again",
    errno.EDQUOT: "The quota is used up; free some space, then run the command again",
    errno.EFBIG: "The limit of a file's size is reached; raise it (ulimit -f), then run the command again",
}


def _said(error: Exception) -> str:
    """Word an error of the file system: which file, what is wrong, what to do. Of any other error nothing is said."""
    number = getattr(error, "errno", None)
    if "No space left on device" in str(error):  # so say writers in other languages, whose errors have no number
        number = errno.ENOSPC
    if number not in _SURROUNDINGS:
        return ""
    where = f"{name}: " if (name := getattr(error, "filename", None)) else ""
    return f"{where}{getattr(error, 'strerror', None) or error}. {_SURROUNDINGS[number]}."


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


def report(run: Annotated[Path, typer.Argument(help="Folder of a run.")]) -> None:
    """Write the run's report, one self-contained HTML page."""
    from terrasieve.display import out
    from terrasieve.report import write_report

    out.print(f"report: {write_report(run)}", markup=False)


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")] = Path("demo"),
    steps: Annotated[int | None, typer.Option(help="Training steps; default: the demo recipe's.")] = None,
    seed: Annotated[int, typer.Option(help="Of the planet, the draw and the run.")] = 0,
) -> None:
    """Do it all on a procedural Earth: write imagery, index, pretrain, evaluate, export, report. Under five minutes."""
    from terrasieve import demo as demonstration

    if not demonstration.run(output, steps, seed):
        raise typer.Exit(130)


# In the order in which a user meets them; each with its examples.
COMMANDS: dict[str, list[tuple[Callable[..., None], str]]] = {
    "From imagery to a data set": [
        (index, "Example: terrasieve index imagery/ -o imagery.parquet"),
        (curate.curate, curate.EXAMPLES),
        (review.review, review.EXAMPLES),
        (overlaps.overlaps, overlaps.EXAMPLES),
        (audit.audit, audit.EXAMPLES),
        (datasheet.datasheet, datasheet.EXAMPLES),
        (redundancy.redundancy, redundancy.EXAMPLES),
        (subset.subset, subset.EXAMPLES),
        (split.split, split.EXAMPLES),
        (shard.shard, shard.EXAMPLES),
        (boxes.boxes, boxes.EXAMPLES),
        (datasets.datasets, datasets.EXAMPLES),
        (earth, "Example: terrasieve earth -o earth -n 2000"),
    ],
    "Training": [
        (demo, "Example: terrasieve demo -o demo"),
        (training.pretrain, training.PRETRAIN_EXAMPLES),
        (training.adapt, training.ADAPT_EXAMPLES),
        (sweep, "Example: terrasieve sweep recipes/rvit_tiny_ucmerced.yaml -o sweeps/ucmerced --jobs 2"),
        (study.study, study.EXAMPLES),
        (bench.bench, bench.EXAMPLES),
    ],
    "How good an encoder is": [
        (evaluate.evaluate, evaluate.EXAMPLES),
        (map.map_, map.EXAMPLES),
        (report, "Example: terrasieve report runs/my_run"),
    ],
    "What it is used for": [
        (export, "Example: terrasieve export runs/my_run -o backbone/ --format timm,onnx"),
        (training.predict, training.PREDICT_EXAMPLES),
        (embed.embed, embed.EXAMPLES),
        (search.search, search.EXAMPLES),
    ],
    "The steps of curate, one by one": [*steps.commands()],
}


def _listed(examples: str) -> str:
    """Give each example a line of its own, to be copied; brackets in it are no markup."""
    word, _, rest = examples.partition(": ")
    return "\n".join([f"{word}:", *(f"$ {one}" for one in rest.split("  ·  "))]).replace("[", r"\[")


for _panel, _commands in COMMANDS.items():
    for _command, _examples in _commands:
        app.command(epilog=_listed(_examples), rich_help_panel=_panel)(_command)


def _choose(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"--{name}: {value!r} is not one of {', '.join(allowed)}.")


if __name__ == "__main__":
    main()
