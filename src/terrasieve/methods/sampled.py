"""Sampled: which anchors or proposals a detector learns from, drawn from the step's generator.

Used by the detectors. torchvision draws from the global stream; here every process and micro-batch draws the numbers of
the whole batch and takes its own rows, so that a resumed run takes the same samples.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Sampler:
    """Draw a fixed number of samples in each image, at most a share of them positive.

    Attributes:
        noise_BA: uniform numbers of the step, at least as many per image as there are candidates.
        drawn: () how many were chosen last, of all images.
    """

    noise_BA: Tensor
    drawn: Tensor

    def __init__(self, count: int, share: float) -> None:
        self.count, self.share = count, share

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Choose, as torchvision's ``BalancedPositiveNegativeSampler`` does.

        Args:
            labels: of each image's candidates, 1 or more positive, 0 negative, below 0 neither.

        Returns:
            Flags of the chosen positives and of the chosen negatives, bool, image by image.
        """
        positives, negatives = [], []
        for label_A, noise_BA in zip(labels, self.noise_BA, strict=True):
            noise_A = noise_BA[: len(label_A)]
            positive = _lowest(label_A >= 1, noise_A, torch.tensor(int(self.count * self.share), device=noise_A.device))
            positives.append(positive)
            negatives.append(_lowest(label_A == 0, noise_A, self.count - positive.sum()))
        self.drawn = torch.stack([flags.sum() for flags in (*positives, *negatives)]).sum()
        return positives, negatives

    def mean(self, loss: Tensor) -> Tensor:
        """Return a mean over what was drawn, 0 where nothing was (all is covered by difficult objects)."""
        return torch.where(self.drawn > 0, loss, 0.0)


def _lowest(candidates_A: Tensor, noise_A: Tensor, count: Tensor) -> Tensor:
    """Flag the candidates with the lowest noise, at most ``count``."""
    ranked = torch.where(candidates_A, noise_A, torch.inf).argsort()
    rank_A = torch.empty_like(ranked)
    rank_A[ranked] = torch.arange(len(ranked), device=ranked.device)
    return candidates_A & (rank_A < count)
