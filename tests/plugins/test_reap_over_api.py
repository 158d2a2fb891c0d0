"""``airflow qarnot reap --api-url``: Airflow's real API knows the DAG runs, and the command reads no database."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from airflow_qarnot_pool import cli
from tests.plugins.conftest import Maker, identity, until

if TYPE_CHECKING:
    from starlette.testclient import TestClient

DAG = "reaped"


@pytest.fixture(scope="module")
def api(airflow_app: Any) -> Iterator[str]:
    """The address of the application on a port."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(airflow_app, port=0, log_level="error", lifespan="off"))
    thread = Thread(target=server.run)
    thread.start()
    until(lambda: server.started, "the api-server")
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def runs(airflow_db: None) -> None:
    """One DAG run that runs, and one that has failed."""
    from airflow.models.dag import DagModel
    from airflow.models.dagbundle import DagBundleModel
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    now = datetime.now(UTC)
    with create_session() as session:
        session.add(DagBundleModel(name="of-reaped"))
        session.flush()
        session.add(DagModel(dag_id=DAG, bundle_name="of-reaped"))
        for state in ("running", "failed"):
            session.add(
                DagRun(dag_id=DAG, run_id=f"is_{state}", run_type="manual", state=state, run_after=now)
            )


@pytest.fixture(autouse=True)
def process_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets it for its process, which is this one."""
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")


@pytest.fixture
def reap(api: str, runs: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def no_database(*_: Any) -> None:
        raise AssertionError("the database was asked")

    monkeypatch.setattr(cli, "_run_state", no_database)

    def run(token: str) -> None:
        monkeypatch.setenv("AIRFLOW_CLI_TOKEN", token)
        cli.reap(
            Namespace(
                conn_id="qarnot_default",
                api_url=api,
                dry_run=False,
                grace_period_minutes=0,
                idle_timeout_minutes=60,
                delete_environments_after_days=30,
            )
        )

    return run


def test_the_api_has_the_states_of_the_runs(
    reap: Callable[[str], None], make: Maker, admin: TestClient, capsys: pytest.CaptureFixture[str]
) -> None:
    pools = {
        run_id: make.pool(owner=identity(DAG, run_id)) for run_id in ("is_running", "is_failed", "is_unknown")
    }
    reap(admin.cookies["_token"])
    said = capsys.readouterr().out
    assert f"close  {pools['is_failed']}" in said
    assert f"close  {pools['is_unknown']}" in said
    assert f"keep   {pools['is_running']}" in said
    states = {run_id: make.client.pools.get(uuid).state for run_id, uuid in pools.items()}
    assert states.pop("is_running") not in ("Closing", "Closed")
    assert set(states.values()) <= {"Closing", "Closed"}


def test_a_wrong_token_closes_nothing(reap: Callable[[str], None], make: Maker) -> None:
    pool = make.pool(owner=identity(DAG, "is_failed"))
    with pytest.raises(SystemExit, match=r"40[13].*AIRFLOW_CLI_TOKEN"):
        reap("no-token")
    assert make.client.pools.get(pool).state not in ("Closing", "Closed")


def test_without_database_or_api_the_command_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    def no_database(*_: Any) -> None:
        raise OperationalError("SELECT", {}, Exception("no such table"))

    monkeypatch.setattr(cli, "_run_state", no_database)
    with pytest.raises(SystemExit, match=r"cannot be read \(OperationalError\)\. Give --api-url"):
        cli._run_states(None)
    with pytest.raises(SystemExit, match=r"--conn-id names no connection.*AIRFLOW_CONN_NO_SUCH"):
        cli._hook("no_such")
