"""The redundancy page: distributions, groups, map, means and masks of a manifest's images in one HTML file.

Last stage of ``terrasieve redundancy``, from ``evaluate.redundancy_table`` to a page that opens anywhere, offline.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup
from numpy.typing import NDArray

from terrasieve.evaluate.redundancy import RedundancySettings
from terrasieve.evaluate.redundancy_table import means
from terrasieve.report import redundancy_figures as figures
from terrasieve.report.render import data_uri, write_page

GROUPS = 40  # more classes or sources: the most and the least redundant are drawn
LISTED = 200
UNLABELLED = "(none)"
RANKING = {"mean": "cosine_mean", "largest": "cosine_largest", "cover": "cover_kept"}
COMPARED = {
    "pixels": "raw patches, normalised per band",
    "embeddings": "patch embeddings before positions",
    "features": "features after the last block",
}


@dataclass(frozen=True)
class Measure:
    """How a score is called and read; ``{t}`` stands for the threshold of the greedy cover."""

    title: str
    reading: str


MEASURES = {
    "cosine_mean": Measure(
        "Mean cosine",
        "Cosine of a patch to every other patch, averaged. Near 1, all patches say the same; near 0, they differ.",
    ),
    "cosine_largest": Measure(
        "Largest cosine",
        "Cosine of a patch to the one most like it, averaged. Near 1, every patch has a twin, even where there are "
        "several kinds.",
    ),
    "cover_kept": Measure(
        "Kept by the greedy cover",
        "Share left when any patch within cosine {t} of a kept one is dropped. At 0.1, a tenth of them stands for all.",
    ),
    "hog_energy": Measure(
        "HOG energy",
        "Mean gradient energy of a patch, in squared standard deviations. Low: water, sand, haze. High: edges and "
        "texture.",
    ),
    "hog_share": Measure(
        "HOG energy in a quarter",
        "Share of it in the richest quarter of the patches. 0.25: spread evenly. Near 1: all detail in few places.",
    ),
    "entropy_bits": Measure(
        "Entropy, bits",
        "Of the grey histogram, at most 8. Low: few tones. It does not see where the tones lie, so noise scores high.",
    ),
    "effective_rank": Measure(
        "Effective rank",
        "How many directions the patches really span. 1: multiples of one patch; number of patches: nothing shared.",
    ),
}


@dataclass(frozen=True)
class Example:
    """An image of the gallery.

    Attributes:
        uri: of its file.
        words: class, source, scores.
        strip: JPEG of ``redundancy_gallery.strip``.
    """

    uri: str
    words: str
    strip: bytes

    @property
    def name(self) -> str:
        """The file and its folder."""
        return "/".join(self.uri.rsplit("/", 2)[-2:])


def write_redundancy_report(
    folder: Path, table: pa.Table, settings: RedundancySettings, about: dict[str, Any], examples: list[Example]
) -> Path:
    """Write ``report.html`` into an analysis' folder.

    Args:
        folder: to write into.
        table: of ``redundancy_table.measure``, at least one row scored.
        settings: of the scores.
        about: what the scores depend on, for the page's last section.
        examples: from the most to the least redundant image.

    Returns:
        The page's path.
    """
    scored = table.filter(pc.equal(table["reason"], ""))
    ranked = RANKING[settings.reduction]
    return write_page(
        "redundancy.html.j2",
        folder / "report.html",
        name=folder.resolve().name,
        compared=COMPARED[settings.of],
        settings=settings,
        ranked=MEASURES[ranked].title,
        facts=_facts(table, scored),
        means=_means(scored),
        titles=[measure.title for measure in MEASURES.values()],
        distributions=_distributions(scored, settings.threshold),
        classes=_spreads(scored, ranked, _classes(scored)),
        sources=_spreads(scored, ranked, [[name or UNLABELLED] for name in scored["source"].to_pylist()]),
        map=_map(scored, ranked),
        examples=[(example, data_uri("image/jpeg", example.strip)) for example in examples],
        unscored=_unscored(table),
        about=[(key.replace("_", " "), _words(value)) for key, value in about.items()],
    )


def by_redundancy(table: pa.Table, settings: RedundancySettings) -> NDArray[np.int64]:
    """Return the numbers of the scored rows, from the most to the least redundant by the settings' reduction."""
    values = table[RANKING[settings.reduction]].to_numpy().astype(np.float64)
    rows = np.flatnonzero(pc.equal(table["reason"], "").to_numpy(zero_copy_only=False))
    sign = 1 if settings.reduction == "cover" else -1  # what the cover keeps is what is not redundant
    return rows[np.argsort(sign * values[rows], kind="stable")]


def describe(row: dict[str, Any], settings: RedundancySettings) -> str:
    """Return an image's class or source and its scores in a line."""
    of = row["label"] or ", ".join(row["labels"] or []) or row["source"]
    parts = [of] if of else []
    parts.append(f"mean cosine {row['cosine_mean']:.2f}, largest {row['cosine_largest']:.2f}")
    parts.append(f"cover at {settings.threshold:g} keeps {100 * row['cover_kept']:.0f}\N{NO-BREAK SPACE}%")
    if row["no_data_patches"]:
        parts.append(f"{row['no_data_patches']} of {row['patches']} patches without data")
    return " · ".join(parts)


def _facts(table: pa.Table, scored: pa.Table) -> list[tuple[str, str, str]]:
    left_out = table.num_rows - scored.num_rows
    average = {name: pc.mean(scored[name]).as_py() for name in MEASURES}
    empty = pc.sum(scored["no_data_patches"]).as_py() / pc.sum(scored["patches"]).as_py()
    return [
        ("Images", f"{scored.num_rows:,}", f"{left_out:,} not scored" if left_out else "all scored"),
        ("Mean cosine", f"{average['cosine_mean']:.2f}", f"to the nearest patch {average['cosine_largest']:.2f}"),
        ("Greedy cover keeps", f"{100 * average['cover_kept']:.0f} %", "of the patches"),
        ("Effective rank", f"{average['effective_rank']:.0f}", f"of {scored['patches'][0].as_py()} patches"),
        ("Entropy", f"{average['entropy_bits']:.1f}", "bits"),
        ("No data", f"{100 * empty:.1f} %", "of the patches, left out"),
    ]


def _means(scored: pa.Table) -> list[tuple[str, int, list[tuple[str, str]]]]:
    """Return rows of the table of means: (name, images, (mean, interval) of each score)."""
    sources = Counter(scored["source"].to_pylist())
    parts = [("all", scored)]
    if len(sources) > 1:
        for source, _ in sources.most_common(GROUPS):
            chosen = pc.is_null(scored["source"]) if source is None else pc.equal(scored["source"], source)
            parts.append((source or UNLABELLED, scored.filter(chosen)))
    rows = []
    for name, part in parts:
        cells = [(_three(mean), f"{_three(low)} to {_three(high)}") for mean, low, high in means(part).values()]
        rows.append((name, part.num_rows, cells))
    return rows


def _three(value: float) -> str:
    return f"{value:.3g}" if abs(value) >= 1 else f"{value:.3f}"


def _distributions(scored: pa.Table, threshold: float) -> list[tuple[str, Markup, str]]:
    drawn = []
    for name, measure in MEASURES.items():
        svg = figures.histogram(measure.title, scored[name].to_numpy().astype(np.float64))
        drawn.append((measure.title, Markup(svg), measure.reading.replace("{t}", f"{threshold:g}")))
    return drawn


def _classes(scored: pa.Table) -> list[list[str]]:
    """Return each image's classes: one, or all of a multi-label one."""
    both = zip(scored["label"].to_pylist(), scored["labels"].to_pylist(), strict=True)
    return [[label] if label else (labels or [UNLABELLED]) for label, labels in both]


def _spreads(scored: pa.Table, ranked: str, names: list[list[str]]) -> dict[str, Any] | None:
    """Draw the groups from the most to the least redundant one; None when there is only one."""
    values = scored[ranked].to_numpy().astype(np.float64)
    rows: dict[str, list[int]] = {}
    for row, of in enumerate(names):
        for name in of:
            rows.setdefault(name, []).append(row)
    if len(rows) < 2:
        return None
    groups = sorted(((name, values[place]) for name, place in rows.items()), key=lambda group: -group[1].mean())
    groups = groups[::-1] if ranked == "cover_kept" else groups
    left_out = max(len(groups) - GROUPS, 0)
    shown = groups if not left_out else [*groups[: GROUPS // 2], *groups[-GROUPS // 2 :]]
    return {"svg": Markup(figures.spreads(MEASURES[ranked].title, shown)), "count": len(groups), "left_out": left_out}


def _map(scored: pa.Table, ranked: str) -> dict[str, Any] | None:
    lon, lat, values = (scored[name].to_numpy().astype(np.float64) for name in ("lon", "lat", ranked))
    placed = np.isfinite(lon) & np.isfinite(lat)
    if not placed.any():
        return None
    svg = figures.world(MEASURES[ranked].title, lon[placed], lat[placed], values[placed])
    return {
        "svg": Markup(svg),
        "count": int(placed.sum()),
        "without": int((~placed).sum()),
        "cells": placed.sum() > figures.POINTS,
    }


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {inside}" for key, inside in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _unscored(table: pa.Table) -> dict[str, Any]:
    without = table.filter(pc.not_equal(table["reason"], ""))
    reasons = without["reason"].to_pylist()
    kinds = Counter(reason.partition(":")[0] for reason in reasons)
    listed = list(zip(without["uri"].to_pylist()[:LISTED], reasons, strict=False))
    return {"count": len(reasons), "kinds": kinds.most_common(), "rows": listed}
