"""Geography of features: do places that lie near each other look alike to the encoder, and far ones less so?

After features are extracted; ``assess`` prints it beside the scores of a task, studies call it. It measures what the
regularisers of ``methods.geography`` ask for, on images that training has not seen. Source: Burgert et al. 2026
(ranks per anchor, great-circle distances, pairs within ``max_km``); Spearman 1904; METHODS.md, section 6.

Legend: n located images; x ranks of similarity, y ranks of distance, both per anchor (row); R resamples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import normalize

from terrasieve.errors import UserError
from terrasieve.evaluate.metrics import resample_counts
from terrasieve.files import written_aside
from terrasieve.keyed import numpy_generator
from terrasieve.methods.geography import distance_km
from terrasieve.methods.ranks import hard_rank

if TYPE_CHECKING:
    from rich.table import Table

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
        return Correlation(float("nan"), float("nan"), float("nan"), 0, 0)
    correlations = _correlations(x_nn, y_nn, counted_nn, usable_n, resamples, seed)
    low, high = np.nanquantile(correlations[1:], [0.025, 0.975]) if resamples else [float("nan")] * 2
    return Correlation(float(correlations[0]), float(low), float(high), int(usable_n.sum()), pairs)


class Falling(NamedTuple):
    """How alike images are, by how far apart they lie.

    Attributes:
        edges_km: (bins + 1,) ascending; every bin has as many pairs.
        percentile: (bins,) mean percentile of the pairs' similarity among all pairs; 50 where place does not matter.
    """

    edges_km: np.ndarray
    percentile: np.ndarray


def similarity_by_distance(
    features_ND: Tensor, lon: ArrayLike, lat: ArrayLike, max_km: float = MAX_KM, *, bins: int = 12, seed: int = 0
) -> Falling | None:
    """Rank all pairs within ``max_km`` by cosine similarity and average the ranks by distance.

    Args:
        features_ND: any scale; of more than 1,000 images so many are drawn by key.
        lon, lat: (N,) degrees, finite.
        max_km: farther pairs are left out.
        bins: of as many pairs each.
        seed: of the draw.

    Returns:
        None with fewer than two pairs a bin.
    """
    lon, lat = np.asarray(lon, np.float64), np.asarray(lat, np.float64)
    rows = np.sort(numpy_generator(seed, "similarity_by_distance", len(lon)).permutation(len(lon))[: MOST // 2])
    unit_nD = normalize(features_ND[torch.from_numpy(rows)].double(), dim=1)
    place = (torch.from_numpy(lon[rows]), torch.from_numpy(lat[rows]))
    above = torch.ones(len(rows), len(rows), dtype=torch.bool).triu(1)
    km, cosine = distance_km(*place, *place)[above].numpy(), (unit_nD @ unit_nD.T)[above].numpy()
    km, cosine = km[km <= max_km], cosine[km <= max_km]
    if len(km) < 2 * bins:
        return None
    percentile = np.empty(len(km))
    percentile[np.argsort(cosine, kind="stable")] = np.linspace(0, 100, len(km))
    parts = np.array_split(np.argsort(km, kind="stable"), bins)
    edges = [km[parts[0][0]], *(km[part[-1]] for part in parts)]
    return Falling(np.array(edges), np.array([percentile[part].mean() for part in parts]))


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


def correlations(
    features: Mapping[str, Tensor], lon: ArrayLike, lat: ArrayLike, max_km: float = MAX_KM, seed: int = 0
) -> dict[str, Correlation]:
    """Correlate the features of several encoders; empty where no image has enough others within reach."""
    found = {name: geographic_correlation(values, lon, lat, max_km, seed=seed) for name, values in features.items()}
    return found if any(one.pairs for one in found.values()) else {}


def write(found: Mapping[str, Correlation], path: Path, about: Mapping[str, Any]) -> None:
    """Write correlations as JSON: what they were made of, and a line of numbers per encoder."""
    content = {**about, "encoders": {name: one._asdict() for name, one in found.items()}}
    with written_aside(path) as aside:
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Correlation]:
    """Read what :func:`write` wrote; empty where there is no such file."""
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return {name: Correlation(**numbers) for name, numbers in content["encoders"].items()}


def rich_table(found: Mapping[str, Correlation], max_km: float = MAX_KM, of: str = "test images") -> Table:
    """Lay correlations out for the terminal, a row per encoder."""
    from rich.table import Table

    first = next(iter(found.values()))
    table = Table(title=f"near places look alike? {first.images:,} {of}, {first.pairs:,} pairs <= {max_km:g} km")
    table.add_column("encoder")
    table.add_column("rank correlation of similarity with distance", justify="right")
    for name, one in found.items():
        table.add_row(name, f"{one.value:+.3f} [{one.low:+.3f}, {one.high:+.3f}]")
    table.caption = "-1: the nearer, the more alike; 0: place does not matter"
    return table
