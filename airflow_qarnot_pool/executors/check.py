"""``airflow qarnot executor check``: run one small Qarnot task as the executor does, and report problems."""

from __future__ import annotations

import json
import shlex
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.errors import QarnotError, QarnotNotFoundError, shortened
from airflow_qarnot_pool.executors import node
from airflow_qarnot_pool.executors.bundle_archives import (
    BUNDLES,
    bundle_resources,
    bundles_of,
    holds_logs,
    is_qarnot_bundle,
)
from airflow_qarnot_pool.executors.environment import archive_of, prepare, with_environment
from airflow_qarnot_pool.executors.image import Installed, differences, installed
from airflow_qarnot_pool.executors.node_check import MARK, TIMEOUT
from airflow_qarnot_pool.executors.pool import missing_namespace
from airflow_qarnot_pool.executors.workload_task import constants_of, lifetime, node_settings
from airflow_qarnot_pool.hooks.address import is_loopback

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Task
    from airflow_qarnot_pool.api.specs import ResourceBucket, TaskSpec
    from airflow_qarnot_pool.executors.options import ExecutorOptions, PoolOptions
    from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings

#: Setting of the nodes with the place of remote logs.
LOG_FOLDER = "AIRFLOW__LOGGING__REMOTE_BASE_LOG_FOLDER"
#: Maximum seconds of a check, without its clean-up.
MAX_SECONDS = 110.0
#: Maximum seconds of a request, because the check and its clean-up must end within two minutes.
_REQUEST = 8.0
_POLL_SECONDS = 1.0


def problems_before(options: ExecutorOptions, pool: PoolOptions, qarnot_url: str) -> list[str]:
    """Return a sentence for each problem that can be seen without a node."""
    found = []
    if "network" not in pool.profile:
        found.append(
            f"The profile {pool.profile} has no network, so its nodes cannot reach the api-server. Set "
            "[qarnot_executor] profile to docker-network, or to another one with network in its name."
        )
    # A local Qarnot uses no images.
    if not pool.image and not is_loopback(qarnot_url):
        found.append(
            "No image is set, and the one of Qarnot has no Airflow. Build one with the Dockerfile of "
            "`airflow qarnot executor image`, and name it in [qarnot_executor] image. Or set requirements there."
        )
    if is_loopback(options.api_url) and not is_loopback(qarnot_url):
        found.append(
            f"The api-server is at {_shown(options.api_url)}, which is this machine only. Set [qarnot_executor] "
            "execution_api_server_url to an address that nodes reach on the internet."
        )
    found += _log_problems(options.node_environment)
    if sentence := lifetime(options.token_seconds, options.boot_seconds, keeps_nodes=False):
        found.append(sentence)
    return found


def _log_problems(environment: Mapping[str, str]) -> list[str]:
    """Return a sentence for each bundle whose DAG files have the logs of tasks among them."""
    log_folder = environment.get(LOG_FOLDER)
    bundles = [bundle for bundle in bundles_of(environment.get(BUNDLES)) if is_qarnot_bundle(bundle)]
    return [
        f"The logs of tasks are stored among the files of the DAG bundle {bundle.get('name')}, where each of them "
        f"would be a new version, got {log_folder}. Set [logging] remote_base_log_folder to another bucket."
        for bundle in bundles
        if holds_logs(bundle["kwargs"]["bucket"], str(bundle["kwargs"].get("prefix", "")), log_folder)
    ]


def probe_task(
    options: ExecutorOptions,
    pool: PoolOptions,
    name: str,
    ti_id: str,
    token: str,
    environment_resource: ResourceBucket | None = None,
) -> TaskSpec:
    """Return the Qarnot task of a check: like one of the executor, but without a pool.

    :param environment_resource: brings the environment of the pool, if it has one.
    """
    from airflow_qarnot_pool.api.specs import TaskSpec

    like = pool.spec()
    environment = node_settings(options.node_environment, options.api_url)
    command = shlex.join([options.python, "-m", node.__name__, "check"])
    brought = [*like.resource_buckets, *bundle_resources(environment.get(BUNDLES))]
    if environment_resource is not None:
        brought.append(environment_resource)
        command = with_environment(command, str(archive_of([environment_resource])))
    return TaskSpec(
        name="Check of Airflow's executor",
        shortname=name,
        profile=like.profile,
        image=like.image,
        command=command,
        constants={
            **like.constants,
            **constants_of(json.dumps({"id": ti_id, "token": token}), environment),
        },
        hardware_constraints=like.hardware_constraints,
        scheduling_type=like.scheduling_type,
        resource_buckets=brought,
        max_time_queue=timedelta(seconds=MAX_SECONDS),
        # For a check that is killed.
        completion_ttl=timedelta(minutes=10),
    )


def run(client: QarnotClient, spec: TaskSpec, seconds: float = MAX_SECONDS) -> list[str]:
    """Run the Qarnot task of a check, and return a sentence for each problem. The Qarnot task is deleted in any case.

    :param seconds: maximum seconds until it has ended.
    """
    limited = client.limited(deadline=_REQUEST)
    deadline = time.monotonic() + seconds
    name = str(spec.shortname)
    try:
        try:
            limited.tasks.create(spec)
        except QarnotError as error:
            return [f"Qarnot refuses the task of the check: {error}"]
        task = _wait(limited, name, deadline)
        output = {stream: _output(limited, name, stream) for stream in ("stdout", "stderr")}
    finally:
        # Also after a creation whose response was lost.
        with suppress(QarnotNotFoundError):
            limited.tasks.delete(name)
    report = report_of(output["stdout"])
    if report is None:
        return [without_report(task, output["stderr"] or output["stdout"], seconds)]
    return problems_of(report, installed())


def _wait(client: QarnotClient, name: str, deadline: float) -> Task:
    """Return the Qarnot task when it has ended, or as it is at *deadline* (of ``time.monotonic``)."""
    while True:
        task = client.tasks.get(name)
        if states.is_terminal(task.state) or time.monotonic() > deadline:
            return task
        time.sleep(_POLL_SECONDS)


def _output(client: QarnotClient, name: str, stream: str) -> str:
    try:
        return str(getattr(client.tasks, stream)(name, 0))
    except QarnotError:
        return ""


def report_of(output: str) -> dict[str, Any] | None:
    """Return the report in an output, or None."""
    for line in reversed(output.splitlines()):
        if line.startswith(MARK):
            try:
                report = json.loads(line[len(MARK) :])
            except ValueError:
                return None
            return report if isinstance(report, dict) else None
    return None


def without_report(task: Task, output: str, seconds: float) -> str:
    """Return why there is no report."""
    if not states.is_terminal(task.state):
        return (
            f"No node has run the task within {seconds:.0f} s, it is {task.state}. A large image or a rare profile "
            "takes longer. Run the check again, and raise [scheduler] task_queued_timeout if it stays slow."
        )
    end = shortened(output.strip(), 500)
    if "No module named" in output and "airflow_qarnot_pool" in output:
        return (
            "The image lacks airflow-qarnot-pool. Build one with the Dockerfile of `airflow qarnot executor image`, "
            f"and name it in [qarnot_executor] image. Output: {end}"
        )
    reasons = "; ".join(str(error.message) for error in task.errors) or task.state
    return f"The node could not look at itself ({reasons}). Output: {end or 'none'}"


def problems_of(report: Mapping[str, Any], here: Installed) -> list[str]:
    """Return a sentence for each problem that a node has reported."""
    found = differences(here, _installed_of(report))
    found += _api_problems(report.get("health"), report.get("start"))
    found += _executor_problems(report.get("executors"))
    bundles = report.get("bundles")
    for name, problem in bundles.items() if isinstance(bundles, dict) else ():
        if problem:
            found.append(
                f"The DAG bundle {name} cannot be used on the node: {problem}. Use a bundle that nodes can fetch (git, "
                "or QarnotDagBundle), or put its files into the image. If they are in another folder there, set "
                "AIRFLOW__CORE__DAGS_FOLDER in [qarnot_executor] environment."
            )
    if report.get("remote_logging") is not True:
        found.append(
            "The node has no remote logging, so the log of a task is lost when its Qarnot task is deleted. Set "
            "[logging] remote_logging and remote_base_log_folder, for example to a bucket of Qarnot."
        )
    for command in report.get("leaks") or ():
        found.append(
            f"A process of the image ({str(command)[:100]}) has the token of the task in its environment, where code "
            "of the task can read it. Build the image without an entrypoint: ENTRYPOINT []."
        )
    return found


def _installed_of(report: Mapping[str, Any]) -> Installed:
    told = report.get("installed")
    told = told if isinstance(told, dict) else {}
    packages = told.get("packages")
    return Installed(python=str(told.get("python")), packages=packages if isinstance(packages, dict) else {})


def _api_problems(health: Any, start: Any) -> list[str]:
    """Return what keeps a node from the execution API.

    :param health: status of a request without a token, or its error.
    :param start: status of an attempt to start a task that does not exist. 404 is right.
    """
    for answer in (health, start):
        # A connection that is not made in time is another error.
        if isinstance(answer, dict) and str(answer.get("error")).startswith("TimeoutError"):
            return [
                f"The api-server has accepted a connection of the node and has not responded within {TIMEOUT:.0f} s. "
                "It is overloaded, or its address is that of another program. Run the check again when it is less busy."
            ]
    if isinstance(health, dict):
        return [
            f"The node does not reach the api-server ({health.get('error')}). Set [qarnot_executor] "
            "execution_api_server_url to an address that nodes reach, and open its port to them."
        ]
    if health != 200:
        return [
            f"The address of the api-server is no execution API: it answers {health}. Its path ends with /execution/."
        ]
    if start == 404:
        return []
    if start in (401, 403):
        return [
            f"The api-server refuses the token of a task ({start}). Give the scheduler and the api-server the same "
            "[api_auth] jwt_secret, and compare their clocks."
        ]
    detail = start.get("error") if isinstance(start, dict) else start
    return [f"The api-server does not understand the node ({detail}). Compare the Airflow versions of both."]


def _executor_problems(executors: Any) -> list[str]:
    if isinstance(executors, list) and any(str(name).endswith(".QarnotExecutor") for name in executors):
        return []
    detail = executors.get("error") if isinstance(executors, dict) else executors
    return [
        f"[core] executor of the node does not name QarnotExecutor, got {detail}. DAGs whose tasks name it cannot be "
        "loaded there. Set it as on the scheduler."
    ]


def _shown(url: str) -> str:
    """Return *url* without a login."""
    return urlsplit(url)._replace(netloc=urlsplit(url).netloc.rpartition("@")[2]).geturl()


def check(
    client: QarnotClient,
    settings: ConnectionSettings,
    options: ExecutorOptions,
    pool: PoolOptions,
    say: Callable[[str], None],
    seconds: float = MAX_SECONDS,
) -> list[str]:
    """Check this deployment, and return a sentence for each problem.

    :param settings: the connection, for the storage of an environment.
    :param say: gets a line about what happens.
    :param seconds: maximum seconds until the Qarnot task has ended.
    """
    from airflow.executors.base_executor import BaseExecutor
    from airflow.executors.workloads import ExecuteTask

    problems = problems_before(options, pool, client.url)
    if (error := missing_namespace(settings)) is not None:
        problems.append(str(error))
    if "network" not in pool.profile:
        return problems  # the node would report nothing else
    resource = None
    if pool.requirements is not None:
        say("Looking for the environment of the nodes. One that is missing is made and uploaded first")
        resource = prepare(settings, pool.requirements)
    ti_id = str(uuid.uuid4())
    token = ExecuteTask.generate_token(ti_id, BaseExecutor(parallelism=1).jwt_generator)
    say(f"Running one task with profile {pool.profile}, for at most {seconds:.0f} s")
    task = probe_task(options, pool, f"airflow-check-{ti_id}", ti_id, token, resource)
    return problems + run(client, task, seconds)


__all__ = ["check"]
