"""Which finished objects may be deleted, what a record holds, and how many tries a place is worth."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest

from airflow_qarnot_pool.api.models import Account, Job, Pool, Task
from airflow_qarnot_pool.ownership import records
from airflow_qarnot_pool.ownership.decisions import Usability
from airflow_qarnot_pool.ownership.identity import (
    MAX_NAME_BYTES,
    RECORDABLE_LABEL,
    SPECS_LABEL,
    UNAWAITED_LABEL,
    TaskInstanceIdentity,
)
from airflow_qarnot_pool.ownership.quota import (
    UNKNOWN_STATE,
    AirflowStates,
    Disposal,
    disposal_of_pool,
    disposal_of_task,
    free_places,
    is_full,
)
from airflow_qarnot_pool.ownership.records import Outcomes
from airflow_qarnot_pool.triggers.quota import try_probability
from tests.harness import life_of

ME = life_of(task_id="me")
FINAL = ["success", "failed", "skipped", "upstream_failed", "removed"]
NOT_FINAL = ["running", "deferred", "queued", "scheduled", "up_for_retry", "restarting", None, UNKNOWN_STATE]


def task(
    identity: TaskInstanceIdentity, state: str = "Success", generation: int = 1, spec: str = "f", **more: Any
) -> Task:
    labels = {**identity.labels(generation, spec), **more.pop("labels", {})}
    return Task.from_json(
        {
            "uuid": f"{identity.task_id}-{identity.index}-{generation}",
            "name": "n",
            "state": state,
            "labels": labels,
        }
        | {"tags": list(identity.tags()), "creationDate": "2026-01-01T00:00:00Z", **more}
    )


def item(
    identity: TaskInstanceIdentity, number: int, state: str = "Success", specs: str = "all", **more: Any
) -> Task:
    return task(identity.for_item(number), state, labels={SPECS_LABEL: specs}, **more)


def never() -> bool:
    raise AssertionError("the DAG run is not asked for")


OTHER = life_of(task_id="other")


@pytest.mark.parametrize("state", FINAL)
@pytest.mark.parametrize("ended", ["Success", "Failure", "Cancelled"])
def test_a_task_that_airflow_has_recorded_may_be_deleted(state: str, ended: str) -> None:
    assert disposal_of_task(task(OTHER, ended), state, never, ME) is Disposal.FORGET


@pytest.mark.parametrize("state", NOT_FINAL)
def test_an_unrecorded_task_may_be_deleted_only_if_a_record_can_hold_it(state: str | None) -> None:
    recordable = {RECORDABLE_LABEL: "true"}
    assert disposal_of_task(task(OTHER), state, never, ME) is Disposal.KEEP
    assert disposal_of_task(task(OTHER, labels=recordable), state, never, ME) is Disposal.RECORD
    assert disposal_of_task(item(OTHER, 3), state, never, ME) is Disposal.RECORD
    for ended in ("Failure", "Cancelled"):
        assert disposal_of_task(task(OTHER, ended, labels=recordable), state, never, ME) is Disposal.KEEP
        assert disposal_of_task(item(OTHER, 3, ended), state, never, ME) is Disposal.KEEP


def test_a_task_without_a_waiter_may_be_deleted_only_after_its_run() -> None:
    watched = task(OTHER, labels={UNAWAITED_LABEL: "true", RECORDABLE_LABEL: "true"})
    assert disposal_of_task(watched, "success", lambda: False, ME) is Disposal.KEEP
    assert disposal_of_task(watched, "success", lambda: True, ME) is Disposal.FORGET
    assert disposal_of_task(watched, UNKNOWN_STATE, lambda: True, ME) is Disposal.KEEP


@pytest.mark.parametrize("state", ["running", "queued", UNKNOWN_STATE])
@pytest.mark.parametrize("ended", ["Closed", "Failure"])
def test_a_task_instance_that_needs_a_pool_may_delete_its_earlier_ones(state: str, ended: str) -> None:
    def pool_of(identity: TaskInstanceIdentity) -> Pool:
        own = {"labels": dict(identity.labels(1, "f")), "tags": list(identity.tags())}
        return Pool.from_json({"uuid": "p", "name": "n", "state": ended, **own})

    assert disposal_of_pool(pool_of(ME), state, ME) is Disposal.FORGET
    assert disposal_of_pool(pool_of(replace(ME, max_tries=7)), state, ME) is Disposal.FORGET
    if state != UNKNOWN_STATE:
        assert disposal_of_pool(pool_of(OTHER), state, ME) is Disposal.KEEP


def test_the_own_dead_are_recorded_and_an_earlier_life_is_forgotten() -> None:
    assert disposal_of_task(task(ME, "Failure"), "running", never, ME) is Disposal.RECORD
    assert disposal_of_task(item(ME, 1, "Failure"), "running", never, ME) is Disposal.RECORD
    # Its output is still to be logged by the try that finds it.
    assert disposal_of_task(task(ME), "running", never, ME) is Disposal.KEEP
    assert disposal_of_task(task(replace(ME, max_tries=7)), "running", never, ME) is Disposal.FORGET


@pytest.mark.parametrize("ended", ["Success", "Failure", "Cancelled"])
def test_an_object_from_before_the_run_was_cleared_may_be_deleted(ended: str) -> None:
    cleared = replace(ME, run_started="2026-01-02T00:00:00+00:00")
    before = replace(OTHER, run_started="2026-01-01T00:00:00+00:00")
    assert disposal_of_task(task(before, ended), None, never, cleared) is Disposal.FORGET
    # What is of this start may still be read, and so may what a later start has: this process may be the late one.
    assert disposal_of_task(task(cleared, ended), None, never, replace(cleared, task_id="x")) is Disposal.KEEP
    assert disposal_of_task(task(cleared, ended), None, never, before) is Disposal.KEEP
    other_run = replace(before, run_id="another")
    assert disposal_of_task(task(other_run, ended), None, never, cleared) is Disposal.KEEP
    unawaited = task(before, ended, labels={UNAWAITED_LABEL: "true"})
    assert disposal_of_task(unawaited, None, lambda: False, cleared) is Disposal.KEEP
    failed = {"labels": dict(before.labels(1, "f")), "tags": list(before.tags())}
    pool = Pool.from_json({"uuid": "p", "name": "n", "state": "Failure", **failed})
    assert disposal_of_pool(pool, UNKNOWN_STATE, cleared) is Disposal.FORGET
    assert disposal_of_pool(pool, UNKNOWN_STATE, replace(before, task_id="x")) is Disposal.KEEP


def test_a_finished_warm_up_may_go() -> None:
    assert (
        disposal_of_task(task(OTHER.for_role("warm-up"), "Cancelled"), "running", never, ME)
        is Disposal.FORGET
    )


def pool(state: str = "Closed", **labels: str) -> Pool:
    found = {**OTHER.labels(1, "f"), **{f"airflow.{name}": value for name, value in labels.items()}}
    return Pool.from_json({"uuid": "p", "state": state, "labels": found, "tags": list(OTHER.tags())})


@pytest.mark.parametrize(
    ("found", "state", "way"),
    [
        (pool(), "success", Disposal.FORGET),
        (pool(), UNKNOWN_STATE, Disposal.FORGET),
        (pool(), "up_for_retry", Disposal.FORGET),
        (pool(), "deferred", Disposal.KEEP),
        (pool(), "running", Disposal.KEEP),
        (pool("Failure"), "deferred", Disposal.KEEP),
        (pool("Failure"), UNKNOWN_STATE, Disposal.KEEP),
        (pool("Failure"), "failed", Disposal.FORGET),
        (pool(max_run_cost="1.0"), "success", Disposal.RECORD),
        (pool(shared="name"), "running", Disposal.RECORD),
    ],
)
def test_a_closed_pool_may_go_once_its_setup_has_seen_the_end(
    found: Pool, state: str | None, way: Disposal
) -> None:
    assert disposal_of_pool(found, state) is way


# --- Airflow's answers


def test_airflow_is_asked_once_for_each_task_and_not_again_after_a_failure() -> None:
    asked: list[Any] = []

    def ask(question: Any) -> Any:
        asked.append(question)
        raise RuntimeError("no Airflow here")

    airflow = AirflowStates(ask)
    airflow.read([task(life_of(task_id=name, run_id=run)) for name in "ab" for run in ("r", "s")])
    assert len(asked) == 1
    assert airflow.of(task(life_of(task_id="a", run_id="r"))) == UNKNOWN_STATE
    assert airflow.is_run_finished(task(life_of())) is False


def test_states_are_read_by_run_task_and_map_index(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"r": {"a": None, "a_1": "success"}, "s": {"a": "failed"}}
    monkeypatch.setattr("airflow_qarnot_pool.ownership.quota._task_states", lambda dag, name, runs: told)
    airflow = AirflowStates()
    made = [
        task(life_of(task_id="a", run_id=run, map_index=index))
        for run, index in (("r", -1), ("r", 1), ("r", 2), ("s", -1), ("gone", -1))
    ]
    airflow.read(made)
    assert [airflow.of(one) for one in made] == [None, "success", UNKNOWN_STATE, "failed", UNKNOWN_STATE]


# --- what a record holds


def jobs(outcomes: Outcomes) -> list[Job]:
    return [Job.from_json({"uuid": str(n), "name": name}) for n, name in enumerate(outcomes.names())]


def test_a_record_of_items_is_read_back_as_what_was_recorded() -> None:
    fingerprints = ["f"] * 6
    specs = records.specs_digest(fingerprints)
    outcomes = Outcomes()
    for number, state in enumerate(["Success", "Failure", "Success", "Cancelled"]):
        assert outcomes.add(item(ME, number, state, specs, poolUuid="p"))
    (job,) = jobs(outcomes)
    found = {one.index: one for one in Outcomes.of_jobs([job]).snapshots(ME.lineage, fingerprints)}
    assert {number: one.usability for number, one in found.items()} == {
        0: Usability.SUCCEEDED,
        1: Usability.DEAD,
        2: Usability.SUCCEEDED,
        3: Usability.DEAD,
    }
    assert (found[1].try_number, found[3].cancelled, found[3].pool) == (1, True, "p")
    assert {one.fingerprint for one in found.values()} == {"f"}


def test_a_record_of_other_specs_counts_for_the_generation_only() -> None:
    outcomes = Outcomes()
    outcomes.add(item(ME, 0, specs=records.specs_digest(["f", "f"]), generation=4))
    (snapshot,) = outcomes.snapshots(ME.lineage, ["f", "changed"])
    assert (snapshot.fingerprint, snapshot.generation) == ("?", 4)
    assert outcomes.snapshots("another lineage", ["f", "f"]) == []


@pytest.mark.parametrize("ids", ["short", "Ж" * 250, "中" * 250])
def test_every_job_of_a_record_fits_whatever_the_ids_and_however_many_items(ids: str) -> None:
    identity = life_of(dag_id=ids, run_id=ids, task_id=ids)
    outcomes, chosen = Outcomes(), random.Random(7).sample(range(20_000), 5000)
    for number in chosen:
        outcomes.add(item(identity, number, random.Random(number).choice(["Success", "Failure"])))
    names = outcomes.names()
    assert max(map(len, names)) <= MAX_NAME_BYTES
    back = Outcomes.of_jobs(jobs(outcomes))
    assert back.items == outcomes.items


def test_a_single_task_that_does_not_fit_is_not_recorded() -> None:
    outcomes = Outcomes()
    assert not outcomes.add(task(ME, name="n" * 2000))
    assert outcomes.add(task(ME))
    assert list(outcomes.singles) == ["me-None-1"]


def test_a_record_that_cannot_be_read_says_nothing() -> None:
    names = [None, "", "nonsense", "[]", "{}", '[{"task": 1}]', '[{"alike": [1], "items": "x"}]', "[7]"]
    names.append("[" * 2000)
    found = Outcomes.of_jobs(Job.from_json({"uuid": "j", "name": name}) for name in names)
    assert (found.items, found.singles, found.of) == ({}, {}, None)


def test_a_record_names_no_constant() -> None:
    outcomes = Outcomes()
    outcomes.add(task(ME, constants=[{"key": "SECRET", "value": "hush"}]))
    assert "hush" not in json.dumps(outcomes.names())


# --- how much room there is


def account(**fields: int) -> Account:
    return Account.from_json(fields)


def test_places_are_what_every_quota_leaves() -> None:
    full = account(maxTask=5, taskCount=5, maxRunningTask=9, runningTaskCount=1)
    assert (free_places(full, "task"), is_full(full, "task")) == (0, True)
    busy = account(maxTask=5, taskCount=1, maxRunningTask=1, runningTaskCount=1)
    assert (free_places(busy, "task"), is_full(busy, "task")) == (0, False)
    assert free_places(account(maxPool=5, poolCount=2), "pool") == 3
    assert (free_places(account(), "task"), is_full(account(), "task")) == (None, True)


@pytest.mark.parametrize(
    ("free", "waiters", "more", "expected"),
    [
        (0, 10, False, 0.0),
        (1, 1, False, 1.0),
        (2, 10, False, 0.2),
        (50, 10, False, 1.0),
        (None, 10, True, 1.0),
        (None, 10, False, 0.0),
        (0, 10, True, 0.0),
    ],
)
def test_about_as_many_try_as_there_are_places(
    free: int | None, waiters: int, more: bool, expected: float
) -> None:
    assert try_probability(free, waiters, more=more) == pytest.approx(expected)
