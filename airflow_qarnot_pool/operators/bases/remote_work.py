"""The remote object of a running try, for a kill that must end it within seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.errors import QarnotError
from airflow_qarnot_pool.waiting.polling import KillFlag

if TYPE_CHECKING:
    from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings
    from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
    from airflow_qarnot_pool.waiting.conditions import Kind

#: Seconds in which a kill must have ended everything, because Airflow gives 5.
KILL_TIMEOUT = 4.0
#: Seconds of them in which Qarnot must say whether a later try has the object.
TAKEN_OVER_TIMEOUT = 1.5


@dataclass
class RemoteWork:
    """The remote object of the running try, for ``on_kill``, which runs in a signal handler.

    The settings are kept because the interrupted code may be in the middle of a request to Airflow. A second one, for
    the connection, would wait for its lock.
    """

    kind: Kind
    settings: ConnectionSettings
    identity: TaskInstanceIdentity
    uuid: str | None = None
    killed: KillFlag = field(default_factory=KillFlag)
    #: Shortnames of objects that this try may have created, while their uuid is not known.
    unseen: set[str] = field(default_factory=set)
    #: Returns the identity of the warm-up on a shared pool. The warm-up ends when this try releases the pool.
    warm_up_on: Callable[[str], TaskInstanceIdentity] | None = None
    #: The warm-up on any other pool. It ends with the pool, because a service may keep it queued on a closed one.
    warm_up: str | None = None
    #: Whether a later try has the object. This process was suspended then, and has nothing to end any more.
    taken_over: bool = False
    #: Why the object could not be ended.
    end_error: QarnotError | None = None

    def end(self, *, hurried: bool) -> None:
        """End the object unless a later try has it. A shared pool ends only if no other DAG run needs it.

        Without a uuid all objects of the Airflow task end, those from before it was cleared, too.

        :param hurried: finish within :data:`KILL_TIMEOUT`.
        """
        from airflow_qarnot_pool.ownership.termination import end, end_lineage, end_lineages

        started = time.monotonic()
        if self.uuid is not None and self._is_taken_over(hurried):
            self.taken_over = True
            return
        remaining = KILL_TIMEOUT - (time.monotonic() - started)
        client = self.settings.client(**_limits(remaining) if hurried else {})
        if self.identity.shared:
            from airflow_qarnot_pool.ownership.shared_pool import release

            for pool in release(client, self.identity, opened_by=(self.identity.task_id,)):
                if self.warm_up_on is not None and not pool.closed:
                    end_lineage(client.tasks, self.warm_up_on(pool.uuid))
            return
        resource = client.pools if self.kind == "pool" else client.tasks
        if self.uuid is not None:
            end(resource, self.uuid, self._notes_later_try)
            if self.warm_up is not None and not self.taken_over:
                with suppress(QarnotError):  # it costs nothing there, and the reaper finds it
                    end(client.tasks, self.warm_up, self._notes_later_try)
        else:
            within = remaining if hurried else None
            self.taken_over = end_lineages(resource, self.identity, within=within) is None

    def _notes_later_try(self, remote: Any) -> bool:
        """Return whether a later try has adopted *remote* between two requests that end it."""
        from airflow_qarnot_pool.ownership.decisions import RemoteSnapshot

        self.taken_over = RemoteSnapshot.of(remote).is_later_than(self.identity)
        return self.taken_over

    def _is_taken_over(self, hurried: bool) -> bool:
        """Return whether a later try has the object; False if Qarnot does not say in time."""
        from airflow_qarnot_pool.ownership.claim import is_taken_over

        if self.uuid is None or self.identity.shared or self.identity.try_number > self.identity.max_tries:
            return False
        limits: dict[str, Any] = {"timeout": TAKEN_OVER_TIMEOUT, "deadline": TAKEN_OVER_TIMEOUT}
        client = self.settings.client(**{"retries": 0, **limits} if hurried else {})
        resource = client.pools if self.kind == "pool" else client.tasks
        try:
            return is_taken_over(resource, self.identity, self.uuid, within=TAKEN_OVER_TIMEOUT)
        except QarnotError:
            return False


def _limits(remaining: float) -> dict[str, Any]:
    """Return limits of a client that is done in *remaining* seconds, or in the shortest time that a client takes."""
    seconds = max(0.1, remaining)
    return {"retries": 3, "timeout": min(3.0, seconds), "deadline": seconds}
