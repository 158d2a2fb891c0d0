"""Pools that are opened ahead of a scheduled run, and pools that linger for the next one.

Whatever becomes of the run, there is one pool, and no node is up after ``keep_warm``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pendulum
import pytest
from airflow.providers.standard.triggers.temporal import DateTimeTrigger
from airflow.sdk import DAG
from airflow.utils.types import DagRunType

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.models import Pool
from airflow_qarnot_pool.api.specs import TaskSpec
from airflow_qarnot_pool.exceptions import QarnotSpecMismatchError
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators import lingering
from airflow_qarnot_pool.operators import open_ahead as module
from airflow_qarnot_pool.operators.open_ahead import QarnotOpenAheadOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.ownership.identity import OWNER_TAG
from airflow_qarnot_pool.sizing.boots import FIRST_GUESS, read_boots
from airflow_qarnot_pool.task_groups.ahead import open_ahead
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup
from airflow_qarnot_pool.timetables.ahead import AheadTimetable
from airflow_qarnot_pool.version_compat import AirflowSkipException, TaskDeferred
from tests.crash.children import eventually
from tests.harness import FakeTI, fire, life_of
from tests.operators.test_shared import creations

KEEP_WARM = timedelta(minutes=2)
LEAD = timedelta(minutes=30)


class Nights:
    """A DAG with a shared pool, its companion, and Airflow's plan for the DAG."""

    def __init__(self, client: QarnotClient, name: str) -> None:
        self.client, self.name = client, name
        #: The response of Airflow about the DAG. None: Airflow 3.1, or an error.
        self.stored: Any = None
        self.start = datetime.now(UTC) + timedelta(minutes=1)
        self.states: dict[str, str | None] = {}
        #: Parameters of the group.
        self.group: dict[str, Any] = {}
        self.schedule = "* * * * *"

    @property
    def logical_date(self) -> datetime:
        return self.start - timedelta(days=1)

    def plan(self, *, is_paused: bool = False, logical_date: datetime | None = None) -> None:
        """Let the scheduler plan the run at ``start``, or another one."""
        self.stored = SimpleNamespace(is_paused=is_paused, next_dagrun=logical_date or self.logical_date)

    def dags(self) -> tuple[DAG, DAG]:
        """Parse the file of the DAG."""
        group = {"shared": self.name, "instance_count": 2, "keep_warm": KEEP_WARM, **self.group}
        with DAG(self.name, schedule=self.schedule) as dag, QarnotPoolGroup("nodes", **group):
            QarnotRunTaskOperator(task_id="work", command="true", log_output=False)
        return dag, open_ahead(dag)

    def slices(self, task_id: str, run_id: str, run_type: str = "scheduled", **fields: Any) -> Slices:
        is_companion = task_id == "open_pool"
        lead = LEAD if is_companion and run_type == "scheduled" else timedelta()
        dag_run = SimpleNamespace(
            start_date=self.start,
            run_type=run_type,
            run_after=self.start - lead,
            logical_date=self.logical_date - lead,
            data_interval_start=datetime.now(UTC),
            data_interval_end=datetime.now(UTC),
        )
        dag_id = f"{self.name}.open_ahead" if is_companion else self.name
        ti = FakeTI(dag_id=dag_id, run_id=run_id, task_id=task_id, max_tries=3, **fields)
        return Slices(lambda: self.dags()[is_companion].get_task(task_id), {"ti": ti, "dag_run": dag_run})

    def companion(self, **fields: Any) -> Slices:
        return self.slices("open_pool", "ahead", **fields)

    def open_early(self) -> tuple[Slices, str]:
        """Let the companion open the pool and wait for the run; its slices, and the pool."""
        companion = self.companion()
        waiting = companion.resume("open_in_time")
        assert waiting.method_name == "close_unclaimed"
        (pool,) = self.live()
        return companion, pool.uuid

    def run(self, run_id: str) -> str:
        """Run the DAG; its pool."""
        pool: str = self.slices("nodes.open_pool", run_id).execute()
        self.slices("nodes.close_pool", run_id).execute()
        return pool

    def pools(self) -> list[Pool]:
        return self.client.pools.list([OWNER_TAG + life_of(shared=self.name).owner])

    def live(self) -> list[Pool]:
        return [one for one in self.pools() if one.state not in ("Closing", "Closed")]

    def holds(self, pool: str) -> list[str]:
        """The runs that hold a pool."""
        return sorted(job.name.split('"')[3] for job in self.client.pools.jobs(pool) if job.name)


class Slices:
    """The slices of an Airflow task, each in a new operator of a DAG that is parsed again."""

    def __init__(self, make: Callable[[], Any], context: dict[str, Any]) -> None:
        self._make, self.context = make, context

    def execute(self) -> Any:
        return self._run(lambda operator, context: operator.execute(context))

    def resume(self, method: str, event: Any = None) -> Any:
        """Resume, and return the result, or the deferral if it waits for a time."""
        return self._run(
            lambda operator, context: operator.resume_execution(method, {"event": event}, context)
        )

    def defer(self, method: str) -> TaskDeferred:
        """Resume one slice, which must defer."""
        with pytest.raises(TaskDeferred) as caught:
            self._one(lambda operator, context: getattr(operator, method)(context))
        return caught.value

    def _run(self, call: Callable[[Any, Any], Any]) -> Any:
        try:
            return self._one(call)
        except TaskDeferred as deferred:
            if isinstance(deferred.trigger, DateTimeTrigger):
                return deferred
            return self.resume(deferred.method_name, fire(deferred))

    def _one(self, call: Callable[[Any, Any], Any]) -> Any:
        operator = self._make()
        context = {**self.context, "task": operator, "dag": operator.dag}
        operator.render_template_fields(context)
        return call(operator, context)


@pytest.fixture
def nights(
    qarnot: LocalQarnot, client: QarnotClient, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Nights]:
    name = "".join(char if char.isalnum() else "-" for char in request.node.name)[-63:].strip("-")
    nights = Nights(client, name)

    def stored(dag_id: str) -> Any:
        assert dag_id == name
        if isinstance(nights.stored, Exception):
            raise nights.stored
        return nights.stored

    monkeypatch.setattr("airflow_qarnot_pool.ownership.liveness.dag_as_stored", stored)
    monkeypatch.setattr(
        "airflow_qarnot_pool.ownership.liveness.dag_run_state",
        lambda dag_id, run_id: nights.states.get(run_id, "running"),
    )
    nights.plan()
    yield nights
    for pool in nights.live():
        client.pools.close(pool.uuid)


def nodes_of(qarnot: LocalQarnot, pool: str) -> list[Any]:
    return [node for node in qarnot.nodes() if node["pool"] == pool]


def cool_down(qarnot: LocalQarnot, pool: str) -> None:
    """Let ``keep_warm`` pass for the idle nodes of *pool*."""
    eventually(lambda: not any(node["running"] for node in nodes_of(qarnot, pool)))
    qarnot.advance_clock(KEEP_WARM.total_seconds() - 30)
    assert len(nodes_of(qarnot, pool)) == 2
    qarnot.advance_clock(31)
    assert nodes_of(qarnot, pool) == []


# --- opened ahead


def test_the_companion_waits_until_the_run_is_a_boot_away(qarnot: LocalQarnot, nights: Nights) -> None:
    nights.start = datetime.now(UTC) + timedelta(minutes=20)
    waiting = nights.companion().execute()
    assert waiting.method_name == "open_in_time"
    assert waiting.trigger.moment == nights.start - FIRST_GUESS
    assert creations(qarnot) == 0


def test_the_run_finds_the_pool_warm_and_closes_it(qarnot: LocalQarnot, nights: Nights) -> None:
    companion, pool = nights.open_early()
    assert len(nodes_of(qarnot, pool)) == 2
    assert nights.holds(pool) == ["ahead"]
    qarnot.clear_requests()
    assert nights.slices("nodes.open_pool", "night").execute() == pool
    assert nights.holds(pool) == ["night"], "the companion no longer holds it"
    warm_ups = [one for one in qarnot.requests() if one["method"] == "POST" and one["path"] == "/tasks"]
    assert not warm_ups, "nothing has to boot"
    nights.slices("nodes.close_pool", "night").execute()
    assert nights.live() == []
    companion.resume("close_unclaimed")
    assert len(nights.pools()) == 1


def test_the_companion_ends_no_pool_that_its_run_has_taken_over(nights: Nights) -> None:
    companion, pool = nights.open_early()
    nights.slices("nodes.open_pool", "night").execute()
    companion.resume("close_unclaimed")
    assert [one.uuid for one in nights.live()] == [pool]
    assert nights.holds(pool) == ["night"]


def test_the_companion_ends_no_pool_that_lingers_after_its_run(nights: Nights) -> None:
    nights.group = {"linger": 1.0}
    companion, pool = nights.open_early()
    nights.stored = None
    work = TaskSpec(name="work", pool=pool, command="true", labels=life_of(dag_id=nights.name).labels(1, ""))
    done = nights.client.tasks.create(work)
    eventually(lambda: nights.client.tasks.get(done).state == "Success")
    assert nights.run("night") == pool
    companion.resume("close_unclaimed")
    assert [one.uuid for one in nights.live()] == [pool]


def test_a_run_by_hand_leaves_the_pool_to_the_scheduled_one(nights: Nights) -> None:
    _, pool = nights.open_early()
    nights.slices("nodes.open_pool", "by hand", run_type="manual").execute()
    nights.slices("nodes.close_pool", "by hand", run_type="manual").execute()
    assert [one.uuid for one in nights.live()] == [pool]
    assert nights.holds(pool) == ["ahead"]


def test_a_companion_started_by_hand_opens_the_pool_at_once(nights: Nights) -> None:
    nights.stored = LookupError("not asked")
    uuid = nights.slices("open_pool", "by hand", run_type="manual").execute()
    assert [one.uuid for one in nights.live()] == [uuid]


#: What Airflow says of the DAG when its pool is to be opened, and a part of the reason to skip.
NO_RUN: dict[str, tuple[Callable[[Nights], None], str]] = {
    "paused": (lambda nights: nights.plan(is_paused=True), "is paused"),
    "deleted": (
        lambda nights: setattr(nights, "stored", LookupError("There is no DAG 'd'")),
        "There is no DAG",
    ),
    "changed": (lambda nights: nights.plan(logical_date=nights.start), "schedule has changed"),
    "ended": (
        lambda nights: setattr(nights, "stored", SimpleNamespace(is_paused=False, next_dagrun=None)),
        "schedule has changed",
    ),
}


@pytest.mark.parametrize(("fault", "reason"), NO_RUN.values(), ids=NO_RUN)
def test_no_pool_is_opened_for_a_run_that_does_not_come(
    fault: Callable[[Nights], None], reason: str, qarnot: LocalQarnot, nights: Nights
) -> None:
    fault(nights)
    with pytest.raises(AirflowSkipException, match=reason):
        nights.companion().resume("open_in_time")
    assert creations(qarnot) == 0


def test_no_pool_is_opened_after_the_run_has_begun(qarnot: LocalQarnot, nights: Nights) -> None:
    nights.start = datetime.now(UTC) - timedelta(seconds=1)
    with pytest.raises(AirflowSkipException, match="has begun"):
        nights.companion().execute()
    assert creations(qarnot) == 0


def test_no_pool_is_opened_if_the_wait_for_the_time_took_too_long(
    qarnot: LocalQarnot, nights: Nights
) -> None:
    nights.start = datetime.now(UTC) - timedelta(seconds=1)
    with pytest.raises(AirflowSkipException, match="has begun"):
        nights.companion().resume("open_in_time")
    assert creations(qarnot) == 0


@pytest.mark.usefixtures("defers_at_once")
def test_the_companion_opens_no_second_pool_after_its_run_has_closed_the_first(
    qarnot: LocalQarnot, nights: Nights
) -> None:
    qarnot.withhold_nodes(True)
    companion = nights.companion()
    waiting = companion.defer("open_in_time")
    qarnot.withhold_nodes(False)
    (pool,) = nights.live()
    nights.client.pools.close(pool.uuid)
    companion.context["dag_run"].run_after = datetime.now(UTC) - LEAD
    with pytest.raises(AirflowSkipException, match="was closed before it was ready"):
        companion.resume(waiting.method_name, fire(waiting))
    assert creations(qarnot) == 1


def test_a_pool_that_no_run_claims_is_closed(nights: Nights) -> None:
    companion, pool = nights.open_early()
    assert companion.resume("close_unclaimed") == pool
    assert nights.live() == []


@pytest.mark.parametrize("by", ["ahead", "another run"])
def test_only_its_own_pool_is_closed_after_its_hold_could_not_be_created(by: str, nights: Nights) -> None:
    companion, pool = nights.open_early()
    for job in nights.client.pools.jobs(pool):
        nights.client.jobs.delete(job.uuid)
    companion.context["ti"].run_id = by
    companion.resume("close_unclaimed")
    assert [one.uuid for one in nights.live()] == [pool] * (by == "another run")


def test_a_retry_after_the_start_closes_a_pool_that_no_run_claims(nights: Nights) -> None:
    nights.open_early()
    nights.start = datetime.now(UTC) - KEEP_WARM
    with pytest.raises(AirflowSkipException, match="has begun"):
        nights.companion(try_number=2).execute()
    assert nights.live() == []


def test_a_dead_airflow_leaves_no_node_up_after_keep_warm(qarnot: LocalQarnot, nights: Nights) -> None:
    _, pool = nights.open_early()
    cool_down(qarnot, pool)


def test_an_airflow_that_dies_during_the_boot_leaves_no_node_up_after_a_boot_and_keep_warm(
    qarnot: LocalQarnot, nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_WARM_UP", timedelta(seconds=1))
    nights.start = datetime.now(UTC) + timedelta(seconds=1)
    nights.plan()
    monkeypatch.setattr(QarnotOpenAheadOperator, "_wait", dies)
    with pytest.raises(SystemExit):
        nights.companion().resume("open_in_time")
    (pool,) = nights.live()
    eventually(lambda: [one.state for one in nights.client.pools.tasks(pool.uuid)] == ["Success"])
    cool_down(qarnot, pool.uuid)


def dies(*_: Any, **__: Any) -> Any:
    raise SystemExit


@pytest.mark.usefixtures("defers_at_once")
def test_boots_are_read_from_the_record_of_earlier_pools(qarnot: LocalQarnot, nights: Nights) -> None:
    def states(pool: Any) -> list[str]:
        return [one.state for one in nights.client.pools.tasks(pool.uuid)]

    for run_id in ("first", "second"):
        opener = nights.slices("nodes.open_pool", run_id)
        qarnot.withhold_nodes(True)
        waiting = opener.defer("execute")
        qarnot.advance_clock(5)  # the times of the service are whole seconds
        qarnot.withhold_nodes(False)
        (pool,) = nights.live()
        eventually(lambda pool=pool: states(pool) == ["FullyExecuting"], say="the warm-up runs")
        opener.resume(waiting.method_name, fire(waiting))
        eventually(lambda pool=pool: states(pool) == ["Cancelled"], say="the warm-up has ended")
        nights.slices("nodes.close_pool", run_id).execute()
    boots = read_boots(nights.client, life_of(shared=nights.name), f"{nights.name} (warm-up)")
    assert len(boots) == 2
    for boot in boots:
        assert boot.duration >= timedelta(seconds=5)
        assert boot.node_seconds > 0
    nights.start = datetime.now(UTC) + timedelta(minutes=20)
    waiting = nights.companion().execute()
    assert waiting.trigger.moment == nights.start - max(boot.duration for boot in boots)


@pytest.mark.parametrize("fault", [fault for fault, _ in NO_RUN.values()], ids=NO_RUN)
def test_a_retry_closes_the_pool_of_a_run_that_is_no_longer_to_come(
    fault: Callable[[Nights], None], nights: Nights
) -> None:
    nights.open_early()
    fault(nights)
    with pytest.raises(AirflowSkipException):
        nights.companion(try_number=2).resume("open_in_time")
    assert nights.live() == []


@pytest.mark.parametrize(("minutes_later", "stays"), [(0, False), (1, True)])
def test_a_late_run_leaves_the_pool_that_was_opened_ahead_of_the_next(
    minutes_later: int, stays: bool, nights: Nights
) -> None:
    run_after = nights.start - LEAD + timedelta(minutes=minutes_later)
    run_id = AheadTimetable(nights.dags()[0].timetable, LEAD).generate_run_id(
        run_type=DagRunType.SCHEDULED, run_after=pendulum.instance(run_after), data_interval=None
    )
    nights.slices("open_pool", run_id).resume("open_in_time")
    pool = nights.run("late")
    assert [one.uuid for one in nights.live()] == [pool] * stays
    assert nights.holds(pool) == [run_id] * stays


# --- after a change of the parameters


@pytest.mark.parametrize("is_ahead", [True, False])
def test_a_run_replaces_the_pool_that_was_opened_or_kept_with_other_parameters(
    is_ahead: bool, nights: Nights
) -> None:
    nights.group = {"linger": 1.0}
    if is_ahead:
        companion, old = nights.open_early()
    else:
        nights.stored = None
        companion, old = nights.companion(), nights.run("before")
        assert nights.live()
    nights.group |= {"keep_warm": 2 * KEEP_WARM}
    new = nights.slices("nodes.open_pool", "night").execute()
    assert new != old
    assert [one.uuid for one in nights.live()] == [new]
    if is_ahead:
        companion.resume("close_unclaimed")
        assert [one.uuid for one in nights.live()] == [new]
    assert nights.holds(new) == ["night"]


def test_a_companion_replaces_the_pool_of_an_earlier_run_of_it_and_not_of_a_later(nights: Nights) -> None:
    def run_id(minutes: int) -> str:
        run_after = nights.start - LEAD + timedelta(minutes=minutes)
        return AheadTimetable(nights.dags()[0].timetable, LEAD).generate_run_id(
            run_type=DagRunType.SCHEDULED, run_after=pendulum.instance(run_after), data_interval=None
        )

    nights.slices("open_pool", run_id(0)).resume("open_in_time")
    nights.group = {"keep_warm": 2 * KEEP_WARM}
    nights.slices("open_pool", run_id(2)).resume("open_in_time")
    (new,) = nights.live()
    assert nights.holds(new.uuid) == [run_id(2)]
    nights.group = {}
    with pytest.raises(QarnotSpecMismatchError, match=r"scaling \(keep_warm\). It is used by DAG run"):
        nights.slices("open_pool", run_id(1)).resume("open_in_time")
    assert [one.uuid for one in nights.live()] == [new.uuid]


# --- lingering


def test_the_last_one_out_keeps_the_pool_for_the_next_run(qarnot: LocalQarnot, nights: Nights) -> None:
    nights.group, nights.stored = {"linger": 1.0}, None
    pool = nights.run("first")
    assert [one.uuid for one in nights.live()] == [pool]
    assert nights.holds(pool) == [], "nothing but Qarnot has to end it"
    assert nights.run("second") == pool
    assert creations(qarnot) == 1


def test_a_pool_that_lingers_in_vain_has_no_node_after_keep_warm(qarnot: LocalQarnot, nights: Nights) -> None:
    nights.group, nights.stored = {"linger": 1.0}, None
    pool = nights.run("last")
    cool_down(qarnot, pool)


#: What is known at the last release, for which a pool is closed though a run without a boot is worth an euro.
NO_LINGER: dict[str, Callable[[Nights], None]] = {
    "by default": lambda nights: nights.group.clear(),
    "paused": lambda nights: nights.plan(is_paused=True),
    "deleted": lambda nights: setattr(nights, "stored", LookupError("There is no DAG 'd'")),
    "another schedule": lambda nights: nights.plan(logical_date=nights.start + timedelta(days=1, seconds=1)),
    "Airflow does not say": lambda nights: setattr(nights, "stored", RuntimeError("the api-server is down")),
    "nodes would be gone": lambda nights: setattr(nights, "schedule", "0 0 29 2 *"),
}


@pytest.mark.parametrize("fault", NO_LINGER.values(), ids=NO_LINGER)
def test_no_pool_lingers_for_a_run_that_does_not_come(
    fault: Callable[[Nights], None], nights: Nights
) -> None:
    nights.group, nights.stored = {"linger": 1.0}, None
    fault(nights)
    nights.run("last")
    assert nights.live() == []


def test_no_pool_lingers_whose_nodes_were_idle_for_keep_warm(
    qarnot: LocalQarnot, nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.fromtimestamp(qarnot.get_clock()["now"], tz) + KEEP_WARM + timedelta(seconds=1)

    nights.group, nights.stored = {"linger": 1.0}, None
    nights.slices("nodes.open_pool", "last").execute()
    monkeypatch.setattr(lingering, "datetime", Later)
    nights.slices("nodes.close_pool", "last").execute()
    assert nights.live() == []


@pytest.mark.parametrize("run_id", ["last", "dead"])
def test_no_pool_lingers_with_unfinished_work_that_nothing_needs(run_id: str, nights: Nights) -> None:
    """Only the end of the pool aborts a Qarnot task whose worker has died: of this run, or of one that is over."""
    nights.group, nights.stored, nights.states = {"linger": 1.0}, None, {"dead": "failed"}
    pool = nights.slices("nodes.open_pool", "last").execute()
    labels = life_of(dag_id=nights.name, run_id=run_id).labels(1, "")
    left = nights.client.tasks.create(TaskSpec(name="left", pool=pool, command="sleep 600", labels=labels))
    nights.slices("nodes.close_pool", "last").execute()
    assert nights.live() == []
    eventually(lambda: nights.client.tasks.get(left).state == "Cancelled")


def test_no_pool_lingers_with_a_warm_up_that_holds_its_nodes(nights: Nights) -> None:
    nights.group, nights.stored = {"linger": 1.0}, None
    pool = nights.slices("nodes.open_pool", "last").execute()
    labels = life_of(shared=nights.name).labels(1, "")
    nights.client.tasks.create(TaskSpec(name="left", pool=pool, command="sleep 600", labels=labels))
    nights.slices("nodes.close_pool", "last").execute()
    assert nights.live() == []
