"""Steps: those that change a manifest, in their order, with their settings. One table for pipeline and commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from terrasieve.curate.exact import ExactSettings, exact
from terrasieve.curate.exclude import ExcludeSettings, exclude, inspect
from terrasieve.curate.near import NearSettings, near
from terrasieve.curate.slicing import SliceSettings, cut
from terrasieve.curate.sparse import SparseSettings, sparse
from terrasieve.curate.step import Result, Work
from terrasieve.curate.store import HashSettings, hash_images
from terrasieve.curate.verify import VerifySettings, verify
from terrasieve.section import Section


class Step(NamedTuple):
    """A step of curation.

    Attributes:
        run: (source, target, settings, work) -> counts.
        settings: their type.
        key: of the settings in a recipe.
        also: what it writes into the curation's folder beside its manifest.
        version: goes up when the step's code changes what it writes, so that a rerun does it again.
    """

    run: Callable[[Path, Path, Any, Work], Result]
    settings: type[Section]
    key: str
    also: tuple[str, ...] = ()
    version: int = 1


STEPS: dict[str, Step] = {
    "exclude": Step(exclude, ExcludeSettings, "exclude"),
    "slice": Step(cut, SliceSettings, "slice"),
    "hash": Step(hash_images, HashSettings, "hash", ("hashes",)),
    "inspect": Step(inspect, ExcludeSettings, "exclude"),
    "exact": Step(exact, ExactSettings, "exact", ("pairs.parquet",)),
    "sparse": Step(sparse, SparseSettings, "sparse"),
    "near": Step(near, NearSettings, "near"),
    "verify": Step(verify, VerifySettings, "verify", ("pairs.parquet",)),
}
