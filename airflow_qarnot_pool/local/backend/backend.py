"""Compose the engines of the local Qarnot: one account on one machine."""

from __future__ import annotations

import os
from typing import Any

from airflow_qarnot_pool.local.backend.context import Context, Settings
from airflow_qarnot_pool.local.backend.jobs import Jobs
from airflow_qarnot_pool.local.backend.models import Job, Pool, Remote, Task
from airflow_qarnot_pool.local.backend.nodes import Nodes
from airflow_qarnot_pool.local.backend.persistence import Persistence
from airflow_qarnot_pool.local.backend.pools import Pools
from airflow_qarnot_pool.local.backend.store import Store
from airflow_qarnot_pool.local.backend.tasks import Tasks
from airflow_qarnot_pool.local.processes.runner import Runner
from airflow_qarnot_pool.local.processes.state import State
from airflow_qarnot_pool.local.processes.storage import Storage


class Backend(Context):
    """One account on one machine, with its pools, Qarnot tasks, jobs and nodes."""

    def __init__(self, settings: Settings, runner: Runner, storage: Storage, scratch: str) -> None:
        super().__init__(settings, runner, storage, scratch)
        self.pools = Pools(self)
        self.tasks = Tasks(self)
        self.jobs = Jobs(self)
        self.nodes = Nodes(self)
        self.stores: dict[type[Remote], tuple[str, Store[Any]]] = {
            Pool: ("pool", self.pools.store),
            Task: ("task", self.tasks.store),
            Job: ("job", self.jobs.store),
        }
        self.lag_searches(settings.search_lag)

    def keep(self, state: State) -> None:
        """Continue from a state directory, and write all further changes to it."""
        self.outputs = os.path.join(state.directory, "output")
        self.persistence = Persistence(self, state)
        self.persistence.restore()
        self.lag_searches(self.search_lag)

    def lag_searches(self, seconds: float) -> None:
        """Let searches and pages show a state that is up to *seconds* old. 0 ends the lag."""
        self.search_lag = seconds
        self.pools.store.lag(seconds, self.clock.read)
        self.tasks.store.lag(seconds, self.clock.read)
