"""Predict a scene: what ``terrasieve predict`` does with a fine-tuned run and one raster of any size.

After ``predict``, which loads runs and predicts the images of manifests. A segmentation's windows overlap, their logits
are blended (``scenes.blend``), and the classes are written as a COG that lies where the scene lies. A detection's boxes
are merged (``scenes.found``) and written as polygons on the ground.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from terrasieve.batch import IGNORED, Batch
from terrasieve.errors import UserError
from terrasieve.files import held
from terrasieve.methods import Adapter
from terrasieve.methods.detector import DetectorSettings
from terrasieve.predict import Adapted, load_adapted
from terrasieve.scenes import cog, found, outlines
from terrasieve.scenes.blend import Rows, blended
from terrasieve.scenes.scene import Scene, open_scene
from terrasieve.scenes.store import RowStore, folder_beside
from terrasieve.scenes.windows import Tiling, tiling
from terrasieve.train.picture import palette

LARGEST_VALUES = 1 << 28  # of the blended rows of a scene: 1 GB


class Mapped(NamedTuple):
    """The file that was written, the share of the scene that each class takes, and rows done before."""

    path: Path
    shares: dict[str, float]
    before: int

    def lines(self) -> list[str]:
        """Say it."""
        shares = sorted(self.shares.items(), key=lambda item: -item[1])
        return [*_before(self.before), *(f"{100 * share:6.2f} %  {name}" for name, share in shares), str(self.path)]


class Detected(NamedTuple):
    """The file that was written, how many objects of each class, and rows of windows done before."""

    path: Path
    counts: dict[str, int]
    before: int

    def lines(self) -> list[str]:
        """Say it."""
        counts = sorted(self.counts.items(), key=lambda item: -item[1])
        return [*_before(self.before), *(f"{count:9,}  {name}" for name, count in counts), str(self.path)]


def predict_scene(
    run: Path,
    source: str | Path,
    out: Path,
    *,
    window_px: tuple[int, int] | None = None,
    overlap: float = 0.25,
    bands: tuple[str, ...] | None = None,
    probability: bool = False,
    batch_size: int = 8,
    on_windows: Callable[[int, int], None] | None = None,
) -> Mapped:
    """Map the classes of a whole scene; an interrupted map goes on with the rows that are missing.

    Args:
        run: folder of a fine-tuned segmentation.
        source: raster.
        out: COG to write: class numbers in uint8, 255 without data, a colour table, the classes' names in the tag
            ``classes``.
        window_px: height and width of the windows in pixels of the scene; None = the size of the images that the run
            was trained on, so that what the network sees is as large on the ground as it was then.
        overlap: share of a window's side, in [0, 1).
        bands: of the scene that stand for the run's.
        probability: add a band with the class's probability in per cent.
        batch_size: windows at a time.
        on_windows: called with windows done and their total.

    Raises:
        UserError: for anything that a user can mend.
    """
    cog.check_target(out, (".tif", ".tiff"))
    model = load_adapted(run)
    if model.settings.task.boxes is not None:
        raise UserError(f"-o {out}: {run} finds boxes; give a name that ends in {' or '.join(outlines.DRIVERS)}.")
    if model.settings.task.masks is None:
        raise UserError(
            f"{run} is no segmentation, and a scene as a whole has no class. Cut it (terrasieve slice) and predict the "
            "manifest of its windows."
        )
    settings = model.settings
    scene, plan, device = _laid_out(model, source, window_px, overlap, bands)
    _check_memory(plan, len(model.classes))
    shape = (scene.height, scene.width, 2 if probability else 1)
    about = _about(run, scene, plan, batch_size)
    with held(folder_beside(out), "-o"):
        store = RowStore(folder_beside(out), shape, "uint8", about)
        before = store.done
        if store.done < scene.height:
            parts = blended(
                scene, _network(model, plan), plan, settings.image, first=store.done, batch_size=batch_size,
                seed=settings.seed, device=device, on_windows=on_windows,
            )  # fmt: skip
            for rows in parts:
                store.append(decided(rows, probability))
        _write(store, out, scene, model, run)
        shares = _shares(store, model.classes)
        store.remove()
    return Mapped(out, shares, before)


def detect_scene(
    run: Path,
    source: str | Path,
    out: Path,
    *,
    window_px: tuple[int, int] | None = None,
    overlap: float = 0.25,
    bands: tuple[str, ...] | None = None,
    least_score: float = 0.0,
    batch_size: int = 8,
    on_windows: Callable[[int, int], None] | None = None,
) -> Detected:
    """Find the objects of a whole scene, each once; an interrupted search goes on with the windows that are missing.

    Args:
        run: folder of a fine-tuned detection.
        source: raster that says where it lies.
        out: ``.gpkg``, polygons in the scene's CRS, or ``.geojson``, in degrees; attributes ``class`` and ``score``.
        window_px: height and width of the windows in pixels of the scene; None = as in training.
        overlap: share of a window's side, in [0, 1); objects no larger than it are never cut.
        bands: of the scene that stand for the run's.
        least_score: objects with less are left out.
        batch_size: windows at a time.
        on_windows: called with windows done and their total.

    Raises:
        UserError: for anything that a user can mend.
    """
    cog.check_target(out, tuple(outlines.DRIVERS))
    model = load_adapted(run)
    settings = model.settings
    if settings.task.boxes is None:
        raise UserError(f"-o {out}: {run} finds no boxes; the map of a segmentation is a .tif.")
    scene, plan, device = _laid_out(model, source, window_px, overlap, bands)
    outlines.check_place(scene, out)
    most = cast(DetectorSettings, settings.method).most
    shape = (len(plan.down), len(plan.across), most * found.FIELDS)
    about = _about(run, scene, plan, batch_size)
    with held(folder_beside(out), "-o"):
        store = RowStore(folder_beside(out), shape, "float64", about)
        before = store.done
        for row in found.find(
            scene, cast(Adapter, model.method).predict, plan, settings.image, most, first=before,
            batch_size=batch_size, seed=settings.seed, device=device, on_windows=on_windows,
        ):  # fmt: skip
            store.append(row)
        objects = found.merged((store.rows(row, row + 1) for row in range(shape[0])), plan, least_score)
        outlines.write_objects(objects, model.classes, scene, out, store.folder)
        store.remove()
    counts = np.bincount(objects.classes, minlength=len(model.classes)).tolist()
    return Detected(out, dict(zip(model.classes, counts, strict=True)), before)


def _before(rows: int) -> list[str]:
    return [f"note: went on after {rows:,} rows"] if rows else []


def _laid_out(
    model: Adapted, source: str | Path, window_px: tuple[int, int] | None, overlap: float, bands: tuple[str, ...] | None
) -> tuple[Scene, Tiling, torch.device]:
    """Open a scene, lay windows over it, and move the model to where it computes."""
    scene = open_scene(source, model.settings.image.bands, bands)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.method.to(device)
    return scene, tiling(scene, 1, window_px or model.image_px, overlap), device


def _about(run: Path, scene: Scene, plan: Tiling, batch_size: int) -> dict[str, Any]:
    """Return what must be the same for a prediction to go on."""
    return {
        "model": _digest(run), "scene": scene.stamp(), "bands": list(scene.bands),
        "tiling": [*plan.side, *plan.overlap], "batch_size": batch_size,
    }  # fmt: skip


def _network(model: Adapted, plan: Tiling) -> Callable[[Batch, torch.Generator], Tensor]:
    """Return the run's prediction as logits of the scene's pixels."""
    predict = cast(Adapter, model.method).predict

    def network(batch: Batch, draw: torch.Generator) -> Tensor:
        logits = predict(batch, draw).float()
        if tuple(logits.shape[-2:]) != plan.side:
            logits = F.interpolate(logits, size=plan.side, mode="bilinear", align_corners=False)
        return logits

    return network


def decided(rows: Rows, probability: bool) -> NDArray[np.uint8]:
    """Decide on the classes of blended logits: (n, columns, 1 or 2), class and, if asked for, its per cent.

    Args:
        rows: logits; not valid ones become 255.
        probability: of the softmax over the blended logits.
    """
    logits = torch.from_numpy(rows.values)
    bands = [logits.argmax(0).to(torch.uint8)]
    if probability:
        bands.append((100 * logits.softmax(0).amax(0)).round().to(torch.uint8))
    classes: NDArray[np.uint8] = np.where(rows.valid[..., None], torch.stack(bands, -1).numpy(), np.uint8(IGNORED))
    return classes


def _check_memory(plan: Tiling, classes: int) -> None:
    values = classes * plan.side[0] * max(plan.columns, plan.side[1])
    if values > LARGEST_VALUES:
        raise UserError(
            f"a strip of {plan.side[0]:,} x {plan.columns:,} pixels and {classes} classes takes {values * 4 / 1e9:.1f} "
            "GB; choose smaller windows with --window, or cut the scene into narrower ones."
        )


def _digest(run: Path) -> str:
    with (run / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _write(store: RowStore, out: Path, scene: Scene, model: Adapted, run: Path) -> None:
    colours = {n: (*colour, 255) for n, colour in enumerate(palette(len(model.classes)))} | {IGNORED: (0, 0, 0, 0)}
    names = ["class", "probability in per cent"][: store.shape[2]]
    tags: dict[str, Any] = {"classes": ",".join(model.classes), "terrasieve_run": run.resolve().name}
    cog.write_cog(
        store, out, scene, 1, nodata=IGNORED, names=names, tags=tags, overview="mode", colours=colours
    )  # fmt: skip


def _shares(store: RowStore, classes: tuple[str, ...]) -> dict[str, float]:
    counts = np.zeros(IGNORED + 1, np.int64)
    for top in range(0, store.shape[0], 512):
        counts += np.bincount(store.rows(top, top + 512)[..., 0].ravel(), minlength=IGNORED + 1)
    total = max(int(counts[: len(classes)].sum()), 1)
    return {name: float(counts[number]) / total for number, name in enumerate(classes)}
