"""Run a real Airflow on this machine, with a process for each api-server, scheduler, dag-processor and triggerer.

With a ``broker`` its Airflow tasks run on Celery workers, which are processes, too.

For the demo and for tests that need more than ``dag.test()``::

    with AirflowStack(home, dags, qarnot=Endpoint(url, token)) as airflow:
        run_id = airflow.trigger("my_dag", conf={"n": 3})
        assert airflow.wait_run("my_dag", run_id) == "success"

It has a separate AIRFLOW_HOME and port, and listens on loopback only. Without ``users`` it needs no password. All
settings are environment variables, so no ``airflow.cfg`` of the user matters. Nothing here imports Airflow.

Nothing stays behind, whatever ends: every process carries a mark in its environment that its descendants inherit,
and a watchdog kills everything with that mark as soon as this process is gone.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import psutil  # type: ignore[import-untyped]
import requests

from tools.patience import Patience

T = TypeVar("T")

_MARK = "AIRFLOW_STACK"
_COMPONENT = "AIRFLOW_STACK_COMPONENT"
_RUN_ENDED = {"success", "failed"}


class StackError(Exception):
    """A wait for Airflow failed; the message names its condition and the folder of the logs."""


class Endpoint(NamedTuple):
    """Address of the Qarnot for ``qarnot_default``."""

    url: str
    token: str
    storage_url: str | None = None

    def connection(self, **extra: Any) -> str:
        """The Airflow connection, as JSON for ``AIRFLOW_CONN_QARNOT_DEFAULT``; *extra* are its extra fields."""
        extra = {"storage_url": self.storage_url, **extra}
        return json.dumps(
            {
                "conn_type": "qarnot",
                "host": self.url,
                "password": self.token,
                "extra": {name: value for name, value in extra.items() if value is not None},
            }
        )


@dataclass(frozen=True)
class TaskProcesses:
    """The two processes of a running Airflow task: LocalExecutor's worker, and the task's own process."""

    worker: int
    task: int


def clean_environment() -> dict[str, str]:
    """Return the environment of this process without Airflow settings, and without a proxy for loopback."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
    loopback = "127.0.0.1,localhost"
    return {**kept, "NO_PROXY": loopback, "no_proxy": loopback, "PYTHONUNBUFFERED": "1"}


class AirflowStack:
    """A whole Airflow deployment; a context manager that starts and stops it.

    :param home: its AIRFLOW_HOME. With SQLite a database that is there is replaced.
    :param dags: folder of its DAG files.
    :param database: ``"sqlite"``, or an SQLAlchemy URL of an empty database, such as
        ``postgresql+psycopg2://user@127.0.0.1:5432/airflow`` (the drivers are the caller's business).
    :param triggerers: how many triggerers; the components are ``triggerer`` or ``triggerer-1``, ``triggerer-2``...
    :param schedulers: how many schedulers, named likewise.
    :param broker: URL of the Redis that Celery workers get their tasks from; without it there are none, and
        the schedulers run the tasks themselves (LocalExecutor).
    :param workers: how many Celery workers, ``worker-1`` and so on.
    :param queues: the queue of each worker; by default each takes all queues.
    :param preload: modules that the schedulers import at their start. The workers of LocalExecutor and their tasks are
        forked from the scheduler, so a task has them at once, which saves it most of a second of a core.
    :param qarnot: address for the connection ``qarnot_default``.
    :param namespace: the connection's namespace.
    :param users: role (viewer, user, op, admin) by name, for tests of what each may do; ``passwords`` has their
        passwords. Without users each request is an admin's. One user must be an admin, as whom :meth:`api` logs in.
    :param supervised: restart a component that ends unexpectedly, as systemd or Kubernetes would; ``revived``
        counts. Otherwise such an end is an error.
    :param env: more environment variables, such as ``AIRFLOW__SCHEDULER__...``; they win.
    :param python: the interpreter whose Airflow is started.
    :param start_timeout: seconds until everything must be ready, as :meth:`wait_for` counts them.
    :param grace: seconds for components and running tasks to end before they are killed.
    """

    def __init__(
        self,
        home: Path,
        dags: Path,
        *,
        database: str = "sqlite",
        triggerers: int = 1,
        schedulers: int = 1,
        broker: str | None = None,
        workers: int = 2,
        queues: Sequence[str] = (),
        preload: Sequence[str] = (),
        qarnot: Endpoint | None = None,
        namespace: str | None = None,
        users: Mapping[str, str] | None = None,
        supervised: bool = False,
        env: Mapping[str, str] | None = None,
        python: str = sys.executable,
        start_timeout: float = 180.0,
        grace: float = 5.0,
    ) -> None:
        self.home = home.resolve()
        self.logs = self.home / "component-logs"
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._python = python
        self._start_timeout = start_timeout
        self._grace = grace
        self._id = secrets.token_hex(8)
        self._database = database
        self._users = dict(users or {})
        self.passwords = {name: secrets.token_urlsafe(12) for name in self._users}
        self._broker = broker
        self._queues = dict(zip(_names("worker", workers), queues, strict=False))
        self._preload = tuple(preload)
        self._supervised = supervised
        self.revived: Counter[str] = Counter()
        self._env = self._environment(dags.resolve(), qarnot, namespace, env or {})
        self._commands = {
            "api-server": ["api-server"],
            **{name: ["scheduler", "--skip-serve-logs"] for name in _names("scheduler", schedulers)},
            "dag-processor": ["dag-processor"],
            **{name: ["triggerer", "--skip-serve-logs"] for name in _names("triggerer", triggerers)},
            **{name: self._worker(name) for name in (_names("worker", workers) if broker else ())},
        }
        #: Offset in the log of a Celery worker since its last start, because a worker has no job in the database.
        self._log_begins: dict[str, int] = {}
        self._launched: dict[str, float] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._meant_to_be_down: set[str] = set()
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._session = requests.Session()
        self._session.trust_env = False

    def _environment(
        self, dags: Path, qarnot: Endpoint | None, namespace: str | None, more: Mapping[str, str]
    ) -> dict[str, str]:
        sqlite = self._database == "sqlite"
        settings = {
            "CORE__DAGS_FOLDER": str(dags),
            "CORE__EXECUTOR": "LocalExecutor",
            "CORE__LOAD_EXAMPLES": "False",
            "CORE__PARALLELISM": "16",
            "CORE__FERNET_KEY": base64.urlsafe_b64encode(os.urandom(32)).decode(),
            "CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            # Loopback only, and thrown away afterwards: a password is only in the way where roles do not matter.
            "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": str(not self._users),
            "CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(
                f"{name}:{role}" for name, role in self._users.items()
            ),
            "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.home / "passwords.json"),
            "CORE__TEST_CONNECTION": "Enabled",
            "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.home}/airflow.db" if sqlite else self._database,
            "API__HOST": "127.0.0.1",
            "API__PORT": str(self.port),
            "API__BASE_URL": self.url,
            "API__SECRET_KEY": secrets.token_hex(32),
            "API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "LOGGING__COLORED_CONSOLE_LOG": "False",
            # Airflow's defaults suit long deployments; tests must not wait for them.
            "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.3",
            "SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "3",
            "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "15",
            "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
            "SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "2",
            "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "15",
            "WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
            # An Airflow task whose start is not answered in time fails; a machine that is busy is no reason for that.
            "WORKERS__EXECUTION_API_TIMEOUT": "300",
            "DAG_PROCESSOR__REFRESH_INTERVAL": "5",
            "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
        }
        environment = {
            **clean_environment(),
            **{f"AIRFLOW__{name}": value for name, value in settings.items()},
            "AIRFLOW_HOME": str(self.home),
            _MARK: self._id,
            # Process titles must not overwrite the environment: it carries the mark.
            "SPT_NOENV": "1",
        }
        if self._broker is not None:
            celery = {
                "CORE__EXECUTOR": "CeleryExecutor",
                "CELERY__BROKER_URL": self._broker,
                "CELERY__RESULT_BACKEND": f"db+{self._database}",
                "CELERY__WORKER_CONCURRENCY": "4",
            }
            environment |= {f"AIRFLOW__{name}": value for name, value in celery.items()}
        if qarnot is not None:
            environment["AIRFLOW_CONN_QARNOT_DEFAULT"] = qarnot.connection(namespace=namespace)
        return {**environment, **more}

    def _worker(self, name: str) -> list[str]:
        pid = self.home / f"{name}.pid"
        command = [
            "celery",
            "worker",
            "--skip-serve-logs",
            "--celery-hostname",
            f"{name}@%h",
            "--pid",
            str(pid),
        ]
        return [*command, "--queues", self._queues[name]] if name in self._queues else command

    # --- from start to end

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with which a program finds this Airflow's settings and database."""
        return dict(self._env)

    @property
    def components(self) -> tuple[str, ...]:
        """The names of the components."""
        return tuple(self._commands)

    def start(self) -> None:
        """Start everything, and return when all of it is at work.

        :raises StackError: a component ended, or was not ready in time.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        (self.home / "passwords.json").write_text(json.dumps(self.passwords))
        self._watchdog = subprocess.Popen(
            [sys.executable, "-m", "tools.airflow_stack", self._id],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            process_group=0,
        )
        try:
            self._migrate()
            for name in self._commands:
                self._launch(name)
            self.wait_for(self._all_at_work, timeout=self._start_timeout, what="Airflow to be ready")
        except BaseException:
            self.stop()
            raise

    def _migrate(self) -> None:
        if self._database == "sqlite":
            for leftover in self.home.glob("airflow.db*"):
                leftover.unlink()
        process = self._spawn("migrate", ["db", "migrate"])
        patience = Patience(lambda: [process.pid])
        while process.poll() is None and patience.count() < self._start_timeout:
            time.sleep(0.1)
        if process.poll() != 0:
            process.kill()
            raise StackError(f"The database could not be made ready.\n{self.log_tail('migrate')}")

    def _spawn(self, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        with (self.logs / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [self._python, *self._program(arguments)],
                # LOGNAME is what Airflow notes as the user of a job, and so tells the triggerers apart.
                env={**self._env, _COMPONENT: name, "LOGNAME": name},
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    def _program(self, arguments: list[str]) -> list[str]:
        """Return the arguments of the interpreter."""
        if not self._preload or arguments[0] != "scheduler":
            return ["-m", "airflow", *arguments]
        first = "".join(f"import {module}; " for module in self._preload)
        airflow = "import runpy; runpy.run_module('airflow', run_name='__main__', alter_sys=True)"
        return ["-c", first + airflow, *arguments]

    def _launch(self, name: str) -> None:
        self._meant_to_be_down.discard(name)
        log = self.logs / f"{name}.log"
        self._log_begins[name] = log.stat().st_size if log.exists() else 0
        # Celery takes the file of a dead worker for a living one's.
        (self.home / f"{name}.pid").unlink(missing_ok=True)
        self._launched[name] = time.monotonic()
        self._processes[name] = self._spawn(name, self._commands[name])

    def _all_at_work(self) -> bool:
        running = {job["unixname"] for job in self._jobs()}
        return self._tasks_can_start() and all(
            self._worker_ready(name) if _is_worker(name) else name in running
            for name in self._commands
            if name != "api-server"
        )

    def _tasks_can_start(self) -> bool:
        """Whether the api-server answers tasks.

        Its first answer to a task takes it ten seconds of a core, in which it answers nothing else. If ten tasks
        start at that moment, their requests time out, and each loses a try that Airflow misses only later.
        """
        return self._session.get(f"{self.url}/execution/health", timeout=30).ok

    def _worker_ready(self, name: str) -> bool:
        with (self.logs / f"{name}.log").open("rb") as log:
            log.seek(self._log_begins[name])
            return re.search(rb"@\S+ ready\.", log.read()) is not None

    def _at_work(self, component: str, before: set[int]) -> bool:
        """Whether *component* answers, or has a job that is not one of those *before*."""
        jobs = self._jobs()
        if _is_worker(component):
            return self._worker_ready(component)
        if component == "api-server":
            return self._tasks_can_start()
        return any(job["unixname"] == component and job["id"] not in before for job in jobs)

    def _jobs(self) -> list[dict[str, Any]]:
        return self._pages("jobs", "jobs", job_state="running")

    def stop(self) -> None:
        """Stop everything, and kill processes that have not ended after the grace time."""
        try:
            self._end_gently()
        finally:
            kill_marked(self._id)
            for process in self._processes.values():
                process.wait()
            self._processes.clear()
            self._session.close()
            if self._watchdog is not None:
                assert self._watchdog.stdin is not None
                self._watchdog.stdin.close()
                self._watchdog.wait()
                self._watchdog = None

    def _end_gently(self) -> None:
        running = [process for process in self._processes.values() if process.poll() is None]
        for process in running:
            # A frozen one would not hear it.
            os.killpg(process.pid, signal.SIGCONT)
            process.terminate()
        deadline = time.monotonic() + self._grace
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))

    # --- the processes

    def pids(self, component: str) -> list[int]:
        """The processes of *component*, its main one first (a scheduler's are also workers and tasks)."""
        main = self._processes[component].pid
        marked = {process.pid for process in _marked(self._id, component)}
        return [main, *sorted(marked - {main})] if main in marked else sorted(marked)

    def signal(self, component: str, number: signal.Signals, *, main_only: bool = False) -> None:
        """Send a signal to all processes of *component*, or to its main one."""
        if number in (signal.SIGKILL, signal.SIGTERM):
            self._meant_to_be_down.add(component)
        for pid in self.pids(component)[: 1 if main_only else None]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait_end_of(self, component: str) -> None:
        """Wait for the main process of *component*, which is about to end."""
        self._meant_to_be_down.add(component)
        process = self._processes[component]
        self.wait_for(lambda: process.poll() is not None, what=f"the end of {component}")

    def restart(self, component: str) -> None:
        """Kill the rest of *component*, start it again, and return when it works."""
        has_job = component != "api-server" and not _is_worker(component)
        before = {job["id"] for job in self._jobs()} if has_job else set()
        self.signal(component, signal.SIGKILL)
        self._processes[component].wait()
        self._launch(component)
        self.wait_for(
            lambda: self._at_work(component, before),
            timeout=self._start_timeout,
            what=f"{component} to be back",
        )

    def task_processes(
        self, dag_id: str, run_id: str, task_id: str, map_index: int = -1
    ) -> TaskProcesses | None:
        """The processes of a task that runs now, or None."""
        instance = self.task_instance(dag_id, run_id, task_id, map_index)
        if instance["state"] != "running" or not instance.get("pid"):
            return None
        with contextlib.suppress(psutil.NoSuchProcess):
            return TaskProcesses(worker=psutil.Process(instance["pid"]).ppid(), task=instance["pid"])
        return None

    def triggerer_of(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> str | None:
        """The triggerer that has the trigger of a deferred task, or None."""
        job = self.task_instance(dag_id, run_id, task_id, map_index).get("triggerer_job")
        return job["unixname"] if job else None

    # --- waiting

    def wait_for(
        self,
        predicate: Callable[[], T],
        *,
        timeout: float = 120.0,
        what: str = "the condition",
        interval: float = 0.2,
        progress: Callable[[], Hashable] = lambda: None,
    ) -> T:
        """Call *predicate* until its result is true, and return that result. Wait for an api-server that is away.

        :param timeout: seconds in which the components have the machine (:class:`~tools.patience.Patience`).
        :param progress: the timeout starts again if its value is a new one when it ends. A value that was there before
            is a loop.
        :raises StackError: after *timeout* seconds, or when a component has ended that should not.
        """
        patience, seen = Patience(self._main_pids), {progress()}
        while True:
            with contextlib.suppress(requests.ConnectionError, requests.Timeout):
                if found := predicate():
                    return found
            self.check_alive(what)
            if patience.count() >= timeout:
                if (now := progress()) in seen:
                    raise StackError(f"Waited {timeout:.0f} s for {what}, in vain. Logs: {self.logs}")
                seen.add(now)
                patience.begin_again()
            time.sleep(interval)

    def _main_pids(self) -> list[int]:
        return [process.pid for process in list(self._processes.values()) if process.poll() is None]

    def check_alive(self, what: str = "") -> None:
        """Raise StackError if a component has ended unexpectedly."""
        for name, process in list(self._processes.items()):
            if process.poll() is not None and name not in self._meant_to_be_down:
                if self._supervised:
                    self._revive(name)
                    continue
                while_waiting = f" while waiting for {what}" if what else ""
                raise StackError(
                    f"Airflow's {name} ended with exit status {process.returncode}{while_waiting}.\n"
                    f"{self.log_tail(name)}"
                )

    def _revive(self, name: str) -> None:
        # One that ends as soon as it is started is not started more often than this.
        if time.monotonic() - self._launched[name] < 5.0:
            return
        self.signal(name, signal.SIGKILL)
        self._launch(name)
        self.revived[name] += 1

    def wait_run(self, dag_id: str, run_id: str, timeout: float = 300.0) -> str:
        """Wait for the end of a DAG run and return its state."""

        def ended() -> str | None:
            state = self.run_state(dag_id, run_id)
            return state if state in _RUN_ENDED else None

        return str(self.wait_for(ended, timeout=timeout, what=f"the end of {dag_id} {run_id}"))

    def wait_dag(self, dag_id: str, timeout: float = 120.0) -> None:
        """Wait until *dag_id* is parsed; one that cannot be imported fails at once."""

        def parsed() -> bool:
            if self._session.get(f"{self.url}/api/v2/dags/{dag_id}", headers=self._auth(), timeout=30).ok:
                return True
            if errors := self.api("GET", "importErrors")["import_errors"]:
                raise StackError("\n".join(f"{one['filename']}:\n{one['stack_trace']}" for one in errors))
            return False

        self.wait_for(parsed, timeout=timeout, what=f"DAG {dag_id} to be parsed")

    # --- the REST API

    def _auth(self) -> dict[str, str]:
        if "token" not in self.__dict__:
            self.token = self.token_of(next((n for n, r in self._users.items() if r == "admin"), None))
        return {"Authorization": f"Bearer {self.token}"}

    def token_of(self, user: str | None) -> str:
        """Return a token of the REST API for a user, or without users for any request."""
        if user is None:
            answer = self._session.get(f"{self.url}/auth/token", timeout=30)
        else:
            credentials = {"username": user, "password": self.passwords[user]}
            answer = self._session.post(f"{self.url}/auth/token", json=credentials, timeout=30)
        answer.raise_for_status()
        return str(answer.json()["access_token"])

    def api(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """One request to Airflow's public API (``/api/v2/`` + *path*), its answer as JSON.

        :raises StackError: with the server's words.
        """
        answer = self._session.request(
            method, f"{self.url}/api/v2/{path}", json=body, params=query, headers=self._auth(), timeout=30
        )
        if not answer.ok:
            raise StackError(f"{method} {path}: {answer.status_code} {answer.text[:2000]}")
        return answer.json() if answer.content else None

    def _pages(self, path: str, key: str, **query: Any) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        while True:
            page = self.api("GET", path, limit=100, offset=len(entries), **query)
            entries += page[key]
            if not page[key] or len(entries) >= page["total_entries"]:
                return entries

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None, run_id: str | None = None) -> str:
        """Start a run of *dag_id* (waiting for it to be parsed, unpausing it) and return its run id."""
        self.wait_dag(dag_id)
        self.api("PATCH", f"dags/{dag_id}", {"is_paused": False})
        body = {"logical_date": None, "conf": dict(conf or {}), "dag_run_id": run_id}
        return str(self.api("POST", f"dags/{dag_id}/dagRuns", body)["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        """The state of a DAG run."""
        return str(self.api("GET", f"dags/{dag_id}/dagRuns/{run_id}")["state"])

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """All task instances of a run, as the API gives them."""
        return self._pages(f"dags/{dag_id}/dagRuns/{run_id}/taskInstances", "task_instances")

    def task_instance(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, Any]:
        """One task instance, as the API gives it."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        answer = self.api("GET", path if map_index < 0 else f"{path}/{map_index}")
        assert isinstance(answer, dict)
        return answer

    def task_states(self, dag_id: str, run_id: str) -> dict[str, str | None]:
        """State by task; mapped ones are ``task_id[3]``."""
        return {
            one["task_id"] + (f"[{one['map_index']}]" if one["map_index"] >= 0 else ""): one["state"]
            for one in self.task_instances(dag_id, run_id)
        }

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str, map_index: int = -1) -> None:
        """Mark a task instance ``failed``, ``success`` or ``skipped``, as a user does in the UI."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        self.api("PATCH", path if map_index < 0 else f"{path}/{map_index}", {"new_state": state})

    def mark_run(self, dag_id: str, run_id: str, state: str) -> None:
        """Mark a DAG run ``failed``, ``success`` or ``queued``."""
        self.api("PATCH", f"dags/{dag_id}/dagRuns/{run_id}", {"state": state})

    def clear(
        self, dag_id: str, run_id: str, tasks: Iterable[str | tuple[str, int]], *, downstream: bool = False
    ) -> None:
        """Clear task instances, whatever their state; ``(task_id, map_index)`` is one of a mapped task."""
        self.api(
            "POST",
            f"dags/{dag_id}/clearTaskInstances",
            {
                "dry_run": False,
                "dag_run_id": run_id,
                "task_ids": [one if isinstance(one, str) else list(one) for one in tasks],
                "only_failed": False,
                "include_downstream": downstream,
            },
        )

    def xcom(
        self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1
    ) -> Any:
        """An XCom value, or None."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        answer = self._session.get(
            f"{self.url}/api/v2/{path}", params={"map_index": map_index}, headers=self._auth(), timeout=30
        )
        return answer.json()["value"] if answer.ok else None

    # --- logs

    def log(
        self, dag_id: str, run_id: str, task_id: str, map_index: int = -1, try_number: int = 1
    ) -> list[dict[str, Any]]:
        """The log of a try as Airflow shows it: of its worker and of its triggerers, in the order of time."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        page = self.api("GET", path, map_index=map_index, full_content=True)
        return list(page["content"])

    def log_tail(self, component: str, lines: int = 30) -> str:
        """The end of a component's log, with its path."""
        path = self.logs / f"{component}.log"
        text = path.read_text(errors="replace") if path.exists() else ""
        return f"Last lines of {path}:\n" + "\n".join(text.splitlines()[-lines:])

    def task_log(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1, lines: int = 30) -> str:
        """The end of the log of a task's newest try, as text, with its path."""
        folder = self.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"
        folder = folder / f"map_index={map_index}" if map_index >= 0 else folder
        tries = sorted(folder.glob("attempt=*.log*"), key=lambda path: path.stat().st_mtime)
        if not tries:
            return f"There is no task log in {folder}"
        shown = list(_readable(tries[-1].read_text(errors="replace").splitlines()))
        return f"Last lines of {tries[-1]}:\n" + "\n".join(shown[-lines:])


def _names(component: str, count: int) -> list[str]:
    return [component] if count == 1 else [f"{component}-{n + 1}" for n in range(count)]


def _is_worker(component: str) -> bool:
    return component.startswith("worker")


def _readable(lines: Iterable[str]) -> Iterator[str]:
    """Airflow's task logs are JSON, a line per event."""
    for line in lines:
        try:
            event = json.loads(line)
            yield f"{event['timestamp']} {event.get('level', ''):<7} {event['event']}"
        except (ValueError, KeyError, TypeError):
            yield line
            continue
        for error in event.get("error_detail") or ():
            yield f"    {error.get('exc_type')}: {error.get('exc_value')}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- the mark


def _marked(mark: str, component: str | None = None) -> list[psutil.Process]:
    """All living processes with *mark* in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            if environment.get(_MARK) == mark and component in (None, environment.get(_COMPONENT)):
                found.append(process)
    return found


def kill_marked(mark: str) -> None:
    """Kill until nothing with *mark* is left: one may have been started while we looked."""
    while marked := _marked(mark):
        for process in marked:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(marked, timeout=2)


def _watch(mark: str) -> None:
    """The watchdog: standard input ends when the process that started us stops or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    kill_marked(mark)


if __name__ == "__main__":
    _watch(sys.argv[1])
