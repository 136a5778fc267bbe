"""Batches: which images are compared with each other, by where they lie.

Beside ``loader``, which reads them. Methods that compare near images with far ones (``methods.geography``) learn from
pairs within some thousand kilometres, which batches drawn from the whole world hardly hold: the regional share of a
batch is drawn from around one place or several. What step s holds is a function of seed and s alone, so a resumed run
reads on and processes take their rows of one global batch. The samplers are ours; the need for them is in METHODS.md,
section 6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from torch.utils.data import Sampler

from terrasieve import keyed
from terrasieve.data.regions import Regions, weights_of
from terrasieve.errors import UserError
from terrasieve.section import Section

Key = tuple[int, int]
ATTEMPTS = 1000  # places tried for a region that holds enough images


class GlobalBatches(Section):
    """Batches from all images.

    Attributes:
        balance: an image counts (images in its cell) ** -balance: 0 = as the data lie, 1 = cells are drawn equally
            often, however dense. 0 shuffles: all images once, then all once more. Above, batches are drawn anew, no
            image twice in one; images without a place are drawn by their share of the images.
        cell_km: side of the cells, which have equal areas.
    """

    name: Literal["global"] = "global"
    balance: float = Field(default=0.0, ge=0, le=1)
    cell_km: float = Field(default=100.0, ge=0.1)

    def regional(self, batch_size: int) -> int:
        """Return how many rows of a batch come from regions."""
        return 0


class RegionalBatches(GlobalBatches):
    """Batches whose images lie around one place, or a few.

    Attributes:
        radius_km: of a region around an image, which is drawn by ``balance``; any two of its images are at most twice
            as far apart. For ``tile2vec``: its ``near_km``, and as many regions as half a batch.
        regions: per batch, which divide its rows.
        balance: as for ``global``; also within a region.
    """

    name: Literal["regional"] = "regional"  # type: ignore[assignment]
    balance: float = Field(default=1.0, ge=0, le=1)
    radius_km: float = Field(default=1500.0, ge=0.1, le=20_100)
    regions: int = Field(default=1, ge=1)

    def regional(self, batch_size: int) -> int:
        """Return how many rows of a batch come from regions."""
        return batch_size


class MixedBatches(RegionalBatches):
    """Batches of which a share lies around one place, or a few, and the rest anywhere.

    Attributes:
        share: of the rows of every batch, spread evenly over it.
    """

    name: Literal["mixed"] = "mixed"  # type: ignore[assignment]
    share: float = Field(default=0.5, gt=0, lt=1)

    def regional(self, batch_size: int) -> int:
        """Return how many rows of a batch come from regions."""
        return round(self.share * batch_size)


Batches = Annotated[GlobalBatches | RegionalBatches | MixedBatches, Field(discriminator="name")]


def shuffles(settings: Batches) -> bool:
    """Tell whether batches are stretches of a shuffle of all images, whose places do not matter."""
    return settings.name == "global" and not settings.balance


def check_size(settings: Batches, batch_size: int) -> None:
    """Refuse regions of a single image.

    Raises:
        ValueError: naming keys and values.
    """
    rows = settings.regional(batch_size)
    if isinstance(settings, RegionalBatches) and rows < 2 * settings.regions:
        raise ValueError(
            f"loader.batches.regions {settings.regions}: {rows} of the {batch_size} rows of a batch come from regions, "
            "and each region needs 2 at least; use fewer regions or a larger batch_size"
        )


class PlacedBatches:
    """Draws the batch of every step."""

    def __init__(
        self,
        lon_deg: np.ndarray,
        lat_deg: np.ndarray,
        settings: Batches,
        seed: int,
        batch_size: int,
        shuffled: Callable[[int], list[Key]],
    ) -> None:
        """Sort the images by place.

        Args:
            lon_deg: (n,) NaN when unknown.
            lat_deg: (n,) NaN when unknown.
            settings: which batches.
            seed: of the draws.
            batch_size: of the global batch.
            shuffled: the keys of a step of a shuffle; used for the rest of mixed batches that are not balanced.

        Raises:
            UserError: if places are needed and there are none, or they cannot be.
        """
        self.settings, self.seed, self.shuffled = settings, seed, shuffled
        self.rows = regional_rows(settings, batch_size)
        _check(lon_deg, lat_deg)
        weights = weights_of(lon_deg, lat_deg, settings.cell_km, settings.balance)
        radius_km = settings.radius_km if isinstance(settings, RegionalBatches) else settings.cell_km
        self.regions = Regions(lon_deg, lat_deg, radius_km, weights)
        self._taken = np.zeros(len(lon_deg), bool)  # by the batch that is being drawn
        self.refused = 0  # centres around which there were too few images, so far
        self.centres = 0
        if self.rows.any() and not self.regions.placed:
            raise UserError(
                f"loader.batches {settings.name}: none of {len(lon_deg):,} images has lon and lat, so there are no "
                "regions to draw from. Index georeferenced images, or use loader.batches.name=global."
            )

    def of(self, step: int) -> list[Key]:
        """Return the keys, (epoch, row), of a step's global batch; what is drawn by place has -1 - step for an epoch.

        Raises:
            UserError: if no region holds enough images.
        """
        draw = keyed.numpy_generator(self.seed, "batch", step)
        keys = np.empty((len(self.rows), 2), np.int64)
        keys[:, 0] = -1 - step
        rest = int((~self.rows).sum())
        if rest and not self.settings.balance:
            keys[~self.rows] = self.shuffled(step)
        elif rest:
            keys[~self.rows, 1] = self._anywhere(draw, rest)
        if isinstance(self.settings, RegionalBatches):
            self._taken[keys[~self.rows, 1]] = True
            keys[self.rows, 1] = self._regional(draw, self.settings.regions)
            self._taken[keys[:, 1]] = False
        return [(epoch, row) for epoch, row in keys.tolist()]

    def _regional(self, draw: np.random.Generator, regions: int) -> np.ndarray:
        """Draw the images of all regions, none twice; the regions' rows differ by one at most."""
        parts = []
        for size in np.diff(np.linspace(0, int(self.rows.sum()), regions + 1).astype(int)).tolist():
            parts.append(self._somewhere(draw, size))
            self._taken[parts[-1]] = True
        return np.concatenate(parts)

    def enough_km(self) -> float:
        """Estimate the radius within which half of the images have as many around them as a region needs."""
        assert isinstance(self.settings, RegionalBatches)
        size = -(-int(self.rows.sum()) // self.settings.regions)
        return self.regions.enough_km(keyed.numpy_generator(self.seed, "batch/enough"), size)

    def _anywhere(self, draw: np.random.Generator, size: int) -> np.ndarray:
        """Draw from all images; a batch larger than the data takes them all, as often as needed."""
        everything, parts = self.regions.everything(), []
        most = int(everything[0, 1])
        for start in range(0, size, most):
            part = self.regions.draw(draw, everything, min(most, size - start), self._taken)
            assert part is not None
            parts.append(part)
        return np.concatenate(parts)

    def _somewhere(self, draw: np.random.Generator, size: int) -> np.ndarray:
        """Draw an image, and others from around it; another one, where there are too few that the batch lacks yet."""
        for _ in range(ATTEMPTS):
            self.centres += 1
            centre = self.regions.centre(draw)
            if not self._taken[centre]:
                self._taken[centre] = True
                others = self.regions.draw(draw, self.regions.around(centre), size - 1, self._taken)
                if others is not None:
                    return np.append(centre, others)
                self._taken[centre] = False
            self.refused += 1
        assert isinstance(self.settings, RegionalBatches)
        enough_km = self.enough_km()
        would = f" (half of the images have so many within {enough_km:,.0f} km)" if enough_km < 20_000 else ""
        raise UserError(
            f"loader.batches: {ATTEMPTS:,} images were tried, and around none of them lie {size - 1} others "
            f"within radius_km {self.settings.radius_km:g} that the batch does not hold yet. Give a larger "
            f"loader.batches.radius_km{would}, more loader.batches.regions (each then holds fewer images), or a "
            "smaller batch_size."
        )


def regional_rows(settings: Batches, batch_size: int) -> np.ndarray:
    """Return which rows of a batch come from regions, (batch_size,) bool, as evenly spread as can be.

    So that processes and micro-batches, which take stretches of the rows, all have their share.
    """
    share = np.arange(batch_size + 1) * settings.regional(batch_size) // batch_size
    return np.diff(share) > 0


def _check(lon_deg: np.ndarray, lat_deg: np.ndarray) -> None:
    wrong = np.flatnonzero(np.abs(lat_deg) > 90)
    if len(wrong):
        raise UserError(
            f"loader.batches: {len(wrong):,} of {len(lat_deg):,} images have a latitude beyond 90 degrees, the first "
            f"one in row {wrong[0]} (lon {lon_deg[wrong[0]]:g}, lat {lat_deg[wrong[0]]:g}). Longitude and latitude are "
            "probably swapped: exchange the columns lon and lat and index again."
        )


class PlacedSampler(Sampler[list[Key]]):
    """For each step the (epoch, row) of this process's samples; see ``loader.StepSampler``."""

    def __init__(self, batches: PlacedBatches, steps: range, rows: tuple[int, int]) -> None:
        self.batches, self.steps, self.rows = batches, steps, rows

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Key]]:
        for step in self.steps:
            yield self.batches.of(step)[self.rows[0] : self.rows[1]]
