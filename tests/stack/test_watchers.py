"""Triggerers that watch a bucket are killed and frozen, and each file is reported once."""

from __future__ import annotations

import signal

from tests.stack.world import World

ALONE = True
ASSET = "stack_inbox"
DEEDS = ("kill", "freeze", "kill")
EACH = 3400
FILES = EACH * len(DEEDS)


def test_ten_thousand_files_are_reported_once_over_kills_of_triggerers(world: World) -> None:
    airflow, database = world.airflow, world.database
    airflow.wait_dag("watched")
    world.wait(lambda: database.asset_state(ASSET), "the watcher to start")
    keys = [f"in/{number * 7919 % FILES:05}" for number in range(FILES)]
    for begin, deed in zip(range(0, FILES, EACH), DEEDS, strict=True):
        holder = world.wait(lambda: database.watching_triggerer(ASSET), "a triggerer to watch")
        world.files.put(*keys[begin : begin + EACH])
        # In the midst of storing the events.
        world.wait(lambda begin=begin: database.reported_files(ASSET) > begin, "the first events")
        if deed == "kill":
            airflow.signal(holder, signal.SIGKILL)
            airflow.restart(holder)
        else:
            airflow.signal(holder, signal.SIGSTOP)
        world.wait(
            lambda begin=begin: database.reported_files(ASSET) >= begin + EACH,
            "a triggerer to go on with them",
        )
        airflow.signal(holder, signal.SIGCONT)
    reported = [file["key"] for payload in database.payloads(ASSET) for file in payload["files"]]
    assert sorted(reported) == sorted(keys)
    assert len(keys) > 10_000
