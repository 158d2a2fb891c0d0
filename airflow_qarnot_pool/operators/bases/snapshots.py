"""Take snapshots of a Qarnot task, and let a later one of the same lineage start from the last of them.

Qarnot's ``retry`` and ``resume`` create a task for the failed or cancelled instances, and know nothing of snapshots.
The files of a snapshot therefore are resources of the Qarnot task. Its command moves them to their place
(:mod:`airflow_qarnot_pool.api.commands`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.commands import SNAPSHOT_FOLDER
from airflow_qarnot_pool.api.errors import (
    QarnotNotFoundError,
    QarnotProtocolError,
    QarnotRefusedError,
    QarnotUnavailableError,
)
from airflow_qarnot_pool.ownership.identity import is_ending

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Pool, Task
    from airflow_qarnot_pool.api.specs import TaskSpec
    from airflow_qarnot_pool.api.tasks import TaskResource

#: Prefix of the keys of snapshots, if ``snapshot_prefix`` names no other.
DEFAULT_PREFIX = "airflow-snapshots"


def with_place(spec: TaskSpec, lineage: str) -> TaskSpec:
    """Return *spec* with a bucket for its snapshots, and a prefix that no other lineage has.

    A clear starts another lineage, and so from nothing.
    """
    base = (spec.snapshot_prefix or DEFAULT_PREFIX).rstrip("/")
    placed: TaskSpec = spec.with_values(
        snapshot_bucket=spec.snapshot_bucket or spec.result_bucket,
        snapshot_prefix=f"{base}/{lineage}/{SNAPSHOT_FOLDER}/",
    )
    return placed


def resuming(spec: TaskSpec) -> TaskSpec:
    """Return *spec*, which has a place, with the files of its last snapshot as resources."""
    from airflow_qarnot_pool.api.specs import ResourceBucket

    prefix = spec.snapshot_prefix or ""
    source = ResourceBucket(
        bucket=spec.snapshot_bucket or "",
        prefix=prefix,
        strip_prefix=prefix.removesuffix(f"{SNAPSHOT_FOLDER}/"),
    )
    made: TaskSpec = spec.with_values(resource_buckets=(*spec.resource_buckets, source))
    return made


def start(tasks: TaskResource, uuid: str, existing: Pool | Task | None, spec: TaskSpec, log: Any) -> None:
    """Let Qarnot take the snapshots of a Qarnot task, unless it does already or the task has ended.

    :param existing: the task, if it existed before this try.
    :raises QarnotRefusedError: Qarnot refused them, and the task has not ended.
    """
    interval = spec.snapshot_every
    assert interval is not None
    if existing is not None and (
        is_ending(existing) or getattr(existing, "snapshot_interval", None) == interval
    ):
        return
    try:
        tasks.snapshot_every(
            uuid,
            interval,
            whitelist=spec.snapshot_whitelist,
            blacklist=spec.snapshot_blacklist,
            bucket=spec.snapshot_bucket,
            prefix=spec.snapshot_prefix,
        )
    except QarnotNotFoundError:
        return  # the wait says what became of it
    except QarnotRefusedError as error:
        if (task := tasks.find(uuid)) is not None and not is_ending(task):
            raise QarnotRefusedError(
                f"snapshot_every is refused by Qarnot, got {interval}: {error}",
                status=error.status,
                server_message=error.server_message,
                kind="task",
                ref=uuid,
                remedy="Correct it, or leave it out.",
            ) from None
        return
    except (QarnotUnavailableError, QarnotProtocolError) as error:
        log.warning(
            "Qarnot takes no snapshots of Qarnot task %s, and a retry starts without: %s", uuid, error
        )
        return
    place = f"{spec.snapshot_bucket}/{spec.snapshot_prefix}"
    log.info("Snapshots of Qarnot task %s go to %s every %g s", uuid, place, interval.total_seconds())
