"""A local Qarnot with many Qarnot tasks that wait, and a way to end one per cent of them with one request."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.ownership.claim import with_identity
from airflow_qarnot_pool.ownership.identity import FORMAT_VERSION, TaskInstanceIdentity
from airflow_qarnot_pool.waiting.conditions import TASK_ENDED
from benchmarks import environment

#: Seconds until a node is up, which no benchmark lives to see.
NEVER = 1e7
GROUPS = 100
CHUNK = 500


class Backlog:
    """*count* unfinished Qarnot tasks of as many Airflow tasks, spread evenly over up to *groups* pools."""

    def __init__(self, qarnot: LocalQarnot, client: QarnotClient, count: int, groups: int = GROUPS) -> None:
        self.qarnot, self.client = qarnot, client
        qarnot.set_account(maxPool=None, maxRunningPool=None, maxInstances=None)
        pools = [
            client.pools.create(PoolSpec(name=f"group {n}", instance_count=1))
            for n in range(min(groups, count))
        ]
        self.identities = [self._identity(n) for n in range(count)]
        specs = [
            with_identity(
                TaskSpec(name=f"work {n}", pool=pools[n % len(pools)], command="true"),
                identity,
                1,
                "benchmark",
                {},
            )
            for n, identity in enumerate(self.identities)
        ]
        self.uuids: list[str] = []
        for start in range(0, count, CHUNK):
            self.uuids += [str(item.uuid) for item in client.tasks.create_many(specs[start : start + CHUNK])]
        self._left = list(pools)
        self._groups = {pool: self.uuids[n :: len(pools)] for n, pool in enumerate(pools)}

    @staticmethod
    def _identity(number: int) -> TaskInstanceIdentity:
        return TaskInstanceIdentity(
            namespace=environment.NAMESPACE,
            dag_id="benchmark",
            run_id="scheduled__2026-01-01T00:00:00+00:00",
            task_id="work",
            map_index=number,
            run_started="2026-01-01T00:00:00+00:00",
            max_tries=0,
            try_number=1,
            retries=0,
        )

    def trigger_kwargs(self, interval: float) -> list[dict[str, Any]]:
        """Return the kwargs of a deferred ``QarnotRunTaskOperator``'s trigger, for each of the tasks."""
        return [
            {
                "qarnot_conn_id": environment.CONNECTION,
                "uuid": uuid,
                "condition": TASK_ENDED.to_kwargs(),
                "poll_interval": interval,
                # Deadlines differ between Airflow tasks.
                "deadline": (deadline := f"2099-01-01T00:00:00.{identity.map_index:06}+00:00"),
                "identity": identity.to_kwargs(),
                "cancel_on_kill": True,
                "resume_state": {
                    "decision": "created",
                    "resubmitted": False,
                    "deadline": deadline,
                },
                "pools": [pool],
                "version": FORMAT_VERSION,
            }
            for uuid, identity, pool in zip(
                self.uuids, self.identities, itertools.cycle(self._groups), strict=False
            )
        ]

    def end_some(self) -> list[str]:
        """Cancel the tasks of one pool by closing it. Return their uuids, which are none if no pool remains."""
        if not self._left:
            return []
        pool = self._left.pop()
        self.client.pools.close(pool)
        return self._groups[pool]

    def requests(self) -> list[dict[str, Any]]:
        """Return the requests of others since the log was cleared."""
        return [
            one
            for one in self.qarnot.requests()
            if not (one["path"].endswith("/close") or one["path"] == "/settings")
        ]


@contextmanager
def backlog(count: int, *, groups: int = GROUPS, connect: bool = True) -> Iterator[Backlog]:
    """Start a local Qarnot with *count* waiting tasks, in up to *groups* pools.

    :param connect: make it the Airflow connection ``qarnot_default``.
    """
    with LocalQarnot(boot_seconds=NEVER, close_seconds=0.1) as qarnot:
        if connect:
            environment.connect_qarnot(qarnot)
        with QarnotClient(qarnot.url, qarnot.token) as client:
            made = Backlog(qarnot, client, count, groups)
            qarnot.clear_requests()
            yield made
