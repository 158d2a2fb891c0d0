"""Take what Qarnot takes, and refuse the rest with 400: a value that is taken never breaks a later response."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import boto3
import pytest
import requests

from airflow_qarnot_pool.local import LocalQarnot

from .conftest import Http, until

POOL = {"name": "p", "profile": "docker-batch", "instanceCount": 1}
TASK = {"name": "t", "profile": "docker-batch", "instanceCount": 1}
BODIES: dict[str, dict[str, Any]] = {"pools": POOL, "tasks": TASK, "jobs": {"name": "j"}}
TEXT, INTEGER, FLAG, LIST, OBJECT = "text", "integer", "flag", "list", "object"
COMMON = {
    "name": TEXT,
    "shortname": TEXT,
    "profile": TEXT,
    "instanceCount": INTEGER,
    "constants": LIST,
    "forcedConstants": LIST,
    "constraints": LIST,
    "hardwareConstraints": LIST,
    "forcedNetworkRules": LIST,
    "resourceBuckets": LIST,
    "advancedResourceBuckets": LIST,
    "tags": LIST,
    "labels": OBJECT,
    "autoDeleteOnCompletion": FLAG,
    "completionTimeToLive": TEXT,
    "schedulingType": TEXT,
    "targetedReservedMachineKey": TEXT,
    "targetedReservationName": TEXT,
    "defaultResourcesCacheTTLSec": INTEGER,
    "privileges": OBJECT,
    "maxTimeQueueSeconds": INTEGER,
    "secretsAccessRights": OBJECT,
    "projectUuid": TEXT,
}
FIELDS: dict[str, dict[str, str]] = {
    "pools": COMMON
    | {
        "elasticProperty": OBJECT,
        "scaling": OBJECT,
        "multiSlotsSettings": OBJECT,
        "preparationTask": OBJECT,
        "taskDefaultWaitForPoolResourcesSynchronization": FLAG,
        "defaultRetrySettings": OBJECT,
    },
    "tasks": COMMON
    | {
        "poolUuid": TEXT,
        "jobUuid": TEXT,
        "advancedRanges": TEXT,
        "maxRetriesPerInstance": INTEGER,
        "retrySettings": OBJECT,
        "waitForPoolResourcesSynchronization": FLAG,
        "uploadResultsOnCancellation": FLAG,
        "resultBucket": TEXT,
        "resultsBucket": TEXT,
        "resultsBucketPrefix": TEXT,
        "resultsCacheTTLSec": INTEGER,
        "resultsWhitelist": TEXT,
        "resultsBlacklist": TEXT,
        "snapshotBucket": TEXT,
        "snapshotBucketPrefix": TEXT,
        "snapshotWhitelist": TEXT,
        "snapshotBlacklist": TEXT,
        "dependencies": OBJECT,
    },
    "jobs": {
        "name": TEXT,
        "shortname": TEXT,
        "poolUuid": TEXT,
        "tags": LIST,
        "useDependencies": FLAG,
        "maxWallTime": TEXT,
        "completionTimeToLive": TEXT,
        "autoDeleteOnCompletion": FLAG,
    },
}
CASES = [(kind, field) for kind, fields in FIELDS.items() for field in fields]
OF_KIND: dict[str, list[Any]] = {
    TEXT: [
        "x",
        "ü",
        "\0",
        "a\n",
        "(" * 1500,
        "9" * 2000,
        "99999999999.00:00:00",
        "x{99999999999}",
        "0-2",
        "a/../b",
    ],
    INTEGER: [0, -1, 1, 2**31 - 1, 2**31, 10**400],
    "number": [0.5, -1e300],
    FLAG: [True, False],
    LIST: [
        [],
        [None],
        [1],
        ["x"],
        ["\0"],
        ["a b"],
        [[]],
        [{}],
        [{"key": 1, "value": []}],
        [{"bucketName": 5}],
    ],
    OBJECT: [
        {},
        {"a": None},
        {"a": 1},
        {"a": "x"},
        {"dependsOn": 5},
        {"dependsOn": ["x"]},
        {"advancedDependsOn": [{"taskUuid": 1, "taskFinalStateCondition": 7}]},
        {"bySecret": "x", "byPrefix": [3]},
        {"commandLine": "a\0b"},
        {"slotsPerNode": "2"},
        {"policies": [7]},
        {
            "policies": [
                {"type": "Fixed", "slotsCount": 1, "enabledPeriods": [{"type": "Weekly", "days": [[]]}]}
            ]
        },
        {"maxTotalRetries": "1"},
        {"isElastic": "yes"},
        {"exportApiAndStorageCredentialsInEnvironment": "yes"},
    ],
}


@pytest.fixture(scope="module")
def still() -> Iterator[Http]:
    """A server on which nothing runs."""
    with LocalQarnot(speed=0, boot_seconds=3600) as server:
        yield Http(server)


def of_another_type(kind: str) -> list[Any]:
    return [value for other, values in OF_KIND.items() if other != kind for value in values]


@pytest.mark.parametrize(("kind", "field"), CASES)
def test_a_value_of_another_type_is_refused(still: Http, kind: str, field: str) -> None:
    for value in of_another_type(FIELDS[kind][field]):
        answer = still("POST", f"/{kind}", {**BODIES[kind], field: value})
        assert answer.status_code == 400, (value, answer.text)
        assert field in answer.json()["message"]


@pytest.mark.parametrize(("kind", "field"), CASES)
def test_a_value_that_is_taken_breaks_no_response(still: Http, kind: str, field: str) -> None:
    for value in OF_KIND[FIELDS[kind][field]]:
        made = still("POST", f"/{kind}", {**BODIES[kind], field: value})
        assert made.status_code in (200, 400, 403, 404), (value, made.text)
        if made.status_code != 200:
            continue
        path = f"/{kind}/{made.json()['uuid']}"
        looks = [still("GET", path), still("GET", f"/{kind}"), still("POST", f"/{kind}/search", {})]
        if kind != "jobs":
            looks.append(clone := still("POST", f"{path}/clone", {}))
            looks.append(still("GET", f"/{kind}/summaries"))
            if clone.status_code == 200:
                still("DELETE", f"/{kind}/{clone.json()['uuid']}")
        assert [answer.status_code for answer in looks if answer.status_code >= 500] == [], value
        assert still("DELETE", path).status_code == 200


CHANGEABLE = {"constants", "tags", "elasticProperty", "scaling"}


@pytest.mark.parametrize(
    ("kind", "field"),
    [(kind, field) for kind, field in CASES if field in CHANGEABLE],
)
def test_a_change_is_as_strict(still: Http, kind: str, field: str) -> None:
    path = f"/{kind}/{still('POST', f'/{kind}', BODIES[kind]).json()['uuid']}"
    for value in of_another_type(FIELDS[kind][field]):
        assert still("PUT", path, {field: value}).status_code == 400, value
    for value in OF_KIND[FIELDS[kind][field]]:
        assert still("PUT", path, {field: value}).status_code in (200, 400), value
        assert still("GET", path).status_code == 200
    still("DELETE", path)


@pytest.mark.parametrize(
    "body",
    [
        b'{"name": "\\ud800", "profile": "docker-batch"}',
        b'{"name": "t", "profile": "docker-batch", "labels": {"\\udfff": "x"}}',
        b'{"name": "\xed\xa0\x80", "profile": "docker-batch"}',
        b'{"name": "\xff", "profile": "docker-batch"}',
        b'{"name": "t", "profile": "docker-batch", "forcedConstants": [{"a": NaN}]}',
        b'{"name": "t", "profile": "docker-batch", "forcedConstants": [{"a": 1e999}]}',
        b'{"name": "t", "profile": "docker-batch", "forcedConstants": [{"a": '
        + b"[" * 500
        + b"]" * 500
        + b"}]}",
        b'{"name": ' + b"[" * 100_000,
        b'{"name": ' + b"9" * 100_000 + b"}",
    ],
)
@pytest.mark.parametrize("path", ["/pools", "/tasks", "/jobs", "/tasks/search", "/pools/paginate"])
def test_text_and_numbers_that_no_response_could_return_are_refused(
    still: Http, path: str, body: bytes
) -> None:
    answer = still("POST", path, headers={"Content-Type": "application/json"}, data=body)
    assert answer.status_code == 400
    assert still("GET", "/tasks").status_code == 200


def test_whole_characters_outside_of_the_first_plane_are_taken(still: Http) -> None:
    made = still("POST", "/tasks", headers={}, data=json.dumps({**TASK, "name": "😀"}).encode()).json()
    assert still("GET", f"/tasks/{made['uuid']}").json()["name"] == "😀"


@pytest.mark.parametrize(
    "body",
    [
        {"filter": 5},
        {"filter": ["x"]},
        {"filter": {"operator": "Equal", "field": 5, "value": 1}},
        {"filter": {"operator": ["And"], "filters": []}},
        {"filter": {"operator": "Like", "field": "Name", "value": "(" * 1500}},
        {"filter": {"operator": "Like", "field": "Name", "value": "x{99999999999}"}},
        {"filter": {"operator": "Equal", "field": "InstanceCount", "value": 10**400}},
        {
            "filter": {
                "operator": "GreaterThan",
                "field": "StateTransitionTime",
                "value": "0001-01-01T00:00:00Z",
            }
        },
        {"filter": {"operator": "GreaterThan", "field": "StateTransitionTime", "value": 10**400}},
        {"filter": {"operator": "In", "field": "Uuid", "values": [[], {}, None, 5]}},
        {"maximumResults": "5"},
        {"select": {"fields": [[], 5]}},
        {"select": 5},
        {"token": 5},
        {"orderBy": 5},
        {"orderBy": "name", "token": "WzEuMCwgMV0="},
        {"token": "W05hTiwgMWU5OTld"},
        5,
        [1],
        "text",
    ],
)
@pytest.mark.parametrize("path", ["/tasks/search", "/tasks/paginate", "/pools/summaries/paginate"])
def test_no_search_fails(still: Http, path: str, body: Any) -> None:
    made = still("POST", "/tasks", TASK).json()["uuid"]
    assert still("POST", path, body).status_code in (200, 400), body
    still("DELETE", f"/tasks/{made}")


@pytest.mark.parametrize("number", ["²", "٣", "-1", "0x1", "9" * 5000, "%ED%A0%80"])
def test_no_number_of_an_instance_fails(still: Http, number: str) -> None:
    made = still("POST", "/tasks", TASK).json()["uuid"]
    assert still("GET", f"/tasks/{made}/stdout/{number}").status_code == 404
    still("DELETE", f"/tasks/{made}")


# ---- as lenient ----------------------------------------------------------------------------------


def finished(http: Http, body: dict[str, Any]) -> dict[str, Any]:
    made = http("POST", "/tasks", {**TASK, **body})
    assert made.status_code == 200, made.text
    path = f"/tasks/{made.json()['uuid']}"
    until(lambda: http("GET", path).json()["state"] in ("Success", "Failure", "Cancelled"))
    found: dict[str, Any] = http("GET", path).json()
    return found


@pytest.fixture(scope="module")
def s3(server: LocalQarnot) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.storage_url,
        aws_access_key_id=server.email,
        aws_secret_access_key=server.token,
        region_name="us-east-1",
    )


def test_integer_constants_are_texts(http: Http) -> None:
    pairs = [{"key": "DOCKER_CMD", "value": "sh -c 'echo $FRAMES'"}, {"key": "FRAMES", "value": 5}]
    found = finished(http, {"constants": pairs})
    assert {"key": "FRAMES", "value": "5"} in found["constants"]
    assert http("GET", f"/tasks/{found['uuid']}/stdout/0").text == "5\n"


def test_lists_given_in_both_forms_may_be_empty(still: Http) -> None:
    empty = {
        "resourceBuckets": [],
        "advancedResourceBuckets": [],
        "dependencies": {"dependsOn": [], "advancedDependsOn": []},
        "secretsAccessRights": {"bySecret": [], "byPrefix": []},
        "hardwareConstraints": [],
        "constants": [],
    }
    pool = still("POST", "/pools", {**POOL, **empty}).json()["uuid"]
    task = {"name": "t", "poolUuid": pool, "instanceCount": 1}
    assert still("POST", "/tasks", {**task, **empty}).status_code == 200
    still("DELETE", f"/pools/{pool}")


def test_results_bucket_is_another_name_of_result_bucket(still: Http) -> None:
    made = still("POST", "/tasks", {**TASK, "resultsBucket": "of-openapi"}).json()["uuid"]
    found = still("GET", f"/tasks/{made}").json()
    assert (found["resultBucket"], found["resultsBucket"]) == ("of-openapi", "of-openapi")
    both = still("POST", "/tasks", {**TASK, "resultBucket": "first", "resultsBucket": "second"}).json()
    assert still("GET", f"/tasks/{both['uuid']}").json()["resultBucket"] == "first"
    clone = still("POST", f"/tasks/{made}/clone", {"resultsBucket": "changed"}).json()["uuid"]
    assert still("GET", f"/tasks/{clone}").json()["resultBucket"] == "changed"
    same = still("POST", f"/tasks/{made}/clone", {}).json()["uuid"]
    assert still("GET", f"/tasks/{same}").json()["resultBucket"] == "of-openapi"


@pytest.mark.parametrize("name", ["ab", "a b", "a/b", "ü" * 5, "x" * 64, "a\n"])
@pytest.mark.parametrize("field", ["resultBucket", "resultsBucket", "snapshotBucket"])
def test_an_impossible_bucket_is_refused_at_creation(still: Http, field: str, name: str) -> None:
    answer = still("POST", "/tasks", {**TASK, field: name})
    assert answer.status_code == 400
    assert field in answer.json()["message"]


@pytest.mark.parametrize("name", ["a b", "a/b", "\0", "x" * 200])
def test_an_impossible_bucket_of_resources_does_not_exist(still: Http, name: str) -> None:
    for field, value in (("resourceBuckets", [name]), ("advancedResourceBuckets", [{"bucketName": name}])):
        assert still("POST", "/tasks", {**TASK, field: value}).status_code in (400, 404)


def test_scripts_of_a_bucket_run_without_chmod(http: Http, s3: Any) -> None:
    bucket = f"scripts-{uuid4()}"
    s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key="bin/run.sh", Body=b"#!/bin/sh\necho it runs\n")
    constants = [{"key": "DOCKER_CMD", "value": "./bin/run.sh"}]
    found = finished(http, {"constants": constants, "resourceBuckets": [bucket]})
    assert (found["state"], found["errors"]) == ("Success", [])
    assert http("GET", f"/tasks/{found['uuid']}/stdout/0").text == "it runs\n"


AWKWARD = r"""python3 -c "
import os
for name in (b'before', b'not utf-8 \xff', b'line\nbreak', b'bell \x07', b'a+b &c=d?.txt', b'z after'):
    open(name, 'w').write('x')
folder = '/'.join(['d' * 250] * 5)
os.makedirs(folder)
open(folder + '/deep', 'w').write('x')
"
"""


def test_results_that_s3_cannot_take_are_named_and_the_rest_is_copied(http: Http, s3: Any) -> None:
    bucket = f"results-{uuid4()}"
    constants = [{"key": "DOCKER_CMD", "value": AWKWARD}]
    found = finished(http, {"constants": constants, "resultBucket": bucket})
    assert found["state"] == "Failure"
    assert [error["code"] for error in found["errors"]] == ["LOCAL_RESULTS"]
    message = found["errors"][0]["message"]
    assert r"not utf-8 \udcff: the name is not UTF-8" in message
    assert "/deep: the name has 1259 bytes, and S3 takes 1024" in message
    assert "line\nbreak" in message  # moto has no such keys
    keys = {entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]}
    assert keys == {"before", "bell \x07", "a+b &c=d?.txt", "z after"}
    assert found["resultsCount"] == 1


def test_the_organization_of_a_project_is_a_uuid(http: Http) -> None:
    for project in http("GET", "/info").json()["projects"]:
        assert len(project["organizationUuid"]) == 36


def test_a_text_in_place_of_a_body_is_refused(server: LocalQarnot) -> None:
    answer = requests.post(
        f"{server.url}/pools", b"name: p", headers={"Authorization": server.token}, timeout=20
    )
    assert answer.status_code == 400
