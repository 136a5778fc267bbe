"""Measure the procedural Earth: chips per second on one core, and how far raw pixels alone separate its scenes.

Run ``python benchmarks/earth.py``. Speed is the median of several passes over the same balanced places, with masks,
labels and boxes; on a shared machine the processor's time is the fairer figure. The k-NN figure (16 x 16 pixels,
L2-normalised, cosine, k = 10, whole 5-degree blocks held out) should stay mediocre: scenes must be told apart by
structure and not by colour.
"""

from __future__ import annotations

import argparse
import collections
import statistics
import time

import numpy as np
from numpy.typing import NDArray

from terrasieve.imagery.earth import Place, render, sample_places, split_of


def speed(places: list[Place], passes: int, seed: int) -> None:
    wall, cpu = [], []
    for _ in range(passes):
        started, used = time.perf_counter(), time.thread_time()
        for place in places:
            render(place, seed)
        wall.append(len(places) / (time.perf_counter() - started))
        cpu.append(len(places) / (time.thread_time() - used))
    print(
        f"render: {statistics.median(wall):.0f} chips/s by the wall (best {max(wall):.0f}), "
        f"{statistics.median(cpu):.0f} chips/s of processor time (best {max(cpu):.0f}), one core"
    )


def raw_knn(places: list[Place], seed: int, k: int = 10) -> None:
    rows, labels, splits = [], [], []
    for place in places:
        chip = render(place, seed)
        image = chip.image.astype(np.float32)
        rows.append(image.reshape(len(image), 16, 6, 16, 6).mean((2, 4)).ravel())
        labels.append(chip.label)
        splits.append(split_of(chip.lon, chip.lat, seed))
    names, classes = np.unique(labels, return_inverse=True)
    test = np.array(splits) == "test"
    print("scenes:", dict(collections.Counter(labels).most_common()))
    features = np.array(rows)
    for title, centred in (("raw", features), ("standardised", (features - features.mean(0)) / features.std(0))):
        score, per_class = _knn(centred, classes, test, len(names), k)
        print(f"raw-pixel k-NN ({title}, k = {k}, {test.sum()} test chips): {score:.1%}")
        print("  recall:", {str(name): round(float(value), 2) for name, value in zip(names, per_class, strict=True)})


def _knn(
    features: NDArray[np.float32], classes: NDArray[np.intp], test: NDArray[np.bool_], count: int, k: int
) -> tuple[float, NDArray[np.float64]]:
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    nearest = np.argsort(-(unit[test] @ unit[~test].T), axis=1)[:, :k]
    votes = np.stack([np.bincount(classes[~test][row], minlength=count) for row in nearest])
    right = votes.argmax(1) == classes[test]
    return float(right.mean()), np.array([right[classes[test] == c].mean() for c in range(count)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chips", type=int, default=240)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--knn", type=int, default=2000, help="chips for the k-NN; 0 leaves it out")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    render(Place(0.0, 0.0), args.seed)
    used = time.thread_time()
    places = sample_places(args.chips, args.seed)
    print(f"sample: {args.chips / (time.thread_time() - used):.0f} places/s of processor time")
    speed(places, args.passes, args.seed)
    if args.knn:
        raw_knn(sample_places(args.knn, args.seed), args.seed)


if __name__ == "__main__":
    main()
