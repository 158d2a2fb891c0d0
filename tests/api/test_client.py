"""The client against the local Qarnot: what each call does there, and what is left after a bad connection."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

import airflow_qarnot_pool
from airflow_qarnot_pool.api import filters
from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.errors import (
    QarnotBucketNotFoundError,
    QarnotCredentialsError,
    QarnotCreditsError,
    QarnotInvalidSpecError,
    QarnotNameTakenError,
    QarnotNotFoundError,
    QarnotQuotaError,
    QarnotRefusedError,
    QarnotUnavailableError,
)
from airflow_qarnot_pool.api.resource import REQUEST_LABEL
from airflow_qarnot_pool.api.specs import (
    Elastic,
    FixedPolicy,
    HardwareConstraint,
    ManagedTasksQueuePolicy,
    PoolSpec,
    Scaling,
    TaskSpec,
)
from airflow_qarnot_pool.api.states import POOL_READY, Phase, PoolState, TaskState
from airflow_qarnot_pool.local import LocalQarnot
from tests.readings import answering

NAMES = (f"n-{number}" for number in itertools.count())


@pytest.fixture(scope="module", params=["enforce", "free"])
def server(request) -> Iterator[LocalQarnot]:
    """With unique shortnames enforced by the server and without: the client must do in both."""
    with LocalQarnot(boot_seconds=0.1, close_seconds=0.1, shortnames=request.param) as one:
        one.enforces = request.param == "enforce"  # type: ignore[attr-defined]
        yield one


@pytest.fixture
def local(server: LocalQarnot) -> Iterator[LocalQarnot]:
    server.faults([])
    server.clear_requests()
    yield server
    server.faults([])


@pytest.fixture
def client(local: LocalQarnot) -> Iterator[QarnotClient]:
    with QarnotClient(local.url, local.token, timeout=20) as one:
        one.transport._wait = lambda attempt: 0.0
        yield one


def wait_for(look, *, seconds: float = 60):
    """The first true answer of ``look``."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return found


def log(local: LocalQarnot) -> list[str]:
    return [f"{entry['method']} {entry['path']}" for entry in local.requests()]


# ---- pools ----


def test_a_pool_from_creation_to_deletion(client):
    name = next(NAMES)
    uuid = client.pools.create(
        PoolSpec(
            name="p", shortname=name, instance_count=2, tags=["t1", name], labels={"k": "v"}, slots_per_node=2
        )
    )
    pool = client.pools.get(name)
    assert pool.uuid == client.pools.get(uuid).uuid == uuid
    assert (pool.name, pool.shortname, pool.instance_count, pool.slots_per_node) == ("p", name, 2, 2)
    assert set(pool.tags) == {"t1", name}
    assert pool.labels["k"] == "v"
    assert pool.phase in (Phase.TRANSIENT, Phase.LIVE)
    ready = wait_for(lambda: (p := client.pools.get(uuid)).state in POOL_READY and p)
    assert ready.ready_slots == 2
    assert [p.uuid for p in client.pools.list([name])] == [uuid]
    assert [p.uuid for p in client.pools.list_summaries([name])] == [uuid]
    assert client.pools.list(["no-such-tag"]) == []
    assert client.pools.jobs(uuid) == []
    client.pools.close(uuid)
    assert client.pools.get(uuid).state in (PoolState.CLOSING, PoolState.CLOSED)
    closed = wait_for(lambda: (p := client.pools.get(uuid)).state == PoolState.CLOSED and p)
    assert closed.phase is Phase.TERMINAL
    client.pools.delete(uuid)
    wait_for(lambda: client.pools.find(uuid) is None)
    with pytest.raises(QarnotNotFoundError, match=uuid):
        client.pools.delete(uuid)


def test_update_changes_what_is_given_and_nothing_else(client):
    uuid = client.pools.create(
        PoolSpec(name="p", elastic=Elastic(max_total_slots=2), tags=["a"], constants={"A": "1"})
    )
    client.pools.update(uuid, tags=["b"])
    pool = client.pools.get(uuid)
    assert (pool.tags, dict(pool.constants)) == (("b",), {"A": "1"})
    client.pools.update(uuid, constants={"B": "2"}, elastic=Elastic(max_total_slots=3))
    pool = client.pools.get(uuid)
    assert (pool.tags, dict(pool.constants)) == (("b",), {"B": "2"})
    assert pool.elastic is not None
    assert (pool.elastic.is_elastic, pool.elastic.max_total_slots) == (True, 3)
    client.pools.sync_resources(uuid)
    with pytest.raises(QarnotInvalidSpecError, match="Keep scaling"):
        client.pools.update(uuid, elastic=Elastic(max_total_slots=3), scaling={"policies": []})
    client.pools.delete(uuid)


def test_scaling(client):
    scaling = Scaling(
        policies=[
            ManagedTasksQueuePolicy(max_total_slots=3, name="m", min_idle_time=timedelta(seconds=5)),
            FixedPolicy(slots_count=0, name="f"),
        ]
    )
    uuid = client.pools.create(PoolSpec(name="p", scaling=scaling))
    assert client.pools.scaling(uuid).to_json() == scaling.to_json()
    other = Scaling.of(FixedPolicy(slots_count=0, name="off"))
    client.pools.set_scaling(uuid, other)
    assert client.pools.get(uuid).scaling.to_json() == other.to_json()
    client.pools.check_scaling(scaling)
    with pytest.raises(QarnotRefusedError, match=r"policies\[0\]"):
        client.pools.check_scaling({"policies": [{"type": "Fixed", "name": "bad", "slotsCount": -1}]})
    plain = client.pools.create(PoolSpec(name="p"))
    assert client.pools.scaling(plain) is None
    for one in (uuid, plain):
        client.pools.delete(one)


def test_cloning_a_pool(client):
    uuid = client.pools.create(PoolSpec(name="p", shortname=next(NAMES), instance_count=1, tags=["a"]))
    twin = client.pools.get(client.pools.clone(uuid, instance_count=2, tags=["b"]))
    assert twin.uuid != uuid
    assert (twin.instance_count, twin.tags, twin.name) == (2, ("b",), "p")
    for one in (uuid, twin.uuid):
        client.pools.delete(one)


@pytest.mark.parametrize("name", [None, "given"])
def test_copies_have_the_labels_of_their_source(client, local, name):
    def named():
        return {"shortname": next(NAMES)} if name else {}

    pool = client.pools.create(PoolSpec(name="p", instance_count=1, labels={"team": "x"}))
    task = client.tasks.create(TaskSpec(name="t", command="true", labels={"team": "y"}))
    copies = [client.pools.get(client.pools.clone(pool, **named()))]
    copies += [client.tasks.get(client.tasks.clone(task, **named()))]
    for found, team in zip(copies, "xy", strict=True):
        assert {key: found.labels[key] for key in found.labels if key != REQUEST_LABEL} == {"team": team}
        assert (REQUEST_LABEL in found.labels) == bool(name)
    local.clear_requests()
    own = client.pools.get(client.pools.clone(pool, labels={"mine": "1"}, **named()))
    assert own.labels["mine"] == "1"
    assert "team" not in own.labels
    # Nobody looks at the source for what is given.
    assert [one["method"] for one in local.requests() if one["path"] == f"/pools/{pool}"] == []
    for one in (pool, own.uuid, copies[0].uuid):
        client.pools.delete(one)
    for one in (task, copies[1].uuid):
        client.tasks.delete(one)


def test_search_and_pages(client):
    tag = next(NAMES)
    uuids = [
        client.pools.create(PoolSpec(name=f"p{i}", tags=[tag], elastic=Elastic(max_total_slots=1)))
        for i in range(5)
    ]
    tagged = filters.equal("Tags", tag)
    assert {pool.uuid for pool in client.pools.search(tagged)} == set(uuids)
    assert len(client.pools.search(tagged, limit=2)) == 2
    (found,) = client.pools.search(filters.in_("Uuid", uuids[:1]), fields=["State", "StateTransitionTime"])
    assert (found.uuid, found.name) == (uuids[0], None)
    assert found.phase in (Phase.TRANSIENT, Phase.LIVE)
    assert found.state_transition_time is not None
    assert client.pools.search(filters.and_(tagged, filters.equal("Name", "p3")))[0].uuid == uuids[3]
    page = client.pools.page(tagged, limit=2, order_by="name")
    assert [pool.name for pool in page] == ["p0", "p1"]
    assert (page.total, page.is_truncated) == (5, True)
    following = client.pools.page(tagged, limit=2, order_by="name", token=page.next_token)
    assert [pool.name for pool in following] == ["p2", "p3"]
    for summaries in (False, True):
        names = [
            pool.name
            for pool in client.pools.iterate(
                tagged, limit=2, order_by="name", descending=True, summaries=summaries
            )
        ]
        assert names == ["p4", "p3", "p2", "p1", "p0"]
    assert list(client.pools.iterate(filters.equal("Tags", "none"))) == []
    for one in uuids:
        client.pools.delete(one)


@pytest.fixture
def five(client, local) -> Iterator[tuple[filters.Filter, list[str]]]:
    """A filter, and the five pools that it matches."""
    tag = next(NAMES)
    uuids = [
        client.pools.create(PoolSpec(name=f"p{i}", tags=[tag], elastic=Elastic(max_total_slots=1)))
        for i in range(5)
    ]
    local.clear_requests()
    yield filters.equal("Tags", tag), uuids
    local.cap_searches(None)
    for one in uuids:
        client.pools.delete(one)


@pytest.mark.parametrize("refuses", [False, True], ids=["cuts", "refuses"])
@pytest.mark.parametrize("cap", [1, 2, 4, 5, 6])
def test_search_all_finds_everything_under_any_cap(client, local, five, cap, refuses):
    tagged, uuids = five
    local.cap_searches(cap, refuses=refuses)
    assert [one.uuid for one in client.pools.search_all(tagged, fields=["State"])] == uuids


def test_search_all_costs_two_requests_and_only_one_if_nothing_is_found(client, local, five):
    tagged, uuids = five
    (found, *others) = client.pools.search_all(tagged, fields=["State"])
    assert (len(others), found.uuid, found.name) == (4, uuids[0], None)
    assert [one["path"] for one in local.requests()] == ["/pools/search", "/pools/summaries/paginate"]
    local.clear_requests()
    assert client.pools.search_all(filters.equal("Tags", "none")) == []
    assert [one["path"] for one in local.requests()] == ["/pools/search"]


def test_a_response_that_is_smaller_than_a_complete_one_needs_no_second_request(local, five):
    tagged, uuids = five
    with QarnotClient(local.url, local.token) as client:
        search = partial(client.pools.search_all, fields=["State"], trust_limit=True)
        one = filters.equal("Uuid", uuids[0])
        assert len(search(one)) == 1
        assert len(search(tagged)) == 5
        local.clear_requests()
        assert len(search(one)) == 1
        assert [request["path"] for request in local.requests()] == ["/pools/search"]
        # As many as before may be a cut response.
        assert len(search(tagged)) == 5
        assert len(local.requests()) == 3


def test_a_response_that_was_cut_says_nothing_about_the_limit(local, five):
    tagged, uuids = five
    local.cap_searches(3)
    with QarnotClient(local.url, local.token) as client:
        search = partial(client.pools.search_all, fields=["State"], trust_limit=True)
        assert [one.uuid for one in search(tagged)] == uuids
        assert [one.uuid for one in search(tagged)] == uuids


def test_search_all_does_not_take_a_refused_filter_for_a_cap(client, five):
    with pytest.raises(QarnotRefusedError, match="Nonsense"):
        client.pools.search_all(filters.equal("Nonsense", "x"))


def test_a_lost_bulk_creation_is_found_again_under_a_cap(client, local, five):
    local.cap_searches(2)
    names = [next(NAMES) for _ in range(5)]
    local.faults([{"kind": "lost", "method": "POST", "path": "^/tasks$", "times": 1}])
    made = client.tasks.create_many(
        [TaskSpec(name=name, shortname=name, pool=five[1][0], command="true") for name in names]
    )
    assert [item.error for item in made] == [None] * 5
    asked = [one for one in local.requests() if (one["method"], one["path"]) == ("POST", "/tasks")]
    assert len(asked) == 1


def test_all_of_one_name_are_found_under_a_cap(client, local, five):
    if local.enforces:
        pytest.skip("a name belongs to one")
    name = next(NAMES)
    for _ in range(3):
        client.pools.create_once(PoolSpec(name="p", shortname=name, elastic=Elastic(max_total_slots=1)))
    local.cap_searches(1)
    found = client.pools.find_all(name)
    local.cap_searches(None)
    for one in found:
        client.pools.delete(one.uuid)
    assert len(found) == 3


def test_only_the_client_reads_a_search_that_may_be_cut():
    """All others ask for everything. These two ask for objects by name, and look for those that are missing."""
    package = Path(airflow_qarnot_pool.__file__).parent
    callers = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"(pools|tasks|resource|_resource|quick)\.search\(", path.read_text())
    }
    assert callers == {"triggers/poller.py", "executors/lookups.py"}


# ---- tasks ----


def test_a_task_on_a_pool(client):
    pool = client.pools.create(PoolSpec(name="p", instance_count=2, image="alpine"))
    uuid = client.tasks.create(
        TaskSpec(
            name="t",
            pool=pool,
            instance_count=3,
            command='sh -c "echo out $INSTANCE_ID; echo err >&2"',
            tags=["x"],
        )
    )
    assert [task.uuid for task in client.pools.tasks(pool)] == [uuid]
    done = wait_for(lambda: (t := client.tasks.get(uuid)).phase is Phase.TERMINAL and t)
    assert done.state == TaskState.SUCCESS
    assert done.pool == pool
    assert done.instances == 3
    assert done.succeeded_instances == {0, 1, 2}
    assert done.failed_instances == frozenset()
    assert sorted(client.tasks.stdout(uuid).split("\n")) == ["", "0> out 0", "1> out 1", "2> out 2"]
    assert client.tasks.stdout(uuid, 1) == "out 1\n"
    assert client.tasks.stderr(uuid, 2) == "err\n"
    assert client.tasks.stderr(uuid, fresh=True).count("err") == 3
    assert client.tasks.stderr(uuid, fresh=True) == ""
    with pytest.raises(QarnotNotFoundError):
        client.tasks.stdout(uuid, 99)
    assert client.tasks.credits(uuid) >= 0
    assert client.pools.credits(pool) >= 0
    client.tasks.carbon_facts(uuid, comparison="x")
    assert client.pools.carbon_facts(pool).raw is not None
    client.tasks.delete(uuid)
    client.pools.delete(pool)


def test_a_task_that_fails_and_its_second_life(client):
    pool = client.pools.create(PoolSpec(name="p", instance_count=2))
    spec = TaskSpec(name="t", pool=pool, ranges="3,5", command='sh -c "test $INSTANCE_ID = 3"')
    uuid = client.tasks.create(spec)
    failed = wait_for(lambda: (t := client.tasks.get(uuid)).phase is Phase.TERMINAL and t)
    assert failed.state == TaskState.FAILURE
    assert failed.succeeded_instances == {3}
    assert failed.failed_instances == {5}
    assert failed.error_text
    again = client.tasks.retry(uuid, constants={"DOCKER_CMD": "true"})
    assert again != uuid
    done = wait_for(lambda: (t := client.tasks.get(again)).phase is Phase.TERMINAL and t)
    assert done.state == TaskState.SUCCESS
    assert done.succeeded_instances == {5}
    client.pools.delete(pool)


def test_aborting(client):
    uuid = client.tasks.create(TaskSpec(name="t", command="sleep 1000"))
    client.tasks.update(uuid, tags=["seen"], constants={"A": "1"})
    assert client.tasks.get(uuid).tags == ("seen",)
    client.tasks.abort(uuid)
    wait_for(lambda: client.tasks.get(uuid).state == TaskState.CANCELLED)
    client.tasks.delete(uuid)
    with pytest.raises(QarnotNotFoundError):
        client.tasks.abort(uuid)


def test_many_at_once_keep_their_order(client):
    specs = [TaskSpec(name=f"t{i}", shortname=next(NAMES), command="true") for i in range(3)]
    specs.insert(1, TaskSpec(name="bad", pool="no-such-pool", command="true"))
    items = client.tasks.create_many(specs)
    assert [item.ok for item in items] == [True, False, True, True]
    assert [item.index for item in items] == [0, 1, 2, 3]
    assert isinstance(items[1].error, (QarnotRefusedError, QarnotNotFoundError))
    assert [client.tasks.get(item.uuid).name for item in items if item.uuid] == ["t0", "t1", "t2"]
    assert client.tasks.create_many([]) == []
    (refused,) = client.tasks.create_many(specs[1:2])
    assert not refused.ok


# ---- account ----


def test_the_account(client, local):
    assert client.account.settings()["storage"] == local.storage_url
    assert client.storage_url() == local.storage_url
    client.account.check()
    assert client.account.versions()
    info = client.account.info()
    assert info.email == local.email
    assert info.max_pool is not None
    assert client.account.user_quotas().flex is not None
    assert "docker-batch" in client.account.profiles()
    assert any(one.name == "DOCKER_CMD" for one in client.account.profile("docker-batch").constants)
    assert isinstance(client.account.hardware_constraints()[0], HardwareConstraint)
    assert isinstance(client.account.cpu_models("a"), list)
    assert client.account.credits() > 0
    assert client.secrets.keys("") == []
    assert client.jobs.list() == []
    for absent in (client.account.profile, client.jobs.get, client.pools.get, client.tasks.get):
        with pytest.raises(QarnotNotFoundError, match="'nothing-here'"):
            absent("nothing-here")


def test_a_task_of_a_job_starts_after_those_it_depends_on(client, local, tmp_path):
    pool = client.pools.create(PoolSpec(name="p"))
    job = client.jobs.create("stages", pool=pool, use_dependencies=True)
    assert client.jobs.get(job).use_dependencies
    first = client.tasks.create(TaskSpec(name="first", job=job, command=f"touch {tmp_path}/made"))
    second = client.tasks.create(
        TaskSpec(name="second", job=job, command=f"test -e {tmp_path}/made", dependencies=[first])
    )
    wait_for(lambda: client.tasks.get(second).state == "Success")
    alone = client.jobs.create("alone", pool=pool)
    with pytest.raises(QarnotRefusedError, match="dependencies"):
        client.tasks.create(TaskSpec(name="refused", job=alone, command="true", dependencies=[first]))
    client.pools.close(pool)


def test_every_refusal_has_its_own_error(client, local):
    with (
        QarnotClient(local.url, "wrong-token") as stranger,
        pytest.raises(QarnotCredentialsError, match="Airflow connection"),
    ):
        stranger.account.check()
    with pytest.raises(QarnotBucketNotFoundError, match="no-such-bucket"):
        client.pools.create(PoolSpec(name="p", resource_buckets=["no-such-bucket"]))
    with pytest.raises(QarnotRefusedError):
        client.pools.create(PoolSpec(name="p", profile="no-such-profile"))
    for ref in ("", " ", ".", ".."):
        with pytest.raises(QarnotInvalidSpecError):
            client.pools.delete(ref)
    with pytest.raises(QarnotNotFoundError, match=r"'\.\./tasks'"):
        client.pools.get("../tasks")


def test_quota_and_credits(client, local):
    info = client.account.info()
    try:
        local.call("PUT", "/_local/account", {"maxPool": info.pool_count})
        with pytest.raises(QarnotQuotaError) as caught:
            client.pools.create(PoolSpec(name="p"))
        assert caught.value.quota == "pools"
        local.call("PUT", "/_local/account", {"maxPool": info.max_pool, "credits": 0})
        with pytest.raises(QarnotCreditsError):
            client.tasks.create(TaskSpec(name="t"))
    finally:
        local.call("PUT", "/_local/account", {"maxPool": info.max_pool, "credits": 100})


# ---- a bad connection ----


def test_a_lost_answer_to_a_create_is_found_again(client, local):
    name = next(NAMES)
    local.faults([{"method": "POST", "path": "^/pools$", "times": 1, "kind": "lost"}])
    uuid = client.pools.create(PoolSpec(name="p", shortname=name))
    assert [pool.uuid for pool in client.pools.find_all(name)] == [uuid]
    assert log(local)[:2] == ["POST /pools", f"GET /pools/{name}"]
    assert log(local).count("POST /pools") == 1


@pytest.mark.parametrize("kind", ["pool", "task"])
def test_a_lost_answer_to_a_create_is_found_again_though_paths_take_no_shortnames(client, local, kind):
    name = next(NAMES)
    local.faults([{"method": "POST", "path": f"^/{kind}s$", "times": 1, "kind": "lost"}])
    with answering(local, shortname_in_path="no"):
        if kind == "pool":
            uuid = client.pools.create(PoolSpec(name="p", shortname=name))
        else:
            uuid = client.tasks.create(TaskSpec(name="t", shortname=name, command="true"))
    resource = client.pools if kind == "pool" else client.tasks
    assert [one.uuid for one in resource.find_all(name)] == [uuid]
    assert log(local).count(f"POST /{kind}s") == 1


def test_a_create_that_failed_first_is_sent_again(client, local):
    name = next(NAMES)
    rule = {"method": "POST", "path": "^/tasks$", "times": 2, "kind": "status", "status": 503}
    local.faults([rule])
    uuid = client.tasks.create(TaskSpec(name="t", shortname=name, command="true"))
    assert [task.uuid for task in client.tasks.find_all(name)] == [uuid]
    failed = ["POST /tasks", f"GET /tasks/{name}", "POST /tasks/search"]
    assert log(local)[:7] == [*failed, *failed, "POST /tasks"]


def test_a_lost_answer_without_a_shortname_is_an_ambiguous_error_and_sent_once(client, local):
    local.faults([{"method": "POST", "path": "^/pools$", "times": 1, "kind": "lost"}])
    with pytest.raises(QarnotUnavailableError) as caught:
        client.pools.create(PoolSpec(name="p", tags=["lost-once"]))
    assert caught.value.ambiguous
    assert log(local) == ["POST /pools"]
    assert len(client.pools.list(["lost-once"])) == 1


def test_anothers_object_is_never_taken_for_ours(client, local):
    name = next(NAMES)
    theirs = client.pools.create(PoolSpec(name="theirs", shortname=name))
    rule = {"method": "POST", "path": "^/pools$", "times": 1, "kind": "status", "status": 503}
    if local.enforces:
        with pytest.raises(QarnotNameTakenError, match=name):
            client.pools.create(PoolSpec(name="ours", shortname=name))
        local.faults([rule])
        with pytest.raises(QarnotNameTakenError, match=name):
            client.pools.create(PoolSpec(name="ours", shortname=name))
        assert [pool.uuid for pool in client.pools.find_all(name)] == [theirs]
    else:
        local.faults([rule])
        ours = client.pools.create(PoolSpec(name="ours", shortname=name))
        assert ours != theirs
        local.faults([{**rule, "kind": "lost"}])
        second = client.pools.create(PoolSpec(name="ours", shortname=name))
        assert len({theirs, ours, second}) == 3
        assert len(client.pools.find_all(name)) == 3


def test_a_label_of_ours_does_not_replace_the_users(client):
    uuid = client.pools.create(PoolSpec(name="p", shortname=next(NAMES), labels={"k": "v"}))
    labels = client.pools.get(uuid).labels
    assert labels["k"] == "v"
    assert set(labels) == {"k", REQUEST_LABEL}
    assert REQUEST_LABEL not in client.pools.get(client.pools.create(PoolSpec(name="p"))).labels


@pytest.mark.parametrize("kind", ["lost", "reset", "garbage", "status"])
def test_a_bulk_creation_survives_a_bad_answer(client, local, kind):
    specs = [TaskSpec(name=f"t{i}", shortname=next(NAMES), command="true") for i in range(4)]
    local.faults([{"method": "POST", "path": "^/tasks$", "times": 1, "kind": kind, "status": 502}])
    items = client.tasks.create_many(specs)
    assert all(item.ok for item in items)
    for spec, item in zip(specs, items, strict=True):
        assert [task.uuid for task in client.tasks.find_all(spec.shortname or "")] == [item.uuid]


def test_a_bulk_creation_without_shortnames_is_ambiguous(client, local):
    local.faults([{"method": "POST", "path": "^/tasks$", "times": 1, "kind": "lost"}])
    with pytest.raises(QarnotUnavailableError) as caught:
        client.tasks.create_many([TaskSpec(name="t", command="true")])
    assert caught.value.ambiguous
    assert log(local) == ["POST /tasks"]


@pytest.mark.parametrize("kind", ["lost", "reset", "garbage", "status"])
def test_close_abort_and_delete_survive_a_bad_answer(client, local, kind):
    pool = client.pools.create(PoolSpec(name="p"))
    task = client.tasks.create(TaskSpec(name="t", pool=pool, command="sleep 1000"))
    for method, path, call in (
        ("POST", "/abort$", lambda: client.tasks.abort(task)),
        ("POST", "/close$", lambda: client.pools.close(pool)),
        ("DELETE", "^/tasks/", lambda: client.tasks.delete(task)),
        ("DELETE", "^/pools/", lambda: client.pools.delete(pool)),
    ):
        local.faults([{"method": method, "path": path, "times": 1, "kind": kind, "status": 500}])
        call()
    wait_for(lambda: client.pools.find(pool) is None and client.tasks.find(task) is None)


def test_a_server_that_is_slower_than_the_deadline(local):
    local.faults([{"method": "GET", "path": "^/info$", "times": 9, "kind": "delay", "seconds": 30}])
    with QarnotClient(local.url, local.token, deadline=0.5) as hurried:
        with pytest.raises(QarnotUnavailableError, match="no complete response within"):
            hurried.account.info()
        local.faults([])
        assert hurried.account.info().email == local.email
        assert hurried.limited(deadline=20).account.info().email == local.email


def test_a_storm_leaves_exactly_one_of_each(client, local):
    tag = next(NAMES)
    kinds = [
        {"kind": "status", "status": 503},
        {"kind": "status", "status": 429, "retry_after": 0},
        {"kind": "reset"},
        {"kind": "lost"},
        {"kind": "garbage"},
    ]
    client.transport.retries = 30
    specs = [TaskSpec(name="t", shortname=next(NAMES), tags=[tag], command="true") for _ in range(20)]
    uuids = []
    for number, spec in enumerate(specs):
        first, second = kinds[number % 5], kinds[(number // 5) % 5]
        local.faults([{"method": "POST", "path": "^/tasks$", "times": 1, **one} for one in (first, second)])
        uuids.append(client.tasks.create(spec))
    local.faults([])
    assert sorted(task.uuid for task in client.tasks.list([tag])) == sorted(uuids)
    assert len(set(uuids)) == len(specs)


def test_an_unreachable_host_is_an_error_of_its_own():
    with (
        QarnotClient("http://127.0.0.1:1", "token", retries=0) as nobody,
        pytest.raises(QarnotUnavailableError, match="connection refused"),
    ):
        nobody.pools.list()
