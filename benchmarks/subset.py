"""Does a smaller, richer subset pretrain as well? The demo's recipe on shares of its own training chips, equal steps.

Run: python benchmarks/subset.py -o DIR [--steps 500] [--share 0.25] [--manifest M --recipe R --task T]. Without a
manifest: the procedural Earth of `terrasieve demo`. Pretrains on all training images, on a random share, and on shares
by density and by HOG energy; scores each frozen encoder on the whole task. A finished arm is not run again.
"""

import argparse
import json
from importlib import resources
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from terrasieve import assess, demo, manifest, recipe, subsets
from terrasieve.curate.subset import SubsetSettings
from terrasieve.display import counting
from terrasieve.pretrain import new_folder, pretrain

ARMS = {
    "all": None,
    "random": SubsetSettings(by="random", balance="none"),
    "density over clusters": SubsetSettings(by="density", balance="clusters"),
    "hog over clusters": SubsetSettings(by="hog", balance="clusters"),
    "random over clusters": SubsetSettings(by="random", balance="clusters"),
}


def training_rows(source: Path, target: Path) -> Path:
    """Write the manifest without what the task tests on."""
    table = manifest.read(source)
    keep = pc.and_(table["keep"], pc.fill_null(pc.equal(table["split"], "train"), True))
    reason = pc.if_else(keep, table["reason"], pa.scalar("split: tested on"))
    for name, column in (("keep", keep), ("reason", reason)):
        table = table.set_column(table.schema.get_field_index(name), name, column)
    manifest.write(table, target)
    return target


def main() -> None:
    """Run the arms, each into a JSON file, and print rows of a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--manifest", type=Path)
    parser.add_argument("--recipe", type=Path)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    whole = given.manifest or given.output / "earth" / "manifest.parquet"
    if not whole.exists():
        demo.write_earth(given.output / "earth", demo.CHIPS, given.seed)
    pool = training_rows(whole, given.output / "training.parquet")
    text = given.recipe.read_text() if given.recipe else resources.files("terrasieve").joinpath("demo.yaml").read_text()
    for name in given.arms.split(","):
        done = given.output / f"{name.replace(' ', '_')}_{given.seed}.json"
        if not done.exists():
            data = pool
            if (how := ARMS[name]) is not None:
                data = given.output / f"{done.stem}.parquet"
                how = how.model_copy(update={"seed": given.seed})
                subsets.write_subsets(pool, data, [given.share], how, workers=1, tick=lambda _done, _total: None)
            content = yaml.safe_load(text) | {
                "data": str(data),
                "output": str(given.output / "runs"),
                "name": done.stem,
            }
            settings = recipe.check(content | {"steps": given.steps, "seed": given.seed}, "subset benchmark")
            folder = new_folder(settings)
            pretrain(settings, folder)
            with counting("features", "images") as tick:
                scores, _ = assess.evaluate_run(folder, f"manifest:{whole}", on_images=tick)
            images = pc.sum(manifest.read(data)["keep"]).as_py()
            rows = [score.to_json() for score in scores]
            done.write_text(json.dumps({"arm": name, "images": images, "steps": given.steps, "scores": rows}, indent=1))
        report(json.loads(done.read_text()))


def report(arm: dict) -> None:  # type: ignore[type-arg]
    """Print rows of the table: an arm, beside the untrained encoder and raw pixels."""
    for score in arm["scores"]:
        if score["metric"] == "overall_accuracy":
            value, low, high = (100 * score[key] for key in ("value", "low", "high"))
            what = f"{arm['arm']} | {arm['images']:,} | {score['encoder']} | {score['protocol']}"
            print(f"| {what} | {value:.1f} [{low:.1f}, {high:.1f}] |", flush=True)


if __name__ == "__main__":
    main()
