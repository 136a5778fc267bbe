"""Geographic losses: the recorded numbers of GeoRank, naive loops, samples without a place, two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr

from terrasieve.imagery.geo import haversine_km
from terrasieve.methods.geography import distance_km, geobasic, georank, georank_correlation

CASES = json.loads((Path(__file__).parents[1] / "fixtures" / "georank.json").read_text())["cases"]
HOW = {"temperature": 0.04, "epsilon": 0.1, "max_km": 3000}


def places(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(count, 6, generator=draw)
    return z, torch.rand(count, generator=draw) * 60, torch.rand(count, generator=draw) * 40 - 20


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"B{c['batch']}-epsilon{c['epsilon']}")
def test_recorded_numbers(case: dict) -> None:
    z = torch.tensor(case["embeddings"]).requires_grad_()
    lon, lat = torch.tensor(case["longitude_deg"]), torch.tensor(case["latitude_deg"])
    names = ("temperature", "epsilon", "min_km", "max_km", "tolerance_ranks")
    loss = georank(z, lon, lat, **{name: case[name] for name in names})
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-6)
    assert z.grad.numpy() == pytest.approx(np.array(case["grad_embeddings"]), rel=1e-3, abs=1e-5)
    assert distance_km(lon, lat, lon, lat).numpy() == pytest.approx(np.array(case["distance_km"]), abs=1e-6)


def test_distance_is_the_haversine() -> None:
    _, lon, lat = places(20)
    lon[3], lat[3], lon[4], lat[4] = lon[2], lat[2], -179.9, -89.0
    ours = distance_km(lon, lat, lon, lat).numpy()
    theirs = haversine_km(lon[:, None].double(), lat[:, None].double(), lon[None].double(), lat[None].double())
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert ours[2, 3] == 0


LOSSES = {
    "georank": lambda *a: georank(*a, **HOW),
    "correlation": lambda *a: georank_correlation(*a, max_km=3000),
    "basic": geobasic,
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_samples_without_a_place_take_no_part(loss) -> None:
    z, lon, lat = places(12)
    some = torch.tensor([0, 1, 3, 4, 5, 8, 9, 11])
    alone = z[some].clone().requires_grad_()
    expected = loss(alone, lon[some], lat[some])
    expected.backward()
    missing = torch.ones(12, dtype=torch.bool)
    missing[some] = False
    lon[missing] = torch.nan
    all_of_them = z.clone().requires_grad_()
    found = loss(all_of_them, lon, lat)
    found.backward()
    assert expected.item() > 0
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(all_of_them.grad[some], alone.grad)
    assert (all_of_them.grad[missing] == 0).all()


@pytest.mark.parametrize("located", [0, 1])
def test_nothing_to_compare_is_exactly_zero(located: int) -> None:
    z, lon, lat = places(4)
    lon[located:] = torch.nan
    z.requires_grad_()
    for compute in LOSSES.values():
        z.grad = None
        loss = compute(z, lon, lat)
        loss.backward()
        assert loss.item() == 0 and (z.grad == 0).all()
    one = georank(z[:1], lon[:1] * 0, lat[:1], **HOW)
    assert one.item() == 0


def test_identical_places_are_finite_and_tie() -> None:
    """All distances share one rank, so the loss knows no order of the samples."""
    z, lon, lat = places(6)
    lon, lat = lon * 0 + 5, lat * 0 + 5
    loss = georank(z.requires_grad_(), lon, lat, **HOW)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(z.grad).all()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    turned = z.detach()[order].requires_grad_()
    other = georank(turned, lon, lat, **HOW)
    other.backward()
    torch.testing.assert_close(other, loss)
    torch.testing.assert_close(turned.grad, z.grad[order], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size_free", [False, True])
def test_two_samples_have_one_order(size_free: bool) -> None:
    """Of one other sample the order is right whatever it is: 0, and no gradient."""
    z, lon, lat = places(4)
    lon[2:] = torch.nan
    loss = georank(z.requires_grad_(), lon, lat, **HOW, size_free=size_free)
    loss.backward()
    assert loss.item() == 0 and (z.grad == 0).all()


def test_size_free_is_one_minus_spearman() -> None:
    z, lon, lat = places(30)
    how = {"temperature": 1e-3, "epsilon": 1e-4, "max_km": 30000, "tolerance_ranks": 0, "size_free": True}
    found = georank(z, lon, lat, **how).item()
    unit = torch.nn.functional.normalize(z, dim=1)
    far = distance_km(lon, lat, lon, lat)
    others = ~torch.eye(30, dtype=torch.bool)
    rho = [spearmanr(-(unit @ unit.T)[i][others[i]], far[i][others[i]]).statistic for i in range(30)]
    assert found == pytest.approx(1 - np.mean(rho), abs=1e-5)


def test_correlation_and_basic_are_their_loops() -> None:
    z, lon, lat = places(15)
    unit, far = torch.nn.functional.normalize(z, dim=1).double(), distance_km(lon, lat, lon, lat)
    terms, squares = [], []
    for i in range(15):
        others = [j for j in range(15) if j != i]
        y = dict(zip(others, rankdata([far[i, j] for j in others]), strict=True))
        near = [j for j in others if far[i, j] <= 3000]
        squares += [((1 - unit[i] @ unit[j]) / 2 - min(far[i, j], 8000) / 8000) ** 2 for j in others]
        if len(near) >= 3:
            terms.append(1 + np.corrcoef([float(unit[i] @ unit[j]) for j in near], [y[j] for j in near])[0, 1])
    assert georank_correlation(z, lon, lat, max_km=3000).item() == pytest.approx(np.mean(terms), abs=1e-6)
    assert geobasic(z, lon, lat).item() == pytest.approx(float(np.mean(squares)), abs=1e-6)


def test_georank_learns_the_order() -> None:
    """Free embeddings come to be ordered by distance; alpha reversed or coordinates misaligned would not."""
    z, lon, lat = places(40)
    z = z.requires_grad_()
    how = {"temperature": 0.2, "epsilon": 0.1, "max_km": 30000, "size_free": True}
    before = georank(z, lon, lat, **how).item()
    step = torch.optim.Adam([z], lr=0.05)
    for _ in range(150):
        step.zero_grad()
        georank(z, lon, lat, **how).backward()
        step.step()
    after = georank(z, lon, lat, **how).item()
    assert 0.8 < before < 1.2 and after < 0.2
    assert georank(z, lon[torch.arange(39, -1, -1)], lat, **how).item() > 0.5


TWO = """
import sys, torch, torch.distributed as dist
from terrasieve.methods.geography import geobasic, georank, georank_correlation
rank, path = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{path}/rendezvous", rank=rank, world_size=2)
z, lon, lat = torch.load(f"{path}/given.pt")
mine = slice(rank * 8, rank * 8 + 8)
for name, loss in {
    "georank": lambda *a: georank(*a, temperature=.04, epsilon=.1, max_km=3000),
    "correlation": lambda *a: georank_correlation(*a, max_km=3000),
    "basic": geobasic,
}.items():
    part = z[mine].clone().requires_grad_()
    value = loss(part, lon[mine], lat[mine])
    value.backward()
    torch.save((value.detach(), part.grad), f"{path}/{name}{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    z, lon, lat = places(16)
    lon[5] = torch.nan
    torch.save((z, lon, lat), tmp_path / "given.pt")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([sys.executable, "-c", TWO, str(rank), str(tmp_path)], env=environment) for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    for name, loss in LOSSES.items():
        whole = z.clone().requires_grad_()
        expected = loss(whole, lon, lat)
        expected.backward()
        values, grads = zip(*(torch.load(tmp_path / f"{name}{rank}.pt") for rank in range(2)), strict=True)
        torch.testing.assert_close(torch.stack(values).mean(), expected.detach(), atol=1e-6, rtol=0)
        # What data-parallel training does: each process's gradient, averaged.
        torch.testing.assert_close(torch.cat(grads) / 2, whole.grad, atol=1e-6, rtol=0)
