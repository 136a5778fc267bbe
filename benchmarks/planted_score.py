"""What curation found of the planted copies: recall and precision by kind. Used by ``planted``."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
from planted_copies import KINDS

from terrasieve import manifest
from terrasieve.curate.pairs import read_pairs


def score(folder: Path, curated: Path) -> list[str]:
    """Return a Markdown table: a pair is found when curation calls it, or both through a third one, the same image.

    Pairs of low information, which never reach the join, are counted apart. Precision is of what was dropped as a
    duplicate: the share that replaced by its own copy. Airplane 1 and 2 and overlapping images of UC Merced are real
    duplicates that nobody planted; the pairs are listed below the table to be looked at.
    """
    rows = manifest.read(
        curated / "manifest.parquet", ["id", "uri", "keep", "reason", "phash"], empty_ok=True
    ).to_pylist()
    by_id = {row["id"]: row for row in rows}
    keeper = {
        row["id"]: row["reason"].split(" of ")[1].split(",")[0]
        for row in rows
        if " of " in row["reason"] and "duplicate" in row["reason"]
    }
    low = {row["id"] for row in rows if row["phash"] is None}

    def end(image: str) -> str:
        while image in keeper:
            image = keeper[image]
        return image

    review = {
        frozenset((pair["id_a"], pair["id_b"]))
        for pair in read_pairs(curated / "pairs.parquet").to_pylist()
        if pair["verdict"] == "review"
    }
    with (folder / "truth.csv").open(newline="", encoding="utf-8") as file:
        truth = list(csv.DictReader(file))
    kind_of, counts, partner = {}, {kind: Counter() for kind in KINDS}, {}
    for pair in truth:
        a, b = manifest.row_id(pair["uri_a"]), manifest.row_id(pair["uri_b"])
        kind_of[a] = kind_of[b] = pair["kind"]
        partner[a], partner[b] = b, a
        count = counts[pair["kind"]]
        count["n"] += 1
        if end(a) == end(b):
            count["found"] += 1
        elif {end(a), end(b)} & low or {a, b} & low:
            count["low"] += 1
        elif frozenset((a, b)) in review:
            count["review"] += 1
    ground = overlapping(curated, truth)
    for pair in truth:
        a, b = manifest.row_id(pair["uri_a"]), manifest.row_id(pair["uri_b"])
        if not {end(a), end(b), a, b} & low or end(a) == end(b):
            counts[pair["kind"]]["ground"] += frozenset((a, b)) in ground
    foreign = [image for image in keeper if end(image) != end(partner[image])]
    for image in keeper:
        counts[kind_of[image]]["dropped"] += 1
        counts[kind_of[image]]["right"] += end(image) == end(partner[image])
    lines = [
        "| kind | pairs | low information | recall % | for review | dropped | precision % | recall of overlaps % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, count in counts.items():
        of = count["n"] - count["low"]
        recall = 100 * count["found"] / of if of else float("nan")
        precision = f"{100 * count['right'] / count['dropped']:.1f}" if count["dropped"] else "-"
        of_ground = f"{100 * count['ground'] / of:.1f}" if of and count["ground"] else "-"
        cells = (
            kind,
            count["n"],
            count["low"],
            f"{recall:.1f}",
            count["review"],
            count["dropped"],
            precision,
            of_ground,
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "Dropped for another image than its copy:", ""]
    lines += [
        f"- {Path(by_id[image]['uri']).stem} for {Path(by_id[keeper[image]]['uri']).stem}: {by_id[image]['reason']}"
        for image in foreign
    ]
    return lines


def overlapping(curated: Path, truth: list[dict[str, str]]) -> set[frozenset[str]]:
    """Return the planted pairs in CURATED/overlaps.parquet whose offset is true to a pixel, where there is one.

    Made by: terrasieve overlaps CURATED/scan.parquet -o CURATED/overlaps.parquet (or steps/scan.parquet)
    """
    path = curated / "overlaps.parquet"
    if not path.is_file():
        return set()
    found = {frozenset((row["uri_a"], row["uri_b"])): row for row in pq.read_table(path).to_pylist()}
    right = set()
    for pair in truth:
        row = found.get(frozenset((pair["uri_a"], pair["uri_b"])))
        if row is None or not pair["dx_px"]:
            continue
        sign = 1 if row["uri_a"] == pair["uri_a"] else -1
        off = max(abs(row[name] - sign * int(pair[name])) for name in ("dx_px", "dy_px"))
        if off <= 1:
            right.add(frozenset(manifest.row_id(pair[name]) for name in ("uri_a", "uri_b")))
    return right
