"""New files of a bucket become events, each once."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import timedelta
from typing import Any

import pytest

from airflow_qarnot_pool.exceptions import QarnotInvalidSpecError
from airflow_qarnot_pool.triggers import bucket_poller, poller, watcher
from airflow_qarnot_pool.triggers.bucket_watcher import QarnotBucketWatcher
from airflow_qarnot_pool.triggers.watermark import Watermark
from tests.fake_s3 import START, FakeS3
from tests.triggers.watching import MemoryStore, running, store, until

__all__ = ["store"]

INTERVAL = 0.02


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> FakeS3:
    connection = {"conn_type": "qarnot", "host": "http://127.0.0.1:9", "password": "token"}
    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", json.dumps(connection))
    fake = FakeS3()
    monkeypatch.setattr(bucket_poller, "s3_client", lambda settings: fake)
    return fake


def watch(**kwargs: Any) -> QarnotBucketWatcher:
    return QarnotBucketWatcher(**{"bucket": "inbox", "poll_interval": INTERVAL, **kwargs})


def keys_of(payload: dict[str, Any]) -> list[str]:
    return [file["key"] for file in payload["files"]]


def test_new_files_become_an_event(s3: FakeS3, store: MemoryStore) -> None:
    async def case() -> None:
        s3.put("in/old.csv", "out/x.csv")
        async with running(watch(prefix="in/", whitelist=r"\.csv$")) as run:
            await until(lambda: store.values)
            s3.put("in/b.csv", "in/a.csv", "in/", "in/folder/", "in/notes.txt", "out/y.csv", seconds=1)
            s3.put("in/folder/", content="")
            payload = await run.next()
        change = payload.pop("watermark")
        assert payload == {
            "bucket": "inbox",
            "prefix": "in/",
            "whitelist": r"\.csv$",
            "files": [
                {
                    "key": key,
                    "size": 1,
                    "etag": "9dd4e461268c8034f5c8564e155c67a6",
                    "modified": (START + timedelta(seconds=seconds)).isoformat(),
                }
                for seconds, key in enumerate(["in/b.csv", "in/a.csv"])
            ],
        }
        assert change["key"] in store.values

    asyncio.run(case())


@pytest.mark.parametrize("existing", [False, True])
def test_existing_files_are_reported_on_request(s3: FakeS3, store: MemoryStore, existing: bool) -> None:
    async def case() -> None:
        s3.put("a")
        async with running(watch(existing=existing)) as run:
            await until(lambda: store.values and s3.requests)
            await until(lambda: run.watcher._mark is not None)
            s3.put("b", seconds=1)
            reported = keys_of(await run.next())
            if existing and "b" not in reported:
                reported += keys_of(await run.next())
            assert reported == (["a", "b"] if existing else ["b"])

    asyncio.run(case())


def test_every_key_comes_once_over_kills(s3: FakeS3, store: MemoryStore) -> None:
    """A kill may come before an event is stored, or after it. Stored and advanced is one step."""
    keys = [f"in/{number * 7919 % 10_000:05}" for number in range(10_000)]
    chance = random.Random(7)

    def reported() -> int:
        return sum(len(event["files"]) for event in store.events)

    async def case() -> int:
        async with running(watch()):
            await until(lambda: store.values)
        kills = 0
        for expected in (5000, 10_000):
            # A third of the files becomes visible up to 50 minutes after its time.
            for key in keys[expected - 5000 : expected]:
                late = chance.random() < 0.3
                s3.put(key, at=s3.now - timedelta(minutes=chance.randint(0, 50)) if late else None)
                s3.now += timedelta(seconds=1)
            while reported() < expected:
                async with running(watch(max_items=500, poll_interval=0.5)) as run:
                    kills += 1
                    for _ in range(chance.randint(0, 5)):
                        if reported() < expected:
                            store.store_event(await run.next())
        return kills

    assert asyncio.run(case()) > 5
    assert sorted(key for event in store.events for key in keys_of(event)) == sorted(keys)


def test_more_new_files_than_a_poll_keeps_come_with_the_next_polls(
    s3: FakeS3, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are of hours, so a floor that follows the clock would be above them."""
    monkeypatch.setattr("airflow_qarnot_pool.triggers.watch.MAX_NEW", 50)
    keys = [f"{number:03}" for number in range(150)]

    async def case() -> None:
        async with running(watch()):
            await until(lambda: store.values)
        s3.put(*reversed(keys), seconds=120)
        while sum(len(event["files"]) for event in store.events) < len(keys):
            async with running(watch(max_items=30)) as run:
                # A poll has an event of 30 files and one of 20.
                store.store_event(await run.next())
                store.store_event(await run.next())

    asyncio.run(case())
    assert sorted(key for event in store.events for key in keys_of(event)) == keys


def test_a_frozen_triggerer_that_sends_its_events_late_reports_nothing_again(
    s3: FakeS3, store: MemoryStore
) -> None:
    async def case() -> None:
        async with running(watch()) as frozen:
            await until(lambda: store.values)
            s3.put("a", "b", seconds=1)
            late = await frozen.next()
        async with running(watch()) as other:
            store.store_event(await other.next())
        store.store_event(late)

    asyncio.run(case())
    assert [keys_of(event) for event in store.events] == [["a", "b"], []]


def test_a_thousand_watchers_cost_one_listing_a_round(s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    stores: dict[str, MemoryStore] = {}
    monkeypatch.setattr(
        "airflow_qarnot_pool.triggers.watermark_stores.stores_of",
        lambda trigger: [stores.setdefault(trigger.prefix, MemoryStore())],
    )

    async def case() -> None:
        prefixes = [f"in/{number:04}/" for number in range(1000)]
        s3.put(*(f"{prefix}old" for prefix in prefixes[:900]))
        runs = [running(watch(prefix=prefix, poll_interval=0.2)) for prefix in prefixes]
        started = [await run.__aenter__() for run in runs]
        await until(lambda: len(stores) == 1000 and all(each.values for each in stores.values()))
        (shared,) = poller.pollers()
        rounds, requests = shared.rounds, len(s3.requests)
        await until(lambda: shared.rounds >= rounds + 3)
        # A round may be under way.
        assert abs((len(s3.requests) - requests) - (shared.rounds - rounds)) <= 1
        s3.put("in/0003/a", "in/0500/b", "in/0999/c", seconds=1)
        assert [keys_of(await started[number].next()) for number in (3, 500, 999)] == [
            ["in/0003/a"],
            ["in/0500/b"],
            ["in/0999/c"],
        ]
        for run in runs:
            await run.__aexit__(None, None, None)
        assert not any(run.received for run in started)
        assert not list(poller.pollers())

    asyncio.run(case())


def test_a_watcher_stores_its_watermark_itself_if_nothing_else_does(
    s3: FakeS3, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the listener: before Airflow 3.3, or with plugins disabled."""
    monkeypatch.setattr(watcher, "CONFIRM_AFTER", 0.02)
    checks = 0
    load = store.load

    async def counted(key: str) -> Any:
        nonlocal checks
        checks += 1
        return await load(key)

    monkeypatch.setattr(store, "load", counted)

    async def case() -> None:
        async with running(watch()) as run:
            await until(lambda: store.values)
            (first,) = store.values.values()
            s3.put("a", seconds=1)
            await run.next()
            await until(lambda: list(store.values.values()) != [first])
            assert checks >= 1 + watcher.MAX_MISSES
            await until(lambda: run.watcher._expected is None)
        async with running(watch()) as run:
            s3.put("b", seconds=1)
            assert keys_of(await run.next()) == ["b"]

    asyncio.run(case())


def test_stores_with_other_watermarks_lose_nothing() -> None:
    """An asset that has joined has less or nothing. The listener advances each with its events."""
    early, late, other = (
        Watermark(9, {9: {b"early."}}),
        Watermark(9, {9: {b"early.", b"late.."}}),
        Watermark(9, {9: {b"other."}}),
    )
    stores = [MemoryStore(), MemoryStore(), MemoryStore()]
    trigger = watch()

    def put(*marks: Watermark | None) -> None:
        for each, mark in zip(stores, marks, strict=True):
            each.values = {} if mark is None else {trigger.state_key: json.dumps(mark.to_json())}

    def marks() -> list[Any]:
        return [Watermark.from_json(json.loads(each.values[trigger.state_key])) for each in stores]

    async def case() -> None:
        trigger._stores, trigger._mark = stores, early  # type: ignore[assignment]
        put(late, other, None)
        for _ in range(watcher.MAX_MISSES):
            await trigger._confirm(early)
        assert marks() == [late, early.union(other), early]
        put(early, late.union(other), None)
        assert await trigger._load() == late.union(other)
        assert marks() == [late.union(other)] * 3

    asyncio.run(case())


def test_an_outage_ends_no_watcher(s3: FakeS3, store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    listing, failures = s3.list_objects_v2, 3

    def fails(**arguments: Any) -> Any:
        nonlocal failures
        from botocore.exceptions import ClientError

        if failures:
            failures -= 1
            answer = {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
            raise ClientError(answer, "ListObjectsV2")
        return listing(**arguments)

    monkeypatch.setattr(s3, "list_objects_v2", fails)

    async def case() -> None:
        async with running(watch()) as run:
            await until(lambda: store.values)
            s3.put("a", seconds=1)
            assert keys_of(await run.next()) == ["a"]

    asyncio.run(case())
    assert failures == 0


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"bucket": "in/box"}, "bucket"),
        ({"prefix": "/in"}, "prefix"),
        ({"whitelist": "*.csv"}, "whitelist"),
        ({"whitelist": "("}, "whitelist"),
        ({"existing": "yes"}, "existing"),
        ({"poll_interval": 0}, "poll_interval"),
        ({"poll_interval": None}, "poll_interval"),
        ({"poll_interval": 0.001}, "poll_interval"),
        ({"poll_interval": timedelta(days=2)}, "poll_interval"),
        ({"allowed_lateness": timedelta(days=8)}, "allowed_lateness"),
        ({"max_items": 0}, "max_items"),
        ({"max_items": 1001}, "max_items"),
        ({"qarnot_conn_id": ""}, "qarnot_conn_id"),
    ],
)
def test_a_wrong_parameter_is_refused_when_the_dag_is_parsed(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(QarnotInvalidSpecError) as caught:
        watch(**arguments)
    assert caught.value.field == field


def test_watchers_of_the_same_files_have_the_same_watermark_and_no_secret() -> None:
    first, again = watch(prefix="in/"), watch(prefix="in/", poll_interval=9, max_items=5, existing=True)
    assert first.state_key == again.state_key
    others = [watch(), watch(prefix="in/", whitelist="x"), watch(prefix="in/", qarnot_conn_id="other")]
    assert len({first.state_key, *(other.state_key for other in others)}) == 4
    assert set(first.serialize()[1]) == {
        "qarnot_conn_id",
        "bucket",
        "prefix",
        "whitelist",
        "existing",
        "poll_interval",
        "allowed_lateness",
        "max_items",
    }
