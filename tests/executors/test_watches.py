"""Watches of Qarnot tasks by one poller, which ends when there are none."""

from __future__ import annotations

import asyncio

from airflow_qarnot_pool.executors.watches import Watches


def test_a_watch_that_begins_as_the_poller_ends_has_another_poller() -> None:
    async def story() -> None:
        loop, watches = asyncio.get_running_loop(), Watches("qarnot_default")
        first = watches.add("uuid-1", 60.0, print)
        ending = watches._poller
        watches.remove(first)
        second = loop.create_future()
        # The next step of the loop after the one that ends the poller.
        loop.call_soon(lambda: second.set_result(watches.add("uuid-2", 60.0, print)))
        watch = await second
        assert watches._poller is not ending
        watches.remove(watch)
        await asyncio.sleep(0)

    asyncio.run(story())
