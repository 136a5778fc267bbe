"""What a curation left in its folder, or a manifest alone: read for the datasheet and for the report.

Before ``datasheet`` and ``curation_page``; counts the manifest once for both (``statistics.json``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from terrasieve import settings_file
from terrasieve.curate import statistics
from terrasieve.curate.step import Tick
from terrasieve.errors import UserError


class Curation(NamedTuple):
    """A curation as it stands.

    Attributes:
        name: of the recipe, or of the folder or the manifest.
        folder: where pages are written.
        manifest: its last manifest.
        pairs: its table of judged pairs; may be absent.
        recipe: keys and values of ``recipe.yaml``; empty without one.
        steps: entries of ``steps.json``; empty without one.
        statistics: of ``curate.statistics``.
    """

    name: str
    folder: Path
    manifest: Path
    pairs: Path
    recipe: dict[str, Any]
    steps: list[dict[str, Any]]
    statistics: dict[str, Any]

    @property
    def sources(self) -> list[dict[str, Any]]:
        """The recipe's sources."""
        return [source for source in self.recipe.get("sources") or () if isinstance(source, dict)]

    @property
    def waiting(self) -> int:
        """Pairs that wait for a person."""
        return sum(entry["pairs"] for entry in self.statistics["pairs"] if entry["verdict"] == "review")

    @property
    def waits(self) -> str:
        """The same in words."""
        return "1 pair waits" if self.waiting == 1 else f"{self.waiting:,} pairs wait"

    def dropped(self) -> list[tuple[str, int]]:
        """Return (code, rows), the most frequent first."""
        codes: dict[str, int] = {}
        for entry in self.statistics["dropped"]:
            codes[entry["code"]] = codes.get(entry["code"], 0) + entry["rows"]
        return sorted(codes.items(), key=lambda item: (-item[1], item[0]))


def load(path: Path, output: Path | None = None, tick: Tick | None = None) -> Curation:
    """Read a curation's folder or a manifest, and count it unless that has been done.

    Args:
        path: folder with ``manifest.parquet``, or a manifest file.
        output: folder for pages and statistics; None = the folder itself, or the manifest's.
        tick: told rows counted and their number.

    Raises:
        UserError: neither, or a file in it that cannot be read.
    """
    inside = path if path.is_dir() else path.parent
    manifest = path / "manifest.parquet" if path.is_dir() else path
    if path.is_dir() and not manifest.is_file():
        raise UserError(
            f"{path} holds no manifest.parquet, so it is no finished curation. Make one with "
            "`terrasieve curate RECIPE.yaml -o DIR`, or name a manifest file."
        )
    of_curation = manifest.name == "manifest.parquet"  # a file of another name is only itself
    recipe_path, steps_path, pairs = (inside / name for name in ("recipe.yaml", "steps.json", "pairs.parquet"))
    recipe = settings_file.read(recipe_path) if of_curation and recipe_path.is_file() else {}
    steps = _steps(steps_path) if of_curation and steps_path.is_file() else []
    pairs = pairs if of_curation else path.with_suffix(".pairs.parquet")
    folder = output or inside
    name = recipe.get("name") or (path.resolve().name if path.is_dir() else path.stem)
    return Curation(str(name), folder, manifest, pairs, recipe, steps, _counted(manifest, pairs, folder, tick))


def _steps(path: Path) -> list[dict[str, Any]]:
    try:
        steps = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {path}: {error}. Run the curation again; finished steps are kept.") from error
    if not isinstance(steps, list) or not all(isinstance(step, dict) and "step" in step for step in steps):
        raise UserError(f"{path} is not a list of steps. Run the curation again.")
    return steps


def _counted(manifest: Path, pairs: Path, folder: Path, tick: Tick | None) -> dict[str, Any]:
    path = folder / statistics.FILE
    of = {"manifest_blake2b": statistics.digest(manifest), "pairs_blake2b": statistics.digest(pairs)}
    try:
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if of["manifest_blake2b"] and of.items() <= known.items() and "map" in known:
            return known
    except (OSError, ValueError, AttributeError):
        pass  # absent or cut: counted anew
    counted = statistics.statistics(manifest, pairs, tick)
    statistics.write(counted, path)
    return counted
