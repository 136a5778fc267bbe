"""What a review looks at: filters, orders, groups, and tables of pairs from other commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from terrasieve import manifest
from terrasieve.curate import decisions
from terrasieve.errors import UserError
from terrasieve.report.review_pairs import Filter, ReviewPairs

from .review_of import review_of, write_review


def numbers(review: ReviewPairs, **wanted: object) -> list[int]:
    found: list[int] = review.order(Filter(**wanted))[0].tolist()  # type: ignore[arg-type]
    return found


def test_filters_and_orders(tmp_path: Path) -> None:
    review = review_of(write_review(tmp_path))
    assert numbers(review) == [0, 1, 2, 3, 4, 5, 6]
    assert numbers(review, sort="farthest") == [6, 5, 4, 3, 2, 1, 0]
    assert numbers(review, verdict="all") == [7, 0, 1, 2, 3, 4, 5, 6] and numbers(review, verdict="duplicate") == [7]
    assert numbers(review, kind="rotated") == [1] and numbers(review, source="two") == [1, 3, 5]
    assert numbers(review, group=1) == [2, 3] and numbers(review, sort="group") == [0, 1, 2, 3, 4, 5, 6]
    assert numbers(review, verdict="all", sort="file") == list(range(8))
    review.decide(2, "left", "tab")
    assert numbers(review, undecided=True) == [0, 1, 3, 4, 5, 6]
    assert review.order(Filter(undecided=True))[1] == 7


def test_decisions_of_others_come_in(tmp_path: Path) -> None:
    review = review_of(write_review(tmp_path))
    pair = review.pair(3)
    decisions.append(review.path, pair["id_a"], pair["id_b"], "both", "another")
    decisions.append(review.path, "0" * 16, "1" * 16, "both", "of an earlier run")
    version = review.refresh()
    assert review.decided.tolist() == [0, 0, 0, 3, 0, 0, 0, 0]
    assert review.changes(0) == ([(3, "both")], version, False)
    review.path.unlink()
    assert review.changes(version) == ([], 0, True)
    review.refresh()
    assert not review.decided.any()


def test_the_rest_of_a_group(tmp_path: Path) -> None:
    review = review_of(write_review(tmp_path))
    others, count = review.others(review.pair(2), 1)
    assert count == 2 and [Path(row["uri"]).name for row in others] == ["a3.png"]
    assert review.others(review.pair(7), 9) == ([], 0)


def test_only_the_rows_that_are_needed_are_held(tmp_path: Path) -> None:
    write_review(tmp_path)
    table = manifest.read(tmp_path / "manifest.parquet")
    more = [{"id": f"{n:016x}", "uri": f"/x/{n}", "keep": True, "reason": "", "group": 5 + n} for n in range(5000)]
    manifest.write(pa.concat_tables([manifest.rows_to_table(more), table]), tmp_path / "manifest.parquet")
    review = review_of(tmp_path)
    assert len(review.rows) == len(table)
    assert review.row(review.pair(0)["row_a"])["uri"].endswith("a0.png")


def test_pairs_of_overlaps_over_two_manifests(tmp_path: Path) -> None:
    write_review(tmp_path)
    table = manifest.read(tmp_path / "manifest.parquet")
    manifest.write(table.slice(0, 3), tmp_path / "one.parquet")
    manifest.write(table.slice(2), tmp_path / "two.parquet")
    ids = table["id"].to_pylist()
    pairs = {
        "uri_a": ["a"] * 3,
        "id_a": [ids[0], ids[2], ids[0]],
        "id_b": [ids[5], ids[4], ids[5]],
        "score": [0.5, 0.75, 0.9],
    }
    pq.write_table(pa.table(pairs | {"dx_px": [4, 5, 6]}), tmp_path / "overlaps.parquet")
    review = ReviewPairs(
        tmp_path / "overlaps.parquet", [tmp_path / "one.parquet", tmp_path / "two.parquet"], tmp_path / "d"
    )
    assert numbers(review) == [1, 0] and review.pair(0)["kind"] == "overlap"  # the third names the first's pair again
    assert review.pair(0)["dx_px"] == 4 and review.pair(1)["score"] == 0.75 and review.pair(0)["correlation"] is None
    assert np.all(review.decided == 0)


@pytest.mark.parametrize("case", ["none", "text", "columns", "empty", "ids"])
def test_tables_that_cannot_be_reviewed(tmp_path: Path, case: str) -> None:
    write_review(tmp_path)
    path = tmp_path / "pairs.parquet"
    words = {
        "none": "no table of pairs",
        "text": "Parquet",
        "columns": "id_a",
        "empty": "nothing to review",
        "ids": "1 of 1",
    }
    if case == "none":
        path.unlink()
    elif case == "text":
        path.write_text("id_a,id_b")
    elif case == "columns":
        pq.write_table(pa.table({"uri_a": ["x"]}), path)
    else:
        ids = ["f" * 16] if case == "ids" else []
        pq.write_table(pa.table({"id_a": pa.array(ids, pa.string()), "id_b": pa.array(ids, pa.string())}), path)
    with pytest.raises(UserError, match=words[case]):
        review_of(tmp_path)
