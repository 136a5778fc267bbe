"""k-NN against a naive loop, its ties, and its chunks."""

import math

import pytest
import torch

from terrasieve.errors import UserError
from terrasieve.evaluate.knn import knn_scores
from terrasieve.keyed import generator


def features(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 6, generator=generator(seed, "test-knn"))


def naive(bank: torch.Tensor, votes: torch.Tensor, query: torch.Tensor, k: int, temperature: float) -> torch.Tensor:
    """One query and one neighbour at a time, in double precision."""
    scores = torch.zeros(len(query), votes.shape[1], dtype=torch.float64)
    for row, q in enumerate(query.double()):
        cosines = [float(q @ b / (q.norm() * b.norm())) for b in bank.double()]
        nearest = sorted(range(len(bank)), key=lambda i: (-cosines[i], i))[:k]
        weights = [math.exp(cosines[i] / temperature) for i in nearest]
        for i, weight in zip(nearest, weights, strict=True):
            scores[row] += weight / sum(weights) * votes[i].double()
    return scores


@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_multiclass_equals_the_naive_loop(k: int, temperature: float) -> None:
    targets = torch.randint(0, 4, (40,), generator=generator(1, "test-knn"))
    scores = knn_scores(features(40), targets, features(30, 2), k=k, temperature=temperature, classes=5)
    expected = naive(features(40), torch.nn.functional.one_hot(targets, 5), features(30, 2), k, temperature)
    torch.testing.assert_close(scores.double(), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(scores.sum(1), torch.ones(30))


def test_multilabel_equals_the_naive_loop() -> None:
    targets = (torch.rand(40, 7, generator=generator(3, "test-knn")) < 0.3).float()
    scores = knn_scores(features(40), targets, features(30, 2), k=9)
    torch.testing.assert_close(
        scores.double(), naive(features(40), targets, features(30, 2), 9, 0.07), atol=1e-5, rtol=1e-4
    )


def test_ties_go_to_the_lowest_index() -> None:
    # Rows along two axes: every cosine is exactly 0 or 1, and 80 of the 100 bank rows tie with the query.
    same = [i for i in range(100) if i % 5]
    bank = torch.eye(6)[[0 if i % 5 else 3 for i in range(100)]]
    for k in (1, 7, 33):
        scores = knn_scores(bank, torch.arange(100), torch.eye(6)[:1] * 2.5, k=k)
        assert scores[0].nonzero()[:, 0].tolist() == same[:k]


def test_chunks_do_not_change_the_result() -> None:
    targets = torch.randint(0, 3, (50,), generator=generator(4, "test-knn"))
    whole = knn_scores(features(50), targets, features(23, 5), chunk=1000)
    torch.testing.assert_close(knn_scores(features(50), targets, features(23, 5), chunk=4), whole)


def test_small_temperature_does_not_overflow() -> None:
    scores = knn_scores(features(40), torch.arange(40) % 2, features(5, 6), temperature=1e-3)
    assert torch.isfinite(scores).all()


@pytest.mark.parametrize("wrong", [{"k": 41}, {"k": 0}, {"temperature": 0.0}])
def test_settings_out_of_range_are_user_errors(wrong: dict) -> None:
    with pytest.raises(UserError, match="k-NN"):
        knn_scores(features(40), torch.arange(40) % 2, features(5, 6), **wrong)
