"""Mixing: mixup and CutMix of images and labels, for classification. Runs on the device, after ``normalise``.

Sample 2i is mixed with sample 2i + 1, and how is keyed by the step and the place in the global batch; so neither
micro-batches nor processes change a step, as long as each holds an even number of samples.

Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018; Yun et al., "CutMix: Regularization
Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from terrasieve import keyed
from terrasieve.batch import Batch


@dataclass(frozen=True)
class Mix:
    """How to mix.

    Attributes:
        mixup: alpha of the Beta(alpha, alpha) that shares are drawn from; 0 = no mixup.
        cutmix: likewise of CutMix; where both are above 0, each pair gets one of them with probability 1/2.
        classes: C.
        seed: keys the draws.
    """

    mixup: float
    cutmix: float
    classes: int
    seed: int

    def __call__(self, batch: Batch, step: int) -> Batch:
        """Mix every sample with its neighbour; labels become soft, (B, C) float32.

        Args:
            batch: normalised and labelled; an even number of samples that begins at an even place.
            step: keys the draws.
        """
        assert batch.label is not None
        soft_BC = F.one_hot(batch.label, self.classes).float() if batch.label.ndim == 1 else batch.label
        B, _, H, W = batch.image.shape
        start, total = batch.rows or (0, B)
        assert B % 2 == 0 and start % 2 == 0, "pairs are not to be torn apart"
        share, box = self._draw(step, total // 2, H, W)
        pairs = slice(start // 2, (start + B) // 2)
        share_B, box_B4 = (
            torch.from_numpy(x[pairs].repeat(2, axis=0)).to(batch.image.device, non_blocking=True) for x in (share, box)
        )
        y, x = (torch.arange(side, device=batch.image.device) for side in (H, W))
        left, top, right, bottom = (edge[:, None, None] for edge in box_B4.unbind(1))
        inside_BHW = (y[:, None] >= top) & (y[:, None] < bottom) & (x >= left) & (x < right)
        # Of each pixel the share that stays the sample's own; the rest is its neighbour's.
        own_BHW = torch.where(inside_BHW, share_B[:, None, None], 1.0)
        own_B = own_BHW.mean(dim=(1, 2))
        image = torch.lerp(_swap(batch.image), batch.image, own_BHW[:, None])
        label = torch.lerp(_swap(soft_BC), soft_BC, own_B[:, None])
        valid = batch.valid
        if valid is not None:
            valid = (valid & (own_BHW > 0)) | (_swap(valid) & (own_BHW < 1))
        return replace(batch, image=image, label=label, valid=valid)

    def _draw(self, step: int, pairs: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw for every pair a box (left, top, right, bottom) and the share, in it, that stays its own.

        Mixup is a share over the whole image; CutMix is a share of 0 in a box of 1 - lambda of the area.
        """
        draw = keyed.numpy_generator(self.seed, "mix", step)
        cut = draw.random(pairs) < (0.5 if self.mixup and self.cutmix else float(self.cutmix > 0))
        blend = draw.beta(self.mixup or 1.0, self.mixup or 1.0, pairs)
        side = np.sqrt(1 - draw.beta(self.cutmix or 1.0, self.cutmix or 1.0, pairs))
        middle = draw.random((2, pairs))
        edges = [
            (np.clip(np.round(centre * pixels + sign * side * pixels / 2), 0, pixels), whole)
            for sign, ends in ((-1, (0, 0)), (1, (width, height)))
            for centre, pixels, whole in zip(middle, (width, height), ends, strict=True)
        ]
        box = np.stack([np.where(cut, edge, whole) for edge, whole in edges], axis=1).astype(np.int64)
        return np.where(cut, 0.0, blend).astype(np.float32), box


def _swap(values: Tensor) -> Tensor:
    """Give every sample its neighbour's values."""
    return values.view(-1, 2, *values.shape[1:]).flip(1).view(values.shape)
