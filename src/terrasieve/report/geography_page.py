"""The page on geography: what an encoder makes of places, beside the same encoder untrained.

After ``mapping``, which computes features. One HTML file that opens anywhere, offline. The pair of pictures is the one
by which Burgert et al. 2026 show what GeoRank does: the map coloured by features, the features coloured by place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor
from torch.nn.functional import normalize

from terrasieve.evaluate.geography import Correlation, Falling
from terrasieve.evaluate.protocol import PRETRAINED, RANDOM_INIT, RAW_PIXELS
from terrasieve.report import geography_figures as figures
from terrasieve.report.render import write_page

NAMES = {PRETRAINED: "trained", RANDOM_INIT: "untrained", RAW_PIXELS: "raw pixels"}


class Located(NamedTuple):
    """Images with places, and what encoders make of them.

    Attributes:
        features: of each encoder, (n, D).
        lon, lat: (n,) degrees.
        correlations: of each encoder, over held-out images if there are any; may be empty.
        falling: likewise.
        judged: images that these are of.
        held_out: whether they are the test images.
        max_km: farther pairs are not counted.
        notes: sentences on what is not shown.
    """

    features: Mapping[str, Tensor]
    lon: np.ndarray
    lat: np.ndarray
    correlations: Mapping[str, Correlation]
    falling: Mapping[str, Falling]
    judged: int
    held_out: bool
    max_km: float
    notes: list[str]


def principal(features_ND: Tensor, count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return principal components of features scaled to unit length, since their angles are what is compared.

    Returns:
        (N, count) float64, 0 where there are fewer; the share of the variance of each, (count,). Signs are such that
        each direction's largest entry is positive.
    """
    unit_ND = normalize(features_ND.double(), dim=1)
    centred_ND = unit_ND - unit_ND.mean(0)
    variance_D, axes_DD = torch.linalg.eigh(centred_ND.T @ centred_ND)
    count_there = min(count, len(variance_D))
    top_DK = axes_DD.flip(1)[:, :count_there]
    top_DK = top_DK * top_DK.gather(0, top_DK.abs().argmax(0, keepdim=True)).sign()
    found, shares = np.zeros((len(unit_ND), count)), np.zeros(count)
    found[:, :count_there] = (centred_ND @ top_DK).numpy()
    shares[:count_there] = (variance_D.flip(0)[:count_there] / variance_D.sum().clamp(min=1e-300)).numpy()
    return found, shares


def write_geography_page(path: Path, name: str, made_of: str, located: Located) -> Path:
    """Write the page.

    Args:
        path: of the page.
        name: of the run.
        made_of: name of the manifest.
        located: images; at least one.
    """
    lon, lat = located.lon, located.lat
    shown: list[dict[str, Any]] = []
    for encoder in (PRETRAINED, RANDOM_INIT):
        components, shares = principal(located.features[encoder])
        # Figures are made of numbers; what is text in them is escaped.
        shown.append(
            {
                "title": NAMES[encoder].capitalize(),
                "correlation": located.correlations.get(encoder),
                "map": Markup(figures.world(lon, lat, figures.component_colours(components))),
                "space": Markup(figures.space(components[:, :2], lon, lat, shares.tolist())),
                "shares": ", ".join(f"{100 * share:.0f}" for share in shares),
            }
        )
    falling = {NAMES[name]: one for name, one in located.falling.items()}
    return write_page(
        "geography.html.j2",
        path,
        name=name,
        made_of=made_of,
        shown=shown,
        ratio=float(np.clip(figures.aspect(lon, lat), 0.8, 1.75)),
        images=len(lon),
        rows=[(NAMES[name], one) for name, one in located.correlations.items()],
        falling=Markup(figures.falling(falling)) if falling else None,
        located=located,
    )
