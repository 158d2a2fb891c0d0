"""An Airflow whose tasks run on a local Qarnot, and the account of what became of them."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from airflow_qarnot_pool.api import filters, states
from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.models import Task
from airflow_qarnot_pool.get_provider_info import get_provider_info
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.ownership.identity import namespace_tag
from tests.stack import moments
from tests.stack.database import Database
from tests.stack.postgres import Postgres
from tools.airflow_stack import AirflowStack, Endpoint

NAMESPACE = "executor"
DAGS = Path(__file__).parent / "executor_dags"
(EXECUTOR,) = get_provider_info()["executors"]
SLOTS = 6
SETTINGS = {
    "CORE__EXECUTOR": f"LocalExecutor,QarnotExecutor:{EXECUTOR}",
    "CORE__PARALLELISM": "40",
    "SCHEDULER__USE_JOB_SCHEDULE": "False",
    # On a busy machine a scheduler that lives must not look like a dead one: then others adopt its tasks for ever.
    "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "60",
    "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "2",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
    "SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "3",
    "QARNOT__POLL_INTERVAL": "1",
    "QARNOT_EXECUTOR__SLOTS": str(SLOTS),
    "QARNOT_EXECUTOR__PARALLELISM": "20",
    "QARNOT_EXECUTOR__KEEP_WARM": "600",
    "QARNOT_EXECUTOR__PYTHON": sys.executable,
    "QARNOT_EXECUTOR__BOOT_SECONDS": "1",
}


class Account(NamedTuple):
    """What became of the tasks of some runs. All should be 0."""

    twice: int
    lost: int
    stuck: int
    left_on: int

    def __add__(self, other: Any) -> Account:
        return Account(*map(sum, zip(self, other, strict=True)))


class Deployment:
    """One Airflow with PostgreSQL, and its local Qarnot."""

    def __init__(self, airflow: AirflowStack, qarnot: LocalQarnot, postgres: Postgres, folder: Path) -> None:
        self.airflow, self.qarnot, self.postgres, self.folder = airflow, qarnot, postgres, folder
        self.database = Database(postgres.url)
        self.client = QarnotClient(qarnot.url, qarnot.token)
        self.moments = folder / "moments"

    @classmethod
    @contextmanager
    def started(cls, folder: Path, schedulers: int = 1, **env: str) -> Iterator[Deployment]:
        """Start everything, and stop it at the end."""
        with ExitStack() as ends:
            # An abort that is over at once would hide a next attempt that does not wait for its end.
            qarnot = ends.enter_context(LocalQarnot(boot_seconds=0.2, close_seconds=0.2, cancel_seconds=3))
            postgres = ends.enter_context(Postgres())
            home = folder / "airflow"
            (folder / "moments").mkdir()
            node = {
                "AIRFLOW_HOME": str(folder / "node"),
                "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
                "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
                # In place of remote logging.
                "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "logs"),
                "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "300",
                # With the default of 5, a task may give up after an outage of 4 s.
                "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "12",
                "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
                "NO_PROXY": "127.0.0.1,localhost",
            }
            settings = {f"AIRFLOW__{name}": value for name, value in {**SETTINGS, **env}.items()}
            airflow = AirflowStack(
                home,
                DAGS,
                database=postgres.url,
                schedulers=schedulers,
                qarnot=Endpoint(qarnot.url, qarnot.token, qarnot.storage_url),
                namespace=NAMESPACE,
                supervised=True,
                preload=("tests.stack.moments",),
                env={
                    **settings,
                    "AIRFLOW__QARNOT_EXECUTOR__ENVIRONMENT": json.dumps(node),
                    moments.FOLDER: str(folder / "moments"),
                },
            )
            home.mkdir()
            ends.enter_context(airflow)
            airflow.wait_dag("counted")
            yield cls(airflow, qarnot, postgres, folder)

    # --- runs

    def start(self, dag_id: str, run_id: str, **conf: Any) -> None:
        """Start a run of a DAG of ``executor_dags``."""
        self.airflow.trigger(dag_id, {"notes": str(self.notes_of(run_id)), **conf}, run_id)

    def notes_of(self, run_id: str) -> Path:
        return self.folder / f"notes-{run_id}"

    def notes(self, run_id: str) -> list[str]:
        file = self.notes_of(run_id)
        return file.read_text().splitlines() if file.exists() else []

    def noted(self, run_id: str, word: str) -> Counter[str]:
        """How often each task instance has noted *word*."""
        return Counter(name for name, _ in self.noted_tries(run_id, word).elements())

    def noted_tries(self, run_id: str, word: str) -> Counter[tuple[str, int]]:
        """How often each try of each task instance has noted *word*."""
        lines = (line.split() for line in self.notes(run_id))
        return Counter(
            (f"{task}[{index}]", int(number)) for _, task, index, what, number, _ in lines if what == word
        )

    def wait_end(self, dag_id: str, run_id: str, timeout: float = 240.0) -> str:
        """Return the state in which a run has ended."""
        return str(
            self.airflow.wait_for(
                lambda: self._end_state(dag_id, run_id),
                timeout=timeout,
                what=f"the end of {dag_id} {run_id}",
                progress=self.database.progress,
            )
        )

    def wait_adopted(self, run_id: str, before: int) -> None:
        """Wait until no task of a run belongs to a dead scheduler, *before* having been the number of schedulers."""

        def adopted() -> bool:
            self.database.bury_schedulers()
            return self.database.schedulers() > before and not self.database.orphans(run_id)

        self.airflow.wait_for(adopted, what=f"the adoption of the tasks of {run_id}")

    def _end_state(self, dag_id: str, run_id: str) -> str | None:
        self.database.bury_schedulers()
        return self.database.end_state(dag_id, run_id)

    def states(self, dag_id: str, run_id: str) -> dict[str, str]:
        return {
            f"{one['task_id']}[{one['map_index']}]": str(one["state"])
            for one in self.database.instances(dag_id, run_id)
        }

    # --- mishaps

    def restart_postgres(self, seconds_away: float) -> None:
        """Take PostgreSQL away, as a crash does."""
        self.postgres.restart(seconds_away)
        self.database = Database(self.postgres.url)

    def restart_api_server(self, seconds_away: float) -> None:
        """Take the api-server away, as a crash does."""
        self.airflow.signal("api-server", signal.SIGKILL)
        self._pass(seconds_away)
        self.airflow.restart("api-server")

    def freeze_qarnot(self, seconds: float) -> None:
        """Let Qarnot take requests and answer none."""
        process = self.qarnot.process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        try:
            self._pass(seconds)
        finally:
            os.kill(process.pid, signal.SIGCONT)

    def kill_scheduler(self, name: str, *, with_workers: bool = False) -> None:
        """Kill the main process of a scheduler. It is started again as soon as something waits for Airflow.

        :param with_workers: also those that run its local tasks. They keep its database session, and so its locks.
        """
        for pid in self.airflow.pids(name)[: None if with_workers else 1]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _pass(self, seconds: float) -> None:
        """Let time pass, while components that have ended are started again."""
        ends = time.monotonic() + seconds
        while (remaining := ends - time.monotonic()) > 0:
            self.airflow.check_alive()
            time.sleep(min(remaining, 0.2))

    # --- Qarnot's side

    def tasks(self, *states_: str) -> list[Task]:
        """The Qarnot tasks of the executor in these states; without any, those that have not ended."""
        tagged = self.client.tasks.list(tags=[namespace_tag(NAMESPACE)])
        if states_:
            return [task for task in tagged if task.state in states_]
        return [task for task in tagged if task.phase is not states.Phase.TERMINAL]

    def posts(self) -> int:
        """Number of requests that have created tasks."""
        return sum((one["method"], one["path"]) == ("POST", "/tasks") for one in self.qarnot.requests())

    def pools(self) -> int:
        return len(list(self.client.pools.iterate(filters.equal("Tags", namespace_tag(NAMESPACE)))))

    # --- the account

    def account(self, run_id: str, count: int, ended: bool = True) -> Account:
        """Return what became of a run of ``counted`` with *count* tasks."""
        starts, done = self.noted(run_id, "start"), self.noted(run_id, "end")
        states_ = self.states("counted", run_id)
        succeeded = sum(state == "success" for name, state in states_.items() if name.startswith("work"))
        stuck = 0 if ended else count - succeeded
        return Account(
            twice=sum(times > 1 for times in starts.values()),
            lost=count - min(succeeded, len(done)) - stuck,
            stuck=stuck,
            left_on=0,
        )
