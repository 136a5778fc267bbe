"""Geography-aware learning: tell from an image in which part of the world it lies (Ayush et al., ICCV 2021).

The parts are clusters of the manifest's own coordinates, found on the sphere when a run starts, not in a file made
beforehand. A linear layer tells them from a method's embeddings. METHODS.md, section 6.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from terrasieve import keyed
from terrasieve.errors import UserError
from terrasieve.methods.gather import processes
from terrasieve.methods.geography import unit_vectors
from terrasieve.nn.encoder import initialise
from terrasieve.section import Section

_ROUNDS = 100  # of k-means; it stops when no place changes its cluster
_PLACES = 100_000  # of a larger manifest so many are drawn, by key


class GeographyAwareSettings(Section):
    """Geography-aware learning's choices.

    Attributes:
        alpha: the method's share of the loss, the regulariser's is 1 - alpha.
        clusters: parts of the world (the paper's 100).
    """

    name: Literal["geography_aware"] = "geography_aware"
    alpha: float = Field(default=0.5, ge=0, le=1)
    clusters: int = Field(default=100, gt=1)


class Clusters(nn.Module):
    """A linear classifier of clusters of places.

    Attributes:
        centres: (K, 3) unit vectors, all 0 until :meth:`locate`.
    """

    centres: Tensor

    def __init__(self, settings: GeographyAwareSettings, seed: int, width: int) -> None:
        super().__init__()
        self.seed = seed
        self.register_buffer("centres", torch.zeros(settings.clusters, 3))
        self.classify = nn.Linear(width, settings.clusters)
        initialise(self.classify, seed, "geography")

    def locate(self, lon_deg_N: np.ndarray, lat_deg_N: np.ndarray) -> None:
        """Find the clusters of the known places.

        Raises:
            UserError: if there are fewer different places than clusters.
        """
        known_N = np.isfinite(lon_deg_N) & np.isfinite(lat_deg_N)
        units_N3 = unit_vectors(torch.from_numpy(lon_deg_N[known_N]), torch.from_numpy(lat_deg_N[known_N])).numpy()
        if len(units_N3) > _PLACES:
            draw = keyed.numpy_generator(self.seed, "geography/places")
            units_N3 = units_N3[draw.permutation(len(units_N3))[:_PLACES]]
        centres = spherical_kmeans(units_N3, len(self.centres), self.seed)
        self.centres.copy_(torch.from_numpy(centres))

    def forward(self, embeddings_BD: Tensor, lon_deg_B: Tensor, lat_deg_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the cross-entropy of the clusters over located samples, 0 without any, and how many are told right."""
        with torch.autocast(embeddings_BD.device.type, enabled=False):
            logits_BK = self.classify(embeddings_BD.float())
            units_B3 = unit_vectors(lon_deg_B, lat_deg_B).to(self.centres.dtype)
            located_B = units_B3.isfinite().all(dim=1)
            cluster_B = (units_B3.nan_to_num() @ self.centres.T).argmax(dim=1)
            losses_B = torch.where(located_B, cross_entropy(logits_BK, cluster_B, reduction="none"), 0.0)
            count = located_B.sum().float()
            right = (located_B & (logits_BK.argmax(dim=1) == cluster_B)).sum() / count.clamp(min=1)
            if processes() > 1:
                dist.all_reduce(count)
            return processes() * losses_B.sum() / count.clamp(min=1), {"cluster_accuracy": right}


def spherical_kmeans(units_N3: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Cluster unit vectors by their angle: each goes to the nearest centre, each centre to the mean's direction.

    Args:
        units_N3: float64.
        clusters: K.
        seed: of the first centres (k-means++).

    Returns:
        (K, 3) unit vectors.

    Raises:
        UserError: if there are fewer different places than clusters.
    """
    different = len(np.unique(units_N3, axis=0))
    if different < clusters:
        raise UserError(
            f"geography.clusters: {clusters} clusters of {different} different places cannot be found; lower it."
        )
    draw = keyed.key(seed, "geography/clusters") % 2**32
    from sklearn.cluster import kmeans_plusplus  # here, not above: every recipe would wait for its second

    centres_K3, _ = kmeans_plusplus(units_N3, clusters, random_state=draw)
    nearest_N = np.full(len(units_N3), -1)
    for _ in range(_ROUNDS):
        before_N, nearest_N = nearest_N, (units_N3 @ centres_K3.T).argmax(axis=1)
        if np.array_equal(before_N, nearest_N):
            break
        sums_K3 = np.stack([np.bincount(nearest_N, units_N3[:, axis], clusters) for axis in range(3)], axis=1)
        length_K1 = np.linalg.norm(sums_K3, axis=1, keepdims=True)
        centres_K3 = np.where(length_K1 > 1e-12, sums_K3 / np.maximum(length_K1, 1e-12), centres_K3)
    return np.asarray(centres_K3, dtype=np.float64)
