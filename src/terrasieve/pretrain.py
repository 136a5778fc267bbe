"""Pretraining from a recipe to a run folder: what the command ``terrasieve pretrain`` does.

After ``recipe`` and before ``demo`` and the command line: reads the manifest, completes the recipe with each band's
mean and standard deviation, holds the run folder and hands over to ``train.loop``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import yaml

from terrasieve import manifest, recipe
from terrasieve.data import batch_survey, storage, survey
from terrasieve.data import images as imagery
from terrasieve.data.batches import shuffles
from terrasieve.data.groups import Groups
from terrasieve.data.loader import settled
from terrasieve.errors import UserError
from terrasieve.files import written_aside
from terrasieve.methods import METHODS
from terrasieve.methods.regularisers import Geographic, check_places
from terrasieve.recipe import AdaptRecipe, R, Recipe
from terrasieve.train import distributed, folder, loop
from terrasieve.train.checkpoint import found
from terrasieve.train.distributed import World
from terrasieve.train.state import build

# What may differ between the start and the resumption of a run: nothing of it changes the weights.
FREE = ("loader", "log", "output", "name", "device", "data")
KEPT = ("batches", "order", "lanes")  # of the loader: they say which images make a batch


def new_folder(settings: Recipe | AdaptRecipe) -> Path:
    """Name a folder for a new run: output/name-date-time."""
    return Path(settings.output) / f"{settings.name}-{datetime.now():%Y%m%d-%H%M%S}"


def resumed(run: Path, overrides: list[str], kind: type[R] = Recipe) -> R:  # type: ignore[assignment]
    """Read the recipe of a run that is to go on.

    Args:
        run: its folder.
        overrides: only of keys that do not change the weights: loader, log, device, data (the manifest, moved).
        kind: what the recipe is of.

    Raises:
        UserError: if it is no run folder, or an override would make it another run.
    """
    path = run / "recipe.yaml"
    if not path.is_file():
        raise UserError(f"{run} holds no recipe.yaml, so it is not a run that could be resumed.")
    stored, changed = recipe.load(path, (), kind), recipe.load(path, overrides, kind)
    before, after = stored.model_dump(exclude=set(FREE)), changed.model_dump(exclude=set(FREE))
    different = [key for key in before if before[key] != after[key]]
    different += [f"loader.{key}" for key in KEPT if getattr(stored.loader, key) != getattr(changed.loader, key)]
    if different:
        raise UserError(
            f"A resumed run keeps its recipe; {', '.join(different)} would differ from {path}. "
            f"Only {', '.join(FREE)} may be given; start a new run for the rest."
        )
    return changed


def pretrain(
    settings: Recipe,
    run: Path,
    *,
    resume: bool = False,
    stop_at: int | None = None,
    on_start: Callable[[World, Recipe, int, int], None] | None = None,
    on_step: Callable[[int], None] | None = None,
    on_log: Callable[[dict[str, float]], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> loop.Outcome:
    """Run a recipe.

    Args:
        settings: the recipe.
        run: folder of the run, made here; with ``resume`` one that exists.
        resume: go on from the newest checkpoint.
        stop_at: stop, resumably, after this many steps in all.
        on_start: called with this process, the completed recipe, images found and steps already done.
        on_step: called after every step with the steps done.
        on_log: called with the numbers of a log line.
        on_note: called with what a person should know about the images' neighbours before training.

    Returns:
        How it ended.

    Raises:
        UserError: for anything that a user can mend.
    """
    with distributed.join(settings) as world:
        run = Path(distributed.share(world, str(run)))
        table = manifest.read(settings.data)
        images = imagery.from_table(table, settings.image.bands)
        refuse_taken(run, settings, world, resume)
        settings = complete(settings, images)
        with folder.held(run) if world.leads else nullcontext():
            about = {"recipe": settings.model_dump(mode="json"), "manifest_hash": manifest.content_hash(table)}
            if world.leads:
                describe(run, settings, about, images, resume)
            if on_start:
                on_start(world, settings, len(images), steps_done(run))
            if settings.geography is not None:
                check_places(images.lon, images.lat, settings.geography)
            tell = on_note if world.leads and not resume else None
            _tell_of_batches(settings, images, run, tell)
            groups = _groups(settings, table, images, run, tell)
            if tell:
                _tell_small(settings, images, tell)
                _tell_storage(settings, images, groups, tell)
            state = build(settings, world, len(images.bands))
            if isinstance(state.method, Geographic):
                state.method.locate(images.lon, images.lat)
            return loop.train(state, images, run, about, groups=groups, stop_at=stop_at, on_step=on_step, on_log=on_log)


def _groups(
    settings: Recipe, table: pa.Table, images: imagery.Images, run: Path, on_note: Callable[[str], None] | None
) -> Groups | None:
    """Find the images' neighbours, or their other dates, if the method looks at them, and say what was found."""
    pairs, dates = settings.pairs, getattr(settings.method, "views_from", "same_image") == "same_place"
    if dates:
        pairs = pairs.model_copy(update={"kinds": ("same_place",)})
    elif getattr(METHODS[settings.method.name], "views", 1) != "neighbours":
        return None
    groups = Groups.of(table, pairs, getattr(settings.method, "images", 2), settings.seed)
    if on_note:
        found = survey.take(groups, images.windows, settings.image, settings.seed)
        folder.write_json(run / "neighbours.json", found)
        for note in survey.notes(found, dates):
            on_note(note)
    return groups


def _tell_of_batches(
    settings: Recipe, images: imagery.Images, run: Path, on_note: Callable[[str], None] | None
) -> None:
    """Say how far apart a batch's images lie, if that matters to the recipe."""
    if on_note is None or (settings.geography is None and shuffles(settings.loader.batches)):
        return
    within_km = float(getattr(settings.geography, "max_km", getattr(settings.geography, "near_km", 3000.0)))
    found = batch_survey.take(images, settings.loader.batches, settings.seed, settings.batch_size, within_km)
    folder.write_json(run / "batches.json", found)
    for note in batch_survey.notes(found, settings.loader.batches):
        on_note(note)


def _tell_small(settings: Recipe, images: imagery.Images, on_note: Callable[[str], None]) -> None:
    """Tell if a batch needs images twice, and how many have fewer pixels than the finest scale that is predicted."""
    if settings.batch_size > len(images):
        on_note(f"batch_size {settings.batch_size:,} is more than the {len(images):,} images: a batch repeats some")
    height, width = settings.image.enlarged(settings.enlarged).shape_px
    small = int(((images.windows[:, 2] < width) | (images.windows[:, 3] < height)).sum())
    if settings.enlarged > 1 and small:
        on_note(
            f"{small:,} of {len(images):,} images are smaller than {width} x {height} px, the finest scale that is "
            "predicted: their finer targets are interpolated; a smaller image.size_px or method.scales would suit them"
        )


def _tell_storage(
    settings: Recipe, images: imagery.Images, groups: Groups | None, on_note: Callable[[str], None]
) -> None:
    """Tell if images are stored so that a crop decodes many times its pixels."""
    told = storage.note(storage.take(images, settings.image, groups, settings.seed))
    if told:
        on_note(told)


def refuse_taken(run: Path, settings: Recipe | AdaptRecipe, world: World, resume: bool) -> None:
    """Refuse a folder that holds a run, unless that is what is resumed."""
    if world.leads and (run / "recipe.yaml").exists() and not resume:
        raise UserError(
            f"{run} holds a run already. Resume it with: terrasieve {settings.command} --resume {run}; "
            "or choose another folder with --folder."
        )


def steps_done(run: Path) -> int:
    """Return the steps after which a run's newest checkpoint was written, 0 without one."""
    return max((step for step, _ in found(run / "checkpoints")), default=0)


def complete(settings: R, images: imagery.Images, **more: Any) -> R:
    """Fill in the bands and each band's mean and standard deviation, where the recipe leaves them to the data.

    Args:
        settings: the recipe.
        images: what is trained on.
        more: further top-level keys to replace.
    """
    image = settings.image.model_copy(update={"bands": images.bands})
    if image.mean is None or image.std is None:
        mean, std = imagery.band_statistics(images, settings.seed)
        image = image.model_copy(update={"mean": image.mean or mean, "std": image.std or std})
    found = {"image": image.model_dump(mode="json"), "loader": settled(settings.loader, images).model_dump(mode="json")}
    content = settings.model_dump(mode="json") | found | more
    return recipe.check(content, "(completed with the data's bands)", type(settings))


def describe(
    run: Path,
    settings: Recipe | AdaptRecipe,
    about: dict[str, Any],
    images: imagery.Images,
    resume: bool,
    **more: Any,
) -> None:
    """Write recipe.yaml and environment.json, or check that a resumed run still sees the same manifest."""
    path = run / "environment.json"
    if resume and path.exists():
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
        before = stored.get("manifest_hash")
        if before != about["manifest_hash"]:
            raise UserError(
                f"The manifest {settings.source} is not the one that {run} was started with: its hash is "
                f"{about['manifest_hash']} instead of {before}. Resume with the same manifest, or start a new run."
            )
        torch.set_num_threads(stored.get("threads", torch.get_num_threads()))  # sums of other threads round otherwise
        return
    with written_aside(run / "recipe.yaml") as aside:
        aside.write_text(recipe.dump(settings), encoding="utf-8")
    environment = folder.environment(
        manifest_hash=about["manifest_hash"],
        manifest_rows=len(images),
        dtype=images.dtype.name,
        threads=torch.get_num_threads(),
        **more,
    )
    about |= {key: environment[key] for key in ("commit", "versions")}
    folder.write_json(path, environment)
