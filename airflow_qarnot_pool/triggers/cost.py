"""One watch for all waiters over what their pool, and their DAG run, may cost.

A round asks once for each watched pool, however many triggers wait on it (and for a run's limit once for each of the
run's pools). What reaches its limit is closed here and now: Airflow's workers may all be busy.
"""

from __future__ import annotations

import asyncio
import json
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool import metrics
from airflow_qarnot_pool.api.errors import QarnotProtocolError, QarnotRefusedError
from airflow_qarnot_pool.budget import Level, Verdict, Watched, close_all, judge, spending_of
from airflow_qarnot_pool.triggers.poller import POLLERS, Poller, Topic, watch

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)


class CostPoller(Poller):
    """The shared watch of one connection. Its topics are :class:`Watched` objects as JSON."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._settled: dict[str, float] = {}
        self._told_unknown = False
        self._levels: dict[str, Level] = {}

    async def _round(self) -> None:
        self.rounds += 1
        await self._look(list(self.topics.values()))

    async def _look(self, topics: list[Topic]) -> None:
        for topic in topics:
            watched = Watched.from_kwargs(json.loads(topic.key))
            assert self._client is not None
            try:
                spent = await self._ask(partial(spending_of, self._client, watched, self._settled))
            except (QarnotRefusedError, QarnotProtocolError) as error:
                if not self._told_unknown:
                    log.error(
                        "What %s %s costs cannot be found out, so its limit is not watched: %s",
                        watched.kind,
                        watched.uuid,
                        error,
                    )
                self._told_unknown = True
                continue
            verdict = judge(watched, spent)
            if verdict.level > Level.FINE:
                # The waiters first: a Qarnot task that ends with its pool must not look cancelled by a stranger.
                for waiter in topic.waiters:
                    waiter.tell(verdict)  # type: ignore[arg-type]
            if verdict.level > self._levels.get(topic.key, Level.FINE):
                name = "exceeded" if verdict.level is Level.OVER else "warnings"
                metrics.incr(f"budget.{name}", kind=watched.kind, dag_id=watched.dag_id)
            self._levels[topic.key] = verdict.level
            topic.looked_up()
            if verdict.level is Level.OVER:
                log.error("%s", verdict.message)
                # Shielded, as those who were told leave now, and the last of them stops this poller.
                client = self._client.limited(retries=3, deadline=60.0)
                await asyncio.shield(
                    self.loop.run_in_executor(self._thread, partial(close_all, client, watched, verdict))
                )


POLLERS["cost"] = CostPoller


async def over_limit(conn_id: str, watched: Watched, interval: float, warn: Callable[[str], None]) -> Verdict:
    """Return when a limit is reached, and what reached it was told to end; *warn* is called once before."""
    key = json.dumps(watched.to_kwargs(), sort_keys=True)
    warned = False
    async with watch(conn_id, "cost", key, interval=interval) as waiter:
        while True:
            verdict: Verdict = await waiter.next(None)  # type: ignore[assignment]
            if verdict.level is Level.OVER:
                return verdict
            if not warned:
                warned = True
                warn(verdict.message)
