"""A pool, or a DAG run, that reaches its limit is closed at the next look, and whoever waits learns why."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from airflow.sdk import DAG

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.costs.limits import CostLimit, LimitLevel, check_limits, limits_from_labels
from airflow_qarnot_pool.costs.model import format_euros
from airflow_qarnot_pool.costs.spending import spending_of
from airflow_qarnot_pool.exceptions import (
    QarnotCostLimitError,
    QarnotInvalidSpecError,
    QarnotNotFoundError,
    QarnotPoolEndedError,
)
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.maintenance.reaper import reap
from airflow_qarnot_pool.operators.bases.cost_limits import accept_limits
from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup
from airflow_qarnot_pool.triggers.poller import pollers
from tests.crash.children import eventually, made_for
from tests.harness import FakeTI, again, context_of, defer, first_event, run
from tests.operators.conftest import WORKER_WAITS

create = partial(QarnotCreatePoolOperator, task_id="create", instance_count=2, retries=1)
task = partial(QarnotRunTaskOperator, task_id="work", retries=1, log_output=False)
NO_NODE = {"policies": [{"type": "Fixed", "slotsCount": 0, "name": "none"}]}
#: Two nodes for this long cost 0.72 EUR.
HOUR = 3600.0
OVER = ("Closing", "Closed")


@pytest.fixture(autouse=True)
def nothing_left(client: QarnotClient, run_id: str) -> Iterator[None]:
    yield
    for resource in (client.tasks, client.pools):
        for one in made_for(resource, run_id):
            with suppress(QarnotNotFoundError):
                resource.delete(one.uuid)


@pytest.fixture
def held(tmp_path: Path) -> str:
    """A command that runs until ``tmp_path/go`` exists."""
    return f"sh -c 'until test -e {tmp_path}/go; do sleep 0.02; done'"


def ti(run_id: str, task_id: str = "work", **fields: Any) -> FakeTI:
    return FakeTI(run_id=run_id, task_id=task_id, **{"max_tries": 1, **fields})


def limited_run(make: Callable[[], Any], limit: float) -> Callable[[], Any]:
    """Return a function that makes a task of which another operator has created the pool, with a limit of the run."""

    def limited() -> Any:
        operator = make()
        accept_limits(operator, create(max_run_cost=limit))
        return operator

    return limited


def events_after(deferrals: list[Any], change: Callable[[], Any]) -> list[Any]:
    """The events of triggers that wait together; *change* happens when all of them have been watched once."""

    async def story() -> list[Any]:
        waits = [asyncio.ensure_future(first_event(again(one.trigger))) for one in deferrals]
        for kind in ("cost", "task", "pool"):
            while (polls := [one for one in pollers() if one.kind == kind]) and not polls[0].rounds:
                await asyncio.sleep(0.01)
            if kind == "cost":
                while not [one for one in pollers() if one.kind == "cost" and one.rounds]:
                    await asyncio.sleep(0.01)
        await asyncio.to_thread(change)
        return list(await asyncio.wait_for(asyncio.gather(*waits), 30))

    return asyncio.run(story())


@contextmanager
def spending(qarnot: LocalQarnot, client: QarnotClient, run_id: str) -> Iterator[None]:
    """An hour passes as soon as the run has a Qarnot task."""

    def pass_time() -> None:
        eventually(lambda: made_for(client.tasks, run_id))
        qarnot.advance_clock(HOUR)

    clock = threading.Thread(target=pass_time)
    clock.start()
    yield
    clock.join()


def resume(make: Any, context: Any, event: Any) -> Any:
    return make().resume_execution("execute_complete", {"event": event}, {**context, "task": make()})


def test_a_pool_over_its_limit_is_closed_at_the_next_look(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str, held: str
) -> None:
    pool = run(create, ti(run_id, "create"))
    make = partial(task, qarnot_pool=pool, command=held, max_cost=0.5)
    deferrals = [defer(make, ti(run_id, map_index=index)) for index in range(3)]
    qarnot.clear_requests()

    def spend() -> None:
        qarnot.clear_requests()
        qarnot.advance_clock(HOUR)

    events = events_after([deferred for deferred, _ in deferrals], spend)
    # The waiters are told first, so that they may be done before the request is.
    eventually(lambda: client.pools.get(pool).state in OVER)
    asked = [f"{one['method']} {one['path']}" for one in qarnot.requests()]
    close = asked.index(f"POST /pools/{pool}/close")
    # Three wait, one asks; a look may have been under way when the time passed.
    assert asked[:close].count(f"GET /credits/v1/pools/{pool}/credits") in (1, 2)
    assert asked.count(f"POST /pools/{pool}/close") == 1
    for event, (_, context) in zip(events, deferrals, strict=True):
        with pytest.raises(
            QarnotCostLimitError, match=rf"Pool {pool} has cost 0\.7\d+ EUR.*max_cost of 0\.5"
        ):
            resume(make, context, event)
    assert client.pools.get(pool).state in OVER
    eventually(lambda: qarnot.get_account()["pools"][pool]["nodesUp"] == 0)


def test_work_that_ends_in_time_knows_nothing_of_a_limit(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str
) -> None:
    pool = run(partial(create, max_cost=5), ti(run_id, "create"))
    result = run(partial(task, qarnot_pool=pool, command="true", max_cost=5), ti(run_id))
    assert result["state"] == "Success"
    assert client.pools.get(pool).state not in OVER


def test_a_warning_comes_once_and_ends_nothing(
    qarnot: LocalQarnot,
    client: QarnotClient,
    run_id: str,
    held: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pool = run(create, ti(run_id, "create"))
    make = partial(task, qarnot_pool=pool, command=held, max_cost=0.8)
    deferred, context = defer(make, ti(run_id))

    def spend() -> None:
        qarnot.advance_clock(HOUR)
        cost = next(one for one in pollers() if one.kind == "cost")
        rounds = cost.rounds
        while cost.rounds < rounds + 3:
            pass
        (tmp_path / "go").touch()

    (event,) = events_after([deferred], spend)
    assert resume(make, context, event)["state"] == "Success"
    said = capsys.readouterr().out
    assert said.count("of its max_cost of 0.8000 EUR") == 1
    assert client.pools.get(pool).state not in OVER


@WORKER_WAITS
def test_a_wait_on_the_worker_warns_once(
    qarnot: LocalQarnot,
    client: QarnotClient,
    run_id: str,
    capsys: pytest.CaptureFixture[str],
    deferrable: bool,
) -> None:
    pool = run(create, ti(run_id, "create"))
    qarnot.advance_clock(HOUR)
    work = partial(task, qarnot_pool=pool, command="sh -c 'sleep 1.5'", max_cost=0.8, deferrable=deferrable)
    with mock.patch("airflow_qarnot_pool.metrics.incr") as incr:
        assert run(work, ti(run_id))["state"] == "Success"
    assert [call.args for call in incr.mock_calls].count(("cost_limit.warnings",)) == 1
    assert capsys.readouterr().out.count("of its max_cost of 0.8000 EUR") == 1


def test_a_limit_counts_while_the_pool_boots(qarnot: LocalQarnot, client: QarnotClient, run_id: str) -> None:
    """One that never gets ready costs as well."""
    make = partial(
        create,
        max_cost=0.5,
        ready_when=2,
        pool_spec={"scaling": {"policies": [fixed(1)]}},
        instance_count=None,
    )
    deferred, context = defer(make, ti(run_id, "create"))

    def spend() -> None:
        while not qarnot.get_account()["pools"][deferred.trigger.uuid]["nodesUp"]:
            pass
        qarnot.advance_clock(2 * HOUR)

    (event,) = events_after([deferred], spend)
    with pytest.raises(QarnotCostLimitError, match="max_cost"):
        resume(make, context, event)
    assert client.pools.get(deferred.trigger.uuid).state in OVER


def fixed(slots: int) -> dict[str, Any]:
    return {"type": "Fixed", "slotsCount": slots, "name": "fixed"}


def test_a_wait_on_the_worker_watches_too(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str, held: str
) -> None:
    pool = run(create, ti(run_id, "create"))
    make = partial(task, qarnot_pool=pool, command=held, max_cost=0.5, deferrable=False)
    with (
        spending(qarnot, client, run_id),
        pytest.raises(QarnotCostLimitError, match=rf"Pool {pool} has cost 0\.7"),
    ):
        run(make, ti(run_id))
    assert client.pools.get(pool).state in OVER


@pytest.mark.parametrize("deferrable", [True, False])
def test_many_commands_in_one_task_are_watched(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str, held: str, deferrable: bool
) -> None:
    pool = run(create, ti(run_id, "create"))
    make = partial(
        QarnotRunTasksOperator,
        task_id="many",
        commands=[held] * 3,
        qarnot_pool=pool,
        max_cost=0.5,
        deferrable=deferrable,
    )
    with (
        spending(qarnot, client, run_id),
        pytest.raises(QarnotCostLimitError, match=rf"Pool {pool} has cost 0\.7"),
    ):
        run(make, ti(run_id, "many"))
    assert client.pools.get(pool).state in OVER


def test_many_commands_are_not_submitted_to_a_pool_over_its_limit(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str
) -> None:
    pool = run(create, ti(run_id, "create"))
    qarnot.advance_clock(HOUR)
    make = partial(
        QarnotRunTasksOperator, task_id="many", commands=["true"] * 3, qarnot_pool=pool, max_cost=0.5
    )
    with pytest.raises(QarnotCostLimitError, match=rf"Pool {pool} has cost 0\.7"):
        run(make, ti(run_id, "many"))
    assert made_for(client.tasks, run_id) == []
    assert client.pools.get(pool).state in OVER


def test_many_commands_without_a_pool_have_no_limit_that_could_be_watched(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str
) -> None:
    make = partial(QarnotRunTasksOperator, task_id="many", commands=["true"], max_cost=0.5)
    with pytest.raises(QarnotInvalidSpecError, match="give qarnot_pool"):
        run(make, ti(run_id, "many"))
    assert made_for(client.tasks, run_id) == []


def test_a_qarnot_task_with_nodes_of_its_own_has_a_limit_of_its_own(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str, held: str
) -> None:
    make = partial(task, command=held, max_cost=0.3)
    deferred, context = defer(make, ti(run_id))
    uuid = deferred.trigger.uuid

    def spend() -> None:
        while not client.tasks.get(uuid).running_instance_count:
            pass
        qarnot.advance_clock(HOUR)

    (event,) = events_after([deferred], spend)
    with pytest.raises(QarnotCostLimitError, match=f"Qarnot task {uuid} has cost 0.36"):
        resume(make, context, event)
    assert client.tasks.get(uuid).state in ("PendingCancel", "Cancelled")


def test_a_run_over_its_limit_loses_all_its_pools_and_may_open_no_more(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str, held: str
) -> None:
    one = run(create, ti(run_id, "one"))
    two = run(create, ti(run_id, "two"))
    other = run(create, ti(run_id + "-other", "one"))
    make = limited_run(partial(task, qarnot_pool=one, command=held), 1.0)
    deferred, context = defer(make, ti(run_id))
    (event,) = events_after([deferred], lambda: qarnot.advance_clock(HOUR))
    with pytest.raises(
        QarnotCostLimitError, match=rf"DAG run .* with pool {one}, has cost 1\.4.*max_run_cost of 1\.00"
    ):
        resume(make, context, event)
    assert client.pools.get(one).state in OVER
    assert client.pools.get(two).state in OVER
    assert client.pools.get(other).state not in OVER
    client.pools.delete(other)

    # A clear starts another life, and its run has cost what it has cost.
    with pytest.raises(QarnotCostLimitError, match=r"have cost 1\.44 EUR, and its max_run_cost is 1\.00 EUR"):
        run(partial(create, max_run_cost=1.0), ti(run_id, "one", try_number=2, max_tries=2))
    assert len(made_for(client.pools, run_id)) == 2


def test_a_pool_whose_cost_cannot_be_had_keeps_no_other_from_being_watched(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str, held: str
) -> None:
    dark, seen = run(create, ti(run_id, "dark")), run(create, ti(run_id, "seen"))
    waits = [
        defer(partial(task, qarnot_pool=pool, command=held, max_cost=0.5), ti(run_id, f"on-{index}"))[0]
        for index, pool in enumerate((dark, seen))
    ]
    qarnot.faults([{"method": "GET", "path": f"^/credits/v1/pools/{dark}/", "kind": "status", "status": 500}])

    def asked_of(pool: str) -> bool:
        return any(one["path"] == f"/credits/v1/pools/{pool}/credits" for one in qarnot.requests())

    async def story() -> None:
        first = asyncio.ensure_future(first_event(again(waits[0].trigger)))
        await asyncio.to_thread(eventually, lambda: asked_of(dark))
        second = asyncio.ensure_future(first_event(again(waits[1].trigger)))
        await asyncio.to_thread(eventually, lambda: asked_of(seen))
        await asyncio.to_thread(qarnot.advance_clock, HOUR)
        try:
            await asyncio.wait_for(second, 30)
            assert not first.done()
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)

    asyncio.run(story())
    eventually(lambda: client.pools.get(seen).state in OVER)
    assert client.pools.get(dark).state not in OVER


def test_a_close_that_is_refused_keeps_no_other_pool_of_the_run_open(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str, held: str
) -> None:
    one, two = run(create, ti(run_id, "one")), run(create, ti(run_id, "two"))
    make = limited_run(partial(task, qarnot_pool=one, command=held), 1.0)
    deferred, context = defer(make, ti(run_id))
    qarnot.faults([{"method": "POST", "path": f"^/pools/{one}/close$", "kind": "status", "status": 403}])
    (event,) = events_after([deferred], lambda: qarnot.advance_clock(HOUR))
    eventually(lambda: client.pools.get(two).state in OVER)
    assert client.pools.get(one).state not in OVER
    qarnot.faults([])
    with pytest.raises(QarnotCostLimitError, match="max_run_cost"):
        resume(make, context, event)
    assert client.pools.get(one).state in OVER


# --- while nothing waits


@pytest.mark.parametrize("missed", [False, True])
def test_the_watch_goes_on_between_waits_until_the_pool_closes(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str, missed: bool
) -> None:
    """Although a replica that lags does not know the pool for once."""
    pool = run(create, ti(run_id, "create"))
    make = partial(task, qarnot_pool=pool, command="true", max_cost=0.5)
    deferred, context = defer(make, ti(run_id))

    async def story() -> Any:
        event = await first_event(again(deferred.trigger))
        # Nothing waits any more, as while an Airflow task works that needs no pool.
        (poll,) = [one for one in pollers() if one.kind == "cost"]
        assert not any(subscription.subscribers for subscription in poll.subscriptions.values())
        if missed:
            lag = {"method": "GET", "path": f"^/pools/{pool}$", "times": 1, "kind": "status", "status": 404}
            await asyncio.to_thread(qarnot.faults, [lag])
            answered = {"path": f"/pools/{pool}", "status": 404}
            await asyncio.to_thread(
                eventually, lambda: any(answered.items() <= one.items() for one in qarnot.requests())
            )
        await asyncio.to_thread(qarnot.advance_clock, HOUR)
        await asyncio.to_thread(eventually, lambda: client.pools.get(pool).state in OVER)
        while any(one.kind == "cost" for one in pollers()):
            await asyncio.sleep(0.01)
        return event

    event = asyncio.run(asyncio.wait_for(story(), 30))
    assert resume(make, context, event)["state"] == "Success"


def test_the_watch_of_what_others_made_ends_with_its_last_waiter(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str, pool: str
) -> None:
    deferred, _ = defer(partial(task, qarnot_pool=pool, command="true", max_cost=50), ti(run_id))

    async def story() -> None:
        await first_event(again(deferred.trigger))
        while any(one.kind == "cost" for one in pollers()):
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(story(), 30))
    assert client.pools.get(pool).state not in OVER


def test_a_task_on_a_pool_over_its_limit_submits_nothing_and_closes_it(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str
) -> None:
    pool = run(create, ti(run_id, "create"))
    qarnot.advance_clock(HOUR)
    with pytest.raises(QarnotCostLimitError, match=rf"Pool {pool} has cost 0\.7\d+ EUR.*max_cost of 0\.5"):
        run(partial(task, qarnot_pool=pool, command="true", max_cost=0.5), ti(run_id))
    assert made_for(client.tasks, run_id) == []
    assert client.pools.get(pool).state in OVER


def test_the_result_of_an_earlier_try_is_used_though_the_limit_is_reached(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str
) -> None:
    pool = run(create, ti(run_id, "create"))
    make = partial(task, qarnot_pool=pool, command="true", max_cost=0.5)
    deferred, _ = defer(make, ti(run_id))  # and its worker dies
    eventually(lambda: client.tasks.get(deferred.trigger.uuid).state == "Success")
    qarnot.advance_clock(HOUR)
    assert run(make, ti(run_id, try_number=2))["uuid"] == deferred.trigger.uuid


@pytest.mark.parametrize("limit", [{"max_cost": 0.5}, {"max_run_cost": 1.0}])
def test_the_reaper_closes_what_has_reached_its_limit(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str, limit: dict[str, float]
) -> None:
    pools = [run(partial(create, **limit), ti(run_id, name)) for name in ("one", "two")]
    cheap = run(partial(create, max_cost=50), ti(run_id + "-other", "cheap"))

    def reaped() -> dict[str, Any]:
        clock = qarnot.get_clock()
        report = reap(
            client, "test", lambda *_: "running", now=lambda: datetime.fromtimestamp(clock["now"], UTC)
        )
        return {one.uuid: one for one in report.entries}

    assert {reaped()[uuid].action for uuid in pools} == {"keep"}
    qarnot.advance_clock(HOUR - 60)  # not idle for so long that this closes it
    found = reaped()
    for uuid in pools:
        assert (found[uuid].action, found[uuid].done) == ("close", True)
        assert (
            f"reaches its {next(iter(limit))} of {format_euros(next(iter(limit.values())))}"
            in found[uuid].reason
        )
        assert uuid in found[uuid].reason.lower()
        assert client.pools.get(uuid).state in OVER
    assert found[cheap].action == "keep"
    client.pools.delete(cheap)


@pytest.mark.parametrize("state", ["failed", "running"])
def test_the_reaper_needs_no_cost_to_close_what_no_run_needs(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str, state: str
) -> None:
    """Qarnot's credits and jobs are down. That a limit is not checked is reported if nothing else closes the pool."""
    pool = run(partial(create, max_cost=50), ti(run_id, "create"))
    down = {"kind": "status", "status": 503}
    qarnot.faults(
        [{**down, "path": "^/credits/"}, *([{**down, "path": "^/jobs"}] if state == "failed" else [])]
    )
    soon = datetime.fromtimestamp(qarnot.get_clock()["now"], UTC) + timedelta(minutes=30)
    report = reap(client, "test", lambda *_: state, now=lambda: soon)
    entry = next(one for one in report.entries if one.uuid == pool)
    assert (entry.action, entry.done) == (("close", True) if state == "failed" else ("keep", False))
    failures = [one for one in report.failures if one.startswith(pool)]
    assert len(failures) == (state == "running")
    assert all("limit on cost was not checked" in one for one in failures)


def test_a_shared_pool_has_its_limit_written_on_it_and_on_those_that_follow(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str
) -> None:
    from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
    from airflow_qarnot_pool.ownership.shared_pool import open_replacement

    pool = run(partial(create, shared="limited", warm_up=False, max_cost=5), ti(run_id, "create"))
    client.pools.close(pool)
    identity = TaskInstanceIdentity.of(context_of(create(), ti(run_id)), "test")
    after = open_replacement(client, pool, identity, lambda _: None)
    assert after not in (None, pool)
    for uuid in (pool, str(after)):
        watched = limits_from_labels(client.pools.get(uuid))
        assert watched is not None
        assert (watched.max_cost, watched.max_run_cost, watched.uuid) == (5.0, None, uuid)


@pytest.mark.parametrize("missed", ["once", "always"])
def test_a_pool_that_searches_miss_counts_for_the_limit_of_its_run(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str, missed: str
) -> None:
    """A replica lags, or Airflow's clock is far ahead of the service's."""
    make = partial(create, max_run_cost=1.0)
    pools, settled = [run(make, ti(run_id, "one"))], dict[str, float]()
    ahead = datetime.fromtimestamp(qarnot.get_clock()["now"] + HOUR, UTC).isoformat()
    watched = CostLimit(
        uuid=pools[0],
        max_run_cost=1.0,
        namespace="test",
        dag_id="dag",
        run_id=run_id,
        since=ahead if missed == "always" else None,
    )
    qarnot.lag_searches(HOUR)
    try:
        pools.append(run(make, ti(run_id, "two")))
        spending_of(client, watched, settled)
    finally:
        qarnot.lag_searches(0)
    qarnot.advance_clock(HOUR)
    check = check_limits(watched, spending_of(client, watched, settled))
    assert (check.level, set(check.close)) == (LimitLevel.OVER, set(pools))


def test_a_shared_pool_does_not_count_for_a_run_s_limit(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str
) -> None:
    make = partial(create, shared="of-many", warm_up=False, max_run_cost=0.5)
    pool = run(make, ti(run_id, "create"))
    assert run(limited_run(partial(task, qarnot_pool=pool, command="true"), 0.5), ti(run_id))
    qarnot.advance_clock(HOUR)
    watched = make()._costs.limit(context_of(make(), ti(run_id)), pool)
    assert watched is not None
    spent = spending_of(client, watched)
    assert (spent.run, spent.of_the_run) == (0.0, False)
    assert spent.own
    assert limits_from_labels(client.pools.get(pool)) is None
    client.pools.close(pool)


def test_a_task_on_a_pool_that_was_closed_for_its_cost_says_so(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str
) -> None:
    pool = run(create, ti(run_id, "create"))
    qarnot.advance_clock(HOUR)
    client.pools.close(pool)
    with pytest.raises(QarnotCostLimitError, match="max_cost"):
        run(partial(task, qarnot_pool=pool, command="true", max_cost=0.5), ti(run_id))
    with pytest.raises(QarnotPoolEndedError):
        run(
            partial(task, qarnot_pool=pool, command="true", max_cost=50, task_id="other"), ti(run_id, "other")
        )


def test_without_limits_nothing_is_asked(qarnot: LocalQarnot, client: QarnotClient, run_id: str) -> None:
    qarnot.clear_requests()
    defer(create, ti(run_id, "create"))
    assert [f"{one['method']} {one['path']}" for one in qarnot.requests()] == ["POST /pools"]
    deferred, _ = defer(partial(create, max_cost=5), ti(run_id, "limited"))
    assert [f"{one['method']} {one['path']}" for one in qarnot.requests()] == ["POST /pools"] * 2
    assert deferred.trigger.serialize()[1]["cost_limit"]["max_cost"] == 5


def test_a_trigger_without_a_limit_is_written_as_by_the_release_before(
    qarnot: LocalQarnot, run_id: str
) -> None:
    deferred, _ = defer(create, ti(run_id, "create"))
    assert "cost_limit" not in deferred.trigger.serialize()[1]


# --- before anything is made


def test_a_pool_that_cannot_be_paid_is_not_created(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str
) -> None:
    before = qarnot.get_account()
    qarnot.set_account(credits=3.0)
    try:
        with pytest.raises(
            QarnotCostLimitError, match=r"estimated to cost 5.00 EUR, and the account has \d.\d+ EUR"
        ):
            run(partial(create, estimated_cost=5), ti(run_id, "create"))
        assert made_for(client.pools, run_id) == []
        assert run(partial(create, estimated_cost=0.5), ti(run_id, "create"))
        qarnot.set_account(credits=100.0, maxInstances=2)
        with pytest.raises(QarnotCostLimitError, match="running instances, and this takes 50 more"):
            run(partial(create, estimated_cost=5, instance_count=50), ti(run_id, "large"))
    finally:
        qarnot.set_account(credits=before["credits"], maxInstances=before["maxInstances"])


def test_a_budget_of_the_project_must_cover_it(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str
) -> None:
    (project,) = client.account.info().projects
    budget = {"alias": "summer", "totalAmountInCents": 1000, "budgetOverrunPolicy": "BlockNew"}
    qarnot.set_account(budgets=[{**budget, "consumedAmountInCents": 800}])
    try:
        for given in ({}, {"pool_spec": {"project": project.uuid}}):
            with pytest.raises(
                QarnotCostLimitError,
                match=r"estimated to cost 5.00 EUR, and the budget summer has [12].\d\d EUR of 10.00 EUR left",
            ):
                run(partial(create, estimated_cost=5, **given), ti(run_id, "create"))
        assert made_for(client.pools, run_id) == []
        # What it is spent on comes off it.
        qarnot.set_account(budgets=[budget])
        pool = run(partial(create, estimated_cost=9), ti(run_id, "create"))
        qarnot.advance_clock(12 * HOUR)
        with pytest.raises(QarnotCostLimitError, match=r"the budget summer has 1\.\d+ EUR of 10.00 EUR left"):
            run(partial(create, estimated_cost=9), ti(run_id, "again"))
        client.pools.close(pool)
        qarnot.set_account(
            budgets=[{**budget, "consumedAmountInCents": 800, "budgetOverrunPolicy": "AlertOnly"}]
        )
        assert run(partial(create, estimated_cost=5), ti(run_id, "alerted"))
    finally:
        qarnot.set_account(budgets=[])


def test_a_refused_pool_leaves_none_of_an_earlier_life(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str
) -> None:
    make = partial(create, pool_spec={"scaling": NO_NODE}, ready_when=1, instance_count=None)
    first, _ = defer(make, ti(run_id, "create"))
    with pytest.raises(QarnotCostLimitError):
        run(partial(make, estimated_cost=1e6), ti(run_id, "create", try_number=2, max_tries=2))
    assert client.pools.get(first.trigger.uuid).state in OVER


def test_a_retry_takes_up_its_pool_though_the_estimate_is_not_covered_any_more(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str
) -> None:
    make = partial(create, pool_spec={"scaling": NO_NODE}, ready_when=1, instance_count=None)
    first, _ = defer(make, ti(run_id, "create"))
    second, _ = defer(partial(make, estimated_cost=1e6), ti(run_id, "create", try_number=2))
    assert second.trigger.uuid == first.trigger.uuid


# --- in a DAG


def test_tasks_take_over_the_limits_of_their_pool() -> None:
    with DAG("limits", schedule=None):
        opened = create(task_id="open", max_cost=3, max_run_cost=9)
        takes = task(task_id="takes", qarnot_pool=opened.output, command="true")
        own = task(task_id="own", qarnot_pool=opened.output, command="true", max_cost=1)
        none = task(task_id="none", qarnot_pool="some-pool", command="true")
        with QarnotPoolGroup("group", instance_count=1, max_cost=4):
            inside = task(task_id="inside", command="true")
            mapped = QarnotRunTaskOperator.partial(task_id="mapped").expand(command=["true"])
    assert (takes.max_cost, takes.max_run_cost) == (3, 9)
    assert (own.max_cost, own.max_run_cost) == (1, 9)
    assert none.max_cost is None
    assert inside.max_cost == 4
    unmapped = mapped.unmap({"command": "true"})
    assert unmapped.max_cost == 4


@pytest.mark.parametrize("name", ["max_cost", "max_run_cost", "estimated_cost"])
def test_nonsense_is_refused_when_the_dag_is_parsed(name: str) -> None:
    with pytest.raises(QarnotInvalidSpecError, match=name):
        create(**{name: -1})
    create(**{name: "{{ params.limit }}"})
