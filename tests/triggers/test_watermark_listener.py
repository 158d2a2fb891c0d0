"""Airflow stores the event of a watcher and its watermark in one transaction."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_qarnot_pool.triggers.bucket_watcher import QarnotBucketWatcher
from airflow_qarnot_pool.triggers.idle_pool_watcher import QarnotPoolIdleWatcher
from airflow_qarnot_pool.triggers.task_watcher import QarnotTaskWatcher
from airflow_qarnot_pool.triggers.watermark import Watermark
from airflow_qarnot_pool.version_compat import HAS_ASSET_STATE_STORE

pytestmark = [
    pytest.mark.usefixtures("airflow_db"),
    pytest.mark.skipif(not HAS_ASSET_STATE_STORE, reason="Airflow 3.3 has the first state store"),
]

KEY = "qarnot-files-0123"


def file(key: str) -> dict[str, Any]:
    return {"key": key, "size": 1, "etag": "e", "modified": datetime(2026, 1, 1, tzinfo=UTC).isoformat()}


def payload(*keys: str, floor: int = 5) -> dict[str, Any]:
    change = {"key": KEY, "floor": floor, "items": "files", "time": "modified"}
    return {"bucket": "inbox", "files": [file(key) for key in keys], "watermark": change}


class Watched:
    """Two assets that one trigger reports to. The first one has a stored watermark."""

    def __init__(self) -> None:
        from airflow.models.asset import AssetActive, AssetModel, AssetWatcherModel
        from airflow.models.asset_state_store import AssetStateStoreModel
        from airflow.models.trigger import Trigger
        from airflow.utils.session import create_session

        self.session = create_session
        with create_session() as session:
            trigger = Trigger("some.Watcher", {})
            assets = [AssetModel(name=f"inbox-{n}", uri=f"inbox-{n}", group="asset") for n in range(2)]
            session.add_all([trigger, *assets])
            session.flush()
            self.trigger_id, self.asset_ids = trigger.id, [asset.id for asset in assets]
            for asset in assets:
                session.add(AssetActive.for_asset(asset))
                session.add(AssetWatcherModel(name="w", asset_id=asset.id, trigger_id=trigger.id))
            value = json.dumps(Watermark().to_json())
            session.add(AssetStateStoreModel(asset_id=self.asset_ids[0], key=KEY, value=value))

    def fire(self, payload: Any) -> None:
        from airflow.models.trigger import Trigger
        from airflow.triggers.base import TriggerEvent

        Trigger.submit_event(trigger_id=self.trigger_id, event=TriggerEvent(payload))

    def events(self, asset: int = 0) -> list[Any]:
        from airflow.models.asset import AssetEvent
        from sqlalchemy import select

        with self.session() as session:
            found = (
                select(AssetEvent).where(AssetEvent.asset_id == self.asset_ids[asset]).order_by(AssetEvent.id)
            )
            return [event.extra["payload"] for event in session.scalars(found)]

    def keys(self, asset: int = 0) -> list[list[str]]:
        return [[file["key"] for file in event["files"]] for event in self.events(asset)]

    def mark(self, asset: int = 0) -> Any:
        from airflow.models.asset_state_store import AssetStateStoreModel

        with self.session() as session:
            state = session.get(AssetStateStoreModel, (self.asset_ids[asset], KEY))
            return None if state is None else json.loads(state.value)

    def delete(self) -> None:
        from airflow.models.asset import AssetEvent, AssetModel
        from airflow.models.trigger import Trigger
        from sqlalchemy import delete

        with self.session() as session:
            session.execute(delete(AssetEvent).where(AssetEvent.asset_id.in_(self.asset_ids)))
            for id in self.asset_ids:
                session.delete(session.get(AssetModel, id))
            session.delete(session.get(Trigger, self.trigger_id))


@pytest.fixture
def watched() -> Iterator[Watched]:
    watched = Watched()
    yield watched
    watched.delete()


def test_an_event_advances_the_watermark(watched: Watched) -> None:
    watched.fire(payload("a", "b"))
    watched.fire(payload("c", floor=7))
    assert watched.keys() == [["a", "b"], ["c"]]
    mark = Watermark().after([file(key) for key in "abc"], "modified", 7)
    assert watched.mark() == mark.to_json()


def test_what_was_reported_is_removed_from_the_event(watched: Watched) -> None:
    watched.fire(payload("a", "b"))
    watched.fire(payload("b", "c"))
    watched.fire(payload("a"))
    assert watched.keys() == [["a", "b"], ["c"], []]


def test_a_transaction_that_fails_stores_neither(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.assets.manager import AssetManager

    before = watched.mark()
    monkeypatch.setattr(AssetManager, "_queue_dagruns", classmethod(lambda cls, **kwargs: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        watched.fire(payload("a"))
    assert watched.events() == []
    assert watched.mark() == before
    monkeypatch.undo()
    watched.fire(payload("a"))
    assert watched.keys() == [["a"]]


def test_each_asset_of_a_watcher_gets_the_event(watched: Watched) -> None:
    """The second asset has joined since the trigger started, so its watermark is stored with the next start."""
    watched.fire(payload("a"))
    assert watched.keys(0) == watched.keys(1) == [["a"]]
    assert watched.mark(1) is None


@pytest.mark.parametrize(
    "other",
    [
        None,
        True,
        "text",
        {"files": []},
        {"watermark": 3},
        {"watermark": {"key": "theirs", "floor": 1}},
        {"watermark": {"key": KEY, "floor": "x", "items": "files", "time": "modified"}, "files": 3},
        {"watermark": {"key": KEY, "floor": 9}},
    ],
)
def test_events_of_others_and_strange_ones_are_stored_unchanged(watched: Watched, other: Any) -> None:
    before = watched.mark()
    watched.fire(other)
    assert watched.events() == [other]
    assert watched.mark() == before


def test_a_state_that_is_no_watermark_is_left_alone(watched: Watched) -> None:
    from airflow.models.asset_state_store import AssetStateStoreModel

    with watched.session() as session:
        session.get(AssetStateStoreModel, (watched.asset_ids[0], KEY)).value = '"mine"'
    watched.fire(payload("a"))
    assert watched.keys() == [["a"]]
    assert watched.mark() == "mine"


@pytest.mark.parametrize(
    "watcher",
    [
        QarnotBucketWatcher(bucket="inbox", whitelist=r"\.csv$", poll_interval=1),
        QarnotTaskWatcher(tag="nightly", allowed_lateness=timedelta(minutes=7)),
        QarnotPoolIdleWatcher(tag="team", idle_for=60.5),
    ],
    ids=lambda watcher: type(watcher).__name__,
)
def test_a_watcher_keeps_its_trigger_when_its_dag_is_parsed_again(watcher: Any) -> None:
    """Airflow compares the arguments in the DAG with those in its database. A new trigger would start anew."""
    from airflow.models.trigger import Trigger
    from airflow.serialization.encoders import encode_trigger
    from airflow.triggers.base import BaseEventTrigger

    encoded = encode_trigger(watcher)
    stored = Trigger(classpath=encoded["classpath"], kwargs=encoded["kwargs"])
    parsed = encode_trigger(type(watcher)(**watcher.serialize()[1]))
    assert BaseEventTrigger.hash(stored.classpath, stored.kwargs) == BaseEventTrigger.hash(**parsed)
