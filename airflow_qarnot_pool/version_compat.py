"""Airflow's private surfaces, and names that moved between Airflow 3.1 and 3.4.

Apart from the models and the authentication that a plugin of the api-server and a command need, no other module of
this package uses a private part of Airflow. Each function here is one of them. Its docstring says in which versions it
is there, and what breaks without it.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any
from uuid import UUID

from airflow import __version__ as airflow_version

try:
    from airflow.sdk.exceptions import (
        AirflowException,
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSensorTimeout,
        AirflowSkipException,
        TaskDeferralError,
        TaskDeferralTimeout,
        TaskDeferred,
    )
except ImportError:  # In 3.1 airflow.sdk.exceptions lacks most of them.
    from airflow.exceptions import (  # type: ignore[attr-defined,no-redef]
        AirflowException,
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSensorTimeout,
        AirflowSkipException,
        TaskDeferralError,
        TaskDeferralTimeout,
        TaskDeferred,
    )

if TYPE_CHECKING:
    from airflow.sdk.bases.xcom import BaseXCom
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

#: The ``next_method`` of a deferred task whose trigger Airflow has failed. A sensor then checks once more.
TRIGGER_FAIL_REPR = "__fail__"
AIRFLOW_VERSION = tuple(int(part) for part in airflow_version.split(".")[:2])
#: From 3.3 the triggerer calls ``BaseTrigger.on_kill`` when a user marks or clears a deferred task.
TRIGGERS_HAVE_ON_KILL = AIRFLOW_VERSION >= (3, 3)
#: From 3.3 assets have a state store, which event triggers can read and write.
HAS_ASSET_STATE_STORE = AIRFLOW_VERSION >= (3, 3)
#: From 3.2.2 on the scheduler commits an id of the executor together with the state ``queued``. Without it the Qarnot
#: task of a queued task is searched by its tag after a crash of the scheduler.
COMMITS_EXECUTOR_IDS = tuple(int(part) for part in re.findall(r"\d+", airflow_version)[:3]) >= (3, 2, 2)

#: The process for which :func:`stats` has checked that Airflow's stats are set up.
_stats_checked_in = 0


def runtime_task_instance() -> type[RuntimeTaskInstance]:
    """Return the class of the task instance in a task process.

    3.1 to 3.3. Its static methods also return the states of task instances and DAG runs, which no public interface of a
    worker or triggerer does. Without it the reaper and the quota cleanup keep every object, and a kill after a
    deferral ends nothing.
    """
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    return RuntimeTaskInstance


def read_connections_from_the_database() -> None:
    """Let this process find connections in Airflow's database, after the environment and the secrets backend.

    3.2 to 3.4, as ``airflow connections get`` does. Without it a command of this package finds only connections of the
    environment and of a secrets backend.
    """
    os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"


def dag_in_the_database(dag_id: str) -> Any:
    """Return the newest version of a DAG from Airflow's database, or None if it is not there.

    3.1 to 3.4. Without it a command and the Pools page do not know which tasks of a DAG are upstream of others, and the
    replay of a run counts all ends.

    :raises SQLAlchemyError: the database cannot be read.
    """
    from airflow.models.serialized_dag import SerializedDagModel

    return SerializedDagModel.get_dag(dag_id)


def database_xcom() -> type[BaseXCom]:
    """Return the XCom class that stores values in Airflow's database, around a configured XCom backend.

    3.1 to 3.3. ``airflow.sdk.XCom`` is the configured backend instead. Without it every link and checkpoint would be
    an object of that backend.
    """
    from airflow.sdk.bases.xcom import BaseXCom

    return BaseXCom


def context_keys() -> Collection[str]:
    """Return the names in the context of a task that is created here. In a loop of 3.4 they include ``loop``.

    3.1 to 3.4. Without it ``@task.qarnot`` cannot refuse functions that expect context variables on a node.
    """
    try:
        from airflow.sdk.bases.decorator import _context_keys_for_task_group  # type: ignore[attr-defined]
    except ImportError:  # Before 3.4 there are no loops.
        from airflow.sdk.definitions.context import KNOWN_CONTEXT_KEYS

        return KNOWN_CONTEXT_KEYS
    keys: Collection[str] = _context_keys_for_task_group(current_dag_and_group()[1])
    return keys


def operator_metaclass() -> Any:
    """Return the class of operator classes.

    3.1 to 3.3. Without it no operator of this package can be defined, because ours checks what Airflow's calls.
    """
    from airflow.sdk.bases.operator import BaseOperatorMeta

    return BaseOperatorMeta


def partial_operator_class() -> Any:
    """Return the class of the result of ``partial()`` of an operator.

    3.1 to 3.3. Without it a misspelt parameter of ``expand()`` gets Airflow's error, which suggests no name.
    """
    from airflow.sdk.definitions.mappedoperator import OperatorPartial

    return OperatorPartial


def current_dag_and_group(dag: Any = None) -> tuple[Any, Any]:
    """Return the DAG and the task group of the ``with`` around the caller, or None for each that there is not.

    3.1 to 3.3. Without it the errors of a DAG do not name the DAG, and no task by its whole id.
    """
    from airflow.sdk.definitions._internal.contextmanager import DagContext, TaskGroupContext

    dag = dag or DagContext.get_current()
    return dag, TaskGroupContext.get_current(dag) if dag is not None else None


def task_decorator_class() -> Any:
    """Return the class of a function that a task decorator has decorated.

    3.1 to 3.3. Without it the arguments of mapped calls of ``@task.qarnot`` are checked only when they run.
    """
    from airflow.sdk.bases.decorator import _TaskDecorator

    return _TaskDecorator


def log_channel(log: Any) -> int | None:
    """Return the file descriptor to which *log* writes, or None if it writes to no file.

    3.1 to 3.3, for the structlog logger of a trigger. Without it a trigger fires without waiting until its log lines
    have been read, and lines that were still in the socket can be missing from the log.
    """
    try:
        descriptor: int = log.bind()._logger._file.fileno()
    except (AttributeError, OSError, ValueError):
        return None
    return descriptor


def api_security() -> Any:
    """Return the module by which Airflow's API authenticates and authorizes its users.

    3.1 to 3.3: ``get_user``, ``requires_access_connection`` and ``requires_access_dag``. Without it the Pools page
    cannot be served. Imports FastAPI, so only the api-server may call this.
    """
    from airflow.api_fastapi.core_api import security

    return security


def bucket_path_parser(protocol: str) -> Any:
    """Return a parser of ``protocol://bucket/key`` that takes the bucket for the root, as for S3.

    universal_pathlib 0.3, which has this for its built-in protocols only. Without it ``parent`` and ``parts`` of a
    path are wrong at the root of a bucket.
    """
    from upath._flavour import AnyProtocolFileSystemFlavour, WrappedFileSystemFlavour

    members: dict[str, Any] = {"protocol": (protocol,), "root_marker": ""}
    flavour = type("BucketFlavour", (AnyProtocolFileSystemFlavour,), members)
    return WrappedFileSystemFlavour(flavour, netloc_is_anchor=True, supports_empty_parts=True)


def stats() -> Any:
    """Return Airflow's metrics, an object with ``incr``, ``gauge`` and ``timing``.

    From 3.2 each distribution of Airflow has its stats, and a process sets up only those that it uses. A triggerer does
    not set up those of ``airflow.sdk``, so this does it. Without it no metric is sent from a triggerer.
    """
    global _stats_checked_in
    try:
        from airflow.sdk.observability.stats import Stats
    except ImportError:  # 3.1, which sets it up on the first use.
        from airflow.stats import Stats

        return Stats
    if _stats_checked_in != os.getpid():
        _stats_checked_in = os.getpid()
        _set_up(Stats)
    return Stats


def _set_up(stats: Any) -> None:
    from airflow.configuration import conf
    from airflow.sdk.observability.metrics.stats_utils import get_stats_factory

    module: Any = sys.modules[stats.__module__]
    if hasattr(module, "_factory"):
        if module._factory is None:
            legacy_names = conf.getboolean("metrics", "legacy_names_on", fallback=True)
            stats.initialize(factory=get_stats_factory(), export_legacy_names=legacy_names)
    elif getattr(type.__getattribute__(stats, "factory"), "__name__", "NoStatsLogger") == "NoStatsLogger":
        # In 3.2 a metric that is sent before the stats are set up silences them for the rest of the process.
        factory: Any = get_stats_factory
        stats.initialize(factory=factory(stats))


def asset_state_accessors(trigger: Any) -> list[Any]:
    """Return the accessor of the state store of each asset that an event trigger reports to.

    From 3.3. The public interface needs the assets, which a trigger does not know. Without it a watcher with several
    assets reports again after a restart what it has reported.
    """
    accessors = trigger.asset_state_store
    return [] if accessors is None else [*accessors._by_name.values(), *accessors._by_uri.values()]


def session_of_thread() -> Any:
    """Return the database session of this thread, in which Airflow stores the event of a trigger, or None.

    3.1 to 3.3: ``provide_session`` takes it from a registry by thread. Without it a watcher stores its watermark a
    minute after the event, and events before a kill come twice. Only processes with access to the database may call it.
    """
    from airflow import settings

    session: Any = settings.Session
    return session() if hasattr(session, "registry") and session.registry.has() else None


def instance_ids(ids: Iterable[UUID | str]) -> list[Any]:
    """Return ids of task instances as the type of their column in Airflow's database, for ``in_()`` and ``==``.

    A text in 3.1, a UUID from 3.2 on. The other type finds no row, or is refused by PostgreSQL. *ids* must be valid.
    """
    from airflow.models.taskinstance import TaskInstance

    as_uuid = getattr(TaskInstance.id.type, "as_uuid", False)
    return [UUID(str(each)) if as_uuid else str(each) for each in ids]


def earlier_tries(ids: Iterable[UUID | str]) -> Any:
    """Return a query for the ids and states of those of *ids* that were earlier tries of task instances.

    Rows of a table of their own until 3.3, and of the table of task instances from 3.4 on. Without it the Pools page
    counts Qarnot tasks of earlier tries as unknown, and nothing ends those that a scheduler has left. Only processes
    with access to the database may run it. *ids* must be valid.
    """
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import select

    wanted = instance_ids(ids)
    try:
        models: Any = importlib.import_module("airflow.models.taskinstancehistory")
    except ImportError:  # 3.4
        instances: Any = TaskInstance
        archived = instances.working_set.is_(None)
        query = select(instances.id, instances.state).where(instances.id.in_(wanted), archived)
        return query.execution_options(include_all_attempts=True)
    history = models.TaskInstanceHistory
    return select(history.task_instance_id, history.state).where(history.task_instance_id.in_(wanted))


def queued_tasks(executor: Any) -> dict[Any, Any]:
    """Return the tasks that wait in an executor, by key. Renamed in 3.4. Without it none would ever leave it."""
    if hasattr(executor, "executor_queues"):
        workloads: Any = importlib.import_module("airflow.executors.workloads")
        tasks: dict[Any, Any] = executor.executor_queues[workloads.WorkloadType.EXECUTE_TASK]
        return tasks
    waiting: dict[Any, Any] = executor.queued_tasks
    return waiting


def hook_lineage_collector() -> Any:
    """Return the collector of the files that hooks and object storage paths of this process read and write.

    Moved in 3.2. It collects nothing unless a plugin reads it, such as that of OpenLineage. Without it, files that
    Airflow tasks transfer are missing in lineage.
    """
    try:
        from airflow.sdk.lineage import get_hook_lineage_collector
    except ImportError:  # 3.1
        collectors: Any = importlib.import_module("airflow.lineage.hook")
        return collectors.get_hook_lineage_collector()
    return get_hook_lineage_collector()


def core_timetable(timetable: Any) -> Any:
    """Return the timetable of a parsed DAG as the class of Airflow's scheduler, which computes runs.

    From 3.2 on ``airflow.sdk`` has classes that only describe a schedule. Without it no task knows the next run of its
    DAG, so shared pools do not linger, and no pool can be opened ahead.
    """
    return (
        timetable if hasattr(timetable, "next_dagrun_info") else decode_timetable(encode_timetable(timetable))
    )


def encode_timetable(timetable: Any) -> dict[str, Any]:
    """Return a timetable as Airflow stores it. Moved in 3.2. Needed by :func:`core_timetable`, and around another."""
    encoded: dict[str, Any] = _timetable_codec("encoders").encode_timetable(timetable)
    return encoded


def decode_timetable(encoded: dict[str, Any]) -> Any:
    """Read the result of :func:`encode_timetable`."""
    return _timetable_codec("decoders").decode_timetable(encoded)


def _timetable_codec(name: str) -> Any:
    try:
        return importlib.import_module(f"airflow.serialization.{name}")
    except ModuleNotFoundError:  # 3.1
        return importlib.import_module("airflow.serialization.serialized_objects")


def timetable_base() -> Any:
    """Return the module with ``DataInterval`` and ``TimeRestriction``, which is public but costs an import.

    3.1 to 3.4.
    """
    return importlib.import_module("airflow.timetables.base")


def dag_as_stored(dag_id: str) -> Any:
    """Return what Airflow has stored about a DAG, with ``is_paused`` and ``next_dagrun``. Only a task may call this.

    From 3.2. None if Airflow is older. Without it a pool is opened ahead of a DAG that is paused, and lingers for it.

    :raises LookupError: there is no such DAG.
    """
    task_instances: Any = runtime_task_instance()
    if not hasattr(task_instances, "get_dag"):
        return None
    try:
        return task_instances.get_dag(dag_id)
    except Exception as error:
        response = getattr(error, "error", None)
        detail = getattr(response, "detail", None) or {}
        if detail.get("status_code") == 404:
            raise LookupError(f"There is no DAG {dag_id!r}") from error
        raise


def redact(text: str) -> str:
    """Return *text* with every secret masked that Airflow knows in this process.

    3.1 to 3.3. Without it a secret that a template has rendered into a command would appear in lineage.
    """
    from airflow.sdk._shared.secrets_masker import redact

    return str(redact(text))


def mask_new_secrets_in_openlineage() -> None:
    """Let the OpenLineage provider mask the secrets that became known after it was loaded, too.

    Its versions up to 2.20 copy the expression that Airflow's masker has when a task process starts. Without this a
    password of a connection that a template renders would appear in events with ``include_full_task_info``.
    """
    from airflow.providers.openlineage.plugins.listener import get_openlineage_listener
    from airflow.sdk._shared.secrets_masker import _secrets_masker

    adapter: Any = getattr(get_openlineage_listener(), "adapter", None)
    if (redacter := getattr(adapter, "_redacter", None)) is not None:
        redacter.replacer = _secrets_masker().replacer


def is_supervisor_channel_free() -> bool:
    """Return whether this process has no request to Airflow under way, so that a signal handler can send one.

    From 3.2 on a lock guards the channel to the supervisor. 3.1 has none, and there a second request would take the
    response to the first: then this returns False. Without it a signal handler could wait for a lock of the code it
    interrupts.
    """
    runner = sys.modules.get("airflow.sdk.execution_time.task_runner")
    channel = getattr(runner, "SUPERVISOR_COMMS", None)
    if channel is None or not hasattr(channel, "socket"):
        return True  # In dag.test() the supervisor is in this process.
    lock = getattr(channel, "_thread_lock", None)
    if lock is None or not lock.acquire(blocking=False):
        return False
    lock.release()
    return True


def bundle_version(version: str) -> Any:
    """Return what a DAG bundle returns for its version: an object from 3.3 on, and a text before.

    Without it Airflow 3.3 warns at each parse that texts are deprecated.
    """
    from airflow.dag_processing.bundles import base

    kind: Any = getattr(base, "BundleVersion", None)
    return version if kind is None else kind(version=version)


def default_logging_config() -> dict[str, Any]:
    """Return Airflow's configuration of loggers, without its choice of a remote log.

    3.1 to 3.3. The module refuses a remote log whose scheme it does not know. Without this function no provider can
    bring a scheme of its own, because Airflow does not start with one.
    """
    variable = "AIRFLOW__LOGGING__REMOTE_LOGGING"
    given = os.environ.get(variable)
    os.environ[variable] = "False"
    try:
        from airflow.config_templates.airflow_local_settings import DEFAULT_LOGGING_CONFIG
    finally:
        if given is None:
            del os.environ[variable]
        else:
            os.environ[variable] = given
    return DEFAULT_LOGGING_CONFIG


__all__ = [
    "AIRFLOW_VERSION",
    "HAS_ASSET_STATE_STORE",
    "TRIGGERS_HAVE_ON_KILL",
    "AirflowException",
    "AirflowFailException",
    "AirflowNotFoundException",
    "AirflowSensorTimeout",
    "AirflowSkipException",
    "TaskDeferralError",
    "TaskDeferralTimeout",
    "TaskDeferred",
    "api_security",
    "asset_state_accessors",
    "bucket_path_parser",
    "bundle_version",
    "context_keys",
    "core_timetable",
    "current_dag_and_group",
    "dag_as_stored",
    "database_xcom",
    "decode_timetable",
    "default_logging_config",
    "earlier_tries",
    "encode_timetable",
    "hook_lineage_collector",
    "is_supervisor_channel_free",
    "log_channel",
    "mask_new_secrets_in_openlineage",
    "operator_metaclass",
    "partial_operator_class",
    "queued_tasks",
    "read_connections_from_the_database",
    "redact",
    "runtime_task_instance",
    "session_of_thread",
    "stats",
    "timetable_base",
]
