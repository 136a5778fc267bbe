"""An adaptive token sampler (ATS), for SelectiveMAE's ablation of learned targets.

Source: AdaMAE (Bandara et al., CVPR 2023), section 3: a light network gives every patch a probability, and is rewarded
with the reconstruction error of the patches that were drawn. METHODS.md, section 3 (the paper reports that it hurts).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from terrasieve import keyed


class TargetSampler(nn.Module):
    """Score patches for being worth predicting: (B, N, D) -> (B, N) logits."""

    def __init__(self, width: int, seed: int = 0) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)
        with torch.no_grad():
            self.score.weight.normal_(std=0.02, generator=keyed.generator(seed, "weights/sampler"))
            self.score.bias.zero_()

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Return one logit per patch."""
        logits: Tensor = self.score(torch.nn.functional.layer_norm(tokens_BND, tokens_BND.shape[-1:]))
        return logits.squeeze(-1)

    def loss(self, tokens_BND: Tensor, target_ids_BM: Tensor, error_BM: Tensor) -> Tensor:
        """Reward the sampler with the error of what it drew: - mean(log p * error), error without gradient."""
        log_probability = self(tokens_BND).float().log_softmax(dim=-1).gather(1, target_ids_BM)
        reward: Tensor = (log_probability * error_BM).mean()
        return -reward
