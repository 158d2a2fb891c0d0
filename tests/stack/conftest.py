"""One Airflow on PostgreSQL for all tests of this folder, which are run at the same time where they can be.

A test of a module with ``ALONE = True`` disturbs the deployment itself: those come last, one after another. The
others get threads of their own, all started with the first of them; each still passes or fails by its own name.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fake_s3 import S3Server
from tests.stack.database import Database
from tests.stack.postgres import Postgres, binary
from tests.stack.world import Lane, World
from tests.statsd import Statsd

HERE = Path(__file__).parent
EXAMPLES = HERE.parent.parent / "example_dags"
#: Tests under way at the same time; each spends most of its time waiting.
TOGETHER = 10
#: Connection by lane. Faults, clocks and request counts are a whole server's, so some tests have one to themselves.
LANES: dict[str, dict[str, Any]] = {
    "default": {"boot_seconds": 0.5},  # the examples
    "plain": {"boot_seconds": 0.5},
    "no_answer": {"boot_seconds": 0.5},
    "no_answer_to_orphan": {"boot_seconds": 0.5},
    "no_answer_to_many": {"boot_seconds": 0.5},
    "no_answer_to_setup": {"boot_seconds": 0.5},
    "late_effect": {"boot_seconds": 0.5},
    "never_boots": {"boot_seconds": 1e6},
    "clock": {"boot_seconds": 0.5},
    "reaped": {"boot_seconds": 0.5},
    "counted": {"boot_seconds": 0.5},
    "boots_on_demand": {"boot_seconds": 1e6},
    "shared": {"boot_seconds": 0.5},
    "dear": {"boot_seconds": 0.5},
    "between": {"boot_seconds": 0.5},
}
#: Health of components is judged sooner than by default, but not so soon that a busy machine looks like a dead one.
SETTINGS = {
    "CORE__PARALLELISM": "40",
    # A DAG runs when a test says so: an example that is switched on would have a run of its schedule, too.
    "SCHEDULER__USE_JOB_SCHEDULE": "False",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "40",
    "TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "15",
    "QARNOT__POLL_INTERVAL": "1",
    # Tests of deferred waits need a deferral. Others set deferrable=False.
    "QARNOT__DEFER_AFTER": "0",
}

#: What the DAG files and the tasks import.
PRELOAD = (
    "airflow.sdk.execution_time.task_runner",
    "airflow.providers.standard.operators.python",
    "airflow_qarnot_pool.api.client",
    "airflow_qarnot_pool.decorators.qarnot",
    "airflow_qarnot_pool.operators.reap",
    "airflow_qarnot_pool.operators.cost_report",
    "airflow_qarnot_pool.task_groups.pool",
    "airflow_qarnot_pool.triggers.pool",
    "airflow_qarnot_pool.triggers.tasks",
)

_durations: list[tuple[float, str]] = []
_futures: dict[str, Future[None]] = {}
_pool = ThreadPoolExecutor(TOGETHER, thread_name_prefix="together")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    missing = [name for name in ("initdb", "postgres") if binary(name) is None]
    missing += [name for name in ("psycopg2", "asyncpg") if importlib.util.find_spec(name) is None]
    for item in ours:
        item.add_marker(pytest.mark.airflow_stack)
        if missing:
            item.add_marker(pytest.mark.skip(f"{', '.join(missing)} missing: make test-airflow installs it"))
    items.sort(key=lambda item: item in ours and _alone(item))


def _alone(item: pytest.Item) -> bool:
    return bool(getattr(getattr(item, "module", None), "ALONE", False))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test with the others that can be run at the same time; the first starts all of them."""
    arguments = pyfuncitem.funcargs
    if "world" not in arguments:
        return None
    if _alone(pyfuncitem):
        names = pyfuncitem._fixtureinfo.argnames
        _told(pyfuncitem, arguments["world"], {name: arguments[name] for name in names})
        return True
    if not _futures:
        together = [
            item for item in pyfuncitem.session.items if HERE in item.path.parents and not _alone(item)
        ]
        for item in together:
            given = {"world": arguments["world"], **getattr(getattr(item, "callspec", None), "params", {})}
            _futures[item.nodeid] = _pool.submit(_told, item, arguments["world"], given)
    _futures[pyfuncitem.nodeid].result()
    return True


def _told(item: pytest.Item, world: World, arguments: dict[str, Any]) -> None:
    """Run the test; when it fails, its error tells what its DAG runs did."""
    assert isinstance(item, pytest.Function)
    if not _alone(item):
        world.forget()
    began = time.monotonic()
    try:
        item.obj(**arguments)
    except BaseException as error:
        error.add_note(world.stories())
        raise
    finally:
        _durations.append((time.monotonic() - began, item.name))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _durations:
        terminalreporter.section("what each part took")
        for seconds, name in _durations:
            terminalreporter.write_line(f"{seconds:7.1f} s  {name}")


def pytest_sessionfinish() -> None:
    for future in _futures.values():
        future.cancel()
    _pool.shutdown(wait=False, cancel_futures=True)


@pytest.fixture(scope="session")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Airflow with two triggerers on PostgreSQL, and a local Qarnot per lane."""
    from airflow_qarnot_pool.local import LocalQarnot
    from tools.airflow_stack import AirflowStack, Endpoint

    began = time.monotonic()
    # Not pytest's: that removes older ones, and here it takes minutes until somebody reads the logs.
    folder = Path(tempfile.mkdtemp(prefix="airflow-stack-"))
    with ExitStack() as ends:
        lanes, env = {}, {f"AIRFLOW__{name}": value for name, value in SETTINGS.items()}
        qarnots = {name: LocalQarnot(close_seconds=0.5, **options) for name, options in LANES.items()}
        for qarnot in qarnots.values():
            ends.callback(qarnot.stop)
        with ThreadPoolExecutor(len(qarnots)) as starters:
            list(starters.map(LocalQarnot.start, qarnots.values()))
        for name, qarnot in qarnots.items():
            endpoint = Endpoint(qarnot.url, qarnot.token, qarnot.storage_url)
            lanes[name] = Lane(f"qarnot_{name}", qarnot)
            env[f"AIRFLOW_CONN_QARNOT_{name.upper()}"] = endpoint.connection(namespace=f"tests-{name}")
        # A bucket whose files appear at once: ten thousand uploads take more of this machine than all else.
        files = ends.enter_context(S3Server())
        endpoint = Endpoint(lanes["plain"].qarnot.url, lanes["plain"].qarnot.token, files.url)
        env["AIRFLOW_CONN_QARNOT_FILES"] = endpoint.connection(namespace="tests-files")
        dags = folder / "dags"
        shutil.copytree(HERE / "dags", dags)
        shutil.copytree(EXAMPLES, dags, dirs_exist_ok=True)
        statsd = ends.enter_context(Statsd())
        env |= statsd.settings()
        postgres = ends.enter_context(Postgres())
        airflow = AirflowStack(
            folder / "airflow", dags, database=postgres.url, triggerers=2, preload=PRELOAD, env=env
        )
        airflow.home.mkdir()
        ends.enter_context(airflow)
        airflow.wait_dag("reap")
        _durations.append((time.monotonic() - began, "(Airflow, PostgreSQL and the local Qarnots start)"))
        yield World(airflow, lanes, folder, Database(postgres.url), statsd, files)
    if request.session.testsfailed:
        print(f"\nLogs are kept in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
