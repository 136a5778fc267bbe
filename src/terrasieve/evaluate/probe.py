"""Linear probe: a batch norm without affine and one linear layer on frozen features.

Used by ``evaluate.protocol``. Source: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022,
appendix A (batch norm without affine before the classifier). The problem is convex and the features fit in memory, so
it is solved by full-batch accelerated gradient (Nesterov, 1983) in which every direction's step follows from the
features: no learning rate has to be tuned, and features of any spectrum converge alike. What regularises, the weight
decay, is chosen on validation samples, all candidates trained side by side. Nothing is drawn but the held-out part.

Given validation samples are never fitted on; where there are none, a stratified share of the training samples is set
aside for the choice and returns for the final fit. Either way the final classifier has seen exactly the training
samples, and never the test samples.

Shapes: N samples, D features, C classes, L candidate weight decays.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from terrasieve.errors import UserError
from terrasieve.keyed import generator

WEIGHT_DECAYS = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
STEPS = 150
HELD_OUT = 0.15  # share of the training samples that chooses the weight decay where no validation split is given


@dataclass(frozen=True)
class Probe:
    """A fitted probe.

    Attributes:
        mean_D, scale_D: (D,) the batch norm's statistics, those of the training samples.
        weight_DC, bias_C: the linear layer.
        weight_decay: what validation chose, per sample mean of the loss.
        validation_loss: mean loss of that choice on the validation samples.
    """

    mean_D: Tensor
    scale_D: Tensor
    weight_DC: Tensor
    bias_C: Tensor
    weight_decay: float
    validation_loss: float

    def scores(self, features_ND: Tensor) -> Tensor:
        """Return the logits, (N, C)."""
        return (features_ND.float() - self.mean_D) / self.scale_D @ self.weight_DC + self.bias_C


def fit_probe(
    train_ND: Tensor,
    train_targets: Tensor,
    val_MD: Tensor | None = None,
    val_targets: Tensor | None = None,
    *,
    classes: int,
    seed: int,
    steps: int = STEPS,
) -> Probe:
    """Choose the weight decay on validation samples and fit the probe on the training samples.

    Args:
        train_ND: (N, D) features.
        train_targets: (N,) int64 class numbers (cross-entropy), or (N, C) multi-hot (binary cross-entropy).
        val_MD: (M, D) features; None = set 15 % of the training samples aside for the choice.
        val_targets: like ``train_targets``.
        classes: C.
        seed: keys the held-out part.
        steps: gradient steps, for the choice and for the final fit alike.

    Raises:
        UserError: fewer than two training samples.
    """
    if len(train_ND) < 2:
        raise UserError(f"linear probe: {len(train_ND)} training samples; at least 2 are needed")
    if val_MD is None or val_targets is None:
        held = held_out(train_targets, HELD_OUT, seed)
        part_ND, part_targets = train_ND[~held], train_targets[~held]
        val_MD, val_targets = train_ND[held], train_targets[held]
    else:
        part_ND, part_targets = train_ND, train_targets
    mean_D, scale_D = _statistics(part_ND)
    weight_DLC, bias_LC = _solve((part_ND.float() - mean_D) / scale_D, part_targets, WEIGHT_DECAYS, classes, steps)
    logits_MLC = torch.einsum("md,dlc->mlc", (val_MD.float() - mean_D) / scale_D, weight_DLC) + bias_LC
    losses = [_validation_loss(logits_MC, val_targets) for logits_MC in logits_MLC.unbind(1)]
    decay = WEIGHT_DECAYS[losses.index(min(losses))]
    mean_D, scale_D = _statistics(train_ND)
    weight_DLC, bias_LC = _solve((train_ND.float() - mean_D) / scale_D, train_targets, (decay,), classes, steps)
    return Probe(mean_D, scale_D, weight_DLC[:, 0], bias_LC[0], decay, min(losses))


def held_out(targets: Tensor, share: float, seed: int) -> Tensor:
    """Choose a part of the samples, stratified by class where there is one class each.

    Every class keeps at least one sample on the other side, so a class of one sample is never held out.

    Args:
        targets: (N,) int64, or (N, C) multi-hot (drawn without regard to the labels).
        share: of the samples to hold out, in (0, 1).
        seed: key of the draw.

    Returns:
        (N,) bool, True where held out; at least one sample.
    """
    count = len(targets)
    held = torch.zeros(count, dtype=torch.bool)
    order = torch.randperm(count, generator=generator(seed, "held-out", count))
    strata = [order] if targets.ndim == 2 else [order[targets[order] == c] for c in range(int(targets.max()) + 1)]
    for stratum in strata:
        held[stratum[: max(0, min(len(stratum) - 1, round(share * len(stratum))))]] = True
    if not held.any():
        held[order[0]] = True
    return held


def _statistics(features_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and scale per feature; a constant feature is left as it is instead of blown up."""
    variance_D, mean_D = torch.var_mean(features_ND.float(), 0, correction=0)
    return mean_D, (variance_D + 1e-6).sqrt()


def _solve(
    features_ND: Tensor, targets: Tensor, decays: tuple[float, ...], classes: int, steps: int
) -> tuple[Tensor, Tensor]:
    """Minimise mean loss + decay/2 x |weights|^2 for every decay at once, (D, L, C) and (L, C).

    The candidates share one matrix product per step, and the gradient of a linear layer is written out.
    """
    multilabel = targets.ndim == 2
    truth_N1C = (targets if multilabel else F.one_hot(targets, classes)).float()[:, None]
    decay_L1 = torch.tensor(decays)[:, None]
    # The Hessian is at most 1/4 (sigmoid) or 1/2 (softmax) of the features' second moment, plus the decay. Along the
    # moment's own axes that bound is diagonal, so every direction gets its largest safe step, however small it is.
    moment_D, axes_DD = torch.linalg.eigh((features_ND.T @ features_ND).double() / len(features_ND))
    bound = 0.25 if multilabel else 0.5
    steepest_DL1 = bound * moment_D.clamp(min=0).float()[:, None, None] + decay_L1
    turned_ND = features_ND @ axes_DD.float()
    weight_DLC = features_ND.new_zeros(features_ND.shape[1], len(decays), classes)
    bias_LC = features_ND.new_zeros(len(decays), classes)
    ahead_DLC, ahead_LC, age_L1 = weight_DLC, bias_LC, torch.zeros(len(decays), 1)
    for _ in range(steps):
        logits_NLC = (turned_ND @ ahead_DLC.flatten(1)).view(-1, *bias_LC.shape) + ahead_LC
        said_NLC = logits_NLC.sigmoid() if multilabel else logits_NLC.softmax(2)
        error_NLC = (said_NLC - truth_N1C) / len(features_ND)
        pull_DLC = (turned_ND.T @ error_NLC.flatten(1)).view_as(weight_DLC) + decay_L1 * ahead_DLC
        pull_LC = error_NLC.sum(0)
        move_DLC = ahead_DLC - pull_DLC / steepest_DL1 - weight_DLC
        move_LC = ahead_LC - pull_LC / bound - bias_LC
        weight_DLC, bias_LC = weight_DLC + move_DLC, bias_LC + move_LC
        # Momentum that has carried a candidate uphill starts again (O'Donoghue and Candes, 2015).
        uphill_L1 = ((pull_DLC * move_DLC).sum((0, 2)) + (pull_LC * move_LC).sum(1) > 0)[:, None]
        age_L1 = torch.where(uphill_L1, 0.0, age_L1 + 1)
        carry_L1 = age_L1 / (age_L1 + 3)
        ahead_DLC, ahead_LC = weight_DLC + carry_L1 * move_DLC, bias_LC + carry_L1 * move_LC
    return (axes_DD.float() @ weight_DLC.flatten(1)).view_as(weight_DLC), bias_LC


def _validation_loss(logits_MC: Tensor, targets: Tensor) -> float:
    """Return the mean loss; it picks more steadily than accuracy, which a few validation samples decide."""
    if targets.ndim == 2:
        return float(F.binary_cross_entropy_with_logits(logits_MC, targets.float()))
    return float(F.cross_entropy(logits_MC, targets))
