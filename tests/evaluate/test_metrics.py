"""Metrics and bootstrap against scikit-learn, torchmetrics and a loop that resamples one set at a time."""

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_jaccard_index, multilabel_f1_score

from terrasieve.errors import UserError
from terrasieve.evaluate import metrics
from terrasieve.evaluate.metrics import METRICS, bootstrap, value
from terrasieve.keyed import numpy_generator


def multiclass(count: int = 60, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    draws = numpy_generator(1, "test-multiclass")
    return torch.from_numpy(draws.normal(size=(count, classes))), torch.from_numpy(draws.integers(0, classes, count))


def multilabel(count: int = 60, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    draws = numpy_generator(2, "test-multilabel")
    scores = np.round(draws.random((count, classes)), 1)  # rounded, so that scores tie
    truth = draws.random((count, classes)) < 0.2 + 0.5 * scores
    return torch.from_numpy(scores), torch.from_numpy(truth.astype(np.float32))


MULTICLASS = {
    "f1_macro": lambda s, t: sk.f1_score(t, s.argmax(1), average="macro"),
    "f1_weighted": lambda s, t: sk.f1_score(t, s.argmax(1), average="weighted"),
    "jaccard_weighted": lambda s, t: sk.jaccard_score(t, s.argmax(1), average="weighted"),
}
ORACLES = {
    "overall_accuracy": lambda s, t: sk.accuracy_score(t, s.argmax(1)),
    "macro_accuracy": lambda s, t: sk.balanced_accuracy_score(t, s.argmax(1)),
    "ap_macro": lambda s, t: sk.average_precision_score(t, s, average="macro"),
    "ap_micro": lambda s, t: sk.average_precision_score(t, s, average="micro"),
    "f1_macro": lambda s, t: sk.f1_score(t, s > 0.5, average="macro"),
    "f1_micro": lambda s, t: sk.f1_score(t, s > 0.5, average="micro"),
    "f1_weighted": lambda s, t: sk.f1_score(t, s > 0.5, average="weighted"),
    "jaccard_weighted": lambda s, t: sk.jaccard_score(t, s > 0.5, average="weighted"),
}
CASES = [(kind, name) for kind, named in METRICS.items() for name in named]


def oracle(kind: str, name: str):
    return MULTICLASS[name] if kind == "multiclass" and name in MULTICLASS else ORACLES[name]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_value_equals_sklearn(kind: str, name: str) -> None:
    scores, truth = multiclass() if kind == "multiclass" else multilabel()
    assert value(METRICS[kind][name], scores, truth) == pytest.approx(oracle(kind, name)(scores.numpy(), truth.numpy()))


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_bootstrap_equals_resampling_in_a_loop(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, truth = multiclass() if kind == "multiclass" else multilabel()
    monkeypatch.setattr(metrics, "_CHUNK_VALUES", 7 * truth.numel())  # uneven chunks must not change the draws
    draws = numpy_generator(3, "bootstrap", len(scores)).integers(0, len(scores), (40, len(scores)))
    values = [oracle(kind, name)(scores[rows].numpy(), truth[rows].numpy()) for rows in draws]
    low, high = bootstrap(METRICS[kind][name], scores, truth, resamples=40, seed=3, confidence=0.9)
    assert (low, high) == pytest.approx(tuple(np.quantile(values, [0.05, 0.95])))


def test_f1_macro_counts_absent_labels_as_torchmetrics_does() -> None:
    scores, truth = multilabel()
    scores[:, 1], truth[:, 1] = 0.1, 0
    expected = multilabel_f1_score(scores, truth.long(), num_labels=4, average="macro")
    assert value(metrics.f1_macro, scores, truth) == pytest.approx(float(expected))


def test_multiclass_f1_leaves_absent_classes_out_as_torchmetrics_does() -> None:
    scores, truth = multiclass(12)
    scores[:, 1], truth[truth == 1] = -9, 0
    expected = multiclass_f1_score(scores, truth, num_classes=5, average="macro")
    assert value(metrics.class_f1_macro, scores, truth) == pytest.approx(float(expected))
    expected = multiclass_jaccard_index(scores, truth, num_classes=5, average="weighted")
    assert value(metrics.class_jaccard_weighted, scores, truth) == pytest.approx(float(expected))


def test_labels_without_positives_do_not_count() -> None:
    scores, truth = multilabel()
    expected = value(metrics.ap_macro, scores[:, [0, 2, 3]], truth[:, [0, 2, 3]])
    truth[:, 1] = 0
    assert value(metrics.ap_macro, scores, truth) == pytest.approx(expected)


def test_interval_covers_a_known_accuracy_as_often_as_it_says() -> None:
    """200 test sets of 150 samples with true accuracy 0.7: about 95 % of the intervals hold it."""
    draws = numpy_generator(4, "test-coverage")
    covered = 0
    for trial in range(200):
        truth = torch.zeros(150, dtype=torch.int64)
        right = torch.from_numpy(draws.random(150) < 0.7).double()
        low, high = bootstrap(metrics.overall_accuracy, torch.stack([right, 1 - right], 1), truth, seed=trial)
        covered += low <= 0.7 <= high
    assert 180 <= covered <= 198


def test_same_seed_same_interval_and_another_seed_another() -> None:
    scores, truth = multiclass(200)
    first = bootstrap(metrics.macro_accuracy, scores, truth, seed=0)
    assert first == bootstrap(metrics.macro_accuracy, scores, truth, seed=0)
    assert first != bootstrap(metrics.macro_accuracy, scores, truth, seed=1)


@pytest.mark.parametrize("wrong", [{"confidence": 1.0}, {"resamples": 0}])
def test_bootstrap_refuses_settings_out_of_range(wrong: dict) -> None:
    with pytest.raises(UserError, match="confidence in"):
        bootstrap(metrics.overall_accuracy, *multiclass(), **wrong)
