"""Events that Airflow's OpenLineage provider writes to a file in a run of a DAG, deferred and on the worker."""

from __future__ import annotations

import importlib
import json
import re
import runpy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings
from airflow_qarnot_pool.hooks.storage import s3_client
from airflow_qarnot_pool.local import LocalQarnot
from tests.dags.test_examples import LOCAL_BUNDLE, asset_events
from tests.lineage.events import check_event

pytestmark = pytest.mark.usefixtures("airflow_db")

#: With it, older ones (2.11 and 2.17 were tried) send no event of any task, for an endless recursion.
HAS_FULL_TASK_INFO = Version(version("apache-airflow-providers-openlineage")) >= Version("2.20")
#: Each is a secret in another place.
SECRETS = {
    name: f"hidden-{name}-value"
    for name in ("constants", "task-spec", "commands", "pool-spec", "registry", "vault", "rendered")
}
DAG_FILE = """
from airflow.sdk import DAG, Asset, AssetAlias, ObjectStoragePath, task
from airflow_qarnot_pool.hooks.storage import QarnotStorageHook
from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator

SECRETS = {secrets}


def secret(name):
    return {{"QARNOT_SECRET__TOKEN": SECRETS[name], "OPEN": "shown"}}


def make(dag_id, deferrable):
    with DAG(dag_id, schedule=None, default_args={{"retries": 0}}, tags=["lineage"]) as dag:
        pool = QarnotCreatePoolOperator(
            task_id="create", instance_count=2, resource_buckets=["lineage-in"], deferrable=deferrable,
            pool_spec={{"constants": secret("pool-spec")}},
        )
        given = {{"qarnot_pool": pool.output, "deferrable": deferrable}}
        run = QarnotRunTaskOperator(
            task_id="run",
            image="registry.example/tools/python:3.12",
            command="sh -c 'echo 1 > a.txt; echo 2 > b.txt; echo {{{{ conn.vault.password }}}} $OPEN'",
            constants={{**secret("constants"), "QARNOT_SECRET__VAULT": "{{{{ conn.vault.password }}}}"}},
            registry_conn_id="registry",
            resource_buckets=[{{"bucket": "lineage-in", "prefix": "scenes/"}}],
            result_bucket="lineage-out",
            task_spec={{"results_prefix": "frames/{{{{ dag.dag_id }}}}/", "name": "{{{{ conn.vault.password }}}}"}},
            outlets=[Asset("qarnot://lineage-out/frames"), AssetAlias("frames"), Asset("file://host/elsewhere/x")],
            **given,
        )
        many = QarnotRunTasksOperator(
            task_id="many",
            commands=[{{"command": "true", "constants": secret("commands")}}, "true"],
            task_spec={{"constants": secret("task-spec")}},
            **given,
        )

        @task.qarnot(payload_bucket="lineage-payload", **given)
        def double(number):
            return 2 * number

        @task(trigger_rule="all_done")
        def transfer():
            storage = QarnotStorageHook()
            storage.upload("lineage-out", b"1", "by-hook.txt")
            storage.read("lineage-in", "scenes/a.txt")
            (ObjectStoragePath("qarnot://qarnot_default@lineage-out") / "by path.txt").write_text("2")

        fails = QarnotRunTaskOperator(
            task_id="fails", command="sh -c 'exit 3'", constants={{"QARNOT_SECRET__X": SECRETS["rendered"]}}, **given
        )
        close = QarnotClosePoolOperator(
            task_id="close", qarnot_pool=pool.output, deferrable=deferrable, wait_for_completion=True
        )
        pool >> run >> many >> double(21) >> fails >> close
        if not deferrable:
            # At the end, because all tasks of dag.test() have one collector of transfers.
            close >> transfer()
    return dag


dags = [make("lineage_deferred", True), make("lineage_direct", False)]

if __name__ == "__main__":
    from tests.execution_api import serve_the_newest_execution_api

    serve_the_newest_execution_api()
    for dag in dags:
        dag.test()
"""
TASKS = ("create", "run", "many", "double", "fails", "close")


class Events:
    """The events of both DAGs, and the text of the file."""

    def __init__(self, path: Path, token: str) -> None:
        self.text, self.token = path.read_text(), token
        self.all: list[dict[str, Any]] = [json.loads(line) for line in self.text.splitlines()]

    def of(self, mode: str, task: str) -> list[dict[str, Any]]:
        return [event for event in self.all if event["job"]["name"] == f"lineage_{mode}.{task}"]

    def end(self, mode: str, task: str) -> dict[str, Any]:
        """The last event of a task."""
        (event,) = [one for one in self.of(mode, task) if one["eventType"] != "START"]
        return event


def configured(qarnot: LocalQarnot, place: Path) -> tuple[Path, dict[str, str]]:
    """Return the file of the DAGs, and the environment in which Airflow writes their events to a file."""
    folder = place / "dags"
    folder.mkdir()
    (folder / "dag.py").write_text(DAG_FILE.format(secrets=SECRETS))
    vault = {"conn_type": "http", "host": "vault.example", "password": SECRETS["vault"]}
    registry = {
        "conn_type": "http",
        "host": "registry.example",
        "login": "u",
        "password": SECRETS["registry"],
    }
    bundles = [{"name": "lineage", "classpath": LOCAL_BUNDLE, "kwargs": {"path": str(folder)}}]
    transport = {"type": "file", "log_file_path": str(place / "events.jsonl"), "append": True}
    settings = ConnectionSettings(
        conn_id="q", url=qarnot.url, token=qarnot.token, storage_url=qarnot.storage_url
    )
    s3 = s3_client(settings)
    s3.create_bucket(Bucket="lineage-in")
    s3.put_object(Bucket="lineage-in", Key="scenes/a.txt", Body=b"a")
    return (
        folder / "dag.py",
        {
            "AIRFLOW_CONN_QARNOT_DEFAULT": qarnot.airflow_connection(namespace="lineage"),
            "AIRFLOW_CONN_VAULT": json.dumps(vault),
            "AIRFLOW_CONN_REGISTRY": json.dumps(registry),
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
            "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport),
            "AIRFLOW__OPENLINEAGE__INCLUDE_FULL_TASK_INFO": str(HAS_FULL_TASK_INFO),
            "AIRFLOW__QARNOT__OPENLINEAGE_PARENT": "True",
            "AIRFLOW__QARNOT__POLL_INTERVAL": "0.05",
            "AIRFLOW__QARNOT__MIN_POLL_INTERVAL": "0.05",
        },
    )


@contextmanager
def reading_transfers(patch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Collect the files that tasks transfer, as with a plugin that reads them. Yield the manager of listeners."""
    from airflow.providers.common.compat.sdk import HookLineageReader

    try:
        plugins: Any = importlib.import_module("airflow.sdk.plugins_manager")
    except ImportError:  # 3.1
        listener: Any = importlib.import_module("airflow.listeners.listener")
        plugins = importlib.import_module("airflow.plugins_manager")
        patch.setattr(plugins, "hook_lineage_reader_classes", [HookLineageReader])
        forget = partial(
            setattr, importlib.import_module("airflow.lineage.hook"), "_hook_lineage_collector", None
        )
    else:
        listener = importlib.import_module("airflow.sdk.listener")
        patch.setattr(plugins, "get_hook_lineage_readers_plugins", lambda: [HookLineageReader])
        forget = importlib.import_module("airflow.sdk.lineage").get_hook_lineage_collector.cache_clear
    forget()
    try:
        yield listener.get_listener_manager()
    finally:
        patch.undo()
        forget()


@pytest.fixture(scope="module")
def ran(
    qarnot: LocalQarnot, airflow_db: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Events, QarnotClient]]:
    """Run both DAGs in this process, which has imported Airflow, with the listener and the reader of a plugin."""
    from airflow.providers.openlineage.plugins.listener import get_openlineage_listener

    place = tmp_path_factory.mktemp("lineage")
    patch = pytest.MonkeyPatch()
    file, environment = configured(qarnot, place)
    for name, value in environment.items():
        patch.setenv(name, value)
    # Each event in a thread: a fork of this process, which holds all tests, is expensive. tests/stack has the forks.
    patch.setenv("AIRFLOW__OPENLINEAGE__EXECUTE_IN_THREAD", "True")
    listener = get_openlineage_listener()
    with reading_transfers(patch) as listeners:
        listeners.add_listener(listener)
        try:
            for dag in runpy.run_path(str(file))["dags"]:
                dag.test()
        finally:
            listeners.pm.unregister(listener)
    with QarnotClient(qarnot.url, qarnot.token, storage_url=qarnot.storage_url) as client:
        yield Events(place / "events.jsonl", qarnot.token), client


def facets(event: dict[str, Any], key: str) -> Any:
    return {**event["run"].get("facets", {}), **event["job"].get("facets", {})}.get(key)


def places(event: dict[str, Any], side: str) -> set[str]:
    return {f"{one['namespace']}|{one['name']}" for one in event[side]}


def test_every_task_has_events_that_follow_the_specification(ran: tuple[Events, QarnotClient]) -> None:
    events, _ = ran
    for event in events.all:
        check_event(event)
    for mode in ("deferred", "direct"):
        for task in TASKS:
            kinds = [event["eventType"] for event in events.of(mode, task)]
            # A task that resumes starts once more in the eyes of Airflow.
            assert kinds.count("START") >= 1, (mode, task)
            assert kinds[-1] == ("FAIL" if task == "fails" else "COMPLETE"), (mode, task, kinds)
    assert [event["eventType"] for event in events.of("deferred", "run")].count("START") == 2


def test_places_are_the_given_buckets_and_nothing_that_the_provider_adds(
    ran: tuple[Events, QarnotClient],
) -> None:
    events, _ = ran
    for mode in ("deferred", "direct"):
        ended = events.end(mode, "run")
        assert places(ended, "inputs") == {"qarnot://lineage-in|scenes"}
        assert places(ended, "outputs") == {
            f"qarnot://lineage-out|frames/lineage_{mode}",
            "qarnot://lineage-out|frames",
            "file://host|/elsewhere/x",
        }
        assert places(events.end(mode, "create"), "inputs") == {"qarnot://lineage-in|/"}
        for task in ("many", "double", "fails", "close"):
            assert not events.end(mode, task)["inputs"]
            assert not events.end(mode, task)["outputs"]


def test_files_that_a_worker_transfers_are_in_the_lineage(ran: tuple[Events, QarnotClient]) -> None:
    events, _ = ran
    ended = events.end("direct", "transfer")
    assert places(ended, "inputs") == {"qarnot://lineage-in|scenes/a.txt"}
    assert places(ended, "outputs") == {
        "qarnot://lineage-out|by-hook.txt",
        "qarnot://lineage-out|by path.txt",
    }


def test_an_end_names_qarnot_task_pool_decision_and_cost(ran: tuple[Events, QarnotClient]) -> None:
    events, client = ran
    for mode in ("deferred", "direct"):
        created = facets(events.end(mode, "create"), "qarnot_pool")
        assert created["decision"] == "fresh_submit"
        for task in ("run", "double", "fails"):
            ended = events.end(mode, task)
            found = client.tasks.get(facets(ended, "qarnot_task")["uuid"])
            assert found.state == ("Failure" if task == "fails" else "Success")
            assert found.state == facets(ended, "qarnot_task")["state"]
            assert facets(ended, "qarnot_task")["decision"] == "fresh_submit"
            assert facets(ended, "qarnot_pool")["uuid"] == found.pool == created["uuid"]
        many = facets(events.end(mode, "many"), "qarnot_task")
        assert (many["total"], many["succeeded"], many["failed"], len(many["uuids"])) == (2, 2, 0, 2)
        for task in ("run", "many", "double", "fails"):
            cost = facets(events.end(mode, task), "qarnot_cost")
            assert cost["scope"] == "execution"
            assert min(cost["euros"], cost["energy_wh"], cost["carbon_g"]) >= 0, (
                "a short command may cost nothing"
            )
        whole = facets(events.end(mode, "close"), "qarnot_cost")
        assert whole["scope"] == "pool"
        assert min(whole["euros"], whole["energy_wh"], whole["carbon_g"], whole["node_seconds"]) > 0


def test_a_job_shows_image_and_masked_command(ran: tuple[Events, QarnotClient]) -> None:
    events, _ = ran
    for event in events.of("deferred", "run"):
        shown = facets(event, "qarnot_container")
        assert shown["image"] == "registry.example/tools/python:3.12"
        assert shown["command"].endswith("echo *** $OPEN'")
    assert facets(events.end("direct", "many"), "qarnot_container")["items"] == 2
    assert facets(events.end("direct", "double"), "qarnot_container")["function"].endswith(".double")


@pytest.mark.parametrize("task", TASKS)
def test_events_are_the_same_deferred_and_on_the_worker(ran: tuple[Events, QarnotClient], task: str) -> None:
    events, _ = ran
    assert normal(events.end("deferred", task)) == normal(events.end("direct", task))
    starts = [[normal(one) for one in events.of(mode, task)[:-1]] for mode in ("deferred", "direct")]
    assert starts[0] == [starts[1][0]] * len(starts[0])


def normal(event: dict[str, Any]) -> Any:
    """An event without what differs from run to run: ids, times, and the numbers of its figures."""
    run, job = event["run"]["facets"], event["job"]["facets"]
    ours = {
        key: {
            name: type(value).__name__ if key != "qarnot_container" else value
            for name, value in facet.items()
        }
        for key, facet in {**run, **job}.items()
        if key.startswith("qarnot_")
    }
    text = json.dumps(
        {
            "type": event["eventType"],
            "inputs": sorted(places(event, "inputs")),
            "outputs": sorted(places(event, "outputs")),
            "facets": sorted({**run, **job}),
            "ours": ours,
        },
        sort_keys=True,
    )
    return re.sub(r"lineage_(deferred|direct)", "lineage", text)


def test_no_secret_is_in_any_event(ran: tuple[Events, QarnotClient]) -> None:
    events, _ = ran
    found = [name for name, secret in SECRETS.items() if secret in events.text]
    assert found == []
    assert events.token not in events.text
    assert ("shown" in events.text) is HAS_FULL_TASK_INFO, "the events have the parameters"


def test_nodes_get_the_ids_of_the_runs(ran: tuple[Events, QarnotClient]) -> None:
    events, client = ran
    for task in ("run", "many", "double"):
        ended = events.end("deferred", task)
        uuid = facets(ended, "qarnot_task").get("uuid") or facets(ended, "qarnot_task")["uuids"][0]
        constants = client.tasks.get(uuid).constants
        job, parent = ended["job"], facets(ended, "parent")
        assert constants["OPENLINEAGE_PARENT_ID"] == f"default/{job['name']}/{ended['run']['runId']}"
        assert constants["OPENLINEAGE_ROOT_PARENT_ID"] == f"default/lineage_deferred/{parent['run']['runId']}"


def test_events_of_assets_have_uuid_files_and_cost(ran: tuple[Events, QarnotClient]) -> None:
    events, _ = ran
    for mode in ("deferred", "direct"):
        extras = asset_events(f"lineage_{mode}")
        ended = events.end(mode, "run")
        own = f"qarnot://lineage-out/frames/lineage_{mode}"
        assert extras.keys() == {"qarnot://lineage-out/frames", own, "file://host/elsewhere/x"}
        assert extras["file://host/elsewhere/x"] == [{}]
        for uri in ("qarnot://lineage-out/frames", own):
            (extra,) = extras[uri]
            assert extra["uuid"] == facets(ended, "qarnot_task")["uuid"]
            assert extra["pool"] == facets(ended, "qarnot_pool")["uuid"]
            keys = [f"frames/lineage_{mode}/{name}.txt" for name in "ab"]
            assert extra["files"] == {"count": 2, "bytes": 4, "keys": keys}
            assert extra["cost"]["scope"] == "execution"
            assert extra["cost"]["euros"] is not None
