"""The page of subsets: what is in each share, and what the richest and the poorest images look like.

After ``subsets``, which ranks. One HTML file that opens anywhere, offline.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from terrasieve.curate.subset import SubsetSettings
from terrasieve.imagery.unreadable import UnreadableImage
from terrasieve.report.curves import compact
from terrasieve.report.pair_pictures import thumbnail
from terrasieve.report.redundancy_figures import histogram
from terrasieve.report.render import data_uri, write_page

SHOWN = 12
GROUPS = 30
WORDS = {
    "density": ("Likeness to neighbours", "mean cosine to the nearest neighbours; the least alike first"),
    "hog": ("HOG energy", "in squares of the typical brightness of the source; much first"),
    "entropy": ("Entropy, bits", "of the grey thumbnail; much first"),
    "random": ("Order", "random, the control"),
}


class Ranked(NamedTuple):
    """Kept images of a manifest and what they were ranked by.

    Attributes:
        table: ``uri``, ``window``, ``bands``, ``source``, ``label`` of n images.
        rank: (n,) int64, 0 first, -1 unreadable.
        score: (n,) larger first; NaN unreadable.
        hog, entropy: (n,) of all, whatever ranked them.
    """

    table: pa.Table
    rank: np.ndarray
    score: np.ndarray
    hog: np.ndarray
    entropy: np.ndarray


def write_subset_report(
    path: Path, ranked: Ranked, shares: Sequence[float], settings: SubsetSettings, compared: str
) -> Path:
    """Write the page.

    Args:
        path: of the page.
        ranked: images and their ranks; at least one was read.
        shares: of the subsets, ascending.
        settings: of the ranking.
        compared: what the embeddings are.
    """
    title, says = WORDS[settings.by]
    known = np.flatnonzero(ranked.rank >= 0)
    sign = -1 if settings.by == "density" else 1
    by_score = known[np.argsort(-ranked.score[known], kind="stable")]
    by_rank = known[np.argsort(ranked.rank[known])]
    groups = ranked.table["label" if ranked.table["label"].null_count < len(ranked.table) / 2 else "source"].to_pylist()
    return write_page(
        "subset.html.j2",
        path,
        name=path.stem,
        settings=settings,
        compared=compared,
        title=title,
        says=says,
        unreadable=int((ranked.rank < 0).sum()),
        rows=[(f"{100 * share:g} %", *_means(ranked, by_rank, share, sign)) for share in [*shares, 1.0]],
        histogram=Markup(histogram(title, sign * ranked.score[known])) if settings.by != "random" else None,
        richest=[_picture(ranked, row, sign) for row in by_score[:SHOWN]],
        poorest=[_picture(ranked, row, sign) for row in by_score[::-1][:SHOWN]],
        groups=_groups(groups, by_rank, shares),
        shares=[f"{100 * share:g} %" for share in shares],
    )


def _means(ranked: Ranked, by_rank: np.ndarray, share: float, sign: int) -> tuple[int, str, str, str]:
    chosen = by_rank[: round(share * len(by_rank))]
    means = (sign * ranked.score[chosen], ranked.hog[chosen], ranked.entropy[chosen])
    first, second, third = (f"{values.mean():.3g}" if len(values) else "" for values in means)
    return len(chosen), first, second, third


def _groups(
    groups: list[str | None], by_rank: np.ndarray, shares: Sequence[float]
) -> list[tuple[str, int, list[tuple[int, float]]]]:
    """Return (name, images, (number, share) in each subset), the one that keeps most of the smallest subset first."""
    names, number = np.unique([name or "(unknown)" for name in groups], return_inverse=True)
    total = np.bincount(number[by_rank], minlength=len(names))
    counts = [np.bincount(number[by_rank[: round(s * len(by_rank))]], minlength=len(names)) for s in shares]
    order = [n for n in np.argsort(-counts[0] / np.maximum(total, 1), kind="stable") if total[n]]
    order = order if len(order) <= GROUPS else [*order[: GROUPS // 2], *order[-GROUPS // 2 :]]
    return [
        (str(names[n]), int(total[n]), [(int(count[n]), 100 * count[n] / total[n]) for count in counts]) for n in order
    ]


def _picture(ranked: Ranked, row: int, sign: int) -> tuple[str, str, str]:
    entry = ranked.table.select(["uri", "window", "bands"]).slice(int(row), 1).to_pylist()[0]
    try:
        image = data_uri("image/jpeg", thumbnail(entry, 140))
    except (UnreadableImage, OSError):
        image = ""
    return image, compact(float(sign * ranked.score[row])), "/".join(entry["uri"].rsplit("/", 2)[-2:])
