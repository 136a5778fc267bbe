"""The Triton kernel without a GPU: interpreted against pooling and the recorded numbers, and compiled for two GPUs.

Triton decides when it is imported whether to interpret, so all of that happens in one process of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from terrasieve.methods import ranks
from terrasieve.methods.geography import distance_km, georank
from terrasieve.methods.ranks import hard_rank, soft_rank

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="Triton is not installed: uv sync --group kernel"
    ),
    pytest.mark.slow,
]
CASES = Path(__file__).parents[1] / "fixtures" / "georank.json"
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

INTERPRET = """
import json, sys, torch
from terrasieve.methods import isotonic, ranks
from terrasieve.methods.geography import georank
given, recorded, found = sys.argv[1:]
fits = []
for z, block in torch.load(given):
    ordered, order = z.sort(dim=1, descending=True)
    fits.append((*isotonic.project(ordered, order, block), order))
ranks._on_host, ranks._on_gpu = (lambda _: False), (lambda _: True)
def no_formula(_):
    raise AssertionError("not the kernel")
ranks._min_max = no_formula
losses = []
names = ("temperature", "epsilon", "min_km", "max_km", "tolerance_ranks")
for case in json.load(open(recorded))["cases"]:
    z = torch.tensor(case["embeddings"]).requires_grad_()
    where = torch.tensor(case["longitude_deg"]), torch.tensor(case["latitude_deg"])
    loss = georank(z, *where, **{name: case[name] for name in names})
    loss.backward()
    losses.append((loss.item(), z.grad))
values = torch.randn(5, 33, generator=torch.Generator().manual_seed(1)).bfloat16()
with torch.autocast("cpu", torch.bfloat16):
    half = ranks.soft_rank(values, 0.1)
torch.save((fits, losses, half), found)
"""


def rows(n: int, kind: str, seed: int = 0) -> torch.Tensor:
    """Draw three rows of z."""
    draw = np.random.Generator(np.random.Philox(seed + n))
    values = {
        "spread": draw.normal(size=(3, n)) * n * 2,
        "pooled": draw.normal(size=(3, n)),
        "between": draw.normal(size=(3, n)) * n / 4,
        "ties": draw.integers(0, 4, (3, n)).astype(float) * 2,
        "constant": np.full((3, n), 7.25),
        "heavy": np.cumsum(draw.pareto(0.5, size=(3, n)), axis=1),
        "left out": np.where(draw.random((3, n)) < 0.4, 1e9, draw.normal(size=(3, n)) * n / 4),
    }
    return torch.from_numpy(values[kind])


KINDS = ("spread", "pooled", "between", "ties", "constant", "heavy", "left out")
FITS: list[tuple[torch.Tensor, int]] = [(rows(n, kind), 1024) for n in (1, 2, 37, 128) for kind in KINDS]
FITS += [(rows(n, kind)[:1], 16) for n in (40, 100) for kind in KINDS]
FITS += [(rows(2500, "between")[:1], 1024)]
broken = rows(40, "pooled")
broken[1, 7] = torch.nan
FITS += [(broken, 1024), (broken, 16)]


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    folder = tmp_path_factory.mktemp("interpreted")
    torch.save(FITS, folder / "given.pt")
    arguments = [str(folder / "given.pt"), str(CASES), str(folder / "found.pt")]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", INTERPRET, *arguments], env=environment, check=True)
    return tuple(torch.load(folder / "found.pt"))  # type: ignore[return-value]


def test_merging_is_pooling(interpreted: tuple[Any, Any, Any]) -> None:
    """Ranks and blocks, whatever is tied, pooled or left out, in rows shorter and longer than a block."""
    pools = 0
    for (z, block), (found, starts, order) in zip(FITS, interpreted[0], strict=True):
        expected, pooled_order, pooled_starts = ranks._project(z)
        about = f"{z.shape[1]} values in blocks of {block}"
        sound = z.isfinite().all(dim=1)
        torch.testing.assert_close(found[sound], expected[sound], rtol=0, atol=1e-6, msg=about)
        places = torch.empty_like(starts).scatter_(1, order, starts)
        # Which of the tied ones comes first is the sort's choice; the block that it is in is not.
        same = torch.empty_like(starts).scatter_(1, pooled_order, pooled_starts) == places
        assert same[sound].all(), about
        pools += int((starts[sound] != torch.arange(z.shape[1])).sum())
    assert pools > 1000


def test_a_row_that_is_not_finite_ends_and_spoils_no_other(interpreted: tuple[Any, Any, Any]) -> None:
    for found, starts, _ in interpreted[0][-2:]:
        assert not found[1].isfinite().all() and found[[0, 2]].isfinite().all()
        assert (starts >= 0).all() and (starts < 40).all(), "backward gathers by them"


def test_recorded_numbers_by_way_of_the_kernel(interpreted: tuple[Any, Any, Any]) -> None:
    cases = json.loads(CASES.read_text())["cases"]
    for case, (loss, grad) in zip(cases, interpreted[1], strict=True):
        assert loss == pytest.approx(case["loss"], rel=1e-6)
        assert grad.numpy() == pytest.approx(np.array(case["grad_embeddings"]), rel=1e-3, abs=1e-5)


def test_half_precision_and_autocast_by_way_of_the_kernel(interpreted: tuple[Any, Any, Any]) -> None:
    values = torch.randn(5, 33, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert interpreted[2].dtype == torch.float32
    torch.testing.assert_close(interpreted[2], soft_rank(values, 0.1), rtol=0, atol=1e-5)


COMPILE = """
import sys, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from terrasieve.methods import isotonic
kernel = isotonic._project_row
kinds = ["*fp64", "*i64", "*fp64", "*fp64", "*i64", "i32", "constexpr", "constexpr", "constexpr"]
for capability, long in ((80, False), (90, True)):
    chosen = {"BLOCK": 16, "LEVELS": 4, "LONG": long}
    constants = {(kernel.arg_names.index(name),): value for name, value in chosen.items()}
    source = ASTSource(kernel, dict(zip(kernel.arg_names, kinds, strict=True)), constexprs=constants)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 1})
    print(len(built.asm["cubin"]))
"""


@pytest.mark.slow
def test_compiles_for_ampere_and_hopper(tmp_path: Path) -> None:
    """What the interpreter lets pass the compiler may not; it needs no GPU."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, check=True, capture_output=True, text=True)
    assert [int(size) > 1000 for size in done.stdout.split()] == [True, True]


def test_the_operator_is_well_formed_and_has_a_fake_on_cuda() -> None:
    torch.library.opcheck(ranks._project, (rows(17, "between"),))
    with FakeTensorMode(), torch.no_grad():
        z = torch.empty(6, 17, dtype=torch.bfloat16, device="cuda")
        assert (soft_rank(z, 0.1).device.type, soft_rank(z, 0.1).dtype) == ("cuda", torch.float32)
        for found, dtype in zip(ranks._project(z.double()), (torch.float64, torch.int64, torch.int64), strict=True):
            assert (found.shape, found.dtype, found.device.type) == (z.shape, dtype, "cuda")
        lon = torch.empty(6, device="cuda")
        assert georank(z, lon, lon, temperature=0.04, epsilon=0.1, max_km=3000).device.type == "cuda"


@cuda
@pytest.mark.parametrize("n", [1, 37, 511, 1024, 4096, 5000])
def test_on_a_gpu_it_is_pooling(n: int) -> None:
    for kind in KINDS:
        values = rows(n, kind).requires_grad_()
        expected = soft_rank(values, 0.7)
        expected.square().sum().backward()
        expected_grad, values.grad = values.grad, None
        torch.testing.assert_close(soft_rank(values.cuda(), 0.7).cpu(), expected, rtol=1e-6, atol=1e-5)
        soft_rank(values.cuda(), 0.7).square().sum().backward()
        torch.testing.assert_close(values.grad, expected_grad, rtol=1e-5, atol=1e-4)


@cuda
def test_on_a_gpu_nothing_waits_and_it_compiles_whole() -> None:
    z, lon, lat = (torch.rand(300, width, device="cuda") * 40 for width in (16, 1, 1))
    z, lon, lat = z.requires_grad_(), lon[:, 0], lat[:, 0]
    how = {"temperature": 0.04, "epsilon": 0.1, "max_km": 3000.0}
    loss = georank(z, lon, lat, **how)
    loss.backward()
    expected, z.grad = z.grad, None
    compiled = torch.compile(lambda *a: georank(*a, **how), fullgraph=True)
    again = compiled(z, lon, lat)
    again.backward()
    torch.testing.assert_close(again, loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(z.grad, expected, rtol=1e-3, atol=1e-6)
    torch.cuda.set_sync_debug_mode("error")
    try:
        georank(z, lon, lat, **how).backward()
        hard_rank(distance_km(lon, lat, lon, lat))
    finally:
        torch.cuda.set_sync_debug_mode("default")
