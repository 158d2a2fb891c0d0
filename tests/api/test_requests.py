"""Each call is one request: method, path and body as the reference has them, against a server that says yes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from airflow_qarnot_pool.api import filters
from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.errors import (
    QarnotCredentialsError,
    QarnotNotFoundError,
    QarnotProtocolError,
    QarnotUnavailableError,
)
from airflow_qarnot_pool.api.resource import MAX_FOUND
from airflow_qarnot_pool.api.specs import FixedPolicy, PoolSpec, Scaling, TaskSpec
from tests.api.stub import Reply, Stub, reset

OBJECT = {
    "uuid": "u",
    "name": "n",
    "credits": 1.5,
    "storage": "s",
    "data": [],
    "id": "snap",
    "keys": ["a", "b/"],
}
JOB = {"name": "j", "tags": [], "autoDeleteOnCompletion": False}
SCALING = Scaling.of(FixedPolicy(slots_count=1, name="f"))
PAGE = {"filter": {"operator": "Equal", "field": "Tags", "value": "x"}, "maximumResults": 2}
X = filters.equal("Tags", "x")


@pytest.fixture
def client(stub: Stub) -> Iterator[QarnotClient]:
    with QarnotClient(stub.url + "/", "token") as one:
        yield one


def shared(kind: str, name: str) -> list[tuple[str, Any, str, Any, Any]]:
    """What pools and tasks have in common: id, call, request line, body, answer."""
    base = f"/{kind}"

    def of(call):
        return lambda client: call(getattr(client, kind))

    return [
        (f"{name}.get", of(lambda r: r.get("a b")), f"GET {base}/a%20b", None, OBJECT),
        (f"{name}.find", of(lambda r: r.find("x")), f"GET {base}/x", None, OBJECT),
        (f"{name}.list", of(lambda r: r.list()), f"GET {base}", None, []),
        (
            f"{name}.list tags",
            of(lambda r: r.list(["a,b", "c d"])),
            f"GET {base}?tag=a%2Cb&tag=c+d",
            None,
            [],
        ),
        (
            f"{name}.list_summaries",
            of(lambda r: r.list_summaries(["t"])),
            f"GET {base}/summaries?tag=t",
            None,
            [],
        ),
        (f"{name}.search all", of(lambda r: r.search()), f"POST {base}/search", {}, []),
        (
            f"{name}.search",
            of(lambda r: r.search(X, fields=["State"], limit=3)),
            f"POST {base}/search",
            {"select": {"fields": ["Uuid", "State"]}, "filter": X, "maximumResults": 3},
            [],
        ),
        (
            f"{name}.find_all",
            of(lambda r: r.find_all("n")),
            f"POST {base}/search",
            {
                "filter": {"operator": "Equal", "field": "Shortname", "value": "n"},
                "maximumResults": MAX_FOUND,
            },
            [],
        ),
        (f"{name}.page", of(lambda r: r.page()), f"POST {base}/paginate", {}, OBJECT),
        (
            f"{name}.page full",
            of(lambda r: r.page(X, token="T", limit=2, order_by="name", descending=True, summaries=True)),
            f"POST {base}/summaries/paginate",
            {**PAGE, "token": "T", "orderBy": "name", "orderType": "DESC"},
            OBJECT,
        ),
        (f"{name}.sync", of(lambda r: r.sync_resources("u")), f"PATCH {base}/u", None, b""),
        (f"{name}.delete", of(lambda r: r.delete("u")), f"DELETE {base}/u", None, b""),
        (
            f"{name}.clone",
            of(lambda r: r.clone("u", name="m")),
            f"POST {base}/u/clone",
            {"name": "m"},
            OBJECT,
        ),
        (f"{name}.stdout", of(lambda r: r.stdout("u")), f"GET {base}/u/stdout", None, b"text"),
        (f"{name}.stdout one", of(lambda r: r.stdout("u", 3)), f"GET {base}/u/stdout/3", None, b"text"),
        (
            f"{name}.stderr new",
            of(lambda r: r.stderr("u", fresh=True)),
            f"POST {base}/u/stderr",
            None,
            b"text",
        ),
        (
            f"{name}.stderr one new",
            of(lambda r: r.stderr("u", 0, fresh=True)),
            f"POST {base}/u/stderr/0",
            None,
            b"text",
        ),
        (f"{name}.credits", of(lambda r: r.credits("u")), f"GET /credits/v1{base}/u/credits", None, OBJECT),
        (
            f"{name}.carbon",
            of(lambda r: r.carbon_facts("u", "dc")),
            f"GET /carbon/v1{base}/u/carbon-facts?comparisonDatacenter=dc",
            None,
            {},
        ),
        (
            f"{name}.update",
            of(lambda r: r.update("u", tags=["a"])),
            f"PUT {base}/u",
            {"tags": ["a"]},
            b"",
        ),
        (
            f"{name}.update nothing left",
            of(lambda r: r.update("u", tags=[], constants={})),
            f"PUT {base}/u",
            {"tags": [], "constants": []},
            b"",
        ),
    ]


SNAPSHOT = {"whitelist": "w", "blacklist": "b", "bucket": "k", "bucketPrefix": "p"}
CALLS = [
    *shared("pools", "pools"),
    *shared("tasks", "tasks"),
    (
        "pools.create",
        lambda c: c.pools.create(PoolSpec(name="p")),
        "POST /pools",
        {"name": "p", "profile": "docker-batch", "instanceCount": 1},
        OBJECT,
    ),
    ("pools.create, uuid alone", lambda c: c.pools.create(PoolSpec(name="p")), "POST /pools", ..., "u"),
    ("pools.close", lambda c: c.pools.close("u"), "POST /pools/u/close", None, b""),
    ("pools.scaling", lambda c: c.pools.scaling("u"), "GET /pools/u/scaling", None, b""),
    (
        "pools.set_scaling",
        lambda c: c.pools.set_scaling("u", SCALING),
        "PUT /pools/u/scaling",
        SCALING.to_json(),
        b"",
    ),
    (
        "pools.check_scaling",
        lambda c: c.pools.check_scaling(SCALING),
        "POST /sanity-checks/pools/scaling",
        SCALING.to_json(),
        b"",
    ),
    ("pools.tasks", lambda c: c.pools.tasks("u"), "GET /pools/u/tasks", None, [OBJECT]),
    ("pools.jobs", lambda c: c.pools.jobs("u"), "GET /pools/u/jobs", None, [OBJECT]),
    (
        "tasks.create",
        lambda c: c.tasks.create(TaskSpec(name="t", pool="p")),
        "POST /tasks",
        {"name": "t", "poolUuid": "p", "instanceCount": 1},
        OBJECT,
    ),
    ("tasks.abort", lambda c: c.tasks.abort("u"), "POST /tasks/u/abort", None, b""),
    ("tasks.retry", lambda c: c.tasks.retry("u"), "POST /tasks/u/retry", {}, OBJECT),
    (
        "tasks.resume",
        lambda c: c.tasks.resume("u", tags=["a"]),
        "POST /tasks/u/resume",
        {"tags": ["a"]},
        OBJECT,
    ),
    ("tasks.recover", lambda c: c.tasks.recover("u"), "POST /tasks/u/recover", {}, OBJECT),
    (
        "tasks.snapshot",
        lambda c: c.tasks.snapshot("u", whitelist="w", blacklist="b", bucket="k", prefix="p"),
        "POST /tasks/u/snapshot",
        SNAPSHOT,
        OBJECT,
    ),
    (
        "tasks.snapshot_every",
        lambda c: c.tasks.snapshot_every("u", timedelta(minutes=1)),
        "POST /tasks/u/snapshot/periodic",
        {"interval": 60},
        b"",
    ),
    (
        "tasks.snapshot_status",
        lambda c: c.tasks.snapshot_status("u", "s"),
        "GET /tasks/u/snapshot/s",
        None,
        OBJECT,
    ),
    (
        "tasks.port_forward",
        lambda c: c.tasks.port_forward("u"),
        "GET /v1/network/tasks/u/port-forward",
        None,
        {"0": {}},
    ),
    ("account.settings", lambda c: c.account.settings(), "GET /settings", None, OBJECT),
    ("account.versions", lambda c: c.account.versions(), "GET /versions", None, []),
    ("account.check", lambda c: c.account.check(), "GET /", None, b""),
    ("account.info", lambda c: c.account.info(), "GET /info", None, {}),
    ("account.user_quotas", lambda c: c.account.user_quotas(), "GET /quotas/computing-quotas/user", None, {}),
    (
        "account.organization_quotas",
        lambda c: c.account.organization_quotas(),
        "GET /quotas/computing-quotas/organization",
        None,
        {},
    ),
    ("account.profiles", lambda c: c.account.profiles(), "GET /profiles", None, ["docker-batch"]),
    ("account.profile", lambda c: c.account.profile("a/b"), "GET /profiles/a%2Fb", None, {}),
    (
        "account.cpu_models",
        lambda c: c.account.cpu_models("amd r"),
        "GET /hardware-constraints/cpu-model-constraints/search?cpuModel=amd+r",
        None,
        [{"cpuModel": "AMD"}, {}],
    ),
    ("account.credits", lambda c: c.account.credits(), "GET /credits/v1/accounts/credits", None, OBJECT),
    (
        "account.budgets",
        lambda c: c.account.budgets("p"),
        "GET /credits/v1/projects/p/budgets?activeOnly=True",
        None,
        {"budgets": [{"uuid": "b"}]},
    ),
    ("jobs.create", lambda c: c.jobs.create("j"), "POST /jobs", JOB, OBJECT),
    (
        "jobs.create with dependencies",
        lambda c: c.jobs.create("j", use_dependencies=True),
        "POST /jobs",
        {**JOB, "useDependencies": True},
        OBJECT,
    ),
    ("jobs.get", lambda c: c.jobs.get("j"), "GET /jobs/j", None, OBJECT),
    ("jobs.list", lambda c: c.jobs.list(["t"]), "GET /jobs?tag=t", None, [OBJECT]),
    ("secrets.keys", lambda c: c.secrets.keys("a/b"), "GET /secrets-manager/search/a/b", None, OBJECT),
]


@pytest.mark.parametrize(
    ("call", "line", "body", "answer"), [case[1:] for case in CALLS], ids=[case[0] for case in CALLS]
)
def test_each_call_is_one_request(client, stub, call, line, body, answer):
    stub.will(Reply(200, answer))
    call(client)
    assert stub.log == [line]
    if body is not ...:
        assert stub.requests[0].body == body


@pytest.mark.parametrize("path", ["/settings", "/versions"])
def test_a_request_that_needs_no_token_does_not_send_it(client, stub, path):
    stub.default = Reply(200, {} if path == "/settings" else [])
    getattr(client.account, path[1:])()
    assert "Authorization" not in stub.requests[0].headers


def test_the_storage_url_is_asked_for_once_and_may_be_absent(stub):
    stub.will(Reply(200, {"storage": "https://s3"}), Reply(200, {"storage": None}), Reply(200, {}))
    found = []
    for _ in range(3):
        with QarnotClient(stub.url, "token") as one:
            found.append(one.storage_url())
            one.storage_url() if found[-1] else None
    assert found == ["https://s3", None, "https://storage.qarnot.com"]
    with QarnotClient(stub.url, "token", storage_url="https://mine") as one:
        assert one.storage_url() == "https://mine"
    assert len(stub.log) == 3


def test_hardware_constraints_are_read_to_the_end(client, stub):
    items = [{"discriminator": "CpuModelHardwareConstraint", "cpuModel": f"m{i}"} for i in range(120)]

    def page(request):
        query = dict(part.split("=") for part in request.path.partition("?")[2].split("&"))
        offset, limit = int(query["offset"]), int(query["limit"])
        part = items[offset : offset + limit]
        return Reply(200, {"data": part, "offset": offset, "limit": limit, "total": len(items)})

    stub.default = page
    assert [one.value for one in client.account.hardware_constraints()] == [one["cpuModel"] for one in items]
    assert len(stub.log) == 3


def test_hardware_constraints_without_a_total_end_too(client, stub):
    stub.default = Reply(200, {"data": [{"discriminator": "GpuHardwareConstraint"}]})
    assert len(client.account.hardware_constraints()) == 1


def test_pages_that_shift_give_each_object_once(client, stub):
    first = {"data": [{"uuid": "a"}, {"uuid": "b"}], "isTruncated": True, "nextToken": "2"}
    second = {"Data": [{"Uuid": "b"}, {"Uuid": "c"}], "IsTruncated": False, "NextToken": "3"}
    stub.will(Reply(200, first), Reply(200, second))
    assert [pool.uuid for pool in client.pools.iterate()] == ["a", "b", "c"]
    assert stub.requests[1].body == {"token": "2"}


def test_a_page_that_comes_again_is_an_error(client, stub):
    stub.default = Reply(200, {"data": [{"uuid": "a"}], "isTruncated": True, "nextToken": "1"})
    with pytest.raises(QarnotProtocolError, match="returned the same page"):
        list(client.pools.iterate())


@pytest.mark.parametrize("token", ["a b/ü+=&%41", "0", " ", "x" * 5000])
def test_a_page_token_is_sent_back_as_it_came(client, stub, token):
    first = {"data": [{"uuid": "a"}], "isTruncated": True, "nextToken": token}
    stub.will(Reply(200, first), Reply(200, {"data": [{"uuid": "b"}], "isTruncated": False}))
    assert [pool.uuid for pool in client.pools.iterate()] == ["a", "b"]
    assert stub.requests[1].body == {"token": token}


@pytest.mark.parametrize("token", [0, 7, {"after": "a"}, ["a"], True])
def test_a_page_token_of_another_type_is_an_error(client, stub, token):
    stub.default = Reply(200, {"data": [{"uuid": "a"}], "isTruncated": True, "nextToken": token})
    with pytest.raises(QarnotProtocolError, match="whose token is no text"):
        list(client.pools.iterate())


@pytest.mark.parametrize("token", [None, ""])
def test_a_listing_that_says_it_is_cut_is_not_taken_for_whole(client, stub, token):
    page = {"data": [{"uuid": "a"}], "isTruncated": True, "nextToken": token}
    stub.will(Reply(200, page), Reply(200, {**page, "total": 1}))
    with pytest.raises(QarnotProtocolError, match="without the token of the next"):
        list(client.pools.iterate())
    assert [pool.uuid for pool in client.pools.iterate()] == ["a"]


def test_a_page_without_its_list_is_an_error(client, stub):
    stub.default = Reply(200, {"data": None})
    with pytest.raises(QarnotProtocolError, match="without its list"):
        client.tasks.page()


@pytest.mark.parametrize("answer", [{}, {"uuid": ""}, {"uuid": 3}, ""])
def test_a_creation_without_a_uuid_is_an_error(client, stub, answer):
    stub.default = Reply(200, answer)
    with pytest.raises(QarnotProtocolError, match="did not return its uuid"):
        client.pools.create(PoolSpec(name="p"))


def test_a_creation_without_a_uuid_is_found_by_its_shortname(client, stub):
    def found(request):
        return Reply(200, {"uuid": "u", "labels": stub.requests[0].body["labels"]})

    stub.will(Reply(200, {}), found)
    assert client.tasks.create(TaskSpec(name="t", shortname="n")) == "u"
    assert stub.log == ["POST /tasks", "GET /tasks/n"]


def test_an_object_without_a_uuid_is_an_error(client, stub):
    stub.default = Reply(200, {"state": "Closed"})
    with pytest.raises(QarnotProtocolError, match="without a uuid"):
        client.pools.get("p")


def test_find_tells_absence_from_trouble(client, stub):
    stub.will(Reply(404, {"message": "No such pool"}), Reply(401))
    assert client.pools.find("x") is None
    with pytest.raises(QarnotCredentialsError):
        client.pools.find("x")


@pytest.mark.parametrize("status", [200, 207, 400, 402, 403, 404])
def test_bulk_answers_are_read_whatever_their_status(client, stub, status):
    items = [
        {"statusCode": 200, "uuid": "a"},
        {"statusCode": 403, "message": "Maximum number of tasks reached"},
        {"StatusCode": 400, "Message": "Invalid task file. Invalid fields: name"},
    ]
    stub.default = Reply(status, items)
    found = client.tasks.create_many([TaskSpec(name=f"t{i}") for i in range(3)])
    assert [(item.ok, item.status, item.uuid) for item in found] == [
        (True, 200, "a"),
        (False, 403, None),
        (False, 400, None),
    ]
    assert found[0].error is None
    assert type(found[1].error).__name__ == "QarnotQuotaError"
    assert type(found[2].error).__name__ == "QarnotRefusedError"
    assert "'t2'" in str(found[2].error)


def test_a_bulk_answer_of_another_length_is_an_error(client, stub):
    stub.default = Reply(200, [])
    with pytest.raises(QarnotProtocolError, match="0 items for 1 tasks"):
        client.tasks.create_many([TaskSpec(name="t")])


def test_a_slow_create_that_won_the_race_against_its_own_repetition_is_found(client, stub):
    """The look-up comes too early, the repetition is refused, and what took the name is ours after all."""
    client.transport._wait = lambda attempt: 0.0
    sent: list[dict[str, Any]] = []

    def create(request):
        sent.append(request.body)
        return (
            Reply(504) if len(sent) == 1 else Reply(400, {"message": "Invalid fields: shortname-uniqueness"})
        )

    stub.will(
        create,
        Reply(404),
        Reply(200, []),
        create,
        lambda request: Reply(200, {"uuid": "ours", "shortname": "n", "labels": sent[0]["labels"]}),
    )
    assert client.pools.create(PoolSpec(name="p", shortname="n")) == "ours"
    looks = ["GET /pools/n", "POST /pools/search"]
    assert stub.log == ["POST /pools", *looks, "POST /pools", "GET /pools/n"]
    assert sent[0] == sent[1]


@pytest.mark.parametrize(
    ("state", "sent"),
    [("Closing", 1), ("Closed", 1), ("FullyExecuting", 2), ("Submitted", 2), ("Levitating", 2)],
)
def test_a_close_whose_answer_was_lost_is_repeated_only_where_it_did_nothing(client, stub, state, sent):
    client.transport._wait = lambda attempt: 0.0
    stub.will(reset, Reply(200, {"uuid": "u", "state": state}))
    client.pools.close("u")
    assert stub.log.count("POST /pools/u/close") == sent
    assert stub.log.count("GET /pools/u") == 1


def test_closing_a_pool_that_a_lost_close_has_already_removed_is_not_found(client, stub):
    client.transport._wait = lambda attempt: 0.0
    stub.will(reset, Reply(404))
    with pytest.raises(QarnotNotFoundError):
        client.pools.close("u")


def test_end_is_close_for_pools_and_abort_for_tasks(client, stub):
    client.pools.end("u")
    client.tasks.end("u")
    assert stub.log == ["POST /pools/u/close", "POST /tasks/u/abort"]


@pytest.mark.parametrize(
    "failure", [reset, Reply(503), Reply(200, b"garbage")], ids=["reset", "503", "garbage"]
)
def test_create_once_leaves_a_lost_answer_to_the_caller(client, stub, failure):
    spec = PoolSpec(name="p", shortname="n", labels={"k": "v"})
    stub.will(failure)
    with pytest.raises(QarnotUnavailableError) as caught:
        client.pools.create_once(spec)
    assert caught.value.ambiguous
    assert stub.log == ["POST /pools"]
    assert stub.requests[0].body == spec.to_json()


def test_ours_is_found_among_several_of_the_name(client, stub):
    """Where names can be taken twice, the object that a look-up by name gives may be another's."""
    client.transport._wait = lambda attempt: 0.0

    def both(request):
        ours = {"uuid": "ours", "shortname": "n", "labels": stub.requests[0].body["labels"]}
        return Reply(200, [{"uuid": "theirs", "shortname": "n"}, ours])

    stub.will(reset, Reply(200, {"uuid": "theirs", "shortname": "n"}), both)
    assert client.pools.create(PoolSpec(name="p", shortname="n")) == "ours"
    assert stub.log == ["POST /pools", "GET /pools/n", "POST /pools/search"]


def test_the_client_shows_no_token(client):
    assert "token" not in repr(client)
