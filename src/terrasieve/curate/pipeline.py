"""Pipeline: all steps of a curation in order, in one folder; what is done already is not done again.

``recipe.yaml  steps.json  log.jsonl  steps/*.parquet  hashes/  pairs.parquet  decisions.jsonl  manifest.parquet
shards/``

Each step has a key, a hash of its settings, its version and the key of the step before; the first of all is a hash of
the listing of the sources. A step whose file is there and whose key is in ``steps.json`` is skipped. So a run that was
killed goes on where it was, and a source that is added costs the headers and hashes of its own files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from terrasieve.curate import collect, listing
from terrasieve.curate.engine import engine_of
from terrasieve.curate.recipe import CurateRecipe
from terrasieve.curate.shards import export_shards
from terrasieve.curate.step import Result, Work
from terrasieve.curate.steps import STEPS, Step
from terrasieve.errors import UserError
from terrasieve.files import held, written_aside
from terrasieve.section import Section
from terrasieve.settings_file import dump

Entry = dict[str, Any]  # of steps.json


@dataclass(frozen=True)
class Progress:
    """What is told while a curation runs.

    Attributes:
        begins: with the name of a step.
        counts: what is done of the step, and of how much (0 = not known yet).
        ends: with the step's entry in ``steps.json`` and whether it was done before.
    """

    begins: Callable[[str], None] = lambda name: None
    counts: Callable[[int, int], None] = lambda done, total: None
    ends: Callable[[Entry, bool], None] = lambda entry, before: None


def curate(settings: CurateRecipe, folder: Path, progress: Progress | None = None) -> list[Entry]:
    """Run a curation, or what is left of it.

    Args:
        settings: of the curation.
        folder: is made; one that holds an earlier run of this or another recipe is taken over from.
        progress: told what happens.

    Returns:
        The entries of ``steps.json``: ``step, key, rows, kept, dropped, notes, seconds, finished``.

    Raises:
        UserError: a source that cannot be used, a full disk, a folder that another process holds.
        KeyboardInterrupt: passed on; everything done so far stays.
    """
    _stands_apart(folder, settings)
    with held(folder, "-o"):
        with written_aside(folder / "recipe.yaml") as aside:
            aside.write_text(dump(settings), encoding="utf-8")
        run = Run(settings, folder, progress or Progress())
        source = run.scan()
        for name, step in STEPS.items():
            if getattr(settings, step.key) is not None:
                source = run.step(name, step, source)
        publish(source, folder / "manifest.parquet")
        if settings.shards is not None:
            shards = folder / "shards"
            run.do(
                "shards",
                1,
                settings.shards,
                shards / "manifest.parquet",
                lambda own, work: export_shards(source, shards, own, work),
            )
        return run.entries


def _stands_apart(folder: Path, settings: CurateRecipe) -> None:
    for source in settings.sources:
        for path in map(Path, source.paths):
            if path.is_dir() and folder.resolve().is_relative_to(path.resolve()):
                raise UserError(
                    f"-o: {folder} lies inside {path}, a folder of source {source.name!r}, so what is written would be "
                    "listed as images. Choose a folder outside, or name the source's own folders."
                )


def _decisions(work: Work) -> str:
    """Return a hash of what a person decided in review, which verification reads."""
    return hashlib.blake2b(work.decisions.read_bytes()).hexdigest() if work.decisions.exists() else ""


def _adapted(name: str, settings: CurateRecipe) -> Section:
    """Return a step's settings: scenes that will be cut are not too large, and the order of sources is priority."""
    own: Section = getattr(settings, STEPS[name].key)
    if name == "exclude" and settings.slice is not None:
        return own.model_copy(update={"max_px": None})
    if "sources" in type(own).model_fields and not own.model_dump()["sources"]:
        return own.model_copy(update={"sources": tuple(source.name for source in settings.sources)})
    return own


@dataclass
class Run:
    """A run of a curation: its folder, and what is done in it.

    Attributes:
        settings: of the curation.
        folder: held by this process.
        progress: told what happens.
        entries: of this run, in order.
    """

    settings: CurateRecipe
    folder: Path
    progress: Progress
    entries: list[Entry] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.work = Work(
            self.folder,
            engine_of(self.settings.engine, self.settings.workers),
            self.settings.seed,
            self.progress.counts,
        )
        self.before = {entry["step"]: entry for entry in read_steps(self.folder)}
        self.anew = False
        (self.folder / "steps").mkdir(exist_ok=True)

    def scan(self) -> Path:
        """List the sources, always; read the headers of what is new, if anything is. Return the manifest."""
        target = self.folder / "steps" / "scan.parquet"
        spool = self.folder / "steps" / "spool.parquet"
        self.progress.begins("list")
        sources = self.settings.sources
        with written_aside(spool) as aside:
            found = listing.list_sources(sources, aside, self.progress.counts)
        found = replace(found, path=spool)
        try:
            self.do(
                "scan",
                collect.VERSION,
                self.settings.scan,
                target,
                lambda own, work: collect.collect(found, sources, target, own, work),
                found.key,
            )
        finally:
            spool.unlink(missing_ok=True)
        return target

    def step(self, name: str, step: Step, source: Path) -> Path:
        """Do one of ``STEPS``, unless it is done, and return the manifest that it wrote."""
        target = self.folder / "steps" / f"{name}.parquet"
        self.do(
            name,
            step.version,
            _adapted(name, self.settings),
            target,
            lambda own, work: step.run(source, target, own, work),
            _decisions(self.work) if name == "verify" else "",
            step.also,
        )
        return target

    def do(
        self,
        name: str,
        version: int,
        own: Section,
        target: Path,
        run: Callable[[Any, Work], Result],
        extra: str = "",
        also: tuple[str, ...] = (),
    ) -> None:
        """Do a step, unless it is done.

        Args:
            name: of the step.
            version: of its code.
            own: its settings.
            target: what it writes.
            run: does it.
            extra: what its result depends on besides settings and the step before.
            also: what else it writes into the folder.
        """
        previous = self.entries[-1]["key"] if self.entries else ""
        content = [name, version, own.model_dump(mode="json"), self.settings.seed, previous, extra]
        key = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
        entry = self.before.get(name)
        there = target.exists() and all((self.folder / part).exists() for part in also)
        if entry is not None and entry["key"] == key and there and not self.anew:
            self._note(entry, True)
            return
        self.anew = True  # what follows may have read what is written again now
        self.progress.begins(name)
        self._log({"begins": name})
        start = time.monotonic()
        result = run(own, self.work)
        entry = {
            "step": name,
            "key": key,
            "rows": result.rows,
            "kept": result.kept,
            "dropped": dict(result.dropped.most_common()),
            "notes": result.notes,
            "seconds": round(time.monotonic() - start, 2),
            "finished": _now(),
        }
        self._note(entry, False)

    def _note(self, entry: Entry, before: bool) -> None:
        self.entries.append(entry)
        if not before:
            done = {old["step"] for old in self.entries}
            later = [old for name, old in self.before.items() if name not in done]
            with written_aside(self.folder / "steps.json") as aside:
                aside.write_text(json.dumps([*self.entries, *later], indent=1) + "\n", encoding="utf-8")
            self._log({"ends": entry["step"], "seconds": entry["seconds"], "kept": entry["kept"]})
        self.progress.ends(entry, before)

    def _log(self, line: dict[str, Any]) -> None:
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"time": _now(), **line}) + "\n")


def read_steps(folder: Path) -> list[Entry]:
    """Return the entries of a curation's ``steps.json``; none where there is none.

    Raises:
        UserError: it cannot be read.
    """
    path = folder / "steps.json"
    try:
        entries: list[Entry] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(
            f"Cannot read {path}: {error}. Remove it; the steps are then done again, the hashes are kept."
        ) from error
    return entries


def publish(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system cannot: no step changes a file that stands."""
    if target.exists() and target.samefile(source):
        return
    with written_aside(target) as aside:
        try:
            os.link(source, aside)
        except OSError:
            shutil.copyfile(source, aside)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
