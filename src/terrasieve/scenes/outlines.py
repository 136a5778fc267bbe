"""Outlines: the objects of a scene as polygons on the ground, GeoPackage or GeoJSON.

After ``found``. Written by GDAL (pyogrio): a GeoPackage in the scene's CRS; GeoJSON in degrees of WGS 84, as RFC 7946
asks, whatever the scene's CRS.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import shapely

from terrasieve.errors import UserError
from terrasieve.files import written_aside
from terrasieve.imagery import geo
from terrasieve.scenes.found import Objects
from terrasieve.scenes.scene import Scene

DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON"}
LAYER = "objects"


def check_place(scene: Scene, out: Path) -> None:
    """Check that a scene says where it lies, for GeoJSON on Earth.

    Raises:
        UserError: if it does not.
    """
    if scene.crs is None or scene.transform is None:
        raise UserError(
            f"{scene.uri} does not say where it lies, so {out.name} could not either. Cut it (terrasieve slice) and "
            "predict the manifest of its windows: their boxes are in pixels."
        )
    if DRIVERS[out.suffix.lower()] == "GeoJSON" and not geo.is_on_earth(scene.crs):
        raise UserError(
            f"-o {out}: the CRS of {scene.uri} has no degrees on Earth, which GeoJSON is in; write a .gpkg."
        )


def write_objects(found: Objects, classes: Sequence[str], scene: Scene, out: Path, folder: Path) -> None:
    """Write a polygon per object with ``class`` and ``score``, best first; the file appears when it is whole.

    Args:
        found: objects of the scene.
        classes: names, in the order of the class numbers.
        scene: gives the CRS.
        out: with an ending of ``DRIVERS``.
        folder: on the same file system, where the file is made.
    """
    import pyogrio.raw

    assert scene.crs is not None and scene.transform is not None
    a, b, c, d, e, f = scene.transform
    x, y = found.polygons[..., 0], found.polygons[..., 1]
    ground = shapely.polygons(np.stack([a * x + b * y + c, d * x + e * y + f], -1))
    names = np.array([classes[number] for number in found.classes], object)
    driver = DRIVERS[out.suffix.lower()]
    made = folder / f"objects{out.suffix.lower()}"
    made.unlink(missing_ok=True)
    pyogrio.raw.write(
        made, shapely.to_wkb(ground), [names, found.scores.round(4)], ["class", "score"], layer=LAYER, driver=driver,
        geometry_type="Polygon", crs=scene.crs, layer_options={"RFC7946": "YES"} if driver == "GeoJSON" else None,
    )  # fmt: skip
    with written_aside(out) as aside:
        made.replace(aside)
