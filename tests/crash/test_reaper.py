"""The reaper against a local Qarnot: what it closes, what it never touches, and ``airflow qarnot reap``."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.api import filters
from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec
from airflow_qarnot_pool.exceptions import QarnotError, QarnotInvalidSpecError
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.maintenance import reaper
from airflow_qarnot_pool.maintenance.reaper import ReapLimits, ReapReport, reap
from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.reap import QarnotReapOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.ownership.identity import namespace_tag
from airflow_qarnot_pool.version_compat import TaskDeferred
from tests.crash.children import eventually, made_for
from tests.harness import FakeTI, context_of, life_of, run
from tests.operators.conftest import connect

LIMITS = ReapLimits(
    grace_period=timedelta(minutes=15),
    idle_timeout=timedelta(hours=1),
    delete_finished_after=timedelta(days=8),
)


@pytest.fixture
def qarnot(servers: dict[str, LocalQarnot]) -> LocalQarnot:
    return servers["enforce"]


@pytest.fixture
def client(qarnot: LocalQarnot) -> Iterator[QarnotClient]:
    with QarnotClient(qarnot.url, qarnot.token) as client:
        yield client
        qarnot.faults([])


@pytest.fixture
def namespace(request: pytest.FixtureRequest, qarnot: LocalQarnot, monkeypatch: pytest.MonkeyPatch) -> str:
    """A namespace of the test alone, on a server that all share."""
    name = re.sub(r"\W+", "-", request.node.name)[:63].strip("-")
    connect(qarnot, monkeypatch, namespace=name)
    return name


def made(run_id: str) -> str:
    """A pool as the operator makes it; its uuid."""
    make = partial(QarnotCreatePoolOperator, task_id="create", wait_for_completion=False)
    uuid: str = run(make, FakeTI(run_id=run_id))
    return uuid


def later(hours: float = 0.5) -> Callable[[], datetime]:
    return lambda: datetime.now(UTC) + timedelta(hours=hours)


def states(client: QarnotClient, *uuids: str) -> list[bool]:
    """Which of the pools are closed."""
    return [client.pools.get(uuid).state in ("Closing", "Closed") for uuid in uuids]


def by_uuid(report: ReapReport) -> dict[str, dict[str, Any]]:
    return {one["uuid"]: one for one in report.to_json()["pools"]}


def test_pools_of_runs_that_are_over_or_gone_are_closed(client: QarnotClient, namespace: str) -> None:
    runs = {
        "running": "running",
        "queued": "queued",
        "success": "success",
        "failed": "failed",
        "unknown": None,
    }
    pools = {name: made(name) for name in runs}
    report = reap(client, namespace, lambda dag_id, run_id: runs[run_id], LIMITS, now=later())
    assert {name: states(client, uuid)[0] for name, uuid in pools.items()} == {
        "running": False,
        "queued": False,
        "success": True,
        "failed": True,
        "unknown": True,
    }
    found = by_uuid(report)
    assert "DAG run dag failed has finished" in found[pools["failed"]]["reason"]
    assert "there is no DAG run dag unknown" in found[pools["unknown"]]["reason"]
    # Another look finds nothing more to do.
    again = reap(client, namespace, lambda dag_id, run_id: runs[run_id], LIMITS, now=later())
    assert (again.to_json()["closed"], again.failures) == (0, [])


@pytest.mark.parametrize("own_run", ["success", None], ids=["over", "unknown"])
def test_a_pool_is_kept_while_a_live_run_of_another_dag_works_on_it(
    client: QarnotClient, namespace: str, own_run: str | None
) -> None:
    names = [f"{own_run}-{number}" for number in range(2)]
    pool, unused = map(made, names)
    states_of = {**dict.fromkeys(names, own_run), "live": "running"}
    identity = life_of(namespace=namespace, dag_id="report", run_id="live")
    work = TaskSpec(
        name="x",
        pool=pool,
        command="sleep 60",
        instance_count=1,
        tags=identity.tags(),
        labels=identity.labels(1, ""),
    )
    task = client.tasks.create(work)

    def reaped() -> ReapReport:
        return reap(client, namespace, lambda dag_id, run_id: states_of[run_id], LIMITS, now=later())

    assert by_uuid(reaped())[pool]["reason"] == "it is used by DAG run live of report"
    assert states(client, pool, unused) == [False, True]
    assert client.tasks.get(task).state != "Cancelled"
    states_of["live"] = "failed"
    reaped()
    assert states(client, pool) == [True]


@pytest.mark.parametrize(
    "changes",
    [{"run_id": "over"}, {"namespace": "another"}, {"dag_id": ""}],
    ids=["its own run's", "another deployment's", "nobody's"],
)
def test_work_that_no_live_run_of_ours_waits_for_keeps_no_pool(
    client: QarnotClient, namespace: str, changes: dict[str, str]
) -> None:
    pool = made("over")
    identity = life_of(**{"namespace": namespace, "run_id": "live", **changes})
    labels = identity.labels(1, "") if identity.dag_id else {}
    client.tasks.create(
        TaskSpec(
            name="x", pool=pool, command="sleep 60", instance_count=1, tags=identity.tags(), labels=labels
        )
    )
    runs = {"over": "success", "live": "running"}
    reap(client, namespace, lambda dag_id, run_id: runs[run_id], LIMITS, now=later())
    assert states(client, pool) == [True]


def test_a_run_that_has_just_ended_is_left_to_its_teardown(client: QarnotClient, namespace: str) -> None:
    pool = made("over")
    report = reap(client, namespace, lambda dag_id, run_id: "failed", LIMITS)
    assert by_uuid(report)[pool]["action"] == "keep"
    assert states(client, pool) == [False]


def test_a_pool_that_has_been_idle_too_long_is_closed_and_a_busy_one_is_not(
    client: QarnotClient, namespace: str
) -> None:
    idle, busy = made("idle"), made("busy")
    task = client.tasks.create(TaskSpec(name="x", pool=busy, command="sleep 60", instance_count=1))
    reap(client, namespace, lambda dag_id, run_id: "running", LIMITS, now=later(2))
    # Work whose Qarnot tasks were deleted is not listed: the first look only notes since when it is idle.
    assert states(client, idle, busy) == [False, False]
    reap(client, namespace, lambda dag_id, run_id: "running", LIMITS, now=later(4))
    assert states(client, idle, busy) == [True, False]
    client.tasks.abort(task)


def test_another_namespace_is_not_touched(
    qarnot: LocalQarnot, client: QarnotClient, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = made("over")
    connect(qarnot, monkeypatch, namespace=f"{namespace[:60]}-2")
    theirs = made("over")
    report = reap(client, namespace, lambda dag_id, run_id: None, LIMITS, now=later())
    assert states(client, mine, theirs) == [True, False]
    assert by_uuid(report).keys() == {mine}


def strangers(namespace: str) -> dict[str, PoolSpec]:
    """Pools with our namespace tag that this provider did not make in this namespace."""
    identity = life_of(namespace=namespace, run_id="over")
    tag = namespace_tag(namespace)
    labels = identity.labels(1, "spec")
    plain = PoolSpec(name="somebody's", instance_count=1, tags=[tag])
    return {
        "the tag alone": plain,
        "labels of another namespace": replace(plain, labels={**labels, "airflow.namespace": "other"}),
        "labels without a format": replace(
            plain, labels={k: v for k, v in labels.items() if k != "airflow.format"}
        ),
        "tags of two namespaces": replace(plain, labels=labels, tags=[tag, namespace_tag("other")]),
    }


@pytest.mark.parametrize("which", strangers("x"))
def test_a_pool_that_only_looks_like_ours_is_not_touched(
    client: QarnotClient, namespace: str, which: str
) -> None:
    pool = client.pools.create(strangers(namespace)[which])
    report = reap(client, namespace, lambda dag_id, run_id: None, LIMITS, now=later(100))
    assert states(client, pool) == [False]
    assert report.entries == []
    client.pools.delete(pool)


def test_a_shared_pool_is_closed_for_idleness_only(client: QarnotClient, namespace: str) -> None:
    labels = life_of(namespace=namespace, run_id="over").labels(1, "spec")
    spec = PoolSpec(
        name="shared",
        instance_count=1,
        tags=[namespace_tag(namespace)],
        labels={**labels, "airflow.shared": "name"},
    )
    pool = client.pools.create(spec)
    asked: list[str] = []

    def run_state(dag_id: str, run_id: str) -> str | None:
        asked.append(run_id)
        return "failed"

    reap(client, namespace, run_state, LIMITS, now=later(0.5))
    assert states(client, pool) == [False]
    reap(client, namespace, run_state, LIMITS, now=later(2))
    assert states(client, pool) == [True]
    assert asked == []


def test_a_dry_run_does_nothing(qarnot: LocalQarnot, client: QarnotClient, namespace: str) -> None:
    pool = made("over")
    qarnot.clear_requests()
    report = reap(client, namespace, lambda dag_id, run_id: None, LIMITS, dry_run=True, now=later())
    assert {one["method"] + one["path"].rpartition("/")[0] for one in qarnot.requests()} <= {
        "POST/pools",
        "POST/tasks",
        "GET",
        f"GET/pools/{pool}",
    }
    assert states(client, pool) == [False]
    assert (by_uuid(report)[pool]["action"], by_uuid(report)[pool]["done"]) == ("close", False)
    assert (report.to_json()["closed"], report.to_json()["dry_run"]) == (1, True)


def test_it_checks_again_right_before_closing(client: QarnotClient, namespace: str) -> None:
    """Between the listing and the close somebody clears the run, or deletes the pool."""
    cleared, deleted = made("cleared"), made("deleted")
    answers = {"cleared": ["failed", "running"], "deleted": ["failed", "failed"]}

    def run_state(dag_id: str, run_id: str) -> str | None:
        if run_id == "deleted" and len(answers[run_id]) == 2:
            client.pools.delete(deleted)
            eventually(lambda: client.pools.find(deleted) is None)
        return answers[run_id].pop(0)

    report = reap(client, namespace, run_state, LIMITS, now=later())
    assert states(client, cleared) == [False]
    assert answers == {"cleared": [], "deleted": ["failed"]}
    assert {one["action"] for one in by_uuid(report).values()} == {"keep"}
    assert "deleted by now" in by_uuid(report)[deleted]["reason"]
    assert report.failures == []


def without_grace(**parameters: Any) -> QarnotReapOperator:
    """One for which a run that ends now has ended long ago: times have a resolution of a second."""
    operator = QarnotReapOperator(task_id="reap", **parameters)
    # Refused from a DAG author: a negative duration can only be made by a test.
    operator._duration = lambda name: {  # type: ignore[method-assign]
        "grace_period": timedelta(seconds=-60),
        "idle_timeout": timedelta(hours=1),
        "delete_finished_after": timedelta(days=8),
        "delete_environments_after": timedelta(days=30),
    }[name]
    return operator


def test_one_that_cannot_be_closed_does_not_spare_the_others(
    qarnot: LocalQarnot, client: QarnotClient, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubborn, willing = made("stubborn"), made("willing")
    refusal = {"method": "POST", "path": f"^/pools/{stubborn}/close$", "kind": "status", "status": 403}
    qarnot.faults([refusal])
    report = reap(client, namespace, lambda dag_id, run_id: None, LIMITS, now=later())
    assert states(client, stubborn, willing) == [False, True]
    assert [failure.split(":")[0] for failure in report.failures] == [stubborn]
    monkeypatch.setattr("airflow_qarnot_pool.operators.reap.dag_run_state", lambda *_: None)
    operator = without_grace()
    with pytest.raises(
        QarnotError, match=rf"1 pools, tasks or buckets could not be checked or cleaned up:\n{stubborn}"
    ):
        operator.execute(context_of(operator))


def test_the_stored_report_counts_ended_pools_and_lists_none(client: QarnotClient, namespace: str) -> None:
    ended, opened = made("over"), made("open")
    client.pools.close(ended)
    eventually(lambda: client.pools.get(ended).state == "Closed")
    report = reap(client, namespace, lambda dag_id, run_id: "running", LIMITS).to_json()
    assert [entry["uuid"] for entry in report["pools"]] == [opened]
    assert report["kept"] == 2


@pytest.mark.usefixtures("namespace")
def test_the_error_about_many_failures_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    report = ReapReport(namespace="test", dry_run=False, failures=["refused, because of a reason"] * 10_000)
    monkeypatch.setattr(reaper, "reap", lambda *args, **options: report)
    operator = without_grace()
    with pytest.raises(QarnotError, match="10000 pools, tasks or buckets") as error:
        operator.execute(context_of(operator))
    assert len(str(error.value)) < 11_000


def test_finished_pools_are_deleted_past_their_time(client: QarnotClient, namespace: str) -> None:
    pool = made("over")
    client.pools.close(pool)
    eventually(lambda: client.pools.get(pool).state == "Closed")
    kept = reap(client, namespace, lambda *_: "success", LIMITS, now=later(7 * 24))
    assert {entry.uuid: entry.action for entry in kept.entries}[pool] == "keep"
    gone = reap(client, namespace, lambda *_: "success", LIMITS, now=later(9 * 24))
    assert (by_uuid(gone)[pool]["action"], gone.to_json()["deleted"]) == ("delete", 1)
    assert client.pools.find(pool) is None


def test_the_report_is_what_the_docs_say(
    qarnot: LocalQarnot, client: QarnotClient, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, live = made("over"), made("live")
    monkeypatch.setattr(
        "airflow_qarnot_pool.operators.reap.dag_run_state",
        lambda dag_id, run_id: {"over": "failed", "live": "running"}[run_id],
    )
    operator = without_grace(report_only="True")
    dry = operator.execute(context_of(operator))
    assert states(client, over, live) == [False, False]
    operator = without_grace()
    report = json.loads(json.dumps(operator.execute(context_of(operator))))
    assert states(client, over, live) == [True, False]
    pools = report.pop("pools")
    assert report == {
        "namespace": namespace,
        "dry_run": False,
        "closed": 1,
        "deleted": 0,
        "kept": 1,
        "aborted": 0,
        "tidied": 0,
        "tasks": [],
        "environments": [],
        "failures": [],
    }
    assert {**report, "dry_run": True} == {key: value for key, value in dry.items() if key != "pools"}
    (closed,) = [one for one in pools if one["uuid"] == over]
    assert closed == {
        "uuid": over,
        "name": "adhoc_airflow.create",
        "dag_id": "dag",
        "run_id": "over",
        "action": "close",
        "reason": "its DAG run dag over has finished (failed)",
        "done": True,
    }


def test_without_a_namespace_of_its_own_it_refuses(
    qarnot: LocalQarnot, client: QarnotClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(qarnot, monkeypatch, namespace="")
    qarnot.clear_requests()
    operator = QarnotReapOperator(task_id="reap")
    with pytest.raises(QarnotInvalidSpecError, match="namespace"):
        operator.execute(context_of(operator))
    assert qarnot.requests() == []


# --- Qarnot tasks with nodes of their own

ALONE = partial(QarnotRunTaskOperator, task_id="work", command="sleep 600", log_output=False)


def alone(run_id: str, **parameters: Any) -> str:
    """A Qarnot task with nodes of its own as the operator makes it; its uuid."""
    ti = FakeTI(run_id=run_id, task_id="work")
    operator = ALONE(**parameters)
    with suppress(TaskDeferred):
        operator.execute(context_of(operator, ti))
    return str(ti.xcoms["qarnot_task"])


def aborted(client: QarnotClient, *uuids: str) -> list[bool]:
    return [client.tasks.get(uuid).state in ("PendingCancel", "Cancelled") for uuid in uuids]


@pytest.fixture
def no_task_left(client: QarnotClient, namespace: str) -> Iterator[None]:
    yield
    for task in client.tasks.search(
        filters.equal("Tags", namespace_tag(namespace)), fields=("Uuid",), limit=100
    ):
        client.tasks.delete(task.uuid)


@pytest.mark.usefixtures("no_task_left")
def test_qarnot_tasks_without_a_pool_are_aborted_when_their_run_is_over_or_gone(
    client: QarnotClient, namespace: str
) -> None:
    runs = {"running": "running", "success": "success", "failed": "failed", "unknown": None}
    tasks = {name: alone(name) for name in runs}

    def run_state(dag_id: str, run_id: str) -> str | None:
        return runs[run_id]

    early = reap(client, namespace, run_state, LIMITS)
    assert aborted(client, *tasks.values()) == [False] * 4
    assert {one.action for one in early.tasks} == {"keep"}
    dry = reap(client, namespace, run_state, LIMITS, dry_run=True, now=later())
    assert (dry.to_json()["aborted"], aborted(client, *tasks.values())) == (3, [False] * 4)
    report = reap(client, namespace, run_state, LIMITS, now=later()).to_json()
    assert (report["aborted"], report["failures"], report["pools"]) == (3, [], [])
    assert dict(zip(tasks, aborted(client, *tasks.values()), strict=True)) == {
        name: name != "running" for name in runs
    }
    (failed,) = [one for one in report["tasks"] if one["uuid"] == tasks["failed"]]
    assert (failed["action"], failed["done"]) == ("abort", True)
    assert failed["reason"] == "its DAG run dag failed has finished (failed)"
    # Another look finds nothing more to do, however long the abort takes.
    assert reap(client, namespace, run_state, LIMITS, now=later()).to_json()["aborted"] == 0


@pytest.mark.usefixtures("no_task_left")
def test_qarnot_tasks_that_are_to_outlive_their_run_or_are_not_ours_are_not_touched(
    qarnot: LocalQarnot, client: QarnotClient, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [alone("let-go", wait_for_completion=False), alone("survives", cancel_on_kill=False)]
    many = QarnotRunTasksOperator(task_id="many", commands=["sleep 600"], wait_for_completion=False)
    many.execute(context_of(many, FakeTI(run_id="many", task_id="many")))
    left += [one.uuid for one in made_for(client.tasks, "many", role="")]
    tag = namespace_tag(namespace)
    left.append(
        client.tasks.create(TaskSpec(name="somebody's", command="sleep 600", instance_count=1, tags=[tag]))
    )
    pool = made("pool")
    left.append(alone("on-a-pool", qarnot_pool=pool))
    connect(qarnot, monkeypatch, namespace=f"{namespace[:60]}-2")
    theirs = alone("theirs")
    report = reap(
        client, namespace, lambda dag_id, run_id: "running" if run_id == "pool" else None, LIMITS, now=later()
    )
    assert len(left) == 5
    assert aborted(client, *left, theirs) == [False] * 6
    assert report.tasks == []
    client.tasks.delete(theirs)
    client.pools.delete(pool)


@pytest.mark.usefixtures("no_task_left")
def test_pools_that_cannot_be_listed_spare_no_qarnot_task(
    qarnot: LocalQarnot, client: QarnotClient, namespace: str
) -> None:
    task = alone("over")
    qarnot.faults([{"method": "POST", "path": "^/pools/paginate$", "kind": "status", "status": 403}])
    with pytest.raises(QarnotError):
        reap(client, namespace, lambda dag_id, run_id: None, LIMITS, now=later())
    assert aborted(client, task) == [True]


@pytest.mark.usefixtures("no_task_left")
@pytest.mark.parametrize("what", ["the listing", "one of them"])
def test_a_qarnot_task_that_cannot_be_looked_after_spares_nothing_else(
    qarnot: LocalQarnot, client: QarnotClient, namespace: str, what: str
) -> None:
    pool, stubborn, willing = made("over"), alone("stubborn"), alone("willing")
    path = "^/tasks/paginate$" if what == "the listing" else f"^/tasks/{stubborn}/abort$"
    qarnot.faults([{"method": "POST", "path": path, "kind": "status", "status": 403}])
    report = reap(client, namespace, lambda dag_id, run_id: None, LIMITS, now=later())
    assert states(client, pool) == [True]
    assert aborted(client, stubborn, willing) == [False, what == "one of them"]
    assert len(report.failures) == 1


# --- the command line

#: A DAG run that is not over, the connection, and ``airflow`` in the same process.
WITH_A_RUN = """
import json, os
from datetime import datetime, timezone
from airflow.__main__ import main
from airflow.models.connection import Connection
from airflow.models.dagrun import DagRun
from airflow.utils.session import create_session
now = datetime.now(timezone.utc)
with create_session() as session:
    session.add(DagRun(dag_id="dag", run_id="live", run_type="manual", state="running", run_after=now))
    fields = json.loads(os.environ["CONNECTION"])
    session.add(Connection("qarnot_default", **{**fields, "extra": json.dumps(fields["extra"])}))
main()
"""


def test_reap_from_the_command_line(
    qarnot: LocalQarnot, client: QarnotClient, namespace: str, migrated: Path, tmp_path: Path
) -> None:
    """An Airflow home of its own, and no task runner: the connection and the runs come from the database."""
    live, unknown, task = made("live"), made("unknown"), alone("unknown")
    shutil.copy(migrated, tmp_path / "airflow.db")
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path}/airflow.db",
        "AIRFLOW__CORE__FERNET_KEY": "",
    }
    environment["CONNECTION"] = environment.pop("AIRFLOW_CONN_QARNOT_DEFAULT")

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    command = ("qarnot", "reap", "--grace-period-minutes", "0")
    dry = python("-c", WITH_A_RUN, *command, "--dry-run")
    assert re.search(rf"^close +{unknown} .*there is no DAG run dag unknown", dry, re.MULTILINE)
    assert re.search(rf"^keep +{live} .*its DAG run is running", dry, re.MULTILINE)
    assert "1 would be closed, 0 would be deleted, 1 kept" in dry
    assert re.search(rf"^abort +{task} .*there is no DAG run dag unknown", dry, re.MULTILINE)
    assert "1 of 1 Qarnot tasks with their own nodes would be aborted" in dry
    assert states(client, live, unknown) == [False, False]
    assert "1 closed, 0 deleted, 1 kept" in python("-m", "airflow", *command)
    assert states(client, live, unknown) == [False, True]
    assert aborted(client, task) == [True]
    client.pools.delete(live)
