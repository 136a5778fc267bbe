"""Collapse: how much of their space a batch's embeddings still use.

A contrastive loss can fall because all images come to look alike, so these numbers are logged beside it. None of them
needs a decomposition, so none makes the host wait. Source: METHODS.md, section 5; Wang & Isola, ICML 2020, for
uniformity; Chen & He, CVPR 2021, for the spread.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

COLLAPSED_RANK = 2.0  # an effective rank below this is warned of
_NOISE = 1e-4  # a mean squared distance from the mean of unit vectors that is nothing but rounding


def monitors(embeddings_BD: Tensor) -> dict[str, Tensor]:
    """Measure a batch's embeddings, scaled to unit length.

    Args:
        embeddings_BD: any floating type; no gradient flows.

    Returns:
        ``effective_rank``: of the covariance, (sum of eigenvalues)^2 / sum of squares, 1 to min(B - 1, D), towards 0
        where all embeddings are one; ``spread``: mean standard deviation of a dimension x sqrt(D), 1 = as on a sphere,
        0 = collapsed; ``uniformity``: log of the mean of exp(-2 d^2) over pairs, 0 = collapsed, -4 = evenly spread.
    """
    with torch.no_grad(), torch.autocast(embeddings_BD.device.type, enabled=False):
        unit_BD = normalize(embeddings_BD.detach().float(), dim=1)
        B, D = unit_BD.shape
        centred_BD = unit_BD - unit_BD.mean(dim=0)
        tall = centred_BD if B >= D else centred_BD.T
        covariance = tall.T @ tall / B  # or the Gram matrix, which has the same eigenvalues
        total = centred_BD.square().sum() / B
        apart_BB = (2 - 2 * unit_BD @ unit_BD.T).clamp(min=0)
        closeness = ((-2 * apart_BB).exp().sum() - B) / max(B * (B - 1), 1)
        return {
            "effective_rank": total.square() / (covariance.square().sum() + _NOISE**2),
            "spread": centred_BD.square().mean(dim=0).sqrt().mean() * D**0.5,
            "uniformity": closeness.clamp(min=1e-30).log(),
        }
