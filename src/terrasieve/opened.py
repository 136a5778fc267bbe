"""Opened encoders: a run, an export, a published checkpoint or a library's model, ready for images.

Before ``assess`` and whatever else scores or applies an encoder. A run and an export say which bands they see and how
those are standardised; of anything else the images' own bands are taken, standardised by the statistics that it was
trained with where they are known and apply, else by those of the images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.torch import load_file

from terrasieve import recipe
from terrasieve.data import images as imagery
from terrasieve.data.augment import ImageSettings
from terrasieve.data.images import Images
from terrasieve.errors import UserError
from terrasieve.nn.backbones import AnyEncoder, open_backbone
from terrasieve.nn.convolution import ConvEncoder, encoder_of
from terrasieve.nn.encoder import Encoder
from terrasieve.nn.encoder_settings import EncoderSettings
from terrasieve.nn.layouts import RGB
from terrasieve.recipe import AdaptRecipe, Recipe

OWN = "bands standardised by the mean and deviation of the training images"
_SAID = ("size_px", "bands", "mean", "std")  # by an export, of its images
OF_ALL = "bands standardised by the mean and deviation of these images"


class Opened(NamedTuple):
    """An encoder and how it wants its images.

    Attributes:
        image: size, bands, mean and standard deviation.
        encoder: with its weights, for evaluation.
        untrained: builds the same with random weights; None where ``encoder`` is that.
        notes: what was recognised, left out, changed and assumed.
        statistics: how the bands are standardised, in words; "" = as the folder says.
    """

    image: ImageSettings
    encoder: AnyEncoder
    untrained: Callable[[], AnyEncoder] | None
    notes: tuple[str, ...] = ()
    statistics: str = ""


class Wanted(NamedTuple):
    """What a user says of an encoder that does not say it itself.

    Attributes:
        bands: names, in order; None = what all images have.
        size_px: side of the images; None = what the encoder was trained at.
        gsd_m: metres per pixel, for Scale-MAE's positions.
    """

    bands: tuple[str, ...] | None = None
    size_px: int | None = None
    gsd_m: float | None = None


def load_run(run: Path) -> tuple[Recipe | AdaptRecipe, Encoder | ConvEncoder]:
    """Load a run's recipe and its encoder, with the weights of the end of training.

    Raises:
        UserError: if the folder holds no finished or stopped run.
    """
    settings = _recipe_of(run)
    if not (run / "weights.safetensors").is_file():
        raise UserError(
            f"{run} has no weights yet. Let the run end, or stop it with Ctrl-C; a killed one goes on with: "
            f"terrasieve {settings.command} --resume {run}"
        )
    encoder = untrained(settings)
    encoder.vit.load_state_dict(load_file(run / "weights.safetensors"))
    return settings, encoder


def _recipe_of(run: Path) -> Recipe | AdaptRecipe:
    if not (run / "recipe.yaml").is_file():
        raise UserError(
            f"{run} is not a run folder: it holds no recipe.yaml. Runs are made by terrasieve pretrain and adapt."
        )
    return recipe.load(run / "recipe.yaml", (), recipe.kind_of(run / "recipe.yaml"))


def untrained(settings: Recipe | AdaptRecipe) -> Encoder | ConvEncoder:
    """Build the encoder of a completed recipe, with random weights wherever its training began."""
    plain = settings.encoder.model_copy(update={"weights": None, "gsd_m": None})
    return encoder_of(plain, len(settings.image.bands or ()), settings.image.shape_px, settings.seed).eval()


def is_run(spec: str | Path) -> bool:
    """Tell whether a spelling is a folder, which is a run unless it is an export."""
    return Path(spec).is_dir() and _exported(Path(spec)) is None


def bands_of(spec: str | Path, wanted: Wanted = Wanted()) -> tuple[str, ...] | None:
    """Return the bands that have to be read for an encoder; None = what all images have.

    Raises:
        UserError: if the user wants others than the encoder can take.
    """
    own: tuple[str, ...] | None = None
    if not str(spec).startswith(("timm:", "torchvision:")) and not Path(spec).exists():
        raise UserError(
            f"{spec} is not a run folder, and no export, file of weights, timm:NAME or torchvision:NAME. Runs are "
            "made by terrasieve pretrain and adapt; docs/weights.md lists the other encoders."
        )
    if Path(spec).is_dir():
        about = _exported(Path(spec))
        own = tuple(about["bands"]) if about else _recipe_of(Path(spec)).image.bands
        given = [f"--{name.replace('_', '-')}" for name, value in wanted._asdict().items() if value is not None]
        if given:
            raise UserError(
                f"{spec} says itself which bands, size and metres it was trained with; leave out "
                f"{' and '.join(given)}: of other encoders."
            )
    return own or wanted.bands


def image_of(spec: str | Path) -> ImageSettings | None:
    """Return how an encoder wants its images, as a run's or an exported folder says; None of any other."""
    if not Path(spec).is_dir():
        return None
    about = _exported(Path(spec))
    if about is None:
        return load_run(Path(spec))[0].image
    return _image(about)


def _image(about: dict[str, Any]) -> ImageSettings:
    height, width = about["size_px"]
    return ImageSettings(size_px=(height, width), bands=about["bands"], mean=about["mean"], std=about["std"])


def open_encoder(
    spec: str | Path, images: Images, wanted: Wanted = Wanted(), *, train: Sequence[int] = (), seed: int = 0
) -> Opened:
    """Open an encoder for images.

    Args:
        spec: folder of a run or an export, or what :func:`terrasieve.nn.backbones.open_backbone` takes.
        images: with the bands of :func:`bands_of`.
        wanted: what the user says.
        train: rows of ``images`` whose statistics standardise them where nothing else is known; () = all.
        seed: of random weights and of the sample that is measured.

    Raises:
        UserError: for anything that a user can mend.
    """
    if Path(spec).is_dir():
        about = _exported(Path(spec))
        if about:
            return _open_export(Path(spec), about, seed)
        settings, encoder = load_run(Path(spec))
        return Opened(settings.image, encoder, partial(untrained, settings))
    found = open_backbone(str(spec), images.bands, wanted.size_px, seed, wanted.gsd_m)
    if found.standard and images.dtype == np.uint8 and set(images.bands) <= set(RGB):
        mean, std = (tuple(255 * values[RGB.index(b)] for b in images.bands) for values in found.standard)
        told = "bands standardised as the weights were trained"
    else:
        mean, std = imagery.band_statistics(images.take(np.asarray(train)) if len(train) else images, seed)
        own = OWN if len(train) else OF_ALL
        told = own if found.untrained is None else f"{own}, not as the weights were trained"
    image = ImageSettings(size_px=found.size_px, bands=images.bands, mean=mean, std=std)
    size = f"{found.encoder.name}, images of {found.size_px[0]} x {found.size_px[1]} px"
    return Opened(image, found.encoder, found.untrained, (size, *found.notes), told)


def _exported(folder: Path) -> dict[str, Any] | None:
    """Return what an exported folder of ours says of itself; None if it is none."""
    if not ((folder / "config.json").is_file() and (folder / "model.safetensors").is_file()):
        return None
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'} is damaged: {error}. Export the run again.") from error
    if "terrasieve" not in config:
        raise UserError(f"{folder} is an export of another program; give timm:NAME@{folder / 'model.safetensors'}.")
    about = {**config["terrasieve"], "architecture": config.get("architecture"), "arguments": config.get("model_args")}
    lacking = [key for key in (*_SAID, "architecture", "arguments") if about.get(key) is None]
    if lacking:
        raise UserError(f"{folder / 'config.json'} is damaged: it lacks {', '.join(lacking)}. Export the run again.")
    return about


def _open_export(folder: Path, about: dict[str, Any], seed: int) -> Opened:
    arguments = about["arguments"]
    given = {key: arguments[old] for key, old in (("patch_px", "patch_size"), ("depth", "depth")) if old in arguments}
    settings = EncoderSettings(name=about["architecture"], **given)
    image = _image(about)

    def built(weights: str | None) -> AnyEncoder:
        one = settings.model_copy(update={"weights": weights})
        return encoder_of(one, len(about["bands"]), image.shape_px, seed).eval()

    return Opened(image, built(str(folder)), partial(built, None))
