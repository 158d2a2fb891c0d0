"""``airflow qarnot reap --api-url``: Airflow's real API knows the DAG runs, and the command reads no database."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from threading import Thread
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from airflow_qarnot_pool import cli
from airflow_qarnot_pool.api.specs import TaskSpec
from airflow_qarnot_pool.ownership.identity import INSTANCE_TAG, namespace_tag
from tests.plugins.conftest import Maker, add_instance, add_run, identity, of_executor, until

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity

DAG = "reaped"
STARTED = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
#: The start of a run of another deployment, which has the same ids.
EARLIER, LATER = STARTED - timedelta(microseconds=1), STARTED + timedelta(microseconds=1)


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
    for state in ("running", "failed"):
        add_run(DAG, f"is_{state}", state, STARTED)


@pytest.fixture(scope="module")
def instance(runs: None) -> UUID:
    """The id of a task instance of the run that runs."""
    return add_instance(DAG, "is_running", "fit", map_index=2)


@pytest.fixture(autouse=True)
def process_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets it for its process, which is this one."""
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")


@pytest.fixture
def reap(api: str, runs: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def no_database(*_: Any) -> None:
        raise AssertionError("the database was asked")

    monkeypatch.setattr(cli, "_run_state", no_database)

    def run(token: str, *, skip_check: bool = False) -> None:
        monkeypatch.setenv("AIRFLOW_CLI_TOKEN", token)
        cli.reap(
            Namespace(
                conn_id="qarnot_default",
                api_url=api,
                dry_run=False,
                skip_deployment_check=skip_check,
                grace_period_minutes=0,
                idle_timeout_minutes=60,
                delete_environments_after_days=30,
            )
        )

    return run


def made_by(run_id: str, started: datetime = STARTED) -> TaskInstanceIdentity:
    return identity(DAG, run_id, run_started=started.isoformat())


@pytest.fixture(autouse=True)
def nothing_of_others(make: Maker) -> None:
    """Leave no object of an earlier test, whose DAG run would show the deployment."""
    make.end_all()
    until(lambda: not list(make.client.pools.iterate()), "the deletion of the pools")
    for task in make.client.tasks.iterate():
        make.client.tasks.delete(task.uuid)


def is_open(make: Maker, pool: str) -> bool:
    return make.client.pools.get(pool).state not in ("Closing", "Closed")


def test_the_api_has_the_states_of_the_runs(
    reap: Callable[..., None], make: Maker, admin: TestClient, capsys: pytest.CaptureFixture[str]
) -> None:
    pools = {run_id: make.pool(owner=made_by(run_id)) for run_id in ("is_running", "is_failed", "is_unknown")}
    reap(admin.cookies["_token"])
    said = capsys.readouterr().out
    assert f"close  {pools['is_failed']}" in said
    assert f"close  {pools['is_unknown']}" in said
    assert f"keep   {pools['is_running']}" in said
    states = {run_id: make.client.pools.get(uuid).state for run_id, uuid in pools.items()}
    assert states.pop("is_running") not in ("Closing", "Closed")
    assert set(states.values()) <= {"Closing", "Closed"}


def test_a_wrong_token_closes_nothing(reap: Callable[..., None], make: Maker) -> None:
    pool = make.pool(owner=identity(DAG, "is_failed"))
    with pytest.raises(SystemExit, match=r"40[13].*AIRFLOW_CLI_TOKEN"):
        reap("no-token")
    assert make.client.pools.get(pool).state not in ("Closing", "Closed")


NOT_OURS = r"No DAG run at http://127\.0\.0\.1:\d+ has the start .* of namespace page have\. Check that"


@pytest.mark.parametrize(
    ("run_id", "started"),
    [("is_failed", EARLIER), ("is_failed", LATER), ("is_unknown", STARTED)],
    ids=["an equal id, earlier", "an equal id, later", "no such run"],
)
def test_the_address_of_another_deployment_closes_nothing(
    reap: Callable[..., None], make: Maker, admin: TestClient, run_id: str, started: datetime
) -> None:
    pool = make.pool(owner=made_by(run_id, started))
    with pytest.raises(SystemExit, match=NOT_OURS):
        reap(admin.cookies["_token"])
    assert is_open(make, pool)


@pytest.mark.parametrize(
    "owner", [made_by("is_unknown"), made_by("is_failed", EARLIER)], ids=["deleted", "cleared since"]
)
def test_a_flag_skips_the_check_of_the_deployment(
    reap: Callable[..., None], make: Maker, admin: TestClient, owner: TaskInstanceIdentity
) -> None:
    pool = make.pool(owner=owner)
    reap(admin.cookies["_token"], skip_check=True)
    assert not is_open(make, pool)


def test_a_run_that_started_before_the_one_of_the_pool_is_another(
    reap: Callable[..., None], make: Maker, admin: TestClient
) -> None:
    other = make.pool(owner=made_by("is_failed", LATER))
    own = make.pool(owner=made_by("is_failed"))
    with pytest.raises(SystemExit, match=f"{other}: DAG run is_failed of reaped .* before the one that made"):
        reap(admin.cookies["_token"])
    assert is_open(make, other)
    assert not is_open(make, own)


def test_an_ended_object_shows_the_deployment(
    reap: Callable[..., None], make: Maker, admin: TestClient
) -> None:
    ended = make.pool(owner=made_by("is_failed"))
    make.client.pools.close(ended)
    until(lambda: make.client.pools.get(ended).state == "Closed", "the end of the pool")
    left = make.pool(owner=made_by("is_unknown"))
    reap(admin.cookies["_token"])
    assert not is_open(make, left)


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_task_instance_shows_the_deployment_of_an_executor(
    reap: Callable[..., None], make: Maker, admin: TestClient, instance: UUID, is_ours: bool
) -> None:
    """Its Qarnot tasks have no start of a run. Another Airflow has another task instance with the same ids."""
    pool = make.pool(labels=of_executor())
    ran = uuid_of_task(make, pool, instance if is_ours else UUID(int=7))
    until(lambda: make.client.tasks.get(ran).state == "Success", "the end of the task")
    if is_ours:
        reap(admin.cookies["_token"])
    else:
        with pytest.raises(SystemExit, match=NOT_OURS):
            reap(admin.cookies["_token"])
    assert is_open(make, pool), "it is shared, and has just been used"


def uuid_of_task(make: Maker, pool: str, instance: UUID) -> str:
    """Make a Qarnot task as the executor does, and return its uuid."""
    labels = made_by("is_running").labels(1, "x")
    labels |= {"airflow.run_started": "", "airflow.task_id": "fit", "airflow.map_index": "2"}
    spec = TaskSpec(
        name="fit",
        pool=pool,
        command="true",
        image="library/alpine",
        tags=[namespace_tag("page"), f"{INSTANCE_TAG}{instance}"],
        labels=labels,
    )
    return make.client.tasks.create(spec)


def test_without_anything_that_may_cost_there_is_nothing_to_check(
    reap: Callable[..., None], make: Maker, admin: TestClient
) -> None:
    ended = make.pool(owner=made_by("is_unknown"))
    make.client.pools.close(ended)
    until(lambda: make.client.pools.get(ended).state == "Closed", "the end of the pool")
    reap(admin.cookies["_token"])


def test_without_database_or_api_the_command_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    def no_database(*_: Any) -> None:
        raise OperationalError("SELECT", {}, Exception("no such table"))

    monkeypatch.setattr(cli, "_run_state", no_database)
    with pytest.raises(SystemExit, match=r"cannot be read \(OperationalError\)\. Give --api-url"):
        cli._checked_database()
    with pytest.raises(SystemExit, match=r"--conn-id names no connection.*AIRFLOW_CONN_NO_SUCH"):
        cli._hook("no_such")
