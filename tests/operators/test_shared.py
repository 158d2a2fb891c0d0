"""Shared pools: one pool for several DAG runs, whoever comes, goes, is killed or is late.

Against a local Qarnot that enforces unique shortnames and one that does not.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.models import Pool
from airflow_qarnot_pool.api.specs import TaskSpec
from airflow_qarnot_pool.exceptions import (
    QarnotCostLimitError,
    QarnotCredentialsError,
    QarnotInvalidSpecError,
    QarnotPoolEndedError,
    QarnotQuotaError,
    QarnotSpecMismatchError,
    QarnotWaitTimeoutError,
)
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.maintenance.reaper import reap
from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.ownership import shared_pool
from airflow_qarnot_pool.ownership.identity import DEFAULT_KEEP_WARM, OWNER_TAG
from airflow_qarnot_pool.ownership.records import record_shared_name
from airflow_qarnot_pool.version_compat import TaskDeferred
from tests.crash.children import StoringTI, eventually, fork, worker
from tests.harness import FakeTI, again, airflow_says, context_of, defer, fire, kill, life_of, resume, run
from tests.operators.conftest import connect
from tests.operators.test_cost_limits import HOUR, events_after
from tests.operators.test_lives import ANY_SERVER, MODES, exchanging, free_server, held, qarnot
from tests.readings import answering

__all__ = ["free_server", "held", "qarnot"]

NEVER = {"policies": [{"type": "Fixed", "slotsCount": 0, "name": "none"}]}


class Sharers:
    """DAG runs that share a pool: each opens it, works on it and gives it up."""

    def __init__(self, client: QarnotClient, name: str) -> None:
        self.client, self.name = client, name
        #: What Airflow says of the runs; those not named are running.
        self.states: dict[str, str | None] = {}

    def opens(self, run_id: str, **changes: Any) -> Callable[[], QarnotCreatePoolOperator]:
        given = {"task_id": "open", "shared": self.name, "warm_up": False, "retries": 1}
        given |= {} if "scaling" in changes.get("pool_spec", {}) else {"instance_count": 2}
        return partial(QarnotCreatePoolOperator, **{**given, **changes})

    def ti(self, run_id: str, task_id: str, **fields: Any) -> FakeTI:
        return FakeTI(**{"dag_id": self.name, "run_id": run_id, "task_id": task_id, "max_tries": 1, **fields})

    def open(self, run_id: str, try_number: int = 1, max_tries: int = 1, **changes: Any) -> str:
        ti = self.ti(run_id, "open", try_number=try_number, max_tries=max_tries)
        return run(self.opens(run_id, **changes), ti)

    def work(self, run_id: str, pool: str, command: str = "true", **changes: Any) -> Any:
        given = {"task_id": "work", "command": command, "qarnot_pool": pool, "log_output": False, **changes}
        return run(partial(QarnotRunTaskOperator, **given), self.ti(run_id, given["task_id"]))

    def close(self, run_id: str, **changes: Any) -> str:
        make = partial(QarnotClosePoolOperator, task_id="close", shared=self.name, **changes)
        return run(make, self.ti(run_id, "close"))

    def pools(self) -> list[Pool]:
        """Every generation, the oldest first."""
        found = self.client.pools.list([OWNER_TAG + life_of(shared=self.name).owner])
        return sorted(found, key=lambda one: (int(one.labels["airflow.generation"]), str(one.creation_date)))

    def live(self) -> list[str]:
        return [one.uuid for one in self.pools() if not ended(one)]

    def holds(self, pool: str) -> list[str]:
        """The runs that hold a pool."""
        return sorted(job.name.split('"')[3] for job in self.client.pools.jobs(pool) if job.name)

    def warm_ups(self, pool: str) -> list[str]:
        return [one.state for one in self.client.pools.tasks(pool) if "warm-up" in (one.name or "")]


def ended(pool: Pool) -> bool:
    return pool.state in ("Closing", "Closed")


@pytest.fixture
def sharers(
    qarnot: LocalQarnot, client: QarnotClient, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Sharers]:
    name = (
        re.sub(r"[^A-Za-z0-9]+", "-", str(request.node.name).removeprefix("test_"))
        .strip("-")[-63:]
        .strip("-")
    )
    sharers = Sharers(client, name)
    monkeypatch.setattr(
        "airflow_qarnot_pool.ownership.liveness.dag_run_state",
        lambda dag_id, run_id: sharers.states.get(run_id, "running"),
    )
    yield sharers
    qarnot.set_speed(1)
    for pool in sharers.live():
        client.pools.close(pool)


def creations(qarnot: LocalQarnot) -> int:
    """How many requests have made a pool."""
    return sum(
        one["method"] == "POST"
        and bool(re.fullmatch(r"/pools(/[^/]+/clone)?", one["path"]))
        and one["status"] == 200
        for one in qarnot.requests()
    )


# --- coming and going


def test_all_who_say_the_name_use_one_pool_and_the_last_one_out_closes_it(
    qarnot: LocalQarnot, sharers: Sharers
) -> None:
    pools = {sharers.open(f"r{n}") for n in range(3)}
    (pool,) = pools
    assert creations(qarnot) == 1
    assert sharers.holds(pool) == ["r0", "r1", "r2"]
    for n in range(3):
        assert sharers.work(f"r{n}", pool)["pool"] == pool
    assert sharers.close("r1") == pool
    assert sharers.close("r0") == pool
    assert sharers.live() == [pool]
    assert sharers.close("r2") == pool
    assert sharers.live() == []
    assert sharers.close("r2") == "", "a retry of the teardown finds it closed"
    assert creations(qarnot) == 1


def test_the_next_to_come_opens_the_next_generation(sharers: Sharers) -> None:
    first = sharers.open("r1")
    sharers.close("r1")
    second = sharers.open("r2")
    assert [one.uuid for one in sharers.pools()] == [first, second]
    assert [one.labels["airflow.generation"] for one in sharers.pools()] == ["1", "2"]
    assert sharers.live() == [second]


@ANY_SERVER
def test_another_name_or_namespace_is_another_pool(
    qarnot: LocalQarnot, sharers: Sharers, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = sharers.open("r1")
    other = sharers.open("r1", shared="another-name", task_id="other")
    connect(qarnot, monkeypatch, namespace="elsewhere")
    theirs = sharers.open("r1")
    assert len({mine, other, theirs}) == 3
    assert not any(ended(sharers.client.pools.get(one)) for one in (mine, other, theirs))
    for one in (other, theirs):
        sharers.client.pools.close(one)


def test_many_who_open_it_at_the_same_time_end_up_with_one(qarnot: LocalQarnot, sharers: Sharers) -> None:
    runs = [f"r{n}" for n in range(8)]
    with ThreadPoolExecutor(8) as threads:
        opened = dict(zip(runs, threads.map(sharers.open, runs), strict=True))
        results = list(threads.map(lambda one: sharers.work(one, opened[one]), runs))
    # Of two made within a second of the server's clock the older cannot be told: who used the other moves.
    (pool,) = sharers.live()
    assert {one["state"] for one in results} == {"Success"}
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(sharers.close, runs))
    assert sharers.live() == []
    if set(opened.values()) == {pool}:
        assert {one["pool"] for one in results} == {pool}


def test_two_who_make_it_at_the_same_moment_keep_the_older(qarnot: LocalQarnot, sharers: Sharers) -> None:
    """The second has looked before the first has made its own, and makes another."""
    first: list[str] = []

    def between(send: Any, call: Any) -> Any:
        if call.method == "POST" and call.path == "/pools" and not first:
            first.append("")
            first[0] = sharers.open("r1")
        return send()

    with exchanging(between):
        second = sharers.open("r2")
    assert sharers.live() == [second]
    assert sharers.work("r1", first[0])["pool"] == second
    assert sharers.work("r2", second)["pool"] == second


def test_twenty_overlapping_runs_lose_no_work_and_leave_nothing_open(
    request: pytest.FixtureRequest, qarnot: LocalQarnot, sharers: Sharers
) -> None:
    """Six at a time; whoever comes while the last one leaves finds the pool closing, and makes the next."""

    def whole(run_id: str) -> list[str]:
        pool = sharers.open(run_id)
        done = [sharers.work(run_id, pool, task_id=f"work_{n}")["state"] for n in range(2)]
        sharers.close(run_id)
        sharers.states[run_id] = "success"
        return done

    with ThreadPoolExecutor(6) as threads:
        results = list(threads.map(whole, [f"r{n}" for n in range(20)]))
    assert results == [["Success", "Success"]] * 20
    assert sharers.live() == []
    assert [one for one in qarnot.call("GET", "/jobs") if sharers.name in one["name"]] == []
    generations = {one.labels["airflow.generation"] for one in sharers.pools()}
    if "free" not in request.node.name:
        assert creations(qarnot) == len(generations)


# --- what is refused


@ANY_SERVER
def test_another_spec_is_refused_by_the_names_of_its_fields(sharers: Sharers) -> None:
    pool = sharers.open("r1", pool_spec={"constants": {"A": "1", "QARNOT_SECRET__B": "hush"}})
    with pytest.raises(QarnotSpecMismatchError) as refused:
        sharers.open("r2", pool_spec={"constants": {"A": "2"}}, instance_count=5)
    said = str(refused.value)
    assert (
        f"differs in constants, scaling (instance_count). It is used by DAG run r1 of {sharers.name}." in said
    )
    assert pool in said
    assert f"DAG run r1 of {sharers.name}" in said
    assert "hush" not in said
    assert sharers.live() == [pool]
    assert sharers.holds(pool) == ["r1"]
    assert not any("hush" in value for one in sharers.pools() for value in one.labels.values())
    assert sharers.open("r2", pool_spec={"constants": {"A": "1", "QARNOT_SECRET__B": "rotated"}}) == pool


@ANY_SERVER
def test_a_changed_dag_replaces_a_pool_that_no_run_uses(
    qarnot: LocalQarnot, sharers: Sharers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    old = sharers.open("over")
    sharers.states["over"] = "success"
    new = sharers.open("r2", keep_warm=timedelta(hours=1))
    assert sharers.live() == [new]
    assert new != old
    assert sharers.holds(old) == []
    assert sharers.holds(new) == ["r2"]
    assert f"({old}) differs in scaling (keep_warm), and no other DAG run uses it. Closing it" in caplog.text
    assert creations(qarnot) == 2


@ANY_SERVER
@pytest.mark.parametrize("changed_in", ["the own task", "another task of the run"])
def test_only_the_task_that_opened_a_pool_replaces_it_after_a_change(
    changed_in: str, sharers: Sharers
) -> None:
    old = sharers.open("r1")
    if changed_in == "the own task":
        new = sharers.open("r1", try_number=2, instance_count=3)
        assert sharers.live() == [new]
        assert new != old
        old = new  # and the suspended process of the first try takes it back from no later one
    with pytest.raises(QarnotSpecMismatchError, match=r"\(instance_count\). It is used by DAG run r1"):
        run(
            sharers.opens("r1", instance_count=5, task_id="open" if changed_in == "the own task" else "b"),
            sharers.ti("r1", "open" if changed_in == "the own task" else "b"),
        )
    assert sharers.live() == [old]


@ANY_SERVER
def test_a_changed_dag_replaces_no_pool_on_which_a_run_works(sharers: Sharers) -> None:
    pool = sharers.open("over")
    sharers.states["over"] = "success"
    labels = life_of(dag_id=sharers.name, run_id="works").labels(1, "")
    sharers.client.tasks.create(TaskSpec(name="w", pool=pool, command="sleep 600", labels=labels))
    with pytest.raises(QarnotSpecMismatchError, match="It is used by DAG run works"):
        sharers.open("r2", instance_count=3)
    assert sharers.live() == [pool]


def test_two_runs_with_different_specs_replace_the_pool_of_the_other_once(
    qarnot: LocalQarnot, sharers: Sharers
) -> None:
    """Another run with another spec takes the place whenever this one has closed the pool."""
    old = sharers.open("over")
    sharers.states["over"] = "success"
    rivals: list[str] = []

    def between(send: Any, call: Any) -> Any:
        if call.method == "POST" and call.path == f"/pools/{(rivals or [old])[-1]}/close" and len(rivals) < 3:
            answered = send()
            rivals.append("")
            rivals[-1] = sharers.open("over", try_number=9, instance_count=4)
            return answered
        return send()

    with exchanging(between), pytest.raises(QarnotSpecMismatchError):
        sharers.open("r2", instance_count=3)
    assert len(rivals) == 1
    assert creations(qarnot) == 2


@ANY_SERVER
def test_a_pool_on_which_no_hold_can_be_created_is_closed(qarnot: LocalQarnot, sharers: Sharers) -> None:
    """The error comes after the pool was created, and before its uuid is known."""
    qarnot.faults([{"method": "POST", "path": "^/jobs$", "kind": "status", "status": 401, "times": 1}])
    with pytest.raises(QarnotCredentialsError):
        sharers.open("r1")
    assert len(sharers.pools()) == 1
    assert sharers.live() == []


@ANY_SERVER
def test_without_a_namespace_of_its_own_nothing_is_shared(
    qarnot: LocalQarnot, sharers: Sharers, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(qarnot, monkeypatch, namespace="")
    for use in (sharers.open, sharers.close):
        with pytest.raises(QarnotInvalidSpecError, match="needs an explicit namespace") as refused:
            use("r1")
        assert refused.value.field == "namespace"
    assert qarnot.requests() == []


@pytest.mark.parametrize("name", ["", "no spaces", "-lead", "x" * 64])
def test_names_that_cannot_be_are_refused_when_the_dag_is_parsed(name: str) -> None:
    for operator in (QarnotCreatePoolOperator, QarnotClosePoolOperator):
        with pytest.raises(QarnotInvalidSpecError, match="shared="):
            operator(task_id="x", shared=name)
    QarnotCreatePoolOperator(task_id="x", shared="{{ params.name }}")


def test_a_shared_pool_cools_down_by_itself_unless_it_scales_otherwise() -> None:
    assert QarnotCreatePoolOperator(task_id="x", shared="n").keep_warm == DEFAULT_KEEP_WARM
    assert QarnotCreatePoolOperator(
        task_id="x", shared="n", keep_warm=timedelta(hours=1)
    ).keep_warm == timedelta(hours=1)
    assert QarnotCreatePoolOperator(task_id="x", shared="n", pool_spec={"scaling": NEVER}).keep_warm is None


@ANY_SERVER
def test_a_quota_of_pools_says_how_to_do_with_fewer(qarnot: LocalQarnot, client: QarnotClient) -> None:
    qarnot.set_account(maxRunningPool=0)
    try:
        with pytest.raises(QarnotQuotaError, match=r"shared='name'.*max_active_runs") as refused:
            run(partial(QarnotCreatePoolOperator, task_id="create", instance_count=1))
        assert refused.value.quota == "pools"
    finally:
        qarnot.set_account(maxRunningPool=None)


# --- who needs it


@ANY_SERVER
def test_a_run_that_is_over_or_deleted_needs_it_no_more(sharers: Sharers) -> None:
    pool = sharers.open("r1")
    for other in ("failed", "deleted", "lives"):
        sharers.open(other)
    sharers.states = {"failed": "failed", "deleted": None}
    sharers.close("r1")
    assert sharers.live() == [pool]
    sharers.states["lives"] = "success"
    sharers.close("r1")
    assert sharers.live() == []


@ANY_SERVER
def test_the_holds_of_runs_that_are_over_go_with_the_pool(sharers: Sharers) -> None:
    pool = sharers.open("r1")
    for run_id in ("r2", "r3"):
        assert sharers.open(run_id) == pool
        sharers.states[run_id] = "failed"  # it has not given the pool up
    sharers.close("r1")
    assert sharers.live() == []
    assert sharers.holds(pool) == []


@ANY_SERVER
def test_the_holds_on_a_closed_pool_go_when_a_task_moves_to_the_next(sharers: Sharers) -> None:
    pool = sharers.open("r1")
    sharers.open("r2")
    sharers.client.pools.close(pool)
    moved = sharers.work("r1", pool)["pool"]
    assert moved != pool
    assert sharers.holds(pool) == []
    assert sharers.holds(moved) == ["r1"]


@ANY_SERVER
def test_a_hold_on_a_pool_that_is_closed_or_deleted_is_none(qarnot: LocalQarnot, sharers: Sharers) -> None:
    """Whoever opens it finds out by this answer, and makes the next."""
    pool = sharers.open("r1")
    identity = life_of(dag_id=sharers.name, run_id="r2", task_id="open", shared=sharers.name)
    assert shared_pool.create_hold(sharers.client, identity, pool, "open")
    sharers.client.pools.close(pool)
    assert not shared_pool.create_hold(sharers.client, identity, pool, "another")
    sharers.client.pools.delete(pool)
    eventually(lambda: sharers.client.pools.find(pool) is None)
    assert not shared_pool.create_hold(sharers.client, identity, pool, "a third")
    with answering(qarnot, unknown_references="404"):
        assert not shared_pool.create_hold(sharers.client, identity, pool, "a fourth")


@ANY_SERVER
def test_airflow_that_does_not_answer_keeps_it_open(
    sharers: Sharers, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = sharers.open("r1")
    sharers.open("r2")

    def no_answer(*_: str) -> str:
        raise RuntimeError("the API server is away")

    monkeypatch.setattr("airflow_qarnot_pool.ownership.liveness.dag_run_state", no_answer)
    sharers.close("r1")
    assert sharers.live() == [pool]


@ANY_SERVER
@pytest.mark.parametrize(("state", "stays"), [("running", True), ("failed", False)])
def test_a_task_of_a_live_run_keeps_it_open_without_a_hold(
    sharers: Sharers, held: str, state: str, stays: bool
) -> None:
    pool = sharers.open("r1")
    make = partial(QarnotRunTaskOperator, task_id="work", command=held, qarnot_pool=pool)
    defer(make, sharers.ti("somebody", "work"))
    sharers.states["somebody"] = state
    sharers.close("r1")
    assert bool(sharers.live()) is stays


@ANY_SERVER
def test_a_task_of_another_program_keeps_it_open(sharers: Sharers, held: str) -> None:
    pool = sharers.open("r1")
    sharers.client.tasks.create(TaskSpec(name="by hand", pool=pool, command=held))
    sharers.close("r1")
    assert sharers.live() == [pool]


#: What Airflow says of the run that holds the pool and of the one that works on it, the namespace of the work, and
#: whether the reaper closes the pool.
LEFT = {
    "runs that are over": ("failed", None, "test", True),
    "one that works on it": ("failed", "running", "test", False),
    "one that holds it": ("running", "failed", "test", False),
    "another deployment": ("failed", None, "another", False),
    "another program": ("failed", None, "", False),
}


@ANY_SERVER
@pytest.mark.parametrize(("holds", "works", "namespace", "closes"), LEFT.values(), ids=LEFT)
def test_the_reaper_closes_it_once_only_runs_that_are_over_work_on_it(
    qarnot: LocalQarnot,
    sharers: Sharers,
    held: str,
    holds: str,
    works: str | None,
    namespace: str,
    closes: bool,
) -> None:
    pool = sharers.open("r1")
    identity = life_of(namespace=namespace, dag_id=sharers.name, run_id="r2")
    labels = identity.labels(1, "") if namespace else {}
    sharers.client.tasks.create(TaskSpec(name="left", pool=pool, command=held, labels=labels))
    now = datetime.fromtimestamp(qarnot.get_clock()["now"], UTC)

    def is_closed_after(minutes: int) -> bool:
        said = {"r1": holds, "r2": works}
        reap(
            sharers.client,
            "test",
            lambda _, run_id: said.get(run_id, "running"),
            now=lambda: now + timedelta(minutes=minutes),
        )
        return sharers.live() == []

    assert [is_closed_after(minutes) for minutes in (10, 20)] == [False, closes]


@ANY_SERVER
def test_tasks_of_the_run_that_gives_it_up_end_with_it(sharers: Sharers, held: str) -> None:
    pool = sharers.open("r1")
    defer(
        partial(QarnotRunTaskOperator, task_id="work", command=held, qarnot_pool=pool),
        sharers.ti("r1", "work"),
    )
    sharers.close("r1")
    assert sharers.live() == []


@ANY_SERVER
def test_two_groups_of_one_run_share_it_without_closing_it_under_each_other(sharers: Sharers) -> None:
    from airflow.sdk import DAG

    from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

    with DAG("dag") as dag:
        for name in ("a", "b"):
            with QarnotPoolGroup(name, shared=sharers.name, instance_count=2, warm_up=False):
                pass

    def step(task_id: str) -> Any:
        return run(lambda: dag.get_task(task_id), sharers.ti("r1", task_id))

    pool = step("a.open_pool")
    assert step("b.open_pool") == pool
    step("a.close_pool")
    assert sharers.live() == [pool]
    step("b.close_pool")
    assert sharers.live() == []


def test_two_who_are_the_last_do_not_leave_it_to_each_other(sharers: Sharers) -> None:
    sharers.open("r1")
    sharers.open("r2")
    done: list[str] = []

    def between(send: Any, call: Any) -> Any:
        answer = send()
        if call.method == "GET" and call.path == "/jobs" and not done:
            done.append("r2")
            sharers.close("r2")
        return answer

    with exchanging(between):
        sharers.close("r1")
    assert done
    assert sharers.live() == []


@ANY_SERVER
def test_a_hold_that_cannot_be_made_is_no_failure(
    qarnot: LocalQarnot, sharers: Sharers, caplog: pytest.LogCaptureFixture
) -> None:
    qarnot.set_account(maxJob=0)
    try:
        pool = sharers.open("r1")
    finally:
        qarnot.set_account(maxJob=1000)
    assert "may not see that this one needs pool" in caplog.text
    assert sharers.holds(pool) == []
    assert sharers.work("r1", pool)["pool"] == pool
    sharers.close("r1")
    assert sharers.live() == []


# --- lost races cost a boot and never a task


def test_a_run_that_comes_in_while_the_last_one_closes_it_goes_on_with_the_next(
    qarnot: LocalQarnot, sharers: Sharers
) -> None:
    """It has adopted the pool, and nothing on it yet, when the one who has just looked closes it."""
    first = sharers.open("r1")
    came: list[str] = []

    def between(send: Any, call: Any) -> Any:
        if call.method == "POST" and call.path.endswith("/close") and not came:
            came.append(sharers.open("r2"))
        return send()

    with exchanging(between):
        sharers.close("r1")
    assert came == [first]
    assert ended(sharers.client.pools.get(first))
    result = sharers.work("r2", first)
    assert result["state"] == "Success"
    assert sharers.live() == [result["pool"]]
    assert sharers.holds(result["pool"]) == ["r2"], "and it is seen there"
    assert creations(qarnot) == 2
    sharers.close("r2")
    assert sharers.live() == []


class Copies:
    """The copies of a mapped group, each of which opens the pool, works on it and gives it up."""

    def __init__(self, sharers: Sharers, command: str) -> None:
        from airflow.sdk import DAG, task_group

        from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

        def make() -> DAG:
            with DAG("dag") as dag:

                @task_group
                def per(day: int) -> None:
                    with QarnotPoolGroup("nodes", shared=sharers.name, instance_count=3, warm_up=False):
                        QarnotRunTaskOperator(task_id="work", command=command, log_output=False)

                per.expand(day=[0, 1, 2])
            return dag

        self._make, self._sharers = make, sharers

    def step(self, name: str, copy: int, pool: str | None = None, **fields: Any) -> tuple[Any, FakeTI]:
        """What makes one task of a copy, with its pool rendered, and its task instance."""

        def make() -> Any:
            operator = self._make().get_task(f"per.nodes.{name}")
            if pool is not None:
                operator.qarnot_pool = pool
            return operator

        return make, self._sharers.ti("r1", f"per.nodes.{name}", map_index=copy, **fields)

    def open(self, copy: int, **fields: Any) -> str:
        return run(*self.step("open_pool", copy, **fields))

    def close(self, copy: int, pool: str) -> None:
        run(*self.step("close_pool", copy, pool))


@ANY_SERVER
def test_copies_of_a_mapped_group_do_not_close_it_under_each_other(sharers: Sharers, held: str) -> None:
    copies = Copies(sharers, held)
    (pool,) = {copies.open(copy) for copy in range(3)}
    assert sharers.holds(pool) == ["r1"] * 3
    deferred, _ = defer(*copies.step("work", 2, pool))
    copies.close(0, pool)
    copies.close(0, pool)
    setup, ti = copies.step("open_pool", 1)
    killed = setup()
    killed.execute(context_of(killed, ti))
    killed.on_kill()
    assert sharers.holds(pool) == ["r1"]
    assert copies.open(0, max_tries=2) == pool, "this copy alone is cleared"
    copies.close(0, pool)
    assert sharers.live() == [pool]
    assert [one.state for one in sharers.client.pools.tasks(pool)] != ["Cancelled"]
    sharers.client.tasks.abort(deferred.trigger.uuid)
    copies.close(2, pool)
    assert sharers.live() == []
    assert sharers.holds(pool) == []


@ANY_SERVER
def test_copies_that_went_on_with_the_next_do_not_close_that_under_each_other(
    sharers: Sharers, held: str
) -> None:
    copies = Copies(sharers, held)
    (pool,) = {copies.open(copy) for copy in range(3)}
    sharers.client.pools.close(pool)
    for copy in (1, 2):
        defer(*copies.step("work", copy, pool))
    (following,) = sharers.live()
    copies.close(0, pool)
    copies.close(1, pool)
    assert sharers.live() == [following]
    copies.close(2, pool)
    assert sharers.live() == []


@ANY_SERVER
def test_copies_of_a_mapped_task_that_went_on_with_the_next_are_done_with_their_group(
    sharers: Sharers, held: str
) -> None:
    pool = sharers.open("r1")
    sharers.client.pools.close(pool)
    make = partial(QarnotRunTaskOperator, task_id="work", command=held, qarnot_pool=pool)
    for copy in range(3):
        defer(make, sharers.ti("r1", "work", map_index=copy))
    (following,) = sharers.live()
    assert sharers.holds(following) == ["r1"], "one for all copies"
    sharers.close("r1")
    assert sharers.live() == []


@MODES
def test_tasks_queued_on_it_run_on_the_next_when_it_is_closed(
    qarnot: LocalQarnot, sharers: Sharers, deferrable: bool, tmp_path: Any
) -> None:
    """Three instances: one has succeeded, one runs and one waits when the pool is closed under them."""
    pool = sharers.open("r1", instance_count=1)
    until = f"until test -e {tmp_path}/go; do sleep 0.02; done"
    command = f"sh -c 'echo $INSTANCE_ID >> {tmp_path}/began; test $INSTANCE_ID = 0 || {until}'"
    with ThreadPoolExecutor(1) as thread:
        work = thread.submit(sharers.work, "r1", pool, command, instance_count=3, deferrable=deferrable)
        eventually(lambda: (tmp_path / "began").exists() and (tmp_path / "began").read_text() == "0\n1\n")
        sharers.client.pools.close(pool)
        # Else the one that runs may succeed before it is ended.
        eventually(lambda: {one.state for one in sharers.client.pools.tasks(pool)} <= {"Cancelled"})
        (tmp_path / "go").touch()
        result = work.result(60)
    assert result["state"] == "Success"
    assert result["pool"] != pool
    assert sorted((tmp_path / "began").read_text().split()) == ["0", "1", "1", "2"], (
        "what had succeeded is not run again"
    )
    assert creations(qarnot) == 2


def test_many_of_one_task_go_on_with_the_next_when_it_is_closed(
    qarnot: LocalQarnot, sharers: Sharers, tmp_path: Any
) -> None:
    pool = sharers.open("r1", instance_count=2)
    commands = [
        f"sh -c 'echo {n} >> {tmp_path}/began; test {n} = 0 || until test -e {tmp_path}/go; do sleep 0.02; done'"
        for n in range(6)
    ]
    make = partial(
        QarnotRunTasksOperator,
        task_id="many",
        commands=commands,
        qarnot_pool=pool,
        max_in_flight=4,
    )
    with ThreadPoolExecutor(1) as thread:
        work = thread.submit(run, make, sharers.ti("r1", "many"))
        eventually(
            lambda: (tmp_path / "began").exists() and len((tmp_path / "began").read_text().split()) == 3
        )
        sharers.client.pools.close(pool)
        (tmp_path / "go").touch()
        result = work.result(60)
    assert (result["total"], result["succeeded"], result["failed"]) == (6, 6, 0)
    (live,) = sharers.live()
    assert {
        one.pool for one in sharers.client.tasks.list() if one.pool in (pool, live) and one.state == "Success"
    } == {pool, live}
    assert creations(qarnot) == 2


def test_the_next_is_like_the_one_before_whoever_makes_it(qarnot: LocalQarnot, sharers: Sharers) -> None:
    given = {
        "pool_spec": {
            "constants": {"PLAIN": "1", "QARNOT_SECRET__TOKEN": "hush"},
            "tags": ["mine"],
            "labels": {"team": "a"},
        }
    }
    first = sharers.open("r1", **given)
    sharers.client.pools.close(first)
    second = sharers.work("r1", first)["pool"]
    old, new = (sharers.client.pools.get(one) for one in (first, second))
    assert (new.name, new.constants.keys()) == (old.name, old.constants.keys())
    assert new.scaling == old.scaling
    assert "mine" in new.tags
    assert new.labels["team"] == "a"
    assert new.labels["airflow.spec"] == old.labels["airflow.spec"]
    assert sharers.open("r2", **given) == second, "and who opens it says the same spec"


def test_the_next_is_like_the_one_before_on_a_server_that_clones_no_closed_pool(
    qarnot: LocalQarnot, sharers: Sharers
) -> None:
    given = {"pool_spec": {"constants": {"PLAIN": "1"}, "tags": ["mine"], "labels": {"team": "a"}}}
    first = sharers.open("r1", **given)
    sharers.client.pools.close(first)
    with answering(qarnot, clone_of_closed="no"):
        second = sharers.work("r1", first)["pool"]
    old, new = (sharers.client.pools.get(one) for one in (first, second))
    assert (new.name, new.constants, new.scaling) == (old.name, old.constants, old.scaling)
    assert (new.instance_count, new.completion_ttl) == (old.instance_count, old.completion_ttl)
    assert "mine" in new.tags
    assert new.labels["team"] == "a"
    assert sharers.open("r2", **given) == second, "and who opens it says the same spec"


@ANY_SERVER
def test_secrets_of_a_closed_pool_that_cannot_be_cloned_are_named(
    qarnot: LocalQarnot, sharers: Sharers
) -> None:
    first = sharers.open("r1", pool_spec={"constants": {"QARNOT_SECRET__TOKEN": "hush"}})
    sharers.client.pools.close(first)
    with (
        answering(qarnot, clone_of_closed="no"),
        pytest.raises(
            QarnotPoolEndedError, match=r"secret constants \(QARNOT_SECRET__TOKEN\).*clearing"
        ) as raised,
    ):
        sharers.work("r1", first)
    assert "hush" not in str(raised.value)


def test_the_copies_of_a_pool_have_new_generations_on_a_server_that_keeps_the_labels_of_the_source(
    qarnot: LocalQarnot, sharers: Sharers
) -> None:
    with answering(qarnot, labels_of_copies="kept"):
        pools = [sharers.open("r1")]
        for run_id in ("r1", "r2"):
            sharers.client.pools.close(pools[-1])
            pools.append(sharers.work(run_id, pools[-1])["pool"])
    assert len(set(pools)) == 3
    assert creations(qarnot) == 3


@pytest.mark.parametrize("many", [False, True], ids=["one task", "many tasks"])
def test_work_moves_on_from_a_deleted_pool_on_a_server_that_answers_404(
    qarnot: LocalQarnot, sharers: Sharers, many: bool
) -> None:
    first = sharers.open("r1")
    sharers.client.pools.close(first)
    second = sharers.open("r2")
    # The reaper records the name of a closed pool before it deletes it.
    record_shared_name(sharers.client, "test", first, sharers.name)
    sharers.client.pools.delete(first)
    eventually(lambda: sharers.client.pools.find(first) is None)
    with answering(qarnot, unknown_references="404"):
        if many:
            make = partial(QarnotRunTasksOperator, task_id="many", commands=["true"] * 2, qarnot_pool=first)
            assert run(make, sharers.ti("r1", "many"))["succeeded"] == 2
        else:
            assert sharers.work("r1", first)["pool"] == second


@ANY_SERVER
def test_a_pool_that_is_not_shared_has_no_next(sharers: Sharers, pool: str) -> None:
    sharers.client.pools.close(pool)
    with pytest.raises(QarnotPoolEndedError, match="takes no more tasks"):
        sharers.work("r1", pool)
    with pytest.raises(QarnotPoolEndedError, match="takes no more tasks"):
        run(partial(QarnotRunTasksOperator, task_id="many", commands=["true"], qarnot_pool=pool))


def test_a_setup_that_waits_when_it_is_closed_opens_the_next(qarnot: LocalQarnot, sharers: Sharers) -> None:
    make = sharers.opens("r1", pool_spec={"scaling": NEVER}, ready_when=1)
    deferred, _ = defer(make, sharers.ti("r1", "open"))
    (first,) = sharers.live()
    sharers.client.pools.close(first)
    event = fire(deferred)
    next_one, _ = defer(lambda: _Resumed(make(), deferred.method_name, event), sharers.ti("r1", "open"))
    (second,) = sharers.live()
    assert next_one.trigger.uuid == second
    assert second != first
    assert next_one.trigger.deadline == deferred.trigger.deadline


class _Resumed:
    """An operator whose execution is its resumption."""

    def __init__(self, operator: Any, method: str, event: Any) -> None:
        self.task_id, self.retries = operator.task_id, operator.retries
        self.operator_extra_links = operator.operator_extra_links
        self.execute = lambda context: operator.resume_execution(
            method, {"event": event}, {**context, "task": operator}
        )


@pytest.mark.parametrize("path", ["^/pools$", "^/jobs$", "/clone$", "/close$"])
@pytest.mark.parametrize("fault", ["lost", "reset"])
def test_answers_that_get_lost_make_no_second_pool(
    qarnot: LocalQarnot, sharers: Sharers, path: str, fault: str
) -> None:
    qarnot.faults([{"method": "POST", "path": path, "kind": fault, "times": 1}])
    first = sharers.open("r1")
    sharers.client.pools.close(first)
    second = sharers.work("r1", first)["pool"]
    assert sharers.live() == [second]
    assert len(sharers.pools()) == 2
    sharers.close("r1")
    assert sharers.live() == []


# --- kills, clears, retries, failures of a setup


def test_retries_and_clears_of_a_setup_use_what_lives(qarnot: LocalQarnot, sharers: Sharers) -> None:
    pool = sharers.open("r1")
    assert sharers.open("r1", try_number=2) == pool
    assert sharers.open("r1", try_number=2, max_tries=2) == pool
    assert set(sharers.holds(pool)) == {"r1"}
    sharers.close("r1")
    assert sharers.live() == []
    assert creations(qarnot) == 1


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "with another"])
def test_a_kill_of_a_deferred_setup_closes_only_what_nobody_else_needs(sharers: Sharers, alone: bool) -> None:
    never = {"pool_spec": {"scaling": NEVER}, "ready_when": 1}
    deferred, _ = defer(sharers.opens("r1", **never), sharers.ti("r1", "open"))
    if not alone:
        defer(sharers.opens("r2", **never), sharers.ti("r2", "open"))
    (pool,) = sharers.live()
    with airflow_says("running"):
        asyncio.run(kill(again(deferred.trigger)))
    assert sharers.live() == [pool], "a trigger that moves ends nothing"
    with airflow_says("failed"):
        asyncio.run(kill(again(deferred.trigger)))
    assert sharers.live() == ([] if alone else [pool])
    if not alone:
        assert sharers.holds(pool) == ["r2"]


@ANY_SERVER
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "with another"])
def test_a_kill_of_a_setup_on_the_worker_closes_only_what_nobody_else_needs(
    sharers: Sharers, alone: bool
) -> None:
    import signal

    never = {"pool_spec": {"scaling": NEVER}, "ready_when": 1}
    if not alone:
        defer(sharers.opens("r2", **never), sharers.ti("r2", "open"))
    ti = StoringTI(dag_id=sharers.name, run_id="r1", task_id="open", max_tries=1)
    child = fork(worker(sharers.opens("r1", **never, deferrable=False), ti))
    (pool,) = eventually(lambda: [one for one in sharers.live() if "r1" in sharers.holds(one)])
    child.kill(signal.SIGTERM)
    child.wait()
    assert child.said[-1]["error"] == "QarnotKilledError"
    assert sharers.live() == ([] if alone else [pool])
    if not alone:
        assert sharers.holds(pool) == ["r2"]


@ANY_SERVER
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "with another"])
def test_a_setup_that_runs_out_of_time_closes_only_what_nobody_else_needs(
    sharers: Sharers, alone: bool
) -> None:
    never = {"pool_spec": {"scaling": NEVER}, "ready_when": 1}
    if not alone:
        defer(sharers.opens("r2", **never), sharers.ti("r2", "open"))
    with pytest.raises(QarnotWaitTimeoutError):
        sharers.open("r1", **never, wait_timeout=timedelta(seconds=0.1))
    assert len(sharers.live()) == (0 if alone else 1)


# --- warmth


def test_runs_that_wait_for_it_at_the_same_time_share_the_warm_up(
    qarnot: LocalQarnot, sharers: Sharers
) -> None:
    qarnot.set_speed(0.001)  # no node is up before all of them wait
    begun = [
        (make := sharers.opens(name, warm_up=True), *defer(make, sharers.ti(name, "open")))
        for name in ("r1", "r2", "r3")
    ]
    (pool,) = sharers.live()
    assert len(sharers.warm_ups(pool)) == 1
    qarnot.set_speed(1)
    for make, deferred, context in begun:
        assert resume(make, deferred, context) == pool
    eventually(lambda: set(sharers.warm_ups(pool)) == {"Cancelled"})
    assert len(sharers.warm_ups(pool)) == 1
    assert sharers.client.pools.get(pool).ready_slots == 2


@ANY_SERVER
def test_a_run_that_finds_it_warm_continues_at_once_and_ends_a_leftover_warm_up(
    qarnot: LocalQarnot, sharers: Sharers
) -> None:
    defer(sharers.opens("r1", warm_up=True), sharers.ti("r1", "open"))
    (pool,) = sharers.live()
    # Warm; and who waited for it is gone before it could end the warm-up.
    eventually(lambda: sharers.warm_ups(pool) == ["FullyExecuting"])
    make = sharers.opens("r2", warm_up=True)
    operator = make()
    assert operator.execute(context_of(operator, sharers.ti("r2", "open"))) == pool
    eventually(lambda: sharers.warm_ups(pool) == ["Cancelled"])


# --- limits on cost


@ANY_SERVER
def test_a_limit_that_one_run_reaches_closes_it_for_all_and_the_others_go_on_with_the_next(
    qarnot: LocalQarnot, sharers: Sharers, tmp_path: Path
) -> None:
    command = f"sh -c 'until test -e {tmp_path}/go; do sleep 0.02; done'"
    pool = sharers.open("limited")
    assert sharers.open("free") == pool
    given = {"task_id": "work", "command": command, "qarnot_pool": pool, "retries": 1, "log_output": False}
    limited = partial(QarnotRunTaskOperator, **given, max_cost=0.5)
    free = partial(QarnotRunTaskOperator, **given)
    waits = [
        defer(make, sharers.ti(run_id, "work")) for make, run_id in ((limited, "limited"), (free, "free"))
    ]

    events = events_after([deferred for deferred, _ in waits], lambda: qarnot.advance_clock(HOUR))

    (_, context), (_, other) = waits
    with pytest.raises(QarnotCostLimitError, match=rf"Pool {pool} has cost 0\.7\d+ EUR.*max_cost of 0\.5"):
        resume_with(limited, context, events[0])
    eventually(lambda: ended(sharers.client.pools.get(pool)))
    # The other run's Qarnot task was cancelled with the pool: it is submitted again, on a pool of the same kind.
    with pytest.raises(TaskDeferred) as again_deferred:
        resume_with(free, other, events[1])
    (tmp_path / "go").touch()
    (after,) = sharers.live()
    assert resume(free, again_deferred.value, other)["pool"] == after != pool
    # A run with that limit that comes now finds a pool that has cost nothing yet.
    assert sharers.open("later") == after
    assert sharers.work("later", after, max_cost=0.5)["pool"] == after


def resume_with(make: Any, context: Any, event: Any) -> Any:
    operator = make()
    return operator.resume_execution("execute_complete", {"event": event}, {**context, "task": operator})
