"""Regularisers: a recipe's ``geography`` section, which teaches any method, contrastive or masked, where images lie.

``Geographic`` stands around a method, which need not know: loss = alpha x the method's + (1 - alpha) x the geographic
one, over the embeddings that the method hands out (the first view's projection, or the mean of the encoded patches).
A batch without coordinates leaves exactly alpha x the method's loss. Sources: METHODS.md, section 6, and beside each.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from terrasieve.batch import Batch, Output
from terrasieve.errors import UserError
from terrasieve.methods.clusters import Clusters, GeographyAwareSettings
from terrasieve.methods.collapse import monitors
from terrasieve.methods.geography import geobasic, georank, georank_correlation
from terrasieve.methods.triplets import Tile2VecSettings, tile2vec
from terrasieve.section import Section


class GeoRankSettings(Section):
    """GeoRank (Burgert et al. 2026); the defaults are the paper's but for ``epsilon``, see ``methods.geography``.

    Attributes:
        alpha: the method's share of the loss, the regulariser's is 1 - alpha.
        temperature: divides the similarities.
        epsilon: of the soft ranks; the published .001 leaves few entries a gradient.
        max_km: farther pairs are ranked but not counted.
        min_km: nearer pairs likewise.
        tolerance_ranks: difference of ranks that costs nothing.
        size_free: scale the loss so that it does not grow with the root of the batch.
    """

    name: Literal["georank"] = "georank"
    alpha: float = Field(default=0.5, ge=0, le=1)
    temperature: float = Field(default=0.04, gt=0)
    epsilon: float = Field(default=0.1, gt=0)
    max_km: float = Field(default=3000, gt=0)
    min_km: float = Field(default=0, ge=0)
    tolerance_ranks: float = Field(default=1, ge=0)
    size_free: bool = False


class GeoRankCorrelationSettings(Section):
    """GeoRank's rival without soft ranks (ours); attributes as for GeoRank."""

    name: Literal["georank_correlation"] = "georank_correlation"
    alpha: float = Field(default=0.5, ge=0, le=1)
    max_km: float = Field(default=3000, gt=0)
    min_km: float = Field(default=0, ge=0)


class GeoBasicSettings(Section):
    """GeoBasic: distances in place of ranks (Burgert et al. 2026); ``max_km`` caps the distance."""

    name: Literal["geobasic"] = "geobasic"
    alpha: float = Field(default=0.5, ge=0, le=1)
    max_km: float = Field(default=8000, gt=0)


GeographySettings = Annotated[
    GeoRankSettings | GeoRankCorrelationSettings | GeoBasicSettings | GeographyAwareSettings | Tile2VecSettings,
    Field(discriminator="name"),
]


class _Inner(Protocol):
    """What is asked of the method inside."""

    views: Any
    lr_scale: float
    encoder: Any

    def __call__(self, batch: Batch, generator: torch.Generator, *, picture: bool = False) -> Output: ...

    def after_step(self, step: int) -> None: ...


class Geographic(nn.Module):
    """A method, regularised by where its samples lie.

    Attributes:
        method: the method inside.
        clusters: of ``geography_aware``; None for the others.
    """

    def __init__(self, settings: GeographySettings, method: nn.Module, width: int, seed: int = 0) -> None:
        super().__init__()
        self.settings, self.method = settings, method
        self.clusters = Clusters(settings, seed, width) if isinstance(settings, GeographyAwareSettings) else None

    @property
    def inner(self) -> _Inner:
        """The method inside, as what it is."""
        return cast(_Inner, self.method)

    @property
    def encoder(self) -> Any:
        """The backbone that is trained and exported."""
        return self.inner.encoder

    @property
    def views(self) -> Any:
        """Images that a sample consists of."""
        return self.inner.views

    @property
    def lr_scale(self) -> float:
        """Factor on the learning rate."""
        return self.inner.lr_scale

    def locate(self, lon_deg_N: np.ndarray, lat_deg_N: np.ndarray) -> None:
        """Take note of where all images lie, before training; NaN = unknown."""
        if self.clusters is not None:
            self.clusters.locate(lon_deg_N, lat_deg_N)

    def forward(self, batch: Batch, generator: torch.Generator, *, picture: bool = False) -> Output:
        """Compute alpha x the method's loss + (1 - alpha) x the regulariser's."""
        output = self.inner(batch, generator, picture=picture)
        assert output.embeddings is not None, "a method that geography goes with hands out its embeddings"
        loss, metrics = self.regularise(output.embeddings, batch, generator)
        alpha = self.settings.alpha
        metrics |= {"method_loss": output.loss.detach(), "geography_loss": loss.detach()}
        metrics = {**monitors(output.embeddings), **output.metrics, **metrics}
        return Output(alpha * output.loss + (1 - alpha) * loss, metrics, output.picture, output.embeddings)

    def regularise(
        self, embeddings_BD: Tensor, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the regulariser's loss and metrics."""
        how, where = self.settings, (batch.lon, batch.lat)
        if isinstance(how, GeoRankSettings):
            choices = how.model_dump(exclude={"name", "alpha"})
            return georank(embeddings_BD, *where, **choices).float(), {}
        if isinstance(how, GeoRankCorrelationSettings):
            return georank_correlation(embeddings_BD, *where, max_km=how.max_km, min_km=how.min_km).float(), {}
        if isinstance(how, GeoBasicSettings):
            return geobasic(embeddings_BD, *where, max_km=how.max_km).float(), {}
        if isinstance(how, Tile2VecSettings):
            return tile2vec(embeddings_BD, batch, generator, how)
        assert self.clusters is not None
        told: tuple[Tensor, dict[str, Tensor]] = self.clusters(embeddings_BD, *where)
        return told

    def after_step(self, step: int) -> None:
        """Do what the method inside does."""
        self.inner.after_step(step)


def check_places(lon_deg_N: np.ndarray, lat_deg_N: np.ndarray, settings: GeographySettings) -> None:
    """Refuse coordinates that cannot be, before anything is trained on them.

    Raises:
        UserError: if a latitude is beyond 90 degrees or a longitude beyond 360, or no image has coordinates.
    """
    known_N = np.isfinite(lon_deg_N) & np.isfinite(lat_deg_N)
    if not known_N.any():
        raise UserError(
            f"geography {settings.name}: none of the manifest's {len(known_N)} images has lon and lat, so there is "
            "nothing to regularise with; index georeferenced images, or leave geography out."
        )
    wrong = int((np.abs(lat_deg_N[known_N]) > 90).sum() + (np.abs(lon_deg_N[known_N]) > 360).sum())
    if wrong:
        raise UserError(
            f"geography {settings.name}: {wrong} of {len(known_N)} rows of the manifest have a latitude beyond 90 "
            "degrees or a longitude beyond 360; longitude and latitude are probably swapped. Exchange the columns lon "
            "and lat and index again."
        )
