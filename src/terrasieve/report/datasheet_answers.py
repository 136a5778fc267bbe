"""Answers of the datasheet that the manifest, the recipe and the steps know, as Markdown.

After ``curation_folder``, before ``datasheet``. A function per question of ``datasheet_questions``; one that returns
None leaves its question to a person.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import terrasieve
from terrasieve.report.curation_bars import band_names
from terrasieve.report.curation_folder import Curation
from terrasieve.report.markdown import LISTED, plain, share, table

Answer = Callable[[Curation], str | None]


def _by(name: str, title: str, listed: int = LISTED) -> Callable[[Curation], str]:
    def answer(curation: Curation) -> str:
        names = band_names if name == "bands" else str
        rows = [
            (None if e["value"] is None else names(e["value"]), e["kept"], e["rows"])
            for e in curation.statistics["by"][name]
        ]
        return table([title, "kept", "scanned"], rows, numbers=2, listed=listed)

    return answer


def _known(curation: Curation, name: str) -> list[dict[str, Any]]:
    return [entry for entry in curation.statistics["by"][name] if entry["value"] is not None and entry["kept"]]


def _instances(curation: Curation) -> str:
    found = curation.statistics
    windows = f", {found['windows']:,} of the rows being windows of larger files" if found["windows"] else ""
    lines = [f"An image, one row of the manifest{windows}. Kept: {found['pixels_kept'] / 1e9:,.3f} gigapixels"]
    if found["area_kept_km2"]:
        lines[0] += f", {found['area_kept_km2']:,.1f} km² of ground where the ground sample distance is known"
    lines[0] += "."
    gsd = [entry["value"] for entry in _known(curation, "gsd_m")]
    if gsd:
        lines.append(f"Ground sample distance: {min(gsd):g} to {max(gsd):g} m.")
    parts = [
        _by(name, title)(curation) for name, title in (("bands", "bands"), ("dtype", "type"), ("sensor", "sensor"))
    ]
    return "\n\n".join([" ".join(lines), *parts, _by("size", "width x height, px", 12)(curation)])


def _count(curation: Curation) -> str:
    found = curation.statistics
    return f"{found['kept']:,} kept of {found['rows']:,} scanned.\n\n{_by('source', 'source')(curation)}"


def _categories(curation: Curation) -> str | None:
    known = _known(curation, "category")
    if not known:
        return None
    return (
        f"{len(known):,} categories; an image with several counts in each.\n\n{_by('category', 'category')(curation)}"
    )


def _selection(curation: Curation) -> str:
    found = curation.statistics
    return (
        f"A selection: {found['kept']:,} of {found['rows']:,} scanned images "
        f"({share(found['kept'], found['rows'])}); what was dropped, and why, stands under Preprocessing."
    )


def _labels(curation: Curation) -> str:
    labelled = sum(entry["kept"] for entry in _known(curation, "category"))
    if not labelled:
        return "No: no kept image has a label in the manifest."
    without = sum(e["kept"] for e in curation.statistics["by"]["category"] if e["value"] is None)
    return f"{share(curation.statistics['kept'] - without, curation.statistics['kept'])} of the kept images are."


def _missing(curation: Curation) -> str:
    kept, found = curation.statistics["kept"], curation.statistics
    rows = []
    for name, title in (
        *(("gsd_m", "ground sample distance"), ("year", "date"), ("sensor", "sensor"), ("licence", "licence")),
        *(("category", "label"), ("split", "split")),
    ):
        without = sum(entry["kept"] for entry in found["by"][name] if entry["value"] is None)
        rows.append((title, without, share(without, kept)))
    placed = sum(cell[3] for cell in found["map"]["cells"])
    rows.append(("coordinates", kept - placed, share(kept - placed, kept)))
    return table(["missing", "kept images", "share"], rows, numbers=2)


def _relations(curation: Curation) -> str:
    groups = curation.statistics["groups"]
    if not groups["groups"]:
        return "No two of them share a group (near duplicates and images of one place would)."
    return (
        f"{groups['rows']:,} of the scanned images stand in {groups['groups']:,} groups of near duplicates (column "
        f"`group`), the largest of {groups['largest']:,}; {groups['kept']:,} of them are kept. Draw splits by group."
    )


def _splits(curation: Curation) -> str | None:
    return _by("split", "split")(curation) if _known(curation, "split") else None


def _errors(curation: Curation) -> str | None:
    pairs = curation.statistics["pairs"]
    if not pairs:
        return None
    rows = [(entry["kind"], entry["verdict"], entry["by"], entry["pairs"]) for entry in pairs]
    waiting = f"{curation.waits} for a person (`terrasieve review`). " if curation.waiting else ""
    return f"{waiting}Pairs of images that were compared:\n\n" + table(
        ["kind", "verdict", "by", "pairs"], rows, numbers=1
    )


def _external(curation: Curation) -> str:
    if shards(curation):
        return "Yes: the pixels lie in the shards, beside the manifest."
    return "No: the manifest names files by path or URL (column `uri`); the pixels stay with the sources."


def _acquisition(curation: Curation) -> str | None:
    rows = []
    for source in curation.sources:
        url = source.get("url")
        link = f"<{url}>" if re.match(r"https?://[^\s<>]+$", str(url)) else plain(url) if url else None
        rows.append((source.get("name"), source.get("sensor"), link, source.get("citation")))
    if not rows:
        return None
    lines = [f"- **{plain(name)}**" + "".join(f", {part}" for part in _parts(*rest)) for name, *rest in rows]
    return "\n".join(lines)


def _parts(sensor: Any, url: Any, citation: Any) -> list[str]:
    return [plain(sensor)] * bool(sensor) + [url] * bool(url) + [plain(citation) if citation else "citation unknown"]


def _sampling(curation: Curation) -> str | None:
    chosen = {name: curation.recipe[name] for name in ("slice", "sparse", "shards") if curation.recipe.get(name)}
    if not chosen:
        return None
    lines = [f"- {name}: {_settings(value)}" for name, value in chosen.items()]
    return "From the sources' files, by these settings of the recipe:\n\n" + "\n".join(lines)


def _settings(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{plain(key)} = {_settings(inside)}" for key, inside in value.items() if inside is not None)
    if isinstance(value, list):
        return ", ".join(map(_settings, value)) or "none"
    return plain(value)


def _period(curation: Curation) -> str | None:
    found = curation.statistics
    if not found["first_date"]:
        return None
    return f"{found['first_date']} to {found['last_date']}.\n\n{_by('year', 'year')(curation)}"


def _places(curation: Curation) -> str | None:
    cells = curation.statistics["map"]["cells"]
    if not cells:
        return None
    size = curation.statistics["map"]["cell_deg"]
    west, south = min(cell[0] for cell in cells), min(cell[1] for cell in cells)
    east, north = max(cell[0] for cell in cells) + size, max(cell[1] for cell in cells) + size
    return (
        f"Longitude {west:g} to {east:g}°, latitude {south:g} to {north:g}°, in {len(cells):,} cells of {size:g}°; "
        f"{curation.statistics['map']['without']:,} of the scanned images have no coordinates."
    )


def _processing(curation: Curation) -> str | None:
    if not curation.steps:
        return None
    rows = []
    for step in curation.steps:
        dropped = ", ".join(f"{code} {count:,}" for code, count in (step.get("dropped") or {}).items())
        rows.append((step["step"], dropped or "nothing", step.get("rows"), step.get("kept")))
    return "Pixels are not changed; steps select rows.\n\n" + table(
        ["step", "dropped", "rows", "kept"], rows, numbers=2
    )


def _dropped(curation: Curation) -> str:
    found = curation.statistics["dropped"]
    if not found:
        return "Nothing."
    rows = [(entry["code"], entry["source"], entry["rows"]) for entry in found]
    return table(["reason", "source", "images"], rows, numbers=1)


def _raw(curation: Curation) -> str:
    return "Yes, where the sources are: no file of theirs was changed, and every dropped row stays in the manifest."


def _software(curation: Curation) -> str:
    text = f"terrasieve {terrasieve.__version__}"
    if curation.recipe:
        text += "; `terrasieve curate recipe.yaml -o DIR` with the recipe beside this sheet repeats it bit for bit"
    return text + "."


def _form(curation: Curation) -> str | None:
    found = shards(curation)
    if found is None:
        return None
    return (
        f"{found[0]:,} WebDataset tars of {found[1] / 1e9:,.2f} GB together, with an index and a manifest (GeoParquet)."
    )


def _licence(curation: Curation) -> str:
    without = sum(entry["kept"] for entry in curation.statistics["by"]["licence"] if entry["value"] is None)
    note = f"\n\n**{without:,} kept images have no licence in the manifest.**" if without else ""
    return "Those of the images, by what the sources say:\n\n" + _by("licence", "licence")(curation) + note


def _versions(curation: Curation) -> str:
    finished = [step["finished"] for step in curation.steps if step.get("finished")]
    when = f", of {max(finished)[:10]}" if finished else ""
    return f"Manifest with BLAKE2b {curation.statistics['manifest_blake2b']}{when}."


def _extension(curation: Curation) -> str | None:
    return (
        "Add a source to `recipe.yaml` and run the curation again: only new images are hashed, and they are compared "
        "with all that are there."
        if curation.recipe
        else None
    )


def shards(curation: Curation) -> tuple[int, int] | None:
    """Return the number of shards and of their bytes; None where none were written."""
    path = curation.folder / "shards" / "index.parquet"
    try:
        index = pq.read_table(path, columns=["bytes"])
    except (OSError, pa.ArrowException, KeyError):
        return None
    return index.num_rows, pc.sum(index["bytes"]).as_py() or 0


FILLED: dict[str, Answer] = {
    "instances": _instances,
    "count": _count,
    "categories": _categories,
    "selection": _selection,
    "labels": _labels,
    "missing": _missing,
    "relations": _relations,
    "splits": _splits,
    "errors": _errors,
    "external": _external,
    "acquisition": _acquisition,
    "sampling": _sampling,
    "period": _period,
    "places": _places,
    "processing": _processing,
    "dropped": _dropped,
    "raw": _raw,
    "software": _software,
    "form": _form,
    "licence": _licence,
    "versions": _versions,
    "extension": _extension,
}
