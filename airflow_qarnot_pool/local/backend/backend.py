"""Compose the engines of the local Qarnot: one account on one machine."""

from __future__ import annotations

from airflow_qarnot_pool.local.backend.context import Context, Settings
from airflow_qarnot_pool.local.backend.jobs import Jobs
from airflow_qarnot_pool.local.backend.nodes import Nodes
from airflow_qarnot_pool.local.backend.pools import Pools
from airflow_qarnot_pool.local.backend.tasks import Tasks
from airflow_qarnot_pool.local.processes.runner import Runner
from airflow_qarnot_pool.local.processes.storage import Storage


class Backend(Context):
    """One account on one machine, with its pools, Qarnot tasks, jobs and nodes."""

    def __init__(self, settings: Settings, runner: Runner, storage: Storage, scratch: str) -> None:
        super().__init__(settings, runner, storage, scratch)
        self.pools = Pools(self)
        self.tasks = Tasks(self)
        self.jobs = Jobs(self)
        self.nodes = Nodes(self)
        self.lag_searches(settings.search_lag)

    def lag_searches(self, seconds: float) -> None:
        """Let searches and pages show a state that is up to *seconds* old. 0 ends the lag."""
        self.search_lag = seconds
        self.pools.store.lag(seconds, self.clock.read)
        self.tasks.store.lag(seconds, self.clock.read)
