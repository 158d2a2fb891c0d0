"""A triggerer runs for months: it keeps nothing of waits that are over."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import tracemalloc
from collections.abc import Iterator

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
from airflow_qarnot_pool.triggers.task import QarnotTaskTrigger
from airflow_qarnot_pool.waiting.conditions import TASK_ENDED
from tests.triggers.test_poller import state_of, submit, until

AT_ONCE, WARM_UP, ROUNDS = 50, 8, 12
#: Whose allocations count: those of the waits and their kwargs. Others' come and go with what else the machine does.
COUNTED = [tracemalloc.Filter(True, pattern) for pattern in ("*/airflow_qarnot_pool/*", __file__)]
#: Bytes for each wait that is over. One string of it that stays takes more.
MOST = 50


def triggers(uuids: list[str], numbers: Iterator[int]) -> list[QarnotTaskTrigger]:
    """Waits of task instances that have never been here before."""
    made = []
    for uuid in uuids:
        number = next(numbers)
        identity = TaskInstanceIdentity(
            namespace="test",
            dag_id=f"dag-{number}",
            run_id=f"manual__{number}",
            task_id="work",
            map_index=-1,
            run_started=f"2026-01-01T00:00:00.{number:06}+00:00",
            max_tries=0,
            try_number=1,
            retries=0,
        )
        deadline = f"2099-01-01T00:00:00.{number:06}+00:00"
        made.append(
            QarnotTaskTrigger(
                qarnot_conn_id="qarnot_default",
                uuid=uuid,
                condition=TASK_ENDED.to_kwargs(),
                poll_interval=0.1,
                deadline=deadline,
                identity=identity.to_kwargs(),
                resume_state={"decision": "created", "resubmitted": False, "deadline": deadline},
            )
        )
    return made


async def fire(trigger: QarnotTaskTrigger) -> None:
    events = [event async for event in trigger.run()]
    assert [event.payload["state"] for event in events] == ["Success"]


def test_memory_does_not_grow_with_the_waits_that_are_over(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest keeps what is logged.
    monkeypatch.setattr(logging.root.manager, "disable", logging.INFO)
    uuids = submit(client, pool, AT_ONCE, "true")
    (endless,) = submit(client, pool, 1)
    numbers = itertools.count()

    async def batch() -> None:
        await asyncio.gather(*map(fire, triggers(uuids, numbers)))

    async def memory() -> int:
        await until(lambda: len(asyncio.all_tasks()) <= 3)
        gc.collect()
        counted = tracemalloc.take_snapshot().filter_traces(COUNTED)
        return sum(one.size for one in counted.statistics("filename"))

    async def grown() -> int:
        await asyncio.gather(*(state_of(uuid, "Success") for uuid in uuids))
        # One that stays, so that the shared poll does, too.
        waiting = asyncio.create_task(state_of(endless, "Cancelled"))
        tracemalloc.start()
        try:
            # Until bounded caches are full.
            for _ in range(WARM_UP):
                await batch()
            before = await memory()
            for _ in range(ROUNDS):
                await batch()
            return await memory() - before
        finally:
            tracemalloc.stop()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    kept = asyncio.run(grown()) / ROUNDS / AT_ONCE
    assert kept < MOST, f"{kept:.0f} bytes for each wait"
