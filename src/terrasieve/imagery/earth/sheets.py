"""Contact sheets of the procedural Earth for the documentation: scenes at 10 m and 1 m, seasons, ground truth.

Stands beside ``write``. ``python -m terrasieve.imagery.earth.sheets docs`` makes the four pictures again.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from terrasieve.imagery.earth.chip import RGB, SCENES, Chip, render
from terrasieve.imagery.earth.materials import MASK_COLOURS
from terrasieve.imagery.earth.sampling import sample_place

Picture = NDArray[np.uint8]
GAP_PX, TITLE_PX = 3, 15
BOX_COLOURS = {"building": (255, 220, 60), "ship": (80, 255, 120), "tank": (255, 90, 220)}


def contact_sheet(path: Path | str, rows: Sequence[tuple[str, Sequence[Picture]]], quality: int = 84) -> None:
    """Write pictures as a JPEG of titled rows.

    Args:
        path: of the JPEG.
        rows: titles, and (H, W, 3) uint8 pictures of one size.
        quality: of the JPEG, 1 to 100.
    """
    height, width = rows[0][1][0].shape[:2]
    columns = max(len(pictures) for _, pictures in rows)
    size = columns * (width + GAP_PX) - GAP_PX, len(rows) * (height + TITLE_PX + GAP_PX) - GAP_PX
    sheet = Image.new("RGB", size, (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for r, (title, pictures) in enumerate(rows):
        top = r * (height + TITLE_PX + GAP_PX)
        pen.text((2, top + 1), title, fill=(40, 40, 40))
        for c, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (c * (width + GAP_PX), top + TITLE_PX))
    path = Path(path)
    temporary = path.with_suffix(".part")
    sheet.save(temporary, "JPEG", quality=quality, optimize=True)
    temporary.replace(path)


def picture(chip: Chip) -> Picture:
    """Return a display chip as (H, W, 3) uint8."""
    return np.ascontiguousarray(chip.image.transpose(1, 2, 0)).astype(np.uint8)


def mask_picture(chip: Chip) -> Picture:
    """Return a chip's land cover in the colours of ``MASK_COLOURS``."""
    return np.array(MASK_COLOURS, np.uint8)[chip.mask]


def box_picture(chip: Chip, horizontal: bool = False) -> Picture:
    """Return a display chip with its boxes drawn, oriented or horizontal."""
    image = Image.fromarray(picture(chip))
    pen = ImageDraw.Draw(image)
    for box in chip.boxes:
        if horizontal:
            pen.rectangle(box.xyxy, outline=BOX_COLOURS[box.name])
        else:
            cx, cy, w, h, angle = box.obb
            cos, sin = np.cos(angle), np.sin(angle)
            corners = [(sx * w / 2, sy * h / 2) for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
            points = [(cx + cos * u - sin * v, cy + sin * u + cos * v) for u, v in corners]
            pen.polygon(points, outline=BOX_COLOURS[box.name])
    return np.asarray(image)


def _drawn(scene: str, count: int, gsd_m: float, size_px: int, seed: int, series: int = 0) -> list[Chip]:
    """Render ``count`` chips of a scene, those that are not mostly under cloud."""
    chips: list[Chip] = []
    index = 0
    while len(chips) < count:
        place = sample_place(
            index, seed, gsd_m=gsd_m, size_px=size_px, bands=RGB, dtype="uint8", scenes=(scene,), series=series
        )
        chip = render(place, seed)
        if chip.cloud.mean() < 0.45:
            chips.append(chip)
        index += 1
    return chips


def scenes_sheet(path: Path, gsd_m: float, size_px: int, count: int, seed: int, scenes: Sequence[str] = SCENES) -> None:
    """Write ``count`` chips of every scene, one scene a row."""
    rows = [(scene, [picture(chip) for chip in _drawn(scene, count, gsd_m, size_px, seed)]) for scene in scenes]
    contact_sheet(path, rows)


def seasons_sheet(path: Path, seed: int, size_px: int = 128) -> None:
    """Write places through a year, one place a row."""
    days = [datetime.date(2023, month, 12) for month in (1, 3, 4, 5, 7, 8, 10, 11)]
    rows = []
    for scene, north in (
        ("farmland", 40), ("farmland", 52), ("forest", 45), ("grassland", 8), ("village", 45), ("inland_water", 55),
    ):  # fmt: skip
        near = (chip for series in range(40) for chip in _drawn(scene, 12, 10.0, size_px, seed, series))
        place = next(chip.place for chip in near if abs(abs(chip.lat) - north) < 5.0)
        year = [render(replace(place, date=day), seed) for day in days]
        title = f"{scene}, {abs(place.lat):.0f} {'N' if place.lat > 0 else 'S'}: " + ", ".join(f"{d:%b}" for d in days)
        rows.append((title, [picture(chip) for chip in year]))
    contact_sheet(path, rows)


def truth_sheet(path: Path, seed: int, size_px: int = 224) -> None:
    """Write image, land cover, oriented and horizontal boxes of some chips."""
    rows = []
    for scene, gsd_m in (("harbour", 2.5), ("town", 1.0), ("village", 1.0), ("harbour", 10.0), ("farmland", 10.0)):
        chip = max(_drawn(scene, 4, gsd_m, size_px, seed), key=lambda c: len(c.boxes))
        title = f"{scene}, {gsd_m:g} m: image, land cover, oriented boxes, horizontal boxes ({', '.join(chip.labels)})"
        rows.append((title, [picture(chip), mask_picture(chip), box_picture(chip), box_picture(chip, True)]))
    contact_sheet(path, rows)


def write_sheets(folder: Path, seed: int = 0) -> None:
    """Write the documentation's four sheets into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes_sheet(folder / "earth_10m.jpg", 10.0, 112, 8, seed)
    scenes_sheet(folder / "earth_1m.jpg", 1.0, 176, 5, seed, [name for name in SCENES if name != "ocean"])
    seasons_sheet(folder / "earth_seasons.jpg", seed)
    truth_sheet(folder / "earth_truth.jpg", seed)


if __name__ == "__main__":
    write_sheets(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
