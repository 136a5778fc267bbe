"""Slicing: virtual windows over scenes that are larger than what a model is trained on.

A step of curation, after ``exclude``: each oversized scene stays in the manifest as a row that is not kept ("sliced"),
followed by a row for each of its windows (x, y, width, height in the scene's pixels). No pixel is read or copied. The
place of a window is computed from the scene's transform; where the place comes from a CSV, from its outline.

Source: random windows, OpticalRS-13M; a grid whose last row and column are flush with the edge, common practice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import shapely
from pydantic import Field, model_validator

from terrasieve import keyed, manifest
from terrasieve.curate.step import ROW_GROUP, Result, Work, drop, rewrite
from terrasieve.imagery import geo
from terrasieve.imagery.headers import header
from terrasieve.imagery.unreadable import UnreadableImage
from terrasieve.section import Section

MAX_TILED_PIXELS = 10**12  # of a scene that is read by window


class SliceSettings(Section):
    """How oversized scenes are cut.

    Attributes:
        over_px: scenes with a side above this are cut; null = ``size_px``.
        size_px: side of a window in pixels; a scene's shorter side where that is less.
        how: "random" places (published; keyed by the seed and the scene), or a "grid".
        coverage: random windows: their area together, as a share of the scene's.
        overlap_px: grid: pixels that neighbours share; more at the far edges, where the last window ends flush.
        max_windows: most windows of one scene; a grid is thinned evenly. null = no limit.
    """

    over_px: int | None = Field(default=1024, ge=1)
    size_px: int = Field(default=512, ge=1)
    how: Literal["random", "grid"] = "random"
    coverage: float = Field(default=1.0, gt=0)
    overlap_px: int = Field(default=0, ge=0)
    max_windows: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _possible(self) -> SliceSettings:
        if self.over_px is not None and self.over_px < self.size_px:
            raise ValueError(f"over_px is {self.over_px}, below size_px, {self.size_px}")
        if self.overlap_px >= self.size_px:
            raise ValueError(f"overlap_px is {self.overlap_px}, not less than size_px, {self.size_px}")
        return self


class Places(NamedTuple):
    """Where windows are: WKB outlines and the longitudes and latitudes of centres, in degrees; (n,) objects or null."""

    geometry: list[bytes | None]
    lon: list[float | None]
    lat: list[float | None]


def cut(source: Path, target: Path, settings: SliceSettings, work: Work) -> Result:
    """Cut oversized scenes into windows.

    Reasons of the scenes: ``sliced``; ``changed`` or what ``imagery`` says of a file that cannot be opened any more.
    """
    counts = {"scenes": 0, "windows": 0}
    over = settings.over_px or settings.size_px

    def change(table: pa.Table, _: int) -> Iterator[pa.Table]:
        large = np.maximum(*(table[name].fill_null(0).to_numpy() for name in ("width", "height"))) > over
        large &= table["keep"].to_numpy(zero_copy_only=False)
        at = 0
        for row in np.flatnonzero(large).tolist():
            yield table.slice(at, row - at)
            scene = table.slice(row, 1)
            at = row + 1
            try:
                windows = choose(scene["id"][0].as_py(), _size(scene), settings, work.seed)
                parts = list(_windows(scene, windows))
            except UnreadableImage as error:
                yield drop(scene, np.array([0]), [error.reason])
                continue
            counts["scenes"] += 1
            counts["windows"] += len(windows)
            yield drop(scene, np.array([0]), [f"sliced: into {len(windows):,} windows of {settings.size_px} px"])
            yield from parts
        yield table.slice(at)

    result = rewrite(source, target, lambda table, first: _gathered(change(table, first)), work.tick)
    if counts["scenes"]:
        result.notes.append(
            f"{counts['scenes']:,} scenes with a side above {over} px were cut into {counts['windows']:,} windows of "
            f"{settings.size_px} px ({settings.how})."
        )
    return result


def choose(scene_id: str, size: tuple[int, int], settings: SliceSettings, seed: int) -> np.ndarray:
    """Return the windows of a scene.

    Args:
        scene_id: of its row; keys the draw.
        size: width and height in pixels.
        settings: how to cut.
        seed: of the curation.

    Returns:
        (n, 4) int32: x, y, width, height; all different, ordered by y, then x.
    """
    width, height = (min(settings.size_px, side) for side in size)
    if settings.how == "grid":
        x, y = (_steps(side, part, settings.overlap_px) for side, part in zip(size, (width, height), strict=True))
        corners = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        if settings.max_windows is not None and len(corners) > settings.max_windows:
            corners = corners[np.linspace(0, len(corners) - 1, settings.max_windows).round().astype(int)]
    else:
        count = max(round(settings.coverage * size[0] * size[1] / (width * height)), 1)
        count = min(count, settings.max_windows or count)
        draw = keyed.numpy_generator(seed, "slice", int(scene_id, 16))
        corners = draw.integers(0, [size[0] - width + 1, size[1] - height + 1], (count, 2))
        corners = np.unique(corners[:, ::-1], axis=0)[:, ::-1]
    return np.column_stack([corners, np.full(len(corners), width), np.full(len(corners), height)]).astype(np.int32)


def _steps(side: int, part: int, overlap: int) -> np.ndarray:
    """Return where windows begin along a side; the last one ends with it."""
    return np.unique(np.append(np.arange(0, side - part + 1, max(part - overlap, 1)), side - part))


def _size(scene: pa.Table) -> tuple[int, int]:
    return scene["width"][0].as_py(), scene["height"][0].as_py()


def _windows(scene: pa.Table, windows: np.ndarray) -> Iterator[pa.Table]:
    """Yield a scene's windows as rows, a row group at a time."""
    uri = scene["uri"][0].as_py()
    place = _scene_place(scene)
    for first in range(0, len(windows), ROW_GROUP):
        part = windows[first : first + ROW_GROUP]
        where = place(part)
        new = {
            "id": [manifest.row_id(uri, window) for window in part.tolist()],
            "window": part.tolist(),
            "width": part[:, 2],
            "height": part[:, 3],
            **where._asdict(),
        }
        table = scene.take(np.zeros(len(part), np.int64))
        for name, values in new.items():
            at = table.schema.get_field_index(name)
            table = table.set_column(at, name, pa.array(values, manifest.SCHEMA.field(name).type))
        yield table


def _scene_place(scene: pa.Table) -> Any:
    """Return the function from windows to places that suits what is known of a scene's own place."""
    size = _size(scene)
    outline = scene["geometry"][0].as_py()
    if outline is None:
        return lambda windows: _everywhere(windows, None, None, None)
    found = header(scene["uri"][0].as_py(), max_tiled_pixels=MAX_TILED_PIXELS)
    if (found.width, found.height) != size:
        detail = f"the file is {found.width} x {found.height} px now and was {size[0]} x {size[1]}"
        raise UnreadableImage(scene["uri"][0].as_py(), "changed", f"{detail}; run the curation again")
    if found.transform is not None and found.crs is not None:
        transform, crs = found.transform, found.crs
        return lambda windows: from_transform(windows, transform, crs)
    ring = shapely.get_coordinates(shapely.from_wkb(outline))
    if len(ring) == 5 and np.ptp(ring[:, 0]) < 180:
        return lambda windows: from_ring(windows, ring[:4], size)
    lon, lat = scene["lon"][0].as_py(), scene["lat"][0].as_py()
    return lambda windows: _everywhere(windows, outline, lon, lat)


def _everywhere(windows: np.ndarray, outline: bytes | None, lon: float | None, lat: float | None) -> Places:
    return Places([outline] * len(windows), [lon] * len(windows), [lat] * len(windows))


def from_transform(windows: np.ndarray, transform: geo.Affine, crs: str) -> Places:
    """Return the places of windows of a scene with a transform and a CRS, exactly."""
    outlines, centres = geo.window_places(transform, crs, windows)
    lon, lat = ([None if np.isnan(value) else value for value in column] for column in centres.T.tolist())
    return Places([None if outline is None else shapely.to_wkb(outline) for outline in outlines], lon, lat)


def from_ring(windows: np.ndarray, ring: np.ndarray, size: tuple[int, int]) -> Places:
    """Return the places of windows of a scene that is known by its outline alone, which came from a CSV.

    Such outlines are of images with north up and begin at the upper left corner; positions inside are interpolated
    bilinearly in degrees, which is off by less than a pixel over a few thousand.

    Args:
        windows: (n, 4) x, y, width, height in pixels.
        ring: (4, 2) corners in degrees, in either direction around.
        size: width and height of the scene in pixels.
    """
    first, second, third, fourth = ring
    if abs(second[0] - first[0]) < abs(fourth[0] - first[0]):  # outlines run counterclockwise (RFC 7946)
        second, fourth = fourth, second
    across = windows[:, [0]] + windows[:, [2]] * np.array([0, 1, 1, 0])
    down = windows[:, [1]] + windows[:, [3]] * np.array([0, 0, 1, 1])

    def at(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        u, v = (x / size[0])[..., None], (y / size[1])[..., None]
        return np.asarray((1 - v) * ((1 - u) * first + u * second) + v * ((1 - u) * fourth + u * third))

    outlines = shapely.orient_polygons(shapely.polygons(at(across, down)))
    middle = at(windows[:, 0] + windows[:, 2] / 2, windows[:, 1] + windows[:, 3] / 2)
    return Places(list(shapely.to_wkb(outlines)), middle[:, 0].tolist(), middle[:, 1].tolist())


def _gathered(parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Join small tables into ones of about a row group."""
    held: list[pa.Table] = []
    rows = 0
    for part in parts:
        held.append(part)
        rows += len(part)
        if rows >= ROW_GROUP:
            yield pa.concat_tables(held)
            held, rows = [], 0
    yield pa.concat_tables(held)
