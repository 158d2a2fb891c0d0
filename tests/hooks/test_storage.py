"""Uploading inputs and fetching results."""

from __future__ import annotations

import asyncio
import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.exceptions import QarnotError, QarnotInvalidSpecError, QarnotNotFoundError
from airflow_qarnot_pool.hooks.storage import QarnotStorageHook
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.triggers.bucket_watcher import QarnotBucketWatcher
from tests.triggers.watching import MemoryStore, running, store, until

__all__ = ["store"]

pytest.importorskip("boto3")


@pytest.fixture
def storage(qarnot: LocalQarnot) -> QarnotStorageHook:
    return QarnotStorageHook()


class Collector:
    """Airflow's collector of lineage."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.written: list[str] = []

    def add_input_asset(self, context: Any, uri: str) -> None:
        self.read.append(uri)

    def add_output_asset(self, context: Any, uri: str) -> None:
        self.written.append(uri)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Collector:
    found = Collector()
    monkeypatch.setattr("airflow_qarnot_pool.lineage.collector.hook_lineage_collector", lambda: found)
    return found


def test_files_folders_and_bytes_go_up_and_come_down(
    storage: QarnotStorageHook, tmp_path: Path, collector: Collector
) -> None:
    scene = tmp_path / "scene"
    (scene / "textures").mkdir(parents=True)
    (scene / "main.blend").write_text("main")
    (scene / "textures" / "wood.png").write_text("wood")
    bucket = "hook-scenes"
    assert storage.upload(bucket, scene) == ["main.blend", "textures/wood.png"]
    assert storage.upload(bucket, scene, key="v2") == ["v2/main.blend", "v2/textures/wood.png"]
    assert storage.upload(bucket, scene / "main.blend") == ["main.blend"]
    assert storage.upload(bucket, str(scene / "main.blend"), key="other.blend") == ["other.blend"]
    assert storage.upload(bucket, b"{}", key="settings.json") == ["settings.json"]
    assert [(one.key, one.size) for one in storage.list(bucket, "v2/")] == [
        ("v2/main.blend", 4),
        ("v2/textures/wood.png", 4),
    ]
    assert storage.read(bucket, "settings.json") == b"{}"
    got = storage.download(bucket, tmp_path / "got", prefix="v2/")
    assert got == [tmp_path / "got" / "main.blend", tmp_path / "got" / "textures" / "wood.png"]
    assert (tmp_path / "got" / "textures" / "wood.png").read_text() == "wood"
    assert [one.name for one in storage.download(bucket, tmp_path / "some", whitelist=r"\.json$")] == [
        "settings.json"
    ]
    place = "qarnot://hook-scenes/"
    written = ["", "v2", "main.blend", "other.blend", "settings.json"]
    assert collector.written == [place + key for key in written]
    assert collector.read == [f"{place}settings.json", f"{place}v2", place]


def test_a_transfer_succeeds_though_its_lineage_cannot_be_reported(
    storage: QarnotStorageHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Any:
        raise RuntimeError("no collector")

    monkeypatch.setattr("airflow_qarnot_pool.lineage.collector.hook_lineage_collector", fail)
    assert storage.upload("hook-lineage", b"1", key="a") == ["a"]
    assert storage.read("hook-lineage", "a") == b"1"


def test_an_invalid_setting_is_named(storage: QarnotStorageHook, tmp_path: Path) -> None:
    with pytest.raises(QarnotNotFoundError, match=r"hook-none.*no such bucket"):
        storage.list("hook-none")
    with pytest.raises(FileNotFoundError, match="to upload to bucket hook-x on this worker"):
        storage.upload("hook-x", tmp_path / "missing")
    with pytest.raises(QarnotInvalidSpecError, match="key="):
        storage.upload("hook-x", b"data")
    storage.upload("hook-x", b"data", key="there")
    with pytest.raises(QarnotError, match="missing could not be read from bucket hook-x"):
        storage.read("hook-x", "missing")
    with pytest.raises(QarnotInvalidSpecError, match="Files in buckets need boto3"), without_boto3():
        _ = QarnotStorageHook().s3


def test_no_key_leads_out_of_the_directory(storage: QarnotStorageHook, tmp_path: Path) -> None:
    storage.s3.create_bucket(Bucket="hook-evil")
    storage.s3.put_object(Bucket="hook-evil", Key="a/../../evil", Body=b"x")
    with pytest.raises(QarnotError, match="leads out of its folder"):
        storage.download("hook-evil", tmp_path / "in")
    assert not (tmp_path / "evil").exists()
    assert list(tmp_path.rglob("*")) == []


def test_a_token_that_the_storage_refuses_is_told(
    qarnot: LocalQarnot, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = QarnotStorageHook()
    monkeypatch.setattr("airflow_qarnot_pool.api.account.AccountResource.info", lambda self: Somebody())
    with pytest.raises(QarnotError, match="rejected the token of the account"):
        storage.list("hook-x")


class Somebody:
    email = "somebody@else.invalid"


class without_boto3:
    def __enter__(self) -> None:
        self._import = builtins.__import__

        def refused(name: str, *args: Any, **kwargs: Any) -> Any:
            if name == "boto3":
                raise ImportError(name)
            return self._import(name, *args, **kwargs)

        builtins.__import__ = refused

    def __exit__(self, *error: object) -> None:
        builtins.__import__ = self._import


def test_a_hook_is_no_place_for_the_token(storage: QarnotStorageHook, qarnot: LocalQarnot) -> None:
    storage.upload("hook-x", b"data", key="there")
    assert qarnot.token not in json.dumps(str(vars(storage)))


def test_a_bucket_that_does_not_exist_yet_is_watched(storage: QarnotStorageHook, store: MemoryStore) -> None:
    """Here, because this file has the storage; tests/triggers/test_bucket_watcher.py has the rest."""

    async def case() -> None:
        async with running(QarnotBucketWatcher(bucket="watched", prefix="in/", poll_interval=0.1)) as run:
            await until(lambda: store.values)
            await asyncio.to_thread(storage.upload, "watched", b"data", key="in/a")
            first = await run.next()
            store.store_event(first)
            await asyncio.to_thread(storage.upload, "watched", b"other", key="in/a")
            second = await run.next()
        (before,), (after,) = first["files"], second["files"]
        assert before["key"] == after["key"] == "in/a"
        assert (before["size"], after["size"]) == (4, 5)

    asyncio.run(case())
