"""Steps: those that change a manifest, in their order, with their settings. One table for pipeline and commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from terrasieve.curate.exclude import ExcludeSettings, exclude, inspect
from terrasieve.curate.slicing import SliceSettings, cut
from terrasieve.curate.step import Result, Work
from terrasieve.section import Section


class Step(NamedTuple):
    """A step of curation.

    Attributes:
        run: (source, target, settings, work) -> counts.
        settings: their type.
        key: of the settings in a recipe.
        version: goes up when the step's code changes what it writes, so that a rerun does it again.
    """

    run: Callable[[Path, Path, Any, Work], Result]
    settings: type[Section]
    key: str
    version: int = 1


STEPS: dict[str, Step] = {
    "exclude": Step(exclude, ExcludeSettings, "exclude"),
    "slice": Step(cut, SliceSettings, "slice"),
}
