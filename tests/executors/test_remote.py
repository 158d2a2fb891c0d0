"""The thread that sends everything of the executor to Qarnot, against a local Qarnot."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.errors import QarnotRefusedError
from airflow_qarnot_pool.api.models import Task
from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec
from airflow_qarnot_pool.costs.limits import LimitLevel
from airflow_qarnot_pool.executors import daily_cost, remote, retries, tracked
from airflow_qarnot_pool.executors.options import ExecutorOptions, PoolOptions
from airflow_qarnot_pool.executors.pool import PoolKey, delete_closed, pool_tag
from airflow_qarnot_pool.executors.qarnot_executor import QarnotExecutor
from airflow_qarnot_pool.executors.remote import RemoteTasks, Submission
from airflow_qarnot_pool.executors.running import ROLE, Attempt, End, Outcome, name_of
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.maintenance.reaper import reap
from airflow_qarnot_pool.ownership.identity import EXECUTOR_LABEL, NAMESPACE_TAG, OWNER_TAG, label

T = TypeVar("T")
PATIENCE = 60.0


@pytest.fixture(scope="module")
def server() -> Iterator[LocalQarnot]:
    with LocalQarnot(boot_seconds=0.05) as qarnot:
        yield qarnot


@pytest.fixture
def qarnot(server: LocalQarnot, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalQarnot]:
    """A local Qarnot that only this test uses now, and a namespace of its own."""
    namespace = f"test-{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", server.airflow_connection(namespace=namespace))
    monkeypatch.setenv("AIRFLOW__QARNOT__POLL_INTERVAL", "0.1")
    monkeypatch.setenv("AIRFLOW__QARNOT__MIN_POLL_INTERVAL", "0.05")
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.05)
    server.clear_requests()
    yield server
    server.faults([])
    server.set_account(maxTask=100_000, maxPool=100_000)


@pytest.fixture
def client(qarnot: LocalQarnot) -> Iterator[QarnotClient]:
    with QarnotClient(qarnot.url, qarnot.token) as client:
        yield client


@pytest.fixture
def tasks(qarnot: LocalQarnot) -> Iterator[RemoteTasks]:
    tasks = RemoteTasks(ExecutorOptions(pools={"airflow": PoolOptions(slots=50)}))
    yield tasks
    tasks.stop(10)


class Key(NamedTuple):
    """As Airflow's key of a task instance."""

    dag_id: str = "dag"
    task_id: str = "task"
    run_id: str = "run"
    try_number: int = 1
    map_index: int = -1


def attempt(instance_id: str | None = None, external_id: str | None = None) -> Attempt:
    instance_id, external_id = instance_id or uuid.uuid4().hex, external_id or str(uuid.uuid4())
    key = Key()
    return Attempt(
        name=name_of(external_id, instance_id), key=key, instance_id=instance_id, external_id=external_id
    )


def submission(
    command: str = "true",
    of: Attempt | None = None,
    may_wait: timedelta | None = None,
    pool: str = "airflow",
) -> Submission:
    spec = TaskSpec(name="dag.task", command=["sh", "-c", command], max_time_queue=may_wait)
    return Submission(attempt=of or attempt(), spec=spec, pool=PoolKey(pool))


def until(look: Callable[[], T]) -> T:
    ends = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < ends
        time.sleep(0.01)
    return found


def ends(tasks: RemoteTasks, count: int) -> list[End]:
    seen: list[End] = []
    until(lambda: len(seen.__iadd__(tasks.take_ends())) >= count)
    return seen


def posts(qarnot: LocalQarnot) -> list[dict[str, Any]]:
    return [one for one in qarnot.requests() if (one["method"], one["path"]) == ("POST", "/tasks")]


def live(client: QarnotClient, *attempts: Attempt) -> list[str]:
    found = [client.tasks.find(each.name) for each in attempts]
    return [task.state for task in found if task is not None]


def test_a_heartbeats_tasks_are_one_request_and_one_poll_shows_their_ends(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks
) -> None:
    good = [submission() for _ in range(8)]
    bad = submission("echo the reason >&2; exit 3")
    tasks.submit([*good, bad])
    seen = {end.attempt.name: end for end in ends(tasks, 9)}
    failure = seen.pop(bad.attempt.name)
    assert failure.outcome is Outcome.FAILURE
    assert "the reason" in failure.reason
    assert {end.outcome for end in seen.values()} == {Outcome.SUCCESS}
    assert seen.keys() == {each.attempt.name for each in good}
    assert len(posts(qarnot)) == 1
    found = client.tasks.get(bad.attempt.name)
    assert bad.attempt.tag in found.tags
    assert (label(found.labels, "role"), label(found.labels, "dag_id")) == (ROLE, "dag")
    assert found.completion_ttl is not None


def test_all_schedulers_share_a_pool_that_scales_to_zero(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks
) -> None:
    other = RemoteTasks(ExecutorOptions(pools={"airflow": PoolOptions(slots=50)}))
    first, second = submission(), submission()
    tasks.submit([first])
    other.submit([second])
    ends(tasks, 1), ends(other, 1)
    other.stop(10)
    pools = {client.tasks.get(each.attempt.name).pool for each in (first, second)}
    assert len(pools) == 1
    pool = client.pools.get(str(pools.pop()))
    assert pool.scaling is not None
    assert pool.scaling.policies[0].to_json()["minTotalSlots"] == 0


@pytest.mark.parametrize("kind", ["lost", "reset"])
def test_a_response_that_is_lost_makes_no_second_task(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks, kind: str
) -> None:
    qarnot.faults([{"method": "POST", "path": "/tasks", "kind": kind, "times": 3}])
    sent = [submission() for _ in range(3)]
    tasks.submit(sent)
    assert {end.outcome for end in ends(tasks, 3)} == {Outcome.SUCCESS}
    for each in sent:
        assert len(client.tasks.find_all(each.attempt.name)) == 1


def test_a_frozen_qarnot_freezes_no_call_of_the_scheduler(qarnot: LocalQarnot, tasks: RemoteTasks) -> None:
    assert qarnot.process is not None
    tasks.submit([submission()])
    ends(tasks, 1)
    os.kill(qarnot.process.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        one = submission()
        tasks.submit([one])
        tasks.abort([attempt().name])
        assert tasks.take_ends() == []
        assert tasks.find([attempt()], timeout=0.2) == {}
        assert time.monotonic() - began < 5
    finally:
        os.kill(qarnot.process.pid, signal.SIGCONT)
    (end,) = ends(tasks, 1)
    assert end == End(attempt=one.attempt, outcome=Outcome.SUCCESS)


def test_a_full_quota_and_a_busy_service_delay_tasks_and_fail_none(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks
) -> None:
    tasks.submit([submission()])
    ends(tasks, 1)
    # Without the room that the finished one gives back, no task would be accepted.
    qarnot.set_account(maxTask=client.account.info().task_count)
    qarnot.faults([{"method": "POST", "path": "/tasks", "kind": "status", "status": 429, "times": 3}])
    tasks.submit([submission()])
    assert [end.outcome for end in ends(tasks, 1)] == [Outcome.SUCCESS]


def test_a_task_that_qarnot_refuses_ends_with_the_reason_and_holds_up_no_other(
    qarnot: LocalQarnot, tasks: RemoteTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "REFUSED_FOR", 0.1)
    wrong = submission()
    spec = TaskSpec(name="dag.task", command="true", resource_buckets=["no-such-bucket"])
    wrong = Submission(attempt=wrong.attempt, spec=spec, pool=wrong.pool)
    right = submission()
    tasks.submit([wrong, right])
    outcomes = {end.attempt.name: end for end in ends(tasks, 2)}
    assert outcomes[right.attempt.name].outcome is Outcome.SUCCESS
    refused = outcomes[wrong.attempt.name]
    assert refused.outcome is Outcome.REFUSED
    assert "no-such-bucket" in refused.reason


def test_a_closed_pool_is_replaced_by_the_next(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks
) -> None:
    first, second = submission(), submission()
    tasks.submit([first])
    ends(tasks, 1)
    closed = str(client.tasks.get(first.attempt.name).pool)
    client.pools.close(closed)
    tasks.submit([second])
    assert [end.outcome for end in ends(tasks, 1)] == [Outcome.SUCCESS]
    assert client.tasks.get(second.attempt.name).pool != closed


def test_a_pool_that_is_closed_fails_what_runs_and_not_what_comes_after(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks
) -> None:
    tasks.submit([running := submission("sleep 600")])
    until(lambda: "FullyExecuting" in live(client, running.attempt))
    closed = str(client.tasks.get(running.attempt.name).pool)
    client.pools.close(closed)
    (end,) = ends(tasks, 1)
    assert (end.attempt, end.outcome) == (running.attempt, Outcome.FAILURE)
    assert f"its pool {closed} is Clos" in end.reason
    tasks.submit([after := submission()])
    assert [end.outcome for end in ends(tasks, 1)] == [Outcome.SUCCESS]
    assert client.tasks.get(after.attempt.name).pool != closed


def test_a_task_that_has_no_slot_for_too_long_has_waited_and_lost_no_node(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks
) -> None:
    qarnot.withhold_nodes(True)
    try:
        tasks.submit([one := submission(may_wait=timedelta(minutes=9))])
        until(lambda: live(client, one.attempt))
        qarnot.advance_clock(9 * 60)
        (end,) = ends(tasks, 1)
    finally:
        qarnot.withhold_nodes(False)
    assert end.outcome is Outcome.WAITED
    assert "had no slot of its pool for 540 s" in end.reason


def test_a_task_that_cannot_be_submitted_in_time_has_waited_and_tells_the_error(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks
) -> None:
    """It is queued again with another token, before Airflow takes it for stuck, which it does twice at most."""
    qarnot.faults([{"method": "POST", "path": "/pools", "kind": "status", "status": 503}])
    tasks.submit([one := submission(may_wait=timedelta(seconds=0.5))])
    (end,) = ends(tasks, 1)
    assert (end.attempt, end.outcome) == (one.attempt, Outcome.WAITED)
    assert "answered 503" in end.reason
    assert live(client, one.attempt) == []


def test_time_that_a_task_has_waited_before_its_submission_counts(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks
) -> None:
    qarnot.faults([{"method": "POST", "path": "/pools", "kind": "status", "status": 503}])
    tasks.submit([one := submission(may_wait=timedelta(seconds=540))])
    until(lambda: tasks._pool_pauses)
    tasks._remotes[one.attempt.name].since -= 100
    qarnot.faults([])
    ends(tasks, 1)
    limit = client.tasks.get(one.attempt.name).max_time_queue
    assert limit is not None
    assert limit <= timedelta(seconds=440)


def test_tasks_of_another_scheduler_are_found_by_name_and_watched(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks
) -> None:
    running, unsent = submission("sleep 600"), attempt()
    tasks.submit([running])
    until(lambda: live(client, running.attempt))
    tasks.stop(10)
    other = RemoteTasks(ExecutorOptions())
    found = other.find([running.attempt, unsent], timeout=PATIENCE)
    assert found[unsent.name] is None
    other.watch({running.attempt: found[running.attempt.name], unsent: None})
    (missing,) = ends(other, 1)
    assert (missing.attempt, missing.outcome) == (unsent, Outcome.MISSING)
    client.tasks.abort(running.attempt.name)
    (end,) = ends(other, 1)
    assert (end.attempt, end.outcome) == (running.attempt, Outcome.FAILURE)
    other.stop(10)
    assert len(posts(qarnot)) == 1


def test_without_a_committed_id_the_live_task_of_the_instance_is_found_by_its_tag(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks
) -> None:
    earlier = attempt()
    later = attempt(earlier.instance_id)
    tasks.submit([submission(of=earlier)])
    ends(tasks, 1)
    tasks.submit([submission("sleep 600", of=later)])
    until(lambda: live(client, later))
    searched = Attempt(name="any", key=later.key, instance_id=later.instance_id, by_tag=True)
    unknown = Attempt(name="none", key=later.key, instance_id="unknown", by_tag=True)
    found = tasks.find([searched, unknown], timeout=PATIENCE)
    assert found == {"any": client.tasks.get(later.name).uuid, "none": None}
    tasks.abort([later.name])
    until(lambda: live(client, later) == ["Cancelled"])


def test_without_a_committed_id_a_late_search_hides_the_task_of_the_instance(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks
) -> None:
    """The weaker guarantee of Airflow before 3.2.2. A name is found all the same."""
    qarnot.lag_searches(1e6)
    try:
        tasks.submit([one := submission("sleep 600")])
        until(lambda: live(client, one.attempt))
        uuid_ = client.tasks.get(one.attempt.name).uuid
        by_tag = replace(one.attempt, name="any", external_id="", by_tag=True)
        assert tasks.find([by_tag], timeout=PATIENCE) == {"any": None}
        assert tasks.find([one.attempt], timeout=PATIENCE) == {one.attempt.name: uuid_}
    finally:
        qarnot.lag_searches(0)
    assert tasks.find([by_tag], timeout=PATIENCE) == {"any": uuid_}
    tasks.abort([one.attempt.name])


def test_without_a_committed_id_the_output_is_found_by_the_tag_of_the_instance(
    qarnot: LocalQarnot, tasks: RemoteTasks
) -> None:
    before = attempt()
    after = attempt(before.instance_id)
    for each, text in ((before, "before the deferral"), (after, "after it")):
        tasks.submit([submission(f"echo {text}", of=each)])
        ends(tasks, 1)
        qarnot.advance_clock(5)  # by which the newest is known
    shown = SimpleNamespace(id=before.instance_id, external_executor_id=None, try_number=1)
    sources, lines = QarnotExecutor().get_task_log(shown, 1)  # type: ignore[arg-type]
    assert sources == [f"Output of Qarnot task {each.name}" for each in (after, before)]
    assert lines == ["before the deferral", "after it"]
    shown.id = "never submitted"
    assert QarnotExecutor().get_task_log(shown, 1) == ([], [])  # type: ignore[arg-type]


def test_the_next_attempt_is_submitted_after_the_end_of_the_one_that_is_aborted(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks
) -> None:
    first = attempt()
    second = attempt(first.instance_id)
    tasks.submit([submission("sleep 600", of=first)])
    until(lambda: "FullyExecuting" in live(client, first))
    # No abort is answered for a while.
    qarnot.faults([{"method": "POST", "path": "/tasks/.*/abort", "kind": "status", "status": 503}])
    tasks.abort([first.name])
    tasks.submit([submission(of=second), one := submission()])
    assert [end.attempt for end in ends(tasks, 1)] == [one.attempt]
    assert live(client, second) == []
    qarnot.faults([])
    (end,) = ends(tasks, 1)
    assert end.attempt is second
    began = client.tasks.get(second.name).creation_date
    ended = client.tasks.get(first.name).state_transition_time
    assert live(client, first) == ["Cancelled"]
    assert began is not None
    assert ended is not None
    assert began >= ended


def test_the_reaper_keeps_the_pool_as_long_as_a_run_works_on_it(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks
) -> None:
    tasks.submit([one := submission("sleep 600")])
    until(lambda: live(client, one.attempt))
    pool = client.tasks.get(one.attempt.name).pool
    namespace = next(tag for tag in client.pools.get(str(pool)).tags if tag.startswith(NAMESPACE_TAG))
    for state, actions in (("running", ["keep"]), ("success", ["close"])):
        report = reap(
            client,
            namespace.removeprefix(NAMESPACE_TAG),
            lambda dag_id, run_id, state=state: state if (dag_id, run_id) == ("dag", "run") else None,  # type: ignore[misc]
            dry_run=True,
            now=lambda: datetime.now(UTC) + timedelta(minutes=30),
        )
        assert [entry.action for entry in report.entries] == actions
    tasks.abort([one.attempt.name])


def test_the_reaper_closes_an_idle_pool_and_the_next_task_opens_another(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks
) -> None:
    tasks.submit([first := submission()])
    ends(tasks, 1)
    pool = str(client.tasks.get(first.attempt.name).pool)
    namespace = label(client.pools.get(pool).labels, "namespace")
    assert client.pools.get(pool).labels[EXECUTOR_LABEL] == "airflow"
    # Other tests advance the clock of the server.
    now = datetime.fromtimestamp(qarnot.get_clock()["now"], UTC)
    for minutes, action in ((50, "keep"), (61, "close")):
        report = reap(
            client,
            namespace,
            lambda dag_id, run_id: None,
            now=lambda minutes=minutes: now + timedelta(minutes=minutes),  # type: ignore[misc]
        )
        (entry,) = report.entries
        assert (entry.uuid, entry.action, entry.done) == (pool, action, action == "close"), entry.reason
    tasks.submit([second := submission()])
    assert [end.outcome for end in ends(tasks, 1)] == [Outcome.SUCCESS]
    assert client.tasks.get(second.attempt.name).pool != pool
    until(lambda: client.pools.get(pool).state == "Closed")
    later = now + timedelta(days=9)
    report = reap(client, namespace, lambda dag_id, run_id: None, now=lambda: later, dry_run=True)
    assert {entry.uuid: entry.action for entry in report.entries}[pool] == "delete"


def test_an_attempt_that_is_aborted_before_it_is_sent_is_never_sent(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks
) -> None:
    qarnot.faults([{"method": "POST", "path": "/pools", "kind": "status", "status": 503}])
    never, other = submission(), submission()
    tasks.submit([never, other])
    until(lambda: any(one["path"].startswith("/pools") for one in qarnot.requests()))
    tasks.abort([never.attempt.name])
    qarnot.faults([])
    assert [end.attempt for end in ends(tasks, 1)] == [other.attempt]
    assert live(client, never.attempt) == []


def test_an_attempt_that_is_aborted_while_its_pool_is_made_is_never_sent(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks
) -> None:
    qarnot.faults([{"method": "POST", "path": "/pools$", "kind": "delay", "seconds": 0.5, "times": 1}])
    never, other = submission(), submission()
    tasks.submit([never, other])
    until(lambda: ("POST", "/pools") in [(one["method"], one["path"]) for one in qarnot.requests()])
    tasks.abort([never.attempt.name])
    assert [end.attempt for end in ends(tasks, 1)] == [other.attempt]
    assert live(client, never.attempt) == []


@pytest.mark.parametrize(
    "is_lost", [False, True], ids=["before the response", "after the loss of the response"]
)
def test_an_attempt_that_is_aborted_while_it_is_sent_is_ended(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks, is_lost: bool
) -> None:
    tasks.submit([submission()])
    ends(tasks, 1)
    creation = {"method": "POST", "path": "/tasks$"}
    search = {"method": "POST", "path": "/tasks/search", "kind": "status", "status": 503}
    late = [{**creation, "kind": "delay", "seconds": 1.0, "times": 1}]
    qarnot.faults([{**creation, "kind": "lost"}, search] if is_lost else late)
    tasks.submit([one := submission("sleep 600")])
    until(lambda: live(client, one.attempt))
    until(lambda: not is_lost or tasks._remotes[one.attempt.name].is_unclear)
    tasks.abort([one.attempt.name])
    qarnot.faults([])
    until(lambda: live(client, one.attempt) == ["Cancelled"])


def test_a_task_that_was_created_beside_a_refused_one_is_known_though_qarnot_is_away_then(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks
) -> None:
    tasks.submit([submission()])
    ends(tasks, 1)
    refused, good = submission(), submission("sleep 600")
    spec = TaskSpec(name="dag.task", command="true", resource_buckets=["no-such-bucket"])
    qarnot.faults([{"method": "GET", "path": "/pools/.*", "kind": "status", "status": 503}])
    tasks.submit([Submission(attempt=refused.attempt, spec=spec, pool=refused.pool), good])
    until(lambda: live(client, good.attempt))
    tasks.abort([good.attempt.name, refused.attempt.name])
    until(lambda: live(client, good.attempt) == ["Cancelled"])
    until(lambda: not tasks._remotes)


def test_an_end_that_is_never_seen_holds_the_next_attempt_for_minutes_only(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = attempt()
    tasks.submit([submission("sleep 600", of=first)])
    until(lambda: "FullyExecuting" in live(client, first))
    monkeypatch.setattr(tasks, "_observe", lambda *_: None)
    tasks._remotes[first.name].watch.on_update = None
    tasks.abort([first.name])
    until(lambda: live(client, first) == ["Cancelled"])
    following = attempt(instance_id=first.instance_id)
    tasks.submit([submission(of=following)])
    until(lambda: following.name in tasks._remotes)
    assert not live(client, following)
    monkeypatch.setattr(tracked, "MAX_HELD", 0.0)
    until(lambda: live(client, following))


def test_a_qarnot_task_that_a_late_request_has_created_is_the_one_of_its_attempt(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks
) -> None:
    """Its name is taken, although no request of this scheduler was lost."""
    one = submission()
    spec = TaskSpec(name="dag.task", shortname=one.attempt.name, command="true", tags=(one.attempt.tag,))
    created = client.tasks.create(spec)
    tasks.submit([one])
    assert [end.outcome for end in ends(tasks, 1)] == [Outcome.SUCCESS]
    assert [task.uuid for task in client.tasks.find_all(one.attempt.name)] == [created]


def test_an_attempt_that_is_adopted_by_its_own_scheduler_ends_once(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks
) -> None:
    """Airflow may take a scheduler that is slow for dead, while its request is on its way."""
    qarnot.faults(
        [{"method": "POST", "path": "/tasks$", "kind": "delay", "seconds": 0.5, "when": "before", "times": 1}]
    )
    one = submission()
    tasks.submit([one])
    until(lambda: posts(qarnot))
    tasks.watch({one.attempt: None})
    seen = ends(tasks, 1)
    tasks.submit([last := submission()])
    seen += ends(tasks, 1)
    assert [(end.attempt, end.outcome) for end in seen] == [
        (each.attempt, Outcome.SUCCESS) for each in (one, last)
    ]


def test_a_failure_beside_a_live_task_of_the_same_instance_follows_that_one(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks
) -> None:
    """An abort of a killed scheduler was never sent, and Airflow lets the older Qarnot task run the try."""
    older = attempt()
    newer = attempt(older.instance_id)
    before = RemoteTasks(ExecutorOptions(pools={"airflow": PoolOptions(slots=50)}))
    before.submit([submission("sleep 600", of=older)])
    until(lambda: live(client, older))
    before.stop(10)
    tasks.submit([submission("exit 1", of=newer)])
    until(lambda: live(client, newer) == ["Failure"])
    tasks.submit([later := submission("sleep 0.2")])
    assert [end.attempt for end in ends(tasks, 1)] == [later.attempt]
    client.tasks.abort(older.name)
    (end,) = ends(tasks, 1)
    assert (end.attempt, end.outcome) == (newer, Outcome.FAILURE)


def test_a_qarnot_task_that_is_deleted_has_ended(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks
) -> None:
    tasks.submit([one := submission("sleep 600")])
    until(lambda: live(client, one.attempt))
    client.tasks.delete(client.tasks.get(one.attempt.name).uuid)
    assert [(end.attempt, end.outcome) for end in ends(tasks, 1)] == [(one.attempt, Outcome.DELETED)]


def test_a_task_of_another_scheduler_is_never_aborted_for_an_attempt_of_this_one(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks
) -> None:
    """Another scheduler has queued the resumed task. The attempt before the deferral fails late."""
    before = attempt()
    resumed = attempt(before.instance_id)
    other = RemoteTasks(ExecutorOptions(pools={"airflow": PoolOptions(slots=50)}))
    other.submit([submission("sleep 600", of=resumed)])
    until(lambda: live(client, resumed))
    tasks.submit([submission("exit 1", of=before)])
    until(lambda: live(client, before) == ["Failure"])
    tasks.submit([later := submission("sleep 0.2")])
    assert [end.attempt for end in ends(tasks, 1)] == [later.attempt]
    tasks.abort([before.name])
    tasks.submit([last := submission()])
    assert [end.attempt for end in ends(tasks, 1)] == [last.attempt]
    assert live(client, resumed) == ["FullyExecuting"]
    other.abort([resumed.name])
    until(lambda: live(client, resumed) == ["Cancelled"])
    other.stop(10)


@pytest.mark.parametrize("path", ["/tasks", "/pools"])
@pytest.mark.parametrize(
    ("fault", "refused_for"),
    [({"kind": "status", "status": 403}, 60.0), ({"kind": "proxy", "status": 403}, 0.0)],
    ids=["for a moment", "by a page of a proxy"],
)
def test_stray_refusals_fail_no_task(
    qarnot: LocalQarnot,
    tasks: RemoteTasks,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    fault: dict[str, Any],
    refused_for: float,
) -> None:
    monkeypatch.setattr(retries, "REFUSED_FOR", refused_for)
    qarnot.faults([{"method": "POST", "path": f"^{path}$", "times": 3, **fault}])
    tasks.submit([submission(), submission()])
    assert [end.outcome for end in ends(tasks, 2)] == [Outcome.SUCCESS] * 2


def test_an_error_pauses_only_its_own_part_of_the_work(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks.submit([running := submission("sleep 600")])
    until(lambda: "FullyExecuting" in live(client, running.attempt))
    monkeypatch.setattr(retries, "FIRST_PAUSE", 3600.0)
    monkeypatch.setattr(retries, "MAX_PAUSE", 3600.0)
    qarnot.faults([{"path": "/tasks/.*/abort", "kind": "status", "status": 503}])
    tasks.abort([running.attempt.name])
    until(lambda: tasks._pauses)
    tasks.submit([one := submission()])
    assert [end.attempt for end in ends(tasks, 1)] == [one.attempt]
    qarnot.faults([])
    client.tasks.abort(running.attempt.name)


def test_the_pause_of_a_pool_ends_with_its_last_task(qarnot: LocalQarnot, tasks: RemoteTasks) -> None:
    qarnot.faults([{"method": "POST", "path": "/pools", "kind": "status", "status": 503}])
    tasks.submit([one := submission()])
    until(lambda: tasks._pool_pauses)
    tasks.abort([one.attempt.name])
    until(lambda: not tasks._pool_pauses)


def test_an_abort_that_qarnot_refuses_for_good_holds_up_no_next_attempt(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "REFUSED_FOR", 0.1)
    first = attempt()
    tasks.submit([submission("sleep 600", of=first)])
    until(lambda: "FullyExecuting" in live(client, first))
    qarnot.faults([{"path": "/tasks/.*/abort", "kind": "status", "status": 403}])
    tasks.abort([first.name])
    tasks.submit([submission(of=attempt(first.instance_id))])
    tasks.end(["no-task-of-this-name", client.tasks.get(first.name).uuid])
    assert [end.outcome for end in ends(tasks, 1)] == [Outcome.SUCCESS]
    until(lambda: not tasks._to_end)
    qarnot.faults([])
    client.tasks.abort(first.name)


def test_an_abort_while_a_failure_is_read_leaves_the_task_of_another_scheduler(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = attempt()
    resumed = attempt(before.instance_id)
    other = RemoteTasks(ExecutorOptions(pools={"airflow": PoolOptions(slots=50)}))
    other.submit([submission("sleep 600", of=resumed)])
    until(lambda: "FullyExecuting" in live(client, resumed))
    searching, search = threading.Event(), threading.Event()
    find_twin = remote.find_twin

    def slow(*arguments: Any) -> str | None:
        searching.set()
        assert search.wait(PATIENCE)
        return find_twin(*arguments)

    monkeypatch.setattr(remote, "find_twin", slow)
    tasks.submit([submission("exit 1", of=before)])
    assert searching.wait(PATIENCE)
    # The search of a failure delays no submission.
    tasks.submit([one := submission()])
    assert [end.attempt for end in ends(tasks, 1)] == [one.attempt]
    tasks.abort([before.name])
    search.set()
    until(lambda: before.name not in tasks._remotes)
    tasks.submit([last := submission()])
    assert [end.attempt for end in ends(tasks, 1)] == [last.attempt]
    assert live(client, resumed) == ["FullyExecuting"]
    other.abort([resumed.name])
    until(lambda: live(client, resumed) == ["Cancelled"])
    other.stop(10)


def test_a_task_in_a_state_that_this_release_does_not_know_may_be_the_one_that_runs() -> None:
    found = [Task.from_json({"uuid": state, "state": state}) for state in ("Failure", "Hibernating")]
    client: Any = SimpleNamespace(tasks=SimpleNamespace(search_all=lambda *_, **__: found))
    assert remote.find_twin(client, attempt(), []) == "Hibernating"


def test_a_failure_is_reported_though_qarnot_refuses_to_search_for_others(
    qarnot: LocalQarnot, tasks: RemoteTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> str | None:
        raise QarnotRefusedError(status=403)

    monkeypatch.setattr(retries, "REFUSED_FOR", 0.1)
    monkeypatch.setattr(remote, "find_twin", refused)
    tasks.submit([submission("exit 1")])
    assert [end.outcome for end in ends(tasks, 1)] == [Outcome.FAILURE]


def test_a_scheduler_that_is_silent_submits_nothing(
    qarnot: LocalQarnot, tasks: RemoteTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another scheduler may have adopted its tasks, or reset them."""
    rounds = []
    ready = tasks._ready
    monkeypatch.setattr(tasks, "_ready", lambda: rounds.append(1) or ready())  # type: ignore[func-returns-value]
    monkeypatch.setattr(remote, "SILENCE", -1.0)
    tasks.submit([submission()])
    until(lambda: len(rounds) > 3)
    assert posts(qarnot) == []
    monkeypatch.setattr(remote, "SILENCE", 30.0)
    assert [end.outcome for end in ends(tasks, 1)] == [Outcome.SUCCESS]


def test_nothing_is_polled_without_a_task(qarnot: LocalQarnot, tasks: RemoteTasks) -> None:
    tasks.submit([submission()])
    ends(tasks, 1)
    poller = tasks._watches._poller
    assert poller is not None
    until(lambda: poller.closed)
    tasks.submit([submission()])
    assert [end.outcome for end in ends(tasks, 1)] == [Outcome.SUCCESS]


def test_the_newest_closed_pool_is_kept_if_there_are_others(
    qarnot: LocalQarnot, client: QarnotClient
) -> None:
    """Another scheduler may count the next generation from it."""
    owner = uuid.uuid4().hex
    pools = [client.pools.create(PoolSpec(name=f"p{n}", tags=(OWNER_TAG + owner,))) for n in range(3)]
    for pool in pools:
        client.pools.close(pool)
    until(lambda: {client.pools.get(pool).state for pool in pools} == {"Closed"})
    assert delete_closed(client, owner) == 2
    assert client.pools.get(pools[2]).state == "Closed"
    assert delete_closed(client, owner) == 1


def test_closed_pools_of_the_executor_make_room_for_the_next(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks
) -> None:
    tasks.submit([first := submission()])
    ends(tasks, 1)
    closed = str(client.tasks.get(first.attempt.name).pool)
    client.pools.close(closed)
    until(lambda: client.pools.get(closed).state == "Closed")
    qarnot.set_account(maxPool=client.account.info().pool_count)
    tasks.submit([submission()])
    assert [end.outcome for end in ends(tasks, 1)] == [Outcome.SUCCESS]


def test_a_sweep_finds_what_no_scheduler_watches_and_its_abort_is_sent(
    qarnot: LocalQarnot, client: QarnotClient, tasks: RemoteTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = RemoteTasks(ExecutorOptions(pools={"airflow": PoolOptions(slots=50)}))
    dead.submit([orphan := submission("sleep 600")])
    until(lambda: "FullyExecuting" in live(client, orphan.attempt))
    dead.stop(10)
    tasks.submit([watched := submission("sleep 600")])
    until(lambda: "FullyExecuting" in live(client, watched.attempt))
    tasks.sweep()
    (found,) = until(lambda: [found] if (found := tasks.take_unwatched()) is not None else [])
    assert found == {}, "it may be on its way"
    assert tasks.take_unwatched() is None
    monkeypatch.setattr(remote, "LEFT_ON_AFTER", timedelta(hours=-1))
    tasks.sweep()
    found = until(tasks.take_unwatched)
    assert found == {client.tasks.get(orphan.attempt.name).uuid: orphan.attempt.instance_id}
    tasks.end(found)
    until(lambda: live(client, orphan.attempt) == ["Cancelled"])
    assert live(client, watched.attempt) == ["FullyExecuting"]
    tasks.abort([watched.attempt.name])


def test_without_an_explicit_namespace_nothing_is_submitted_or_swept(
    qarnot: LocalQarnot, tasks: RemoteTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "REFUSED_FOR", 0.1)
    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", qarnot.airflow_connection())
    tasks.submit([submission()])
    (end,) = ends(tasks, 1)
    assert end.outcome is Outcome.REFUSED
    assert "needs an explicit namespace" in end.reason
    assert posts(qarnot) == []
    tasks.sweep()
    taken = threading.Event()
    tasks._thread.call(taken.set)
    assert taken.wait(PATIENCE)
    until(lambda: not tasks._is_sweep_due)
    assert tasks.take_unwatched() is None


def test_without_its_connection_a_task_ends_with_the_reason(
    tasks: RemoteTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "REFUSED_FOR", 0.1)
    monkeypatch.delenv("AIRFLOW_CONN_QARNOT_DEFAULT")
    tasks.submit([submission()])
    (end,) = ends(tasks, 1)
    assert end.outcome is Outcome.REFUSED
    assert "conn_id names no connection, got 'qarnot_default'" in end.reason


def test_a_secrets_backend_that_is_away_for_long_fails_no_task(
    tasks: RemoteTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "REFUSED_FOR", 0.1)
    tasks.submit([submission()])
    ends(tasks, 1)
    monkeypatch.delenv("AIRFLOW_CONN_QARNOT_DEFAULT")
    tasks._connection.expire()
    tasks.submit([submission()])
    assert [end.outcome for end in ends(tasks, 1)] == [Outcome.SUCCESS]


def test_a_connection_that_is_mended_in_time_fails_no_task(
    qarnot: LocalQarnot, tasks: RemoteTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = os.environ["AIRFLOW_CONN_QARNOT_DEFAULT"]
    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", qarnot.airflow_connection())
    tasks.submit([submission()])
    until(lambda: any(remote.refused_since is not None for remote in list(tasks._remotes.values())))
    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", connection)
    assert [end.outcome for end in ends(tasks, 1)] == [Outcome.SUCCESS]


def credits_read(qarnot: LocalQarnot) -> int:
    return sum("credits" in one["path"] for one in qarnot.requests())


def test_a_pool_that_has_cost_its_maximum_of_the_day_gets_no_task_until_the_next(
    qarnot: LocalQarnot,
    client: QarnotClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    pools = {
        "airflow": PoolOptions(slots=2, max_cost_per_day=0.05),
        "other": PoolOptions(name="other", slots=2),
    }
    today = datetime.now(UTC)
    monkeypatch.setattr(daily_cost, "_now", lambda: today)
    tasks = RemoteTasks(ExecutorOptions(pools=pools))
    gated = f"until [ -e {tmp_path}/gate ]; do sleep 0.05; done"
    running, second = submission(gated), submission()
    tasks.submit([running])
    until(lambda: "FullyExecuting" in live(client, running.attempt))
    qarnot.advance_clock(400)  # 0.04 euros
    tasks.submit([second])
    assert [end.outcome for end in ends(tasks, 1)] == [Outcome.SUCCESS]
    assert credits_read(qarnot) == 0, (
        "the figure of the first submission, when there was no pool, is a minute old"
    )
    monkeypatch.setattr(daily_cost, "READ_EVERY", 0.0)
    tasks.submit([submission()])
    assert [end.outcome for end in ends(tasks, 1)] == [Outcome.SUCCESS]
    assert "of its max_cost_per_day" in caplog.text
    qarnot.advance_clock(200)
    refused, elsewhere = submission(), submission(pool="other")
    tasks.submit([refused, elsewhere])
    found = {end.attempt: end for end in ends(tasks, 2)}
    assert found[elsewhere.attempt].outcome is Outcome.SUCCESS
    assert found[refused.attempt].outcome is Outcome.REFUSED
    assert "reaches its max_cost_per_day of 0.0500 EUR" in found[refused.attempt].reason
    assert live(client, refused.attempt) == []
    assert "FullyExecuting" in live(client, running.attempt)

    monkeypatch.setattr(daily_cost, "_now", lambda: today + timedelta(days=3))
    tasks.submit([submission()])
    assert [end.outcome for end in ends(tasks, 1)] == [Outcome.SUCCESS], "the next day frees it"
    qarnot.advance_clock(600)
    restarted = RemoteTasks(ExecutorOptions(pools=pools))
    restarted.submit([submission()])
    (end,) = ends(restarted, 1)
    assert end.outcome is Outcome.REFUSED, "another scheduler knows what it had cost when the day began"
    restarted.stop(10)

    qarnot.faults([{"path": "/credits/.*", "kind": "status", "status": 403}])
    monkeypatch.setattr(daily_cost, "_now", lambda: today + timedelta(days=4))
    tasks.submit([submission()])
    assert [end.outcome for end in ends(tasks, 1)] == [Outcome.SUCCESS]
    assert "Qarnot does not report the cost of pool 'airflow'" in caplog.text
    (tmp_path / "gate").touch()
    (end,) = ends(tasks, 1)
    assert end == End(attempt=running.attempt, outcome=Outcome.SUCCESS)
    tasks.stop(10)


def test_all_pools_of_a_name_count_for_its_day(qarnot: LocalQarnot, client: QarnotClient) -> None:
    """Those for tasks of other slots, and those that were closed on that day, but none of another name or day."""
    namespace = f"costs-{uuid.uuid4().hex[:8]}"
    made = {
        name: client.pools.create(
            PoolSpec(
                name=name,
                instance_count=1,
                tags=[pool_tag(namespace, "gpu" if name != "other" else name)],
            )
        )
        for name in ("open", "closed", "other")
    }
    until(lambda: all(client.pools.credits(uuid) for uuid in made.values()))
    qarnot.advance_clock(1000)
    client.pools.close(made["closed"])
    until(lambda: client.pools.get(made["closed"]).state == "Closed")
    qarnot.advance_clock(2000)
    costs = daily_cost.DailyCosts()
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    spent = costs._spent(client, namespace, "gpu", midnight)
    both = sum(client.pools.credits(made[name]) for name in ("open", "closed"))
    assert spent == pytest.approx(both, rel=0.1)
    later = midnight + timedelta(days=9)
    assert daily_cost._pools_of_day(client, namespace, "gpu", later).keys() == {made["open"]}
    assert costs._spent(client, namespace, "gpu", later) == 0.0
    for uuid_ in made.values():
        client.pools.delete(uuid_)


DAY = datetime(2026, 12, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("spent", "level", "words"),
    [
        (None, LimitLevel.WARNING, "Qarnot does not report the cost of pool 'gpu'"),
        (0.0, LimitLevel.FINE, ""),
        (15.9, LimitLevel.FINE, ""),
        (
            16.0,
            LimitLevel.WARNING,
            "has cost 16.00 EUR since 2026-12-01 00:00 UTC, 80% of its max_cost_per_day",
        ),
        (20.0, LimitLevel.OVER, "20.00 EUR. No task is submitted to it before 2026-12-02 00:00 UTC."),
    ],
)
def test_the_cost_of_a_day_is_compared_with_its_maximum(
    spent: float | None, level: LimitLevel, words: str
) -> None:
    check = daily_cost.check_day("gpu", 20.0, spent, DAY)
    assert check.level is level
    assert words in check.message
    assert bool(words) == bool(check.message)
