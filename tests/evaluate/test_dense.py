"""Dense metrics against scikit-learn and torchmetrics over pixels, their intervals against a loop over resamples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_jaccard_index

from terrasieve.errors import UserError
from terrasieve.evaluate import dense
from terrasieve.evaluate.dense import METRICS, confusion, score, values
from terrasieve.evaluate.resampled import Made
from terrasieve.keyed import numpy_generator

C, NAMES = 4, ("sea", "sand", "road", "snow")


def maps(images: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Return predictions that are right more often than not, and truth of which a part is ignored."""
    draws = numpy_generator(0, "test-dense")
    truth = draws.choice(C, (images, 6, 9), p=[0.5, 0.3, 0.15, 0.05])
    said = np.where(draws.random(truth.shape) < 0.6, truth, draws.integers(0, C, truth.shape))
    truth[draws.random(truth.shape) < 0.2] = 255
    return torch.from_numpy(said), torch.from_numpy(truth)


def pixels(said: torch.Tensor, truth: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    return truth[truth != 255].numpy(), said[truth != 255].numpy()


ORACLES = {
    "miou": lambda t, s: sk.jaccard_score(t, s, average="macro"),
    "overall_accuracy": sk.accuracy_score,
    "macro_accuracy": sk.balanced_accuracy_score,
    "jaccard_weighted": lambda t, s: sk.jaccard_score(t, s, average="weighted"),
    "f1_macro": lambda t, s: sk.f1_score(t, s, average="macro"),
    "f1_micro": lambda t, s: sk.f1_score(t, s, average="micro"),
    "f1_weighted": lambda t, s: sk.f1_score(t, s, average="weighted"),
}


def test_confusion_of_each_image() -> None:
    said, truth = maps()
    matrices = confusion(said, truth, C)
    assert matrices.shape == (7, C, C) and matrices.dtype == torch.int64
    for matrix, s, t in zip(matrices, said, truth, strict=True):
        assert np.array_equal(matrix, sk.confusion_matrix(*pixels(s, t), labels=range(C)))


def test_an_image_without_scored_pixels_counts_nothing() -> None:
    said, truth = maps(2)
    truth[1] = 255
    assert confusion(said, truth.to(torch.uint8), C)[1].sum() == 0


@pytest.mark.parametrize("name", METRICS)
def test_values_equal_sklearn_over_all_pixels(name: str) -> None:
    said, truth = maps()
    assert values(confusion(said, truth, C))[name] == pytest.approx(ORACLES[name](*pixels(said, truth)))


def test_absent_classes_are_left_out_as_torchmetrics_does() -> None:
    said, truth = maps()
    truth[truth == 3], said[said == 3] = 255, 0
    found = values(confusion(said, truth, C), NAMES)
    known = truth != 255
    for name, function, average in (
        ("miou", multiclass_jaccard_index, "macro"),
        ("jaccard_weighted", multiclass_jaccard_index, "weighted"),
        ("f1_macro", multiclass_f1_score, "macro"),
        ("f1_weighted", multiclass_f1_score, "weighted"),
    ):
        assert found[name] == pytest.approx(float(function(said[known], truth[known], C, average=average)))
    per_class = multiclass_jaccard_index(said[known], truth[known], C, average="none")
    assert [found[f"iou/{name}"] for name in NAMES[:3]] == pytest.approx(per_class[:3].tolist())
    assert np.isnan(found["iou/snow"])
    scored = {s.metric for s in score(confusion(said, truth, C), NAMES, Made("rupernet", "fine-tuned", 0, {}))}
    assert scored == {*METRICS, "iou/sea", "iou/sand", "iou/road"}


def test_intervals_equal_resampling_images_in_a_loop() -> None:
    said, truth = maps()
    scores = score(confusion(said, truth, C), NAMES, Made("rupernet", "fine-tuned", 3, {"a": 1}, 30, 0.9))
    draws = numpy_generator(3, "bootstrap", 7).integers(0, 7, (30, 7))
    assert [s.metric for s in scores] == [*METRICS, *(f"iou/{name}" for name in NAMES)]
    for found in scores[: len(METRICS)]:
        drawn = [ORACLES[found.metric](*pixels(said[rows], truth[rows])) for rows in draws]
        assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.05, 0.95])))
        assert found.low <= found.value <= found.high and found.count == 7 and found.settings == {"a": 1}


def test_nothing_to_score_is_an_error() -> None:
    said, truth = maps()
    with pytest.raises(UserError, match="7 test images have no pixel that is scored"):
        score(confusion(said, torch.full_like(truth, 255), C), NAMES, Made("rupernet", "fine-tuned", 0, {}))
    assert all(np.isnan(v) for v in dense.values(confusion(said, torch.full_like(truth, 255), C)).values())
