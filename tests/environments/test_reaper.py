"""Old archives are deleted, and one that is found is never lost."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.environments import QarnotEnvironment, storage
from airflow_qarnot_pool.hooks.qarnot import QarnotHook
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.maintenance import environments, reaper
from airflow_qarnot_pool.maintenance.environments import ArchiveReaper, reap_environments, resources_in_use
from airflow_qarnot_pool.maintenance.reaper import ReapReport
from airflow_qarnot_pool.operators.reap import QarnotReapOperator
from tests.harness import run

from .conftest import HERE
from .test_environments import BUCKET, clean, keys, opened, prepare, storage_of

__all__ = ["clean", "opened"]

MONTH = timedelta(days=30)


def reaper_of(qarnot: LocalQarnot, client: QarnotClient, cutoff: datetime) -> ArchiveReaper:
    return ArchiveReaper(storage_of(qarnot), BUCKET, cutoff, lambda: resources_in_use(client))


def test_an_archive_is_deleted_when_it_is_old_and_nothing_uses_it(
    opened: Callable[..., str], qarnot: LocalQarnot, client: QarnotClient, tmp_path: Path
) -> None:
    helpers = tmp_path / "helpers.py"
    helpers.write_text("A = 1\n")
    unused = prepare(QarnotEnvironment(modules=["helpers"], python=HERE), tmp_path)
    helpers.write_text("A = 2\n")
    pool = opened({"modules": ["helpers"], "python": HERE})
    used = str(client.pools.get(pool).resource_buckets[0].prefix)
    before = keys(qarnot)
    assert reaper_of(qarnot, client, datetime.now(UTC) - MONTH).reap() == []
    assert keys(qarnot) == before
    later = datetime.now(UTC) + timedelta(seconds=2)
    assert reaper_of(qarnot, client, later).reap(dry_run=True) == [f"archives/{unused}"]
    assert keys(qarnot) == before
    assert reaper_of(qarnot, client, later).reap() == [f"archives/{unused}"]
    assert list(keys(qarnot)) == [used]


def test_the_archives_of_a_shared_pool_are_kept_while_it_lives(
    opened: Callable[..., str], qarnot: LocalQarnot, client: QarnotClient, tmp_path: Path
) -> None:
    for number in range(2):
        (tmp_path / "helpers.py").write_text(f"A = {number}\n")
        pool = opened({"modules": ["helpers"], "python": HERE}, shared=tmp_path.name)
    folder = str(client.pools.get(pool).resource_buckets[0].prefix)
    reaper_of(qarnot, client, datetime.now(UTC) + timedelta(seconds=2)).reap()
    names = {key.removeprefix(folder) for key in keys(qarnot) if key.startswith(folder)}
    assert len(names) == 2
    # They are copied again if the pool ends and another one takes its place.
    assert set(keys(qarnot)) == {f"{place}{name}" for place in (folder, "archives/") for name in names}


def test_a_use_renews_the_dates(
    qarnot: LocalQarnot, client: QarnotClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "helpers.py").write_text("A = 1\n")
    environment = QarnotEnvironment(modules=["helpers"], python=HERE)
    prepare(environment, tmp_path)
    copied: list[str] = []
    copy = storage.EnvironmentStorage._copy
    monkeypatch.setattr(
        storage.EnvironmentStorage,
        "_copy",
        lambda self, *names: copied.append(names[0]) or copy(self, *names),
    )
    prepare(environment, tmp_path)
    assert not copied, "a date of today need not be renewed"
    monkeypatch.setattr(storage, "RENEW_AFTER", timedelta())
    prepare(environment, tmp_path)
    assert {key.partition("/")[0] for key in copied} == {"archives", "sources"}
    assert sorted(copied) == sorted(keys(qarnot))


def test_the_operator_deletes_old_environments(
    qarnot: LocalQarnot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pools have their own tests, and need an Airflow that knows DAG runs.
    report = ReapReport(namespace="test", dry_run=False)
    monkeypatch.setattr(reaper, "reap", lambda *args, **options: report)

    def reap(**parameters: Any) -> Any:
        return run(lambda: QarnotReapOperator(task_id="reap", **parameters))["environments"]

    (tmp_path / "helpers.py").write_text("A = 1\n")
    name = prepare(QarnotEnvironment(modules=["helpers"], python=HERE), tmp_path)
    assert reap() == reap(environment_bucket="no-such-bucket") == []
    with shifted(timedelta(days=31)):
        assert reap(report_only=True) == reap() == [f"archives/{name}"]
        assert reap() == []
    assert not keys(qarnot)


def test_a_time_that_is_shorter_than_the_renewals_is_refused() -> None:
    with pytest.raises(QarnotInvalidSpecError, match="delete_environments_after is too short"):
        QarnotReapOperator(task_id="reap", delete_environments_after=timedelta(hours=47))
    with pytest.raises(QarnotInvalidSpecError, match="delete_environments_after is too short"):
        reap_environments(QarnotHook().settings, BUCKET, timedelta(hours=1))


@contextmanager
def shifted(by: timedelta) -> Iterator[None]:
    """Let the reaper see another time."""
    with pytest.MonkeyPatch.context() as patch:
        now = SimpleNamespace(now=lambda zone: datetime.now(zone) + by)
        patch.setattr(environments, "datetime", now)
        yield


# --- uses and deletions that meet


class Turns:
    """Threads that take turns at each request to the storage, in an order that a seed decides."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._paused = threading.Semaphore(0)
        self._waiting: dict[threading.Thread, threading.Semaphore] = {}

    def take(self) -> None:
        """Wait for the next turn of this thread."""
        turn = self._waiting[threading.current_thread()]
        self._paused.release()
        turn.acquire()

    def run(self, *actors: Callable[[], Any]) -> None:
        """Run *actors* to their ends."""
        errors: list[BaseException] = []

        def body(actor: Callable[[], Any]) -> None:
            try:
                self.take()
                actor()
            except BaseException as error:
                errors.append(error)
            finally:
                del self._waiting[threading.current_thread()]
                self._paused.release()

        threads = [threading.Thread(target=body, args=(actor,), daemon=True) for actor in actors]
        self._waiting = {thread: threading.Semaphore(0) for thread in threads}
        for thread in threads:
            thread.start()
            self._paused.acquire()
        while self._waiting:
            self._random.choice(list(self._waiting.values())).release()
            self._paused.acquire()
        assert not errors, errors


class Objects:
    """A storage in memory, whose requests are the turns."""

    def __init__(self, turns: Turns, objects: dict[str, datetime]) -> None:
        self.turns, self.objects = turns, objects
        self.deleted: list[str] = []

    def head_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:
        self.turns.take()
        if Key not in self.objects:
            raise ClientError({"ResponseMetadata": {"HTTPStatusCode": 404}}, "HeadObject")  # type: ignore[typeddict-item]
        return {"LastModified": self.objects[Key]}

    def put_object(self, *, Bucket: str, Key: str, Body: bytes) -> None:
        self.turns.take()
        self.objects[Key] = datetime.now(UTC)

    def copy_object(self, *, CopySource: dict[str, str], Bucket: str, Key: str, **options: str) -> None:
        self.turns.take()
        if CopySource["Key"] not in self.objects:
            raise ClientError({"ResponseMetadata": {"HTTPStatusCode": 404}}, "CopyObject")  # type: ignore[typeddict-item]
        self.objects[Key] = datetime.now(UTC)

    def delete_object(self, *, Bucket: str, Key: str) -> None:
        self.turns.take()
        self.deleted.append(Key)
        self.objects.pop(Key, None)

    def list_objects_v2(self, *, Bucket: str, Prefix: str) -> dict[str, Any]:
        self.turns.take()
        return {"Contents": [{"Key": key} for key in self.objects if key.startswith(Prefix)]}


ACTORS = {
    "a use": "ur",
    "two uses": "uur",
    "two reapers": "urr",
    "two of both": "uurr",
}


@pytest.mark.parametrize("actors", ACTORS.values(), ids=ACTORS)
def test_an_archive_that_a_use_has_found_or_made_is_there_afterwards(
    actors: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_POLL_SECONDS", 0)
    now = datetime.now(UTC)
    key, deletions = "folder/a", 0
    for seed in range(400):
        turns = Turns(seed)
        s3 = Objects(turns, {"archives/a": now - timedelta(hours=1), key: now - 2 * MONTH})
        one = ArchiveReaper(s3, BUCKET, now - MONTH, list)

        def use(s3: Objects = s3) -> None:
            store = storage.EnvironmentStorage(QarnotHook().settings, BUCKET)
            store.__dict__["_s3"] = s3
            store.copy("a", "folder/")
            assert key in s3.objects

        def delete(one: ArchiveReaper = one) -> None:
            one._delete(key)

        turns.run(*({"u": use, "r": delete}[actor] for actor in actors))
        assert sorted(s3.objects) == ["archives/a", key], f"seed {seed}"
        deletions += key in s3.deleted
    assert 0 < deletions < 400, "both orders are tested"
