"""A run folder with everything in it that a run can leave behind, for the tests of the report."""

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

from terrasieve.keyed import numpy_generator

HOSTILE = "/data/<script>document.title='owned'</script>&\"x'.tif"
ENVIRONMENT = {
    "commit": "0123abc",
    "versions": {"python": "3.11", "torch": "2.13.0"},
    "hardware": "AMD EPYC, 2 cores",
    "command": "terrasieve pretrain recipes/<b>.yaml",
    "started": "2026-11-21T00:58:06+00:00",
    "manifest_hash": "95b0039a295c59aa321f24b6fa12ca82",
    "manifest_rows": 2100,
}
RECIPE = "seed: 0\nsteps: 600\nencoder:\n  name: vit_small_patch16_224\nmethod:\n  name: selective_mae  # <i>\n"


def log_lines() -> list[dict]:
    """600 steps planned: a session to 330, a resume at 300, lines missing from 401 to 459, one loss not finite."""
    draws = numpy_generator(0, "test-report")
    lines: list[dict] = [{"event": "start", "step": 0, "steps": 600}]
    for begin, stop in ((0, 330), (300, 560)):
        if begin:
            lines.append({"event": "resume", "step": begin, "steps": 600})
        for step in range(begin + 2, stop + 1, 2):
            if 400 < step < 460:
                continue
            lines.append(
                {
                    "step": step,
                    "time_s": 0.5 * (step - begin),
                    "lr": 1e-3 * min(step / 60, 0.5 + 0.5 * math.cos(step / 191)),
                    "loss": None if step == 240 else 0.35 + 1.1 * math.exp(-step / 70) + 0.03 * draws.normal(),
                    "grad_norm": float(np.exp(0.8 * math.exp(-step / 50) + 0.25 * draws.normal())),
                    "images_per_s": 126 + 4 * draws.normal(),
                    "skipped_steps": 1.0,
                    "epoch": step * 64 / 2100,
                    "kept_share": 0.15 + 0.01 * draws.random(),
                    "skipped_images": 3.0,
                }
            )
            if step == 100:
                lines += [{"event": "skip_image", "step": step, "uri": HOSTILE, "reason": "unreadable"}] * 2
                lines.append(
                    {"event": "skip_image", "step": step, "uri": "/data/long/" + "a" * 180 + ".jpg", "reason": "empty"}
                )
    return lines


def scores() -> list[dict]:
    rows = []
    for protocol, values in (("knn", (0.612, 0.338, 0.343)), ("linear", (0.702, 0.405, 0.321))):
        for metric, change in (("overall_accuracy", 0.0), ("macro_accuracy", -0.012)):
            for encoder, value in zip(("pretrained", "random init", "raw pixels"), values, strict=True):
                rows.append(
                    {
                        "encoder": encoder,
                        "protocol": protocol,
                        "metric": metric,
                        "value": value + change,
                        "low": value + change - 0.045,
                        "high": value + change + 0.043,
                        "count": 420,
                        "settings": {"task": "ucmerced", "k" if protocol == "knn" else "weight decay": 20},
                    }
                )
    return rows


def write_run(folder: Path, pictures: int = 9) -> Path:
    (folder / "pictures").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (folder / "scores.json").write_text(json.dumps(scores()))
    whole = "".join(json.dumps(line) + "\n" for line in log_lines())
    (folder / "log.jsonl").write_text(whole + '{"step": 562, "loss": 0.3')  # killed while writing
    draws = numpy_generator(1, "test-report")
    for number in range(1, pictures + 1):
        cells = draws.integers(0, 255, (24, 36, 3)).astype(np.uint8)
        image = Image.fromarray(cells).resize((720, 480), Image.Resampling.NEAREST)
        image.save(folder / "pictures" / f"step_{60 * number:08d}.png")
    return folder
