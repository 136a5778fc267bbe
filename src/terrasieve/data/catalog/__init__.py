"""Catalog: public data sets, one short file each, read as they are unpacked.

``find`` gives an entry by name; ``copy`` compares a folder with it; ``curate.catalogued`` makes a manifest of it, and
``evaluate.tasks`` a task: ``catalog:NAME[/VARIANT][@PATH]``.
"""

from __future__ import annotations

import difflib
import os
from importlib import import_module
from pathlib import Path

from terrasieve.data.catalog import dior
from terrasieve.data.catalog.entry import Entry
from terrasieve.data.masks import MaskSettings
from terrasieve.errors import UserError

__all__ = ["ENTRIES", "PREFIX", "VARIABLE", "Entry", "find", "masks_of", "named", "parse", "place"]

PREFIX = "catalog:"
VARIABLE = "TERRASIEVE_DATA"
_FILES = (
    *("aid", "bigearthnet_v2", "cashew", "dior", "eurosat", "flair", "fmow", "loveda", "millionaid", "mlrsnet"),
    *("resisc45", "sen4agrinet", "so2sat", "spacenet1", "ssl4eo_s12", "ucmerced", "woody"),
)
_MODULES = [import_module(f"{__name__}.{file}") for file in _FILES]
ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in sorted([*(module.ENTRY for module in _MODULES), dior.ORIENTED], key=lambda entry: entry.name)
}


def find(name: str) -> Entry:
    """Return the entry of a name.

    Raises:
        UserError: there is none.
    """
    plain = name.lower().replace("_", "-")
    if plain not in ENTRIES:
        near = difflib.get_close_matches(plain, ENTRIES, 1)
        hint = f"; did you mean {near[0]}?" if near else f". There is {', '.join(ENTRIES)}."
        raise UserError(f"The catalog has no data set {name!r}{hint}")
    return ENTRIES[plain]


def named(spec: str) -> tuple[Entry, str, str]:
    """Take ``catalog:NAME[/VARIANT][@PATH]`` apart into the entry, the variant and the path, "" where not given."""
    name, _, path = spec.removeprefix(PREFIX).partition("@")
    name, _, variant = name.partition("/")
    return find(name), variant, path


def masks_of(spec: str) -> MaskSettings | None:
    """Return what a task's masks mean, where the catalog knows it; None for every other task."""
    if not spec.startswith(PREFIX):
        return None
    entry, variant, _ = named(spec)
    return entry.masks_of(variant)


def parse(spec: str) -> tuple[Entry, str, Path]:
    """Take ``catalog:NAME[/VARIANT][@PATH]`` apart.

    Returns:
        The entry, its variant ("" = the first), and the folder: PATH, or NAME below the folder that the environment
        variable ``TERRASIEVE_DATA`` names.
    """
    entry, variant, path = named(spec)
    return entry, variant, Path(path).expanduser() if path else place(entry)


def place(entry: Entry, folder: Path | None = None) -> Path:
    """Return where a data set lies below a folder; None = the one that the environment names.

    Raises:
        UserError: neither is given.
    """
    top = folder or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if top is None:
        raise UserError(
            f"Where is {entry.name}? Write catalog:{entry.name}@PATH, or set {VARIABLE} to your folder of data sets."
        )
    return top.expanduser() / entry.name
