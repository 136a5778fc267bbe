"""Policies: which patches are encoded, which are predicted, which are left alone.

Pure functions over richness and tokens; every count is a Python int and every draw comes in as noise, so nothing waits
for the device. ``methods.selective_mae`` puts them together. Source: SelectiveMAE (Wang et al., ICCV 2025), Eqs. 1-6;
METHODS.md, section 3. Numbers recorded from the reference implementation: ``parity/psts.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Shares(NamedTuple):
    """How one growth round is divided: shares of its picks, adding up to 1."""

    near: float = 0.0
    far: float = 0.0
    random: float = 0.0


Order = Literal["near", "far", "random"]


def stage_shares(
    progress: float,
    order: Sequence[Order] = ("near", "far", "random"),
    switches: tuple[float, float] = (0.35, 0.725),
    blend: float = 0.025,
) -> Shares:
    """Return the shares of near, far and random picks at a point of training.

    The first stage lasts until ``switches[0]``, then gives way linearly to the second over ``blend``; the second
    lasts until ``switches[1]`` and gives way to the third likewise. With the defaults: near [0, .35), blend to .375,
    far to .725, blend to .75, random to 1.

    Args:
        progress: fraction of training done, in [0, 1].
        order: the three stages.
        switches: fractions of training at which the first and the second stage begin to give way.
        blend: length of each change-over, a fraction of training; 0 switches at once.
    """
    weights = [1.0, 0.0, 0.0]
    for stage, switch in enumerate(switches):
        if progress >= switch:
            given = 1.0 if blend <= 0 else min((progress - switch) / blend, 1.0)
            weights[stage], weights[stage + 1] = 1.0 - given, given
    return Shares(*(sum(w for kind, w in zip(order, weights, strict=True) if kind == name) for name in Shares._fields))


def random_ids(noise_BN: Tensor, count: int) -> Tensor:
    """Choose ``count`` of N patches per row uniformly, given uniform noise: (B, count) int64."""
    return noise_BN.topk(count, dim=1).indices


def richest_ids(richness_BN: Tensor, count: int, excluded_ids_BK: Tensor | None = None) -> Tensor:
    """Choose the ``count`` richest patches per row that are not excluded, richest first: (B, count) int64.

    Source: SelectiveMAE, Eq. 2 (seeds) and Eq. 1 (targets, with the encoded patches excluded).
    """
    if excluded_ids_BK is not None:
        richness_BN = richness_BN.scatter(1, excluded_ids_BK, -torch.inf)
    return richness_BN.topk(count, dim=1).indices


def sampling_scores(richness_BN: Tensor, noise_BN: Tensor, temperature: float = 1.0) -> Tensor:
    """Perturb richness so that its top k is a sample without replacement (Gumbel top-k; Kool et al. 2019).

    A patch is drawn with probability proportional to richness ** (1 / temperature).

    Args:
        richness_BN: >= 0; patches of richness 0 are drawn last.
        noise_BN: uniform in [0, 1).
        temperature: > 0; towards 0 the richest are always taken, towards infinity the draw is uniform.
    """
    gumbel_BN = -torch.log(-torch.log(noise_BN.clamp(1e-12, 1 - 1e-7)))
    return richness_BN.clamp_min(1e-30).log() / temperature + gumbel_BN


def grow_seeds(
    tokens_BND: Tensor,
    seed_ids_BK: Tensor,
    rounds: Sequence[int],
    order: Order | Shares,
    generator: torch.Generator | None = None,
    *,
    noise_BN: Tensor | None = None,
) -> Tensor:
    """Grow the seed patches by progressive semantic token selection (PSTS).

    A candidate's score is its largest cosine similarity to the patches chosen so far. In each round the near share of
    the picks has the highest scores, the far share the lowest of the rest, and the random share is drawn uniformly
    from what is left, row by row.

    Args:
        tokens_BND: patch embeddings; no gradient flows.
        seed_ids_BK: int64 ids of the seeds, distinct within a row.
        rounds: picks in each round, e.g. ``(7, 8)`` grows 14 seeds to 29.
        order: ``"near"``, ``"far"``, ``"random"`` or :class:`Shares` (see :func:`stage_shares`).
        generator: for the random picks when ``noise_BN`` is not given.
        noise_BN: uniform noise that decides the random picks; lets several processes agree on them.

    Returns:
        (B, K + sum(rounds)) int64, seeds first, then the picks in order.

    Raises:
        ValueError: if there are fewer patches than seeds and picks.
    """
    B, N = tokens_BND.shape[:2]
    if seed_ids_BK.shape[1] + sum(rounds) > N:
        raise ValueError(f"{seed_ids_BK.shape[1]} seeds and {sum(rounds)} picks out of {N} patches")
    shares = Shares(**{order: 1.0}) if isinstance(order, str) else order
    if shares.random > 0 and noise_BN is None:
        noise_BN = torch.rand(B, N, generator=generator, device=tokens_BND.device)
    ids = seed_ids_BK
    with torch.no_grad():
        units_BND = None if shares.random >= 1 else torch.nn.functional.normalize(tokens_BND.detach().float(), dim=-1)
        best_BN = None if units_BND is None else _similarity(units_BND, ids)
        for count in filter(None, rounds):  # few patches leave a round without picks
            picked = _pick(best_BN, noise_BN, ids, count, shares)
            ids = torch.cat([ids, picked], dim=1)
            if best_BN is not None and units_BND is not None:
                best_BN = torch.maximum(best_BN, _similarity(units_BND, picked))
    return ids


def _similarity(units_BND: Tensor, ids_BK: Tensor) -> Tensor:
    """Return each patch's largest cosine similarity to the given ones: (B, N)."""
    chosen_BKD = units_BND.gather(1, ids_BK[..., None].expand(-1, -1, units_BND.shape[-1]))
    return (units_BND @ chosen_BKD.transpose(1, 2)).amax(dim=-1)


def _pick(best_BN: Tensor | None, noise_BN: Tensor | None, ids: Tensor, count: int, shares: Shares) -> Tensor:
    near = int(count * shares.near + 1e-6)
    far = count - near if shares.random == 0 else int(count * shares.far + 1e-6)
    picked: list[Tensor] = []
    for scores_BN, picks in (
        (best_BN, near),
        (None if best_BN is None else -best_BN, far),
        (noise_BN, count - near - far),
    ):
        if picks and scores_BN is not None:
            picked.append(richest_ids(scores_BN, picks, torch.cat([ids, *picked], dim=1)))
    return torch.cat(picked, dim=1) if picked else ids[:, :0]
