"""Geographic regularisers: near places should look alike to the encoder, far ones need not.

Added to a contrastive or a masked method's loss. A sample without coordinates takes no part, whatever its place in the
batch; shapes do not depend on how many there are, so nothing waits for the device. With several processes the anchors
are local and the others gathered. Source: Burgert et al. 2026 (GeoRank, GeoBasic); METHODS.md, section 6.

Legend: B anchors (local), N all samples, D width of an embedding; s similarity, x its soft rank, y the hard rank of the
distance, both scaled to rows of unit length; n located others of an anchor, S the length of the ranks 1 to n.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from terrasieve.imagery.sphere import EARTH_RADIUS_KM
from terrasieve.methods.gather import gather_rows, process, processes
from terrasieve.methods.ranks import hard_rank, soft_rank

_APART = 1e9  # in units of ranks: what is left out is ranked behind everything else, and never pooled with it


class Pairs(NamedTuple):
    """Every local sample against all samples.

    Attributes:
        cosine_BN: float32, with gradient.
        distance_BN: kilometres, float64; infinite where either place is unknown, and to oneself.
        counted_BN: bool, two located, different samples.
        share: processes; the mean over processes of ``share`` x local sum / global count is the mean over all pairs.
    """

    cosine_BN: Tensor
    distance_BN: Tensor
    counted_BN: Tensor
    share: int


def distance_km(lon1_deg: Tensor, lat1_deg: Tensor, lon2_deg: Tensor, lat2_deg: Tensor) -> Tensor:
    """Return great-circle distances in kilometres, (B, N) float64, of (B,) and (N,) places; NaN where one is NaN."""
    # Differences, not products, so that one place is exactly 0 km from itself.
    chord = torch.cdist(
        unit_vectors(lon1_deg, lat1_deg),
        unit_vectors(lon2_deg, lat2_deg),
        compute_mode="donot_use_mm_for_euclid_dist",
    )
    return (chord / 2).clamp_(max=1).asin_().mul_(2 * EARTH_RADIUS_KM)


def unit_vectors(lon_deg_B: Tensor, lat_deg_B: Tensor) -> Tensor:
    """Return places as points of the unit sphere, (B, 3) float64."""
    lon, lat = lon_deg_B.to(torch.float64).deg2rad(), lat_deg_B.to(torch.float64).deg2rad()
    return torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], dim=1)


def pair_up(embeddings_BD: Tensor, lon_deg_B: Tensor, lat_deg_B: Tensor) -> Pairs:
    """Set every local sample against all samples of all processes; gradients flow to both sides."""
    unit_BD = normalize(embeddings_BD.float(), dim=1)
    world, rank = processes(), process()
    units_ND, lons_N, lats_N = (gather_rows(v) for v in (unit_BD, lon_deg_B, lat_deg_B))
    with torch.autocast(embeddings_BD.device.type, enabled=False):
        cosine_BN = unit_BD @ units_ND.T
    distance_BN = distance_km(lon_deg_B, lat_deg_B, lons_N, lats_N)
    B, N = distance_BN.shape
    rows = torch.arange(B, device=distance_BN.device)[:, None] + rank * B
    counted_BN = distance_BN.isfinite() & (rows != torch.arange(N, device=distance_BN.device))
    return Pairs(cosine_BN, distance_BN.masked_fill(~counted_BN, torch.inf), counted_BN, world)


def mean_of(values_BN: Tensor, counted_BN: Tensor, share: int) -> Tensor:
    """Return the mean over what is counted in all processes, 0 where that is nothing."""
    count = counted_BN.sum(dtype=torch.float64)
    if share > 1:
        dist.all_reduce(count)
    total: Tensor = torch.where(counted_BN, values_BN, 0).sum()
    return share * total / count.clamp(min=1)


def georank(
    embeddings_BD: Tensor,
    lon_deg_B: Tensor,
    lat_deg_B: Tensor,
    *,
    temperature: float,
    epsilon: float,
    max_km: float,
    min_km: float = 0,
    tolerance_ranks: float = 1,
    size_free: bool = False,
) -> Tensor:
    """Return GeoRank: the order of similarities should be the order of nearness.

    For each anchor e = (x - y)^2 over the others; the loss is S x the mean of e over pairs between ``min_km`` and
    ``max_km``, where e below (tolerance / S)^2 counts as 0. Ranks are of float32 and distances of float64, as the
    recorded numbers ask for (parity/georank.json): entries that lie exactly on the tolerance are decided by rounding.

    Args:
        embeddings_BD: any floating type; computed in float32 at least.
        lon_deg_B: degrees; NaN = unknown.
        lat_deg_B: degrees; NaN = unknown.
        temperature: > 0; divides the cosine similarities.
        epsilon: > 0, of the soft ranks. The published .001 leaves 6 % of the entries with a gradient at B = 256; .1
            learned the order best.
        max_km: farther pairs are ranked but not counted.
        min_km: nearer pairs likewise.
        tolerance_ranks: difference of ranks that costs nothing.
        size_free: scale the loss so that it does not grow like sqrt(B): 0 = the same order, 1 = unrelated orders
            (Spearman: 1 - rho), in place of S x mean(e).

    Returns:
        () float64, 0 when no two samples have coordinates.
    """
    pairs = pair_up(embeddings_BD, lon_deg_B, lat_deg_B)
    counted_BN = pairs.counted_BN
    with torch.autocast(embeddings_BD.device.type, enabled=False):
        similarity_BN = (pairs.cosine_BN / temperature).double().masked_fill(~counted_BN, -_APART * epsilon)
        x_BN = _unit(soft_rank(similarity_BN, epsilon), counted_BN)
        y_BN = _unit(hard_rank(pairs.distance_BN), counted_BN)
        n = counted_BN.sum(dim=1, keepdim=True).double()
        S = (n * (n + 1) * (2 * n + 1) / 6).sqrt().clamp(min=1)
        e_BN = (x_BN - y_BN).square()
        within_BN = counted_BN & (pairs.distance_BN >= min_km) & (pairs.distance_BN <= max_km)
        e_BN = torch.where(e_BN > (tolerance_ranks / S).square(), e_BN, 0)
        scale = S.square() * 6 / (n.square() - 1).clamp(min=1) if size_free else S
        return mean_of(scale * e_BN, within_BN, pairs.share)


def _unit(ranks_BN: Tensor, counted_BN: Tensor) -> Tensor:
    """Scale rows to unit length over what is counted; the rest is 0."""
    counted: Tensor = torch.where(counted_BN, ranks_BN, 0)
    unit: Tensor = counted / counted.norm(dim=1, keepdim=True).clamp(min=1)
    return unit


def georank_correlation(
    embeddings_BD: Tensor, lon_deg_B: Tensor, lat_deg_B: Tensor, *, max_km: float, min_km: float = 0
) -> Tensor:
    """Return 1 + the correlation of each anchor's similarities with the ranks of its distances, over counted pairs.

    A rival of GeoRank without soft ranks (ours): 0 = similarity falls with rank, 1 = unrelated, 2 = it rises. Anchors
    with fewer than 3 counted others take no part. Arguments as for :func:`georank`.
    """
    pairs = pair_up(embeddings_BD, lon_deg_B, lat_deg_B)
    within_BN = pairs.counted_BN & (pairs.distance_BN >= min_km) & (pairs.distance_BN <= max_km)
    y_BN = hard_rank(pairs.distance_BN)
    count_B1 = within_BN.sum(dim=1, keepdim=True)
    centred = []
    for values_BN in (pairs.cosine_BN.double(), y_BN):
        mean_B1 = torch.where(within_BN, values_BN, 0).sum(dim=1, keepdim=True) / count_B1.clamp(min=1)
        centred.append(normalize(torch.where(within_BN, values_BN - mean_B1, 0), dim=1, eps=1e-9))
    correlation_B = (centred[0] * centred[1]).sum(dim=1)
    return mean_of(1 + correlation_B, count_B1[:, 0] >= 3, pairs.share)


def geobasic(embeddings_BD: Tensor, lon_deg_B: Tensor, lat_deg_B: Tensor, *, max_km: float = 8000) -> Tensor:
    """Return GeoBasic: mean squared difference of cosine distance / 2 and great-circle distance / cap, both in [0, 1].

    Args:
        embeddings_BD: any floating type.
        lon_deg_B: degrees; NaN = unknown.
        lat_deg_B: degrees; NaN = unknown.
        max_km: cap of the distance.

    Returns:
        () float64, 0 when no two samples have coordinates.
    """
    pairs = pair_up(embeddings_BD, lon_deg_B, lat_deg_B)
    scaled_BN = pairs.distance_BN.clamp(max=max_km) / max_km
    return mean_of(((1 - pairs.cosine_BN.double()) / 2 - scaled_BN).square(), pairs.counted_BN, pairs.share)
