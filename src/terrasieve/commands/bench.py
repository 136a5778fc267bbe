"""The command ``terrasieve bench``: its options and the table that it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from terrasieve.errors import UserError

EXAMPLES = (
    "Examples: terrasieve bench  ·  terrasieve bench --encoder base --precision fp32 --repeats 9  ·  "
    "terrasieve bench --recipe recipes/selective_mae_vit_small_ucmerced.yaml --manifest ucm.parquet  ·  "
    "terrasieve bench --ragged --encoder small --precision fp32 --ratio 0.6,0.85"
)


def bench(
    encoder: Annotated[str, typer.Option(help="Comma-separated: tiny, small, base, large.")] = "tiny",
    precision: Annotated[str, typer.Option(help="Comma-separated: fp32, bf16.")] = "fp32,bf16",
    device: Annotated[str | None, typer.Option(help="Comma-separated: cpu, cuda; default: what is there.")] = None,
    method: Annotated[str | None, typer.Option(help="Comma-separated contenders; default: all.")] = None,
    image_px: Annotated[int, typer.Option(help="Side of the images.")] = 224,
    batch_size: Annotated[int, typer.Option(help="Images per step, the same for all.")] = 16,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    repeats: Annotated[int, typer.Option(help="Rounds; medians are quoted.")] = 5,
    memory: Annotated[bool, typer.Option(help="Measure peak memory (a process each on a CPU).")] = True,
    recipe: Annotated[str | None, typer.Option(help="Also set this recipe's loader against its model.")] = None,
    manifest: Annotated[str | None, typer.Option(help="Manifest for --recipe.")] = None,
    ragged: Annotated[bool, typer.Option("--ragged", help="Measure dropped patches instead of methods.")] = False,
    ratio: Annotated[str, typer.Option(help="Comma-separated shares that --ragged drops.")] = "0.6,0.75,0.85",
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for JSON and Markdown.")] = Path("bench"),
) -> None:
    """Measure training steps side by side: images/s, memory, FLOPs, beside timm's and lightly's MAE."""
    from rich.console import Console
    from rich.markdown import Markdown

    from terrasieve import bench as benches
    from terrasieve.display import err, out

    what: dict[str, Any] = {
        "encoders": encoder.split(","),
        "precisions": precision.split(","),
        "devices": device.split(",") if device else None,
        "image_px": image_px,
        "batch_size": batch_size,
        "threads": threads,
        "repeats": repeats,
    }
    with err.status("bench") as status:
        what["on_progress"] = lambda words: status.update(words)
        if ragged:
            result = benches.run_ragged(ratios=_shares(ratio), **what)
        else:
            methods = method.split(",") if method else tuple(benches.CONTENDERS)
            result = benches.run_bench(methods=methods, peak_memory=memory, **what)
        if recipe:
            result["loader"] = _loader_rate(recipe, manifest)
    json_path, page = (benches.write_ragged if ragged else benches.write)(result, output)
    # in 80 columns names would break at every word
    Console(width=max(out.width, 130)).print(Markdown(page.read_text(encoding="utf-8")))
    out.print(f"{json_path}, {page}", markup=False)


def _shares(text: str) -> list[float]:
    try:
        return [float(share) for share in text.split(",")]
    except ValueError as error:
        raise UserError(f"--ratio: {text!r} is not a list of numbers such as 0.6,0.85.") from error


def _loader_rate(path: str, manifest_path: str | None) -> dict[str, object]:
    from terrasieve import manifest, recipe
    from terrasieve.bench import measure_loading
    from terrasieve.data import images

    settings = recipe.load(path, [f"data={manifest_path}"] if manifest_path else [])
    return measure_loading(settings, images.from_table(manifest.read(settings.data), settings.image.bands))
