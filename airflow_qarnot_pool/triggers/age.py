"""Keep a trigger from firing so soon that Airflow's scheduler fails its task.

A task that defers ends its process, and the executor reports that end to the scheduler. If the trigger fires first,
the scheduler may queue the task again before it has read the report. It then takes the report for the end of the
second process, which has not started: "finished with state success, but the task instance's state attribute is
queued". It fails the task, or retries it. No Airflow up to 3.3.2 prevents that once the task is queued.

A trigger cannot learn when the report has been read. The report has to travel from the worker through the executor,
and each loop of the scheduler reads the reports that have come. So a trigger fires only when it has run for
:data:`MIN_AGE`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow.triggers.base import BaseTrigger

#: Minimum seconds between the start of a trigger and its event, because the process that deferred takes time to end and
#: a busy scheduler takes time for each of its loops. It does not exceed the default poll interval, so most waits are no
#: longer for it.
MIN_AGE = 5.0


class TriggerAge:
    """The age of a trigger since its start in this process, which never exceeds the time since its task deferred."""

    __slots__ = ("_due",)

    def __init__(self, trigger: BaseTrigger) -> None:
        # Without a scheduler, as in dag.test(), a trigger has no task instance.
        scheduled = getattr(trigger, "task_instance", None) is not None
        self._due = asyncio.get_running_loop().time() + (MIN_AGE if scheduled else 0.0)

    @property
    def missing(self) -> float:
        """Return the seconds until the trigger may fire."""
        return max(0.0, self._due - asyncio.get_running_loop().time())

    async def reached(self) -> None:
        """Wait until the trigger may fire."""
        if seconds := self.missing:
            await asyncio.sleep(seconds)
