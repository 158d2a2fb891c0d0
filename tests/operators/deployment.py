"""A small Airflow in one event loop: some workers, one triggerer, retries, and the states of its task instances."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest import mock

from airflow_qarnot_pool.version_compat import TaskDeferred
from tests.harness import FakeTI, again, context_of, first_event

STATES = "airflow.sdk.execution_time.task_runner.RuntimeTaskInstance.get_task_states"


class Airflow:
    """Runs task instances side by side, as a scheduler with *workers* slots and a triggerer does.

    :param workers: slices that run at a time.
    """

    def __init__(self, workers: int = 4) -> None:
        self.workers = workers
        #: The state of each task instance: dag_id, run_id, task_id, map_index.
        self.states: dict[tuple[str, str, str, int], str | None] = {}
        #: What each try that failed raised.
        self.errors: list[Exception] = []
        self.slices = 0

    def run(self, jobs: Sequence[tuple[Callable[[], Any], FakeTI]]) -> list[Any]:
        """Run every job to the end of its last try; returns its result, or what the last try raised."""
        logging.getLogger("airflow_qarnot_pool").setLevel(logging.WARNING)
        with self.answering():
            return asyncio.run(self._run(jobs))

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Answer questions for states, as Airflow does in workers and triggerers."""
        with mock.patch(STATES, self.get_task_states):
            yield

    def get_task_states(
        self,
        dag_id: str,
        map_index: int | None = None,
        task_ids: list[str] | None = None,
        run_ids: list[str] | None = None,
        **_: Any,
    ) -> dict[str, dict[str, str | None]]:
        """As Airflow's: by run, and by task id, with the map index after it if there is one."""
        found: dict[str, dict[str, str | None]] = {}
        for (dag, run, task, index), state in list(self.states.items()):
            wanted = dag == dag_id and (not task_ids or task in task_ids) and (not run_ids or run in run_ids)
            if wanted and map_index in (None, index):
                found.setdefault(run, {})[task if index < 0 else f"{task}_{index}"] = state
        return found

    def note(self, ti: FakeTI, state: str | None) -> None:
        """Give *ti* another state."""
        self.states[ti.dag_id, ti.run_id, ti.task_id, ti.map_index] = state

    async def _run(self, jobs: Sequence[tuple[Callable[[], Any], FakeTI]]) -> list[Any]:
        with ThreadPoolExecutor(self.workers) as self._threads:
            return list(await asyncio.gather(*(self._task(make, ti) for make, ti in jobs)))

    async def _task(self, make: Callable[[], Any], ti: FakeTI) -> Any:
        while True:
            ti.xcoms.clear()
            try:
                result = await self._try(make, ti)
            except Exception as error:
                self.errors.append(error)
                if ti.try_number > ti.max_tries:
                    self.note(ti, "failed")
                    return error
                self.note(ti, "up_for_retry")
                ti.try_number += 1
            else:
                self.note(ti, "success")
                return result

    async def _try(self, make: Callable[[], Any], ti: FakeTI) -> Any:
        loop = asyncio.get_running_loop()
        operator = make()
        context = context_of(operator, ti)
        self.note(ti, "queued")
        step: Callable[[], Any] = lambda: operator.execute(context)  # noqa: E731
        while True:
            try:
                return await loop.run_in_executor(self._threads, self._slice, ti, step)
            except TaskDeferred as deferred:
                self.note(ti, "deferred")
                event = await first_event(again(deferred.trigger))
                self.note(ti, "scheduled")
                step = self._resuming(make, context, deferred, event)

    def _slice(self, ti: FakeTI, step: Callable[[], Any]) -> Any:
        self.note(ti, "running")
        self.slices += 1
        return step()

    @staticmethod
    def _resuming(
        make: Callable[[], Any], context: Any, deferred: TaskDeferred, event: Any
    ) -> Callable[[], Any]:
        operator = make()
        kwargs = {**(deferred.kwargs or {}), "event": event}
        return lambda: operator.resume_execution(deferred.method_name, kwargs, {**context, "task": operator})
