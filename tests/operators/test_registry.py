"""Login and password of a private registry go to the server that their connection names, and to no other."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from airflow.sdk import Connection

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import TaskSpec
from airflow_qarnot_pool.exceptions import QarnotInvalidSpecError
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.bases.registry_login import RegistryLogin
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from tests.harness import FakeTI, run


def login_of(uri: str) -> RegistryLogin:
    return RegistryLogin.of(Connection.from_uri(uri, conn_id="registry"))


def constants(uri: str, **spec: Any) -> dict[str, str]:
    return login_of(uri).added_to(TaskSpec(name="t", command="true", **spec)).all_constants()


@pytest.mark.parametrize(
    ("uri", "server"),
    [
        ("docker://me:pw@registry.example", "https://registry.example"),
        ("docker://me:pw@registry.example:5000", "https://registry.example:5000"),
        ("docker://me:pw@registry.example:5000?reauth=False&email=me%40x", "https://registry.example:5000"),
        ("docker://http://me:pw@registry.example:5000", "http://registry.example:5000"),
        ("docker://https://me:pw@Registry.Example:5000/V2/Team/", "https://registry.example:5000/V2/Team"),
        ("docker://me:pw@https%3A%2F%2Findex.docker.io%2Fv1:80", "https://index.docker.io:80/v1"),
        ("docker://me:pw@http%3A%2F%2Fregistry.example%3A5000%2Fv2", "http://registry.example:5000/v2"),
        ("docker://me:pw@registry.example:5000/http", "http://registry.example:5000"),
        ("docker://me:pw@[2001:db8::1]:5000", "https://[2001:db8::1]:5000"),
    ],
)
def test_scheme_host_port_and_path_of_the_connection_are_kept(uri: str, server: str) -> None:
    sent = constants(uri, image="team/tool:1")
    assert sent["DOCKER_SRV"] == server
    assert (sent["DOCKER_REGISTRY_LOGIN"], sent["DOCKER_REGISTRY_PASSWORD"]) == ("me", "pw")
    again = Connection.from_uri(uri, conn_id="registry").get_uri()
    assert constants(again, image="team/tool:1") == sent


@pytest.mark.parametrize(
    ("fields", "server"),
    [
        ({"host": "https://registry.example", "port": 5000}, "https://registry.example:5000"),
        ({"host": "registry.example:5000"}, "https://registry.example:5000"),
        ({"host": "registry.example", "schema": "http"}, "http://registry.example"),
        ({"host": "registry.example", "schema": "v2"}, "https://registry.example/v2"),
    ],
)
def test_the_form_says_the_same_as_a_uri(fields: dict[str, Any], server: str) -> None:
    assert RegistryLogin.of(Connection(conn_id="r", login="me", password="pw", **fields)).url == server


@pytest.mark.parametrize(
    ("image", "repository", "tag"),
    [
        ("tool", "tool", "latest"),
        ("tool:2", "tool", "2"),
        ("team/tool:2", "team/tool", "2"),
        ("registry.example:5000/tool:2", "tool", "2"),
        ("Registry.example:5000/a/b/tool", "a/b/tool", "latest"),
    ],
)
def test_the_image_is_that_of_the_connections_registry(image: str, repository: str, tag: str) -> None:
    sent = constants("docker://http://me:pw@registry.example:5000/v2", image=image)
    assert (sent["DOCKER_REPO"], sent["DOCKER_TAG"]) == (repository, tag)
    assert sent["DOCKER_SRV"] == "http://registry.example:5000/v2"


def test_names_of_docker_hub_are_one_server_and_have_a_library() -> None:
    sent = constants("docker://me:pw@https%3A%2F%2Findex.docker.io%2Fv1", image="docker.io/alpine:3")
    assert (sent["DOCKER_REPO"], sent["DOCKER_SRV"]) == ("library/alpine", "https://index.docker.io/v1")


@pytest.mark.parametrize(
    "spec",
    [
        {"image": "ghcr.io/team/tool"},
        {"image": "registry.example/tool"},  # port 443
        {"image": "registry.example:5001/tool"},
        {"image": "docker.io/tool"},
        {"constants": {"DOCKER_SRV": "https://elsewhere.example"}},
        {"constants": {"DOCKER_SRV": "registry.example:5001"}},
        {"forced_constants": [{"constant_name": "DOCKER_SRV", "forced_value": "https://elsewhere.example"}]},
    ],
)
def test_no_login_goes_to_another_server_than_its_connection_names(spec: dict[str, Any]) -> None:
    with pytest.raises(QarnotInvalidSpecError, match=r"is for https://registry\.example:5000, but") as caught:
        constants("docker://me:hidden@registry.example:5000", **spec)
    assert caught.value.field == "registry_conn_id"
    assert "hidden" not in str(caught.value)


def test_a_connection_without_a_host_goes_with_the_registry_of_the_image() -> None:
    assert constants("docker://me:pw@", image="ghcr.io/team/tool")["DOCKER_SRV"] == "https://ghcr.io"
    assert "DOCKER_SRV" not in constants("docker://me:pw@", image="team/tool")
    given = {"DOCKER_SRV": "https://my"}
    assert constants("docker://me:pw@", image="team/tool", constants=given)["DOCKER_SRV"] == "https://my"


@pytest.mark.parametrize("name", ["DOCKER_REGISTRY_LOGIN", "DOCKER_REGISTRY_PASSWORD"])
def test_a_login_is_given_one_way_only(name: str) -> None:
    with pytest.raises(QarnotInvalidSpecError, match=name):
        constants("docker://me:pw@registry.example", constants={name: "x"})


@pytest.mark.parametrize(
    "uri",
    [
        "docker://:pw@registry.example",
        "docker://me@registry.example",
        "docker://me:pw@:5000",
        "docker://me:pw@ftp%3A%2F%2Fregistry.example",
        "docker://me:pw@https%3A%2F%2Fme%3Apw2%40registry.example",
        "docker://me:pw@registry.example%3A5000:5001",
    ],
)
def test_a_connection_that_names_no_registry_is_refused_by_its_field(uri: str) -> None:
    with pytest.raises(
        QarnotInvalidSpecError, match=r"Connection 'registry', field '(login|password|host|port)'"
    ):
        login_of(uri)


def test_each_command_of_a_fan_out_gets_the_login_for_its_image(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = "docker://http://me:registry-secret@registry.example:5000"
    monkeypatch.setenv("AIRFLOW_CONN_REGISTRY", uri)
    make = partial(
        QarnotRunTasksOperator,
        task_id="t",
        qarnot_pool=pool,
        image="tool:1",
        registry_conn_id="registry",
        commands=["true", {"command": "true", "image": "registry.example:5000/team/other:2"}],
    )
    result = run(make, FakeTI(run_id="fan-out-registry"))
    sent = [client.tasks.get(one["uuid"]).constants for one in result["results"]]
    assert [one["DOCKER_REPO"] for one in sent] == ["tool", "team/other"]
    assert {one["DOCKER_SRV"] for one in sent} == {"http://registry.example:5000"}
    foreign = partial(make, commands=["true", {"command": "true", "image": "ghcr.io/team/other"}])
    before = len(client.tasks.list())
    with pytest.raises(QarnotInvalidSpecError, match=r"commands\[1\].*ghcr\.io"):
        run(foreign, FakeTI(run_id="fan-out-foreign"))
    assert len(client.tasks.list()) == before


def test_a_foreign_image_is_refused_before_anything_is_submitted(
    qarnot: LocalQarnot, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"conn_type": "docker", "host": "registry.example", "login": "me", "password": "registry-secret"}
    monkeypatch.setenv("AIRFLOW_CONN_REGISTRY", json.dumps(fields))
    make = partial(
        QarnotRunTaskOperator,
        task_id="t",
        qarnot_pool=pool,
        command="true",
        registry_conn_id="registry",
        task_spec={"image": "ghcr.io/team/tool"},
    )
    with pytest.raises(QarnotInvalidSpecError, match=r"ghcr\.io") as caught:
        run(make, FakeTI(run_id="foreign"))
    assert "registry-secret" not in str(caught.value)
    assert not [
        one for one in qarnot.requests() if one["method"] == "POST" and one["path"].endswith("/tasks")
    ]
