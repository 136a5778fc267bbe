"""Geography around any method: alpha, coordinates, clusters on the sphere, triplets, and one process as two."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from terrasieve import keyed
from terrasieve.batch import Batch, Output, Rows
from terrasieve.errors import UserError
from terrasieve.methods import build
from terrasieve.methods.clusters import Clusters, GeographyAwareSettings, spherical_kmeans
from terrasieve.methods.geography import distance_km, geobasic, georank, georank_correlation, unit_vectors
from terrasieve.methods.mae import MAESettings
from terrasieve.methods.regularisers import (
    GeoBasicSettings,
    Geographic,
    GeoRankCorrelationSettings,
    GeoRankSettings,
)
from terrasieve.methods.triplets import Tile2VecSettings
from terrasieve.nn.convolution import encoder_of
from terrasieve.nn.encoder_settings import EncoderSettings

CHOICES: list[Any] = [
    GeoRankSettings(),
    GeoRankCorrelationSettings(),
    GeoBasicSettings(),
    GeographyAwareSettings(clusters=4),
    Tile2VecSettings(near_km=300, far_km=500),
]
choices = pytest.mark.parametrize("choice", CHOICES, ids=lambda c: c.name)


class Fixed(torch.nn.Module):
    """A method whose embeddings are its weights and whose loss is 3."""

    views, lr_scale = 1, 1.0

    def __init__(self, embeddings: torch.Tensor) -> None:
        super().__init__()
        self.z = torch.nn.Parameter(embeddings)
        self.steps: list[int] = []

    def forward(self, batch: Batch, generator: torch.Generator, *, picture: bool = False) -> Output:
        rows = slice(batch.rows.start, batch.rows.start + len(batch)) if batch.rows else slice(None)
        return Output(self.z.sum() * 0 + 3.0, {"own": self.z.sum()}, embeddings=self.z[rows])

    def after_step(self, step: int) -> None:
        self.steps.append(step)


def places(count: int = 12) -> Batch:
    draw = keyed.numpy_generator(0, "places")
    lon, lat = torch.from_numpy(draw.uniform(-5, 5, count)), torch.from_numpy(draw.uniform(40, 50, count))
    unknown = torch.full((count,), torch.nan, dtype=torch.float64)
    return Batch(torch.zeros(count, 1, 8, 8), lon, lat, unknown, torch.arange(count), rows=Rows(0, count))


def fixed(choice: Any, batch: Batch) -> Geographic:
    z = torch.randn(len(batch), 6, generator=keyed.generator(0, "z"))
    around = Geographic(choice, Fixed(z), 6)
    around.locate(batch.lon.numpy(), batch.lat.numpy())
    return around


def draw() -> torch.Generator:
    return keyed.generator(0, "mask", 0)


@choices
@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0])
def test_alpha_is_the_share_of_the_method(choice: Any, alpha: float) -> None:
    """The released code of GeoRank has it the other way round."""
    batch = places()
    around = fixed(choice.model_copy(update={"alpha": alpha}), batch)
    output = around(batch, draw())
    term = output.metrics["geography_loss"].item()
    assert term > 0
    assert output.loss.item() == pytest.approx(alpha * 3 + (1 - alpha) * term, rel=1e-6)
    assert output.metrics["method_loss"] == 3 and "own" in output.metrics and "effective_rank" in output.metrics
    output.loss.backward()
    assert (around.method.z.grad.abs().sum() > 0) == (alpha < 1)
    around.after_step(7)
    assert around.method.steps == [7]


@choices
def test_samples_without_coordinates_take_no_part(choice: Any) -> None:
    """The loss is that of the others alone, wherever in the batch the unknown ones stand."""
    batch = places()
    keep = torch.tensor([0, 2, 3, 5, 6, 8, 9, 11])
    lon = torch.full_like(batch.lon, torch.nan)
    lon[keep] = batch.lon[keep]
    around = fixed(choice, batch)
    some = around.regularise(around.method.z, replace(batch, lon=lon), draw())[0]
    alone = replace(batch._map(lambda t: t[keep]), rows=None)
    if choice.name == "tile2vec":  # its distant tile is drawn by the place in the batch
        lat = torch.where(lon.isnan(), torch.nan, batch.lat)
        nowhere = around.regularise(around.method.z, replace(batch, lon=lon, lat=lat), draw())[0]
        assert torch.equal(some, nowhere)
    else:
        assert some.item() == pytest.approx(around.regularise(around.method.z[keep], alone, draw())[0].item(), rel=1e-5)
    some.backward()
    grad = around.method.z.grad.abs().sum(dim=1)
    assert (grad[torch.isnan(lon)] == 0).all() and (grad > 0).any()


@choices
def test_a_batch_without_coordinates_is_exactly_the_methods_share(choice: Any) -> None:
    batch = places()
    around = fixed(choice, batch)
    nowhere = torch.full_like(batch.lon, torch.nan)
    output = around(replace(batch, lon=nowhere, lat=nowhere), draw())
    assert output.loss.item() == 1.5 and output.metrics["geography_loss"] == 0
    output.loss.backward()
    assert (around.method.z.grad == 0).all()


@choices
def test_identical_places_and_a_single_sample_are_finite(choice: Any) -> None:
    batch = places()
    around = fixed(choice, batch)
    same = replace(batch, lon=torch.zeros_like(batch.lon), lat=torch.zeros_like(batch.lat))
    output = around(same, draw())
    output.loss.backward()
    assert output.loss.isfinite() and around.method.z.grad.isfinite().all()
    assert around(batch.part(0, 1), draw()).loss.isfinite()


def test_the_recipe_s_numbers_reach_the_functions() -> None:
    batch = places()
    z = fixed(CHOICES[0], batch).method.z
    where = (batch.lon, batch.lat)
    given = {"temperature": 0.3, "epsilon": 0.2, "max_km": 700.0, "min_km": 50.0, "tolerance_ranks": 2.0}
    plain = {"temperature": 0.04, "epsilon": 0.1, "max_km": 3000}
    for settings, expected in (
        (GeoRankSettings(**given), georank(z, *where, **given)),
        (
            GeoRankSettings(size_free=True),
            georank(z, *where, **plain, size_free=True),
        ),
        (GeoRankCorrelationSettings(max_km=700, min_km=9), georank_correlation(z, *where, max_km=700, min_km=9)),
        (GeoBasicSettings(max_km=700), geobasic(z, *where, max_km=700)),
    ):
        assert fixed(settings, batch)(batch, draw()).metrics["geography_loss"] == expected.float()


def test_triplets_are_a_loop() -> None:
    batch, settings = places(), Tile2VecSettings(near_km=150, far_km=500, margin=0.7)
    around = fixed(settings, batch)
    loss, metrics = around.regularise(around.method.z, batch, draw())
    z = torch.nn.functional.normalize(around.method.z.detach(), dim=1)
    km = distance_km(batch.lon, batch.lat, batch.lon, batch.lat)
    noise = torch.rand(12, 12, generator=draw())
    terms, near = [], 0
    for a in range(12):
        n = min((km[a, j].item(), j) for j in range(12) if j != a)
        far = [(noise[a, j].item(), j) for j in range(12) if km[a, j] > 500]
        near += n[0] <= 150
        if n[0] <= 150 and far:
            d = max(far)[1]
            terms.append(max(((z[a] - z[n[1]]).norm() - (z[a] - z[d]).norm() + 0.7).item(), 0.0))
    assert 0 < len(terms) < 12
    assert loss.item() == pytest.approx(np.mean(terms), abs=1e-5)
    assert metrics["neighbour_share"].item() == pytest.approx(near / 12)
    assert metrics["triplet_share"].item() == pytest.approx(len(terms) / 12)


def test_clusters_are_found_on_the_sphere() -> None:
    """Places on both sides of the date line, and around a pole, are one cluster each."""
    lon = np.array([179.0, -179, 180, -178, 0, 90, 180, 270, 10, 11, 12, 10.5])
    lat = np.array([0.0, 1, -1, 0, 89, 89, 89, 89, 20, 21, 20, 22])
    clusters = Clusters(GeographyAwareSettings(clusters=3), 0, 4)
    clusters.locate(np.append(lon, np.nan), np.append(lat, 3.0))
    assert torch.allclose(clusters.centres.norm(dim=1), torch.ones(3))
    units = unit_vectors(torch.from_numpy(lon), torch.from_numpy(lat))
    groups = (units @ clusters.centres.double().T).argmax(dim=1).view(3, 4)
    assert all(len(set(row.tolist())) == 1 for row in groups) and len(set(groups[:, 0].tolist())) == 3
    again = spherical_kmeans(units.numpy(), 3, 0)
    assert np.allclose(again, clusters.centres.numpy(), atol=1e-6)
    with pytest.raises(UserError, match=r"geography\.clusters: 20 clusters of 12 different places"):
        Clusters(GeographyAwareSettings(clusters=20), 0, 4).locate(lon, lat)


def test_kmeans_cannot_be_bettered_by_a_round() -> None:
    draws = keyed.numpy_generator(1, "sphere").normal(size=(400, 3))
    units = draws / np.linalg.norm(draws, axis=1, keepdims=True)
    centres = spherical_kmeans(units, 7, seed=3)
    nearest = (units @ centres.T).argmax(axis=1)
    for k in range(7):
        mean = units[nearest == k].mean(axis=0)
        assert np.allclose(centres[k], mean / np.linalg.norm(mean), atol=1e-9)


def test_the_masked_methods_pooled_features_learn_too() -> None:
    encoder = encoder_of(EncoderSettings(name="vit_tiny_patch16_224", patch_px=4, depth=1), 1, (8, 8))
    decoder = {"depth": 1, "width": 16, "heads": 2}
    method = build(MAESettings(decoder=decoder), encoder, 0, GeoRankSettings(alpha=0.0))  # type: ignore[arg-type]
    batch = replace(places(), image=torch.randn(12, 1, 8, 8, generator=keyed.generator(0, "x")))
    output = method(batch, draw())
    assert output.embeddings.shape == (12, 192)
    assert output.loss == output.metrics["geography_loss"]
    output.loss.backward()
    assert encoder.vit.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_misaligned_coordinates_would_be_seen() -> None:
    """Embeddings that are ordered by place have a low loss, and a high one with another sample's coordinates."""
    batch = places()
    units = unit_vectors(batch.lon, batch.lat)
    around = Geographic(GeoRankSettings(temperature=1e-4), Fixed((units - units.mean(0)).float()), 3)
    right = around(batch, draw()).metrics["geography_loss"]
    wrong = around(replace(batch, lon=batch.lon.roll(1), lat=batch.lat.roll(1)), draw()).metrics["geography_loss"]
    assert right < 0.5 * wrong


TWO = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[3])
from test_regularisers import CHOICES, draw, fixed, places
rank, path = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{path}/rendezvous", rank=rank, world_size=2)
torch.set_num_threads(1)
batch = places()
batch.lon[4] = torch.nan
for choice in CHOICES:
    around = fixed(choice, places())
    output = around(batch.part(rank * 6, rank * 6 + 6), draw())
    output.loss.backward()
    torch.save((output.loss.detach(), around.method.z.grad), f"{path}/{choice.name}{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(rank), str(tmp_path), here], env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=200) for process in running] == [0, 0]
    batch = places()
    batch.lon[4] = torch.nan
    for choice in CHOICES:
        around = fixed(choice, places())
        output = around(batch, draw())
        output.loss.backward()
        losses, grads = zip(*(torch.load(tmp_path / f"{choice.name}{rank}.pt") for rank in range(2)), strict=True)
        assert torch.allclose(torch.stack(losses).mean(), output.loss.detach(), atol=1e-6), choice.name
        assert torch.allclose((grads[0] + grads[1]) / 2, around.method.z.grad, atol=1e-6), choice.name
