"""``airflow qarnot executor check``: what it says, and that it leaves nothing behind."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import PoolSpec
from airflow_qarnot_pool.executors import check, node
from airflow_qarnot_pool.executors.bundle_archives import BUNDLE_CLASS, BUNDLES
from airflow_qarnot_pool.executors.image import Installed
from airflow_qarnot_pool.executors.node_check import MARK
from airflow_qarnot_pool.executors.workload_task import TOKEN_OPTION
from airflow_qarnot_pool.hooks.qarnot import QarnotHook
from airflow_qarnot_pool.local import LocalQarnot

TOKEN = "eyJhbGciOiJIUzUxMiJ9.cGF5bG9hZCBvZiBhIHRva2Vu.c2lnbmF0dXJl"
HERE = Installed(python="3.12", packages={"apache-airflow": "3.3.2"})
GOOD: dict[str, Any] = {
    "installed": HERE.to_json(),
    "health": 200,
    "start": 404,
    "executors": ["a.LocalExecutor", "b.QarnotExecutor"],
    "bundles": {"dags": ""},
    "remote_logging": True,
    "leaks": [],
}
#: Change of a good report: words of the one sentence about it.
REPORTS: dict[str, tuple[dict[str, Any], str]] = {
    "the api-server is not reached": (
        {"health": {"error": "URLError: timed out"}, "start": {"error": "URLError: timed out"}},
        "does not reach the api-server (URLError: timed out). Set [qarnot_executor] execution_api_server_url",
    ),
    "the api-server is slow": (
        {"health": {"error": "TimeoutError: timed out"}, "start": {"error": "TimeoutError: timed out"}},
        "has not responded within 15 s. It is overloaded",
    ),
    "the api-server is slow at the second request": (
        {"start": {"error": "TimeoutError: timed out"}},
        "has not responded within 15 s. It is overloaded",
    ),
    "the address is another page": ({"health": 404}, "no execution API: it answers 404"),
    "the token is refused": ({"start": 403}, "refuses the token of a task (403). Give the scheduler"),
    "the api-server is older": ({"start": 422}, "does not understand the node (422). Compare the Airflow"),
    "versions differ": (
        {"installed": {"python": "3.12", "packages": {"apache-airflow": "3.2.0"}}},
        "The image has apache-airflow 3.2.0, and this machine 3.3.2.",
    ),
    "the report has no versions": ({"installed": None, "leaks": None}, "The image has Python None"),
    "the bundle is missing": (
        {"bundles": {"dags": "there are no DAG files in /dags", "more": ""}},
        "The DAG bundle dags cannot be used on the node: there are no DAG files in /dags.",
    ),
    "the executor is not set": ({"executors": ["a.LocalExecutor"]}, "does not name QarnotExecutor"),
    "the executor is wrong": ({"executors": {"error": "no"}}, "does not name QarnotExecutor, got no"),
    "no remote logging": ({"remote_logging": False}, "The node has no remote logging"),
    "the entrypoint keeps the token": (
        {"leaks": ["dumb-init -- /entrypoint"]},
        "A process of the image (dumb-init -- /entrypoint) has the token",
    ),
}


def test_a_node_that_has_everything_has_no_problem() -> None:
    assert check.problems_of(GOOD, HERE) == []


@pytest.mark.parametrize("case", REPORTS)
def test_each_problem_of_a_node_is_a_sentence(case: str) -> None:
    change, words = REPORTS[case]
    sentences = check.problems_of({**GOOD, **change}, HERE)
    assert words in sentences[0]
    assert len(sentences) == 1 or case == "the report has no versions"


PRINTED: dict[str, tuple[str, Any]] = {
    "after other lines": (f'a\n{MARK}{{"health": 200}}\nb\n', {"health": 200}),
    "none": ("a\n", None),
    "cut": (f'{MARK}{{"health": 2', None),
    "no mapping": (f"{MARK}[1]", None),
}


@pytest.mark.parametrize("case", PRINTED)
def test_the_report_is_found_in_the_output(case: str) -> None:
    output, expected = PRINTED[case]
    assert check.report_of(output) == expected


def pool_of(**given: Any) -> Any:
    image, profile = given.get("image", "airflow:1"), given.get("profile", "docker-network")
    spec = PoolSpec(name="p", profile=profile, image=image, instance_count=1)
    return SimpleNamespace(profile=profile, image=image, spec=lambda: spec)


def options_of(**given: Any) -> Any:
    defaults = {
        "api_url": "https://user:password@airflow.example/execution/",
        "python": "python3",
        "token_seconds": 600.0,
        "boot_seconds": 300.0,
        "node_environment": {},
    }
    return SimpleNamespace(**{**defaults, **given})


BEFORE: dict[str, tuple[dict[str, Any], str]] = {
    "no network": ({"profile": "docker-batch"}, "The profile docker-batch has no network"),
    "no image": ({"image": None}, "No image is set, and the one of Qarnot has no Airflow."),
    "this machine only": (
        {"api_url": "http://me:password@localhost:8080/execution/"},
        "The api-server is at http://localhost:8080/execution/, which is this machine only.",
    ),
    "logs among DAG files": (
        {
            "node_environment": {
                BUNDLES: json.dumps(
                    [{"name": "dags", "classpath": BUNDLE_CLASS, "kwargs": {"bucket": "files"}}]
                ),
                check.LOG_FOLDER: "qarnot://files/logs",
            }
        },
        "The logs of tasks are stored among the files of the DAG bundle dags",
    ),
    "the token is too short": ({"token_seconds": 60}, "[{}] {} is too short".format(*TOKEN_OPTION)),
}


@pytest.mark.parametrize("case", BEFORE)
def test_problems_that_need_no_node_are_found_without_one(case: str) -> None:
    change, words = BEFORE[case]
    (sentence,) = check.problems_before(options_of(**change), pool_of(**change), "https://api.qarnot.com")
    assert words in sentence
    assert "password" not in sentence
    assert check.problems_before(options_of(), pool_of(), "https://api.qarnot.com") == []
    local = options_of(api_url="http://127.0.0.1:1/execution/")
    assert check.problems_before(local, pool_of(), "http://127.0.0.1:8600") == []


def spec_of(name: str, **given: Any) -> Any:
    return check.probe_task(options_of(**given), pool_of(), name, "an-id", TOKEN)


def test_a_connection_without_a_namespace_is_named(
    qarnot: LocalQarnot, client: QarnotClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", qarnot.airflow_connection())
    settings = QarnotHook().settings
    pool = pool_of(profile="docker-batch")
    sentences = check.check(client, settings, options_of(profile="docker-batch"), pool, print)
    assert any("needs an explicit namespace" in sentence for sentence in sentences)


def test_the_probe_is_like_a_task_of_the_executor_and_hides_its_token() -> None:
    spec = spec_of("check")
    payload = node.unpack(dict(spec.constants))
    assert json.loads(payload["workload"]) == {"id": "an-id", "token": TOKEN}
    body = spec.to_json()
    assert (body["profile"], body["shortname"]) == ("docker-network", "check")
    shown = [one for one in body["constants"] if not one["key"].startswith("QARNOT_SECRET__")]
    assert TOKEN not in json.dumps(shown)


def names(client: QarnotClient) -> list[str]:
    return [str(task.shortname) for task in client.tasks.list()]


def test_an_image_without_the_provider_is_named_and_nothing_is_left(client: QarnotClient) -> None:
    """The Python of nodes in tests has no packages."""
    (sentence,) = check.run(client, spec_of("check-bare"))
    assert sentence.startswith("The image lacks airflow-qarnot-pool. Build one with the Dockerfile of")
    assert names(client) == []


def test_a_node_that_never_comes_is_named_and_nothing_is_left(
    qarnot: LocalQarnot, client: QarnotClient
) -> None:
    qarnot.withhold_nodes(True)
    try:
        (sentence,) = check.run(client, spec_of("check-waiting"), seconds=0.2)
    finally:
        qarnot.withhold_nodes(False)
    assert sentence.startswith("No node has run the task within 0 s, it is ")
    assert names(client) == []


def test_a_refused_task_is_named(qarnot: LocalQarnot, client: QarnotClient) -> None:
    qarnot.faults([{"kind": "status", "method": "POST", "path": "^/tasks$", "status": 403}])
    (sentence,) = check.run(client, spec_of("check-refused"))
    assert "Qarnot refuses the task of the check: " in sentence


def test_nothing_is_left_when_the_check_is_interrupted(
    client: QarnotClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        assert names(client) == ["check-interrupted"]
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "_wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check.run(client, spec_of("check-interrupted"))
    assert names(client) == []


def test_no_help_has_brackets_that_airflow_takes_for_markup() -> None:
    from airflow.cli.cli_config import ActionCommand

    from airflow_qarnot_pool.cli import get_cli_commands

    commands = list(get_cli_commands())
    for command in commands:
        if isinstance(command, ActionCommand):
            texts = [command.help, *(arg.kwargs.get("help", "") for arg in command.args)]
            assert "[" not in " ".join(texts)
        else:
            commands += command.subcommands
