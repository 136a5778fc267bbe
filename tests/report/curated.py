"""A curation's folder in its true layout with real images, small, for the tests of the report and of the datasheet."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from terrasieve import manifest
from terrasieve.curate import step
from terrasieve.curate.pairs import PAIRS
from terrasieve.curate.scan import scan
from terrasieve.keyed import numpy_generator

HOSTILE = "<script>document.title='owned'</script>|*x*"


def write_curation(folder: Path, images: Path, hostile: str = HOSTILE) -> Path:
    """Write manifest, pairs, steps and recipe over 40 JPEGs in two class folders; three reasons, a broken file."""
    for number in range(40):
        coarse = numpy_generator(0, "test-curated", number // 2).integers(0, 255, (8, 8, 3)).astype(np.uint8)
        path = images / ("town", "field")[number // 2 % 2] / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(path, quality=60 + number)
    (images / "town" / "broken.jpg").write_bytes(b"no image")
    table = scan([images], workers=1).table
    n = len(table)
    columns = {
        "source": [(hostile, "survey")[row % 2] for row in range(n)],
        "licence": [None if row % 4 else "CC0-1.0" for row in range(n)],
        "group": [row // 2 if row < 20 else None for row in range(n)],
        "lon": [10.0 + row for row in range(n)],
        "lat": [50.0] * n,
    }
    for name, values in columns.items():
        field = manifest.SCHEMA.field(name)
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
    ids = table["id"].to_pylist()
    table = step.drop(
        table, np.arange(1, 9, 2), [f"near_duplicate: of {ids[row - 1]}, 2 bits" for row in range(1, 9, 2)]
    )
    table = step.drop(table, np.array([12, 13]), ["low_information: entropy 0.2", "blank: std 0.3"])
    verdicts = ["duplicate"] * 4 + ["review", "different"]
    rows = [
        {"id_a": ids[2 * p], "id_b": ids[2 * p + 1], "kind": "near", "distance": 2, "orientation": p % 8,
         "correlation": 0.9 + p / 100, "verdict": verdict, "by": "rule"}
        for p, verdict in enumerate(verdicts)
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=PAIRS), folder / "pairs.parquet")
    manifest.write(table, folder / "manifest.parquet")
    steps = [("scan", n, 40, {"unreadable": 1}), ("sparse", n, 38, {"low_information": 1, "blank": 1}),
             ("verify", n, 34, {"near_duplicate": 4})]  # fmt: skip
    content = [
        {"step": name, "key": "k", "rows": rows, "kept": kept, "dropped": dropped, "notes": [f"a note {hostile}"],
         "seconds": 1.5, "finished": "2026-11-21T08:00:00+00:00"}
        for name, rows, kept, dropped in steps
    ]  # fmt: skip
    (folder / "steps.json").write_text(json.dumps(content))
    source = {"name": hostile, "paths": ["x"], "url": "https://example.org/a", "citation": f"Author {hostile}, 2020"}
    recipe = {"name": "small", "sources": [source, {"name": "survey", "paths": ["y"], "url": "javascript:alert(1)"}]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"sparse": {"quota": 0.1}}))
    return folder
