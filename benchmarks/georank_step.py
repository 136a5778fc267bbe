"""What GeoRank adds to a ResNet-18 step: time, waits of the host, launches. Used by ``georank``."""

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from terrasieve import keyed
from terrasieve.bench.clock import seconds
from terrasieve.methods.geography import georank
from terrasieve.nn.convolution import encoder_of
from terrasieve.nn.encoder_settings import EncoderSettings

HOW = {"temperature": 0.04, "epsilon": 0.1, "max_km": 3000.0}
CLASSES, WIDTH, ROUNDS = 10, 128, 15
COUNTED = {
    "cudaStreamSynchronize": "cudaStreamSynchronize",
    "cudaDeviceSynchronize": "cudaDeviceSynchronize",
    "cudaEventSynchronize": "cudaEventSynchronize",
    "aten::item": "aten::item",
    "copies to the host": "Memcpy DtoH",
    "kernel launches": ("cudaLaunchKernel", "cuLaunchKernel"),
}


def places(batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw places in Europe and around, one in ten unknown."""
    draw = keyed.generator(0, "benchmark georank")
    lon, lat = torch.rand(batch, generator=draw) * 60 - 10, torch.rand(batch, generator=draw) * 35 + 30
    lon[::10] = torch.nan
    return lon.to(device), lat.to(device)


def stepper(batch: int, device: torch.device, image_px: int) -> Callable[[bool], None]:
    """Build a ResNet-18 and its step, which takes GeoRank in or not."""
    encoder = encoder_of(EncoderSettings(name="resnet18"), 10, (image_px, image_px)).to(device)
    head = torch.nn.Linear(encoder.width, WIDTH).to(device)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, fused=True)
    images = torch.randn(batch, 10, image_px, image_px, generator=keyed.generator(5, "benchmark georank")).to(device)
    labels = torch.arange(batch, device=device) % CLASSES
    lon, lat = places(batch, device)

    def step(geography: bool) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            z = head(encoder.features(images))
        loss = torch.nn.functional.cross_entropy(z[:, :CLASSES].float(), labels)
        if geography:
            loss = (loss + georank(z, lon, lat, **HOW)) / 2
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def within_a_step(batch: int, device: torch.device, image_px: int) -> dict[str, Any]:
    """Time steps with and without the term, in turn, and count what makes the host wait in either."""
    step = stepper(batch, device, image_px)
    times = 10 if device.type == "cuda" else 1
    for geography in (False, True) * 3:
        step(geography)
    took: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for geography, seen in took.items():
            seen.append(seconds(lambda geography=geography: step(geography), device, times))
    shares = [b / a - 1 for a, b in zip(took[False], took[True], strict=True)]
    return {
        "image_px": image_px,
        "batch": batch,
        "step_ms": 1e3 * median(took[False]),
        "share": median(shares),
        "shares": sorted(shares),
        "profile": {name: profiled(step, on) for name, on in (("without", False), ("with", True))},
        "sync_debug_mode": strictly(lambda: step(True), device),
    }


def profiled(step: Callable[[bool], None], geography: bool) -> dict[str, int]:
    """Count a step's waits of the host, by kind, and launches; the profiler itself waits once, at its end."""
    with torch.profiler.profile() as seen:
        step(geography)
    counts = {event.key: event.count for event in seen.key_averages()}
    return {name: sum(n for key, n in counts.items() if key.startswith(starts)) for name, starts in COUNTED.items()}


def strictly(work: Callable[[], Any], device: torch.device) -> str:
    """Do work while torch makes an error of every wait."""
    if device.type != "cuda":
        return "not on CUDA"
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "nothing waited"
