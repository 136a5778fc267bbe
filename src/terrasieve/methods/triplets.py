"""Tile2Vec: a neighbour should look more alike than a distant tile (Jean et al., AAAI 2019; METHODS.md, section 6).

Here within a batch: the nearest other sample within a radius is the neighbour, a random one beyond another radius the
distant tile. Batches drawn from the whole world seldom hold a neighbour; the metric tells for how many anchors they do.
Deviation from the paper: embeddings have unit length, in place of a penalty on their length.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from terrasieve.batch import Batch
from terrasieve.methods.geography import mean_of, pair_up
from terrasieve.methods.reconstruction import draw_noise
from terrasieve.section import Section


class Tile2VecSettings(Section):
    """Tile2Vec's choices.

    Attributes:
        alpha: the method's share of the loss, the regulariser's is 1 - alpha.
        near_km: a neighbour lies within.
        far_km: a distant tile lies beyond.
        margin: by how much the distant one should be farther, in Euclidean distance of unit vectors, 0 to 2.
    """

    name: Literal["tile2vec"] = "tile2vec"
    alpha: float = Field(default=0.5, ge=0, le=1)
    near_km: float = Field(default=5, gt=0)
    far_km: float = Field(default=100, gt=0)
    margin: float = Field(default=0.5, gt=0)


def tile2vec(
    embeddings_BD: Tensor, batch: Batch, generator: torch.Generator, settings: Tile2VecSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the triplet margin loss over anchors that have both, 0 without any, and their share of the batch."""
    pairs = pair_up(embeddings_BD, batch.lon, batch.lat)
    with torch.autocast(embeddings_BD.device.type, enabled=False):
        apart_BN = (2 - 2 * pairs.cosine_BN).clamp(min=1e-6).sqrt()
        near_km_B1, near_B1 = pairs.distance_BN.min(dim=1, keepdim=True)
        far_BN = pairs.counted_BN & (pairs.distance_BN > settings.far_km)
        noise_BN = draw_noise(batch, generator, pairs.distance_BN.shape[1])
        far_B1 = torch.where(far_BN, noise_BN, -1.0).argmax(dim=1, keepdim=True)
        losses_B1 = (apart_BN.gather(1, near_B1) - apart_BN.gather(1, far_B1) + settings.margin).clamp(min=0)
        has_near_B1 = near_km_B1 <= settings.near_km
        both_B1 = has_near_B1 & far_BN.any(dim=1, keepdim=True)
        metrics = {"neighbour_share": has_near_B1.float().mean(), "triplet_share": both_B1.float().mean()}
        return mean_of(losses_B1, both_B1, pairs.share).float(), metrics
