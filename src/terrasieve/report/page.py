"""The page: one HTML file with everything in it, to be opened anywhere, offline.

Last stage of the report. No script at all; a content security policy forbids scripts and requests, should a hostile
name ever slip through the escaping. Pictures are data URIs, curves are inline SVG.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

import terrasieve
from terrasieve.evaluate.protocol import FINE_TUNED, RANDOM_INIT, RAW_PIXELS, Score
from terrasieve.report.curves import compact, curve
from terrasieve.report.near_pairs import near_pairs
from terrasieve.report.neighbours import neighbours
from terrasieve.report.run_folder import Run, number, read_run

EARLIER = 6  # pictures in the strip beside the latest
LISTED = 200  # skipped images listed by name
THUMBNAIL_PX = 360
NAMES = {
    "loss": "Loss",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "method_loss": "Loss of the method alone",
    "geography_loss": "Loss of the geographic regulariser",
    "effective_rank": "Effective rank of the embeddings",
    "spread": "Spread of the embeddings, 0 = collapsed",
    "uniformity": "Uniformity of the embeddings, 0 = collapsed",
    **{f"loss_{scale}x": f"Loss at {scale}x" for scale in (1, 2, 4)},
    "images_per_s": "Throughput, images per second",
    "data_wait": "Waiting for images, share of the time",
}
_VIEWS = ("Views", "The views of each image that the method compares.", ("input", "first view", "second view"))
_BOXES = ("input", "what the encoder saw", "true boxes", "found boxes")
PICTURES = {
    **dict.fromkeys(
        ("faster_rcnn", "oriented_rcnn"), ("Selected patches and objects", "Grey patches were not encoded.", _BOXES)
    ),
    **dict.fromkeys(("moco", "simclr", "byol", "simsiam"), _VIEWS),
    "dino": (*_VIEWS[:2], (*_VIEWS[2], "a local view")),
    "rvit": ("Selected patches", "Grey patches were not encoded.", ("input", "what the encoder saw")),
    "rupernet": (
        "Selected patches and classes",
        "Grey patches were not encoded; black pixels are not scored.",
        ("input", "what the encoder saw", "truth", "prediction"),
    ),
    "neighbor_mae": (
        "Neighbours and reconstructions",
        "Rows of a group belong together; the yellow frame is the next one's crop. Grey was not encoded, not "
        "predicted, or not shown; the loss weight goes from black, 0, over red and yellow to white, 1.",
        ("input", "what the encoder saw", "prediction", "shown by the neighbour", "loss weight"),
    ),
    "satmae_pp": (
        "Selected patches and reconstructions at every scale",
        "Grey patches were not encoded. The encoder sees the coarse image; the finer ones are predicted whole.",
        ("input, 1x", "what the encoder saw", "prediction, 1x", "prediction, 2x", "truth, 2x"),
    ),
    "": (
        "Selected patches and reconstructions",
        "Grey patches were neither encoded nor predicted.",
        ("input", "what the encoder saw", "prediction"),
    ),
}
HIDDEN = {"step", "time_s", "epoch", "skipped_steps", "skipped_images"}


@dataclass(frozen=True)
class Figure:
    """A further picture for the page.

    Attributes:
        title, caption: plain text.
        content: bytes of a PNG, or the text of an SVG (shown as an image, so a script in it does not run).
    """

    title: str
    caption: str
    content: bytes | str


def write_report(run_dir: str | Path, extra: Sequence[Figure] = ()) -> Path:
    """Write ``report.html`` into a run folder, whatever state the run is in.

    Args:
        run_dir: a folder as ``train`` writes it.
        extra: further figures, shown before the curves.

    Returns:
        The page's path.

    Raises:
        UserError: the folder is no run folder.
    """
    run = read_run(run_dir)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    pictures, beside = _pictures(run), neighbours(run)  # first, since they may find a problem
    html = environment.get_template("page.html.j2").render(
        run=run,
        version=terrasieve.__version__,
        name=run.folder.resolve().name,
        subtitle=_subtitle(run),
        facts=_facts(run),
        pictures=pictures,
        neighbours=beside,
        columns=dict(zip(("title", "lead", "names"), _columns(run), strict=True)),
        scores=_scores(run.scores),
        figures=[(figure, _figure_uri(figure)) for figure in extra],
        curves=_curves(run),
        throughput=_throughput(run),
        skipped=_skipped(run),
        environment=_environment(run),
    )
    path = run.folder / "report.html"
    partial = path.with_name(".report.html.partial")
    partial.write_text(html, encoding="utf-8")
    partial.replace(path)
    return path


def _subtitle(run: Run) -> str:
    parts = [_setting(run, *of) for of in (("method", "name"), ("geography", "name"), ("encoder", "name"))]
    parts.append(run.environment.get("hardware"))
    return " · ".join(str(part) for part in parts if part)


def _columns(run: Run) -> tuple[str, str, tuple[str, ...]]:
    """Say what the pictures show: title, sentence, columns."""
    title, sentence, columns = PICTURES.get(str(_setting(run, "method", "name")), PICTURES[""])
    if _setting(run, "method", "views_from") == "same_place":
        sentence = "The views that the method compares: the first of the image, the second of the place's other date."
        columns = (columns[0], "other date", *columns[1:])
    if _setting(run, "method", "scales") == 3:
        columns += ("prediction, 4x", "truth, 4x")
    return title, sentence, columns


def _setting(run: Run, section: str, key: str) -> Any:
    inside = run.settings.get(section)
    return inside.get(key) if isinstance(inside, dict) else None


def _facts(run: Run) -> list[tuple[str, str, str]]:
    """Return the headline: (name, value, note)."""
    done = run.steps[-1]["step"] if run.steps else 0
    planned = number(run.settings.get("steps"))
    started = str(run.environment.get("started", "at an unknown time"))
    facts = [("Run", run.state, f"started {started[:16].replace('T', ' ')}")]
    facts.append(("Steps", f"{done:,}", f"of {planned:,.0f}" if planned else ""))
    facts.append(
        (
            "Training time",
            str(timedelta(seconds=round(run.seconds))),
            "in one session" if not run.resumes else f"in {len(run.resumes) + 1} sessions",
        )
    )
    losses = [value for _, value in run.numbers("loss") if value is not None]
    if losses:
        facts.append(("Loss", compact(losses[-1]), f"from {compact(losses[0])}"))
    rates = [value for _, value in run.numbers("images_per_s") if value is not None]
    if rates:
        facts.append(("Throughput", f"{compact(median(rates))}", "images per second, median"))
    facts.append(("Images", f"{run.environment.get('manifest_rows', '?')}", f"{len(run.skips)} skipped"))
    facts += near_pairs(run)
    best = _headline_score(run.scores)
    return [best, *facts] if best else facts


def _headline_score(scores: Sequence[Score]) -> tuple[str, str, str] | None:
    if not scores:
        return None
    first = scores[0]
    others = {s.encoder: s.value for s in scores if (s.protocol, s.metric) == (first.protocol, first.metric)}
    beside = [f"{name} {100 * others[name]:.1f}" for name in (RANDOM_INIT, RAW_PIXELS) if name in others]
    return (_score_name(first), f"{100 * first.value:.1f} %", ", ".join(beside))


def _score_name(score: Score) -> str:
    protocol = {"knn": "k-NN", "linear": "Linear probe", FINE_TUNED: "Fine-tuned"}.get(score.protocol, score.protocol)
    return f"{protocol}, {score.metric.replace('_', ' ')}"


def _scores(scores: Sequence[Score]) -> list[tuple[str, list[tuple[str, Score]], str]]:
    """Group scores: (title, [(label, score)], what they were made with).

    Frozen encoders are compared metric by metric; a fine-tuned model's metrics stand together, its classes apart.
    """
    groups: dict[str, list[tuple[str, Score]]] = {}
    for score in scores:
        metric, _, of_class = score.metric.partition("/")
        if score.protocol == FINE_TUNED:
            shown = metric.replace("iou", "IoU").replace("ap", "AP")
            title = f"Fine-tuned {score.encoder}, {f'{shown} of each class' if of_class else 'metrics'}"
            groups.setdefault(title, []).append((of_class or metric.replace("_", " "), score))
        else:
            groups.setdefault(_score_name(score), []).append((score.encoder, score))
    return [(title, group, _made_with(group[0][1])) for title, group in groups.items()]


def _made_with(score: Score) -> str:
    """Say what a score was made with, its notes as the sentences that they are."""
    made = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in score.settings.items()}
    notes = made.pop("notes", None) or []
    return "; ".join([", ".join(f"{key} {value}" for key, value in made.items()), *map(str, notes)])


def _curves(run: Run) -> list[tuple[str, Markup, int]]:
    """Draw every logged number: (title, svg, values that were not finite)."""
    names = [name for name in NAMES if any(name in line for line in run.steps)]
    names += sorted({name for line in run.steps for name in line} - set(NAMES) - HIDDEN)
    names = [name for name in names if not name.startswith("share_")]  # constants; the section on neighbours has them
    if not run.steps:
        return []
    last = run.steps[-1]["step"]
    drawn = []
    for name in names:
        points, title = run.numbers(name), NAMES.get(name, name.replace("_", " ").capitalize())
        svg = curve(title, points, run.resumes, (0, last), log=name not in ("lr", "data_wait"))
        drawn.append((title, Markup(svg), sum(value is None for _, value in points)))  # made of numbers, title escaped
    return [item for item in drawn if item[1] or item[2]]


def _throughput(run: Run) -> list[tuple[str, str]]:
    rates = sorted(value for _, value in run.numbers("images_per_s") if value is not None)
    if not rates:
        return []
    shares = [("slowest tenth below", 0.1), ("median", 0.5), ("fastest tenth above", 0.9)]
    rows = [(name, compact(rates[min(len(rates) - 1, int(share * len(rates)))])) for name, share in shares]
    waits = [value for _, value in run.numbers("data_wait") if value is not None]
    rows += [("waiting for images, median", f"{100 * median(waits):.0f} % of the time")] if waits else []
    seen = [value for _, value in run.numbers("epoch") if value is not None]
    return [*rows, ("passes over the images", compact(seen[-1]))] if seen else rows


def _skipped(run: Run) -> dict[str, Any]:
    """Count skips per image and reason; an image is skipped again in every epoch."""
    counts = Counter((str(e.get("uri", "?")), str(e.get("reason", "?"))) for e in run.skips)
    return {
        "times": len(run.skips),
        "images": len(counts),
        "rows": [(uri, reason, times) for (uri, reason), times in counts.most_common(LISTED)],
    }


def _environment(run: Run) -> list[tuple[str, str]]:
    rows = []
    for key, value in run.environment.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        rows.append((key.replace("_", " "), text))
    return rows


def _pictures(run: Run) -> dict[str, Any]:
    """Return the latest picture whole and earlier ones small, evenly spread over the run."""
    good: list[tuple[int, str, str]] = []
    wanted = run.pictures
    if len(wanted) > EARLIER + 1:
        wanted = [run.pictures[round(i * (len(run.pictures) - 1) / EARLIER)] for i in range(EARLIER + 1)]
    for step, path in wanted:
        try:
            with Image.open(path) as image:
                image.load()
                small = io.BytesIO()
                shrunk = image.convert("RGB")
                shrunk.thumbnail((THUMBNAIL_PX, 4 * THUMBNAIL_PX))
                shrunk.save(small, "JPEG", quality=88)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            run.problems.append(f"{path.name} cannot be read: {error}")
            continue
        good.append((step, _uri("image/png", path.read_bytes()), _uri("image/jpeg", small.getvalue())))
    if not good:
        return {"latest": None, "earlier": []}
    return {"latest": good[-1], "earlier": good[:-1], "total": len(run.pictures)}


def _figure_uri(figure: Figure) -> str:
    if isinstance(figure.content, bytes):
        return _uri("image/png", figure.content)
    return _uri("image/svg+xml", figure.content.encode())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
