"""Images inside tars read as the same images in files do; a tar that was cut off or altered is named."""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from terrasieve import manifest
from terrasieve.errors import UserError
from terrasieve.imagery import members
from terrasieve.imagery.members import Member, member_uri, parse
from terrasieve.imagery.raster import UnreadableImage, header, read


def images(folder: Path) -> list[Path]:
    """Write the same smooth picture in five formats."""
    import rasterio

    smooth = np.add.outer(np.arange(60), np.arange(80)).astype(np.uint8)
    colour = np.stack([smooth, smooth[::-1], 255 - smooth], axis=-1)
    paths = [folder / f"a.{kind}" for kind in ("jpg", "png", "bmp", "webp")]
    for path in paths:
        Image.fromarray(colour).save(path)
    paths.append(folder / "ä b&c#1.tif")
    profile = {"width": 80, "height": 60, "count": 3, "dtype": "uint16", "tiled": True, "blockxsize": 16}
    with rasterio.open(paths[-1], "w", "GTiff", blockysize=16, crs="EPSG:32721", compress="deflate", **profile) as file:
        file.write(colour.transpose(2, 0, 1).astype(np.uint16) * 7)
    return paths


def tar_of(paths: list[Path], tar: Path) -> list[Member]:
    with tarfile.open(tar, "w") as file:
        for path in paths:
            file.add(path, path.name)
    with tarfile.open(tar) as file:
        return [
            Member(str(tar), info.name, info.offset_data, info.size, zlib.crc32(path.read_bytes()))
            for info, path in zip(file, paths, strict=True)
        ]


@pytest.mark.parametrize("checksum", [None, 0, 0xDEADBEEF])
@pytest.mark.parametrize("archive", ["/data/a b#name=x.tar", "s3://bucket/000000.tar", "./000000.tar"])
@pytest.mark.parametrize("name", ["id.jpg", "ä/b&offset=1#c%.tif", "n\udcff.png"])
def test_uris_are_taken_apart_as_they_were_made(archive: str, name: str, checksum: int | None) -> None:
    uri = member_uri(archive, name, 512, 99, checksum)
    assert parse(uri) == Member(archive, name, 512, 99, checksum)
    assert parse(uri).uri == uri
    uri.rpartition("#")[2].encode("ascii")


@pytest.mark.parametrize("uri", ["/data/a.tif", "/data/a#name=b.tif", "s3://b/a.tar#name=a&offset=x&size=1", ""])
def test_other_uris_are_no_members(uri: str) -> None:
    assert parse(uri) is None


@pytest.mark.parametrize("where", ["local", "in part", "memory"])
def test_members_read_as_files_do(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = images(tmp_path)
    found = tar_of(paths, tmp_path / "a b.tar")
    if where == "memory":
        fsspec.filesystem("memory").pipe("/members/a.tar", (tmp_path / "a b.tar").read_bytes())
        found = [member._replace(archive="memory://members/a.tar") for member in found]
    if where == "in part":
        monkeypatch.setattr(members, "WHOLE_BYTES", 10)
    for path, member in zip(paths, found, strict=True):
        assert header(member.uri, ends=True) == header(str(path), ends=True)
        for window, bands in ((None, None), ((5, 10, 20, 30), [2, 0])):
            ours, oracle = read(member.uri, window, bands), read(str(path), window, bands)
            assert np.array_equal(ours.array, oracle.array) and ours.array.dtype == oracle.array.dtype
            assert (ours.valid is None) == (oracle.valid is None)


def code_of(uri: str) -> str:
    with pytest.raises(UnreadableImage) as caught:
        read(uri)
    assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason
    with pytest.raises(UnreadableImage):
        header(uri)
    return caught.value.reason


def test_a_tar_that_was_cut_off_or_altered_is_named(tmp_path: Path) -> None:
    paths = images(tmp_path)
    tar = tmp_path / "s.tar"
    found = tar_of(paths, tar)
    whole = tar.read_bytes()
    jpeg, last = found[0], found[-1]
    altered = bytearray(whole)
    altered[jpeg.offset + jpeg.size // 2] ^= 1
    tar.write_bytes(altered)
    assert code_of(jpeg.uri).startswith(f"damaged_shard: {tar} was altered: a.jpg has the checksum")
    assert read(found[1].uri).array.shape == (3, 60, 80), "the other members are whole"
    tar.write_bytes(whole[: last.offset + last.size - 1])
    assert code_of(last.uri).startswith(f"damaged_shard: {tar} is cut off: of ä b&c#1.tif it holds")
    tar.write_bytes(b"")
    assert code_of(jpeg.uri).startswith("damaged_shard")
    tar.unlink()
    assert code_of(jpeg.uri) == f"missing: there is no {tar}"
    assert code_of("memory://members/none.tar#name=a&offset=0&size=1").startswith("missing")
    with pytest.raises(UserError, match="cannot be read"):
        read("nosuchprotocol://a.tar#name=a&offset=0&size=1")


def test_a_part_of_a_tar_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(range(100)))
    ours, oracle = io.BufferedReader(members._Part(Member(str(path), "x", 10, 50))), io.BytesIO(bytes(range(10, 60)))
    for offset, whence, size in ((0, 0, 5), (3, 1, 10), (-4, 2, 99), (60, 0, 1), (2, 0, -1)):
        assert ours.seek(offset, whence) == oracle.seek(offset, whence)
        assert ours.read(size) == oracle.read(size)


def test_relative_uris_start_at_the_manifest(tmp_path: Path, small_manifest: Path) -> None:
    table = manifest.read(small_manifest)
    uris = ["./0.tar#name=a&offset=0&size=1", "./.hidden", "/abs", "s3://x/y"] * 6
    table = table.set_column(1, "uri", [uris])
    manifest.write(table, tmp_path / "one" / "m.parquet")
    (tmp_path / "moved").mkdir()
    data = (tmp_path / "one" / "m.parquet").read_bytes()
    (tmp_path / "moved" / "other.parquet").write_bytes(data)
    fsspec.filesystem("memory").pipe("/bucket/m.parquet", data)
    places = {
        str(tmp_path / "one" / "m.parquet"): tmp_path / "one",
        str(tmp_path / "moved" / "other.parquet"): tmp_path / "moved",
        "memory://bucket/m.parquet": "memory://bucket",
        f"file://{tmp_path}/one/m.parquet": f"file://{tmp_path}/one",
    }
    hashes = {manifest.content_hash(table)}
    for path, folder in places.items():
        read = manifest.read(path)
        assert read["uri"].to_pylist()[:4] == [f"{folder}{uris[0][1:]}", f"{folder}/.hidden", *uris[2:4]]
        hashes |= {manifest.content_hash(path), manifest.content_hash(read), manifest.content_hash(read.slice(0))}
    assert len(hashes) == 1
    with pytest.raises(UserError, match="There is no manifest memory://bucket/none"):
        manifest.read("memory://bucket/none.parquet")
