"""A kill of the task process after it has given its wait to Airflow: only Airflow knows whether that goes on.

An overloaded api-server can record a deferral and answer too late. The worker then hears that its task should not run
any more and ends the process, just as if somebody had ended the task.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
from airflow_qarnot_pool.ownership.liveness import task_instance_state


class KillAfterDeferral:
    """The wait of an Airflow task that was handed over to a trigger.

    :param goes_on: whether a state of the Airflow task means that the trigger waits, or has waited.
    :param end: ends what it waits for.
    """

    def __init__(
        self,
        identity: TaskInstanceIdentity,
        goes_on: Callable[[str | None], bool],
        end: Callable[[], None],
        log: Any,
    ) -> None:
        self._identity, self._goes_on, self._end, self._log = identity, goes_on, end, log
        self._asker: threading.Thread | None = None

    def settle(self, seconds: float) -> None:
        """End what nobody waits for any more. For signal handlers; takes at most *seconds*.

        The question goes to Airflow through the one channel of this process. Where the interrupted code is itself
        in the middle of one, that must have its answer first: then this returns, and goes on right after it, before
        the process can come to its end.
        """
        if self._asker is None:
            self._asker = threading.Thread(target=self._ask, name="qarnot-handed-over", daemon=True)
            self._asker.start()
        asker = self._asker
        question = _question(sys._getframe())
        if question is None:
            asker.join(seconds)
        else:
            _after(question, lambda: asker.join(seconds))

    def _ask(self) -> None:
        try:
            state = task_instance_state(self._identity)
        except Exception as error:
            self._log.warning(
                "The process was ended after the wait was handed over, and Airflow does not say whether that goes "
                "on, so nothing is ended on Qarnot; the trigger, a next try, or the reaper does if need be (%s: %s)",
                type(error).__name__,
                error,
            )
            return
        if self._goes_on(state):
            self._log.info(
                "The process was ended, but its Airflow task is %s: nothing is ended on Qarnot", state
            )
        else:
            self._end()


def _question(frame: FrameType | None) -> FrameType | None:
    """The call by which the code under *frame* asks Airflow something; None where it does not."""
    found = None
    while frame is not None:
        if frame.f_code.co_filename.replace("\\", "/").endswith("execution_time/comms.py"):
            found = frame
        frame = frame.f_back
    return found


def _after(call: FrameType, do: Callable[[], None]) -> None:
    """Run *do*, in this thread, when *call*, which is under way in it, returns."""
    traced = sys.gettrace()

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "return":
            sys.settrace(traced)
            do()
            return None
        return trace

    call.f_trace = trace
    call.f_trace_lines = False
    if traced is None:
        sys.settrace(lambda *_: None)
