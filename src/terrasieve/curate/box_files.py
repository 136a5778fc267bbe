"""Box files: the usual forms of annotations, read into the one table of boxes beside a manifest.

After ``scan``; ``terrasieve boxes`` calls it. COCO's JSON, Pascal VOC's XML, CSV (image_path, xmin, ymin, xmax, ymax,
label), GeoJSON and DOTA's text (four corners, class, difficult). A file belongs to the image that it names, else to the
one of its own name, else to the only image in its folder. Public data sets have readers of their own
(``data.catalog``).
"""

from __future__ import annotations

import csv
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa

from terrasieve import manifest
from terrasieve.data.catalog.boxes import Box, oriented, to_table
from terrasieve.errors import UserError

SUFFIXES = (".json", ".xml", ".csv", ".geojson", ".txt")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
Named = tuple[str, Box]  # the image that a file names, "" where it names none


def boxes_of(table: pa.Table, paths: Sequence[Path]) -> tuple[pa.Table, list[str]]:
    """Read the annotations of a manifest's kept images.

    Args:
        table: a manifest.
        paths: files, or folders that are looked through.

    Returns:
        A table of boxes (``data.catalog.boxes.SCHEMA``), and notes on files and boxes that were left out.

    Raises:
        UserError: a file that is not what it should be, or no box of any image.
    """
    images = _Images([row for row in table.select(["id", "uri", "window", "keep"]).to_pylist() if row["keep"]])
    found: dict[str, tuple[Path, list[Box]]] = {}
    lost: dict[str, int] = defaultdict(int)
    notes: list[str] = []
    for path in _files(paths):
        own: dict[str, list[Box]] = defaultdict(list)
        for name, box in read(path, images):
            uri = images.of(path, name)
            if uri is None:
                lost[f"{path.name} names images that are not in the manifest"] += 1
            else:
                own[uri].append(box)
        for uri, boxes in own.items():
            if uri in found:
                notes.append(f"{path}: {len(boxes)} boxes left out, {Path(uri).name} has those of {found[uri][0].name}")
            else:
                found[uri] = path, boxes
    notes += [f"{count} boxes left out: {what}" for what, count in lost.items()]
    if not found:
        raise UserError(
            f"No box of the manifest's {len(images.ids)} images in {', '.join(map(str, paths))}. Annotations are "
            f"{', '.join(SUFFIXES)} files, which name their images or lie beside them. " + "; ".join(notes[:3])
        )
    rows = ((images.ids[uri], uri, box) for uri, (_, boxes) in sorted(found.items()) for box in boxes)
    return to_table(rows), notes


def read(path: Path, images: _Images) -> Iterator[Named]:
    """Read the boxes of one file, each with the image that the file names.

    Raises:
        UserError: the file is broken, or lacks what its form needs.
    """
    kinds: dict[str, Callable[[Path, _Images], Iterable[Named]]] = {
        ".json": _json, ".geojson": _geojson, ".xml": _xml, ".csv": _csv, ".txt": _dota
    }  # fmt: skip
    try:
        yield from kinds[path.suffix.lower()](path, images)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, ElementTree.ParseError) as error:
        raise UserError(f"{path} holds no boxes that can be read: {type(error).__name__} {error}.") from error


class _Images:
    """A manifest's whole images, found by path, by name and by folder."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        # Of windows it is the whole image that is annotated; ``data.boxes`` gives each window its share.
        self.ids = {row["uri"]: manifest.row_id(row["uri"]) if row["window"] else row["id"] for row in rows}
        self.by_name: dict[str, list[str]] = defaultdict(list)
        self.by_place: dict[str, list[str]] = defaultdict(list)
        self.by_path: dict[
            tuple[str, str], str
        ] = {}  # manifests leave links as they are, annotations may lie beyond them
        for uri in self.ids:
            folder, name = os.path.split(uri)
            self.by_name[name].append(uri)
            self.by_place[_real(folder)].append(uri)
            self.by_path[_real(folder), name] = uri

    def of(self, path: Path, name: str) -> str | None:
        """Return the uri of the image that a file names, or that it is of where it names none."""
        beside = self.by_place.get(_real(str(path.parent)), [])
        if name:
            named = path.parent / name
            same = self.by_name.get(named.name, [])
            return self.by_path.get((_real(str(named.parent)), named.name)) or (same[0] if len(same) == 1 else None)
        same = beside or [uri for uri in self.ids if Path(uri).stem == path.stem]
        own = [uri for uri in same if Path(uri).stem == path.stem]
        return own[0] if len(own) == 1 else same[0] if len(same) == 1 else None


@cache
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def _files(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in (path.resolve() for path in paths):
        if not path.exists():
            raise UserError(f"There is no {path}.")
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [file for file in inside if file.suffix.lower() in SUFFIXES and file.is_file()]
    return [file for file in found if file.suffix != ".json" or _has_boxes(file)]


def _has_boxes(path: Path) -> bool:
    """Tell JSON of boxes from other JSON, as a folder of imagery holds it too."""
    text = path.read_text(encoding="utf-8")
    return '"bbox"' in text or '"FeatureCollection"' in text


def _json(path: Path, images: _Images) -> Iterator[Named]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("type") == "FeatureCollection":
        yield from _geojson(path, images)
        return
    names = {image["id"]: image["file_name"] for image in content.get("images", ())}
    classes = {entry["id"]: str(entry["name"]) for entry in content.get("categories", ())}
    for entry in content["annotations"] if "annotations" in content else content["boxes"]:
        x, y, w, h = (float(value) for value in entry["bbox"])
        number = entry["category_id"]
        box = Box(classes.get(number, f"class_{number}"), (x, y, x + w, y + h), None, bool(entry.get("iscrowd", 0)))
        yield names[entry["image_id"]] if names else "", box


def _xml(path: Path, images: _Images) -> Iterator[Named]:
    root = ElementTree.parse(path).getroot()
    name = root.findtext("filename") or ""
    for entry in root.iter("object"):
        frame = entry.find("bndbox")
        if frame is None:
            raise ValueError("an object without bndbox")
        left, top, right, bottom = (float(frame.findtext(edge) or "nan") for edge in CORNERS)
        difficult = (entry.findtext("difficult") or "0").strip() == "1"
        yield name, Box(entry.findtext("name") or "object", (left, top, right, bottom), None, difficult)


def _csv(path: Path, images: _Images) -> Iterator[Named]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        columns = reader.fieldnames or []
        if not {*CORNERS} <= {*columns}:
            return  # a table of something else
        for line in reader:
            left, top, right, bottom = (float(line[edge]) for edge in CORNERS)
            yield (
                line.get("image_path") or line.get("path") or "",
                Box(line.get("label") or "object", (left, top, right, bottom)),
            )


def _geojson(path: Path, images: _Images) -> Iterator[Named]:
    """Read outlines in degrees or in the CRS that the file names, brought to the pixels of the image."""
    import rasterio
    import shapely
    from pyproj import Transformer

    content = json.loads(path.read_text(encoding="utf-8"))
    crs = content.get("crs", {}).get("properties", {}).get("name", "OGC:CRS84")
    uri = images.of(path, "")
    if uri is None:
        return
    with rasterio.open(uri) as source:
        if source.crs is None:
            raise UserError(f"{path}: outlines on the ground, but {uri} has no coordinates.")
        place, inverse = Transformer.from_crs(crs, source.crs.to_wkt(), always_xy=True), ~source.transform
    for feature in content["features"]:
        properties = feature.get("properties") or {}
        outline = shapely.geometry.shape(feature["geometry"])
        for part in shapely.get_parts(outline):
            ground = [place.transform(x, y) for x, y in part.exterior.coords[:-1]]
            corners = [inverse * point for point in ground]
            label = properties.get("label") or properties.get("class") or properties.get("name") or "object"
            yield "", oriented(str(label), corners)


def _dota(path: Path, images: _Images) -> Iterator[Named]:
    """Read lines of four corners, class and, but in later releases, difficulty; heads such as gsd: are passed over."""
    lines = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    lines = [words for words in lines if words and not words[0].startswith(("imagesource:", "gsd:"))]
    if not any(len(words) in (9, 10) and _number(words[0]) for words in lines):
        return  # a text of something else, or an image without objects
    for words in lines:
        values = [float(word) for word in words[:8]]
        if len(words) not in (9, 10):
            raise ValueError(f"a line of {len(words)} words, where corners, class and difficult are 9 or 10: {words}")
        corners = list(zip(values[::2], values[1::2], strict=True))
        yield "", oriented(words[8], corners, words[9:] not in ([], ["0"]))


def _number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def write_beside(path: Path, paths: Sequence[Path]) -> tuple[Path, pa.Table, list[str]]:
    """Read annotations and write the table beside a manifest; return its path, the table and the notes."""
    from terrasieve.data.catalog import boxes

    table, notes = boxes_of(manifest.read(path), paths)
    return boxes.write(table, path), table, notes
