"""What the detectors' parts and steps take: python benchmarks/detection.py; one thread, CPU time, best of several."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torchvision.ops import MultiScaleRoIAlign, box_iou

from terrasieve import keyed, methods
from terrasieve.batch import Batch, Rows
from terrasieve.boxes.oriented import corners, enclosing
from terrasieve.boxes.overlap import iou, iou_of_pairs
from terrasieve.boxes.suppress import suppress
from terrasieve.methods.faster_rcnn import FasterRCNNSettings
from terrasieve.methods.oriented_rcnn import OrientedRCNNSettings
from terrasieve.nn.encoder import Encoder, EncoderSettings
from terrasieve.nn.rotated import rotated_roi_align
from terrasieve.sieve.ragged import pack


def boxes_of(count: int, span_px: float, seed: int = 0) -> torch.Tensor:
    """Draw boxes of 4 to 84 by 4 to 44 px."""
    spread = torch.tensor([span_px, span_px, 80, 40, math.pi])
    return torch.rand(count, 5, generator=torch.Generator().manual_seed(seed)) * spread + torch.tensor([0, 0, 4, 4, 0])


def best_ms(work: Callable[[], object], rounds: int = 5) -> float:
    """Return the CPU milliseconds of the fastest round, after one that is not counted."""
    work()
    seconds = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return 1000 * min(seconds)


def parts() -> None:
    """Time overlap, suppression and RoI align."""
    for span_px in (200, 800, 4000):
        boxes, scores = boxes_of(2000, span_px), torch.rand(2000, generator=torch.Generator().manual_seed(1))
        kept = len(suppress(boxes, scores, 0.5))
        ms = best_ms(lambda b=boxes, s=scores: suppress(b, s, 0.5))
        print(f"| suppression of 2,000 boxes in {span_px} x {span_px} px, {kept:,} kept | {ms:.1f} ms |")
    a, b = boxes_of(100_000, 60), boxes_of(100_000, 60, 2)
    print(f"| overlap of 100,000 single pairs | {best_ms(lambda: iou_of_pairs(a, b)):.0f} ms |")
    a, b = boxes_of(2000, 800), boxes_of(50, 800, 2)
    degrees = [torch.cat([x[:, :4], -torch.rad2deg(x[:, 4:])], 1) for x in (a, b)]
    print(f"| overlap of all pairs of 2,000 and 50 boxes in 800 x 800 px | {best_ms(lambda: iou(a, b)):.1f} ms |")
    print(f"| torchvision's of the same | {best_ms(lambda: box_iou(*degrees, fmt='cxcywhr')):.1f} ms |")
    maps = [torch.randn(2, 256, side, side, requires_grad=True) for side in (128, 64, 32, 16)]
    turned, image = boxes_of(1024, 512), torch.arange(1024) // 512
    flat = [enclosing(turned[image == row]) for row in range(2)]
    pool, named = MultiScaleRoIAlign(list("0123"), 7, 2), dict(zip("0123", maps, strict=True))
    ours = best_ms(lambda: rotated_roi_align(maps, (4, 8, 16, 32), turned, image).sum().backward(), 3)
    theirs = best_ms(lambda: pool(named, flat, [(512, 512)] * 2).sum().backward(), 3)
    print(f"| rotated RoI align, 1,024 boxes, 256 channels, forward and backward | {ours:.0f} ms |")
    print(f"| torchvision's horizontal one of as many | {theirs:.0f} ms |")


def steps(size_px: int = 256, images: int = 2) -> None:
    """Time a training step of both detectors."""
    boxes = boxes_of(images * 20, size_px).view(images, 20, 5)
    nan = torch.full((images,), math.nan, dtype=torch.float64)
    batch = Batch(
        torch.randn(images, 3, size_px, size_px), nan, nan, nan, torch.arange(images), objects=corners(boxes),
        object_classes=torch.zeros(images, 20, dtype=torch.long), rows=Rows(0, images),
    )  # fmt: skip
    taken = []
    for kind in (FasterRCNNSettings, OrientedRCNNSettings):
        encoder = Encoder(EncoderSettings(name="vit_small_patch16_224", patch_px=16), 3, (size_px, size_px))
        model = methods.build(kind(classes=20), encoder)

        def step(model: torch.nn.Module = model) -> None:
            model.zero_grad()
            model(batch, keyed.generator(0, "mask", 0)).loss.backward()

        taken.append(best_ms(step, 3))
        print(f"| {kind().name}, ViT-S/16, {images} images of {size_px} px, a step | {taken[-1]:,.0f} ms |")
    print(f"| ratio | {taken[1] / taken[0]:.2f} |")


def windows(size_px: int = 1024) -> None:
    """Time a ViT-S/16's forward and backward on a large image: everywhere, in windows, with half of it dropped."""
    patches = torch.randn(1, (size_px // 16) ** 2, 768)
    half = pack(torch.rand(1, patches.shape[1], generator=torch.Generator().manual_seed(0)).argsort(1) % 2 == 0)
    whole_ms = 0.0
    for words, window, kept in (
        ("everywhere", None, None),
        ("windows of 16", 16, None),
        ("so, half dropped", 16, half),
    ):
        settings = EncoderSettings(name="vit_small_patch16_224", patch_px=16, window=window)
        encoder = Encoder(settings, 3, (size_px, size_px))
        taken = best_ms(lambda e=encoder, k=kept: e.encode_kept(patches, k).tokens.sum().backward(), 2)
        whole_ms = whole_ms or taken
        print(f"| ViT-S/16, {size_px} px, attention {words} | {taken:,.0f} ms ({whole_ms / taken:.2f} x) |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("| what | CPU time |\n|---|---:|")
    parts()
    steps()
    windows()
