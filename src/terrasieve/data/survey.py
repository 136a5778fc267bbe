"""Survey: what neighbours a manifest's images have, told before training and drawn in the run's report.

Beside ``groups``; a keyed sample of the images is looked at, so that it takes no longer for millions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from terrasieve import keyed
from terrasieve.data.augment import ImageSettings
from terrasieve.data.groups import Groups

LOOKED_AT = 1000
DRAWN = 300


def take(groups: Groups, windows_N4: np.ndarray, image: ImageSettings, seed: int) -> dict[str, Any]:
    """Look at a sample of images.

    Args:
        groups: of the manifest's images.
        windows_N4: (n, 4) int, of all images.
        image: size and augmentation.
        seed: chooses the sample.

    Returns:
        JSON-able: ``images`` in all, ``sample`` looked at, ``kinds`` images that have such a neighbour, ``doubts`` and
        ``examples`` of places, ``overlap`` mean IoU of crops, ``pairs`` drawn: kind, and west, north, east, south in
        degrees of both crops (absent without a place).
    """
    places = groups.neighbours.places
    rows = keyed.numpy_generator(seed, "survey").permutation(len(places))[:LOOKED_AT]
    kinds = groups.neighbours.census(rows)
    pairs, overlaps = [], []
    for n in range(DRAWN):
        epoch, row = n // len(rows), int(rows[n % len(rows)])
        group = groups.cut(keyed.numpy_generator(seed, "augment", epoch, row), row, epoch, windows_N4, image)
        overlaps.append(group.overlap)
        corners = places.corners[row]
        if np.isfinite(corners).all() and np.ptp(corners, axis=0).all():
            pairs.append(
                {
                    "kind": group.kinds[0],
                    "boxes": _degrees(corners, places.boxes(np.array([row]), row)[0], group.boxes_K4),
                }
            )
    return {
        "images": len(places),
        "sample": len(rows),
        "kinds": dict(kinds),
        "doubts": dict(places.doubts),
        "examples": places.examples,
        "overlap": float(np.mean(overlaps)),
        "pairs": pairs,
    }


def _degrees(corners: np.ndarray, footprint: np.ndarray, boxes_K4: np.ndarray) -> list[list[float]]:
    """Place boxes between a footprint's edges in degrees: good enough to be drawn."""
    west, south = corners.min(axis=0)
    east, north = corners.max(axis=0)
    left, top, right, bottom = footprint
    x = west + (boxes_K4[:, [0, 2]] - left) / (right - left) * (east - west)
    y = south + (boxes_K4[:, [1, 3]] - bottom) / (top - bottom) * (north - south)
    return [[round(float(v), 7) for v in box] for box in np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)]


def notes(found: dict[str, Any], dates: bool = False) -> list[str]:
    """Say what a person should know before training, in sentences.

    Args:
        found: by :func:`take`.
        dates: only other dates of the same place were looked for.
    """
    shares = {kind: count / found["sample"] for kind, count in found["kinds"].items()}
    alone = shares.pop("alone", 0.0)
    listed = ", ".join(f"{kind} {share:.0%}" for kind, share in sorted(shares.items(), key=lambda item: -item[1]))
    lines = [
        f"neighbours of {found['sample']:,} images looked at: {listed}; alone {alone:.1%} (two crops of themselves); "
        f"mean IoU of crops {found['overlap']:.2f}"
    ]
    if dates:
        lines = [
            f"of {found['sample']:,} images looked at {1 - alone:.1%} have another date of the same place; the others, "
            f"{alone:.1%}, give two views of themselves"
        ]
        if not shares:
            lines[0] += (
                ", as without method.views_from=same_place. Dates are the manifest's datetime, places its footprints; "
                "see pairs.same_iou and pairs.min_days"
            )
    elif not shares:
        lines = [
            f"none of {found['sample']:,} images looked at has a neighbour: every group is crops of one image; widen "
            "pairs.gap, or add near to pairs.kinds with a pairs.max_km that suits"
        ]
    for words, count in found["doubts"].items():
        lines.append(
            f"{count:,} of {found['images']:,} images have {words}, e.g. {', '.join(found['examples'][words][:3])}"
        )
    return lines
