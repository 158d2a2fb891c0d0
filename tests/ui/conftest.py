"""A real Airflow with users of every role, a local Qarnot, and Chromium: one of each for all tests here."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import ROOT
from tests.plugins.conftest import Maker
from tests.stack.postgres import Postgres, binary

if TYPE_CHECKING:
    from airflow_qarnot_pool.local import LocalQarnot
    from tests.ui.browser import Browser
    from tools.airflow_stack import AirflowStack

HERE = Path(__file__).parent
USERS = {"anna": "admin", "otto": "op", "vera": "viewer"}
SETTINGS = {"QARNOT__POOLS_PAGE_REFRESH": "1", "QARNOT__POLL_INTERVAL": "1"}


#: What the Airflow tasks of these tests import, so that each of them starts sooner.
PRELOAD = (
    "airflow.sdk.execution_time.task_runner",
    "airflow_qarnot_pool.api.client",
    "airflow_qarnot_pool.operators.task",
    "airflow_qarnot_pool.task_groups.pool",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    missing += [name for name in ("selenium",) if importlib.util.find_spec(name) is None]
    # It waits for the processes of an Airflow, which start while others have the browser.
    items.sort(key=lambda item: item.path != HERE / "test_ui.py")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.airflow_ui)
            if missing:
                item.add_marker(pytest.mark.skip(f"{', '.join(missing)} missing: make test-ui installs it"))


@pytest.fixture(scope="session")
def qarnot_of_ui() -> Iterator[LocalQarnot]:
    from airflow_qarnot_pool.local import LocalQarnot

    with LocalQarnot(boot_seconds=0.5, close_seconds=0.5) as server:
        yield server


@pytest.fixture(scope="session")
def airflow(qarnot_of_ui: LocalQarnot) -> Iterator[AirflowStack]:
    """No connection is set: the first test makes it, through the form."""
    from tools.airflow_stack import AirflowStack

    home = Path(tempfile.mkdtemp(prefix="airflow-ui-"))
    dags = home / "dags"
    dags.mkdir()
    shutil.copy(ROOT / "example_dags" / "qarnot_params.py", dags)
    database = "sqlite"
    with ExitStack() as ends:
        ends.callback(shutil.rmtree, home, ignore_errors=True)
        drivers = all(importlib.util.find_spec(name) for name in ("psycopg2", "asyncpg"))
        if drivers and binary("initdb") and binary("postgres"):
            # Where it is there: on SQLite Airflow itself loses deferred tasks now and then.
            database = ends.enter_context(Postgres()).url
        (home / "airflow").mkdir()
        stack = AirflowStack(
            home / "airflow",
            dags,
            database=database,
            users=USERS,
            start_timeout=600,
            preload=PRELOAD,
            env={f"AIRFLOW__{name}": value for name, value in SETTINGS.items()},
        )
        yield ends.enter_context(stack)


@pytest.fixture(scope="module")
def base(airflow: AirflowStack) -> str:
    """Where the tests of a module are. Most have another one."""
    return airflow.url


@pytest.fixture
def browser(chromium: Browser, base: str, request: pytest.FixtureRequest) -> Iterator[Browser]:
    """Chromium, with a picture of how a test left it."""
    chromium.begin(base)
    yield chromium
    chromium.shot(request.node.name)


@pytest.fixture
def make(qarnot_of_ui: LocalQarnot) -> Iterator[Maker]:
    maker = Maker(qarnot_of_ui)
    yield maker
    maker.end_all()
