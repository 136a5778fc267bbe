"""What the review page says and shows of one pair: numbers, both images' metadata, pictures, the rest of the group.

The same for the server, which makes a pair's when it is looked at, and for the static page, which holds them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from terrasieve.curate.hashing import ORIENTATIONS
from terrasieve.report.pair_pictures import GAIN, PairPictures, jpeg
from terrasieve.report.review_pairs import CODES, ReviewPairs

MOST_OTHERS = 24
Row = Mapping[str, Any]


def details(review: ReviewPairs, number: int, pictures: PairPictures) -> dict[str, Any]:
    """Return what the page's script needs to show a pair, as JSON types."""
    pair = review.pair(number)
    rows = review.row(pair["row_a"]), review.row(pair["row_b"])
    others, count = review.others(pair, MOST_OTHERS)
    return {
        "number": number,
        "decision": CODES[review.decided[number]],
        "kind": pair["kind"],
        "verdict": pair["verdict"],
        "by": pair["by"],
        "sources": sorted({row["source"] for row in rows if row["source"]}),
        "likeness": pair["correlation"] if pair["correlation"] is not None else pair["score"],
        "group": pair["group"],
        "tags": tags(pair, pictures),
        "fields": fields(*rows),
        "left": _side(rows[0], pictures.left, pictures.shared_left, pictures.errors[0]),
        "right": _side(rows[1], pictures.right, pictures.shared_right, pictures.errors[1]),
        "common": pictures.common,
        "gain": GAIN,
        "difference": pictures.difference is not None,
        "others": [{"id": row["id"], "kept": row["keep"], "words": _words(row)} for row in others],
        "more": count - len(others),
    }


def files(pictures: PairPictures) -> dict[str, bytes]:
    """Return the pictures that there are, as JPEG, by the names that the page asks for."""
    named = {"left": pictures.left, "right": pictures.right, "difference": pictures.difference}
    return {name: jpeg(picture) for name, picture in named.items() if picture is not None}


def tags(pair: Row, pictures: PairPictures) -> list[str]:
    """Return what is known of a pair in a few words each."""
    quarters, mirrored = ORIENTATIONS[pair["orientation"] or 0]
    turns = [f"turned {90 * quarters}° anticlockwise"] if quarters else []
    turns += ["mirrored left to right"] if mirrored else []
    found = [f"right one is shown {' and '.join(turns)}"] if turns else []
    if pair["distance"] is not None:
        found.append(f"hash distance {pair['distance']} of 64")
    if pair["correlation"] is not None:
        found.append(f"correlation {pair['correlation']:.3f}")
    if pair["score"] is not None:
        found.append(f"score {pair['score']:.3f}")
    if pair["dx_px"] is not None or pair["dy_px"] is not None:
        found.append(f"shifted by {pair['dx_px'] or 0:+d}, {pair['dy_px'] or 0:+d} px")
    if pair["shared_fraction"] is not None:
        found.append(f"shares {pair['shared_fraction']:.0%} of its area")
    if pictures.mean_difference is not None:
        found.append(f"mean difference {pictures.mean_difference:.1%}")
    return found


def fields(a: Row, b: Row) -> list[tuple[str, str, str]]:
    """Return (name, of the first, of the second) of what either row says."""
    pairs = [(name, of(a), of(b)) for name, of in _FIELDS.items()]
    return [entry for entry in pairs if entry[1] or entry[2]]


def _side(row: Row, picture: Any, box: tuple[int, int, int, int] | None, error: str) -> dict[str, Any]:
    height, width = picture.shape[:2] if picture is not None else (1, 1)
    shared = None
    if box is not None:
        shared = [box[0] / width, box[1] / height, (box[2] - box[0]) / width, (box[3] - box[1]) / height]
    return {"id": row["id"], "words": _words(row), "error": error, "width": width, "height": height, "shared": shared}


def _words(row: Row) -> str:
    name = row["uri"].rsplit("/", 1)[-1]
    return f"{name}, {row['label']}" if row["label"] else str(name)


def _size(row: Row) -> str:
    size = f"{row['width']:,} × {row['height']:,} px" if row["width"] and row["height"] else ""
    if row["width"] and row["height"] and row["gsd_m"]:
        size += f" = {_metres(row['width'] * row['gsd_m'])} × {_metres(row['height'] * row['gsd_m'])}"
    return size


def _metres(length_m: float) -> str:
    return f"{length_m / 1000:,.3g} km" if length_m >= 1000 else f"{length_m:,.3g} m"


def _window(row: Row) -> str:
    return "x {}, y {}, {} × {} px".format(*row["window"]) if row["window"] else ""


def _bands(row: Row) -> str:
    names = row["bands"] or []
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return " · ".join(part for part in (shown, row["dtype"]) if part)


def _place(row: Row) -> str:
    return "" if row["lat"] is None or row["lon"] is None else f"{row['lat']:.5f}°, {row['lon']:.5f}°"


_FIELDS: dict[str, Callable[[Row], str]] = {
    "file": lambda row: row["uri"],
    "window": _window,
    "size": _size,
    "GSD": lambda row: "" if row["gsd_m"] is None else f"{row['gsd_m']:.4g} m",
    "source": lambda row: row["source"] or "",
    "sensor": lambda row: row["sensor"] or "",
    "bands": _bands,
    "date": lambda row: "" if row["datetime"] is None else f"{row['datetime']:%Y-%m-%d %H:%M}",
    "place": _place,
    "label": lambda row: row["label"] or ", ".join(row["labels"] or []),
    "split": lambda row: row["split"] or "",
    "licence": lambda row: row["licence"] or "",
    "in the set": lambda row: "kept" if row["keep"] else f"dropped, {row['reason']}",
}
