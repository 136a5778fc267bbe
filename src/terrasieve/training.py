"""The commands that train, and predict with what was trained. They import what they need when they run; for ``cli``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from terrasieve.errors import UserError

Recipe = Annotated[str | None, typer.Argument(help="Recipe (YAML).")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value or key.sub=value.")]
# not called --run, which torchrun would take for one of its own
Folder = Annotated[Path | None, typer.Option(help="Folder of the run; default: output/name-date-time.")]
Resume = Annotated[Path | None, typer.Option(help="Go on with the run in this folder.")]
StopAt = Annotated[int | None, typer.Option(help="Stop, resumably, after this many steps in all.")]


PRETRAIN_EXAMPLES = (
    "Examples: terrasieve pretrain recipes/selective_mae_vit_small_ucmerced.yaml data=ucm.parquet steps=300  ·  "
    "terrasieve pretrain --resume runs/my_run  ·  torchrun --nproc-per-node 8 -m terrasieve pretrain RECIPE"
)
ADAPT_EXAMPLES = (
    "Examples: terrasieve adapt recipes/rvit_tiny_ucmerced.yaml task.data=folder:ucmerced method.drop.ratio=0.75  ·  "
    "terrasieve adapt --resume runs/my_run"
)


def pretrain(
    recipe: Recipe = None,
    overrides: Overrides = None,
    folder: Folder = None,
    resume: Resume = None,
    stop_at: StopAt = None,
) -> None:
    """Pretrain an encoder as a recipe says. Ctrl-C stops after the step and leaves a run that can be resumed."""
    recipe, given = _recipe_or_run("pretrain", recipe, overrides, resume)
    from terrasieve.display import loading

    with loading():
        from terrasieve import pretrain as pretraining
        from terrasieve import recipe as recipes
        from terrasieve.watch import pretrain_watched

    settings = pretraining.resumed(resume, given) if resume else recipes.load(recipe, given)
    folder = resume or folder or pretraining.new_folder(settings)
    if not pretrain_watched(settings, folder, resume=resume is not None, stop_at=stop_at):
        raise typer.Exit(130)


def adapt(
    recipe: Recipe = None,
    overrides: Overrides = None,
    folder: Folder = None,
    resume: Resume = None,
    stop_at: StopAt = None,
) -> None:
    """Fine-tune an encoder on a labelled task, with or without redundant patches, and score it on the test images."""
    recipe, given = _recipe_or_run("adapt", recipe, overrides, resume)
    from terrasieve.display import loading

    with loading():
        from terrasieve import pretrain as pretraining
        from terrasieve import recipe as recipes
        from terrasieve.recipe import AdaptRecipe
        from terrasieve.watch import adapt_watched

    settings = pretraining.resumed(resume, given, AdaptRecipe) if resume else recipes.load(recipe, given, AdaptRecipe)
    folder = resume or folder or pretraining.new_folder(settings)
    if not adapt_watched(settings, folder, resume=resume is not None, stop_at=stop_at):
        raise typer.Exit(130)


PREDICT_EXAMPLES = (
    "Examples: terrasieve predict runs/my_run imagery.parquet -o maps/  ·  "
    "terrasieve predict runs/my_run scene.tif -o map.tif  ·  terrasieve predict runs/my_run scene.tif -o found.gpkg"
)


def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a run of terrasieve adapt.")],
    images: Annotated[str, typer.Argument(help="Manifest (.parquet) of the images, or one scene (GeoTIFF, COG, ...).")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder; of a scene .tif, or for boxes .gpkg, .geojson.")
    ],
    window: Annotated[int | None, typer.Option(help="Pixels of a map's windows; default: as in training.")] = None,
    overlap: Annotated[float, typer.Option(help="Of the windows, a share of their side.")] = 0.25,
    bands: Annotated[str | None, typer.Option(help="Of a scene, in the run's order, comma-separated.")] = None,
    probability: Annotated[bool, typer.Option(help="Of a scene: a second band, the class's per cent.")] = False,
    least_score: Annotated[float | None, typer.Option(help="Of a scene's boxes.")] = None,
) -> None:
    """Predict with a fine-tuned run: images of a manifest, or a whole scene as one map or one file of boxes."""
    from terrasieve.display import counting, err, loading, out

    with loading():
        from terrasieve import predict_scene as scenes

    kind = {".tif": "map", ".tiff": "map", ".gpkg": "boxes", ".geojson": "boxes"}.get(output.suffix.lower())
    given = {"--bands": bands, "--probability": probability or None, "--least-score": least_score}
    allowed = {"map": ("--bands", "--probability"), "boxes": ("--bands", "--least-score"), None: ()}[kind]
    wrong = next((name for name, value in given.items() if value is not None and name not in allowed), None)
    if wrong:
        raise UserError(f"-o {output}: {wrong} is for a scene's {'boxes' if wrong == '--least-score' else 'map'}.")
    how: dict[str, Any] = {"window_px": None if window is None else (window, window), "overlap": overlap}
    if kind is not None:
        if images.endswith((".parquet", ".geoparquet")):
            raise UserError(f"-o {output}: that is one scene's; {images} is a manifest, whose images get -o FOLDER.")
        how["bands"] = tuple(bands.split(",")) if bands else None
        done: scenes.Mapped | scenes.Detected
        with counting("predict", "windows") as tick:
            if kind == "map":
                done = scenes.predict_scene(run, images, output, probability=probability, on_windows=tick, **how)
            else:
                done = scenes.detect_scene(run, images, output, least_score=least_score or 0, on_windows=tick, **how)
        for line in done.lines():
            out.print(line, markup=False)
        return
    from terrasieve import predict as prediction

    if not images.endswith((".parquet", ".geoparquet")) and Path(images).is_file():
        raise UserError(
            f"-o {output}: of the scene {images} one file is made; give a .tif, of boxes a .gpkg or .geojson."
        )
    with counting("predict", "images") as tick:
        written = prediction.predict(run, Path(images), output, on_images=tick, **how)
    for uri, reason in written.failed:
        err.print(f"left out {uri}: {reason}", markup=False)
    table = next((str(path) for path in written.paths[:1] if path.name.startswith("predictions.")), None)
    more = f" and {len(written.paths) - 1:,} more in {output}" if len(written.paths) > 1 else ""
    out.print(f"{table}{more}" if table else f"{len(written.paths):,} map(s) in {output}", markup=False)


def _recipe_or_run(
    command: str, recipe: str | None, overrides: list[str] | None, resume: Path | None
) -> tuple[str, list[str]]:
    """Tell a recipe and its overrides from overrides alone, which a resumed run may be given."""
    given = list(overrides or [])
    if resume is not None and recipe is not None:
        given, recipe = [recipe, *given], None
    if (recipe is None) == (resume is None):
        raise UserError(f"Give a recipe, or --resume with the folder of a run. See terrasieve {command} --help.")
    return recipe or "", given
