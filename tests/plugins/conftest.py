"""Airflow's real api-server application, in this process, with users of every role, and the page in it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from airflow_qarnot_pool.executors.pool import PoolKey, shared_identity
from airflow_qarnot_pool.ownership.identity import EXECUTOR_LABEL, TaskInstanceIdentity

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from airflow_qarnot_pool.local import LocalQarnot

ROLES = ("viewer", "user", "op", "admin")
PAGE = "/qarnot-pools"
PATIENCE = 30.0


def until(look: Callable[[], Any], what: str) -> Any:
    """Look again and again until there is something true to see."""
    deadline = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < deadline, f"not seen within {PATIENCE} s: {what}"
        time.sleep(0.02)
    return found


@pytest.fixture(scope="package")
def server() -> Iterator[LocalQarnot]:
    """A local Qarnot for the page alone."""
    from airflow_qarnot_pool.local import LocalQarnot

    with LocalQarnot(boot_seconds=0.1, close_seconds=0.2) as running:
        yield running


@pytest.fixture(scope="package")
def airflow_app(airflow_db: None, server: LocalQarnot) -> Iterator[Any]:
    """Airflow's FastAPI application with its plugins, and the connection it finds in the environment."""
    extra = {"namespace": "page", "console_url": "https://console.example"}
    settings = {
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{role}:{role}" for role in ROLES),
        "AIRFLOW__API__SECRET_KEY": "not-a-secret",
        "AIRFLOW__API_AUTH__JWT_SECRET": "a secret for tests, " * 4,
        "AIRFLOW__QARNOT__POOLS_PAGE_REFRESH": "1",
        "AIRFLOW_CONN_QARNOT_DEFAULT": json.dumps(
            {"conn_type": "qarnot", "host": server.url, "password": server.token, "extra": extra}
        ),
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ |= settings
    try:
        from airflow.api_fastapi.app import create_app

        yield create_app(apps="core")
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@pytest.fixture(scope="package")
def as_role(airflow_app: Any) -> Callable[[str | None], TestClient]:
    """A browser that is logged in with a role, or not at all."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from starlette.testclient import TestClient

    def client(role: str | None) -> TestClient:
        made = TestClient(airflow_app, base_url="http://airflow.example", follow_redirects=False)
        if role is not None:
            user = SimpleAuthManagerUser(username=role, role=role.upper())
            made.cookies["_token"] = get_auth_manager().generate_jwt(user)
        return made

    return client


@pytest.fixture
def admin(as_role: Callable[[str | None], TestClient]) -> TestClient:
    return as_role("admin")


def identity(
    dag_id: str = "frames", run_id: str = "manual__1", task_id: str = "open_pool", **more: Any
) -> TaskInstanceIdentity:
    values: dict[str, Any] = {
        "namespace": "page",
        "map_index": -1,
        "run_started": "2026-01-01",
        "max_tries": 0,
        "try_number": 1,
        "retries": 0,
    }
    return TaskInstanceIdentity(dag_id=dag_id, run_id=run_id, task_id=task_id, **{**values, **more})


def add_run(dag_id: str, run_id: str, state: str = "running", started: datetime | None = None) -> None:
    """Add a DAG run to Airflow's database, and its DAG."""
    from airflow.models.dag import DagModel
    from airflow.models.dagbundle import DagBundleModel
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState

    now = datetime.now(UTC)
    with create_session() as session:
        if session.get(DagModel, dag_id) is None:
            session.add(DagBundleModel(name=f"of-{dag_id}"))
            session.flush()
            session.add(DagModel(dag_id=dag_id, bundle_name=f"of-{dag_id}"))
        times = {"run_after": now, "start_date": started or now}
        session.add(
            DagRun(dag_id=dag_id, run_id=run_id, run_type="manual", state=DagRunState(state), **times)
        )


def add_instance(
    dag_id: str, run_id: str, task_id: str, *, state: str = "running", map_index: int = -1
) -> UUID:
    """Add a task instance to Airflow's database, whose DAG run is there, and return its id."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import DAG
    from airflow.utils.session import create_session

    with DAG(dag_id):
        task = EmptyOperator(task_id=task_id)
    with create_session() as session:
        instance = TaskInstance(task, None, run_id, state, map_index)  # type: ignore[arg-type]
        session.add(instance)
        session.flush()
        return UUID(str(instance.id))


def of_executor(namespace: str = "page", pool: str = "gpu") -> dict[str, str]:
    """Return the labels of a pool of the executor."""
    key, identity = PoolKey(pool), shared_identity(namespace, PoolKey(pool), "0123456789")
    return {**identity.labels(1, "x"), EXECUTOR_LABEL: key.name}


class Maker:
    """Makes pools and Qarnot tasks as the operators do, without an Airflow task."""

    def __init__(self, server: LocalQarnot) -> None:
        from airflow_qarnot_pool.api.client import QarnotClient

        self.client = QarnotClient(server.url, server.token)
        self._count = 0

    def pool(
        self, name: str = "warm", *, size: int = 1, owner: TaskInstanceIdentity | None = None, **more: Any
    ) -> str:
        from airflow_qarnot_pool.api.specs import PoolSpec

        self._count += 1
        owner = owner or identity(task_id=f"open_{self._count}")
        labels = {**owner.labels(1, "x"), **more.pop("labels", {})}
        spec = PoolSpec(name=name, instance_count=size, tags=owner.tags(), labels=labels, **more)
        return self.client.pools.create(spec)

    def task(
        self, pool: str, command: str = "true", owner: TaskInstanceIdentity | None = None, **more: Any
    ) -> str:
        from airflow_qarnot_pool.api.specs import TaskSpec

        owner = owner or identity(task_id="work")
        spec = TaskSpec(
            name=more.pop("name", "work"),
            pool=pool,
            command=command,
            image="library/alpine",
            tags=owner.tags(),
            labels=more.pop("labels", owner.labels(1, "x")),
            completion_ttl=timedelta(days=1),
            **more,
        )
        return self.client.tasks.create(spec)

    def end_all(self) -> None:
        from airflow_qarnot_pool.api.errors import QarnotNotFoundError

        for pool in self.client.pools.list():
            with suppress(QarnotNotFoundError):
                self.client.pools.delete(pool.uuid)


@pytest.fixture
def make(server: LocalQarnot) -> Iterator[Maker]:
    maker = Maker(server)
    yield maker
    maker.end_all()
