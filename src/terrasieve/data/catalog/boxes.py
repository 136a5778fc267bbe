"""Boxes: the objects of an image, horizontal or oriented, in one form, and their table beside a manifest.

A manifest ``NAME.parquet`` has its boxes in ``NAME.boxes.parquet`` (the procedural Earth: ``boxes.parquet`` in the same
folder), one row per box: ``id`` and ``uri`` of the image's row, ``name`` of the class, ``xyxy`` (left, top, right,
bottom), ``obb`` (centre x, centre y, width, height, angle; null where the source gives horizontal boxes alone) and
``difficult``. All in pixels of the image, 0, 0 being the outer corner of the first; the angle in radians from the x
axis to the width's side, clockwise as seen, in [-pi/2, pi/2), and width >= height (the convention "le90").
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from terrasieve.errors import UserError
from terrasieve.files import written_aside

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("uri", pa.string()),
        ("name", pa.string()),
        ("xyxy", pa.list_(pa.float32())),
        ("obb", pa.list_(pa.float32())),
        ("difficult", pa.bool_()),
    ]
)


class Box(NamedTuple):
    """An object: its class, its horizontal box, its oriented one where that is known, and whether it is hard to see."""

    name: str
    xyxy: tuple[float, float, float, float]
    obb: tuple[float, float, float, float, float] | None = None
    difficult: bool = False


def oriented(name: str, corners: Sequence[tuple[float, float]], difficult: bool = False) -> Box:
    """Return the box of four corners: the smallest rectangle around them, which of a true rectangle is itself.

    Args:
        name: class.
        corners: four (x, y) in pixels, in order around the box.
        difficult: hard to see.
    """
    import shapely

    polygon = shapely.MultiPoint(list(corners)).convex_hull
    frame = shapely.minimum_rotated_rectangle(polygon)
    left, top, right, bottom = (float(edge) for edge in polygon.bounds)
    if frame.geom_type != "Polygon":  # all corners on a line: a box without an area, which is for others to judge
        (x0, y0), (x1, y1) = (left, top), (right, bottom)
        ends = list(getattr(frame, "coords", [(x0, y0), (x1, y1)]))
        (x0, y0), (x1, y1) = ends[0], ends[-1]
        obb = _le90((x0 + x1) / 2, (y0 + y1) / 2, math.hypot(x1 - x0, y1 - y0), 0.0, math.atan2(y1 - y0, x1 - x0))
        return Box(name, (left, top, right, bottom), obb, difficult)
    (x0, y0), (x1, y1), (x2, y2) = list(frame.exterior.coords)[:3]
    width, height = math.hypot(x1 - x0, y1 - y0), math.hypot(x2 - x1, y2 - y1)
    obb = _le90((x0 + x2) / 2, (y0 + y2) / 2, width, height, math.atan2(y1 - y0, x1 - x0))
    return Box(name, (left, top, right, bottom), obb, difficult)


def _le90(x: float, y: float, width: float, height: float, angle: float) -> tuple[float, float, float, float, float]:
    if height > width:
        width, height, angle = height, width, angle + math.pi / 2
    turned = (angle + math.pi / 2) % math.pi - math.pi / 2
    return x, y, width, height, -math.pi / 2 if turned >= math.pi / 2 else turned


def to_table(rows: Iterable[tuple[str, str, Box]]) -> pa.Table:
    """Make the table of (id, uri, box)."""
    listed = [
        {
            "id": row,
            "uri": uri,
            "name": box.name,
            "xyxy": list(box.xyxy),
            "obb": None if box.obb is None else list(box.obb),
            "difficult": box.difficult,
        }
        for row, uri, box in rows
    ]
    return pa.Table.from_pylist(listed, SCHEMA)


def path_beside(manifest: Path) -> Path:
    """Return where the boxes of a manifest are written."""
    return manifest.with_name(f"{manifest.stem}.boxes.parquet")


def write(table: pa.Table, manifest: Path) -> Path:
    """Write boxes beside their manifest, whole or not at all; return the file."""
    path = path_beside(manifest)
    with written_aside(path) as aside:
        pq.write_table(table.select(SCHEMA.names).cast(SCHEMA), aside, compression="zstd")
    return path


def read(manifest: Path) -> pa.Table:
    """Read the boxes of a manifest: ``SCHEMA``; what a file lacks of the last two columns is null and false.

    Raises:
        UserError: there are none, or the file is no table of boxes.
    """
    places = (path_beside(manifest), manifest.with_name("boxes.parquet"))
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(f"{manifest} has no boxes beside it: there is neither {places[0].name} nor {places[1].name}.")
    try:
        table = pq.read_table(path)
        for name, value in (("obb", None), ("difficult", False)):
            if name not in table.column_names:
                table = table.append_column(name, pa.array([value] * len(table), SCHEMA.field(name).type))
        return table.select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(f"{path} is no table of boxes ({', '.join(SCHEMA.names)}): {error}") from error
