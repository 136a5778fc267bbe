"""Recipe of a curation: sources and what is done with them, one YAML file, checked whole before anything starts.

Read by ``pipeline``; written back in full as ``recipe.yaml`` in the curation's folder. Paths start where the command is
run. The parts are described beside the code that reads them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from terrasieve.curate.collect import ScanSettings
from terrasieve.curate.exact import ExactSettings
from terrasieve.curate.exclude import ExcludeSettings
from terrasieve.curate.listing import SourceSettings
from terrasieve.curate.near import NearSettings
from terrasieve.curate.shards import ShardSettings
from terrasieve.curate.slicing import SliceSettings
from terrasieve.curate.sparse import SparseSettings
from terrasieve.curate.store import HashSettings
from terrasieve.curate.verify import VerifySettings
from terrasieve.errors import UserError
from terrasieve.section import Section
from terrasieve.settings_file import override, read, validate

__all__ = ["CurateRecipe", "SourceSettings", "load"]


class CurateRecipe(Section):
    """Everything about a curation.

    Attributes:
        name: of the data set.
        seed: of everything random.
        workers: processes; null = one per core.
        engine: local, or ray (an existing cluster, or this machine).
        sources: in order of priority: of duplicates that are equal otherwise, the one of the earlier source is kept.
        scan: how files are read.
        exclude: what is dropped, by header and by pixels.
        slice: how oversized scenes are cut; null = they are dropped as too large.
        hash: how images are hashed.
        exact: how exact duplicates are found.
        sparse: how much of low information stays; null = all of it, in the join too.
        near: how near-duplicates are found.
        verify: how they are judged.
        shards: of what is kept, in ``shards/``; null = none are written.
    """

    name: str = Field(default="curated", pattern=r"^[\w.-]+$")
    seed: int = 0
    workers: int | None = Field(default=None, ge=1)
    engine: Literal["local", "ray"] = "local"
    sources: tuple[SourceSettings, ...] = Field(min_length=1)
    scan: ScanSettings = ScanSettings()
    exclude: ExcludeSettings = ExcludeSettings()
    slice: SliceSettings | None = SliceSettings()
    hash: HashSettings = HashSettings()
    exact: ExactSettings = ExactSettings()
    sparse: SparseSettings | None = SparseSettings()
    near: NearSettings = NearSettings()
    verify: VerifySettings = VerifySettings()
    shards: ShardSettings | None = None

    @model_validator(mode="after")
    def _fits(self) -> CurateRecipe:
        names = [source.name for source in self.sources]
        again = sorted({name for name in names if names.count(name) > 1})
        if again:
            raise ValueError(f"two sources are named {again[0]!r}")
        most = self.exclude.max_px
        if self.slice is not None and most is not None and (self.slice.over_px or self.slice.size_px) > most:
            raise ValueError(
                f"slice cuts scenes above {self.slice.over_px or self.slice.size_px} px, but exclude.max_px is {most}: "
                "what lies between would be dropped uncut"
            )
        return self


def load(path: str | Path, overrides: Iterable[str] = ()) -> CurateRecipe:
    """Read a recipe and apply ``key=value`` overrides.

    Raises:
        UserError: if the file is missing or not YAML, or a key or value is wrong; all mistakes are listed at once.
    """
    content = override(read(path), overrides)
    if "sources" not in content and {"method", "task"} & set(content):
        other = "adapt" if "task" in content else "pretrain"
        raise UserError(f"The recipe {path} is one of terrasieve {other}, not of terrasieve curate.")
    return validate(content, str(path), CurateRecipe)
