"""The page of a search: what is like one image, on a map and as thumbnails; each of them can be asked in its turn.

Filled from ``scenes.similar`` by ``searching``. The vectors of its places travel as one byte a value, so that the
page compares them itself: one file, no server, no request.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from terrasieve.imagery import stretch
from terrasieve.imagery.headers import Header, header
from terrasieve.imagery.preview import Preview, preview
from terrasieve.imagery.unreadable import UnreadableImage
from terrasieve.report.maps import Frame
from terrasieve.report.pair_pictures import jpeg
from terrasieve.report.render import data_uri, source, write_page

THUMB_PX, OVERVIEW_PX = 80, 1000
AROUND = 2  # cells of a scene that a thumbnail shows on each side of the one that it is of
LEAST_PX = 7.0  # of a mark on a map

Window = tuple[int, int, int, int]
Box = tuple[float, float, float, float]


class Pool(NamedTuple):
    """The places of a page; the first is what is asked.

    Attributes:
        ids, uris: of each.
        windows: x, y, width, height in pixels; None = the whole image.
        lonlat_N2: degrees, NaN where unknown.
        unit_ND: vectors of length 1.
        cells: the windows are single cells of a scene, too small to be understood alone.
    """

    ids: Sequence[str]
    uris: Sequence[str]
    windows: Sequence[Window | None]
    lonlat_N2: NDArray[np.float64]
    unit_ND: NDArray[np.float32]
    cells: bool


def write_similar(
    pool: Pool,
    out: Path,
    *,
    made_of: str,
    searched: int,
    count: int,
    apart_px: int,
    on_images: Callable[[int, int], None] | None = None,
) -> list[tuple[str, str]]:
    """Write the page.

    Args:
        pool: its places.
        out: file.
        made_of: name of what was searched.
        searched: vectors in all.
        count: of results shown.
        apart_px: between results of one image, along either axis.
        on_images: called with thumbnails made and their total.

    Returns:
        Images that cannot be read: (uri, reason); their thumbnails are grey.
    """
    thumbs, failed = _read(pool, on_images)
    board = {
        "ids": list(pool.ids), "names": [Path(uri).name for uri in pool.uris], "where": _where(pool),
        "image": np.unique(pool.uris, return_inverse=True)[1].tolist(),
        "codes": base64.b64encode(codes(pool.unit_ND)).decode(), "width": pool.unit_ND.shape[1],
        "count": count, "apart": apart_px,
        "centre": [None if w is None else [w[0] + w[2] / 2, w[1] + w[3] / 2] for w in pool.windows],
    }  # fmt: skip
    base, marks = _map(pool)
    across = math.ceil(math.sqrt(len(pool.ids)))
    values = {
        "name": Path(made_of).name, "searched": searched, "shown": len(pool.ids), "failed": len(failed),
        "kind": "places" if len(set(pool.uris)) == 1 else "images", "base": base, "across": across,
        "down": math.ceil(len(pool.ids) / across), "held": board | {"marks": marks, "across": across},
        "sprite": data_uri("image/jpeg", jpeg(_sheet(thumbs, across), 78)), "script": Markup(source("similar.js")),
    }  # fmt: skip
    write_page("similar.html.j2", out, **values)
    return failed


def codes(unit_ND: NDArray[np.float32]) -> bytes:
    """Return vectors with one signed byte a value, the largest of each vector 127: a cosine is off by less than .01."""
    largest = np.abs(unit_ND).max(1, keepdims=True)
    rounded: NDArray[np.int8] = np.rint(unit_ND / np.maximum(largest, 1e-12) * 127).astype(np.int8)
    return rounded.tobytes()


class _Thumb(NamedTuple):
    """A thumbnail before its stretch, and of a cell its box in it, shares of the sides."""

    seen: Preview
    box: Box | None


def _read(
    pool: Pool, on_images: Callable[[int, int], None] | None
) -> tuple[list[_Thumb | None], list[tuple[str, str]]]:
    thumbs: list[_Thumb | None] = []
    failed: dict[str, str] = {}
    heads: dict[str, Header] = {}
    for uri, window in zip(pool.uris, pool.windows, strict=True):
        try:
            if uri not in heads:
                heads = {
                    uri: header(uri, max_pixels=1 << 62)
                }  # rows of one image follow each other, or it is the only one
            head, box = heads[uri], None
            if pool.cells and window is not None:
                window, box = around(window, head.width, head.height)
            thumbs.append(_Thumb(preview(uri, window, head.bands if window else None, THUMB_PX), box))
        except UnreadableImage as error:
            thumbs.append(None)
            failed[error.uri] = error.reason
        if on_images:
            on_images(len(thumbs), len(pool.uris))
    return thumbs, list(failed.items())


def around(cell: Window, image_width: int, image_height: int) -> tuple[Window, Box]:
    """Return a window around a cell, moved into the image, and the cell's box in it as shares of its sides."""
    x, y, side, _ = cell
    width, height = (min((2 * AROUND + 1) * side, whole) for whole in (image_width, image_height))
    left = min(max(x - AROUND * side, 0), image_width - width)
    top = min(max(y - AROUND * side, 0), image_height - height)
    box = (x - left) / width, (y - top) / height, (x + side - left) / width, (y + side - top) / height
    return (left, top, width, height), box


def _sheet(thumbs: Sequence[_Thumb | None], across: int) -> NDArray[np.uint8]:
    """Lay thumbnails in rows; images of the same bands and type are stretched alike."""
    kinds: dict[tuple[Any, ...], list[Preview]] = {}
    for one in thumbs:
        if one is not None:
            kinds.setdefault((one.seen.bands, one.seen.rgb_3HW.dtype), []).append(one.seen)
    limits = {
        kind: stretch.limits([one.rgb_3HW for one in alike], [one.valid_HW for one in alike], tail=0.01)
        for kind, alike in kinds.items()
    }
    sheet = Image.new("RGB", (across * THUMB_PX, math.ceil(len(thumbs) / across) * THUMB_PX), (128, 128, 128))
    for number, one in enumerate(thumbs):
        if one is None:
            continue
        seen = one.seen
        pixels = stretch.stretched(seen.rgb_3HW, seen.valid_HW, limits[seen.bands, seen.rgb_3HW.dtype])
        shown = Image.fromarray(stretch.to_bytes(pixels)).resize((THUMB_PX, THUMB_PX), Image.Resampling.BICUBIC)
        if one.box is not None:
            left, top, right, bottom = (edge * THUMB_PX for edge in one.box)
            ImageDraw.Draw(shown).rectangle((left, top, right - 1, bottom - 1), outline=(255, 255, 255))
        sheet.paste(shown, (number % across * THUMB_PX, number // across * THUMB_PX))
    return np.asarray(sheet)


def _where(pool: Pool) -> list[str]:
    words = []
    for (lon, lat), window in zip(pool.lonlat_N2.tolist(), pool.windows, strict=True):
        if math.isfinite(lon):
            words.append(f"{abs(lat):.4f}°{'S' if lat < 0 else 'N'} {abs(lon):.4f}°{'W' if lon < 0 else 'E'}")
        else:
            words.append("" if window is None else f"x {window[0]:,}, y {window[1]:,}")
    return words


def _map(pool: Pool) -> tuple[Markup, list[list[float] | None]]:
    """Return the map below the marks as SVG, and each mark's x, y, width, height on it; nothing without places."""
    if len(set(pool.uris)) == 1 and all(window is not None for window in pool.windows):
        return _scene(pool)
    there = np.isfinite(pool.lonlat_N2[:, 0])
    if not there.any():
        return Markup(""), [None] * len(there)
    frame = Frame(pool.lonlat_N2[there, 0], pool.lonlat_N2[there, 1])
    marks: list[list[float] | None] = []
    for (lon, lat), known in zip(pool.lonlat_N2.tolist(), there.tolist(), strict=True):
        x, y = (frame.across(lon), frame.up(lat)) if known else (0.0, 0.0)
        square = [round(x - LEAST_PX / 2, 1), round(y - LEAST_PX / 2, 1), LEAST_PX, LEAST_PX]
        marks.append(square if known else None)
    title = f"Where {len(there)} images lie"
    return Markup(frame.svg(title, [*frame.graticule(), '<g id="marks"></g>'])), marks  # of numbers and words of ours


def _scene(pool: Pool) -> tuple[Markup, list[list[float] | None]]:
    try:
        seen = preview(pool.uris[0], None, None, OVERVIEW_PX)
        head = header(pool.uris[0], max_pixels=1 << 62)
    except UnreadableImage:
        return Markup(""), [None] * len(pool.uris)
    shown = stretch.stretched(
        seen.rgb_3HW, seen.valid_HW, stretch.limits([seen.rgb_3HW], [seen.valid_HW], tail=0.02), no_data=1
    )
    scale = OVERVIEW_PX / max(head.width, head.height)
    width, height = head.width * scale, head.height * scale
    picture = data_uri("image/jpeg", jpeg(stretch.to_bytes(shown), 80))
    marks: list[list[float] | None] = []
    for window in pool.windows:
        assert window is not None
        left, top, *sides = (side * scale for side in window)
        more = [max(0.0, LEAST_PX - side) / 2 for side in sides]
        square = [left - more[0], top - more[1], sides[0] + 2 * more[0], sides[1] + 2 * more[1]]
        marks.append([round(side, 1) for side in square])
    svg = (
        f'<svg viewBox="0 0 {width:.1f} {height:.1f}" role="img" aria-label="The scene, its places coloured by '
        f'similarity"><image href="{picture}" width="{width:.1f}" height="{height:.1f}" preserveAspectRatio="none"/>'
        '<g id="marks"></g></svg>'
    )
    return Markup(svg), marks  # of numbers and pixels
