"""Processes that act as Airflow's workers and triggerers, cheap enough to kill by the hundred.

A child is forked from this process, so that Airflow is imported once. What it stores or says goes through a pipe
and arrives even when the child is killed right after: as in Airflow, where the API server has it then.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from asgiref.sync import SyncToAsync

from airflow_qarnot_pool.version_compat import TaskDeferred
from tests.harness import RUN_STARTED, FakeTI, again, context_of, first_event
from tests.readings import search_lag

#: Longest that any child of a test may take.
PATIENCE = 60.0
#: What Airflow gives a task between SIGTERM and SIGKILL.
KILL_GRACE = 5.0

Say = Callable[[dict[str, Any]], None]


@dataclass(eq=False)
class Child:
    """A forked process. ``said`` is what arrived from it so far, ``status`` how it ended (-9: SIGKILL)."""

    pid: int
    pipe: int
    said: list[dict[str, Any]] = field(default_factory=list)
    status: int | None = None
    _rest: bytes = b""

    def fileno(self) -> int:
        return self.pipe

    def read(self) -> list[dict[str, Any]]:
        """What is new from it; waits for something. Sets ``status`` once it is over."""
        data = os.read(self.pipe, 1 << 20)
        if not data:
            os.close(self.pipe)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            return []
        *lines, self._rest = (self._rest + data).split(b"\n")
        news = [json.loads(line) for line in lines]
        # Links come after the end of the slice, which is what the last of these tells.
        self.said += [one for one in news if one["kind"] != "link"]
        return news

    def wait(self, patience: float = PATIENCE) -> int:
        """Wait for its end; returns the exit status. One that hangs is killed, and fails the test."""
        ends = time.monotonic() + patience
        while self.status is None:
            if not select.select([self.pipe], [], [], max(0.0, ends - time.monotonic()))[0]:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"a child did not end within {patience:.0f} s; it said {self.said}")
            self.read()
        return self.status

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal this very process."""
        if self.status is None:
            os.kill(self.pid, number)

    def last(self, kind: str) -> dict[str, Any] | None:
        """The newest of what it said that is of this kind."""
        return next((one for one in reversed(self.said) if one["kind"] == kind), None)


def fork(work: Callable[[Say], None], log: Path | None = None) -> Child:
    """Run *work* in a child; it says what happens through its argument.

    :param log: file for its output; default: where ours goes.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid:
        os.close(theirs)
        return Child(pid, ours)
    status = 70
    # A full collection of garbage in a child would copy the pages of all imports, in a quarter of a second.
    gc.freeze()
    try:
        os.close(ours)
        if log is not None:
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(out, 1)
            os.dup2(out, 2)
            sys.stdout = sys.stderr = os.fdopen(out, "w", buffering=1)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # Threads do not survive a fork, and asgiref would wait for the one it has had.
        SyncToAsync.single_thread_executor = ThreadPoolExecutor(max_workers=1)

        def say(what: dict[str, Any]) -> None:
            os.write(theirs, json.dumps(what).encode() + b"\n")

        work(say)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class StoringTI(FakeTI):
    """A task instance whose XComs are stored outside of the process at once."""

    say: Say
    #: Called with the key before and after an XCom is stored.
    around: Callable[[str, str], None] = staticmethod(lambda key, when: None)

    def xcom_push(self, key: str, value: Any) -> None:
        self.around(key, "before")
        super().xcom_push(key, value)
        self.say({"kind": "xcom", "key": key, "value": value})
        self.around(key, "after")

    def end_slice(self, operator: Any) -> dict[str, str]:
        links = super().end_slice(operator)
        for key, value in links.items():
            self.say({"kind": "link", "key": key, "value": value})
        return links


def worker(
    make: Callable[[], Any],
    ti: StoringTI,
    resume: tuple[str, dict[str, Any]] | None = None,
    run_started: datetime = RUN_STARTED,
) -> Callable[[Say], None]:
    """One slice of a task as a worker runs it; says "success", "deferred" or "failed" at the end.

    :param resume: ``(next_method, next_kwargs)`` of a deferred task.
    """

    def work(say: Say) -> None:
        ti.say = say
        operator = make()
        # As airflow.sdk.execution_time.task_runner does: on_kill in the handler, and then the code goes on.
        signal.signal(signal.SIGTERM, lambda *_: operator.on_kill())
        context = context_of(operator, ti, run_started)
        say({"kind": "started"})
        try:
            begin = operator.execute if resume is None else partial(operator.resume_execution, *resume)
            value = begin(context)
        except TaskDeferred as deferred:
            path, kwargs = deferred.trigger.serialize()
            timeout = deferred.timeout.total_seconds() if deferred.timeout else None
            say(
                {
                    "kind": "deferred",
                    "trigger": [path, kwargs],
                    "method": deferred.method_name,
                    "kwargs": deferred.kwargs or {},
                    "timeout": timeout,
                }
            )
        except Exception as error:
            traceback.print_exc()
            say({"kind": "failed", "error": type(error).__name__, "message": str(error)[:2000]})
        else:
            say({"kind": "success", "value": value})
        # After the state, as Airflow does.
        ti.end_slice(operator)

    return work


def triggerer(trigger: tuple[str, dict[str, Any]]) -> Callable[[Say], None]:
    """A triggerer with one trigger; says "event" when it fires."""

    def work(say: Say) -> None:
        say({"kind": "started"})
        say({"kind": "event", "event": asyncio.run(first_event(again(Serialized(*trigger))))})

    return work


@dataclass
class Serialized:
    """A trigger as Airflow's database has it."""

    path: str
    kwargs: dict[str, Any]

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return self.path, self.kwargs


_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SHORTNAME = re.compile(r"[\w.]+-[0-9a-f]{16}-\d+$")


def shape(method: str, path: str) -> str:
    """A request without what differs from run to run: ``GET /pools/{u}``."""
    return f"{method} {_SHORTNAME.sub('{name}', _UUID.sub('{u}', path))}"


def eventually(
    what: Callable[[], Any],
    patience: float = PATIENCE,
    pause: float = 0.02,
    say: str = "",
    progress: Callable[[], Any] = lambda: None,
) -> Any:
    """Wait until *what* is true; its value. For what happens in another process and announces itself to nobody.

    :param pause: seconds between two looks. They grow with the wait, because looks take CPU time from others.
    :param progress: the patience begins anew whenever its value changes.
    """
    began = time.monotonic()
    ends, seen = began + patience, progress()
    while True:
        if value := what():
            return value
        if (now := progress()) != seen:
            ends, seen = time.monotonic() + patience, now
        if time.monotonic() > ends:
            raise AssertionError(f"{say or what} did not come true, and nothing moved for {patience:.0f} s")
        time.sleep(max(pause, min(0.5, (time.monotonic() - began) / 10)))


def made_for(resource: Any, run_id: str, **labels: str) -> list[Any]:
    """What was made for a DAG run, oldest first; *labels* without ``airflow.`` narrow it down."""
    time.sleep(search_lag())
    wanted = {"run_id": run_id, **labels}
    found: Iterable[Any] = resource.iterate(order_by="creationDate")
    return [one for one in found if all(one.labels.get(f"airflow.{k}") == v for k, v in wanted.items())]
