"""Fine-tuned models on labelled images: what validation measures while training, and the scores at its end.

After ``parts`` and ``train``, whose loop is given :func:`measure` as its validation. Each process predicts its share of
the images; the metrics are those of ``metrics`` and ``dense``, the same on every process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from terrasieve import keyed
from terrasieve.batch import IGNORED, Batch
from terrasieve.data.augment import normalise
from terrasieve.data.loader import whole_batches
from terrasieve.evaluate import dense, detect
from terrasieve.evaluate.metrics import METRICS, Kind, bootstrap, value
from terrasieve.evaluate.parts import Divided, Part
from terrasieve.evaluate.protocol import FINE_TUNED, Score
from terrasieve.evaluate.resampled import Made
from terrasieve.methods import Adapter
from terrasieve.train.distributed import gathered
from terrasieve.train.state import State, evaluating


def predictions(
    state: State, part: Part, batch_size: int, on_images: Callable[[int, int], None] | None = None
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield this process's batches of a part and their logits, (B, C) or (B, C, H, W) float32, on the device.

    Every process gets as many batches as the others, so some images may come twice; ``batch.index`` tells. What is
    drawn in inference, as random dropping does, is keyed by the batch's first image.

    Args:
        state: holds the method.
        part: images and truth.
        batch_size: images per batch.
        on_images: called with images done and their total.
    """
    settings, world = state.settings, state.world
    count = len(part.images)
    own = [(world.rank + step * world.size) % count for step in range(-(-count // world.size))]
    done = 0
    batches = whole_batches(part.images, settings.image, settings.loader, batch_size, truth=part.truth, rows=own)
    for batch in batches:
        draw = keyed.generator(settings.seed, "predict", own[done], device=world.device)
        ready = normalise(batch.to(world.device), state.mean, state.std)
        with evaluating(state), state.autocast():
            logits = cast(Adapter, state.method).predict(ready, draw).float()
        yield ready, logits
        done += len(batch)
        if on_images:
            on_images(min(done * world.size, count), count)


def collected(
    state: State,
    part: Part,
    batch_size: int,
    summary: Callable[[Batch, Tensor], Tensor],
    on_images: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Predict all images of a part and keep of each what ``summary`` makes of batch and logits: (B, ...) -> (n, ...).

    The result is on the CPU, row by row, and the same on every process.
    """
    found = [(b.index, summary(b, logits)) for b, logits in predictions(state, part, batch_size, on_images)]
    found = gathered(state.world, [(index.cpu(), values.cpu()) for index, values in found])
    together = found[0][1].new_zeros(len(part.images), *found[0][1].shape[1:])
    for index, values in found:
        together[index] = values
    return together


def measure(task: Divided, batch_size: int) -> Callable[[State], dict[str, float]]:
    """Make a run's validation: all metrics of the task, the first one first, and the ``loss``.

    Args:
        task: its part ``val`` is predicted.
        batch_size: images per batch.
    """
    part, classes = task.parts["val"], len(task.classes)

    def classified(state: State) -> dict[str, float]:
        kind, labels = cast(Kind, task.kind), cast(Tensor, part.truth.labels)
        logits_NC = collected(state, part, batch_size, lambda _, logits: logits)
        scores = probabilities(logits_NC, kind)
        loss = F.binary_cross_entropy_with_logits if kind == "multilabel" else F.cross_entropy
        found = {name: value(metric, scores, labels) for name, metric in METRICS[kind].items()}
        return {**found, "loss": float(loss(logits_NC, labels))}

    def segmented(state: State) -> dict[str, float]:
        summed = collected(state, part, batch_size, lambda b, logits: _confusion_and_loss(b, logits, classes))
        pixels, squares = summed[:, -1].sum(), classes * classes
        return {
            **dense.values(summed[:, :squares].view(-1, classes, classes)),
            "loss": float(summed[:, -2].sum() / pixels),
        }

    if task.kind == "detection":
        return lambda state: detect.values(matched(state, part, batch_size, classes))
    return segmented if task.kind == "segmentation" else classified


def score(state: State, task: Divided, batch_size: int, name: str, about: dict[str, Any]) -> list[Score]:
    """Score the test images by every metric, with bootstrap intervals.

    Args:
        state: holds the method.
        task: its part ``test`` is predicted.
        batch_size: images per batch.
        name: of the method.
        about: what the figures were made with; JSON values.
    """
    part, classes, seed = task.parts["test"], len(task.classes), state.settings.seed
    if task.kind == "segmentation":
        matrices = collected(
            state, part, batch_size, lambda b, logits: dense.confusion(logits.argmax(1), cast(Tensor, b.mask), classes)
        )
        return dense.score(matrices, task.classes, Made(name, FINE_TUNED, seed, about))
    if task.kind == "detection":
        found_there = matched(state, part, batch_size, classes)
        return detect.score(found_there, task.classes, Made(name, FINE_TUNED, seed, about))
    labels = cast(Tensor, part.truth.labels)
    scores = probabilities(collected(state, part, batch_size, lambda _, logits: logits), task.kind)
    found = []
    for metric, function in METRICS[task.kind].items():
        low, high = bootstrap(function, scores, labels, seed=seed)
        found.append(Score(name, FINE_TUNED, metric, value(function, scores, labels), low, high, len(labels), about))
    return found


def matched(state: State, part: Part, batch_size: int, classes: int) -> detect.Matched:
    """Find the objects of a part's images, whole, and match them with the true ones, in the pixels the network sees."""
    boxes = part.truth.boxes
    assert boxes is not None
    shape_px = state.settings.image.shape_px
    found = collected(state, part, batch_size, lambda _, detections: detections)
    true = [boxes.read(row, None, *shape_px) for row in range(len(boxes))]
    return detect.matched(
        [detect.of_detections(own) for own in found],
        [detect.of_truth(own.polygons, own.numbers, own.difficult, found.shape[-1] - 2) for own in true],
        classes,
    )


def probabilities(logits_NC: Tensor, kind: Kind) -> Tensor:
    """Turn logits into scores in [0, 1]."""
    return logits_NC.sigmoid() if kind == "multilabel" else logits_NC.softmax(dim=1)


def _confusion_and_loss(batch: Batch, logits_BCHW: Tensor, classes: int) -> Tensor:
    """Count each image's confusion, and sum the loss over its scored pixels: (B, C * C + 2) float64, pixels last."""
    mask_BHW = cast(Tensor, batch.mask)
    matrices = dense.confusion(logits_BCHW.argmax(1), mask_BHW, classes).flatten(1)
    loss_BHW = F.cross_entropy(logits_BCHW, mask_BHW, ignore_index=IGNORED, reduction="none")
    return torch.cat(
        [matrices.double(), loss_BHW.double().sum((1, 2))[:, None], matrices.sum(1, keepdim=True).double()], dim=1
    )
