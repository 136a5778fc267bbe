"""Kinds of planted copies: how each alters an image, and which ground it shares. Used by ``planted``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

Pixels = np.ndarray  # (H, W, 3) uint8
Copy = tuple[Pixels, Pixels, int | None, int | None]  # a, b, dx, dy

Scale = Image.Resampling


def resized(image: Pixels, factor: float, draw: np.random.Generator) -> Pixels:
    """Resize with one of the usual filters."""
    filters = (
        (Scale.BILINEAR, Scale.BICUBIC, Scale.LANCZOS) if factor > 1 else (Scale.BOX, Scale.BICUBIC, Scale.LANCZOS)
    )
    size = round(image.shape[1] * factor), round(image.shape[0] * factor)
    return np.asarray(Image.fromarray(image).resize(size, filters[draw.integers(3)]))


def gamma(image: Pixels, draw: np.random.Generator) -> Pixels:
    """Shift the brightness by a gamma of 0.6 to 0.8 or 1.25 to 1.67."""
    power = draw.uniform(0.6, 0.8) ** draw.choice([-1, 1])
    return np.asarray((image / 255) ** power * 255 + 0.5).astype(np.uint8)


def turned(image: Pixels, draw: np.random.Generator) -> Pixels:
    """Turn by 90, 180 or 270 degrees."""
    return np.ascontiguousarray(np.rot90(image, draw.integers(1, 4)))


def flipped(image: Pixels, draw: np.random.Generator) -> Pixels:
    """Mirror left-right, up-down or along a diagonal."""
    mirrored = image[:, ::-1]
    return np.ascontiguousarray(np.rot90(mirrored, draw.integers(0, 4)))


def window(scene: Pixels, x: int, y: int, side: int) -> Pixels:
    return np.ascontiguousarray(scene[y : y + side, x : x + side])


def whole(change: Callable[[Pixels, np.random.Generator], Pixels], placed: bool = False) -> Callable[..., Copy]:
    """Make a kind that alters an image's pixels; ``placed``: each stays where it is."""

    def make(scene: Pixels, side: int, draw: np.random.Generator) -> Copy:
        image = window(scene, 0, 0, side)
        return image, change(image, draw), 0 if placed else None, 0 if placed else None

    return make


def cropped(percent: int) -> Callable[..., Copy]:
    """Make a kind that cuts off so much of the width and of the height, not resized."""

    def make(scene: Pixels, side: int, draw: np.random.Generator) -> Copy:
        left = side - round(side * percent / 100)
        x, y = (int(v) for v in draw.integers(0, side - left + 1, 2))
        return window(scene, 0, 0, side), window(scene, x, y, left), x, y

    return make


def shifted(pixels: int) -> Callable[..., Copy]:
    """Make a kind that is cut from the same scene so many pixels away, along one axis or both."""

    def make(scene: Pixels, side: int, draw: np.random.Generator) -> Copy:
        side -= max(side + pixels - min(scene.shape[:2]), 0)
        dx, dy = ((pixels, 0), (0, pixels), (pixels, pixels), (pixels, -pixels))[draw.integers(4)]
        first = max(-dy, 0)
        return window(scene, 0, first, side), window(scene, dx, first + dy, side), dx, dy

    return make


def all_at_once(image: Pixels, draw: np.random.Generator) -> Pixels:
    return turned(gamma(resized(image, draw.uniform(0.5, 0.9), draw), draw), draw)


KINDS: dict[str, Callable[..., Copy]] = {
    "exact_bytes": whole(lambda image, draw: image, placed=True),
    "exact_pixels": whole(lambda image, draw: image, placed=True),
    "recompressed": whole(lambda image, draw: image, placed=True),
    "resized_half": whole(lambda image, draw: resized(image, 0.5, draw)),
    "resized_double": whole(lambda image, draw: resized(image, 2, draw)),
    "gamma": whole(gamma, placed=True),
    "rotated": whole(turned),
    "flipped": whole(flipped),
    "combined": whole(all_at_once),
    "crop_2": cropped(2),
    "crop_5": cropped(5),
    "crop_20": cropped(20),
    "crop_50": cropped(50),
    "shift_8": shifted(8),
    "shift_32": shifted(32),
    "shift_64": shifted(64),
}


def shared_fraction(a: Pixels, b: Pixels, dx: int | None, dy: int | None) -> float:
    """Return the share of the smaller image that the other shows too."""
    if dx is None or dy is None:
        return 1.0
    sizes = [min(a.shape[i], b.shape[i] + d) - max(d, 0) for i, d in ((0, dy), (1, dx))]
    return sizes[0] * sizes[1] / min(a.shape[0] * a.shape[1], b.shape[0] * b.shape[1])
