"""The page of a sweep, its rows as CSV, and its figures as files; all made from the content of ``sweep.json``.

Last stage of the sweep's report. The page is one HTML file without scripts, like a run's (``page``).
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

import terrasieve
from terrasieve.report import sweep_numbers as numbers
from terrasieve.report.curves import compact
from terrasieve.report.sweep_numbers import BASELINE, CLAIM, Cell, Estimate

PARTS = ("train", "inference")
COSTS = ("images_per_s", "speed_up", "peak_memory_mb", "gflop_per_image")
COLUMNS = (
    *("policy", "ratio", "kept", "score", "of undropped", "random"),
    *("images/s", "×", "peak MB", "GFLOP", "images/s", "×", "peak MB", "GFLOP"),
)


def write_sweep_page(folder: Path, content: dict[str, Any]) -> Path:
    """Write ``report.html``, ``sweep.csv`` and ``figures/`` into a sweep's folder.

    Args:
        folder: of the sweep.
        content: of its ``sweep.json``: ``name``, ``runs``, ``costs``, ``cost_notes``, ``environment``, ``recipe``.

    Returns:
        The page's path.
    """
    metric = numbers.main_metric(content["runs"])
    cells = numbers.cells(content["runs"], content["costs"], metric) if metric else []
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    states = Counter(run["state"] for run in content["runs"])
    html = environment.get_template("sweep.html.j2").render(
        version=terrasieve.__version__,
        name=content["name"],
        subtitle=_subtitle(content),
        facts=_facts(content, cells, metric),
        problems=content.get("problems", []),
        verdicts=numbers.verdicts(cells),
        claims=_claims(cells),
        figures=_figures(folder, cells, metric or ""),
        metric=numbers.words(metric or ""),
        how=content.get("cost_notes", ""),
        columns=COLUMNS,
        table=_table(cells),
        swatches=numbers.POLICIES,
        metrics=_all_metrics(content),
        counts=", ".join(f"{count} {state}" for state, count in states.items()) + ".",
        unfinished=[run for run in content["runs"] if run["state"] != "done"],
        environment=[(key.replace("_", " "), _words(value)) for key, value in content["environment"].items()],
        recipe=yaml.safe_dump(content["recipe"], sort_keys=False, width=110),
    )
    _replace(folder / "sweep.csv", csv_text(content).encode())
    path = folder / "report.html"
    _replace(path, html.encode())
    return path


def csv_text(content: dict[str, Any]) -> str:
    """Lay a sweep out as CSV: a row per run with every metric, its test interval, and its setting's costs."""
    costs = {(cost["policy"], cost["ratio"]): cost for cost in content["costs"]}
    metrics = list(dict.fromkeys(metric for run in content["runs"] for metric in run["scores"]))
    heads = [f"{metric}{end}" for metric in metrics for end in ("", "_low", "_high")]
    measured = [f"{part}_{name}" for part in PARTS for name in (*COSTS, "kept_share")]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["run", "policy", "ratio", "seed", "state", "seconds", *heads, *measured])
    for run in content["runs"]:
        cost = costs.get((run["policy"], run["ratio"]), {})
        scores = [value for metric in metrics for value in run["scores"].get(metric, ("", "", ""))]
        about = [run[key] for key in ("run", "policy", "ratio", "seed", "state", "seconds")]
        values = [cost.get(part, {}).get(name, "") for part in PARTS for name in (*COSTS, "kept_share")]
        table.writerow([*about, *scores, *values])
    return text.getvalue()


def _figures(folder: Path, cells: Sequence[Cell], metric: str) -> list[tuple[str, Markup]]:
    """Draw what can be drawn: files for documents, and (title, svg) for the page."""
    if not cells:
        return []
    from terrasieve.report import sweep_figures as figures

    place = folder / "figures"
    place.mkdir(exist_ok=True)
    panels = figures.drawable(cells)
    drawn = []
    overview = [panel for panel in figures.OVERVIEW if panel in panels]
    for name, several in [("overview", overview), *((panel.name, [panel]) for panel in panels)]:
        figure = figures.draw(cells, several, metric)
        _replace(place / f"{name}.svg", figures.svg(figure).encode())
        if name == "overview":
            _replace(place / f"{name}.png", figures.png(figure))
        else:
            title = several[0].title
            drawn.append((title, Markup(figures.themed_svg(figure, title))))  # made of numbers and words of ours
    return drawn


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def _facts(content: dict[str, Any], cells: Sequence[Cell], metric: str | None) -> list[tuple[str, str, str]]:
    """Return the headline: (name, value, note)."""
    done = sum(run["state"] == "done" for run in content["runs"])
    facts = [("Runs", f"{done} of {len(content['runs'])}", "done")]
    seconds = sum(run["seconds"] or 0 for run in content["runs"])
    facts.append(("Time", f"{seconds / 60:,.0f} min", "of all runs together"))
    base = next((cell for cell in cells if cell.policy == BASELINE), None)
    if base is None or metric is None:
        return facts
    note = f"{numbers.words(metric)}, mean of {base.score.seeds} seed(s)"
    facts.append(("Undropped", f"{100 * base.score.mean:.1f} %", note))
    within = numbers.kept_within_claim(cells).values()
    kept = [cell for cell in within if math.isfinite(cell.measured("inference", "speed_up"))]
    for part, words in (("train", "Training"), ("inference", "Inference")):
        if kept:
            best = max(kept, key=lambda cell: cell.measured(part, "speed_up"))
            note = f"faster at {CLAIM:.1%} of the score: {best.policy}, {best.ratio:g}"
            facts.append((words, f"{best.measured(part, 'speed_up'):.2f} ×", note))
    return facts


def _claims(cells: Sequence[Cell]) -> list[str]:
    """Say up to which ratio each policy keeps the claimed share of the undropped score, and what that saves."""
    base = next((cell for cell in cells if cell.policy == BASELINE), None)
    policies = dict.fromkeys(cell.policy for cell in cells if cell.policy != BASELINE)
    if base is None or not policies:
        return []
    kept = numbers.kept_within_claim(cells)
    parts = []
    for policy in policies:
        cell = kept.get(policy)
        if cell is None:
            parts.append(f"{policy}: at no ratio measured")
            continue
        fewer = base.measured("inference", "gflop_per_image") / cell.measured("inference", "gflop_per_image")
        saved = (
            f" (training {cell.measured('train', 'speed_up'):.2f} ×, inference "
            f"{cell.measured('inference', 'speed_up'):.2f} × the images/s at {fewer:.2f} × fewer FLOPs)"
        )
        parts.append(f"{policy}: up to {cell.ratio:g}{saved if math.isfinite(fewer) else ''}")
    return [f"Ratios up to which the mean keeps {CLAIM:.1%} of the undropped score: {'; '.join(parts)}."]


def _table(cells: Sequence[Cell]) -> list[tuple[str, list[str]]]:
    base = next((cell for cell in cells if cell.policy == BASELINE), None)
    random = numbers.against_random(cells)
    rows = []
    for cell in cells:
        share = f"{cell.score.mean / base.score.mean:.1%}" if base and base.score.mean else ""
        difference = random.get((cell.policy, cell.ratio))
        kept = cell.measured("inference", "kept_share")
        costs = [_cost(cell.measured(part, name), name) for part in PARTS for name in COSTS]
        rows.append(
            (
                "undropped" if cell.policy == BASELINE else cell.policy,
                [
                    f"{cell.ratio:g}",
                    f"{kept:.1%}" if math.isfinite(kept) else "",
                    _score(cell.score),
                    share,
                    "" if difference is None else str(difference),
                    *costs,
                ],
            )
        )
    return rows


def _all_metrics(content: dict[str, Any]) -> dict[str, Any]:
    """Lay all metrics out but those of single classes ("iou/sea"), which sweep.json and sweep.csv have."""
    found = dict.fromkeys(metric for run in content["runs"] for metric in run["scores"])
    metrics = [metric for metric in found if "/" not in metric]
    rows: dict[tuple[str, float], list[str]] = {}
    for place, metric in enumerate(metrics):
        for cell in numbers.cells(content["runs"], [], metric):
            rows.setdefault((cell.policy, cell.ratio), [""] * len(metrics))[place] = _score(cell.score)
    named = [
        ("undropped" if policy == BASELINE else policy, [f"{ratio:g}", *texts])
        for (policy, ratio), texts in rows.items()
    ]
    return {"columns": [numbers.words(metric) for metric in metrics], "rows": named}


def _score(score: Estimate) -> str:
    around = f" [{100 * score.low:.1f}, {100 * score.high:.1f}]" if score.seeds > 1 else ""
    return f"{100 * score.mean:.1f}{around}"


def _cost(value: float, name: str) -> str:
    if not math.isfinite(value):
        return ""
    return f"{value:.2f}" if name == "speed_up" else compact(value)


def _subtitle(content: dict[str, Any]) -> str:
    recipe = content["recipe"]
    parts = [(recipe.get(key) or {}).get("name") for key in ("method", "encoder")]
    return " · ".join(str(part) for part in [*parts, content["environment"].get("hardware")] if part)


def _words(value: Any) -> str:
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)
