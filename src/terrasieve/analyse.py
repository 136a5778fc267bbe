"""Analyse a manifest: what ``terrasieve redundancy`` does, from the manifest to scores, page and gallery.

After ``recipe`` and ``assess``, whose runs give encoders; before the command line.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from terrasieve import manifest, opened
from terrasieve.data import images as imagery
from terrasieve.data.augment import ImageSettings
from terrasieve.errors import UserError
from terrasieve.evaluate import redundancy_table
from terrasieve.evaluate.reading import over_images
from terrasieve.evaluate.redundancy import ImageScorer, PatchScorer, RedundancySettings, checked_grid
from terrasieve.nn.encoder import Encoder, EncoderSettings
from terrasieve.report.redundancy_gallery import strip
from terrasieve.report.redundancy_page import MEASURES, Example, by_redundancy, describe, write_redundancy_report
from terrasieve.train.folder import held

SIZE_PX = 224
SEED = 0  # of the band statistics and of the intervals


class Trained(NamedTuple):
    """An encoder and the images that it was trained on: size, bands, their means and standard deviations."""

    encoder: Encoder
    image: ImageSettings
    digest: str


class Analysis(NamedTuple):
    """What an analysis left: its table, its page, and what a person should know of it."""

    table: pa.Table
    page: Path
    notes: list[str]

    def lines(self) -> list[str]:
        """Return what the command line says at the end."""
        reasons = Counter(reason.partition(":")[0] for reason in self.table["reason"].to_pylist())
        scored = reasons.pop("", 0)
        text = [f"{scored:,} images scored"]
        text += [f"not scored: {count:,} {code}" for code, count in reasons.most_common()]
        for name, (mean, low, high) in redundancy_table.means(self.table, SEED).items():
            text.append(f"{MEASURES[name].title}: {mean:.3f} [{low:.3f}, {high:.3f}]")
        text += [f"note: {note}" for note in self.notes]
        return [*text, f"table: {self.page.with_name(redundancy_table.FILE)}", f"report: {self.page}"]


def load_encoder(folder: Path) -> Trained:
    """Load the encoder of a run folder or of an exported folder.

    Raises:
        UserError: if it is neither, or its weights do not fit.
    """
    if not (folder / "config.json").is_file():
        if folder.exists() and not (folder / "recipe.yaml").is_file():
            raise UserError(
                f"{folder} is neither a run folder (recipe.yaml) nor an exported one (config.json). "
                "Runs are made by terrasieve pretrain, exports by terrasieve export."
            )
        settings, encoder = opened.load_run(folder)
        if not isinstance(encoder, Encoder):
            raise UserError(f"{folder}: redundancy is measured on the patches of a ViT, and {encoder.name} is none.")
        return Trained(encoder, settings.image, _digest(folder / "weights.safetensors"))
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        about, arguments = config["terrasieve"], config["model_args"]
        image = ImageSettings(**{key: about[key] for key in ("bands", "mean", "std", "size_px")})
        how = EncoderSettings(
            name=config["architecture"], patch_px=arguments["patch_size"], depth=arguments.get("depth")
        )
        encoder = Encoder(how, len(about["bands"]), image.shape_px).eval()
        encoder.vit.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{folder} is no folder that terrasieve export wrote, or a damaged one: {error!r}") from error
    return Trained(encoder, image, _digest(folder / "model.safetensors"))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def analyse(
    manifest_path: Path,
    folder: Path,
    *,
    size_px: int | None = None,
    bands: tuple[str, ...] | None = None,
    encoder: Path | None = None,
    examples: int = 16,
    workers: int | None = None,
    on_images: Callable[[int, int], None] | None = None,
    **how: Any,
) -> Analysis:
    """Score the images of a manifest and write ``redundancy.parquet`` and ``report.html``.

    Args:
        manifest_path: of the images.
        folder: to write into; an interrupted analysis in it goes on.
        size_px: side that images are resampled to; None = the encoder's, or 224.
        bands: to read; None = the encoder's, or what all images have.
        encoder: run folder or exported folder; its size, patch and bands are taken.
        examples: images in the gallery.
        workers: processes; None = one per core.
        on_images: called with images done and their total.
        how: of :class:`RedundancySettings`; with an encoder ``of`` is "embeddings" unless given.

    Raises:
        UserError: for anything that a user can mend.
    """
    for option, count in (("--workers", workers or 0), ("--examples", examples)):
        if count < 0:
            raise UserError(f"{option}: {count} is less than 0.")
    trained = None if encoder is None else load_encoder(encoder)
    settings = _settings(trained, {key: value for key, value in how.items() if value is not None})
    table = manifest.read(manifest_path)
    image, images = _images(table, trained, size_px, bands)
    about: dict[str, Any] = {
        "manifest_hash": manifest.content_hash(table),
        "settings": settings.model_dump(mode="json"),
        "size_px": list(image.shape_px),
        "bands": list(images.bands),
        "encoder": None if trained is None else trained.digest,
    }
    with held(folder, "-o"):
        stored = redundancy_table.stored_about(folder, about)
        if image.mean is None:
            mean, std = (stored["mean"], stored["std"]) if stored else imagery.band_statistics(images, SEED)
            image = image.model_copy(update={"mean": tuple(mean), "std": tuple(std)})
        checked_grid(image, settings.patch_px)
        about |= {"mean": list(image.mean or ()), "std": list(image.std or ())}
        scorer = ImageScorer(settings, None if trained is None else trained.encoder)
        scored = redundancy_table.measure(
            table, images, image, scorer, folder, about, workers=workers, on_images=on_images
        )
        shown = _examples(table, scored, images, image, settings, scorer, examples)
        said = {"manifest": manifest_path, **about, "encoder": encoder or "none"}
        page = write_redundancy_report(folder, scored, settings, said, shown)
    return Analysis(scored, page, _notes(table, images, image))


def _settings(trained: Trained | None, how: dict[str, Any]) -> RedundancySettings:
    if trained is not None:
        if "patch_px" in how:
            raise UserError(f"--patch-px: the encoder's patch of {trained.encoder.patch_px} px is taken; leave it out.")
        how = {"of": "embeddings", **how, "patch_px": trained.encoder.patch_px}
    try:
        settings = RedundancySettings(**how)
    except ValidationError as error:
        lines = [f"--{p['loc'][0]}: {p['msg']}; got {p['input']!r}".replace("_", "-") for p in error.errors()]
        raise UserError("\n".join(lines)) from error
    if settings.of != "pixels" and trained is None:
        raise UserError(f"--of {settings.of} needs an encoder: give --encoder RUN, a run folder or an exported folder.")
    return settings


def _images(
    table: pa.Table, trained: Trained | None, size_px: int | None, bands: tuple[str, ...] | None
) -> tuple[ImageSettings, imagery.Images]:
    if trained is not None:
        if size_px is not None or bands is not None:
            given = "--size-px" if size_px is not None else "--bands"
            raise UserError(f"{given}: the size and the bands of the encoder are taken; leave it out.")
        image = trained.image
    else:
        try:
            image = ImageSettings(size_px=SIZE_PX if size_px is None else size_px, bands=bands)
        except ValidationError as error:
            raise UserError(f"--size-px: {size_px} is not a number of pixels above 0.") from error
    try:
        images = imagery.from_table(table, image.bands)
    except UserError as error:
        sets = [set(row or ()) for row in table.filter(table["keep"])["bands"].to_pylist()]
        every = ", ".join(sorted(set.intersection(*sets))) if sets else ""
        wanted = (
            "." if not every else "; choose with --bands A,B." if trained is None else "; the encoder takes its own."
        )
        raise UserError(f"{error} All images have: {every or 'no band in common'}{wanted}") from error
    return image, images


def _examples(
    table: pa.Table,
    scored: pa.Table,
    images: imagery.Images,
    image: ImageSettings,
    settings: RedundancySettings,
    scorer: ImageScorer,
    count: int,
) -> list[Example]:
    """Draw images at even steps of rank, with their masks."""
    order = by_redundancy(scored, settings)
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))]
    keep = pc.fill_null(table["keep"], False).to_numpy(zero_copy_only=False)
    place = np.cumsum(keep) - 1  # row of the manifest -> row of the images
    rows = {int(place[row]): int(row) for row in chosen}
    patches = PatchScorer(settings.patch_px, settings.of, settings.reduction, scorer.encoder)

    def draw(batch: Any) -> Any:
        return batch, patches(batch)

    shown = []
    for done in over_images(images, image, draw, [range(row, row + 1) for row in rows], 0, scorer.device):
        if not done.read:
            continue  # read a moment ago, gone now
        batch, score_1N = done.values
        row = rows[done.read[0]]
        mean, std = (torch.tensor(v, device=batch.image.device).view(-1, 1, 1) for v in (image.mean, image.std))
        pixels = (batch.image[0] * std + mean).cpu()
        pixels = pixels.round().clamp(0, 255).to(torch.uint8) if images.dtype == np.uint8 else pixels
        valid = None if batch.valid is None else batch.valid[0].cpu()
        words = describe(scored.slice(row, 1).to_pylist()[0], settings)
        jpeg = strip(pixels, valid, torch.from_numpy(score_1N[0]), settings.patch_px, images.bands)
        shown.append(Example(scored["uri"][row].as_py(), words, jpeg))
    return shown


def _notes(table: pa.Table, images: imagery.Images, image: ImageSettings) -> list[str]:
    """Return what a person should know of the way the images were read."""
    notes = []
    side = float(np.median(np.sqrt(images.windows[:, 2].astype(float) * images.windows[:, 3])))
    size = float(np.sqrt(np.prod(image.shape_px)))
    if size > 1.5 * side:
        notes.append(
            f"the images are enlarged from about {side:.0f} to {size:.0f} px, so that patches look alike; "
            f"--size-px {side:.0f} with a smaller --patch-px does not"
        )
    elif size < side / 3:
        notes.append(
            f"the images are shrunk from about {side:.0f} to {size:.0f} px, detail is lost; index windows of them"
        )
    dropped = table.num_rows - len(images)
    if dropped:
        notes.append(f"{dropped:,} rows that the manifest does not keep are listed without scores")
    return notes
