"""What does GeoRank cost? Soft ranks, distances and the whole term, alone and within a ResNet-18 step.

Run: python benchmarks/georank.py OUT_DIR [cpu,cuda] [BATCH]; on a machine without the package, PYTHONPATH=src, or
python benchmarks/accelerator.py OUT_DIR georank. Asked, at B = 512: on one CPU core soft ranks <= 20 ms with their
gradient and the distances <= 3 ms; on CUDA the term <= 5 % of a step of images of 120 px and 10 bands, without a wait
of the host. The step is the plainest there is, one view, one linear head, bf16, SGD: whatever a method adds to it makes
the share smaller; it is measured on CUDA alone.
"""

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median
from typing import Any

import torch
from georank_step import COUNTED, HOW, ROUNDS, WIDTH, places, within_a_step
from torch import Tensor
from torch.nn.functional import normalize

from terrasieve import keyed
from terrasieve.bench import write
from terrasieve.bench.clock import seconds
from terrasieve.bench.run import about, threads_of
from terrasieve.methods import ranks
from terrasieve.methods.geography import distance_km, georank


def embeddings(batch: int, device: torch.device) -> Tensor:
    """Draw embeddings that take a gradient."""
    z = torch.randn(batch, WIDTH, generator=keyed.generator(1, "benchmark georank"))
    return z.to(device).requires_grad_()


def milliseconds(work: Callable[[], Any], device: torch.device) -> float:
    """Time work: CPU milliseconds at best of several, or a queue's on CUDA at the median."""
    for _ in range(3):
        work()
    if device.type == "cuda":
        return 1e3 * median(seconds(work, device, 20) for _ in range(ROUNDS))
    took = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        took.append(time.process_time() - began)
    return 1e3 * min(took)


def alone(batch: int, device: torch.device) -> list[dict[str, Any]]:
    """Measure the parts and the whole of the term on embeddings in memory."""
    z, (lon, lat) = embeddings(batch, device), places(batch, device)
    unit = normalize(z.detach(), dim=1)
    similarity = (unit @ unit.T / HOW["temperature"]).requires_grad_()
    gradient = torch.randn(batch, batch, generator=keyed.generator(2, "benchmark georank")).to(device)

    def ranked(epsilon: float) -> None:
        similarity.grad = None
        ranks.soft_rank(similarity, epsilon).backward(gradient)

    def term() -> None:
        z.grad = None
        georank(z, lon, lat, **HOW).backward()

    cpu = device.type == "cpu"
    works = {
        "soft ranks, forward + backward, epsilon .1": (lambda: ranked(0.1), 20 if cpu else None),
        "soft ranks, forward + backward, epsilon .001": (lambda: ranked(0.001), 20 if cpu else None),
        "distances": (lambda: distance_km(lon, lat, lon, lat), 3 if cpu else None),
        "the whole term, forward + backward": (term, None),
    }
    rows = [{"what": what, "ms": milliseconds(work, device), "asked": asked} for what, (work, asked) in works.items()]
    if not cpu:
        with formula():
            rows.append(
                {
                    "what": "soft ranks by the formula, epsilon .1",
                    "asked": None,
                    "ms": milliseconds(lambda: ranked(0.1), device),
                }
            )
    return rows


class formula:
    """Take the min-max formula for a while."""

    def __enter__(self) -> None:
        self.before = ranks._on_host, ranks._on_gpu
        ranks._on_host = ranks._on_gpu = lambda _: False

    def __exit__(self, *_: object) -> None:
        ranks._on_host, ranks._on_gpu = self.before


def differences(device: torch.device, sizes: tuple[tuple[int, int], ...]) -> list[dict[str, Any]]:
    """Compare ranks and gradients on the device with the CPU's, by either way; a tenth of the values left out."""
    found = []
    for R, n in sizes:
        values = torch.rand(R, n, generator=keyed.generator(3, "benchmark georank")) * 2 - 1
        weights = torch.rand(R, n, generator=keyed.generator(4, "benchmark georank"))
        for epsilon in (0.1 * HOW["temperature"], 0.001 * HOW["temperature"]):
            values[:, ::10] = -1e9 * epsilon
            expected, expected_grad = ranked_with_gradient(values, weights, epsilon)
            ways = {"kernel": nullcontext()} if device.type == "cuda" else {}
            ways |= {"formula": formula()} if n <= 1024 else {}
            for way, within in ways.items():
                with within:
                    ours, grad = ranked_with_gradient(values.to(device), weights.to(device), epsilon)
                found.append(
                    {
                        "rows": R,
                        "values": n,
                        "epsilon": epsilon,
                        "way": way,
                        "rank": (ours.cpu() - expected).abs().max().item(),
                        "gradient": ((grad.cpu() - expected_grad).norm() / expected_grad.norm()).item(),
                    }
                )
    return found


def term_difference(batch: int, device: torch.device) -> dict[str, float]:
    """Compare the term's loss and gradient on the device with the CPU's; relative."""
    losses, grads = [], []
    for place in (torch.device("cpu"), device):
        z = embeddings(batch, place)
        loss = georank(z, *places(batch, place), **HOW)
        loss.backward()
        losses.append(loss.item())
        grads.append(z.grad.cpu())
    return {
        "loss": abs(losses[1] / losses[0] - 1),
        "gradient": ((grads[1] - grads[0]).norm() / grads[0].norm()).item(),
    }


def ranked_with_gradient(values: Tensor, weights: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Compute soft ranks and the gradient of their weighted sum."""
    values = values.clone().requires_grad_()
    found = ranks.soft_rank(values, epsilon)
    (found * weights).sum().backward()
    assert values.grad is not None
    return found.detach(), values.grad


def measure(device_name: str, batch: int) -> dict[str, Any]:
    """Measure all of it on a device."""
    device = torch.device(device_name)
    cuda = device.type == "cuda"
    sizes = ((batch, batch), (64, 1000), (16, 4096), (4, 10000)) if cuda else ((16, batch),)
    with threads_of(1):
        return {
            **about(),
            "device": device_name,
            "batch": batch,
            "alone": alone(batch, device),
            "differences": differences(device, sizes),
            "term_difference": term_difference(batch, device) if cuda else None,
            "step": within_a_step(batch, device, 120) if cuda else None,
        }


def markdown(result: dict[str, Any]) -> str:
    """Lay the result out."""
    hardware, step = result["hardware"], result["step"]
    machine = hardware["gpu"] if result["device"] == "cuda" else f"one thread of {hardware['cpu']}"
    lines = [
        f"# GeoRank, {result['date'][:10]}",
        "",
        f"{machine}, torch {result['versions']['torch']}, B = {result['batch']}, embeddings of {WIDTH}; "
        f"load {hardware['load_average']}. {'Medians' if result['device'] == 'cuda' else 'CPU time, the best'} of "
        f"{ROUNDS}.",
        "",
        "| work | ms | asked |",
        "|---|---:|---:|",
        *(f"| {row['what']} | {row['ms']:.2f} | {row['asked'] or ''} |" for row in result["alone"]),
        *(_step(step) if step else []),
        "",
        "Against the CPU's pooling:",
        "",
        "| rows x values | epsilon | way | largest difference of a rank | of the gradient, relative |",
        "|---|---:|---|---:|---:|",
        *(
            f"| {d['rows']} x {d['values']} | {d['epsilon']:.0e} | {d['way']} | {d['rank']:.1e} | {d['gradient']:.1e} |"
            for d in result["differences"]
        ),
    ]
    if differs := result["term_difference"]:
        lines += ["", f"The term's loss differs by {differs['loss']:.1e}, its gradient by {differs['gradient']:.1e}."]
    return "\n".join(lines) + "\n"


def _step(step: dict[str, Any]) -> list[str]:
    """Lay out what the term adds to a step."""
    return [
        "",
        f"A ResNet-18 step of {step['batch']} images of {step['image_px']} px, 10 bands, one view: "
        f"{step['step_ms']:.1f} ms; GeoRank adds **{step['share']:.1%}** (asked: 5 %). Under "
        f"`set_sync_debug_mode('error')`: {step['sync_debug_mode']}.",
        "",
        "| profile of a step | without | with |",
        "|---|---:|---:|",
        *(f"| {name} | {step['profile']['without'][name]} | {step['profile']['with'][name]} |" for name in COUNTED),
    ]


def main(out_dir: str = "georank", devices: str = "cpu", batch: str = "512") -> None:
    """Measure, print and write a dated result per device."""
    for device in devices.split(","):
        result = measure(device, int(batch))
        name = f"georank_{result['date'][:10]}_{device}"
        for path in write({**result, "groups": []}, out_dir, name, markdown):
            print(path)
        print(markdown(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
