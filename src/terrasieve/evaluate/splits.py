"""Splits by geography: whole blocks or regions are held out, and what lies too near to them is left out of training.

Images of neighbouring ground are alike, so a random split tests what training has seen (METHODS.md, section 9). Blocks
are squares of equal width in kilometres all over the sphere; regions are clusters of places, so that the test set is a
shift of geography. Which ones are held out is drawn by key. ``split_files`` reads and writes manifests around this.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator
from scipy.sparse import csr_array

from terrasieve import keyed
from terrasieve.data.places import Places, unit_vectors
from terrasieve.errors import UserError
from terrasieve.evaluate.buffer import Near, too_near
from terrasieve.methods.clusters import spherical_kmeans
from terrasieve.section import Section

PARTS = ("train", "val", "test")
TRAIN, VAL, TEST, OUT = 0, 1, 2, -1
LADDER_DEG = (5.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
ENOUGH = 40  # blocks with images in them, for the largest side that is chosen by itself
DRAWS = 20  # of which the best is taken
_PLACES = 100_000  # that regions are found from
Ints = NDArray[np.int64]


class SplitSettings(Section):
    """How to divide images.

    Attributes:
        by: random (images), blocks (squares) or regions (clusters of places).
        test: share of the images.
        val: share of the images.
        buffer_km: images of train nearer than this to one of val or test are left out, and of val to one of test; 0 =
            those that show the same ground. None = 0, and for random no look at places at all.
        block_deg: side of a block in degrees of latitude; None = the largest of 5, 2, 1, .5, ... with 40 blocks.
        regions: clusters.
        seed: of the draw.
    """

    by: Literal["random", "blocks", "regions"] = "blocks"
    test: float = Field(default=0.2, gt=0, lt=1)
    val: float = Field(default=0.1, ge=0, lt=1)
    buffer_km: float | None = Field(default=None, ge=0, le=20_000)
    block_deg: float | None = Field(default=None, ge=0.0001, le=90)
    regions: int = Field(default=10, ge=2)
    seed: int = 0

    @model_validator(mode="after")
    def _leaves_train(self) -> Self:
        if self.test + self.val >= 1:
            raise ValueError(f"test and val are {self.test + self.val:g} of the images; nothing is left for train")
        return self

    @property
    def placed(self) -> bool:
        """Whether places are looked at."""
        return self.by != "random" or self.buffer_km is not None


class Division(NamedTuple):
    """Images divided.

    Attributes:
        part: (n,) int64, 0 train, 1 val, 2 test, -1 left out.
        near: those left out because they lie too near.
        group: (n,) int64, block or region of each image; -1 without a place.
        block_deg: side of the blocks.
        unplaced: images left out because their place is not known.
    """

    part: Ints
    near: Near
    group: Ints
    block_deg: float | None
    unplaced: int


def parse(text: str, seed: int = 0) -> SplitSettings | None:
    """Read a split's spelling: blocks, blocks:2, regions:8, blocks:2,buffer_km=10,test=.3.

    Returns:
        None for anything that does not begin with blocks or regions.

    Raises:
        UserError: an unknown key or a value out of range.
    """
    by, _, rest = text.partition(":")
    if by not in ("blocks", "regions"):
        return None
    content: dict[str, object] = {"by": by, "seed": seed}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        key, value = (key, value) if equals else ({"blocks": "block_deg", "regions": "regions"}[by], part)
        content[key.strip()] = value
    return checked(content, f"split {text!r}")


def checked(content: dict[str, object], where: str) -> SplitSettings:
    """Turn keys and values into settings; a mistake is a UserError."""
    try:
        return SplitSettings.model_validate(content)
    except ValidationError as error:
        found = [
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}".removeprefix(": Value error, ").replace(
                "Extra inputs are not permitted",
                f"there is no such key; there are {', '.join(SplitSettings.model_fields)}",
            )
            for e in error.errors()
        ]
        raise UserError(f"{where}: {'; '.join(found)}") from error


def divide(places: Places, ids: NDArray[np.uint64], classes: csr_array, settings: SplitSettings) -> Division:
    """Divide images into train, val and test.

    What is held out does not depend on the order of the images: random looks at ids, blocks at places, regions at all
    places together.

    Args:
        places: of n images.
        ids: (n,) of the manifest's rows.
        classes: (n, C) of 0 and 1, of what each image shows; C may be 0.
        settings: how.

    Raises:
        UserError: no places, too few blocks or regions, or nothing left to train on.
    """
    n = len(ids)
    known = (
        np.isfinite(places.centre).all(axis=1) & np.isfinite(places.radius_m) if settings.placed else np.ones(n, bool)
    )
    rows = np.flatnonzero(known)
    if not len(rows):
        raise UserError(
            f"None of the {n:,} images has coordinates, which a split by {settings.by} needs. Index georeferenced "
            "files, or give them with terrasieve index --csv (path, lon, lat); or split at random without a buffer."
        )
    group, block_deg = np.full(n, -1), None
    if settings.by == "random":
        group[rows] = np.argsort(np.argsort(ids[rows], kind="stable"), kind="stable")
        names = np.sort(ids[rows])
    elif settings.by == "blocks":
        group[rows], names, block_deg = _blocks(places.centre[rows], settings.block_deg)
    else:
        group[rows], names = _regions(places.centre[rows], settings)
    if len(names) < 2 + (settings.val > 0):
        groups = f"{len(names)} {settings.by}" if len(names) > 1 else "one place"
        raise UserError(
            f"All {len(rows):,} images lie in {groups}; a split needs {2 + (settings.val > 0)}. "
            f"{'Choose smaller blocks.' if settings.by == 'blocks' else 'Give more images.'}"
        )
    part = np.full(n, OUT)
    draws = 1 if settings.by == "random" else DRAWS
    part[rows] = _drawn(group[rows], names, classes[rows], settings, draws)[group[rows]]
    near = _buffered(places, part, settings)
    part[near.rows] = OUT
    if not (part == TRAIN).any():
        raise UserError(f"buffer_km = {settings.buffer_km:g}: no training image is that far from all held-out ones.")
    return Division(part, near, group, block_deg, n - len(rows))


def _buffered(places: Places, part: Ints, settings: SplitSettings) -> Near:
    """Find images of val too near to test, then of train too near to test or what is left of val."""
    nothing = np.zeros(0, np.int64)
    if not settings.placed:
        return Near(nothing, nothing, np.zeros(0))
    buffer_km = settings.buffer_km or 0.0
    of_val = too_near(places, np.flatnonzero(part == VAL), np.flatnonzero(part == TEST), buffer_km)
    held = np.setdiff1d(np.flatnonzero(part > TRAIN), of_val.rows)
    of_train = too_near(places, np.flatnonzero(part == TRAIN), held, buffer_km)
    return Near(*(np.concatenate(columns) for columns in zip(of_val, of_train, strict=True)))


def blocks(centre_N2: NDArray[np.float64], block_deg: float) -> NDArray[np.uint64]:
    """Number squares of equal width: bands of latitude, each cut into as many columns as its middle has room for."""
    bands = int(np.ceil(180 / block_deg - 1e-9))
    band = np.clip(np.floor((centre_N2[:, 1] + 90) / block_deg), 0, bands - 1)
    middle = np.radians(np.clip((band + 0.5) * block_deg - 90, -90, 90))
    columns = np.maximum(np.round(360 * np.cos(middle) / block_deg), 1)
    column = np.minimum(np.floor((centre_N2[:, 0] + 180) % 360 / 360 * columns), columns - 1)
    return np.asarray(band.astype(np.uint64) << np.uint64(32) | column.astype(np.uint64))


def _blocks(centre_N2: NDArray[np.float64], block_deg: float | None) -> tuple[Ints, NDArray[np.uint64], float]:
    sides = LADDER_DEG if block_deg is None else (block_deg,)
    for side in sides:
        names, group = np.unique(blocks(centre_N2, side), return_inverse=True)
        if len(names) >= ENOUGH:
            break
    return group.astype(np.int64), names, side


def _regions(centre_N2: NDArray[np.float64], settings: SplitSettings) -> tuple[Ints, NDArray[np.uint64]]:
    """Cluster places; the clusters are numbered from south to north."""
    order = np.lexsort(centre_N2.T)  # what a draw gives must not depend on the order of the images
    if len(order) > _PLACES:
        draw = keyed.numpy_generator(settings.seed, "split/places", len(order))
        order = order[np.sort(draw.permutation(len(order))[:_PLACES])]
    places_N3 = unit_vectors(centre_N2[order])
    different = len(np.unique(places_N3, axis=0))
    if different < settings.regions:
        raise UserError(
            f"regions: {settings.regions} regions of {different} different places cannot be made; lower it."
        )
    centres_K3 = spherical_kmeans(places_N3, settings.regions, settings.seed)
    centres_K3 = centres_K3[np.argsort(centres_K3[:, 2], kind="stable")]
    group = np.concatenate(
        [
            (unit_vectors(part) @ centres_K3.T).argmax(axis=1)
            for part in np.array_split(centre_N2, len(centre_N2) // _PLACES + 1)
        ]
    )
    used, group = np.unique(group, return_inverse=True)
    return group.astype(np.int64), used.astype(np.uint64)


def _drawn(group: Ints, names: NDArray[np.uint64], classes: csr_array, settings: SplitSettings, draws: int) -> Ints:
    """Draw the part of each group: (K,).

    Of several draws that one is taken which leaves the fewest classes out of train or test, and among those the one
    nearest to the asked shares, of images and of each class.
    """
    K = len(names)
    size = np.bincount(group, minlength=K)
    membership = csr_array((np.ones(len(group)), (group, np.arange(len(group)))), shape=(K, len(group)))
    content_KC = (membership @ classes).astype(np.float64)
    total_C = np.asarray(content_KC.sum(axis=0)).ravel()
    best: tuple[tuple[float, ...], Ints] | None = None
    for draw in range(draws):
        seed = keyed.key(settings.seed, "split", draw)
        order = np.argsort(keyed.mixed(seed, f"split/{settings.by}", names), kind="stable")
        part = _cut(size[order], settings)[np.argsort(order)]
        got = [np.asarray(content_KC.T @ (part == number)).ravel() for number in (TRAIN, VAL, TEST)]
        images = [float(size[part == number].sum() / size.sum()) for number in (VAL, TEST)]
        missing = [float((values[total_C > 0] == 0).sum()) for values in (got[TRAIN], got[TEST])]
        off = abs(images[0] - settings.val) + abs(images[1] - settings.test)
        if len(total_C):
            off += float(np.abs(got[TEST] / np.maximum(total_C, 1) - settings.test).mean()) / 2
        cost = (*missing, off)
        if best is None or cost < best[0]:
            best = (cost, part)
    assert best is not None
    return best[1]


def _cut(size: Ints, settings: SplitSettings) -> Ints:
    """Give the first groups to test, the next ones to val, the others to train, each at least one: (K,)."""
    done = np.cumsum(size) / size.sum()
    least = 1 + (settings.val > 0)
    test = int(np.abs(done[:-least] - settings.test).argmin()) + 1
    val = test
    if settings.val:
        val = test + int(np.abs(done[test:-1] - done[test - 1] - settings.val).argmin()) + 1
    return np.repeat([TEST, VAL, TRAIN], [test, val - test, len(size) - val])
