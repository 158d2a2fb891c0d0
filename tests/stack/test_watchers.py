"""Triggerers that watch a bucket are killed and frozen, and each file is reported once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tests.stack.world import World

ALONE = True
ASSET = "stack_inbox"
DEEDS = ("kill", "freeze", "freeze within its transaction", "kill")
EACH = 2600
FILES = EACH * len(DEEDS)


def test_ten_thousand_files_are_reported_once_over_kills_of_triggerers(world: World) -> None:
    airflow, database = world.airflow, world.database
    airflow.wait_dag("watched")
    world.wait(lambda: database.asset_state(ASSET), "the watcher to start")
    keys = [f"in/{number * 7919 % FILES:05}" for number in range(FILES)]

    def wait_reported(end: int) -> None:
        world.wait(lambda: database.reported_files(ASSET) >= end, "a triggerer to go on with the files")

    for begin, deed in zip(range(0, FILES, EACH), DEEDS, strict=True):
        holder = world.wait(lambda: database.watching_triggerer(ASSET), "a triggerer to watch")
        world.files.put(*keys[begin : begin + EACH])
        # In the midst of storing the events.
        wait_reported(begin + 1)
        if deed == "kill":
            airflow.signal(holder, signal.SIGKILL)
            airflow.restart(holder)
            wait_reported(begin + EACH)
            continue
        within = deed != "freeze"
        with _frozen(world, holder, within):
            wait_reported(begin + EACH)
        if within:
            # PostgreSQL has ended its transaction, so it ends as if that server had been restarted.
            airflow.wait_end_of(holder)
            airflow.restart(holder)
    reported = [file["key"] for payload in database.payloads(ASSET) for file in payload["files"]]
    assert sorted(reported) == sorted(keys)
    assert len(keys) > 10_000


@contextmanager
def _frozen(world: World, triggerer: str, within: bool) -> Iterator[None]:
    """Freeze a triggerer within, or not within, a transaction that stores an event."""

    def freeze() -> bool:
        world.airflow.signal(triggerer, signal.SIGSTOP)
        if world.database.is_asset_state_locked(ASSET) == within:
            return True
        world.airflow.signal(triggerer, signal.SIGCONT)
        return False

    try:
        world.wait(freeze, f"{triggerer} to be at that point", interval=0.01)
        yield
    finally:
        world.airflow.signal(triggerer, signal.SIGCONT)
