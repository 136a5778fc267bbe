"""Batch survey: how far apart the images of a batch lie, told before training.

Beside ``batches``. Geographic regularisers learn from pairs within some distance, and images without a place, or too
far from others, never get into a region: both are counted here, on the first batches of the run itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from terrasieve.data.batches import Batches, PlacedBatches, shuffles
from terrasieve.data.images import Images
from terrasieve.data.loader import StepSampler, placed_batches
from terrasieve.data.places import unit_vectors
from terrasieve.imagery.sphere import EARTH_RADIUS_KM

LOOKED_AT = 20  # batches
COMPARED = 1024  # images of a batch, each with all others


def take(images: Images, batches: Batches, seed: int, batch_size: int, within_km: float) -> dict[str, Any]:
    """Look at the first batches of a run, in shuffled or placed order.

    Args:
        images: what is trained on.
        batches: which images make a batch.
        seed: of the run.
        batch_size: of the global batch.
        within_km: distance that counts as near.

    Returns:
        JSON-able: ``batches`` their name; ``images`` in all, ``placed`` of them with lon and lat; ``within_km``,
        ``pairs_within`` the share of a batch's pairs that are nearer; ``nearest_km`` the median distance of an image to
        the nearest other one of its batch (None without places); ``centres`` of regions drawn, ``refused`` of them for
        too few images around, ``enough_km`` the radius within which half of the images have enough (None if none was
        refused); ``seen`` different images out of ``drawn``.
    """
    placed: PlacedBatches | None = None
    if shuffles(batches):
        keys_of = StepSampler(len(images), seed, range(0), (0, batch_size), batch_size).keys
    else:
        placed = placed_batches(images, batches, seed, batch_size)
        keys_of = placed.of
    pairs, near, nearest, seen = 0, 0, [np.empty(0)], set[int]()
    for step in range(LOOKED_AT):
        rows = np.array([row for _, row in keys_of(step)])
        seen.update(rows.tolist())
        rows = rows[np.isfinite(images.lon[rows]) & np.isfinite(images.lat[rows])]
        apart_km = distances_km(images.lon[rows], images.lat[rows], COMPARED)
        pairs += int(np.isfinite(apart_km).sum())
        near += int((apart_km <= within_km).sum())
        nearest.append(apart_km.min(axis=1, initial=np.inf))
    found = np.concatenate(nearest)
    return {
        "batches": batches.name,
        "images": len(images),
        "placed": int((np.isfinite(images.lon) & np.isfinite(images.lat)).sum()),
        "within_km": within_km,
        "pairs_within": near / max(pairs, 1),
        "nearest_km": float(np.median(found[np.isfinite(found)])) if np.isfinite(found).any() else None,
        "centres": placed.centres if placed else 0,
        "refused": placed.refused if placed else 0,
        "enough_km": placed.enough_km() if placed and placed.refused else None,
        "seen": len(seen),
        "drawn": LOOKED_AT * batch_size,
    }


def distances_km(lon_deg: np.ndarray, lat_deg: np.ndarray, first: int) -> np.ndarray:
    """Return great-circle distances of the first places to all (n,) of them; infinite to itself."""
    xyz = unit_vectors(np.stack([lon_deg, lat_deg], axis=1))
    chord = cdist(xyz[:first], xyz)
    np.fill_diagonal(chord, np.nan)
    return np.asarray(np.nan_to_num(2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(chord / 2, 1)), nan=np.inf))


def notes(found: dict[str, Any], batches: Batches) -> list[str]:
    """Say what a person should know before training, in sentences."""
    nearest = (
        "" if found["nearest_km"] is None else f", the nearest other image at {found['nearest_km']:,.3g} km (median)"
    )
    lines = [
        f"{batches.name} batches: {found['pairs_within']:.1%} of pairs lie within {found['within_km']:,g} km{nearest}"
    ]
    if shuffles(batches):
        return lines
    unplaced = found["images"] - found["placed"]
    if unplaced:
        fate = "and are never drawn" if batches.name == "regional" else "and are drawn globally only"
        lines.append(f"{unplaced:,} of {found['images']:,} images have no lon and lat {fate}")
    if found["refused"]:
        lines.append(
            f"{found['refused'] / found['centres']:.0%} of the images drawn as a region's centre have too few others "
            f"within loader.batches.radius_km and were passed over; half of all images have enough within "
            f"{found['enough_km']:,.0f} km. In {LOOKED_AT} batches are {found['seen']:,} different images, of "
            f"{found['drawn']:,}"
        )
    return lines
