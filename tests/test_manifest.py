"""The manifest file: what is written is read, other programs open it, and every wrong file is named for what it is."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import geopandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from terrasieve import manifest
from terrasieve.errors import UserError

ROWS = [
    {
        "id": manifest.row_id("/data/a.tif", (0, 0, 64, 64)),
        "uri": "/data/a.tif",
        "window": [0, 0, 64, 64],
        "width": 64,
        "height": 64,
        "bands": ["red", "nir"],
        "dtype": "uint16",
        "nodata": 0.0,
        "gsd_m": 10.0,
        "datetime": datetime(2020, 5, 18, 13, 44, 22, 5, tzinfo=UTC),
        "geometry": shapely.to_wkb(shapely.box(10, 40, 11, 41)),
        "lon": 10.5,
        "lat": 40.5,
        "labels": ["Forst", "Wiese ü"],
        "phash": 2**64 - 1,
        "group": 3,
        "keep": True,
        "reason": "",
    },
    {"id": manifest.row_id("/data/b.tif"), "uri": "/data/b.tif", "keep": False, "reason": "truncated: half"},
    {"uri": "/data/c.tif", "bands": [], "labels": [], "label": "", "lon": float("nan"), "keep": True, "reason": ""},
    {"uri": "/data/d.tif", "geometry": shapely.to_wkb(shapely.Point(-170, -60)), "keep": True, "reason": ""},
]


@pytest.fixture
def table() -> pa.Table:
    return manifest.rows_to_table(ROWS)


def test_what_is_written_is_read(tmp_path, table):
    path = tmp_path / "new folder" / "m.parquet"
    manifest.write(table, path)
    again = manifest.read(path)
    assert again.schema.equals(manifest.SCHEMA) and again.to_pylist()[:2] == table.to_pylist()[:2]
    assert manifest.read(path, ["lat", "uri"]).column_names == ["lat", "uri"]
    assert [entry.name for entry in path.parent.iterdir()] == ["m.parquet"]
    manifest.write(table.slice(0, 1).select(table.column_names[::-1]), path)
    assert manifest.read(path).to_pylist() == table.slice(0, 1).to_pylist()


def test_other_programs_open_it(tmp_path, table):
    path = tmp_path / "m.parquet"
    manifest.write(table, path)
    frame = geopandas.read_parquet(path)
    assert frame.crs.to_string() == "OGC:CRS84" and frame.geometry[0].equals(shapely.box(10, 40, 11, 41))
    assert list(frame.geometry.isna()) == [False, True, True, False]
    asked = duckdb.sql(f"select uri, bands[2], reason from '{path}' where not keep or lat > 40 order by uri")
    assert asked.fetchall() == [("/data/a.tif", "nir", ""), ("/data/b.tif", None, "truncated: half")]
    geo = json.loads(pq.read_schema(path).metadata[b"geo"])
    assert geo["version"] == "1.1.0" and geo["primary_column"] == "geometry"
    column = geo["columns"]["geometry"]
    assert column == {"encoding": "WKB", "geometry_types": ["Point", "Polygon"], "bbox": [-170.0, -60.0, 11.0, 41.0]}


def test_hash_is_of_the_content_alone(tmp_path, table):
    path = tmp_path / "m.parquet"
    manifest.write(table, path)
    expected = manifest.content_hash(table)
    assert manifest.content_hash(path) == expected
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1, 2), table.slice(3)])
    assert manifest.content_hash(pieces) == expected
    other = table.replace_schema_metadata(pq.read_schema(path).metadata)
    pq.write_table(other, path, compression="gzip", row_group_size=1, use_dictionary=False)
    assert manifest.content_hash(path) == expected
    assert manifest.content_hash(table.slice(1, 2)) == manifest.content_hash(manifest.rows_to_table(ROWS[1:3]))
    code = (
        "import sys; from terrasieve import manifest; print(manifest.content_hash(sys.argv[1]), "
        "manifest.row_id('/data/a.tif', (0, 0, 64, 64)))"
    )
    told = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout
    assert told.split() == [expected, ROWS[0]["id"]]


@pytest.mark.parametrize(
    "change",
    [
        {"uri": "/data/a.ti"},
        {"uri": None},
        {"window": [0, 0, 64, 65]},
        {"window": None},
        {"bands": ["rednir"]},
        {"bands": ["red", None]},
        {"labels": []},
        {"labels": None},
        {"phash": 2**64 - 2},
        {"phash": None},
        {"group": 0},
        {"group": None},
        {"keep": False},
        {"keep": None},
        {"lon": None},
        {"datetime": datetime(2020, 5, 18, 13, 44, 22, 6, tzinfo=UTC)},
        {"reason": None},
    ],
)
def test_any_change_changes_the_hash(table, change):
    changed = manifest.rows_to_table([{**ROWS[0], **change}, *ROWS[1:]])
    assert manifest.content_hash(changed) != manifest.content_hash(table)
    assert manifest.content_hash(table.take([1, 0, 2, 3])) != manifest.content_hash(table)


def test_ids_differ_by_uri_and_window():
    ids = {manifest.row_id(uri, window) for uri in ("/a", "/b") for window in (None, (0, 0, 1, 1), (0, 0, 1, 11))}
    assert len(ids) == 6 and all(len(name) == 16 and int(name, 16) >= 0 for name in ids)


def test_rows_that_do_not_fit():
    with pytest.raises(UserError, match=r"no column 'labell'.*Did you mean 'label'"):
        manifest.rows_to_table([{"labell": "x"}])
    with pytest.raises(UserError, match=r"column 'width' takes int32"):
        manifest.rows_to_table([{"width": "wide"}])
    with pytest.raises(UserError, match="'window'"):
        manifest.rows_to_table([{"window": [1, 2, 3]}])
    with pytest.raises(UserError, match="'phash'"):
        manifest.rows_to_table([{"phash": -1}])
    assert manifest.rows_to_table([]).schema.equals(manifest.SCHEMA)


def refused(path: Path, match: str, **options) -> None:
    with pytest.raises(UserError, match=match) as caught:
        manifest.read(path, **options)
    assert str(path) in str(caught.value) or "columns" in options


def test_wrong_files_are_named_for_what_they_are(tmp_path, table):
    path = tmp_path / "m.parquet"
    refused(path, "There is no manifest")
    refused(tmp_path, "directory")
    for data in (b"", b"id,uri\n1,a.tif\n"):
        path.write_bytes(data)
        refused(path, "not a Parquet file")
    manifest.write(table, path)
    whole = path.read_bytes()
    for part in (0.1, 0.5, 0.99):
        path.write_bytes(whole[: int(len(whole) * part)])
        refused(path, "truncated")
    path.write_bytes(whole[:200] + bytes(len(whole) - 300) + whole[-100:])
    refused(path, "damaged")
    path.write_bytes(whole)
    refused(path, "Did you mean 'uri'", columns=["url"])
    pq.write_table(pa.table({"path": ["a"]}), path)
    refused(path, r"no terrasieve manifest \(columns path")
    pq.write_table(table.replace_schema_metadata({"terrasieve:schema": "9"}), path)
    refused(path, "schema 9")
    pq.write_table(table.drop_columns(["keep"]).replace_schema_metadata({"terrasieve:schema": "1"}), path)
    refused(path, "lacks the manifest columns keep")


def test_a_manifest_without_usable_rows_is_refused_unless_asked_for(tmp_path, table):
    path = tmp_path / "m.parquet"
    for empty in (table.slice(1, 1), table.slice(0, 0)):
        manifest.write(empty, path)
        refused(path, rf"no usable row: 0 of {empty.num_rows}")
        refused(path, "no usable row", columns=["uri"])
        assert manifest.read(path, empty_ok=True).num_rows == empty.num_rows


def test_a_failed_write_leaves_what_was_there(tmp_path, table):
    path = tmp_path / "m.parquet"
    manifest.write(table, path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"columns missing \['keep'\]"):
        manifest.write(table.drop_columns(["keep"]), path)
    with pytest.raises(UserError, match="columns unknown"):
        manifest.write(table.append_column("extra", pa.array([1] * 4)), path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        manifest.write(table, tmp_path / "file" / "m.parquet")
    assert path.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == ["file", "m.parquet"]
