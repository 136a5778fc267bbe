"""The page of a curation: what came in, what each step dropped and why, with pictures, and what is left.

Last step of a curation, from ``curation_folder`` to one HTML file that opens anywhere, offline. Reads some hundred
images for its galleries, whatever the number of rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import yaml
from markupsafe import Markup

from terrasieve.curate.step import Tick
from terrasieve.imagery.unreadable import UnreadableImage
from terrasieve.report import curation_examples, curation_folder, maps
from terrasieve.report.curation_bars import TABLES, bars
from terrasieve.report.curation_folder import Curation
from terrasieve.report.markdown import share
from terrasieve.report.pair_pictures import pair_picture, thumbnail
from terrasieve.report.render import data_uri, write_page

REASONS = {
    "listed_twice": "The same file came by two names.",
    "unreadable": "The file cannot be decoded.",
    "not_an_image": "No image, whatever its name says.",
    "missing": "The file was gone when it was to be read.",
    "changed": "The file is not the one that was listed.",
    "altered": "The file changed while the curation ran.",
    "huge_header": "The header promises more pixels than are allowed to be decoded.",
    "outside": "Not in the area that the recipe asks for.",
    "truncated": "The file ends before its image does.",
    "modality": "Bands, type or sensor that the recipe does not want.",
    "too_small": "Fewer pixels a side than asked for.",
    "too_large": "More pixels a side than asked for.",
    "licence": "A licence that the recipe does not allow.",
    "sliced": "Cut into windows, which are rows of their own.",
    "no_data": "Too many pixels without data.",
    "blank": "Hardly any contrast.",
    "exact_duplicate": "The same bytes or the same pixels as a kept image.",
    "low_information": "Open water, cloud, snow: beyond the quota of images that hold little.",
    "near_duplicate": "The same picture as a kept one, recompressed, resized or slightly changed.",
    "rotated_duplicate": "A kept picture, turned or mirrored.",
    "overlap": "Much of the same ground as a kept image.",
    "decided": "A person decided in review.",
    "subset": "Not in the share of the subset.",
}
VERDICTS = {
    "duplicate": "Called duplicates: the least alike",
    "review": "Waiting for a person: the most alike",
    "different": "Called different: the most alike",
}


class Picture(NamedTuple):
    """A picture with its words; ``image`` is a data URI, empty where nothing could be read."""

    image: str
    title: str
    words: str
    kept: bool = False


def write_curation_report(folder: Path, output: Path | None = None, tick: Tick | None = None) -> Path:
    """Write ``report.html`` for a curation's folder, or for a manifest file.

    Args:
        folder: of ``terrasieve curate``, or a manifest.
        output: folder to write; None = the same.
        tick: told rows counted and their number.

    Returns:
        The page's path.

    Raises:
        UserError: if it is neither.
    """
    curation = curation_folder.load(folder, output, tick)
    found = curation.statistics
    cells = found["map"]["cells"]
    return write_page(
        "curation.html.j2",
        curation.folder / "report.html",
        name=curation.name,
        folder=folder,
        facts=_facts(curation),
        waits=curation.waits if curation.waiting else "",
        steps=_funnel(curation),
        rows=found["rows"],
        reasons=_reasons(curation),
        matrix=_matrix(curation),
        verdicts=_pairs(curation),
        groups=_groups(curation),
        tables=[(title, bars(found["by"][name], name)) for name, title in TABLES.items()],
        map=Markup(maps.counts(cells, found["map"]["cell_deg"])) if cells else None,
        map_about=found["map"],
        placed=sum(cell[3] for cell in cells),
        recipe=yaml.safe_dump(_given(curation.recipe), sort_keys=False, width=110) if curation.recipe else "",
    )


def _given(value: Any) -> Any:
    """Return settings without what is null or empty."""
    if isinstance(value, dict):
        return {key: _given(inside) for key, inside in value.items() if inside not in (None, [], {})}
    return [_given(inside) for inside in value] if isinstance(value, list) else value


def _facts(curation: Curation) -> list[tuple[str, str, str]]:
    found = curation.statistics
    dropped = found["rows"] - found["kept"]
    sources = found["by"]["source"]
    duplicates = sum(rows for code, rows in curation.dropped() if code.endswith("duplicate"))
    area = f"{found['area_kept_km2']:,.0f} km² where GSD is known" if found["area_kept_km2"] else "of kept images"
    return [
        ("Kept", f"{found['kept']:,}", f"{share(found['kept'], found['rows'])} of {found['rows']:,}"),
        ("Dropped", f"{dropped:,}", f"for {len(curation.dropped())} reasons"),
        ("Duplicates", f"{duplicates:,}", f"largest group {found['groups']['largest']:,}"),
        ("For review", f"{curation.waiting:,}", "pairs, by a person" if curation.waiting else "nothing waits"),
        ("Sources", f"{len(sources):,}", ", ".join(str(e["value"] or "(unknown)") for e in sources[:3])),
        ("Pixels", f"{found['pixels_kept'] / 1e9:,.2f} G", area),
    ]


def _funnel(curation: Curation) -> list[dict[str, Any]]:
    """Return a row per step: kept before it and after it, in per cent of the longest row."""
    most = max([step.get("rows") or 0 for step in curation.steps], default=0) or 1
    shown = []
    for step in curation.steps:
        dropped = {code: count for code, count in (step.get("dropped") or {}).items() if count}
        gone, kept = sum(dropped.values()), step.get("kept") or 0
        codes = ", ".join(f"{code.replace('_', ' ')} {count:,}" for code, count in dropped.items())
        shown.append(
            {
                "name": step["step"],
                "kept": kept,
                "kept_percent": 100 * kept / most,
                "gone_percent": 100 * min(gone, most - kept) / most,
                "gone": gone,
                "codes": codes,
                "notes": step.get("notes") or [],
                "seconds": step.get("seconds"),
            }
        )
    return shown


def _matrix(curation: Curation) -> dict[str, Any]:
    """Return what was dropped as codes x sources."""
    hit = {entry["source"] for entry in curation.statistics["dropped"]}
    by = [entry for entry in curation.statistics["by"]["source"] if entry["value"] in hit]
    shown = [entry["value"] for entry in by[:8]]
    counts: dict[str, dict[Any, int]] = {}
    for entry in curation.statistics["dropped"]:
        source = entry["source"] if entry["source"] in shown else "others"
        row = counts.setdefault(entry["code"], {})
        row[source] = row.get(source, 0) + entry["rows"]
    columns = [*shown, *(["others"] if len(by) > len(shown) else [])]
    rows = [(code, [counts[code].get(c, 0) for c in columns], total) for code, total in curation.dropped()]
    return {"columns": [c or "(unknown)" for c in columns], "rows": rows}


def _reasons(curation: Curation) -> list[dict[str, Any]]:
    examples = curation_examples.of_reasons(curation.manifest)
    return [
        {
            "code": code,
            "count": count,
            "says": REASONS.get(code, ""),
            "pictures": [_shown(row, row["reason"].partition(": ")[2]) for row in examples.get(code, [])],
        }
        for code, count in curation.dropped()
    ]


def _pairs(curation: Curation) -> list[tuple[str, str, list[Picture]]]:
    """Return (verdict, what is shown, pictures) of pairs close to the line between two verdicts."""
    chosen = curation_examples.of_pairs(curation.pairs)
    ids = (pair[side] for listed in chosen.values() for pair in listed for side in ("id_a", "id_b"))
    rows = curation_examples.by_id(curation.manifest, ids)
    shown = []
    for verdict, title in VERDICTS.items():
        pictures = [
            _pair(pair, rows[pair["id_a"]], rows[pair["id_b"]])
            for (_, judged), listed in chosen.items()
            for pair in listed
            if judged == verdict and pair["id_a"] in rows and pair["id_b"] in rows
        ]
        if pictures:
            shown.append((verdict, title, pictures))
    return shown


def _pair(pair: dict[str, Any], a: dict[str, Any], b: dict[str, Any]) -> Picture:
    words = [pair["kind"]]
    if pair["distance"] is not None:
        words.append(f"{pair['distance']} bits")
    if pair["correlation"] is not None:
        words.append(f"correlation {pair['correlation']:.3f}")
    if pair["dx_px"] is not None:
        words.append(f"shifted by {pair['dx_px']}, {pair['dy_px']} px")
    picture = pair_picture(a, b, pair["orientation"], pair["dx_px"], pair["dy_px"], tile_px=180)
    return Picture(data_uri("image/jpeg", picture), f"{_name(a)} · {_name(b)}", ", ".join(words))


def _groups(curation: Curation) -> list[tuple[int, list[Picture]]]:
    return [
        (
            size,
            [_shown(row, "kept" if row["keep"] else row["reason"].partition(":")[0].replace("_", " ")) for row in rows],
        )
        for size, rows in curation_examples.of_groups(curation.manifest)
    ]


def _shown(row: dict[str, Any], words: str) -> Picture:
    try:
        image = data_uri("image/jpeg", thumbnail(row, 160))
    except (UnreadableImage, OSError):
        image = ""
    return Picture(image, _name(row), words, bool(row["keep"]))


def _name(row: dict[str, Any]) -> str:
    """Return the file and its folder, and where in it a window lies."""
    window = f" @ {row['window'][0]}, {row['window'][1]}" if row["window"] else ""
    return "/".join(row["uri"].rsplit("/", 2)[-2:]) + window
