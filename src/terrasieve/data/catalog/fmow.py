"""fMoW, RGB: what a place is used for, 62 kinds. Source: Christie et al., CVPR 2018.

Beside each image lies a JSON file with its place (an outline in degrees), time and ground sample distance. The images
named msrgb are the same scenes before pan-sharpening and are left out. Papers test on the validation part.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import shapely

from terrasieve.data.catalog.copy import Copy
from terrasieve.data.catalog.entry import Entry, Item
from terrasieve.imagery.headers import parse_time

CLASSES = (
    "airport", "airport_hangar", "airport_terminal", "amusement_park", "aquaculture", "archaeological_site", "barn",
    "border_checkpoint", "burial_site", "car_dealership", "construction_site", "crop_field", "dam",
    "debris_or_rubble", "educational_institution", "electric_substation", "factory_or_powerplant", "fire_station",
    "flooded_road", "fountain", "gas_station", "golf_course", "ground_transportation_station", "helipad", "hospital",
    "impoverished_settlement", "interchange", "lake_or_pond", "lighthouse", "military_facility",
    "multi-unit_residential", "nuclear_powerplant", "office_building", "oil_or_gas_facility", "park",
    "parking_lot_or_garage", "place_of_worship", "police_station", "port", "prison", "race_track", "railway_bridge",
    "recreational_facility", "road_bridge", "runway", "shipyard", "shopping_mall", "single-unit_residential",
    "smokestack", "solar_farm", "space_facility", "stadium", "storage_tank", "surface_mine", "swimming_pool",
    "toll_booth", "tower", "tunnel_opening", "waste_disposal", "water_treatment_facility", "wind_farm", "zoo",
)  # fmt: skip
PARTS = {"train": "train", "val": "test"}


def _items(copy: Copy) -> Iterator[Item]:
    for part, split in PARTS.items():
        for category in copy.folders(part):
            for sequence in copy.folders(f"{part}/{category}"):
                folder = f"{part}/{category}/{sequence}"
                stems = {name.rpartition(".")[0] for name in copy.names(folder)}
                for stem in sorted(stem for stem in stems if stem.endswith("_rgb")):
                    known = _known(copy, f"{folder}/{stem}.json")
                    yield Item(f"{folder}/{stem}.jpg", split=split, label=category, known=known)


def _known(copy: Copy, path: str) -> dict[str, Any]:
    """Return place, time and ground sample distance of an image, as far as its metadata hold them."""
    try:
        found = json.loads((copy.root / path).read_text(encoding="utf-8"))
        outline = found.get("raw_location") or next(
            (box["raw_location"] for box in found.get("bounding_boxes", []) if box.get("raw_location")), None
        )
        known: dict[str, Any] = {"gsd_m": found.get("gsd"), "datetime": parse_time(str(found.get("timestamp", "")))}
        if outline:
            middle = shapely.from_wkt(outline).centroid
            known |= {"lon": float(middle.x), "lat": float(middle.y)}
    except (OSError, ValueError, KeyError, AttributeError, shapely.errors.ShapelyError) as error:
        copy.problems.append(f"{path} cannot be read, so the image has no place and no time: {error}")
        return {}
    return {name: value for name, value in known.items() if value is not None}


ENTRY = Entry(
    name="fmow",
    title="fMoW-rgb (2018)",
    kind="multiclass",
    summary="62 uses of buildings and land in RGB satellite images of the whole world, several dates of a place",
    classes=CLASSES,
    bands=("red", "green", "blue"),
    licence="custom (fMoW challenge public licence, based on CC-BY)",
    citation="Christie et al., Functional Map of the World, CVPR 2018, arXiv:1711.07846",
    page="https://github.com/fMoW/dataset",
    layout="""
fmow/
  train/airport/airport_0/airport_0_0_rgb.jpg  airport_0_0_rgb.json ...
  val/airport/airport_0/ ...
""",
    marks=("train/airport", "val/airport", "train/zoo"),
    reader=_items,
    counts={"": {"train": 363571, "test": 53041}},
    coordinates="the JSON beside each image",
    note="From the bucket s3://spacenet-dataset, folder Hosted-Datasets/fmow/fmow-rgb. Tested on val, as papers do. "
    "Images are read whole; the box of the object in them is in the JSON.",
)
