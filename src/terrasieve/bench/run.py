"""Run: time all contenders of a size in turn, in one process, and put the numbers together.

The bench's main file. Contenders take one turn each per round (A B C, A B C, ...), with a large matrix product in every
round, so that whatever else the machine does falls on all of them. Rates are medians over the rounds; ratios are
medians of the rounds' own ratios; the peak is the fastest product.
"""

from __future__ import annotations

import gc
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch

from terrasieve.bench import memory
from terrasieve.bench.clock import matmul, phase_shares, seconds
from terrasieve.bench.contenders import CONTENDERS, ENCODERS, Run, Setup, random_batch
from terrasieve.bench.flops import gflop_per_image
from terrasieve.errors import UserError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROUND_S = 0.3  # on CUDA a turn is as many queued steps as fill this, so that the host's part is hidden as in training
Progress = Callable[[str], None]


def run_bench(
    *,
    encoders: Sequence[str] = ("tiny", "small", "base"),
    methods: Sequence[str] = tuple(CONTENDERS),
    precisions: Sequence[str] = ("fp32", "bf16"),
    devices: Sequence[str] | None = None,
    image_px: int = 224,
    batch_size: int = 16,
    threads: int = 1,
    repeats: int = 7,
    warmup: int = 2,
    peak_memory: bool = True,
    on_progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Measure training steps of every method at every size, precision and device.

    A step is ``train.loop.train_step`` on random uint8 images in memory.

    Args:
        encoders: of ``ENCODERS``: tiny, small, base, large.
        methods: of ``CONTENDERS``; ratios are to ``mae``.
        precisions: fp32, bf16.
        devices: cpu, cuda; None = the CPU, and CUDA where there is one.
        image_px: side of the images; a multiple of 16.
        batch_size, threads, repeats: images per step, CPU threads, rounds; the same for all.
        warmup: steps of each before the rounds; on CUDA they compile.
        peak_memory: measure it; on the CPU that takes a process per contender.
        on_progress: told in words what is being measured.

    Returns:
        JSON-able: ``date``, ``hardware``, ``versions``, ``settings``, ``groups`` by device, precision and encoder.

    Raises:
        UserError: unknown name, count below 1, image that 16 px patches do not fill, or CUDA where there is none.
    """
    devices = tuple(devices or (("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)))
    check(encoders, methods, precisions, devices, image_px, min(batch_size, threads, repeats))
    gflop = cache(lambda name, encoder: gflop_per_image(name, Setup(encoder, "fp32", "cpu", image_px, 1)))
    setups = [Setup(e, p, d, image_px, batch_size) for d in devices for p in precisions for e in encoders]
    with threads_of(threads), many_shapes(devices):
        groups = [_group(s, methods, threads, repeats, warmup, peak_memory, gflop, on_progress) for s in setups]
    settings = {
        "image_px": image_px,
        "batch_size": batch_size,
        "threads": threads,
        "repeats": repeats,
        "warmup": warmup,
    }
    return {**about(), "settings": settings, "groups": groups}


def _group(
    setup: Setup,
    methods: Sequence[str],
    threads: int,
    repeats: int,
    warmup: int,
    peak_memory: bool,
    gflop: Callable[[str, str], float],
    on_progress: Progress,
) -> dict[str, Any]:
    """Measure all contenders of one device, precision and size."""
    about = {"device": setup.device, "precision": setup.precision, "encoder": setup.encoder}
    if (setup.device, setup.precision) == ("cpu", "bf16") and not torch.cpu._is_avx512_bf16_supported():
        return {**about, "skipped": "this processor does not compute in bf16", "rows": []}
    rows: dict[str, dict[str, Any]] = {name: {"name": name, "title": CONTENDERS[name].title} for name in methods}
    runs = []
    batch = random_batch(setup)
    for name, row in rows.items():
        on_progress(f"{setup.device} {setup.precision} {setup.encoder}: {row['title']}, warm-up")
        before = _allocated(setup)
        try:
            run = Run(name, setup, batch)
        except ImportError as error:
            row["missing"] = f"{(error.name or str(error)).partition('.')[0]} is not installed"
            continue
        row["gflop_per_image"] = gflop(name, setup.encoder)
        for _ in range(max(warmup, 1)):
            run.step()
        if peak_memory:
            row["peak_memory_mb"] = _peak_mb(run, before, threads)
        runs.append(run)
    on_progress(f"{setup.device} {setup.precision} {setup.encoder}: {repeats} rounds of {len(runs)}")
    took, products, product_gflop = _rounds(runs, setup, repeats)
    peak = product_gflop / min(products)
    for run in runs:
        _rate(rows[run.name], took, peak, setup.batch_size)
        rows[run.name]["phases"] = phase_shares(run, min(repeats, 5))
    runs.clear()
    gc.collect()
    return {
        **about,
        "matmul_gflop_per_s": peak,
        "memory": memory.HOW[setup.device] if peak_memory else None,
        "rows": list(rows.values()),
    }


def _rounds(runs: list[Run], setup: Setup, repeats: int) -> tuple[dict[str, list[float]], list[float], float]:
    """Let everyone take turns; return seconds per step by name, seconds per product, and a product's GFLOP."""
    device = torch.device(setup.device)
    product, product_gflop = matmul(PRECISIONS[setup.precision], device)
    turn = {run.name: 1 for run in runs}
    if device.type == "cuda":
        turn = {run.name: max(round(ROUND_S / seconds(run.step, device)), 1) for run in runs}
    seconds(product, device)
    took: dict[str, list[float]] = {run.name: [] for run in runs}
    products = []
    for _ in range(repeats):
        products.append(seconds(product, device, 1 if device.type == "cpu" else 10))
        for run in runs:
            took[run.name].append(seconds(run.step, device, turn[run.name]))
    return took, products, product_gflop


def _rate(row: dict[str, Any], took: dict[str, list[float]], peak: float, batch_size: int) -> None:
    mine = took[row["name"]]
    row["images_per_s"] = batch_size / median(mine)
    row["matmul_share"] = row["images_per_s"] * row["gflop_per_image"] / peak
    row["step_s"] = mine
    row["ratio_to_mae"] = median(a / b for a, b in zip(took["mae"], mine, strict=True)) if "mae" in took else None


def _allocated(setup: Setup) -> int:
    return torch.cuda.memory_allocated() if setup.device == "cuda" else 0


def _peak_mb(run: Run, before: int, threads: int) -> float:
    if run.setup.device == "cpu":
        return memory.cpu_peak_mb(run.name, run.setup, threads)
    torch.cuda.reset_peak_memory_stats()
    run.step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


@contextmanager
def threads_of(count: int) -> Iterator[None]:
    """Compute with ``count`` CPU threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def many_shapes(devices: Sequence[str]) -> AbstractContextManager[Any]:
    """Let a block be compiled for every contender's shape; past eight, torch would run it uncompiled."""
    if "cuda" not in devices:
        return nullcontext()
    import torch._dynamo

    limits = {"recompile_limit": 512, "accumulated_recompile_limit": 4096}
    return cast(AbstractContextManager[Any], torch._dynamo.config.patch(limits))


def check(
    encoders: Sequence[str],
    methods: Sequence[str],
    precisions: Sequence[str],
    devices: Sequence[str],
    image_px: int,
    least: int,
) -> None:
    """Refuse what cannot be measured.

    Raises:
        UserError: see ``run_bench``; ``least`` is the smallest of batch size, threads and repeats.
    """
    for what, given, known in (
        ("encoder", encoders, ENCODERS),
        ("method", methods, CONTENDERS),
        ("precision", precisions, PRECISIONS),
        ("device", devices, memory.HOW),
    ):
        unknown = [name for name in given if name not in known]
        if unknown or not given:
            raise UserError(f"bench: {what} {unknown[0] if unknown else '(none)'!r} is not one of {', '.join(known)}.")
    if least < 1:
        raise UserError("bench: batch_size, threads and repeats are at least 1.")
    if image_px < 16 or image_px % 16:
        raise UserError(f"bench: image_px {image_px} is not a multiple of the 16 px patch; use 224, for instance.")
    if "cuda" in devices and not torch.cuda.is_available():
        raise UserError("bench: device 'cuda' is asked for, but torch sees none here; use cpu.")


def about() -> dict[str, Any]:
    """Return when, on what, and with which versions."""
    packages = ("terrasieve", "torch", "timm", "lightly", "numpy")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": _hardware(),
        "versions": {name: _version(name) for name in packages} | {"python": platform.python_version()},
        "fp32_matmul": torch.get_float32_matmul_precision(),
    }


def _hardware() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0] if info.exists() and names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": round(os.getloadavg()[0], 2),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
