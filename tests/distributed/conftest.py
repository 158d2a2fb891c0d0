"""One distributed Airflow for all tests of this folder, which disturb it one after another.

``make distributed`` runs them. With ``--distributed-report docs/contributing/evidence/distributed.md`` it also writes
the table into that page.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.stack.postgres import binary

HERE = Path(__file__).parent
SETTINGS = {
    # Of each scheduler, and no more in all than the workers take at once: the rest waits in Airflow, where that
    # does not count as being stuck.
    "CORE__PARALLELISM": "4",
    # Sooner than by default, but not so soon that a busy machine looks like a dead one.
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "40",
    "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "20",
    "TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "15",
    # What a killed worker had been given and not begun goes to another one after so long. Airflow cannot tell it
    # from what waits for a worker that is busy, and fails that without a retry when it has happened too often.
    "SCHEDULER__TASK_QUEUED_TIMEOUT": "60",
    "SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
    "SCHEDULER__NUM_STUCK_IN_QUEUED_RETRIES": "50",
    "QARNOT__POLL_INTERVAL": "1",
    "QARNOT__DEFER_AFTER": "0",
    "CELERY__CELERY_CONFIG_OPTIONS": "tests.distributed.celery_config.CONFIG",
    # Two schedulers that look three times a second are busy with that alone.
    "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "1",
}
RUNS = 30
_rows: list[Any] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--distributed-report", type=Path, help="write the table of the distributed tests there")
    parser.addoption(
        "--distributed-runs",
        type=int,
        default=RUNS,
        metavar="N",
        help=f"DAG runs in the test of kills, the others have fewer ({RUNS}); for a machine that is small or busy",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in ("initdb", "postgres") if binary(name) is None]
    missing += [] if shutil.which("redis-server") else ["redis-server"]
    modules = ("psycopg2", "asyncpg", "celery", "redis")
    missing += [name for name in modules if importlib.util.find_spec(name) is None]
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.airflow_distributed)
            if missing:
                item.add_marker(
                    pytest.mark.skip(f"{', '.join(missing)} missing: make distributed installs it")
                )


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _rows:
        return
    from tests.distributed.cluster import table

    terminalreporter.section("account of the distributed Airflow")
    terminalreporter.write_line(table(_rows))


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Two schedulers, two triggerers, two Celery workers, PostgreSQL, Redis, and a local Qarnot."""
    from airflow_qarnot_pool.local import LocalQarnot
    from tests.distributed.cluster import DAG_IDS, Cluster
    from tests.distributed.redis import Redis
    from tests.stack.postgres import Postgres
    from tools.airflow_stack import AirflowStack, Endpoint

    folder = Path(tempfile.mkdtemp(prefix="airflow-distributed-"))
    with ExitStack() as ends:
        qarnot = ends.enter_context(LocalQarnot(boot_seconds=1, close_seconds=0.5))
        qarnot.set_account(maxPool=1000, maxTask=100_000)
        postgres, redis = ends.enter_context(Postgres()), ends.enter_context(Redis())
        airflow = AirflowStack(
            folder / "airflow",
            HERE / "dags",
            database=postgres.url,
            broker=redis.url,
            schedulers=2,
            triggerers=2,
            qarnot=Endpoint(qarnot.url, qarnot.token, qarnot.storage_url),
            namespace="distributed",
            supervised=True,
            env={
                "PYTHONPATH": str(HERE.parent.parent),
                **{f"AIRFLOW__{name}": value for name, value in SETTINGS.items()},
            },
            start_timeout=400,
        )
        airflow.home.mkdir()
        ends.enter_context(airflow)
        for dag_id in DAG_IDS:
            airflow.wait_dag(dag_id)
        runs = request.config.getoption("--distributed-runs", default=RUNS)
        made = Cluster(airflow, qarnot, postgres, folder, runs)
        made.report = request.config.getoption("--distributed-report", default=None)
        _rows[:] = ()
        made.rows = _rows
        yield made
    if request.session.testsfailed:
        print(f"\nLogs are kept in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
