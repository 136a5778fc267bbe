"""Metrics of cases small enough to be counted by hand, and of random ones against torchmetrics."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.functional import classification as oracle

from terrasieve.evaluate import dense
from terrasieve.evaluate.metrics import METRICS, value
from terrasieve.keyed import generator


def test_five_samples_of_three_classes() -> None:
    """True 0 0 0 1 2, said 0 0 1 1 0."""
    scores = torch.eye(3)[[0, 0, 1, 1, 0]].double()
    truth = torch.tensor([0, 0, 0, 1, 2])
    expected = {
        "overall_accuracy": 3 / 5,
        "macro_accuracy": (2 / 3 + 1 + 0) / 3,
        "f1_macro": (2 / 3 + 2 / 3 + 0) / 3,
        "f1_weighted": (3 * 2 / 3 + 1 * 2 / 3 + 0) / 5,
        "jaccard_weighted": (3 * 2 / 4 + 1 * 1 / 2 + 0) / 5,
    }
    assert {name: value(metric, scores, truth) for name, metric in METRICS["multiclass"].items()} == pytest.approx(
        expected
    )


def test_four_samples_of_two_labels() -> None:
    """Label a is ranked hit, miss, hit, miss; label b miss, hit, hit, miss; above one half stand 3 and 2 of each."""
    scores = torch.tensor([[0.9, 0.8], [0.8, 0.7], [0.6, 0.4], [0.1, 0.2]]).double()
    truth = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    a, b = (1 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 2
    hits = [1, 3 / 5, 3 / 5, 4 / 6]  # all pairs, by score: .9 +, .8 -, .8 -, .7 +, .6 +, .4 +
    assert value(METRICS["multilabel"]["ap_macro"], scores, truth) == pytest.approx((a + b) / 2)
    assert value(METRICS["multilabel"]["ap_micro"], scores, truth) == pytest.approx(
        (hits[0] + 2 / 4 + 3 / 5 + 4 / 6) / 4
    )
    assert value(METRICS["multilabel"]["f1_micro"], scores, truth) == pytest.approx(2 * 3 / (4 + 5))
    assert value(METRICS["multilabel"]["f1_macro"], scores, truth) == pytest.approx((4 / 5 + 2 / 4) / 2)
    assert value(METRICS["multilabel"]["jaccard_weighted"], scores, truth) == pytest.approx((2 / 3 + 1 / 3) / 2)


def test_a_map_of_six_pixels() -> None:
    """True 0 0 1 / 1 1 ignored, said 0 1 1 / 1 0 0."""
    said, truth = torch.tensor([[[0, 1, 1], [1, 0, 0]]]), torch.tensor([[[0, 0, 1], [1, 1, 255]]])
    found = dense.values(dense.confusion(said, truth, 2))
    assert found["miou"] == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert found["overall_accuracy"] == pytest.approx(3 / 5) and found["macro_accuracy"] == pytest.approx(
        (1 / 2 + 2 / 3) / 2
    )
    assert found["f1_macro"] == pytest.approx((2 / 4 + 4 / 6) / 2)
    assert found["jaccard_weighted"] == pytest.approx((2 * 1 / 3 + 3 * 2 / 4) / 5)


@pytest.mark.parametrize("seed", range(3))
def test_random_cases_equal_torchmetrics(seed: int) -> None:
    draw = generator(seed, "test-torchmetrics")
    scores, truth = torch.rand(80, 6, generator=draw), torch.randint(0, 6, (80,), generator=draw)
    labels = (torch.rand(80, 6, generator=draw) < 0.3).long()
    multiclass = {
        "overall_accuracy": oracle.multiclass_accuracy(scores, truth, 6, average="micro"),
        "macro_accuracy": oracle.multiclass_accuracy(scores, truth, 6, average="macro"),
        "f1_macro": oracle.multiclass_f1_score(scores, truth, 6, average="macro"),
        "f1_weighted": oracle.multiclass_f1_score(scores, truth, 6, average="weighted"),
        "jaccard_weighted": oracle.multiclass_jaccard_index(scores, truth, 6, average="weighted"),
    }
    multilabel = {
        "ap_macro": oracle.multilabel_average_precision(scores, labels, 6, average="macro"),
        "ap_micro": oracle.multilabel_average_precision(scores, labels, 6, average="micro"),
        "f1_macro": oracle.multilabel_f1_score(scores, labels, 6, average="macro"),
        "f1_micro": oracle.multilabel_f1_score(scores, labels, 6, average="micro"),
        "f1_weighted": oracle.multilabel_f1_score(scores, labels, 6, average="weighted"),
        "jaccard_weighted": oracle.multilabel_jaccard_index(scores, labels, 6, average="weighted"),
    }
    for kind, expected, target in (("multiclass", multiclass, truth), ("multilabel", multilabel, labels.float())):
        assert set(expected) == set(METRICS[kind])
        for name, number in expected.items():
            assert value(METRICS[kind][name], scores, target) == pytest.approx(float(number), abs=1e-6), name
