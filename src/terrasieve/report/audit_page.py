"""The audit's page: what of each evaluation set stands in the pretraining set, in numbers and side by side.

Written by the command ``audit`` from ``curate.leaks``; one file, nothing fetched.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from terrasieve.curate.audit import Audit, AuditSettings
from terrasieve.curate.hashing import ORIENTATIONS
from terrasieve.curate.leaks import KINDS, WORDS
from terrasieve.report.pair_pictures import pair_picture
from terrasieve.report.render import data_uri, write_page

TILE_PX = 256
TITLES = {
    "exact": "Same bytes",
    "pixels": "Same pixels",
    "near": "Near copies",
    "rotated": "Turned or mirrored copies",
    "overlap": "Shared ground",
}
SHORT = {"exact": "bytes", "pixels": "pixels", "near": "near", "rotated": "turned", "overlap": "ground"}
READING = {
    "exact": "The file itself, perhaps under another name.",
    "pixels": "The same pixels in another file format, or with other metadata.",
    "near": "Resized, recompressed or with other tones; pHashes within the distance, thumbnails that correlate.",
    "rotated": "The same, after a turn or a mirroring. A pHash of the image as it is does not see them.",
    "overlap": "Other crops of the same ground, registered: the frame marks what both show. No hash of a whole image "
    "sees them.",
}


class Example(NamedTuple):
    """A pair of the gallery: what is said of it, its files, its picture as a data URI."""

    words: str
    names: str
    picture: str


def write_audit_report(folder: Path, name: str, audit: Audit, settings: AuditSettings, examples: int = 8) -> Path:
    """Write ``report.html``.

    Args:
        folder: of the audit.
        name: of the pretraining set.
        audit: what was found.
        settings: of the search.
        examples: pairs shown of each kind, spread over the sets.
    """
    leaks = audit.leaks
    return write_page(
        "audit.html.j2",
        folder / "report.html",
        name=name,
        facts=_facts(audit),
        kinds=[(kind, SHORT[kind], TITLES[kind]) for kind in KINDS if kind in settings.kinds],
        sets=[_set_row(of, images, leaks.filter(pc.equal(leaks["set"], of))) for of, images in audit.sets.items()],
        alone=_hash_alone(leaks, settings.judge.distance),
        galleries=[
            (kind, TITLES[kind], READING[kind], *_gallery(leaks.filter(pc.equal(leaks["kind"], kind)), examples))
            for kind in KINDS
            if pc.any(pc.equal(leaks["kind"], kind)).as_py()
        ],
        notes=audit.notes,
        about=_about(settings),
    )


def _facts(audit: Audit) -> list[tuple[str, str, str]]:
    leaks = audit.leaks
    images, rows = sum(audit.sets.values()), len(pc.unique(leaks["row"]))
    leaking = _images(leaks)
    return [
        ("Evaluation images that leak", f"{leaking:,}", f"of {images:,}, {_percent(leaking, images)}"),
        ("Pretraining images to drop", f"{rows:,}", f"of {audit.pretrain:,}, {_percent(rows, audit.pretrain)}"),
        ("Pairs", f"{len(leaks):,}", "of a pretraining and an evaluation image"),
        ("Evaluation sets", str(len(audit.sets)), f"{sum(bool(n) for n in audit.sets.values())} with images"),
    ]


def _images(leaks: pa.Table) -> int:
    return len(leaks.select(["set", "id_b"]).group_by(["set", "id_b"]).aggregate([]))


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _set_row(name: str, images: int, leaks: pa.Table) -> dict[str, Any]:
    """Count a set's images by the strongest kind in which each leaks, so that kinds add up."""
    strongest: dict[str, str] = {}
    for kind, image in zip(leaks["kind"].to_pylist(), leaks["id_b"].to_pylist(), strict=True):
        if image not in strongest or KINDS.index(kind) < KINDS.index(strongest[image]):
            strongest[image] = kind
    counts = {kind: list(strongest.values()).count(kind) for kind in KINDS}
    return {
        "name": name,
        "images": images,
        "counts": counts,
        "shares": {kind: 100 * n / max(images, 1) for kind, n in counts.items()},
        "leaking": len(strongest),
        "percent": _percent(len(strongest), images),
        "rows": len(pc.unique(leaks["row"])),
    }


def _hash_alone(leaks: pa.Table, distance: int) -> dict[str, int]:
    """Count the images that a pHash of the image as it is would have found."""
    seen = pc.fill_null(pc.less_equal(leaks["hash_bits"], distance), False)
    by_hash = _images(leaks.filter(seen))
    return {"distance": distance, "found": by_hash, "missed": _images(leaks) - by_hash}


def _gallery(leaks: pa.Table, count: int) -> tuple[int, list[Example]]:
    """Choose examples by turns from the sets and, of shared ground, from the smallest share to the largest."""
    groups = defaultdict(list)
    for number, name in enumerate(leaks["set"].to_pylist()):
        groups[name].append(number)
    chosen: list[int] = []
    each = -(-count // max(len(groups), 1))
    for numbers in groups.values():
        step = max(len(numbers) / each, 1)
        chosen += [numbers[int(k * step)] for k in range(min(each, len(numbers)))]
    return len(leaks), [_example(row) for row in leaks.take(pa.array(chosen[:count], pa.int64())).to_pylist()]


def _example(row: dict[str, Any]) -> Example:
    a, b = (
        {"uri": row[f"uri_{side}"], "window": row[f"window_{side}"], "bands": row[f"bands_{side}"]} for side in "ab"
    )
    picture = pair_picture(a, b, row["orientation"], row["dx_px"], row["dy_px"], tile_px=TILE_PX)
    parts = [row["set"] if row["split"] in (None, row["set"]) else f"{row['set']}, {row['split']}"]
    if row["kind"] == "overlap":
        parts.append(f"shares {100 * row['shared_fraction']:.0f}\N{NO-BREAK SPACE}%")
        if row["dx_px"] is not None:
            parts.append(f"offset {row['dx_px']}, {row['dy_px']} px")
        parts.append(f"score {row['score']:.2f}")
    if row["kind"] == "rotated":
        quarters, mirrored = ORIENTATIONS[row["orientation"]]
        parts.append(" and ".join([f"turned {90 * quarters}°"] * bool(quarters) + ["mirrored"] * mirrored))
    if row["kind"] in ("near", "rotated"):
        parts.append(f"thumbnails correlate {row['correlation']:.3f}")
    if row["hash_bits"] is not None:
        parts.append(f"pHash {row['hash_bits']} bits apart")
    names = " · ".join("/".join(row[f"uri_{side}"].rsplit("/", 2)[-2:]) for side in "ab")
    return Example(" · ".join(parts), names, data_uri("image/jpeg", picture))


def _about(settings: AuditSettings) -> list[tuple[str, str]]:
    return [
        ("looked for", ", ".join(WORDS[kind] for kind in settings.kinds)),
        ("near copies", f"pHash within {settings.judge.distance} bits, dHash within {settings.judge.reject_bits}, "
         f"thumbnails correlate {settings.judge.accept:g}"),
        ("shared ground", f"at least {100 * settings.overlap.least_shared:g} % of the smaller image, "
         f"score {settings.overlap.least_score:g}"),
    ]  # fmt: skip
