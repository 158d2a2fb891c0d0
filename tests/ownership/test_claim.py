"""The next step of a claim, given the objects that exist and the results of earlier attempts: a pure decision."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.errors import QarnotNameTakenError, QarnotUnavailableError
from airflow_qarnot_pool.api.models import Pool
from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec
from airflow_qarnot_pool.api.tasks import TaskResource
from airflow_qarnot_pool.exceptions import QarnotKilledError
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.ownership import claim as claims
from airflow_qarnot_pool.ownership.claim import MAX_ATTEMPTS, ClaimRequest, claim
from airflow_qarnot_pool.ownership.decisions import (
    ClaimState,
    Create,
    Fail,
    FindByName,
    RemoteSnapshot,
    Usability,
    Use,
    is_adopted,
    next_step,
)
from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
from airflow_qarnot_pool.ownership.shared_pool import acquire_shared_pool
from airflow_qarnot_pool.ownership.termination import end, later_than
from tests.harness import FakeTI, context_of, life_of

SECOND_TRY = life_of(run_started="2026-01-01", max_tries=2, try_number=2, retries=2)
SHARED = dataclasses.replace(SECOND_TRY, shared="nightly")
#: A task that opens a pool, and its next try.
FIRST = life_of(task_id="open", try_number=1, max_tries=2, retries=2)
RETRY = dataclasses.replace(FIRST, try_number=2)
LOST = QarnotUnavailableError("no response")


def snapshot(uuid: str, **fields: Any) -> RemoteSnapshot:
    values = {
        "usability": Usability.LIVE,
        "lineage": SECOND_TRY.lineage,
        "generation": 1,
        "fingerprint": "spec",
        "retries": 2,
        "created": "2026-01-01T00:00:00+00:00",
        "run_started": "2026-01-01",
        "try_number": 1,
    }
    return RemoteSnapshot(**{**values, "uuid": uuid, **fields})


LIVE = snapshot("live")
DEAD = snapshot("dead", usability=Usability.DEAD)
ENDED_NOW = snapshot("now", usability=Usability.DEAD, try_number=2, generation=2)
STALE = snapshot("stale", lineage="another life")
NAMED = snapshot("named", usability=Usability.DEAD, shortname=SECOND_TRY.shortname(2))

#: Objects that exist, what the claim knows, and the next step.
CASES: dict[str, tuple[list[RemoteSnapshot], ClaimState, Use | Create | FindByName]] = {
    "nothing exists": ([], ClaimState(), Create(generation=1)),
    "a live object": ([LIVE], ClaimState(), Use(snapshot=LIVE)),
    "a live object beside one of another life": (
        [LIVE, STALE],
        ClaimState(),
        Use(snapshot=LIVE, end=("stale",)),
    ),
    "only one of another life": ([STALE], ClaimState(), Create(generation=1, end=("stale",))),
    "a failure of an earlier try": ([DEAD], ClaimState(), Create(generation=2)),
    "a failure that this try created without a response": (
        [DEAD, ENDED_NOW],
        ClaimState(),
        Use(snapshot=ENDED_NOW),
    ),
    "a failure that this try knew before": (
        [DEAD, ENDED_NOW],
        ClaimState(known=frozenset({"now"})),
        Create(generation=3),
    ),
    "a failure of this try from another spec": (
        [dataclasses.replace(ENDED_NOW, fingerprint="other")],
        ClaimState(),
        Create(generation=3),
    ),
    "the server accepts no request yet": (
        [],
        ClaimState(lost_response=LOST, retry_after=5.0),
        Create(generation=1, delay=5.0),
    ),
    "the object of a lost response, whatever the server accepts": (
        [LIVE],
        ClaimState(lost_response=LOST, retry_after=500.0),
        Use(snapshot=LIVE),
    ),
    "a taken name that no object has": (
        [],
        ClaimState(may_be_named=True),
        FindByName(name=SECOND_TRY.shortname(1)),
    ),
    "a taken name that was looked up in vain": (
        [],
        ClaimState(may_be_named=True, checked_name=SECOND_TRY.shortname(1)),
        Create(generation=1),
    ),
    "a taken name that was looked up before another generation": (
        [DEAD],
        ClaimState(may_be_named=True, checked_name=SECOND_TRY.shortname(1)),
        FindByName(name=SECOND_TRY.shortname(2)),
    ),
    "a taken name of a live object that was found by it": (
        [LIVE],
        ClaimState(may_be_named=True, checked_name=SECOND_TRY.shortname(1)),
        Use(snapshot=LIVE),
    ),
    "a taken name that a listed object has": (
        [NAMED],
        ClaimState(may_be_named=True),
        Create(generation=2),
    ),
}


@contextmanager
def served(**options: Any) -> Iterator[tuple[LocalQarnot, QarnotClient]]:
    """A local Qarnot with *options*, and its client."""
    with (
        LocalQarnot(boot_seconds=0, **options) as qarnot,
        QarnotClient(qarnot.url, qarnot.token) as client,
    ):
        yield qarnot, client


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adopt pools without a pause."""
    monkeypatch.setattr(claims, "ENDED_WITHIN", 0.0)


@pytest.mark.parametrize(("snapshots", "state", "step"), CASES.values(), ids=CASES)
def test_next_step(
    snapshots: list[RemoteSnapshot], state: ClaimState, step: Use | Create | FindByName
) -> None:
    assert next_step(SECOND_TRY, snapshots, "spec", state, max_delay=60.0) == step


def test_a_wait_that_is_too_long_for_a_worker_fails_and_still_ends_doubles() -> None:
    state = ClaimState(lost_response=LOST, retry_after=61.0)
    assert next_step(SECOND_TRY, [STALE], "spec", state, max_delay=60.0) == Fail(error=LOST, end=("stale",))


@pytest.mark.parametrize("later", [{"try_number": 3}, {"taken_by": 3}, {"run_started": "2026-01-02"}])
def test_an_object_of_a_later_try_ends_nothing(later: dict[str, Any]) -> None:
    step = next_step(SECOND_TRY, [STALE, snapshot("x", **later)], "spec", ClaimState(), max_delay=60.0)
    assert isinstance(step, Fail)
    assert isinstance(step.error, QarnotKilledError)
    assert step.end == ()


def test_a_shared_pool_belongs_to_no_try() -> None:
    live = [snapshot("second", created="2"), snapshot("first", created="1", try_number=3)]
    step = next_step(SHARED, live, "spec", ClaimState(), max_delay=60.0)
    assert step == Use(snapshot=live[1], end=("second",))
    assert next_step(SHARED, [ENDED_NOW], "spec", ClaimState(), max_delay=60.0) == Create(generation=3)


@pytest.mark.parametrize(
    ("labels", "shortname", "generation"),
    [
        ({"airflow.generation": "3"}, "open-1a2b-3", 3),
        ({}, "open-1a2b-3", 3),
        ({"airflow.generation": "2"}, "open-1a2b-3", 3),
        ({"airflow.generation": "3"}, "a-name", 3),
        ({}, "a-name", 1),
    ],
    ids=["both", "labels were dropped", "labels of its source", "another name", "neither"],
)
def test_the_generation_is_that_of_the_name_or_the_label(
    labels: dict[str, str], shortname: str, generation: int
) -> None:
    pool = Pool.from_json({"uuid": "u", "state": "FullyExecuting", "labels": labels, "shortname": shortname})
    assert RemoteSnapshot.of(pool).generation == generation


def test_only_live_objects_of_earlier_tries_are_adopted() -> None:
    assert is_adopted(SECOND_TRY, LIVE)
    for other in (DEAD, snapshot("own", try_number=2), snapshot("marked", taken_by=2)):
        assert not is_adopted(SECOND_TRY, other)
    assert not is_adopted(SHARED, LIVE)


@pytest.mark.parametrize("hidden", range(MAX_ATTEMPTS))
def test_an_object_that_no_search_lists_is_found_by_its_name_before_any_attempt(
    monkeypatch: pytest.MonkeyPatch, hidden: int
) -> None:
    """The name shows the object only after *hidden* lookups."""
    lookups = itertools.count()
    find = TaskResource.find
    monkeypatch.setattr(
        TaskResource, "find", lambda self, name: None if next(lookups) < hidden else find(self, name)
    )
    with served(shortnames="enforce") as (qarnot, client):
        spec = TaskSpec(name="work", pool=client.pools.create(PoolSpec(name="pool")), command="true")
        request = ClaimRequest(
            resource=client.tasks, spec=spec, identity=life_of(task_id="work"), pause=lambda seconds: None
        )
        qarnot.lag_searches(3600)
        created = claim(request)
        if hidden < MAX_ATTEMPTS - 1:
            assert claim(request).uuid == created.uuid
        else:
            with pytest.raises(QarnotNameTakenError):
                claim(request)


@pytest.mark.parametrize("shortnames", ["enforce", "free"])
def test_a_retry_finds_the_object_of_the_try_before_though_no_search_lists_it_yet(shortnames: str) -> None:
    """The worker was killed right after its request, and the next try starts before the search has caught up."""
    with served(shortnames=shortnames) as (qarnot, client):
        spec = PoolSpec(name="pool")
        qarnot.lag_searches(3600)
        created = claim(ClaimRequest(resource=client.pools, spec=spec, identity=FIRST))
        adopted = claim(ClaimRequest(resource=client.pools, spec=spec, identity=RETRY))
        assert adopted.uuid == created.uuid


def test_a_retry_waits_for_the_search_if_paths_take_no_shortnames() -> None:
    """The name is taken, and nothing shows by what: not the name in a path, and the search only later."""
    with served() as (qarnot, client):
        qarnot.set_readings(shortname_in_path="no")
        pauses: list[float] = []

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 3:
                qarnot.lag_searches(0)

        request = ClaimRequest(resource=client.pools, spec=PoolSpec(name="pool"), identity=FIRST, pause=pause)
        qarnot.lag_searches(3600)
        created = claim(request)
        assert claim(dataclasses.replace(request, identity=RETRY)).uuid == created.uuid
        assert pauses[:3] == sorted(pauses[:3]), "each is longer than the one before"
        assert pauses[0] > 0


def test_a_stranger_with_the_name_is_found_though_paths_take_no_shortnames() -> None:
    with served() as (qarnot, client):
        qarnot.set_readings(shortname_in_path="no")
        life = life_of(task_id="open")
        stranger = client.pools.create(PoolSpec(name="theirs", shortname=life.shortname(1)))
        with pytest.raises(QarnotNameTakenError, match=stranger):
            claim(ClaimRequest(resource=client.pools, spec=PoolSpec(name="pool"), identity=life))


@pytest.mark.parametrize("kind", ["pool", "task"])
def test_an_adopted_object_keeps_its_constants_on_a_server_that_drops_those_not_sent(kind: str) -> None:
    with served() as (qarnot, client):
        qarnot.set_readings(put_absent_keys="reset")
        constants = {"PLAIN": "1", "QARNOT_SECRET__TOKEN": "hush"}
        pool = PoolSpec(name="pool", constants=constants)
        task = TaskSpec(name="work", pool=client.pools.create(pool), command="sleep 60", constants=constants)
        resource, spec = (client.pools, pool) if kind == "pool" else (client.tasks, task)
        created = claim(ClaimRequest(resource=resource, spec=spec, identity=FIRST))
        before = resource.get(created.uuid).constants
        adopted = claim(ClaimRequest(resource=resource, spec=spec, identity=RETRY))
        assert adopted.uuid == created.uuid
        assert resource.get(adopted.uuid).constants == before
        assert before["PLAIN"] == "1"


@pytest.mark.parametrize("shortnames", ["enforce", "free"])
def test_a_pool_that_a_process_of_an_earlier_try_closes_after_its_adoption_is_replaced(
    shortnames: str,
) -> None:
    """That process looked for a later try just before the pool was adopted, and its request comes after that."""
    with served(shortnames=shortnames) as (_, client):
        request = ClaimRequest(resource=client.pools, spec=PoolSpec(name="pool"), identity=FIRST)
        closed = claim(request)
        second = dataclasses.replace(
            request,
            identity=RETRY,
            pause=lambda seconds: client.pools.end(closed.uuid),
        )
        assert claim(second).uuid != closed.uuid


@pytest.mark.parametrize(
    "fault", [{"kind": "status", "status": 503}, {"kind": "status", "status": 404}], ids=["503", "404"]
)
def test_a_pool_that_a_later_try_adopts_between_two_requests_to_close_it_stays_open(
    fault: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with served() as (qarnot, client):
        request = ClaimRequest(
            resource=client.pools, spec=PoolSpec(name="pool"), identity=FIRST, pause=lambda seconds: None
        )
        pool = claim(request).uuid
        read = client.pools.get

        def adopted_meanwhile(resource: Any, ref: str) -> Pool:
            monkeypatch.undo()
            claim(dataclasses.replace(request, identity=RETRY))
            return read(ref)

        qarnot.faults([{"method": "POST", "path": "/close$", "times": 1, **fault}])
        monkeypatch.setattr(type(client.pools), "get", adopted_meanwhile)
        end(client.pools, pool, later_than(FIRST))
        assert client.pools.get(pool).state not in ("Closing", "Closed")


def test_an_adopted_object_keeps_the_constants_that_it_was_created_with() -> None:
    """An array whose other items failed, or another OpenLineage run, gives the retry other constants."""
    with served() as (_, client):
        spec = PoolSpec(name="pool", constants={"ITEMS": "1-9", "QARNOT_SECRET__TOKEN": "hush"})
        request = ClaimRequest(resource=client.pools, spec=spec, identity=FIRST, fingerprint="same")
        created = claim(request)
        other = spec.with_values(constants={"ITEMS": "5", "MORE": "1", "QARNOT_SECRET__TOKEN": "hush"})
        assert claim(dataclasses.replace(request, identity=RETRY, spec=other)).uuid == created.uuid
        adopted = client.pools.get(created.uuid)
        assert claims.TRY_TAG + "2" in adopted.tags
        assert adopted.constants["ITEMS"] == "1-9"
        assert "MORE" not in adopted.constants


@pytest.mark.parametrize(
    ("own", "given", "sent"),
    [
        ({"A": "1"}, {"A": "2", "B": "3"}, {"A": "1"}),
        ({"QARNOT_SECRET__A": "[SECRET]"}, {"QARNOT_SECRET__A": "hush"}, {"QARNOT_SECRET__A": "hush"}),
        ({"QARNOT_SECRET__A": "[SECRET]", "QARNOT_SECRET__B": ""}, {}, {}),
        ({"DOCKER_REGISTRY_PASSWORD": "own"}, {}, {"DOCKER_REGISTRY_PASSWORD": "own"}),
    ],
    ids=["own", "secret", "secret without a value", "secret that can be read"],
)
def test_only_secrets_come_from_the_spec(
    own: dict[str, str], given: dict[str, str], sent: dict[str, str]
) -> None:
    assert claims._with_secrets(own, given) == sent


@pytest.mark.parametrize("shortnames", ["enforce", "free"])
@pytest.mark.parametrize("deed", ["end", "delete"])
def test_an_object_that_has_ended_is_not_adopted_though_searches_still_show_it_as_live(
    shortnames: str, deed: str
) -> None:
    """The try before has ended its pool, and the next one starts before the search has caught up."""
    with served(shortnames=shortnames) as (qarnot, client):
        request = ClaimRequest(
            resource=client.pools, spec=PoolSpec(name="pool"), identity=FIRST, pause=lambda seconds: None
        )
        ended = claim(request)
        qarnot.lag_searches(3600)
        getattr(client.pools, deed)(ended.uuid)
        created = claim(dataclasses.replace(request, identity=RETRY))
        assert created.uuid != ended.uuid
        assert created.decision is claims.Decision.FRESH_SUBMIT


def test_a_shared_pool_that_has_ended_is_replaced_though_searches_still_show_it_as_live() -> None:
    with served() as (qarnot, client):
        request = ClaimRequest(resource=client.pools, spec=PoolSpec(name="pool"), identity=SHARED)
        closed = acquire_shared_pool(client, request)
        qarnot.lag_searches(3600)
        client.pools.end(closed.uuid)
        assert acquire_shared_pool(client, request).uuid != closed.uuid


def test_stray_404s_do_not_replace_a_shared_pool_that_is_open() -> None:
    with served(shortnames="free") as (qarnot, client):
        request = ClaimRequest(
            resource=client.pools, spec=PoolSpec(name="pool"), identity=SHARED, pause=lambda seconds: None
        )
        opened = acquire_shared_pool(client, request)
        stray = {"kind": "proxy", "status": 404}
        qarnot.faults(
            [
                {**stray, "method": "POST", "path": "/jobs$", "times": 1},
                {**stray, "method": "GET", "path": "/pools/[^/]+$", "times": 2},
            ]
        )
        assert acquire_shared_pool(client, request).uuid == opened.uuid


@pytest.mark.parametrize("shortnames", ["enforce", "free"])
def test_a_first_try_that_was_suspended_before_its_request_finds_the_object_of_a_later_try(
    shortnames: str,
) -> None:
    with served(shortnames=shortnames) as (_, client):
        ti = FakeTI(max_tries=2, start_date=datetime.now(UTC) - timedelta(minutes=6))
        context = context_of(SimpleNamespace(retries=2), ti)
        suspended = TaskInstanceIdentity.of(context, "test")
        ti.try_number, ti.start_date = 2, datetime.now(UTC)
        later = TaskInstanceIdentity.of(context, "test")
        spec = PoolSpec(name="pool")
        claim(ClaimRequest(resource=client.pools, spec=spec, identity=later))
        with pytest.raises(QarnotKilledError, match="later try"):
            claim(ClaimRequest(resource=client.pools, spec=spec, identity=suspended))
        assert len(client.pools.list()) == 1
        assert "begun" not in suspended.to_kwargs()


def test_a_later_try_that_was_suspended_between_its_lookup_and_its_request_looks_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with served(shortnames="free") as (qarnot, client):
        third = dataclasses.replace(RETRY, try_number=3)
        spec = PoolSpec(name="pool")
        find = type(client.pools).find
        looked: list[str] = []

        def suspended(resource: Any, name: str) -> Any:
            found = find(resource, name)
            looked.append(name)
            if len(looked) == 1:
                claim(
                    ClaimRequest(
                        resource=QarnotClient(qarnot.url, qarnot.token).pools, spec=spec, identity=third
                    )
                )
                monkeypatch.setattr(claims, "OVERTAKEN_AFTER", timedelta(0))
            return found

        monkeypatch.setattr(type(client.pools), "find", suspended)
        with pytest.raises(QarnotKilledError, match="later try"):
            claim(ClaimRequest(resource=client.pools, spec=spec, identity=RETRY))
        assert len(client.pools.list()) == 1
