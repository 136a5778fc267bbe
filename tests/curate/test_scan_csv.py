"""Scanning with a CSV: what it says of files and folders, and one that cannot be used."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import shapely
from images_to_scan import rows, save

from terrasieve.curate.scan import scan
from terrasieve.errors import UserError


def test_csv_names_files_and_says_what_is_known(tmp_path):
    for name in ("a.jpg", "b.jpg", "c.tif"):
        save(tmp_path / "img" / name)
    text = (
        "File,Longitude,Latitude,Class,labels,split,datetime,license,Source,left,bottom,right,top,EPSG,note\n"
        "img/a.jpg,10.5,-20,forest,,training,2020-05-18T13:44:22+02:00,CC0,aerial,,,,,,x\n"
        'img/b.jpg,,,,"lake; reed",Validation,,,,300000,6199840,300160,6200000,32721,\n'
        "img/c.tif,,,,,,,,,,,,,,\n"
        "img/lost.jpg,,,,,,,,,,,,,,\n"
    )
    (tmp_path / "list.csv").write_text("\ufeff" + text, encoding="utf-8")
    result = scan(tmp_path / "list.csv")
    found = rows(result)
    a, b, c, lost = (found[name] for name in ("a.jpg", "b.jpg", "c.tif", "lost.jpg"))
    assert (a["lon"], a["lat"], a["label"], a["split"], a["licence"]) == (10.5, -20, "forest", "train", "CC0")
    assert a["source"] == "aerial" and a["datetime"] == datetime(2020, 5, 18, 11, 44, 22, tzinfo=UTC)
    assert shapely.from_wkb(a["geometry"]).equals(shapely.Point(10.5, -20))
    assert b["labels"] == ["lake", "reed"] and b["split"] == "val" and b["gsd_m"] == 10.0
    assert b["geometry"] == c["geometry"] and b["crs"] == c["crs"] == "EPSG:32721"
    assert (b["lon"], b["lat"]) == (c["lon"], c["lat"])
    assert not lost["keep"] and lost["reason"].startswith("missing: ")
    assert any("columns not used: note" in note for note in result.summary.notes)
    joined = scan(tmp_path / "img", csv=tmp_path / "list.csv")
    assert joined.table.num_rows == 3 and rows(joined)["a.jpg"] == a
    assert any("1 of its rows name files that were not found" in note for note in joined.summary.notes)


def test_a_row_of_a_csv_may_name_a_folder(tmp_path: Path) -> None:
    for name in ("s1/a.jpg", "s1/deep/b.jpg", "s10/a.jpg", "s2/a.jpg"):
        save(tmp_path / name)
    (tmp_path / "t.csv").write_text("sample,split,labels\ns1,train,a;b\ns10,test,c\ns3,val,c\n")
    result = scan(tmp_path, csv=tmp_path / "t.csv", labels="none")
    found = {Path(row["uri"]).relative_to(tmp_path).as_posix(): row for row in result.table.to_pylist()}
    assert {name: (row["split"], row["labels"]) for name, row in found.items()} == {
        "s1/a.jpg": ("train", ["a", "b"]), "s1/deep/b.jpg": ("train", ["a", "b"]),
        "s10/a.jpg": ("test", ["c"]), "s2/a.jpg": (None, None),
    }  # fmt: skip
    assert any("1 of its rows name files that were not found" in note for note in result.summary.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,lat\nx,1\n", "no column of image paths.*name, lat"),
        ("", "no column of image paths"),
        ("path,lat\na.jpg,91\n", "line 2: lat is '91', but should be degrees from -90 to 90"),
        ("path,lon\na.jpg,1\nb.jpg,west\n", "line 3: lon is 'west'"),
        ("path,split\na.jpg,3\n", "line 2: split is '3', but should be train, val or test"),
        ("path,lon,lat\na.jpg,-34.6,-158.4\n", "line 2: lat is '-158.4'.*swapped, most likely"),
        ("path,epsg\na.jpg,99\n", "epsg is '99'"),
        ("path,lon\n,1\n", "line 2: the image's path is empty"),
        ("path\n\xff\n", "UTF-8"),
    ],
)
def test_a_csv_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "list.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        scan(tmp_path / "list.csv")
