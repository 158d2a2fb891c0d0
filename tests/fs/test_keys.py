"""What goes into a bucket comes back under the same name, by hook, path and file system, or is refused by name."""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_qarnot_pool.exceptions import QarnotInvalidSpecError
from airflow_qarnot_pool.fs.filesystem import QarnotFileSystem
from airflow_qarnot_pool.hooks.keys import check_key, folders_of, local_paths
from airflow_qarnot_pool.hooks.storage import QarnotStorageHook
from airflow_qarnot_pool.local import LocalQarnot

pytest.importorskip("boto3")


@pytest.fixture
def storage(qarnot: LocalQarnot) -> QarnotStorageHook:
    QarnotFileSystem.clear_instance_cache()
    return QarnotStorageHook()


@pytest.fixture
def bucket(storage: QarnotStorageHook) -> str:
    """An empty bucket."""
    name = f"keys-{uuid.uuid4().hex[:12]}"
    storage.s3.create_bucket(Bucket=name)
    return name


PIECES = [
    *("a", "b", "/", "/", "//", ".", "..", "...", " ", "  ", "a b"),
    *("é", "e\u0301", "日本", "😀", "\u2028", "\u00a0", "\udcff", "\n", "\t", "\x00"),
    *"%+?#&=;:\\'\"<>*[]{}~$",
    *("%2F", "x" * 250, "日" * 85),
]


def some_key(random: random.Random) -> str:
    return "".join(random.choice(PIECES) for _ in range(random.randint(0, 6)))


def refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except (QarnotInvalidSpecError, FileExistsError, IsADirectoryError):
        return True
    return False


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("way", ["hook", "fs"])
def test_any_key_comes_back_or_is_refused(
    storage: QarnotStorageHook, bucket: str, tmp_path: Path, seed: int, way: str
) -> None:
    rng, fs = random.Random(seed), QarnotFileSystem()
    stored: dict[str, bytes] = {}
    for number in range(30):
        key, data = some_key(rng), str(number).encode()

        def put(key: str = key, data: bytes = data) -> None:
            if way == "hook":
                assert storage.upload(bucket, data, key=key) == [key]
            else:
                with fs.open(f"{bucket}/{key}", "wb") as file:
                    file.write(data)

        clash = any(one in folders_of(key) or key in folders_of(one) for one in stored)
        if refused(put):
            assert clash or refused(lambda key=key: check_key(key)), key
        else:
            assert not clash, key
            stored[key] = data
    assert len(stored) > 10
    assert [one.key for one in storage.list(bucket)] == sorted(stored, key=str.encode)
    assert fs.find(bucket) == sorted(f"{bucket}/{key}" for key in stored)
    for key, data in stored.items():
        assert storage.read(bucket, key) == data
        assert fs.cat_file(f"{bucket}/{key}") == data
        assert fs.isfile(f"{bucket}/{key}")
        assert f"{bucket}/{key}" in fs.ls(os.path.dirname(f"{bucket}/{key}"), detail=False)
    files = storage.download(bucket, tmp_path)
    assert {str(one.relative_to(tmp_path)): one.read_bytes() for one in files} == stored
    assert sum(len(names) for _, _, names in os.walk(tmp_path)) == len(stored)


BAD_KEYS = [
    *("in/", "/", "/in", "in//x", "./x", "a/../x", "..", "a/."),
    *("a\nb", "a\x00", "\udcff", "x" * 256, "ab/" * 342 + "x"),
]


def test_a_key_that_is_no_name_of_a_file_is_refused_before_anything_is_stored(
    storage: QarnotStorageHook, bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for key in BAD_KEYS:
        for source in (b"x", tmp_path / "file"):
            with pytest.raises(QarnotInvalidSpecError, match="The key ") as caught:
                storage.upload(bucket, source, key=key)
            assert caught.value.field == "key"
            assert caught.value.remedy
        with pytest.raises((QarnotInvalidSpecError, IsADirectoryError)):
            QarnotFileSystem().open(f"{bucket}/{key}", "wb")
    assert storage.list(bucket) == []
    storage.upload(bucket, b"x", key="file")
    for key in BAD_KEYS:
        with pytest.raises((QarnotInvalidSpecError, IsADirectoryError)):
            QarnotFileSystem().cp_file(f"{bucket}/file", f"{bucket}/{key}")
    assert [one.key for one in storage.list(bucket)] == ["file"]


def test_a_folder_comes_back_whole(storage: QarnotStorageHook, bucket: str, tmp_path: Path) -> None:
    names = [" a ", "é", "e\u0301", "a/b.c/d", "a/...", ".hidden/x", "日" * 85, "y" * 255, "#?%2F+&=", "\\"]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
    for key in ("", "into", "into/"):
        keys = storage.upload(bucket, tmp_path / "in", key=key)
        assert sorted(keys) == sorted(f"{key.rstrip('/')}/{name}".lstrip("/") for name in names)
    storage.download(bucket, tmp_path / "out", prefix="into/")
    assert {name: (tmp_path / "out" / name).read_text() for name in names} == {name: name for name in names}


@pytest.mark.parametrize("way", ["hook", "file", "folder", "fs", "copy"])
def test_a_file_and_a_folder_of_one_name_do_not_meet(
    storage: QarnotStorageHook, bucket: str, tmp_path: Path, way: str
) -> None:
    fs = QarnotFileSystem()
    storage.upload(bucket, b"1", key="a/b")
    storage.upload(bucket, b"2", key="other/file")

    def put(key: str) -> object:
        if way == "hook":
            return storage.upload(bucket, b"x", key=key)
        if way == "copy":
            return fs.cp_file(f"{bucket}/other/file", f"{bucket}/{key}")
        if way == "fs":
            return fs.open(f"{bucket}/{key}", "wb").close()
        (tmp_path / "in" / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / key).write_text("x")
        (tmp_path / "in" / "beside").write_text("x")
        return storage.upload(
            bucket, *((tmp_path / "in", "") if way == "folder" else (tmp_path / "in" / key, key))
        )

    for key, named in (("a", "'a/'"), ("a/b/c", "'a/b'"), ("a/b/c/d", "'a/b'")):
        with pytest.raises((QarnotInvalidSpecError, FileExistsError), match=named):
            put(key)
        for one in sorted((tmp_path / "in").rglob("*"), reverse=True):
            one.rmdir() if one.is_dir() else one.unlink()
    assert [one.key for one in storage.list(bucket)] == ["a/b", "other/file"]
    put("a/c")
    put("ab")


@pytest.mark.parametrize(
    ("keys", "prefix", "why"),
    [
        (["a", "a/b"], "", "cannot both be files"),
        (["a/b", "a"], "", "cannot both be files"),
        (["a", "a/a"], "a", "cannot both be files"),
        (["/a", "b"], "", "starts with"),
        (["a//b"], "", "two slashes"),
        (["a/../../evil"], "", "leads out of its folder"),
        (["x../evil"], "x", "leads out of its folder"),
        (["a/"], "", "ends with"),
    ],
)
def test_objects_of_others_are_downloaded_whole_or_not_at_all(
    storage: QarnotStorageHook, bucket: str, tmp_path: Path, keys: list[str], prefix: str, why: str
) -> None:
    for key in [*keys, "fine"]:
        storage.s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    with pytest.raises(QarnotInvalidSpecError, match=why):
        storage.download(bucket, tmp_path / "out", prefix=prefix)
    assert list(tmp_path.iterdir()) == []
    assert [one.name for one in storage.download(bucket, tmp_path / "out", whitelist="^fine$")] == ["fine"]


def test_marks_of_folders_are_no_files(storage: QarnotStorageHook, bucket: str, tmp_path: Path) -> None:
    storage.s3.put_object(Bucket=bucket, Key="folder/", Body=b"")
    storage.upload(bucket, b"x", key="folder/x")
    assert [one.key for one in storage.list(bucket)] == ["folder/x"]
    assert [one.name for one in storage.download(bucket, tmp_path)] == ["x"]


def test_nothing_in_a_folder_is_left_out_without_a_word(
    storage: QarnotStorageHook, bucket: str, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    (folder / "real").mkdir(parents=True)
    (folder / "real" / "file").write_text("x")
    (folder / "link").symlink_to(folder / "real" / "file")
    assert storage.upload(bucket, folder) == ["link", "real/file"]
    for name, make in (
        ("to-a-folder", lambda path: path.symlink_to(folder / "real")),
        ("to-nothing", lambda path: path.symlink_to(tmp_path / "none")),
        ("fifo", os.mkfifo),
    ):
        make(folder / name)
        with pytest.raises(QarnotInvalidSpecError, match=rf"{name} is .* cannot be uploaded"):
            storage.upload(bucket, folder)
        (folder / name).unlink()
    with pytest.raises(QarnotInvalidSpecError, match="not a regular file"):
        storage.upload(bucket, "/dev/zero")
    with pytest.raises(QarnotInvalidSpecError, match="source is empty"):
        storage.upload(bucket, "")


def test_paths_of_keys_are_decided_without_a_bucket() -> None:
    assert [str(path) for _, path in local_paths(["in/a", "in/b/c"], "in")] == ["a", "b/c"]
    assert [str(path) for _, path in local_paths(["in/a"], "in/a")] == ["a"]
