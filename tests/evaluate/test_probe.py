"""The linear probe against scikit-learn's solver, and its use of validation samples."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from terrasieve.errors import UserError
from terrasieve.evaluate import probe
from terrasieve.evaluate.probe import fit_probe, held_out
from terrasieve.keyed import generator


def blobs(count: int, spread: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three Gaussian classes in 12 dimensions on uneven scales, with an offset and one constant feature."""
    centres = torch.randn(3, 12, generator=generator(0, "test-centres"))
    draws = generator(seed, "test-blobs")
    targets = torch.randint(0, 3, (count,), generator=draws)
    features = centres[targets] + spread * torch.randn(count, 12, generator=draws)
    return torch.cat([features * torch.logspace(-2, 2, 12) + 50, torch.full((count, 1), 7.0)], 1), targets


@pytest.mark.parametrize("decay", [0.01, 0.3])
def test_solver_reaches_the_optimum_of_scikit_learn(decay: float) -> None:
    features, targets = blobs(200)
    mean, scale = probe._statistics(features)
    standard = (features - mean) / scale
    weight, bias = probe._solve(standard, targets, (1.0, decay), 3, probe.STEPS)
    oracle = LogisticRegression(C=1 / (decay * 200), tol=1e-8, max_iter=5000).fit(standard.numpy(), targets.numpy())
    ours = (standard @ weight[:, 1] + bias[1]).softmax(1)
    np.testing.assert_allclose(ours.numpy(), oracle.predict_proba(standard.numpy()), atol=2e-4)


def test_features_of_a_collapsed_encoder_converge_too() -> None:
    """One direction holds nearly all of the variance, and what tells the classes apart lies in the others."""
    draws = generator(0, "test-collapsed")
    targets = torch.arange(300) % 3
    told = torch.nn.functional.one_hot(targets, 20) + 0.5 * torch.randn(300, 20, generator=draws)
    standard = torch.randn(300, 1, generator=draws) + 0.03 * told
    standard = (standard - standard.mean(0)) / standard.std(0, correction=0)
    weight, bias = probe._solve(standard, targets, (1e-4,), 3, probe.STEPS)
    loss = torch.nn.functional.cross_entropy(standard @ weight[:, 0] + bias[0], targets)
    oracle = LogisticRegression(C=1 / (1e-4 * 300), tol=1e-8, max_iter=20_000).fit(standard.numpy(), targets.numpy())
    best = torch.nn.functional.cross_entropy(
        torch.from_numpy(oracle.decision_function(standard.numpy())).float(), targets
    ) + 5e-5 * float((oracle.coef_**2).sum())
    assert float(loss + 5e-5 * weight.square().sum()) < 1.02 * float(best)


def test_multilabel_solver_reaches_the_optimum_of_scikit_learn() -> None:
    features, targets = blobs(200)
    labels = torch.stack([(targets == 0), (targets != 1)], 1).float()
    mean, scale = probe._statistics(features)
    standard = (features - mean) / scale
    weight, bias = probe._solve(standard, labels, (0.02,), 2, probe.STEPS)
    ours = (standard @ weight[:, 0] + bias[0]).sigmoid()
    for column in range(2):
        oracle = LogisticRegression(C=1 / (0.02 * 200), tol=1e-8, max_iter=5000)
        oracle.fit(standard.numpy(), labels[:, column].numpy())
        np.testing.assert_allclose(ours[:, column].numpy(), oracle.predict_proba(standard.numpy())[:, 1], atol=2e-4)


def test_probe_classifies_unseen_samples_whatever_the_scale_of_the_features() -> None:
    train, test = blobs(300), blobs(300, seed=1)
    for factor in (1e-1, 1e3):
        fitted = fit_probe(train[0] * factor, train[1], classes=3, seed=0)
        assert (fitted.scores(test[0] * factor).argmax(1) == test[1]).float().mean() > 0.9


def test_validation_samples_choose_the_weight_decay() -> None:
    """Labels without any relation to the features: only strong decay is right on validation samples."""
    features, _ = blobs(60)
    noise = torch.randint(0, 3, (60,), generator=generator(5, "test-noise"))
    val, val_targets = blobs(3000, seed=2)
    weak = fit_probe(features, noise, features, noise, classes=3, seed=0)
    fair = fit_probe(
        features, noise, val, val_targets[torch.randperm(3000, generator=generator(6, "t"))], classes=3, seed=0
    )
    assert weak.weight_decay < 0.01 and weak.validation_loss < fair.validation_loss


def test_given_validation_samples_are_not_fitted_on() -> None:
    train, targets = blobs(80)
    val, val_targets = blobs(40, seed=3)
    fitted = fit_probe(train, targets, val, val_targets, classes=3, seed=0)
    mean, _ = probe._statistics(train)
    torch.testing.assert_close(fitted.mean_D, mean)


def test_same_seed_same_bits() -> None:
    train, targets = blobs(90)
    first, again = (fit_probe(train, targets, classes=3, seed=4) for _ in range(2))
    assert torch.equal(first.weight_DC, again.weight_DC) and first.weight_decay == again.weight_decay


def test_held_out_part_is_stratified_and_keyed() -> None:
    targets = torch.tensor([0] * 40 + [1] * 20 + [2])
    held = held_out(targets, 0.25, seed=0)
    assert [int(held[targets == c].sum()) for c in range(3)] == [10, 5, 0]
    assert torch.equal(held, held_out(targets, 0.25, seed=0))
    assert not torch.equal(held, held_out(targets, 0.25, seed=1))
    assert int(held_out(torch.eye(40), 0.25, seed=0).sum()) == 10


def test_one_training_sample_is_a_user_error() -> None:
    with pytest.raises(UserError, match="1 training samples"):
        fit_probe(torch.ones(1, 3), torch.zeros(1, dtype=torch.int64), classes=2, seed=0)
