"""Jobs, in brief, and tasks that depend on each other (Qarnot API: qarnot-api.md 3.9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_qarnot_pool.local.model import Job, Task
from airflow_qarnot_pool.local.store import Store

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.world import World


class Jobs:
    def __init__(self, world: World) -> None:
        self._world = world
        self.store: Store[Job] = Store()

    def watch(self, task: Task, depends_on: list[tuple[str, frozenset[str]]]) -> None:
        """Hold a new task back until the tasks it depends on are over."""

    def dependencies(self, task: Task) -> dict[str, object] | None:
        """The `dependencies` field of a task."""
        return None

    def task_over(self, task: Task) -> None:
        """Release, or cancel, what waited for this task."""
