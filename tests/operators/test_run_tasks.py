"""``QarnotRunTasksOperator`` against the local Qarnot."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.filters import equal
from airflow_qarnot_pool.api.specs import PER_TRY_CONSTANTS, TaskSpec
from airflow_qarnot_pool.api.states import Phase
from airflow_qarnot_pool.api.tasks import TaskResource
from airflow_qarnot_pool.exceptions import (
    QarnotDeletedError,
    QarnotInvalidSpecError,
    QarnotPoolEndedError,
    QarnotTaskFailedError,
    QarnotUnavailableError,
    QarnotWaitTimeoutError,
)
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators import tasks as tasks_module
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.ownership import claim
from airflow_qarnot_pool.ownership.fan_out import FanOutState
from airflow_qarnot_pool.triggers.tasks import QarnotTasksTrigger
from airflow_qarnot_pool.version_compat import TaskDeferred
from airflow_qarnot_pool.waiting.polling import KillFlag
from tests.crash.children import eventually
from tests.harness import FakeTI, airflow_says, context_of, defer, fire, resume, run
from tests.operators.conftest import WAITS
from tests.readings import answering

tasks = partial(QarnotRunTasksOperator, task_id="many")
MODES = pytest.mark.parametrize("deferrable", [True, False], ids=["deferred", "on the worker"])


def made_by(client: QarnotClient, lineage: str) -> list[Any]:
    return list(client.tasks.iterate(equal("Tags", f"airflow-lineage:{lineage}")))


@WAITS
def test_results_come_in_order(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, deferrable: bool, run_id: str
) -> None:
    ti = FakeTI(run_id=run_id)
    commands = [f"echo {n}" for n in range(12)]
    commands[3] = {"command": ["echo", "three"], "constants": {"B": "2"}}  # type: ignore[call-overload]
    result = run(
        partial(
            tasks,
            qarnot_pool=pool,
            commands=commands,
            constants={"A": "1"},
            deferrable=deferrable,
            task_spec={"name": "many"},
        ),
        ti,
    )
    json.dumps(result)
    assert (result["total"], result["succeeded"], result["failed"]) == (12, 12, 0)
    assert [one["item"] for one in result["results"]] == list(range(12))
    said = [client.tasks.stdout(one["uuid"]) for one in result["results"]]
    assert said == [f"0> {'three' if n == 3 else n}\n" for n in range(12)]
    third = client.tasks.get(result["results"][3]["uuid"])
    assert {"A": "1", "B": "2"}.items() <= third.constants.items()
    assert third.name == "many [3]"


@WAITS
def test_only_so_many_are_in_flight(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, deferrable: bool, run_id: str
) -> None:
    qarnot.clear_requests()
    result = run(
        partial(tasks, qarnot_pool=pool, commands=["true"] * 20, max_in_flight="6", deferrable=deferrable),
        FakeTI(run_id=run_id),
    )
    assert result["succeeded"] == 20
    submissions = [one for one in qarnot.requests() if (one["method"], one["path"]) == ("POST", "/tasks")]
    assert len(submissions) >= 4


@pytest.mark.parametrize("kind", ["status", "reset", "garbage"])
def test_an_outage_ends_no_wait_on_the_worker(
    qarnot: LocalQarnot, pool: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("airflow_qarnot_pool.api.transport.MAX_WAIT", 0.01)
    qarnot.faults([{"path": "^/tasks/search$", "times": 9, "kind": kind, "status": 503}])
    make = partial(tasks, qarnot_pool=pool, commands=["true"] * 2, deferrable=False)
    assert run(make, FakeTI(run_id=f"outage-{kind}"))["succeeded"] == 2


def test_objects_found_by_a_retry_are_logged_and_counted(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = ["true", "true", "sh -c 'sleep 2'"]
    make = partial(tasks, qarnot_pool=pool, commands=commands, retries=1, max_in_flight=3)
    counted: list[tuple[Any, ...]] = []
    with mock.patch("airflow_qarnot_pool.metrics.incr", lambda *args, **tags: counted.append((*args, tags))):
        deferred, _ = defer(make, FakeTI(run_id="told", max_tries=1))  # and its worker dies
        lineage = deferred.trigger.uuid
        eventually(lambda: sum(one.state == "Success" for one in made_by(client, lineage)) == 2)
        assert run(make, FakeTI(run_id="told", max_tries=1, try_number=2))["succeeded"] == 3
    kind = {"kind": "task"}
    assert [one for one in counted if one[0] not in ("requests", "retries")] == [
        ("claims.fresh_submit", 3, kind),
        ("claims.adopted", 1, kind),
        ("duplicates_avoided", 1, kind),
        ("claims.already_succeeded", 2, kind),
        ("duplicates_avoided", 2, kind),
    ]
    said = capsys.readouterr().out
    for line in (
        "qarnot.fresh_submit: 3 tasks",
        "qarnot.adopted: 1 task",
        "qarnot.already_succeeded: 2 tasks",
    ):
        assert said.count(line) == 1


def test_submission_is_bulk(qarnot: LocalQarnot, client: QarnotClient, pool: str) -> None:
    qarnot.clear_requests()
    deferred, _ = defer(partial(tasks, qarnot_pool=pool, commands=["sleep 60"] * 250), FakeTI(run_id="bulk"))
    requests = [(one["method"], one["path"]) for one in qarnot.requests()]
    assert requests == [("GET", f"/pools/{pool}"), ("POST", "/tasks"), ("POST", "/tasks")]
    assert deferred.trigger.condition["expected"] == 250


@MODES
def test_all_run_before_it_fails_and_a_retry_runs_only_what_failed(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, deferrable: bool
) -> None:
    commands = ["true", "sh -c 'echo broken >&2; false'", "true", "false"]
    make = partial(tasks, qarnot_pool=pool, commands=commands, deferrable=deferrable)
    first = FakeTI(run_id=f"failed-{deferrable}", max_tries=1)
    with pytest.raises(QarnotTaskFailedError, match=r"(?s)2 of 4 .*items 1, 3.*broken"):
        run(make, first)
    assert len(made_by(client, first.xcoms["qarnot_tasks"])) == 4
    second = FakeTI(run_id=f"failed-{deferrable}", max_tries=1, try_number=2)
    with pytest.raises(QarnotTaskFailedError):
        run(make, second)
    generations = sorted(
        (int(one.labels["airflow.item"]), int(one.labels["airflow.generation"]))
        for one in made_by(client, second.xcoms["qarnot_tasks"])
    )
    assert generations == [(0, 1), (1, 1), (1, 2), (2, 1), (3, 1), (3, 2)]


def test_a_retry_takes_up_what_runs_and_what_succeeded(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    make = partial(tasks, qarnot_pool=pool, commands=["true", "sh -c 'sleep 1'", "true"])
    defer(make, FakeTI(run_id="lost-worker", max_tries=1))
    result = run(make, ti := FakeTI(run_id="lost-worker", max_tries=1, try_number=2))
    assert result["succeeded"] == 3
    assert len(made_by(client, ti.xcoms["qarnot_tasks"])) == 3


def test_a_clear_aborts_the_old_ones_and_runs_all_again(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    make = partial(tasks, qarnot_pool=pool, commands=["sleep 600"] * 5)
    _, context = defer(make, FakeTI(run_id="cleared"))
    quick = partial(tasks, qarnot_pool=pool, commands=["true"] * 5)
    result = run(quick, FakeTI(run_id="cleared", max_tries=1, try_number=2))
    assert result["succeeded"] == 5
    old = made_by(client, context["ti"].xcoms["qarnot_tasks"])
    assert {one.state for one in old} <= {"PendingCancel", "Cancelled"}


@pytest.mark.parametrize("kind", ["lost", "reset", "garbage"])
def test_a_lost_answer_doubles_nothing(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, kind: str
) -> None:
    qarnot.faults([{"method": "POST", "path": "^/tasks$", "times": 2, "kind": kind}])
    result = run(
        partial(tasks, qarnot_pool=pool, commands=["true"] * 5), ti := FakeTI(run_id=f"doubt-{kind}")
    )
    assert result["succeeded"] == 5
    assert len(made_by(client, ti.xcoms["qarnot_tasks"])) == 5


#: What shows a retry that its Qarnot tasks exist: their names in paths, or that these are taken.
SHOWN_BY = {
    "paths": {},
    "paths only": {"name_of_closed_pool": "not enforced"},
    "names that are taken": {"shortname_in_path": "no"},
    "a refused list": {"shortname_in_path": "no", "bulk_all_fail": "400 list"},
    "one refusal for all": {"shortname_in_path": "no", "bulk_all_fail": "400 message"},
}


@pytest.mark.parametrize("answers", SHOWN_BY.values(), ids=SHOWN_BY)
def test_a_retry_doubles_nothing_though_searches_show_nothing_yet(
    qarnot: LocalQarnot,
    client: QarnotClient,
    pool: str,
    run_id: str,
    monkeypatch: pytest.MonkeyPatch,
    answers: dict[str, str],
) -> None:
    make = partial(tasks, qarnot_pool=pool, commands=["sleep 600"] * 5)
    waits: list[float] = []

    def wait(self: KillFlag, seconds: float) -> bool:
        waits.append(seconds)
        qarnot.lag_searches(0)
        return self.is_set()

    with answering(qarnot, **answers):
        qarnot.lag_searches(3600)
        try:
            first, _ = defer(make, FakeTI(run_id=run_id, max_tries=1))
            monkeypatch.setattr(KillFlag, "wait", wait)
            second, _ = defer(make, FakeTI(run_id=run_id, max_tries=1, try_number=2))
        finally:
            qarnot.lag_searches(0)
    made = made_by(client, first.trigger.uuid)
    assert len(made) == 5
    assert second.trigger.uuid == first.trigger.uuid
    assert all("airflow-try:2" in one.tags for one in made), "all are adopted"
    assert len(waits) == 1


def test_a_retry_keeps_the_commands_on_a_server_that_drops_constants_that_are_not_sent(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    make = partial(tasks, qarnot_pool=pool, commands=["sleep 600"] * 5)
    ti = FakeTI(run_id="dropped", max_tries=1)
    with answering(qarnot, put_absent_keys="reset"):
        defer(make, ti)
        defer(make, FakeTI(run_id="dropped", max_tries=1, try_number=2))
    made = made_by(client, ti.xcoms["qarnot_tasks"])
    assert [one.constants.get("DOCKER_CMD") for one in made] == ["sleep 600"] * 5


@MODES
def test_running_out_of_time_aborts_all(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, deferrable: bool
) -> None:
    make = partial(
        tasks,
        qarnot_pool=pool,
        commands=["sleep 600"] * 5,
        wait_timeout=timedelta(seconds=0.6),
        deferrable=deferrable,
    )
    with pytest.raises(QarnotWaitTimeoutError, match="5 of 5"):
        run(make, ti := FakeTI(run_id=f"late-{deferrable}"))
    states = {one.state for one in made_by(client, ti.xcoms["qarnot_tasks"])}
    assert states <= {"PendingCancel", "Cancelled"}


def test_a_kill_aborts_all(qarnot: LocalQarnot, client: QarnotClient, pool: str) -> None:
    operator = tasks(qarnot_pool=pool, commands=["sleep 600"] * 20)
    context = context_of(operator, ti := FakeTI(run_id="killed"))
    with pytest.raises(BaseException):  # noqa: B017 - TaskDeferred is none of ours
        operator.execute(context)
    with airflow_says("failed"):
        operator.on_kill()
    states = {one.state for one in made_by(client, ti.xcoms["qarnot_tasks"])}
    assert states <= {"PendingCancel", "Cancelled"}


def test_a_kill_aborts_many_at_a_time(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has 5 s, in which 500 requests one after another do not fit."""
    operator = tasks(qarnot_pool=pool, commands=["sleep 600"] * 64)
    with pytest.raises(TaskDeferred):
        operator.execute(context_of(operator, ti := FakeTI(run_id="killed-many")))
    together = threading.Barrier(32, timeout=60)
    real = claim.end

    def end(*args: Any) -> None:
        together.wait()
        real(*args)

    monkeypatch.setattr(claim, "end", end)
    qarnot.clear_requests()
    with airflow_says("failed"):
        operator.on_kill()
    asked = [one["path"] for one in qarnot.requests()]
    # The search, the page that shows that it was not cut, and an abort for each.
    assert asked[:2] == ["/tasks/search", "/tasks/summaries/paginate"]
    assert len(asked) == 66
    states = {one.state for one in made_by(client, ti.xcoms["qarnot_tasks"])}
    assert states <= {"PendingCancel", "Cancelled"}


def test_a_kill_says_what_it_could_not_end_in_time(
    qarnot: LocalQarnot, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_qarnot_pool.operators.bases.remote_work.KILL_TIMEOUT", 0.0)
    operator = tasks(qarnot_pool=pool, commands=["sleep 600"] * 3)
    with pytest.raises(TaskDeferred):
        operator.execute(context_of(operator, FakeTI(run_id="killed-late")))
    with airflow_says("failed"):
        operator.on_kill()  # logs it, and leaves the process free to end
        operator._kill_after_deferral._thread.join(60)  # type: ignore[union-attr]
    assert operator._work is not None
    with pytest.raises(QarnotUnavailableError, match=r"3 of 3 Qarnot tasks could not be ended in time"):
        operator._work.end(hurried=True)
    assert not any(one["path"].endswith("/abort") for one in qarnot.requests())


def test_one_that_vanished_is_gone_and_no_success(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_qarnot_pool.operators.tasks._MAX_LOOKUPS", 1)
    make = partial(tasks, qarnot_pool=pool, commands=["true"] * 3, max_in_flight=10)
    deferred, context = defer(make, ti := FakeTI(run_id="vanished"))
    client.tasks.delete(made_by(client, ti.xcoms["qarnot_tasks"])[0].uuid)
    monkeypatch.setattr("airflow_qarnot_pool.triggers.tasks.MAX_CHECK_INTERVAL", 2.0)
    with pytest.raises(QarnotDeletedError, match="1 of 3"):
        resume(make, deferred, context)


@MODES
@pytest.mark.parametrize("answer", ["207 list", "400 message"])
def test_a_quota_only_slows_it_down(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, deferrable: bool, answer: str
) -> None:
    account = client.account.info()
    # Room for four at a time; what finished goes when the next ones need the place.
    qarnot.set_account(maxTask=(account.task_count or 0) + 4)
    try:
        with answering(qarnot, bulk_all_fail=answer):
            result = run(
                partial(tasks, qarnot_pool=pool, commands=["true"] * 11, deferrable=deferrable),
                FakeTI(run_id=f"quota-{deferrable}-{answer}"),
            )
        assert (result["total"], result["succeeded"]) == (11, 11)
        assert [one["item"] for one in result["results"]] == list(range(11))
    finally:
        qarnot.set_account(maxTask=100000)


def test_a_task_deleted_after_its_end_was_seen_still_counts(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, tmp_path: Path
) -> None:
    """Somebody else fills the account, and the server makes room by deleting what is finished."""
    held = f"sh -c 'until test -e {tmp_path}/go; do sleep 0.02; done'"
    make = partial(tasks, qarnot_pool=pool, commands=["true", "false", held, held], max_in_flight=3)
    deferred, context = defer(make, ti := FakeTI(run_id="evicted"))
    event = fire(deferred)  # two have ended, and one more may be submitted
    for one in made_by(client, ti.xcoms["qarnot_tasks"]):
        if one.state in ("Success", "Failure"):
            client.tasks.delete(one.uuid)
    again = deferred_again(make, deferred, context, event)
    (tmp_path / "go").touch()
    with pytest.raises(QarnotTaskFailedError, match=r"1 of 4 .*item 1\."):
        resume(make, again, context)
    assert len(made_by(client, ti.xcoms["qarnot_tasks"])) == 2


@MODES
def test_after_one_has_vanished_the_others_are_ended(
    qarnot: LocalQarnot,
    client: QarnotClient,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
    deferrable: bool,
) -> None:
    monkeypatch.setattr("airflow_qarnot_pool.operators.tasks._MAX_LOOKUPS", 1)
    monkeypatch.setattr("airflow_qarnot_pool.triggers.tasks.MAX_CHECK_INTERVAL", 0.5)
    make = partial(tasks, qarnot_pool=pool, commands=["sleep 600"] * 4, deferrable=deferrable)
    ti = FakeTI(run_id=f"vanished-others-{deferrable}")
    with (
        delete_one_after_submission(client, ti),
        pytest.raises(QarnotDeletedError, match=r"1 of 4 .*item 0\)"),
    ):
        run(make, ti)
    states = [one.state for one in made_by(client, ti.xcoms["qarnot_tasks"]) if one.state != "PendingDelete"]
    assert len(states) == 3
    assert set(states) <= {"PendingCancel", "Cancelled"}


@contextmanager
def delete_one_after_submission(client: QarnotClient, ti: FakeTI) -> Iterator[None]:
    real = QarnotRunTasksOperator._wait_for_some

    def wait(self: Any, *args: Any) -> None:
        (first,) = (one for one in made_by(client, ti.xcoms["qarnot_tasks"]) if one.name.endswith("[0]"))
        client.tasks.delete(first.uuid)
        real(self, *args)

    with mock.patch.object(QarnotRunTasksOperator, "_wait_for_some", wait):
        yield


@MODES
def test_room_under_a_quota_is_waited_for_and_nothing_is_forgotten(
    qarnot: LocalQarnot,
    client: QarnotClient,
    pool: str,
    monkeypatch: pytest.MonkeyPatch,
    deferrable: bool,
) -> None:
    """The account is full of others' when two of three have succeeded and are gone."""
    monkeypatch.setattr("airflow_qarnot_pool.triggers.quota.TRY_AGAIN_AFTER", 0.5)
    holder = client.tasks.create(TaskSpec(name="holder", pool=pool, command="sleep 600"))
    first = partial(
        tasks,
        qarnot_pool=pool,
        commands=["true"] * 3,
        max_in_flight=2,
        deferrable=deferrable,
        wait_for_quota=timedelta(minutes=5),
        wait_timeout=timedelta(minutes=20),
    )
    ti = FakeTI(run_id=f"room-{deferrable}")
    with full_at_the_second_submission(qarnot, client, holder) as submitted:
        if deferrable:
            deferred, context = defer(first, ti)
            again = deferred_again(first, deferred, context, fire(deferred))
            assert again.method_name == "execute_with_quota_room"
            assert again.trigger.resume_state["succeeded"] == "0-1"
            assert again.trigger.resume_state["deadline"] == deferred.trigger.deadline
            qarnot.set_account(maxTask=100000)
            result = resume(first, again, context)
        else:
            freeing = mock.Mock(side_effect=lambda *_: qarnot.set_account(maxTask=100000))
            with mock.patch.object(QarnotRunTasksOperator, "_wait_for_room", freeing):
                result = run(first, ti)
            assert freeing.called
    client.tasks.delete(holder)
    assert (result["total"], result["succeeded"]) == (3, 3)
    assert submitted == [0, 1, 2, 2]


@contextmanager
def full_at_the_second_submission(
    qarnot: LocalQarnot, client: QarnotClient, holder: str
) -> Iterator[list[int]]:
    """The items that were to be submitted. Before the second time all but *holder* goes, and there is no room."""
    submitted: list[int] = []
    real = QarnotRunTasksOperator._submit

    def submit(self: Any, specs: Any, fingerprints: Any, wanted: Any, identity: Any) -> Any:
        if len(submitted) == 2:
            for one in client.tasks.list():
                if one.uuid != holder:
                    client.tasks.delete(one.uuid)
            qarnot.set_account(maxTask=1)
        submitted.extend(one.index for one in wanted)
        return real(self, specs, fingerprints, wanted, identity)

    try:
        with mock.patch.object(QarnotRunTasksOperator, "_submit", submit):
            yield submitted
    finally:
        qarnot.set_account(maxTask=100000)


def test_a_wait_for_many_deferred_under_the_previous_release_resumes(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    """What was stored said how many there were, and not which."""
    make = partial(tasks, qarnot_pool=pool, commands=["true"] * 3)
    deferred, context = defer(make, FakeTI(run_id="previous"))
    kwargs = {
        **deferred.trigger.serialize()[1],
        "condition": {"expected": 3, "low_water": 0},
        "resume_state": {"expected": 3, "succeeded": "", "deadline": None},
    }
    deferred.trigger = type(deferred.trigger)(**kwargs)
    result = resume(make, deferred, context)
    assert (result["total"], result["succeeded"]) == (3, 3)
    assert len(made_by(client, context["ti"].xcoms["qarnot_tasks"])) == 3


@pytest.mark.usefixtures("defers_at_once")
def test_a_wait_for_room_deferred_under_the_previous_release_resumes(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    make = partial(tasks, qarnot_pool=pool, commands=["true"] * 3, wait_for_quota=timedelta(minutes=1))
    operator = make()
    context = context_of(operator, FakeTI(run_id="previous-room"))
    event = {"status": "met", "deadline": (datetime.now(UTC) + timedelta(minutes=1)).isoformat()}
    with pytest.raises(TaskDeferred) as caught:
        operator.resume_execution("execute_with_quota_room", {"event": event}, context)
    assert resume(make, caught.value, context)["succeeded"] == 3


def deferred_again(make: Any, deferred: TaskDeferred, context: Any, event: Any) -> TaskDeferred:
    """Resume to the next deferral."""
    with pytest.raises(TaskDeferred) as caught:
        go_on(make, deferred, context, event)
    return caught.value


def go_on(make: Any, deferred: TaskDeferred, context: Any, event: Any) -> Any:
    """Resume with *event*, on to the result."""
    operator = make()
    return operator.resume_execution(deferred.method_name, {"event": event}, {**context, "task": operator})


def test_the_result_is_bounded(qarnot: LocalQarnot, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks_module, "MAX_RESULTS", 3)
    result = run(partial(tasks, qarnot_pool=pool, commands=["true"] * 8), FakeTI(run_id="bound"))
    assert (result["succeeded"], len(result["results"])) == (8, 3)


def test_results_are_in_the_order_of_the_items_whatever_became_of_each() -> None:
    operator = tasks(commands=["true"] * 4)
    now = FanOutState(total=4, succeeded={1: "b"}, failed={2: "c"}, running={0: "a", 3: "d"})
    assert operator._result(now)["results"] == [
        {"item": 0, "uuid": "a", "state": "Submitted"},
        {"item": 1, "uuid": "b", "state": "Success"},
        {"item": 2, "uuid": "c", "state": "Failure"},
        {"item": 3, "uuid": "d", "state": "Submitted"},
    ]


def test_no_commands_no_requests(qarnot: LocalQarnot) -> None:
    assert run(partial(tasks, commands=[]))["total"] == 0
    assert qarnot.requests() == []


@pytest.mark.parametrize(("given", "sent"), [(148, 150), (149, 149), (150, 150)])
def test_the_ids_of_the_runs_are_sent_if_there_is_room(given: int, sent: int) -> None:
    operator = QarnotRunTaskOperator(
        task_id="one", command="true", constants={f"C{n}": "" for n in range(given - 1)}
    )
    operator._parent_ids = dict.fromkeys(PER_TRY_CONSTANTS, "a/b/c")
    (spec,) = operator._given_specs()
    assert len(spec.all_constants()) == sent


@pytest.mark.parametrize("answer", ["207 list", "400 list", "400 message"])
def test_a_closed_pool_is_named(qarnot: LocalQarnot, client: QarnotClient, pool: str, answer: str) -> None:
    client.pools.close(pool)
    with (
        answering(qarnot, bulk_all_fail=answer),
        pytest.raises(QarnotPoolEndedError, match="takes no more tasks"),
    ):
        run(partial(tasks, qarnot_pool=pool, commands=["true"] * 2), FakeTI(run_id=f"closed {answer}"))


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"commands": ["true", ""]}, r"commands\[1\].*command"),
        ({"commands": [{"instance_count": 0, "command": "true"}]}, r"commands\[0\].*instance_count"),
        ({"commands": ["true"], "max_in_flight": 0}, "max_in_flight"),
        ({"commands": ["true"], "task_spec": {"tags": [str(n) for n in range(8)]}}, "tags"),
    ],
)
def test_bad_input_is_refused_when_the_dag_is_parsed(parameters: dict[str, Any], named: str) -> None:
    with pytest.raises(QarnotInvalidSpecError, match=named):
        tasks(**parameters)


def test_commands_that_come_from_elsewhere_are_checked_before_any_request(qarnot: LocalQarnot) -> None:
    operator = tasks(commands="{{ ti.xcom_pull('list') }}")
    operator.commands = "not a list"
    with pytest.raises(QarnotInvalidSpecError, match="commands must be a list"):
        run(lambda: operator)
    assert qarnot.requests() == []


def test_never_more_than_the_limit_are_unfinished(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_many, crowds = TaskResource.create_many, []

    def counting(self: TaskResource, specs: Any) -> Any:
        specs = list(specs)
        lineage = next(tag for tag in specs[0].tags if tag.startswith("airflow-lineage:"))
        there = client.tasks.search(equal("Tags", lineage))
        crowds.append(len(specs) + sum(one.phase is not Phase.TERMINAL for one in there))
        return create_many(self, specs)

    monkeypatch.setattr(TaskResource, "create_many", counting)
    make = partial(tasks, qarnot_pool=pool, commands=["true"] * 25, max_in_flight=6)
    assert run(make, FakeTI(run_id="crowd"))["succeeded"] == 25
    assert len(crowds) >= 5
    assert max(crowds) <= 6
    # It is topped up when half of them have ended, not for each of them.
    assert len(crowds) <= 8
    deferred, _ = defer(make, FakeTI(run_id="half"))
    assert deferred.trigger.condition == {"expected": 25, "low_water": 3}


@pytest.mark.usefixtures("defers_at_once")
def test_the_log_tells_how_far_it_is(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    lines: list[str] = []

    class Recorder:
        def info(self, text: str, *values: Any) -> None:
            lines.append(text % values)

    monkeypatch.setattr("airflow_qarnot_pool.triggers.tasks.REPORT_INTERVAL", 0.0)
    monkeypatch.setattr(QarnotTasksTrigger, "log", Recorder())
    make = partial(tasks, qarnot_pool=pool, commands=["true", "false", "true", "true"])
    with pytest.raises(QarnotTaskFailedError):
        run(make, FakeTI(run_id="progress"))
    assert lines[-1] == "4 done (1 failed), 0 unfinished"
    said = capsys.readouterr().out
    assert "Submitted 4. Before that: 0 of 4 done (0 failed), 0 in flight, 4 not submitted" in said
