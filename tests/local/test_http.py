"""What the official SDK does not say or does not do: plain requests."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.local.schemas.requests import NO_DESKTOP, NO_FORWARD, NO_SSH

from .conftest import Http, until

Starter = Callable[..., LocalQarnot]
POOL = {"name": "p", "profile": "docker-batch", "instanceCount": 1}
ALWAYS = [{"type": "Always", "name": "always"}]
FIXED = {"type": "Fixed", "slotsCount": 1, "name": "one", "enabledPeriods": ALWAYS}
ELASTIC = {"isElastic": True, "minTotalSlots": 0, "maxTotalSlots": 2}


@pytest.fixture(scope="module")
def pool(http: Http) -> Iterator[str]:
    made = str(http("POST", "/pools", POOL).json()["uuid"])
    yield made
    http("DELETE", f"/pools/{made}")


def command(text: str, **more: str) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in {"DOCKER_CMD": text, **more}.items()]


def run(http: Http, body: dict[str, Any]) -> dict[str, Any]:
    """Create a task and wait for its end."""
    made = http("POST", "/tasks", {"name": "t", **body})
    assert made.status_code == 200, made.text
    path = f"/tasks/{made.json()['uuid']}"
    until(lambda: http("GET", path).json()["state"] in ("Success", "Failure", "Cancelled"))
    found: dict[str, Any] = http("GET", path).json()
    return found


# ---- shapes --------------------------------------------------------------------------------------


def test_creation_answers_uuid_and_location(http: Http) -> None:
    answer = http("POST", "/pools", POOL)
    assert answer.status_code == 200
    assert list(answer.json()) == ["uuid"]
    assert answer.headers["Location"] == f"/pools/{answer.json()['uuid']}"
    closed = http("POST", f"/pools/{answer.json()['uuid']}/close")
    assert (closed.status_code, closed.content, closed.headers["Content-Length"]) == (200, b"", "0")


@pytest.mark.parametrize("prefix", ["", "/v1", "/v0.1", "//v1", "/"])
def test_paths_with_and_without_a_version(http: Http, pool: str, prefix: str) -> None:
    assert http("GET", f"{prefix}/pools/{pool}").json()["uuid"] == pool
    assert http("GET", f"{prefix}/pools/{pool}/").json()["uuid"] == pool


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("PATCH", "/settings", 405),
        ("GET", "/pools/unknown", 404),
        ("POST", "/pools/unknown/close", 404),
        ("DELETE", "/tasks/unknown", 404),
        ("GET", "/jobs/unknown", 404),
        ("GET", "/profiles/unknown", 404),
        ("GET", "/quotas/computing-quotas/organization", 404),
    ],
)
def test_refusals_have_a_message(http: Http, method: str, path: str, status: int) -> None:
    answer = http(method, path)
    assert answer.status_code == status
    assert answer.json()["message"]


def test_the_token_is_asked_for_everywhere_but_in_settings(server: LocalQarnot) -> None:
    for path, status in (
        ("/settings", 200),
        ("/versions", 200),
        ("/", 401),
        ("/pools", 401),
        ("/_local/nodes", 401),
    ):
        assert requests.get(server.url + path, timeout=10).status_code == status
    assert requests.get(server.url + "/", headers={"Authorization": server.token}, timeout=10).content == b""


def test_post_without_a_body_of_any_content_type(http: Http) -> None:
    for kind in ("application/x-www-form-urlencoded", "application/json-patch+json", "text/plain"):
        made = http("POST", "/pools", POOL).json()["uuid"]
        answer = http("POST", f"/pools/{made}/close", headers={"Content-Type": kind})
        assert answer.status_code == 200


def test_keys_in_any_case_and_fields_of_answers_are_taken(http: Http) -> None:
    # As the C# SDK sends them: PascalCase, output-only fields, nulls.
    body = {
        "Uuid": "00000000-0000-0000-0000-000000000000",
        "Name": "pascal",
        "Profile": "docker-batch",
        "InstanceCount": 1,
        "Constants": [{"Key": "A", "Value": "1"}],
        "CreationDate": "0001-01-01T00:00:00",
        "Tags": None,
        "SchedulingType": "Flex",
        "Unknown": {"x": 1},
    }
    found = http("GET", "/pools/" + http("POST", "/pools", body).json()["uuid"]).json()
    assert found["name"] == "pascal"
    assert found["constants"] == [{"key": "A", "value": "1"}]
    assert found["uuid"] != body["Uuid"]
    assert found["schedulingType"] == "flex"
    http("DELETE", f"/pools/{found['uuid']}")


def test_everything_that_must_not_be_null(http: Http, pool: str) -> None:
    found = http("GET", f"/pools/{pool}").json()
    for name in [
        "errors",
        "constants",
        "tags",
        "hardwareConstraints",
        "forcedNetworkRules",
        "resourceBuckets",
    ]:
        assert isinstance(found[name], list), name
    for name in [
        "privileges",
        "defaultRetrySettings",
        "multiSlotsSettings",
        "elasticProperty",
        "secretsAccessRights",
    ]:
        assert isinstance(found[name], dict), name
    for name in ["totalSlotCapacity", "queuedOrRunningTaskInstancesCount", "instanceCount"]:
        assert isinstance(found[name], int), name
    task = run(http, {"poolUuid": pool, "constants": command("true")})
    assert isinstance(task["completedInstances"], list)
    assert isinstance(task["retrySettings"], dict)
    assert task["progress"] == 100.0
    for name in [
        "creationDate",
        "stateTransitionTime",
        "previousStateTransitionTime",
        "lastModified",
        "endDate",
    ]:
        assert len(task[name]) == len("2025-01-01T00:00:00Z"), name
    assert found["endDate"] == "0001-01-01T00:00:00Z"


# ---- refused input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"name": ""}, "name"),
        ({"name": None}, "name"),
        ({"name": "x" * 2048}, "name"),
        ({"profile": "no-such"}, "profile (start the local Qarnot with --profile no-such or --any-profile)"),
        ({"profile": None}, "profile"),
        ({"instanceCount": -1}, "instanceCount"),
        ({"instanceCount": 0}, "instanceCount"),
        ({"instanceCount": "four"}, "instanceCount"),
        ({"instanceCount": True}, "instanceCount"),
        ({"resultBucket": "out"}, "resultBucket"),
        ({"tags": [str(n) for n in range(11)]}, "tags"),
        ({"tags": ["x" * 512]}, "tags"),
        ({"tags": "one"}, "tags"),
        ({"shortname": "under_score"}, "shortname"),
        ({"shortname": "-first"}, "shortname"),
        ({"shortname": "last-"}, "shortname"),
        ({"constants": [{"key": "a b", "value": "1"}]}, "constants"),
        ({"constants": [{"key": "a", "value": None}]}, "constants"),
        ({"constants": [{"key": f"k{n}", "value": ""} for n in range(51)]}, "constants"),
        ({"labels": {"a": 1}}, "labels"),
        ({"schedulingType": "soon"}, "schedulingType"),
        ({"completionTimeToLive": "soon"}, "completionTimeToLive"),
        ({"elasticProperty": {**ELASTIC, "minTotalSlots": 3}}, "elasticProperty"),
        ({"elasticProperty": {**ELASTIC, "rampResizeFactor": 2}}, "elasticProperty"),
        ({"elasticProperty": "yes"}, "elasticProperty"),
        ({"scaling": {"policies": [{"type": "Unknown"}]}}, "scaling"),
        ({"elasticProperty": ELASTIC, "scaling": {"policies": [FIXED]}}, "elasticProperty-scaling-exclusive"),
        ({"multiSlotsSettings": {"slotsPerNode": 0}}, "multiSlotsSettings"),
        (
            {"resourceBuckets": ["a"], "advancedResourceBuckets": [{"bucketName": "b"}]},
            "resourceBuckets-advancedResourceBuckets-exclusive",
        ),
        ({"advancedResourceBuckets": [{"filtering": None}]}, "advancedResourceBuckets"),
        ({"defaultRetrySettings": {"maxTotalRetries": -1}}, "defaultRetrySettings"),
        ({"name": None, "profile": None, "tags": "y"}, "name, profile, tags"),
    ],
)
def test_bad_pools(http: Http, change: dict[str, Any], fields: str) -> None:
    answer = http("POST", "/pools", {**POOL, **change})
    assert answer.status_code == 400
    named = answer.json()["message"].removeprefix("Invalid pool file. Invalid fields: ").split(", ")
    assert sorted(named) == sorted(fields.split(", "))


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"name": None}, "name"),
        ({"poolUuid": str(uuid.uuid4())}, "poolUuid"),
        ({"poolUuid": "by-shortname"}, "poolUuid"),
        ({"poolUuid": None}, "profile"),
        (
            {"poolUuid": None, "profile": "no-such"},
            "profile (start the local Qarnot with --profile no-such or --any-profile)",
        ),
        ({"profile": "docker-network"}, "profile"),  # not the pool's
        ({"instanceCount": 0}, "instanceCount"),
        ({"instanceCount": -1}, "instanceCount"),
        ({"instanceCount": 2049}, "range-length"),
        ({"advancedRanges": "0-2048"}, "range-length"),
        ({"advancedRanges": "3-1"}, "advancedRanges"),
        ({"advancedRanges": "0-2", "instanceCount": 3}, "instanceCount-advancedRanges-exclusive"),
        ({"resultsWhitelist": "("}, "resultsWhitelist"),
        (
            {"maxRetriesPerInstance": 1, "retrySettings": {"maxPerInstanceRetries": 1}},
            "maxRetriesPerInstance-retrySettings-exclusive",
        ),
        ({"hardwareConstraints": [{"discriminator": "SSDHardwareConstraint"}]}, "hardwareConstraints"),
        ({"jobUuid": str(uuid.uuid4())}, "poolUuid-jobUuid-exclusive"),
        ({"poolUuid": None, "jobUuid": str(uuid.uuid4())}, "jobUuid"),
        ({"dependencies": {"dependsOn": [str(uuid.uuid4())]}}, "dependencies"),
        ({"shortname": "no/slash"}, "shortname"),
    ],
)
def test_bad_tasks(http: Http, pool: str, change: dict[str, Any], fields: str) -> None:
    answer = http("POST", "/tasks", {"name": "t", "poolUuid": pool, **change})
    assert answer.status_code == 400
    assert answer.json()["message"] == f"Invalid task file. Invalid fields: {fields}"


@pytest.mark.parametrize("body", ["{", "[1, 2", "null", "3", "[]]"])
def test_bodies_that_are_no_object(server: LocalQarnot, body: str) -> None:
    answer = requests.post(
        server.url + "/pools", data=body, headers={"Authorization": server.token}, timeout=10
    )
    assert answer.status_code == 400
    assert answer.json()["message"]


def test_inert_elastic_block_beside_scaling_is_tolerated(http: Http) -> None:
    inert = {**ELASTIC, "isElastic": False}
    answer = http("POST", "/pools", {**POOL, "elasticProperty": inert, "scaling": {"policies": [FIXED]}})
    assert answer.status_code == 200
    path = f"/pools/{answer.json()['uuid']}"
    refused = http("PUT", path, {"elasticProperty": ELASTIC})
    assert refused.json()["message"].endswith("elasticProperty-scaling-exclusive")
    assert http("PUT", path, {"elasticProperty": ELASTIC, "scaling": {"policies": []}}).status_code == 200
    assert http("GET", path).json()["scaling"] is None
    http("DELETE", path)


def test_unknown_bucket_is_named(http: Http, pool: str) -> None:
    for path, body in (("/pools", POOL), ("/tasks", {"name": "t", "poolUuid": pool})):
        answer = http("POST", path, {**body, "resourceBuckets": ["no-such-bucket"]})
        assert (answer.status_code, answer.json()["message"]) == (404, "No such bucket: no-such-bucket")


def test_bulk_reports_each_item_in_order(http: Http, pool: str) -> None:
    good = {"name": "t", "poolUuid": pool, "constants": command("true")}
    answer = http("POST", "/tasks", [good, {**good, "name": None}, good])
    assert answer.status_code == 207
    assert [item["statusCode"] for item in answer.json()] == [200, 400, 200]
    assert answer.json()[1]["uuid"] is None
    assert http("POST", "/tasks", [good]).status_code == 200
    assert http("POST", "/tasks", [{}, {}]).status_code == 207


# ---- pools ---------------------------------------------------------------------------------------


def test_put_changes_four_fields_and_leaves_the_rest(http: Http) -> None:
    path = "/pools/" + http("POST", "/pools", {**POOL, "tags": ["old"]}).json()["uuid"]
    assert http("PUT", path, {"tags": ["new"]}).content == b""
    body = {"name": "other", "instanceCount": 9, "constants": [{"key": "K", "value": "V"}]}
    assert http("PUT", path, body).status_code == 200
    found = http("GET", path).json()
    assert (found["name"], found["instanceCount"], found["tags"]) == ("p", 1, ["new"])
    assert found["constants"] == [{"key": "K", "value": "V"}]
    assert http("PUT", path, {"tags": [str(n) for n in range(11)]}).status_code == 400
    http("POST", f"{path}/close")
    assert http("PUT", path, {"tags": ["late"]}).status_code == 403
    assert http("PATCH", path).status_code == 400


def test_scaling_has_an_address_of_its_own(http: Http) -> None:
    path = "/pools/" + http("POST", "/pools", POOL).json()["uuid"]
    assert http("GET", f"{path}/scaling").json() == {"policies": []}
    assert http("PUT", f"{path}/scaling", {"policies": [FIXED]}).content == b""
    assert http("GET", f"{path}/scaling").json() == {"policies": [FIXED], "activePolicyName": "one"}
    refused = http("PUT", f"{path}/scaling", {"policies": [{"type": "Fixed"}]})
    assert refused.json()["errors"] == {"policies[0]": ["The input was not valid."]}
    http("DELETE", path)


def test_sanity_check_of_scaling(http: Http) -> None:
    good = http("POST", "/sanity-checks/pools/scaling", {"policies": [FIXED]})
    assert (good.status_code, good.text) == (200, "")
    bad = http("POST", "/sanity-checks/pools/scaling", {"policies": [{"type": "Nope"}]})
    assert (bad.status_code, bad.reason) == (400, "Bad Request")
    assert bad.headers["Content-Type"].startswith("application/problem+json")
    assert bad.json()["errors"] == {"policies[0]": ["The input was not valid."]}


def test_clone_of_a_pool(http: Http) -> None:
    name = f"n-{uuid.uuid4()}"
    secret = [{"key": "QARNOT_SECRET__A", "value": "s3cret"}]
    first = http("POST", "/pools", {**POOL, "shortname": name, "tags": ["t"], "constants": secret}).json()[
        "uuid"
    ]
    second = http("POST", f"/pools/{first}/clone", {"name": "clone"}).json()["uuid"]
    found = http("GET", f"/pools/{second}").json()
    assert (found["name"], found["shortname"], found["tags"]) == ("clone", second, ["t"])
    # The secret itself was copied: a task of the clone would be given it, and it is still hidden.
    assert found["constants"] == [{"key": "QARNOT_SECRET__A", "value": "[SECRET]"}]
    for made in (first, second):
        http("DELETE", f"/pools/{made}")


def test_tasks_of_a_pool(http: Http, pool: str) -> None:
    task = run(http, {"poolUuid": pool, "constants": command("true")})
    assert task["uuid"] in [one["uuid"] for one in http("GET", f"/pools/{pool}/tasks").json()]


# ---- tasks ---------------------------------------------------------------------------------------


def test_a_task_takes_its_pool_by_uuid_and_its_path_by_either_name(http: Http, pool: str) -> None:
    name = f"n-{uuid.uuid4()}"
    task = run(http, {"poolUuid": pool.upper(), "shortname": name, "constants": command("echo hi")})
    for key in (task["uuid"], task["uuid"].upper(), name):
        assert http("GET", f"/tasks/{key}/stdout").text == "0> hi\n"
        assert http("POST", f"/tasks/{key}/abort").status_code == 200
    assert http("GET", f"/tasks/{name}/stdout/0").headers["Content-Type"] == "text/plain; charset=utf-8"
    assert http("DELETE", f"/tasks/{name}").status_code == 200
    assert http("GET", f"/tasks/{name}").status_code == 404


def test_output_that_is_not_english_and_not_text(http: Http, pool: str) -> None:
    task = run(http, {"poolUuid": pool, "constants": command("printf 'h\\303\\251\\n\\377\\n'")})
    assert http("GET", f"/tasks/{task['uuid']}/stdout").text == "0> hé\n0> \ufffd\n"


@pytest.mark.parametrize(("kind", "ids"), [("retry", "1,3"), ("recover", "1,3"), ("clone", "0-3")])
def test_new_tasks_from_old_ones(http: Http, pool: str, kind: str, ids: str) -> None:
    old = run(
        http,
        {
            "poolUuid": pool,
            "instanceCount": 4,
            "constants": command("sh -c 'exit $((INSTANCE_ID % 2))'"),
            "tags": ["again"],
        },
    )
    assert old["status"]["failedRange"] == "1,3"
    new = http("POST", f"/tasks/{old['uuid']}/{kind}", {"name": "again"}).json()["uuid"]
    until(lambda: http("GET", f"/tasks/{new}").json()["state"] == "Failure")
    found = http("GET", f"/tasks/{new}").json()
    assert (found["name"], found["tags"], found["status"]["executedRange"]) == ("again", ["again"], ids)
    assert http("POST", f"/tasks/{old['uuid']}/resume").status_code == 400  # nothing was cancelled


def test_results_prefix(http: Http, pool: str) -> None:
    bucket = f"out-{uuid.uuid4()}"
    body = {"resultBucket": bucket, "resultsBucketPrefix": "run1/", "resultsWhitelist": "${WHAT}"}
    task = run(http, {"poolUuid": pool, **body, "constants": command("touch a.txt b.txt", WHAT="^a")})
    assert task["resultsCount"] == 1
    again = run(http, {"poolUuid": pool, "resourceBuckets": [bucket], "constants": command("find . -type f")})
    assert http("GET", f"/tasks/{again['uuid']}/stdout/0").text == "./run1/a.txt\n"


# ---- jobs and dependencies -----------------------------------------------------------------------


def test_tasks_of_a_job_wait_for_each_other(http: Http, pool: str) -> None:
    job = http("POST", "/jobs/", {"name": "j", "poolUuid": pool, "useDependencies": True}).json()["uuid"]

    def make(text: str, dependencies: dict[str, Any] | None = None) -> str:
        body = {"name": "t", "jobUuid": job, "constants": command(text), "dependencies": dependencies}
        answer = http("POST", "/tasks", body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["uuid"])

    def after(task: str, *condition: str) -> dict[str, Any]:
        return {"advancedDependsOn": [{"taskUuid": task, "taskFinalStateCondition": list(condition) or None}]}

    first = make("sh -c 'sleep 0.2; exit 1'")
    whatever = make("true", {"dependsOn": [first]})
    on_failure = make("true", after(first, "failure", "cancelled"))
    on_success = make("true", after(first, "success"))
    then = make("true", after(on_success))
    assert http("GET", f"/tasks/{on_success}").json()["dependencies"]["state"] == "waiting"
    ends = {
        first: "Failure",
        whatever: "Success",
        on_failure: "Success",
        on_success: "Cancelled",
        then: "Success",
    }
    for task, state in ends.items():
        until(lambda task=task: http("GET", f"/tasks/{task}").json()["endDate"] > "0002")
        assert http("GET", f"/tasks/{task}").json()["state"] == state
    seen = http("GET", f"/tasks/{on_success}").json()["dependencies"]
    assert seen["advancedDependsOn"][0]["actualFinalState"] == "failure"
    assert seen["state"] == "dependencyConditionsNotFulfilled"
    assert {task["uuid"] for task in http("GET", f"/jobs/{job}/tasks").json()} == set(ends)
    assert http("DELETE", f"/jobs/{job}").status_code == 403
    waiting = make("sleep 600")
    assert http("POST", f"/jobs/{job}/terminate").status_code == 200
    until(lambda: http("GET", f"/tasks/{waiting}").json()["state"] == "Cancelled")
    assert http("GET", f"/jobs/{job}").json()["state"] == "Completed"
    assert http("DELETE", f"/jobs/{job}?force=True").status_code == 200
    assert http("GET", f"/tasks/{first}").status_code == 404


# ---- catalogue, secrets, money -------------------------------------------------------------------


def test_catalogue(http: Http, pool: str) -> None:
    page = http("GET", "/hardware-constraints?Limit=2&Offset=1").json()
    assert (len(page["data"]), page["limit"], page["offset"]) == (2, 2, 1)
    assert page["total"] > 2
    assert http("GET", "/hardware-constraints/cpu-model-constraints/search?cpuModel=local").json()
    assert http("GET", "/versions").json()
    assert http("GET", "/quotas/computing-quotas/user").json()["reserved"] == []
    task = http("POST", "/tasks", {"name": "t", "poolUuid": pool, "constants": command("true")}).json()[
        "uuid"
    ]
    assert http("GET", f"/v1/network/tasks/{task}/port-forward").json() == {"0": {}}
    assert http("GET", f"/credits/v1/tasks/{task}/credits").json() == {"credits": 0.0}
    assert http("GET", f"/carbon/v1/Tasks/{task}/carbon-facts").json()["totalEnergyITWh"] == 0
    assert http("GET", "/credits/v1/accounts/credits").json()["credits"] > 0
    (project,) = http("GET", "/info").json()["projects"]
    path = f"/credits/v1/projects/{project['uuid']}/budgets?activeOnly=True"
    assert http("GET", path).json() == {"budgets": []}
    assert http("GET", "/credits/v1/projects/x/budgets").status_code == 404


def test_secrets(http: Http) -> None:
    path = f"/secrets-manager/data/folder-{uuid.uuid4()}/key"
    assert http("GET", path).json()["message"].endswith("doesn't exist")
    assert http("PUT", path, {"Value": "v1"}).status_code == 201
    assert http("PUT", path, {"Value": "v1"}).status_code == 409
    assert http("PATCH", path, {"Value": "v2"}).status_code == 204
    assert http("GET", path).json() == {"value": "v2"}
    folder = path.removeprefix("/secrets-manager/data/").removesuffix("/key")
    assert http("GET", f"/secrets-manager/search/{folder}").json() == {"keys": ["key"]}
    assert http("DELETE", path).status_code == 204
    assert http("DELETE", path).status_code == 404


def test_instances_get_the_secrets_that_their_task_or_pool_may_read(http: Http) -> None:
    mark = f"S{uuid.uuid4().hex}"
    for key in (mark, f"{mark}/in/folder", f"{mark}_other", f"{mark}/in=vain"):
        assert http("PUT", f"/secrets-manager/data/{key}", {"value": f"value of {key}"}).status_code == 201
    rights = {"bySecret": [{"key": mark}, {"key": "unknown"}], "byPrefix": [{"prefix": f"{mark}/"}]}
    granted = [f"{mark}/in/folder=value of {mark}/in/folder", f"{mark}=value of {mark}"]

    def seen(**body: Any) -> list[str]:
        task = run(http, {"constants": command("env"), **body})
        return sorted(
            line for line in http("GET", f"/tasks/{task['uuid']}/stdout/0").text.split("\n") if mark in line
        )

    assert seen(profile="docker-batch", secretsAccessRights=rights) == sorted(granted)
    assert seen(profile="docker-batch") == []
    pool = http("POST", "/pools", {**POOL, "secretsAccessRights": rights}).json()["uuid"]
    assert seen(poolUuid=pool) == sorted(granted)
    http("DELETE", f"/pools/{pool}")


@pytest.mark.parametrize("kind", ["pools", "tasks"])
def test_ssh_and_a_desktop_are_refused_with_a_sentence(http: Http, kind: str) -> None:
    def post(**constants: str) -> Any:
        body = {"name": "n", "profile": "docker-network-ssh", "constants": command("true", **constants)}
        return http("POST", f"/{kind}", body)

    for sentence, constants in (
        (NO_SSH, {"DOCKER_SSH": "ssh-rsa AAAA"}),
        (NO_DESKTOP, {"VNC": "True"}),
        (NO_DESKTOP, {"VNC_PASSWORD": ""}),
    ):
        refused = post(**constants)
        assert (refused.status_code, refused.json()["message"]) == (400, sentence)
    assert post(DOCKER_SSH="", VNC="false").status_code == 200


def test_a_forwarded_port_is_refused_with_a_sentence(http: Http) -> None:
    rules = [{"inbound": True, "proto": "tcp", "port": "22"}]
    made = http("POST", "/tasks", {"name": "t", "profile": "docker-network", "forcedNetworkRules": rules})
    refused = http("GET", f"/v1/network/tasks/{made.json()['uuid']}/port-forward")
    assert (refused.status_code, refused.json()["message"]) == (400, NO_FORWARD)


# ---- searching -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found_by(private_free: Http) -> Callable[..., list[str]]:
    """Names of the pools of a small world that match a filter."""

    def find(node: Any) -> list[str]:
        answer = private_free("POST", "/pools/search", {"filter": node, "select": {"fields": ["Name"]}})
        assert answer.status_code == 200, answer.text
        return [one["name"] for one in answer.json()]

    return find


@pytest.fixture(scope="module")
def private_free() -> Iterator[Http]:
    """A server whose names are free, with pools a to e made 10 s after each other."""
    with LocalQarnot(boot_seconds=5, shortnames="free") as server:
        http = Http(server)
        for position, name in enumerate("abcde"):
            body = {
                **POOL,
                "name": name,
                "shortname": "same" if name in "ab" else name,
                "instanceCount": position + 1,
            }
            body["tags"] = ["all", "odd" if position % 2 else "even", "one, two"]
            body["autoDeleteOnCompletion"] = name == "e"
            if name == "c":
                body["elasticProperty"] = {**ELASTIC, "minTotalSlots": 2}
            http("POST", "/pools", body)
            server.advance_clock(10)
        yield http


def leaf(operator: str, field: str, value: Any) -> dict[str, Any]:
    return {"operator": operator, "field": field, "value": value}


@pytest.mark.parametrize(
    ("node", "names"),
    [
        (None, "abcde"),
        ({}, "abcde"),
        (leaf("Equal", "Name", "b"), "b"),
        (leaf("NotEqual", "Name", "b"), "acde"),
        (leaf("Equal", "name", "nobody"), ""),
        (leaf("Equal", "Shortname", "same"), "ab"),
        (leaf("In", "Shortname", ["c", "same"]), "abc"),
        ({"operator": "In", "field": "Name", "values": ["d", "a"]}, "ad"),
        ({"Operator": "NotIn", "Field": "Name", "Values": ["d", "a"]}, "bce"),
        (leaf("Equal", "Tags", "odd"), "bd"),
        (leaf("Equal", "Tags", "one, two"), "abcde"),
        (leaf("NotEqual", "Tags", "odd"), "ace"),
        (leaf("In", "Tags", ["odd", "even"]), "abcde"),
        (leaf("Like", "Name", "/^[ab]/"), "ab"),
        (leaf("Like", "Name", "[de]$"), "de"),
        (leaf("Like", "Tags", "^ev"), "ace"),
        (leaf("GreaterThan", "InstanceCount", "3"), "de"),
        (leaf("LessThanOrEqual", "InstanceCount", 2), "ab"),
        (leaf("Equal", "InstanceCount", "2"), "b"),
        (leaf("Equal", "ElasticProperty.MinTotalSlots", "2"), "c"),
        (leaf("Equal", "ElasticProperty.IsElastic", "true"), "c"),
        (leaf("Equal", "AutoDeleteOnCompletion", "true"), "e"),
        (leaf("Equal", "State", "FullyExecuting"), "abcde"),
        (
            {"operator": "And", "filters": [leaf("Equal", "Tags", "even"), leaf("NotEqual", "Name", "a")]},
            "ce",
        ),
        ({"operator": "Or", "filters": [leaf("Equal", "Tags", "odd"), leaf("Equal", "Name", "a")]}, "abd"),
        (
            {
                "operator": "And",
                "filters": [
                    leaf("Equal", "Tags", "all"),
                    {
                        "operator": "Or",
                        "filters": [leaf("Equal", "Name", "a"), leaf("Equal", "Shortname", "e")],
                    },
                ],
            },
            "ae",
        ),
        ({"operator": "Or", "filters": []}, ""),
        ({"operator": "And", "filters": []}, "abcde"),
    ],
)
def test_filters(found_by: Callable[..., list[str]], node: Any, names: str) -> None:
    assert found_by(node) == list(names)


def test_filters_on_moments(private_free: Http, found_by: Callable[..., list[str]]) -> None:
    pools = {p["name"]: p for p in private_free("POST", "/pools/search", {}).json()}
    third = pools["c"]
    for field in ("StateTransitionTime", "CreationDate", "LastModified"):
        when = third[field[0].lower() + field[1:]]
        assert found_by(leaf("GreaterThanOrEqual", field, when)) == list("cde")
        assert found_by(leaf("GreaterThan", field, when)) == list("de")
        assert found_by(leaf("LessThan", field, when)) == list("ab")
        assert found_by(leaf("LessThanOrEqual", field, when)) == list("abc")
        assert found_by(leaf("Equal", field, when)) == ["c"]
        assert found_by(leaf("Equal", field, when.replace("Z", ".0000000Z"))) == ["c"]
    both = [
        leaf("Equal", "Tags", "even"),
        leaf("GreaterThanOrEqual", "StateTransitionTime", third["stateTransitionTime"]),
    ]
    assert found_by({"operator": "And", "filters": both}) == ["c", "e"]
    assert found_by(leaf("Equal", "Uuid", third["uuid"])) == ["c"]
    assert found_by(leaf("In", "Uuid", [pools["a"]["uuid"], third["uuid"], "unknown"])) == ["a", "c"]


@pytest.mark.parametrize(
    ("node", "part"),
    [
        (leaf("Equal", "NoSuchField", "x"), "Unknown field: NoSuchField"),
        (leaf("Resembles", "Name", "x"), "Unknown operator: Resembles"),
        (leaf("Like", "Name", "("), "Not a regular expression"),
        (leaf("GreaterThan", "CreationDate", "yesterday"), "needs a date"),
        ({"operator": "And", "filters": "x"}, "needs a list of filters"),
        ({"operator": "GreaterThan", "field": "InstanceCount"}, "needs a value"),
    ],
)
def test_bad_filters_are_explained(private_free: Http, node: Any, part: str) -> None:
    for path in ("/pools/search", "/pools/paginate"):
        answer = private_free("POST", path, {"filter": node})
        assert answer.status_code == 400
        assert part in answer.json()["errors"]["filter"][0]


def test_selection_and_size(private_free: Http) -> None:
    answer = private_free(
        "POST",
        "/pools/search",
        {"select": {"fields": ["Uuid", "stateTransitionTime", "Nothing"]}, "maximumResults": 2},
    )
    assert [sorted(one) for one in answer.json()] == [["stateTransitionTime", "uuid"]] * 2
    plain = private_free("POST", "/pools/search", {"select": ["Name"]}).json()
    assert plain[0] == {"name": "a"}
    assert private_free("POST", "/pools/search", {"maximumResults": 0}).status_code == 400


@pytest.mark.parametrize(
    ("order", "names"),
    [({}, "abcde"), ({"OrderType": "DESC"}, "edcba"), ({"OrderBy": "name", "OrderType": "DESC"}, "edcba")],
)
def test_pages_in_order(private_free: Http, order: dict[str, str], names: str) -> None:
    seen: list[str] = []
    token = None
    for expected in (2, 2, 1):
        page = private_free(
            "POST", "/pools/summaries/paginate", {"Token": token, "MaximumResults": 2, **order}
        ).json()
        assert (page["count"], page["total"], page["isTruncated"]) == (expected, 5, expected == 2)
        seen += [one["name"] for one in page["data"]]
        token = page["nextToken"]
    assert token is None
    assert seen == list(names)
    assert "errors" not in page["data"][0]  # a summary


def test_pages_do_not_lose_what_is_behind_a_deleted_one(http: Http) -> None:
    mark = str(uuid.uuid4())
    made = [http("POST", "/pools", {**POOL, "tags": [mark]}).json()["uuid"] for _ in range(4)]
    request = {"filter": leaf("Equal", "Tags", mark), "maximumResults": 2}
    first = http("POST", "/pools/paginate", request).json()
    http("DELETE", f"/pools/{made[0]}")
    until(lambda: http("GET", f"/pools/{made[0]}").status_code == 404)
    second = http("POST", "/pools/paginate", {**request, "token": first["nextToken"]}).json()
    assert [one["uuid"] for one in second["data"]] == made[2:]
    for one in made:
        http("DELETE", f"/pools/{one}")


@pytest.mark.parametrize("change", [{"token": "nonsense"}, {"orderBy": "colour"}, {"maximumResults": -1}])
def test_bad_pages(http: Http, change: dict[str, Any]) -> None:
    answer = http("POST", "/tasks/paginate", change)
    assert answer.status_code == 400
    assert list(answer.json()["errors"]) == list(change)


def test_lists_by_tag(http: Http) -> None:
    mark = str(uuid.uuid4())
    made = [
        http("POST", "/pools", {**POOL, "tags": tags}).json()["uuid"]
        for tags in ([mark], [mark, "x, y"], ["x, y"])
    ]

    def uuids(query: str) -> set[str]:
        return {one["uuid"] for one in http("GET", f"/pools/summaries?{query}").json()} & set(made)

    assert uuids(f"tag={mark}") == set(made[:2])
    assert uuids("tag=x, y") == set(made[1:])
    assert uuids(f"tag={mark}&tag=x, y") == set(made)
    assert uuids(f"tag={mark},other") == set(made[:2])  # as the C# SDK joins them
    assert uuids("tag=nothing") == set()
    for one in made:
        http("DELETE", f"/pools/{one}")
