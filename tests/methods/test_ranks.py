"""Ranks against independent solutions: quadratic programmes, scipy's ranks, the min-max formula against pooling."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import rankdata
from torch.autograd import gradcheck

from terrasieve.methods import ranks
from terrasieve.methods.ranks import hard_rank, soft_rank


def projected(z: np.ndarray) -> np.ndarray:
    """Project onto the permutahedron of (1, ..., n), where every k coordinates sum to 1 + ... + k or more."""
    n = len(z)
    rows = [np.isin(np.arange(n), chosen) for k in range(1, n) for chosen in combinations(range(n), k)]
    least = [sum(range(1, row.sum() + 1)) for row in rows]
    inside = {
        "type": "ineq",
        "fun": lambda x: np.array(rows, float) @ x - least,
        "jac": lambda _: np.array(rows, float),
    }
    total = {"type": "eq", "fun": lambda x: x.sum() - n * (n + 1) / 2, "jac": lambda _: np.ones(n)}
    start = np.full(n, (n + 1) / 2)
    found = minimize(
        lambda x: ((x - z) ** 2).sum(), start, jac=lambda x: 2 * (x - z), constraints=[inside, total], method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    return found.x


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-2, 2, width=16), min_size=2, max_size=5), st.sampled_from([0.1, 0.5, 2.0]))
def test_soft_rank_solves_the_quadratic_programme(values: list[float], epsilon: float) -> None:
    ours = soft_rank(torch.tensor([values]), epsilon)[0].numpy()
    assert ours == pytest.approx(projected(-np.array(values) / epsilon), abs=2e-3)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 6), st.sampled_from([0.001, 0.1, 1.0, 50.0]), st.booleans(), st.integers(0, 99)
)
def test_pooling_is_the_min_max_formula(n: int, rows: int, epsilon: float, ties: bool, seed: int) -> None:
    draw = np.random.Generator(np.random.Philox(seed))
    values = draw.integers(0, 4, (rows, n)).astype(float) if ties else draw.normal(size=(rows, n))
    z = torch.from_numpy(-values / epsilon)
    with pytest.MonkeyPatch.context() as patch:
        pooled = ranks._project(z)
        patch.setattr(ranks, "_on_host", lambda _: False)
        formula = ranks._project(z)
    torch.testing.assert_close(pooled[0], formula[0], rtol=0, atol=1e-7)
    assert pooled[0].sum(dim=1).tolist() == pytest.approx([n * (n + 1) / 2] * rows)
    for result in (pooled, formula):
        assert (result[1].sort(dim=1).values == torch.arange(n)).all(), "the order is a permutation"


def test_values_far_apart_do_not_spoil_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of a hundred values of 2.5e12 are rounded to .03, as much as decides here what is pooled."""
    draw = torch.Generator().manual_seed(5)
    z = torch.arange(300).double() + torch.rand(4, 300, generator=draw, dtype=torch.float64) * 0.03
    z[:, ::3] = 1e8 / 4e-5
    z[:, 1::3] = z[:, 2::3] + torch.tensor([0.98, 1.02]).repeat(50)
    pooled, order, starts = ranks._project(z)
    monkeypatch.setattr(ranks, "_on_host", lambda _: False)
    formula, descending, begins = ranks._project(z)
    near = z < 1e12
    torch.testing.assert_close(formula[near], pooled[near], rtol=0, atol=1e-7)
    assert torch.equal(begins, starts) and torch.equal(descending[:, 100:], order[:, 100:])


def test_limits_ties_and_constant_rows() -> None:
    values = torch.tensor([[3.0, 1.0, 2.0, 1.0], [5.0, 5.0, 5.0, 5.0]])
    assert soft_rank(values, 1e-3).tolist() == [[1, 3.5, 2, 3.5], [2.5] * 4]
    torch.testing.assert_close(soft_rank(values, 1e6), torch.full((2, 4), 2.5), atol=1e-4, rtol=0)
    assert soft_rank(torch.zeros(0, 5), 0.1).shape == (0, 5)
    assert soft_rank(torch.zeros(3, 0), 0.1).shape == (3, 0)
    assert soft_rank(torch.tensor([[7.0]]), 0.1).tolist() == [[1.0]]


def test_hard_rank_is_scipys(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.Generator(np.random.Philox(0))
    values = draw.integers(0, 9, (20, 33)).astype(float)
    values[3, 5:] = np.inf
    assert (hard_rank(torch.from_numpy(values)).numpy() == rankdata(values, axis=1)).all()
    monkeypatch.setattr(ranks, "_on_host", lambda _: False)
    assert (hard_rank(torch.from_numpy(values)).numpy() == rankdata(values, axis=1)).all()


@pytest.mark.parametrize("host", [True, False])
def test_gradient(host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_on_host", lambda _: host)
    z = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    assert gradcheck(lambda v: ranks._Projection.apply(v * 3), (z,), eps=1e-7)


def test_half_precision_and_autocast() -> None:
    values = torch.randn(6, 17, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = soft_rank(values.double(), 0.1)
    assert soft_rank(values, 0.1).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(soft_rank(values, 0.1), exact)


@pytest.mark.slow
def test_compiles_without_a_break() -> None:
    values = torch.randn(6, 17, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (soft_rank(values, 0.1) ** 2).sum().backward()
    eager, values.grad = values.grad, None
    compiled = torch.compile(lambda v: (soft_rank(v, 0.1) ** 2).sum(), fullgraph=True, backend="aot_eager")
    compiled(values).backward()
    torch.testing.assert_close(values.grad, eager)
