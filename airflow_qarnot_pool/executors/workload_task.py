"""The Qarnot task of a workload. Pure functions.

The workload has a token that lets its owner act as the task. So it goes to the node as a write-only constant, with the
settings of the deployment, which may have a login. :mod:`airflow_qarnot_pool.executors.node` reads both.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.fields import MAX_CONSTANT_LENGTH
from airflow_qarnot_pool.api.specs import TaskSpec
from airflow_qarnot_pool.executors import node
from airflow_qarnot_pool.executors.bundle_archives import BUNDLES, archive_of
from airflow_qarnot_pool.executors.environment import with_environment
from airflow_qarnot_pool.executors.running import EXECUTOR_TAG, KEPT_FOR, ROLE, Attempt
from airflow_qarnot_pool.ownership.identity import FORMAT_VERSION, LABEL_PREFIX, namespace_tag
from airflow_qarnot_pool.version_compat import AIRFLOW_VERSION

if TYPE_CHECKING:
    from airflow.executors.workloads import ExecuteTask

    from airflow_qarnot_pool.executors.options import ExecutorOptions, SupportsGet, TaskConfig

#: Options that a node must share with the scheduler. Without `executor`, a DAG whose tasks name one cannot be loaded.
FORWARDED = (
    ("core", "executor"),
    ("core", "dags_folder"),
    ("core", "default_timezone"),
    ("core", "xcom_backend"),
    ("common.io", "xcom_objectstorage_path"),
    ("common.io", "xcom_objectstorage_threshold"),
    ("common.io", "xcom_objectstorage_compression"),
    ("dag_processor", "dag_bundle_config_list"),
    ("logging", "remote_logging"),
    ("logging", "remote_base_log_folder"),
    ("logging", "remote_log_conn_id"),
    ("logging", "remote_task_handler_kwargs"),
    ("logging", "logging_config_class"),
    ("logging", "logging_level"),
)
#: Option with the seconds for which the token of a queued task is valid. Before Airflow 3.2 it is an ordinary token.
TOKEN_OPTION = (
    ("execution_api", "jwt_expiration_time")
    if AIRFLOW_VERSION < (3, 2)
    else ("scheduler", "task_queued_timeout")
)
#: Seconds from the start of a container until Airflow has announced the task, with some margin.
START_SECONDS = 60.0
#: Share of the lifetime of its token for which a task may wait for a slot. The rest is for the start of Airflow on the
#: node. It also lets the executor queue the task again before Airflow takes it for stuck, which it does twice at most.
QUEUE_SHARE = 0.9
#: Maximum characters of the name of a Qarnot task, which is for people.
_MAX_NAME = 200


def forwarded_settings(conf: SupportsGet) -> dict[str, str]:
    """Return the environment variables that give nodes the settings of this deployment. Their values may be secret."""
    settings = {}
    for section, key in FORWARDED:
        value = conf.get(section, key, fallback=None)
        if value:
            settings[f"AIRFLOW__{section.replace('.', '_').upper()}__{key.upper()}"] = value
    return settings


def task_of(workload: ExecuteTask, name: str, options: ExecutorOptions, config: TaskConfig) -> TaskSpec:
    """Return the Qarnot task that runs *workload*, without its pool, tags and labels.

    :param name: shortname of the Qarnot task.
    :raises QarnotInvalidSpecError: the workload or the settings of nodes are too large, or the image is invalid.
    """
    archive = archive_of(
        workload.bundle_info.name, workload.bundle_info.version, options.node_environment.get(BUNDLES)
    )
    return TaskSpec(
        name=f"{workload.ti.dag_id}.{workload.ti.task_id}"[:_MAX_NAME],
        shortname=name,
        image=config.image,
        command=shlex.join([options.python, "-m", node.__name__]),
        constants=constants_of(
            workload.model_dump_json(), node_settings(options.node_environment, options.api_url)
        ),
        # A task that starts later would be refused by Airflow, but its node would be paid.
        max_time_queue=timedelta(seconds=math.ceil(QUEUE_SHARE * options.token_seconds)),
        wait_for_pool_resources_synchronization=True if archive else None,
    )


def placed_spec(
    spec: TaskSpec, attempt: Attempt, namespace: str, pool: str, archive: str | None, seconds_left: float
) -> TaskSpec:
    """Return *spec* on a pool, with the tags and labels by which the other parts of the provider know it.

    :param pool: uuid of the pool.
    :param archive: the archive of the pool with Airflow; None if the image has it.
    :param seconds_left: seconds for which it may wait for a slot.
    """
    key = attempt.key
    labels = {
        "format": FORMAT_VERSION,
        "namespace": namespace,
        "dag_id": key.dag_id,
        "run_id": key.run_id,
        "task_id": key.task_id,
        "map_index": key.map_index,
        "try_number": key.try_number,
        "role": ROLE,
    }
    return replace(
        spec,
        shortname=attempt.name,
        command=with_environment(spec.command, archive) if archive and spec.command else spec.command,
        pool=pool,
        profile=None,  # that of the pool
        tags=(namespace_tag(namespace), EXECUTOR_TAG + namespace, attempt.tag, *spec.tags),
        labels={**spec.labels, **{LABEL_PREFIX + name: str(value) for name, value in labels.items()}},
        completion_ttl=KEPT_FOR,
        max_time_queue=spec.max_time_queue and timedelta(seconds=max(1, math.ceil(seconds_left))),
    )


def node_settings(environment: Mapping[str, str], api_url: str) -> dict[str, str]:
    """Return the environment variables of Airflow on a node."""
    return {"AIRFLOW__CORE__EXECUTION_API_SERVER_URL": api_url, **environment}


def constants_of(workload: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the constants that bring a workload, as JSON, and environment variables to a node.

    :raises QarnotInvalidSpecError: they are too large.
    """
    payload = {"workload": workload, "environment": dict(environment)}
    try:
        packed = node.pack(payload, MAX_CONSTANT_LENGTH)
    except ValueError as error:
        raise QarnotInvalidSpecError(
            f"environment of [qarnot_executor] is too large with the workload, got {error}",
            field="environment",
            remedy=f"A node gets at most {node.MAX_PAYLOAD:,} bytes. Set large options in the image instead.",
        ) from None
    return {node.SHARED: "/job", **packed}


def lifetime(token_seconds: float, boot_seconds: float, *, keeps_nodes: bool) -> str | None:
    """Return why the token of a workload may expire before a node has started it, or None.

    Airflow makes the token when it queues the task.

    :param token_seconds: seconds for which it is valid, the value of :data:`TOKEN_OPTION`.
    :param boot_seconds: time in which a node is expected to boot.
    :param keeps_nodes: whether the pool always has a node, and no task waits for a boot.
    """
    needed = START_SECONDS + (0 if keeps_nodes else boot_seconds)
    if token_seconds >= needed:
        return None
    cause = "start a task" if keeps_nodes else "boot and start a task"
    section, option = TOKEN_OPTION
    return (
        f"[{section}] {option} is too short for Qarnot, got {token_seconds:g} s. A node needs about "
        f"{needed:g} s to {cause}, and the token of a queued task is not valid for longer than that option. Set it to "
        f"{2 * needed:g} or more, which leaves time for the queue."
    )
