"""Geography of features: do places that lie near each other look alike to the encoder, and far ones less so?

After features are extracted; ``assess`` prints it beside the scores of a task, studies call it. It measures what the
regularisers of ``methods.geography`` ask for, on images that training has not seen. Source: Burgert et al. 2026
(ranks per anchor, great-circle distances, pairs within ``max_km``); Spearman 1904; METHODS.md, section 6.

Legend: n located images; x ranks of similarity, y ranks of distance, both per anchor (row); R resamples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import normalize

from terrasieve.errors import UserError
from terrasieve.evaluate.metrics import resample_counts
from terrasieve.keyed import numpy_generator
from terrasieve.methods.geography import distance_km
from terrasieve.methods.ranks import hard_rank

MAX_KM = 3000.0
MOST = 2000  # images; more are a keyed draw of so many, or pairs would not fit
LEAST = 3  # others within reach; two always agree or disagree entirely


class Correlation(NamedTuple):
    """Rank correlation of the similarity of features with the distance of places.

    Attributes:
        value: mean over images of the Spearman correlation of their similarities to the others with their distances,
            -1 (the nearer, the more alike) to 1; NaN where no image has enough others within reach.
        low, high: 95 % percentile bootstrap interval over images, each drawn as anchor and as other.
        images: that have enough others within reach.
        pairs: (image, other) within reach.
    """

    value: float
    low: float
    high: float
    images: int
    pairs: int


def geographic_correlation(
    features_ND: ArrayLike | Tensor,
    lon: ArrayLike,
    lat: ArrayLike,
    max_km: float = MAX_KM,
    *,
    min_km: float = 0.0,
    resamples: int = 1000,
    seed: int = 0,
    most: int = MOST,
) -> Correlation:
    """Correlate ranks of cosine similarity with ranks of great-circle distance, image by image.

    Images whose others all lie equally far say nothing and are left out; one to which all others are equally similar
    counts as 0. Ties share their average rank. A resample keeps the ranks of the whole set.

    Args:
        features_ND: (N, D) of held-out images; any scale.
        lon, lat: (N,) degrees; images without finite coordinates take no part.
        max_km: farther pairs are not counted.
        min_km: nearer pairs are not counted.
        resamples: of the bootstrap; 0 = no interval (NaN).
        seed: keys the resamples, and the draw of ``most``.
        most: images at once; of more so many are drawn.

    Raises:
        UserError: lengths that do not fit, distances out of order, or a latitude beyond 90 degrees.
    """
    features_ND, lon, lat = torch.as_tensor(features_ND), np.asarray(lon, np.float64), np.asarray(lat, np.float64)
    if not len(features_ND) == len(lon) == len(lat):
        raise UserError(f"{len(features_ND)} features for {len(lon)} longitudes and {len(lat)} latitudes")
    if not 0 <= min_km < max_km:
        raise UserError(f"min_km = {min_km:g} and max_km = {max_km:g}: 0 <= min_km < max_km is needed")
    rows = np.flatnonzero(np.isfinite(lon) & np.isfinite(lat))
    if len(rows) and np.abs(lat[rows]).max() > 90:
        raise UserError("a latitude is beyond 90 degrees; longitude and latitude are swapped, most likely")
    if len(rows) > most:
        rows = np.sort(numpy_generator(seed, "geographic_correlation", len(rows)).permutation(rows)[:most])
    unit_nD = normalize(features_ND[torch.from_numpy(rows)].double(), dim=1)
    place = (torch.from_numpy(lon[rows]), torch.from_numpy(lat[rows]))
    distance_nn = distance_km(*place, *place)
    counted_nn = (distance_nn >= min_km) & (distance_nn <= max_km)
    counted_nn.fill_diagonal_(False)
    # Rounded, so that equal features are equally similar whatever the order of the sums.
    x_nn = _ranks((unit_nD @ unit_nD.T).round(decimals=12), counted_nn)
    y_nn = _ranks(distance_nn.round(decimals=9), counted_nn)
    others_n1 = counted_nn.sum(1, keepdim=True)
    # All equally far share the middle rank.
    usable_n = (others_n1[:, 0] >= LEAST) & (y_nn > (others_n1 + 1) / 2).any(1)
    pairs = int(counted_nn[usable_n].sum())
    if not pairs:
        return Correlation(*[float("nan")] * 3, images=0, pairs=0)
    correlations = _correlations(x_nn, y_nn, counted_nn, usable_n, resamples, seed)
    low, high = np.nanquantile(correlations[1:], [0.025, 0.975]) if resamples else [float("nan")] * 2
    return Correlation(float(correlations[0]), float(low), float(high), int(usable_n.sum()), pairs)


def _ranks(values_nn: Tensor, counted_nn: Tensor) -> Tensor:
    """Rank what is counted of each row, 1 = the smallest; the rest is 0."""
    ranks: Tensor = torch.where(counted_nn, hard_rank(values_nn.masked_fill(~counted_nn, torch.inf)), 0)
    return ranks


def _correlations(
    x_nn: Tensor, y_nn: Tensor, counted_nn: Tensor, usable_n: Tensor, resamples: int, seed: int
) -> np.ndarray:
    """Return the mean correlation of all images, then of each resample, (1 + R,) float64.

    A resample is a vector of weights, so that its sums over others are matrix products.
    """
    n = len(x_nn)
    one_Rn = torch.ones(1, n, dtype=torch.float64)
    draws = numpy_generator(seed, "bootstrap", n)
    weights_Rn = torch.cat([one_Rn, resample_counts(draws, resamples, n)]) if resamples else one_Rn
    x, y, inside = (values[usable_n] for values in (x_nn, y_nn, counted_nn.double()))
    count = (weights_Rn @ inside.T).clamp(min=1e-9)
    mean_x, mean_y = (weights_Rn @ v.T / count for v in (x, y))
    xx, yy, xy = (weights_Rn @ v.T / count for v in (x * x, y * y, x * y))
    spread = ((xx - mean_x**2).clamp(min=0) * (yy - mean_y**2).clamp(min=0)).sqrt()
    size = (xx * yy).sqrt().clamp(min=1e-9)
    each_Rn = torch.where(spread > 1e-9 * size, (xy - mean_x * mean_y) / spread, 0)
    own_Rn = weights_Rn[:, usable_n]
    return np.asarray(((own_Rn * each_Rn).sum(1) / own_Rn.sum(1)).numpy())
