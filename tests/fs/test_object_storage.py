"""Airflow's object storage on Qarnot's buckets: ``ObjectStoragePath("qarnot://...")`` on a real S3."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import urllib.request
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path

import fsspec
import pytest
from airflow.sdk import ObjectStoragePath
from airflow.sdk.io import get_fs
from upath import UPath

from airflow_qarnot_pool.exceptions import QarnotCredentialsError
from airflow_qarnot_pool.fs.filesystem import QarnotFileSystem
from airflow_qarnot_pool.local import LocalQarnot

pytest.importorskip("boto3")
pytestmark = pytest.mark.usefixtures("qarnot")


@pytest.fixture
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ObjectStoragePath:
    """A bucket by the test's name."""
    # File systems are kept by connection id: another test file's local Qarnot must not be taken for ours.
    QarnotFileSystem.clear_instance_cache()
    monkeypatch.setattr("airflow.sdk.io.store._STORE_CACHE", {})
    name = request.node.name.replace("_", "-").lower()[:50].strip("-")
    path = ObjectStoragePath(f"qarnot://qarnot_default@{name}/")
    path.mkdir(parents=True, exist_ok=True)
    return path


def test_a_written_object_can_be_read(bucket: ObjectStoragePath) -> None:
    file = bucket / "a" / "b.txt"
    assert not file.exists()
    with file.open("w") as stream:
        stream.write("first\nsecond\n")
    assert file.exists()
    assert file.is_file()
    assert file.read_text() == "first\nsecond\n"
    with file.open() as stream:
        assert list(stream) == ["first\n", "second\n"]
    assert file.stat().st_size == 13
    assert datetime.now(UTC).timestamp() - file.stat().st_mtime < 600
    assert (file.bucket, file.key) == (bucket.bucket, "a/b.txt")


def test_large_files_travel_in_parts_both_ways(bucket: ObjectStoragePath) -> None:
    data = bytes(range(256)) * 80_000  # 20 MB
    file = bucket / "large"
    file.write_bytes(data)
    assert file.size() == len(data)
    with file.open("rb") as stream:
        stream.seek(10_000_001)
        assert stream.read(300) == data[10_000_001:10_000_301]
    assert file.read_bytes() == data


def test_folders_are_what_keys_have_in_common(bucket: ObjectStoragePath) -> None:
    for key in ("x", "a/1", "a/2", "a/deep/3", "ab"):
        (bucket / key).write_bytes(b"")
    assert sorted(one.name for one in bucket.iterdir()) == ["a", "ab", "x"]
    assert sorted(one.name for one in (bucket / "a").iterdir()) == ["1", "2", "deep"]
    assert (bucket / "a").is_dir()
    assert not (bucket / "a").is_file()
    assert bucket.is_dir()
    assert [str(one.key) for one in sorted(bucket.glob("a/*"), key=str)][:2] == ["a/1", "a/2"]
    assert not (bucket / "missing").exists()
    assert not ObjectStoragePath("qarnot://qarnot_default@no-such-bucket/x").exists()
    with pytest.raises(IsADirectoryError, match="folder"):
        (bucket / "a").read_bytes()


def test_a_missing_object_is_named(bucket: ObjectStoragePath) -> None:
    with pytest.raises(FileNotFoundError, match="no x in bucket"):
        (bucket / "x").read_text()
    with pytest.raises(FileNotFoundError, match=r"no-such-bucket.*no such bucket"):
        ObjectStoragePath("qarnot://qarnot_default@no-such-bucket/x").read_text()


def test_files_are_copied_moved_and_deleted(bucket: ObjectStoragePath, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "one.txt").write_text("1")
    ObjectStoragePath(f"file://{tmp_path}/in/one.txt").copy(bucket / "one.txt")
    (bucket / "one.txt").copy(bucket / "two.txt")
    (bucket / "two.txt").rename(bucket / "three.txt")
    (bucket / "three.txt").copy(ObjectStoragePath(f"file://{tmp_path}/out.txt"))
    assert (tmp_path / "out.txt").read_text() == "1"
    assert sorted(one.name for one in bucket.iterdir()) == ["one.txt", "three.txt"]
    (bucket / "one.txt").unlink()
    assert [one.name for one in bucket.iterdir()] == ["three.txt"]
    bucket.rmdir(recursive=True)
    assert not bucket.exists()


@pytest.mark.parametrize("mode", ["wb", "w", "wt", "xb", "x"])
def test_a_file_that_could_not_be_written_to_its_end_is_not_there(
    bucket: ObjectStoragePath, mode: str
) -> None:
    file = bucket / mode
    whole = None if mode.startswith("x") else b"whole"
    if whole:
        file.write_bytes(whole)

    def half() -> None:
        with file.open(mode) as stream:
            stream.write(b"half" if "b" in mode else "half")
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        half()
    assert (file.read_bytes() if file.exists() else None) == whole


@pytest.mark.parametrize("mode", ["wb", "w"])
def test_a_file_that_is_never_closed_leaves_what_is_there(bucket: ObjectStoragePath, mode: str) -> None:
    file = bucket / mode
    file.write_bytes(b"whole")
    stream = file.open(mode)
    stream.write(b"half" if "b" in mode else "half")
    del stream
    gc.collect()
    assert file.read_bytes() == b"whole"


def test_folders_that_a_console_has_made_are_deleted(bucket: ObjectStoragePath) -> None:
    s3 = bucket.fs.s3
    for key in ("a/", "a/b/", "c/"):
        s3.put_object(Bucket=bucket.bucket, Key=key)
    (bucket / "a" / "b" / "file").write_bytes(b"x")
    (bucket / "a").rmdir(recursive=True)
    assert not (bucket / "a").exists()
    assert (bucket / "c").exists()
    bucket.rmdir(recursive=True)
    assert not bucket.exists()


def test_text_that_cannot_be_encoded_leaves_what_is_there(bucket: ObjectStoragePath) -> None:
    file = bucket / "file"
    file.write_text("whole")
    with pytest.raises(UnicodeEncodeError):
        file.write_text("h\u00e4lf", encoding="ascii")
    assert file.read_text() == "whole"


def test_text_is_written_as_asked(bucket: ObjectStoragePath) -> None:
    file = bucket / "file"
    with file.open("w", encoding="latin-1", newline="\r\n", errors="replace") as stream:
        stream.write("\u00e4\n\u20ac\n")
    assert file.read_bytes() == b"\xe4\r\n?\r\n"
    with file.open("r", encoding="latin-1", newline="") as stream:
        assert stream.read() == "\u00e4\r\n?\r\n"
    loose = file.open("w")
    loose.write("not in a with block")
    loose.close()
    assert file.read_text() == "not in a with block"


def test_a_signed_url_gives_the_file_to_who_has_no_account(bucket: ObjectStoragePath) -> None:
    (bucket / "a").write_text("for you")
    url = (bucket / "a").sign(60)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    assert opener.open(url).read() == b"for you"


def test_no_secret_travels_with_a_path(bucket: ObjectStoragePath, qarnot: LocalQarnot) -> None:
    (bucket / "a").write_text("x")
    assert qarnot.token not in str(vars(bucket.fs)) + repr(bucket) + bucket.fs.to_json()
    assert qarnot.token.encode() not in pickle.dumps(bucket.fs)
    assert copy.deepcopy(pickle.loads(pickle.dumps(bucket.fs))).cat_file(f"{bucket.bucket}/a") == b"x"


def test_without_a_connection_it_is_the_default_one(bucket: ObjectStoragePath) -> None:
    assert ObjectStoragePath(f"qarnot://{bucket.bucket}/a", conn_id=None).fs.conn_id == "qarnot_default"
    folder = ObjectStoragePath(f"qarnot://{bucket.bucket}/in")
    assert not folder.exists()
    (folder / "a").write_text("x")
    (folder / "b").write_bytes(b"y")
    with (folder / "c").open("w") as stream:
        stream.write("z")
    assert (folder / "a").read_text() == "x"
    assert (bucket / "in" / "b").read_bytes() == b"y"
    assert sorted(one.name for one in folder.iterdir()) == ["a", "b", "c"]
    assert sorted(one.name for one in folder.glob("*")) == ["a", "b", "c"]
    assert [names for _, _, names in folder.walk()] == [["a", "b", "c"]]
    (folder / "a").rename(folder / "d")
    (folder / "b").unlink()
    assert (folder / "c").stat().st_size == 1
    assert folder.is_dir()
    assert sorted(one.name for one in folder.iterdir()) == ["c", "d"]


@pytest.mark.parametrize("prefix", ["qarnot://", "qarnot://qarnot_default@"])
def test_other_libraries_read_and_write_by_the_protocol(bucket: ObjectStoragePath, prefix: str) -> None:
    url = f"{prefix}{bucket.bucket}/table.csv"
    with fsspec.open(url, "w") as stream:
        stream.write("a,b\n1,2\n")
    with fsspec.open(url, "rb") as stream:
        assert stream.read() == b"a,b\n1,2\n"
    with fsspec.open(f"{url}.gz", "wt", compression="infer") as stream:
        stream.write("packed")
    with fsspec.open(f"{url}.gz", "rt", compression="infer") as stream:
        assert stream.read() == "packed"
    assert [one.path for one in fsspec.open_files(f"{prefix}{bucket.bucket}/*.csv")] == [
        f"{bucket.bucket}/table.csv"
    ]
    fs, path = fsspec.url_to_fs(url)
    assert (fs.conn_id, path) == ("qarnot_default", f"{bucket.bucket}/table.csv")
    assert UPath(url).read_text() == "a,b\n1,2\n"


def test_a_url_or_an_option_names_another_connection() -> None:
    """pandas passes ``storage_options`` on as they are."""
    for url, options in (
        ("qarnot://other@bucket/key", {}),
        ("qarnot://bucket/key", {"conn_id": "other"}),
        ("qarnot://other@bucket", {"conn_id": "other"}),
    ):
        fs, path = fsspec.url_to_fs(url, **options)
        assert (fs.conn_id, path.split("/")[0]) == ("other", "bucket")
    assert get_fs("qarnot", None, {"conn_id": "other"}).conn_id == "other"


def test_the_protocol_is_an_entry_point_of_the_package() -> None:
    [entry] = entry_points(group="fsspec.specs", name="qarnot")
    assert entry.load() is QarnotFileSystem
    assert fsspec.get_filesystem_class("qarnot") is QarnotFileSystem


def test_a_refused_token_is_told(qarnot: LocalQarnot, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = {"conn_type": "qarnot", "host": qarnot.url, "password": "wrong"}
    monkeypatch.setenv("AIRFLOW_CONN_WRONG", json.dumps(connection))
    with pytest.raises(QarnotCredentialsError):
        ObjectStoragePath("qarnot://wrong@some/x").read_text()
