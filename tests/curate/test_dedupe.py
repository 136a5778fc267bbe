"""Deduplication, step by step: what is dropped, for which other image, in any order of the rows, and what stays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import rasterio
import simplejpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from terrasieve import keyed, manifest
from terrasieve.curate import decisions, store
from terrasieve.curate.engine import Local
from terrasieve.curate.exact import ExactSettings, exact
from terrasieve.curate.near import NearSettings, groups, near
from terrasieve.curate.pairs import read_pairs
from terrasieve.curate.scan import scan
from terrasieve.curate.sparse import SparseSettings, sparse
from terrasieve.curate.step import Result, Work
from terrasieve.curate.verify import VerifySettings, verify

STEPS = {
    "hash": (store.hash_images, store.HashSettings()),
    "exact": (exact, ExactSettings()),
    "sparse": (sparse, SparseSettings()),
    "near": (near, NearSettings()),
    "verify": (verify, VerifySettings()),
}


def scene(seed: int, side: int = 96) -> np.ndarray:
    small = keyed.numpy_generator(seed, "test_dedupe").integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


def write(path: Path, image: np.ndarray, quality: int = 90) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jpg":
        path.write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality))
    else:
        Image.fromarray(image).save(path)
    return str(path)


def run(folder: Path, table: pa.Table, steps: Sequence[str] = tuple(STEPS), **changed: Any) -> tuple[pa.Table, Result]:
    """Run steps over a manifest; return the last one's."""
    source = folder / "scan.parquet"
    manifest.write(table, source)
    for name in steps:
        step, own = STEPS[name]
        result = step(source, folder / f"{name}.parquet", changed.get(name, own), Work(folder, Local(1)))
        source = folder / f"{name}.parquet"
    return manifest.read(source, empty_ok=True), result


def reasons(table: pa.Table) -> dict[str, str]:
    return {Path(row["uri"]).name: row["reason"] for row in table.select(["uri", "reason"]).to_pylist()}


def of(table: pa.Table, name: str) -> str:
    """Return the id of an image by its file's name."""
    return next(row["id"] for row in table.select(["uri", "id"]).to_pylist() if Path(row["uri"]).name == name)


def test_equal_bytes_and_equal_pixels(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write(images / "b.jpg", scene(0))
    (images / "a.jpg").write_bytes((images / "b.jpg").read_bytes())
    pixels = simplejpeg.decode_jpeg((images / "b.jpg").read_bytes())
    write(images / "c.png", pixels)
    with rasterio.open(images / "d.tif", "w", driver="GTiff", width=96, height=96, count=3, dtype="uint8") as file:
        file.write(pixels.transpose(2, 0, 1))
    other = pixels.copy()
    other[50, 50] ^= 1
    write(images / "e.png", other)
    write(images / "f.jpg", scene(1))
    table, result = run(tmp_path, scan(images).table, ["hash", "exact"])
    first = of(table, "a.jpg")
    assert reasons(table) == {
        "a.jpg": "",
        "b.jpg": f"exact_duplicate: of {first}, same bytes",
        "c.png": f"exact_duplicate: of {first}, same pixels",
        "d.tif": f"exact_duplicate: of {first}, same pixels",
        "e.png": "",
        "f.jpg": "",
    }
    assert (result.kept, dict(result.dropped)) == (3, {"exact_duplicate": 3})
    pairs = read_pairs(tmp_path / "pairs.parquet").to_pylist()
    assert {(pair["id_a"], pair["kind"], pair["verdict"], pair["by"]) for pair in pairs} == {
        (first, "exact", "duplicate", "rule")
    }
    bytes_only, _ = run(tmp_path, scan(images).table, ["hash", "exact"], exact=ExactSettings(pixels=False))
    assert [name for name, why in reasons(bytes_only).items() if why] == ["b.jpg"]


def test_windows_are_equal_by_their_pixels(tmp_path: Path) -> None:
    image = np.tile(scene(4, 64), (1, 2, 1))
    uri = write(tmp_path / "images" / "a.png", image)
    row = scan(tmp_path / "images").table.to_pylist()[0]
    rows = [
        row | {"window": window, "id": manifest.row_id(uri, window), "width": 64, "height": 64}
        for window in ([0, 0, 64, 64], [64, 0, 64, 64], [32, 0, 64, 64])
    ]
    table, _ = run(tmp_path, manifest.rows_to_table(rows), ["hash", "exact"])
    assert table["keep"].to_pylist() == [True, False, True]


def test_the_largest_stays_then_the_first_source_then_the_first_name(tmp_path: Path) -> None:
    image = scene(0, 192)
    small = np.asarray(Image.fromarray(image).resize((96, 96), Image.Resampling.BOX))
    for name in ("z/a.jpg", "y/b.jpg", "x/c.jpg", "x/d.jpg"):
        write(tmp_path / "images" / name, small, 80 + ord(name[-5]) % 10)
    write(tmp_path / "images" / "z/e.jpg", image)
    table = scan(tmp_path / "images", labels="none").table
    names = [Path(uri).parent.name for uri in table["uri"].to_pylist()]
    table = table.set_column(table.schema.get_field_index("source"), "source", pa.array(names))

    def kept(rows: pa.Table, *sources: str) -> list[str]:
        found, _ = run(tmp_path, rows, verify=VerifySettings(sources=sources))
        return [Path(uri).name for uri in found.filter(found["keep"])["uri"].to_pylist()]

    assert kept(table) == ["e.jpg"]
    rest = table.filter(pa.array([not uri.endswith("e.jpg") for uri in table["uri"].to_pylist()]))
    assert kept(rest) == ["c.jpg"], "sources that are not named follow by name"
    assert kept(rest, "y", "z") == ["b.jpg"]
    assert kept(rest, "z") == ["a.jpg"]


def test_low_information_has_a_quota_and_leaves_the_join(tmp_path: Path) -> None:
    for n in range(60):
        flat = keyed.numpy_generator(n, "flat").normal(100 + n, 3, (64, 64, 3)).clip(0, 255).astype(np.uint8)
        write(tmp_path / "images" / f"flat_{n:02d}.png", flat)
    for n in range(5):
        write(tmp_path / "images" / f"rich_{n}.png", scene(n))
    table = scan(tmp_path / "images").table

    def stay(share: float, most: int | None = None, rows: pa.Table = table) -> set[str]:
        own = SparseSettings(share=share, most=most)
        found, result = run(tmp_path, rows, ["hash", "exact", "sparse"], sparse=own)
        rich = [Path(uri).name.startswith("rich") for uri in found["uri"].to_pylist()]
        assert found["phash"].is_valid().to_pylist() == rich
        assert set(result.dropped) <= {"low_information"}
        return {name for name, why in reasons(found).items() if not why and name.startswith("flat")}

    half = stay(0.5)
    assert 18 <= len(half) <= 42
    assert stay(0.25) < half and len(stay(1)) == 60 and not stay(0)
    assert len(stay(1, 7)) == 7 and stay(0.5, 7) < half
    assert stay(0.5, rows=table.take(pa.array(np.arange(len(table))[::-1].copy()))) == half, "in any order"


def test_flat_thumbnails_of_fine_texture_all_stay(tmp_path: Path) -> None:
    rows = (np.arange(256) // 2 % 4 < 2) * 20.0  # furrows, 4 px wide: gone from means of 8 x 8 px
    for n in range(12):
        noise = keyed.numpy_generator(n, "water").normal(0, 3, (256, 256))
        for name, values in (("water", 90 + noise), ("field", 90 + noise + rows[:, None])):
            write(tmp_path / "images" / f"{name}_{n:02d}.png", values.clip(0, 255).astype(np.uint8))
    found, result = run(tmp_path, scan(tmp_path / "images").table, ["hash", "exact", "sparse"])
    stays = [Path(uri).name[:5] for uri in found.filter(found["keep"])["uri"].to_pylist()]
    assert stays.count("field") == 12
    assert stays.count("water") < 8, "a share of .25 stays"
    assert not found["phash"].is_valid().to_numpy(zero_copy_only=False).any(), "none of them enters the join"
    assert "12 images are flat from afar only (fine texture); all stay." in result.notes


def copies(folder: Path) -> pa.Table:
    """Write six scenes with altered copies, and one that only resembles."""
    for n in range(6):
        image = scene(n, 128)
        write(folder / "images" / f"{n}_a.jpg", image)
        write(folder / "images" / f"{n}_b.jpg", image, 50)
        write(folder / "images" / f"{n}_c.png", np.ascontiguousarray(np.rot90(image)))
        write(folder / "images" / f"{n}_d.png", np.asarray(Image.fromarray(image[:, ::-1]).resize((80, 80))))
    return scan(folder / "images").table


def test_copies_turned_mirrored_resized_are_dropped_for_the_right_one(tmp_path: Path) -> None:
    table, result = run(tmp_path, copies(tmp_path))
    found = reasons(table)
    for n in range(6):
        first = of(table, f"{n}_a.jpg")
        assert found[f"{n}_a.jpg"] == ""
        assert found[f"{n}_b.jpg"].startswith(f"near_duplicate: of {first}, ")
        assert found[f"{n}_c.png"].startswith(f"rotated_duplicate: of {first}, ")
        assert found[f"{n}_d.png"].startswith(f"rotated_duplicate: of {first}, ")
    assert dict(result.dropped) == {"near_duplicate": 6, "rotated_duplicate": 12}
    groups_of = {}
    for row in table.to_pylist():
        groups_of.setdefault(row["group"], set()).add(Path(row["uri"]).name[0])
    assert all(len(names) == 1 for names in groups_of.values()) and len(groups_of) == 6 and None not in groups_of
    pairs = read_pairs(tmp_path / "pairs.parquet").to_pylist()
    assert len(pairs) == 18 and {pair["kind"] for pair in pairs} == {"near", "rotated"}
    without, _ = run(tmp_path, table, ["near", "verify"], near=NearSettings(rotations=False))
    again, _ = run(tmp_path, scan(tmp_path / "images").table, near=NearSettings(rotations=False))
    assert sum(why.startswith("near") for why in reasons(again).values()) == 6
    assert not any(why.startswith("rotated") for why in reasons(again).values())
    assert without["keep"].equals(table["keep"]), "nothing more goes from what was cleaned"


def changing(seed: int) -> list[int]:
    return keyed.numpy_generator(seed, "order").permutation(24).tolist()


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(24)))
def test_the_order_of_the_rows_changes_nothing(tmp_path_factory: pytest.TempPathFactory, order: list[int]) -> None:
    folder = tmp_path_factory.getbasetemp() / "ordered"
    if not folder.exists():
        run(folder, copies(folder))
    table = scan(folder / "images").table
    expected, _ = run(folder, table)
    pairs = read_pairs(folder / "pairs.parquet").to_pylist()
    found, _ = run(folder, table.take(pa.array(order)))
    assert found.sort_by("uri").equals(expected.sort_by("uri"))
    assert sorted(read_pairs(folder / "pairs.parquet").to_pylist(), key=str) == sorted(pairs, key=str)
    again, result = run(folder, found, ["exact", "sparse", "near", "verify"])
    assert not result.dropped and again["keep"].equals(found["keep"]), "done twice is done once"


def test_a_person_decides(tmp_path: Path) -> None:
    scanned = copies(tmp_path)
    before, _ = run(tmp_path, scanned)
    ids = {Path(row["uri"]).name: row["id"] for row in before.select(["uri", "id"]).to_pylist()}
    path = tmp_path / "decisions.jsonl"
    decisions.append(path, ids["0_a.jpg"], ids["0_b.jpg"], "both", "t")
    decisions.append(path, ids["1_a.jpg"], ids["1_b.jpg"], "right", "t")
    decisions.append(path, ids["2_a.jpg"], ids["3_a.jpg"], "left", "t")
    decisions.append(path, ids["4_a.jpg"], ids["5_a.jpg"], "left", "t")
    decisions.append(path, ids["5_a.jpg"], ids["4_a.jpg"], "left", "t")  # a circle
    decisions.append(path, ids["0_a.jpg"], "00000000000000aa", "left", "t")
    table, result = run(tmp_path, scanned)
    found = reasons(table)
    assert found["0_b.jpg"] == "" and found["0_a.jpg"] == "", "kept apart"
    assert found["1_a.jpg"] == f"near_duplicate: of {ids['1_b.jpg']}, decided in review" and found["1_b.jpg"] == ""
    assert found["3_a.jpg"] == f"near_duplicate: of {ids['2_a.jpg']}, decided in review"
    assert not (found["4_a.jpg"] and found["5_a.jpg"]), "a circle of decisions does not drop all"
    assert "5 pairs decided in review." in result.notes
    assert "1 decisions are on images that are not kept any more." in result.notes
    decided = [pair for pair in read_pairs(tmp_path / "pairs.parquet").to_pylist() if pair["by"] == "person"]
    assert {(pair["id_a"], pair["id_b"], pair["verdict"]) for pair in decided} >= {
        (ids["0_a.jpg"], ids["0_b.jpg"], "different"),
        (ids["1_b.jpg"], ids["1_a.jpg"], "duplicate"),
    }


def test_a_chain_is_not_dropped_for_being_one(tmp_path: Path) -> None:
    """Morphs from one scene to another: neighbours are alike, the ends are not."""
    one, other = scene(0, 128).astype(float), scene(1, 128).astype(float)
    for n in range(41):
        write(tmp_path / "images" / f"{n:02d}.png", (one + (other - one) * n / 40).astype(np.uint8))
    table, _ = run(tmp_path, scan(tmp_path / "images").table)
    kept = [Path(uri).name for uri in table.filter(table["keep"])["uri"].to_pylist()]
    assert len(set(table["group"].to_pylist())) == 1, "one group from end to end"
    assert kept[0] == "00.png" and 3 <= len(kept) <= 20, kept


def test_rotations_join_as_all_eight_hashes_would(tmp_path: Path) -> None:
    table = copies(tmp_path)
    run(tmp_path, table, ["hash"])
    opened = store.open_store(tmp_path / "hashes")
    rows = np.arange(len(opened))
    found = groups(opened, rows, NearSettings())
    phash = opened.column("phash")
    near_by = np.min([np.bitwise_count(phash[:, :1] ^ phash[:, turn][None]) for turn in range(8)], axis=0) <= 8
    group = rows.copy()
    while True:
        lower = np.where(near_by | near_by.T, group[None], len(rows)).min(axis=1)
        if (lower == group).all():
            break
        group = lower
    np.testing.assert_array_equal(found, group)


def test_airplane_1_is_airplane_2(shared_data: Path, tmp_path: Path) -> None:
    table, _ = run(tmp_path, scan(shared_data / "ucmerced" / "Images" / "airplane").table)
    found = reasons(table)
    assert found["airplane02.jpg"] == f"exact_duplicate: of {of(table, 'airplane01.jpg')}, same bytes"
    assert [name for name, why in found.items() if why] == ["airplane02.jpg"]
