"""Ragged: what dropping patches saves, by fixed, ragged and padded batches, in training and at inference.

Beside ``run``, which compares methods. Scoring, selection and packing are part of every turn that is timed. Contenders
(``dropped``) take turns in one process, and the limit that they are held against is the FLOPs of what they keep
(METHODS.md, sections 7 and 8).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from terrasieve.bench import page, run
from terrasieve.bench.clock import seconds
from terrasieve.bench.contenders import Setup, settings_for
from terrasieve.bench.dropped import Classifier, Contender, Form, busy_batch
from terrasieve.bench.flops import CPU_ATTENTION
from terrasieve.errors import UserError
from terrasieve.train import state
from terrasieve.train.distributed import World

TITLES: dict[Form, str] = {
    "undropped": "undropped",
    "fixed": "fixed (static)",
    "ragged": "ragged (dynamic)",
    "padded": "padded (dynamic)",
}
Progress = Callable[[str], None]
PARTS = ("training", "inference")
COLUMNS = (
    "",
    "dropped",
    "images/s",
    "x undropped",
    "tokens/s",
    "padding",
    "scoring",
    "GFLOP/image",
    "time / FLOP limit",
)


def run_ragged(
    *,
    encoders: Sequence[str] = ("small",),
    precisions: Sequence[str] = ("fp32",),
    devices: Sequence[str] | None = None,
    ratios: Sequence[float] = (0.6, 0.75, 0.85),
    image_px: int = 224,
    batch_size: int = 16,
    threads: int = 1,
    repeats: int = 5,
    warmup: int = 1,
    on_progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Measure undropped, fixed, ragged and padded batches at every ratio, in training and at inference.

    Args:
        encoders, precisions, devices, image_px, batch_size, threads, repeats: see ``run.run_bench``.
        ratios: shares of the patches that are dropped, each in (0, 1).
        warmup: turns of each before the rounds; on CUDA they compile.
        on_progress: told in words what is being measured.

    Returns:
        JSON-able: ``date``, ``hardware``, ``versions``, ``settings``, ``groups`` by device, precision, encoder, part.

    Raises:
        UserError: as ``run.run_bench``, and for a ratio outside (0, 1).
    """
    devices = tuple(devices or (("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)))
    run.check(encoders, ("mae",), precisions, devices, image_px, min(batch_size, threads, repeats))
    if not ratios or not all(0 < ratio < 1 for ratio in ratios):
        raise UserError(f"bench: ratios {', '.join(map(str, ratios))} are not shares between 0 and 1; try 0.6,0.85.")
    setups = [Setup(e, p, d, image_px, batch_size) for d in devices for p in precisions for e in encoders]
    with run.threads_of(threads), run.many_shapes(devices):
        groups = [group for s in setups for group in _groups(s, tuple(ratios), repeats, warmup, on_progress)]
    settings = {"image_px": image_px, "batch_size": batch_size, "threads": threads, "repeats": repeats}
    return {**run.about(), "settings": settings, "groups": groups}


def _groups(
    setup: Setup, ratios: tuple[float, ...], repeats: int, warmup: int, on_progress: Progress
) -> list[dict[str, Any]]:
    """Measure one device, precision and size, both parts."""
    about = {"device": setup.device, "precision": setup.precision, "encoder": setup.encoder}
    world, batch = World(0, 1, torch.device(setup.device)), busy_batch(setup)
    ready = state.around(Classifier(setup), settings_for("mae", setup), world)
    forms: list[tuple[Form, float]] = [("undropped", 0.0)]
    for ratio in ratios:
        forms += [("fixed", ratio), ("ragged", ratio), ("padded", ratio)]
    contenders = [Contender(form, ratio, ready, batch) for form, ratio in forms]
    groups = []
    for part in PARTS:
        turns = [one.train if part == "training" else one.predict for one in contenders]
        on_progress(f"{' '.join(about.values())}, {part}: warm-up")
        for turn in turns * max(warmup, 1):
            turn()
        on_progress(f"{' '.join(about.values())}, {part}: {repeats} rounds of {len(turns)}")
        took, scored = _rounds(contenders, turns, world.device, repeats)
        gflop = _gflop(setup, training=part == "training")
        rows = [_row(*one, gflop, rounds=took[0]) for one in zip(contenders, took, scored, strict=True)]
        groups.append({**about, "part": part, "rows": rows})
    return groups


def _rounds(
    contenders: list[Contender], turns: list[Callable[[], None]], device: torch.device, repeats: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Let everyone take turns; return each one's seconds per step, and per scoring."""
    took: list[list[float]] = [[] for _ in turns]
    scored: list[list[float]] = [[] for _ in turns]
    queued = [1] * len(turns)
    if device.type == "cuda":
        queued = [max(round(run.ROUND_S / seconds(turn, device)), 1) for turn in turns]
    for _ in range(repeats):
        for i, (one, turn) in enumerate(zip(contenders, turns, strict=True)):
            took[i].append(seconds(turn, device, queued[i]))
            scored[i].append(seconds(one.score, device, queued[i]))
    return took, scored


def _row(
    one: Contender, took: list[float], scored: list[float], gflop: Callable[[int], float], rounds: list[float]
) -> dict[str, Any]:
    """Put a contender's numbers together; ``rounds`` are the undropped one's seconds, round by round."""
    B, N = one.patches_BNP.shape[:2]
    limit = sum(gflop(length) for length in one.lengths) / (B * gflop(N))
    return {
        "form": one.form,
        "ratio": one.ratio,
        "images_per_s": B / median(took),
        "tokens_per_s": sum(one.lengths) / median(took),
        "padding": 1 - sum(one.lengths) / one.slots,
        "scoring": median(a / b for a, b in zip(scored, took, strict=True)) if one.form != "undropped" else 0.0,
        "gflop_per_image": sum(gflop(length) for length in one.lengths) / B,
        "speedup": median(a / b for a, b in zip(rounds, took, strict=True)),
        "over_flop_limit": median(b / a for a, b in zip(rounds, took, strict=True)) / limit,
        "lengths": one.lengths,
        "step_s": took,
    }


def _gflop(setup: Setup, training: bool) -> Callable[[int], float]:
    """Return the GFLOP of an image of which so many patches are kept, without padding and scoring.

    Counted on a CPU at three numbers of patches; all others follow, since the cost is quadratic in the number.
    """
    alone = replace(setup, precision="fp32", device="cpu", batch_size=1)
    model = Classifier(alone).train(training)
    N = model.encoder.patches
    patches_BNP = torch.zeros(1, N, model.encoder.patch_values)
    counted = []
    for count in (1, N // 2 + 1, N):
        counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
        with counter, torch.set_grad_enabled(training):
            logits = model.classify(patches_BNP, torch.arange(count)[None])
            if training:
                logits.sum().backward()  # type: ignore[no-untyped-call]
        counted.append(counter.get_total_flops() / 1e9)
    cost = np.polynomial.Polynomial.fit((1, N // 2 + 1, N), counted, 2)
    return lambda length: float(cost(length))


def write(result: dict[str, Any], out_dir: str | Path) -> tuple[Path, Path]:
    """Write ``ragged_<date>_<devices>.json`` and ``.md``; return both paths."""
    devices = dict.fromkeys(group["device"] for group in result["groups"])
    return page.write(result, out_dir, "_".join(["ragged", result["date"][:10], *devices]), markdown)


def markdown(result: dict[str, Any]) -> str:
    """Lay a result out as Markdown, a table per group."""
    parts = [
        f"# Bench of dropped patches, {result['date'][:10]}",
        page.measured_on(result),
        "A training step is forward, backward, gradient norm, clipping and AdamW; scoring, selection and packing are "
        "part of every turn. Images are drawn with 5 to 95 % busy patches, so ragged ones keep very different numbers. "
        "Everyone took turns in one process: rates are medians over the rounds, ratios medians of the rounds' own. "
        "*scoring* is the share of a turn, *padding* the share of computed tokens that are none. *GFLOP/image* and the "
        "*FLOP limit* count what is kept, without scoring and padding; *time / FLOP limit* is 1 where dropping saves "
        "as much time as FLOPs.",
    ]
    for group in result["groups"]:
        rows = [
            [
                TITLES[row["form"]],
                f"{row['ratio']:.0%}",
                f"{row['images_per_s']:.2f}" if row["images_per_s"] < 100 else f"{row['images_per_s']:,.0f}",
                f"{row['speedup']:.2f}",
                f"{row['tokens_per_s']:,.0f}",
                f"{row['padding']:.0%}",
                f"{row['scoring']:.1%}",
                f"{row['gflop_per_image']:.2f}",
                f"{row['over_flop_limit']:.2f}",
            ]
            for row in group["rows"]
        ]
        parts += [
            f"## ViT-{group['encoder']}, {group['precision']}, {group['device']}, {group['part']}",
            page.table(COLUMNS, rows),
        ]
    return "\n\n".join(parts) + "\n"
