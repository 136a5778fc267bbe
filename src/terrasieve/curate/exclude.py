"""Exclude: which images are not wanted, by what their headers say (``exclude``) and by their pixels (``inspect``).

Two steps of curation, before slicing and after hashing. Both say of each row that they drop which rule it broke and
by how much. The rules are those published for OpticalRS-13M: modality, 64 to 1024 pixels, no-data, blank, licence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from terrasieve.curate import stamps
from terrasieve.curate.step import Result, Work, drop, numbers, rewrite
from terrasieve.curate.store import open_store
from terrasieve.errors import UserError
from terrasieve.section import Section

Bounds = tuple[float, float, float, float]


class ExcludeSettings(Section):
    """What is dropped.

    Attributes:
        min_px: shortest side of an image, in pixels.
        max_px: longest side; null = any. The pipeline asks it after slicing, so only of what was not sliced.
        min_bands: fewest bands.
        max_bands: most bands; null = any.
        bands: an image has to have all of these, by name, and may have more; null = any.
        dtypes: numpy names that are wanted; null = any.
        sensors: that are wanted; null = any, or none known.
        drop_sensors: that are not.
        licences: that are wanted, as written in the sources; null = any, or none known.
        drop_licences: that are not.
        drop_labels: classes that are not wanted.
        within: west, south, east, north in degrees (west > east crosses the antimeridian); images whose centre is
            outside, or that have no place, are dropped. null = anywhere.
        max_no_data: largest share of pixels that are not real, 0 to 1.
        min_std: smallest standard deviation of the grey thumbnail (0 to 255); below it an image is blank.
    """

    min_px: int = Field(default=64, ge=1)
    max_px: int | None = Field(default=1024, ge=1)
    min_bands: int = Field(default=1, ge=1)
    max_bands: int | None = Field(default=None, ge=1)
    bands: tuple[str, ...] | None = None
    dtypes: tuple[str, ...] | None = None
    sensors: tuple[str, ...] | None = None
    drop_sensors: tuple[str, ...] = ()
    licences: tuple[str, ...] | None = None
    drop_licences: tuple[str, ...] = ()
    drop_labels: tuple[str, ...] = ()
    within: Bounds | None = None
    max_no_data: float = Field(default=0.5, ge=0, le=1)
    min_std: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _possible(self) -> ExcludeSettings:
        if self.max_px is not None and self.max_px < self.min_px:
            raise ValueError(f"max_px is {self.max_px}, below min_px, {self.min_px}")
        if self.max_bands is not None and self.max_bands < self.min_bands:
            raise ValueError(f"max_bands is {self.max_bands}, below min_bands, {self.min_bands}")
        if self.within is not None and not -90 <= self.within[1] < self.within[3] <= 90:
            raise ValueError(f"within is {self.within}, which is not west, south, east, north in degrees")
        return self


class Rule(NamedTuple):
    """(n,) which rows break a rule, and the reason of one of them."""

    broken: np.ndarray
    reason: Callable[[int], str]


def exclude(source: Path, target: Path, settings: ExcludeSettings, work: Work) -> Result:
    """Drop images by their headers: size, bands, data type, sensor, licence, label, place.

    Reasons: ``too_small``, ``too_large``, ``modality``, ``licence``, ``label``, ``outside``; the first that applies.
    """
    return rewrite(source, target, lambda table, _: _apply(table, _by_header(table, settings)), work.tick)


def inspect(source: Path, target: Path, settings: ExcludeSettings, work: Work) -> Result:
    """Drop images by their pixels, as the hash store saw them, and files that changed since they were listed.

    Reasons: the store's own (``truncated``, ``unreadable``, ``missing``, ...), ``changed``, ``no_data``, ``blank``.

    Raises:
        UserError: images that are kept are not in the store.
    """
    store = open_store(work.hashes)
    columns = {name: store.column(name) for name in ("valid_share", "std", "reason", "stamp")}
    listed = stamps.Stamps(source.with_name(stamps.NAME))

    def change(table: pa.Table, _: int) -> pa.Table:
        kept = table["keep"].to_numpy(zero_copy_only=False)
        if not kept.any():
            return table
        rows = store.rows(numbers(table["id"]))
        absent = kept & (rows < 0)
        if absent.any():
            raise UserError(
                f"{absent.sum():,} images that are kept are not in the hash store {work.hashes}, the first is "
                f"{table['uri'][int(absent.argmax())]}. Run `terrasieve hash` over this manifest first."
            )
        seen = {name: column[np.maximum(rows, 0)] for name, column in columns.items()}
        changed = np.zeros(len(table), bool)
        changed[kept] = listed.differ(table["uri"].filter(table["keep"]), seen["stamp"][kept])
        return _apply(table, _by_pixels(seen, changed, settings))

    return rewrite(source, target, change, work.tick)


def _apply(table: pa.Table, rules: Iterator[Rule]) -> pa.Table:
    free = table["keep"].to_numpy(zero_copy_only=False).copy()
    rows: list[int] = []
    reasons: list[str] = []
    for broken, reason in rules:
        hit = np.flatnonzero(broken & free)
        free[hit] = False
        rows += hit.tolist()
        reasons += [reason(row) for row in hit.tolist()]
    return drop(table, np.array(rows, np.int64), reasons)


def _by_header(table: pa.Table, settings: ExcludeSettings) -> Iterator[Rule]:
    width, height = (_floats(table[name]) for name in ("width", "height"))
    short, long = np.minimum(width, height), np.maximum(width, height)

    def size(row: int) -> str:
        return f"{width[row]:.0f} x {height[row]:.0f} px"

    yield Rule(short < settings.min_px, lambda row: f"too_small: {size(row)}, less than {settings.min_px}")
    if settings.max_px is not None:
        yield Rule(long > settings.max_px, lambda row: f"too_large: {size(row)}, more than {settings.max_px}")
    count = _floats(pc.list_value_length(table["bands"]))
    most = np.inf if settings.max_bands is None else settings.max_bands
    few = (count < settings.min_bands) | (count > most)
    yield Rule(few, lambda row: f"modality: {count[row]:.0f} bands")
    if settings.bands is not None:
        names = table["bands"].to_pylist()
        lacking = [sorted(set(settings.bands) - set(have or ())) for have in names]
        yield Rule(np.array([bool(some) for some in lacking], bool), lambda row: f"modality: no {lacking[row][0]}")
    yield _listed(table, "dtype", "modality", settings.dtypes, ())
    yield _listed(table, "sensor", "modality", settings.sensors, settings.drop_sensors)
    yield _listed(table, "licence", "licence", settings.licences, settings.drop_licences)
    yield _listed(table, "label", "label", None, settings.drop_labels)
    if settings.within is not None:
        lon, lat = _floats(table["lon"]), _floats(table["lat"])
        inside = _inside(lon, lat, settings.within)
        yield Rule(~inside, lambda row: f"outside: longitude {lon[row]:.5f}, latitude {lat[row]:.5f}")


def _by_pixels(seen: dict[str, np.ndarray], changed: np.ndarray, settings: ExcludeSettings) -> Iterator[Rule]:
    reason, share, std = seen["reason"], 1 - seen["valid_share"], seen["std"]
    yield Rule(np.array([bool(why) for why in reason], bool), lambda row: str(reason[row]))
    yield Rule(changed, lambda row: "changed: the file is not the one that was listed; run the curation again")
    yield Rule(share > settings.max_no_data, lambda row: f"no_data: {share[row]:.0%} of the pixels are not real")
    yield Rule(std < settings.min_std, lambda row: f"blank: standard deviation {std[row]:.2f} of 255")


def _listed(table: pa.Table, column: str, code: str, wanted: tuple[str, ...] | None, unwanted: tuple[str, ...]) -> Rule:
    values = table[column]
    bad = pc.is_in(values, value_set=pa.array(unwanted, pa.string()))
    if wanted is not None:
        bad = pc.or_(bad, pc.invert(pc.is_in(values, value_set=pa.array(wanted, pa.string()))))
    return Rule(
        bad.to_numpy(zero_copy_only=False), lambda row: f"{code}: {column} is {values[row].as_py() or 'not known'}"
    )


def _inside(lon: np.ndarray, lat: np.ndarray, within: Bounds) -> np.ndarray:
    west, south, east, north = within
    across = (lon >= west) & (lon <= east) if west <= east else (lon >= west) | (lon <= east)
    return np.asarray(across & (lat >= south) & (lat <= north))


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False))
