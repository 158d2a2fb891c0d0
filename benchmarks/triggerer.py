"""Run Airflow's own ``TriggerRunner`` in a separate process, with a supervisor that only hands out triggers.

As a program it reads orders as JSON lines on standard input and responds to each with a line on standard output;
:class:`Triggerer` is the client. It reports CPU seconds, the lag of its event loop, memory, the triggers that fired
and when, and the rounds and requests of the shared polls.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import subprocess
import sys
import time
import tracemalloc
import uuid
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

#: Seconds between two probes of the lag.
PROBE = 0.01
ALONE, TRACED = "alone", "traced"


class Triggerer:
    """A triggerer process.

    :param alone: our triggers share no poll, so each polls for itself.
    :param traced: :meth:`memory` is that of Python's objects, as counted by tracemalloc since its first call.
    """

    def __init__(self, *, alone: bool = False, traced: bool = False) -> None:
        options = [name for name, chosen in ((ALONE, alone), (TRACED, traced)) if chosen]
        command = [sys.executable, "-m", "benchmarks.triggerer", *options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._ask(do="ready")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(30 if error is None else 1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _ask(self, **order: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the triggerer process ended; see its messages on standard error")
        return json.loads(line)

    def add(self, classpath: str, kwargs: Sequence[dict[str, Any]]) -> None:
        """Start triggers, and return when the runner has created all of them. Their ids count up from 1."""
        for start in range(0, len(kwargs), 200):
            self._ask(do="add", classpath=classpath, kwargs=kwargs[start : start + 200])

    def memory(self) -> int:
        """Bytes that the process has allocated."""
        return int(self._ask(do="memory")["memory"])

    def settle(self, seconds: float = 300.0) -> None:
        """Return when every waiting trigger of ours has been polled once and is old enough to fire."""
        if not self._ask(do="settle", seconds=seconds)["settled"]:
            raise RuntimeError("Not every trigger was polled in time")

    def window(self, seconds: float) -> dict[str, Any]:
        """Let the triggers run for *seconds*, and return measurements.

        ``cpu`` seconds; ``lag`` [s] of every probe; ``blocked`` [s], the CPU time of the event loop's thread between
        two probes; ``fired`` (trigger id to epoch seconds, since the start); ``rounds`` of the polls of Qarnot tasks,
        with the ``requests`` of the process from the end of a round to that of another, and how many of them were
        queries for ``changes``.
        """
        window: dict[str, Any] = self._ask(do="window", seconds=seconds)
        return window


# --- the process


def _main() -> None:
    _log_as_in_production()
    if ALONE in sys.argv[1:]:
        _share_nothing()
    asyncio.run(_serve())


def _log_as_in_production() -> None:
    """Log JSON lines to a file descriptor, as in production, here to the null device."""
    from airflow.sdk.log import configure_logging, reset_logging

    reset_logging()
    nowhere = open(os.devnull, "wb", buffering=0)  # noqa: SIM115
    configure_logging(json_output=True, output=nowhere, sending_to_supervisor=True)


def _share_nothing() -> None:
    """Give every waiter a separate poll."""
    from airflow_qarnot_pool.triggers import base
    from airflow_qarnot_pool.triggers.poller import subscribe

    def alone(*args: Any, **options: Any) -> Any:
        return subscribe(*args, scope=uuid.uuid4().hex, **options)

    base.subscribe = alone  # type: ignore[assignment]


class _Fired(deque):  # type: ignore[type-arg]
    """The runner's queue of events, which notes when each was put there."""

    def __init__(self) -> None:
        super().__init__()
        self.times: dict[int, float] = {}

    def append(self, entry: Any) -> None:
        self.times[entry.trigger_id] = time.time()
        super().append(entry)


def _runner() -> Any:
    from airflow.jobs.triggerer_job_runner import TriggerRunner, messages
    from airflow.sdk.execution_time.comms import _RequestFrame

    class Comms:
        """The supervisor's end: messages are encoded as for a real one, and answered with new triggers."""

        def __init__(self) -> None:
            self._reader_task = asyncio.create_task(asyncio.Event().wait())
            self.waiting: list[Any] = []
            #: Tracebacks of triggers that have failed.
            self.failures: list[str] = []

        async def asend(self, message: Any) -> Any:
            _RequestFrame(id=0, body=message.model_dump()).as_bytes()
            self.failures += ["".join(lines or ()) for _, lines in getattr(message, "failures", None) or ()]
            # As many at a time as a triggerer's supervisor takes from the database.
            some, self.waiting = self.waiting[:50], self.waiting[50:]
            return messages.TriggerStateSync(to_create=some, to_cancel=set())

    class Runner(TriggerRunner):
        async def init_comms(self) -> None:
            self.comms_decoder = Comms()  # type: ignore[assignment]

    runner = Runner()
    runner.events = _Fired()
    return runner


async def _probe(lags: list[float], blocked: list[float]) -> None:
    """Sleep, and note how late it wakes up, and how much CPU time the loop's thread took meanwhile."""
    loop = asyncio.get_running_loop()
    while True:
        due, spent = loop.time() + PROBE, time.thread_time()
        await asyncio.sleep(PROBE)
        lags.append(max(0.0, loop.time() - due))
        blocked.append(time.thread_time() - spent)


def _anonymous() -> int:
    """Return the allocated bytes: anonymous pages, resident or swapped out; 0 on other systems than Linux.

    Pages of files (libraries) do not depend on the number of waiters. Whether other processes share them changes
    whenever such a process starts or ends.
    """
    try:
        rollup = Path("/proc/self/smaps_rollup").read_text()
    except OSError:
        return 0
    found = dict(line.split(":", 1) for line in rollup.splitlines()[1:])
    return 1024 * sum(int(found[name].split()[0]) for name in ("Anonymous", "Swap"))


class _Counted:
    """Counts of this process, and ``marked``, those as of the end of the last round of a poll of Qarnot tasks."""

    def __init__(self) -> None:
        self.rounds = 0
        self.changes = 0
        #: Requests by transport. Each is used by one thread at a time.
        self.sent: Counter[int] = Counter()
        self.marked: Counter[str] = Counter()

    def mark_round(self) -> None:
        """Mark the end of a round."""
        self.rounds += 1
        requests = sum(list(self.sent.values()))
        self.marked = Counter(rounds=self.rounds, requests=requests, changes=self.changes)


async def _serve() -> None:
    import psutil

    from airflow_qarnot_pool.api.transport import Transport
    from airflow_qarnot_pool.triggers import age, poller

    counted = _Counted()
    exchange, poll_changes, one_round = Transport._exchange, poller.Poller._poll_changes, poller.Poller._round

    def counting(self: Transport, call: Any) -> Any:
        counted.sent[id(self)] += 1
        return exchange(self, call)

    async def asking(self: poller.Poller) -> bool:
        assert self._client is not None
        own = id(self._client.transport)
        before = counted.sent[own]
        try:
            return await poll_changes(self)
        finally:
            # Triggers also poll the pools of their tasks, ten times less often.
            if self.kind == "task":
                counted.changes += counted.sent[own] - before

    async def marking(self: poller.Poller) -> None:
        try:
            await one_round(self)
        finally:
            if self.kind == "task":
                counted.mark_round()

    Transport._exchange = counting  # type: ignore[method-assign]
    poller.Poller._poll_changes = asking  # type: ignore[method-assign]
    poller.Poller._round = marking  # type: ignore[method-assign]
    runner, me = _runner(), psutil.Process()
    running = asyncio.create_task(runner.arun())
    lags: list[float] = []
    blocked: list[float] = []
    probe = asyncio.create_task(_probe(lags, blocked))
    made = 0
    last_added = 0.0
    loop = asyncio.get_running_loop()

    def memory() -> int:
        gc.collect()
        if TRACED in sys.argv[1:]:
            if not tracemalloc.is_tracing():
                tracemalloc.start()
            return tracemalloc.get_traced_memory()[0]
        return _anonymous() or int(me.memory_full_info().uss)

    def task_pollers() -> list[poller.Poller]:
        return [shared for shared in poller.pollers() if shared.kind == "task"]

    def count_polled() -> int:
        return sum(bool(entry.last) for shared in task_pollers() for entry in shared.subscriptions.values())

    async def until(condition: Callable[[], bool]) -> None:
        while not condition():
            if runner.comms_decoder.failures:
                raise RuntimeError(f"A trigger failed:\n{runner.comms_decoder.failures[0]}")
            await asyncio.sleep(0.05)

    async def obey(order: dict[str, Any]) -> dict[str, Any]:
        nonlocal made, last_added
        if order["do"] == "ready":
            while not hasattr(runner, "comms_decoder"):
                await asyncio.sleep(0.01)
            return {}
        if order["do"] == "memory":
            return {"memory": memory()}
        if order["do"] == "add":
            workloads = [
                _workload(made + n + 1, order["classpath"], one) for n, one in enumerate(order["kwargs"])
            ]
            made += len(workloads)
            # The first 50 the usual way; the rest would come at 50 per second.
            runner.comms_decoder.waiting += workloads[:50]
            runner.to_create.extend(workloads[50:])
            await until(lambda: len(runner.triggers) + len(runner.events.times) >= made)
            last_added = loop.time()
            return {}
        if order["do"] == "settle":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(order["seconds"]):
                    await until(lambda: count_polled() >= made)
                    await asyncio.sleep(last_added + age.MIN_AGE - loop.time())
                    return {"settled": True}
            return {"settled": False}
        lags.clear()
        blocked.clear()
        before, marked = me.cpu_times(), counted.marked
        begun = time.monotonic()
        await asyncio.sleep(order["seconds"])
        # A machine under load may have had no time for a round.
        await until(lambda: not task_pollers() or counted.marked["rounds"] > marked["rounds"])
        after, seconds = me.cpu_times(), time.monotonic() - begun
        return {
            "seconds": seconds,
            "cpu": after.user + after.system - before.user - before.system,
            "lag": list(lags),
            "blocked": list(blocked),
            "fired": dict(runner.events.times),
            **{name: counted.marked[name] - marked[name] for name in ("rounds", "requests", "changes")},
        }

    reader = asyncio.StreamReader(limit=1 << 28)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        print(json.dumps(await obey(json.loads(line))), flush=True)
    probe.cancel()
    running.cancel()
    for details in list(runner.triggers.values()):
        details["task"].cancel()
    # Ending thousands of triggers one by one would take long.
    os._exit(0)


def _workload(number: int, classpath: str, kwargs: dict[str, Any]) -> Any:
    from airflow.executors.workloads.task import TaskInstanceDTO
    from airflow.executors.workloads.trigger import RunTrigger
    from airflow.models.trigger import Trigger

    instance = TaskInstanceDTO(
        id=uuid.uuid4(),
        dag_version_id=uuid.uuid4(),
        dag_id="benchmark",
        run_id="scheduled__2026-01-01T00:00:00+00:00",
        task_id="work",
        map_index=number,
        try_number=1,
        pool_slots=1,
        priority_weight=1,
    )
    return RunTrigger(
        id=number, classpath=classpath, encrypted_kwargs=Trigger.encrypt_kwargs(kwargs), ti=instance
    )


if __name__ == "__main__":
    _main()
