"""Handle a kill of the task process after it has deferred, when only Airflow knows whether the wait goes on.

An overloaded api-server can record a deferral and answer too late. The supervisor then ends the process, just as it
does if a user ends the task.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
from airflow_qarnot_pool.ownership.liveness import task_instance_state
from airflow_qarnot_pool.version_compat import is_supervisor_channel_free

_KEPT = (
    "The process was killed after it deferred, and Airflow does not confirm whether the wait goes on (%s). Nothing is "
    "ended on Qarnot. The trigger, the next try, the teardown or the reaper ends the object, if need be"
)


class KillAfterDeferral:
    """Decide whether a kill of a process that has deferred ends the remote object.

    :param is_wanted: whether a state of the Airflow task means that the trigger waits, or has waited.
    :param end: ends the remote object.
    """

    def __init__(
        self,
        identity: TaskInstanceIdentity,
        is_wanted: Callable[[str | None], bool],
        end: Callable[[], None],
        log: Any,
    ) -> None:
        self._identity, self._is_wanted, self._end, self._log = identity, is_wanted, end, log
        self._thread: threading.Thread | None = None

    def resolve(self, seconds: float) -> None:
        """End the remote object if no wait needs it any more. For signal handlers; takes at most *seconds*.

        The interrupted code may itself wait for a response from Airflow, usually the one to the deferral. No second
        request can be sent then, and nothing is ended.
        """
        if self._thread is None:
            if not is_supervisor_channel_free():
                self._log.warning(_KEPT, "this process cannot send it a request now")
                return
            self._thread = threading.Thread(target=self._ask, name="qarnot-kill-after-deferral", daemon=True)
            self._thread.start()
        self._thread.join(seconds)

    def _ask(self) -> None:
        try:
            state = task_instance_state(self._identity)
        except Exception as error:
            self._log.warning(_KEPT, f"{type(error).__name__}: {error}")
            return
        if self._is_wanted(state):
            self._log.info(
                "The process was killed, but its Airflow task is %s. Nothing is ended on Qarnot", state
            )
        else:
            self._end()
