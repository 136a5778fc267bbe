"""Fine-tuned models on labelled images: what validation measures while training, and the scores at its end.

After ``train``, whose loop is given :func:`measure` as its validation. Each process predicts its share of the images;
metrics are those of ``metrics``, the same on every process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from terrasieve import keyed
from terrasieve.batch import Batch
from terrasieve.data.augment import normalise
from terrasieve.data.loader import whole_batches
from terrasieve.evaluate.metrics import METRICS, Kind, bootstrap, value
from terrasieve.evaluate.parts import Part
from terrasieve.evaluate.protocol import Score
from terrasieve.methods import Adapter
from terrasieve.train.distributed import gathered
from terrasieve.train.state import State, evaluating

FINE_TUNED = "fine-tuned"


def predictions(
    state: State, part: Part, batch_size: int, on_images: Callable[[int, int], None] | None = None
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield this process's batches of a part and their logits, (B, C) or (B, C, H, W) float32.

    Every process gets as many batches as the others, so some images may come twice; ``batch.index`` tells. What is
    drawn in inference, as random dropping does, is keyed by the batch's first image.

    Args:
        state: holds the method, which is in evaluation mode inside the loop over this.
        part: images and truth.
        batch_size: images per batch.
        on_images: called with images done and their total.
    """
    settings, world = state.settings, state.world
    count = len(part.images)
    own = [(world.rank + step * world.size) % count for step in range(-(-count // world.size))]
    done = 0
    for batch in whole_batches(
        part.images, settings.image, settings.loader, batch_size, truth=part.truth, rows=own
    ):  # fmt: skip
        draw = keyed.generator(settings.seed, "predict", own[done], device=world.device)
        ready = normalise(batch.to(world.device), state.mean, state.std)
        with evaluating(state), state.autocast():
            logits = cast(Adapter, state.method).predict(ready, draw).float()
        yield ready, logits
        done += len(batch)
        if on_images:
            on_images(min(done * world.size, count), count)


def logits_of(state: State, part: Part, batch_size: int, on_images: Callable[[int, int], None] | None = None) -> Tensor:
    """Classify all images of a part: (n, C) float32 on the CPU, the same on every process."""
    found = [(b.index, logits.cpu()) for b, logits in predictions(state, part, batch_size, on_images)]
    found = gathered(state.world, found)
    logits_NC = found[0][1].new_full((len(part.images), found[0][1].shape[1]), torch.nan)
    for index, logits in found:
        logits_NC[index.cpu()] = logits
    return logits_NC


def probabilities(logits_NC: Tensor, kind: Kind) -> Tensor:
    """Turn logits into scores in [0, 1]."""
    return logits_NC.sigmoid() if kind == "multilabel" else logits_NC.softmax(dim=1)


def measure(part: Part, kind: Kind, batch_size: int) -> Callable[[State], dict[str, float]]:
    """Make the validation of a classification: its metrics in ``METRICS``' order, and the ``loss``.

    Args:
        part: validation images and their labels.
        kind: which metrics.
        batch_size: images per batch.
    """
    labels = cast(Tensor, part.truth.labels)

    def validate(state: State) -> dict[str, float]:
        logits_NC = logits_of(state, part, batch_size)
        scores = probabilities(logits_NC, kind)
        metrics = {name: value(metric, scores, labels) for name, metric in METRICS[kind].items()}
        loss = F.binary_cross_entropy_with_logits if kind == "multilabel" else F.cross_entropy
        return {**metrics, "loss": float(loss(logits_NC, labels))}

    return validate


def score(logits_NC: Tensor, labels: Tensor, kind: Kind, name: str, seed: int, about: dict[str, Any]) -> list[Score]:
    """Score a classification of test images by every metric, with bootstrap intervals.

    Args:
        logits_NC: of the test images.
        labels: theirs.
        kind: which metrics.
        name: of the method.
        seed: of the resamples.
        about: what the figures were made with; JSON values.
    """
    scores, found = probabilities(logits_NC, kind), []
    for metric, function in METRICS[kind].items():
        low, high = bootstrap(function, scores, labels, seed=seed)
        found.append(Score(name, FINE_TUNED, metric, value(function, scores, labels), low, high, len(labels), about))
    return found
