"""Records of deleted objects, kept on Qarnot as jobs without tasks.

Finished objects count against the account's quota until they are deleted. A record allows an object to be deleted
before its Airflow task has read how it ended. The record is written first, and every later lookup reads it. There are
five kinds of records:

* the *outcome* of Qarnot tasks, one or a few jobs for each owner (:class:`Outcomes`);
* the *name* of a closed shared pool, for tasks that know only its uuid;
* the pools that a DAG run with ``max_run_cost`` has opened, and their costs;
* the cost of a pool at the start of a day, for a limit on the cost of the day;
* the time of the last use of a pool, for the reaper.

Jobs have no labels, so the content is JSON in the job's name. The server ends a record after its time limit.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_qarnot_pool.api.errors import QarnotNameTakenError, QarnotNotFoundError
from airflow_qarnot_pool.api.fields import span
from airflow_qarnot_pool.api.limits import parse_json
from airflow_qarnot_pool.api.ranges import format_ranges, parse_ranges
from airflow_qarnot_pool.ownership.decisions import RemoteSnapshot, Usability
from airflow_qarnot_pool.ownership.identity import (
    LINEAGE_TAG,
    OWNER_TAG,
    RECORDABLE_LABEL,
    SPECS_LABEL,
    TRY_TAG,
    RunKey,
    TaskInstanceIdentity,
    digest,
    is_valid_size,
    label,
    namespace_tag,
)

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Job, Task

log = logging.getLogger(__name__)

OUTCOME_TAG = "airflow-outcome:"
SHARED_TAG = "airflow-shared:"
SPENT_TAG = "airflow-spent:"
START_TAG = "airflow-start:"
USED_TAG = "airflow-used:"
#: How long an outcome is kept: longer than the object itself would have been kept.
KEEP_OUTCOMES = timedelta(days=8)
#: How long the costs of a DAG run are kept, because a run may be cleared long after it has finished.
KEEP_COSTS = timedelta(days=60)
#: How long the cost at the start of a day is kept.
KEEP_START = timedelta(days=2)
#: Maximum length of the ranges in one piece of a record, because each piece must fit into a job's name.
_MAX_RANGES = 1500
#: Maximum lag of the recorded time of a pool's last use, because a busy pool would be recorded at every deletion.
USE_PRECISION = timedelta(minutes=1)


def _create(
    client: QarnotClient,
    namespace: str,
    tag: str,
    content: Any,
    *,
    lasts: timedelta = KEEP_OUTCOMES,
    shortname: str | None = None,
) -> str:
    name = content if isinstance(content, str) else _text(content)
    return client.jobs.create(
        name,
        shortname=shortname,
        tags=(namespace_tag(namespace), tag),
        max_wall_time=lasts,
        completion_ttl=timedelta(days=1),
    )


def _text(content: Any) -> str:
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False)


def _content(job: Job) -> Any:
    with suppress(ValueError):
        return parse_json(job.name or "")
    return None


def _delete(client: QarnotClient, jobs: Iterable[str]) -> None:
    for uuid in jobs:
        with suppress(QarnotNotFoundError):
            client.jobs.delete(uuid)


# --- outcomes


class IdenticalTasks(NamedTuple):
    """Recorded items of a fan-out that differ only in their number."""

    lineage: str
    #: Digest of the specs of the whole fan-out.
    specs: str
    retries: int
    generation: int
    state: str
    #: The try that submitted them; 0 for a success, which counts in every try.
    try_number: int = 0
    #: The pool, if they were cancelled. A shared pool may have been closed while they ran.
    pool: str | None = None


@dataclass
class Outcomes:
    """The outcomes of the deleted Qarnot tasks of one owner."""

    items: dict[IdenticalTasks, set[int]] = field(default_factory=dict)
    #: Qarnot tasks that are not items of a fan-out, by uuid, as the API's JSON with the fields that are still needed.
    singles: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: The Airflow task instance: dag_id, run_id, task_id, map_index.
    of: list[Any] | None = None

    def add(self, task: Task) -> bool:
        """Add the outcome of *task*. Return False if a record cannot hold it."""
        if label(task.labels, "item") is None:
            content = _reduced(task)
            if not is_valid_size(_text([{"task": content}])):
                return False
            self.singles[task.uuid] = content
        else:
            alike, index = _alike(task)
            self.items.setdefault(alike, set()).add(index)
        self.of = self.of or _instance(task.labels)
        return True

    def update(self, other: Outcomes) -> None:
        """Add everything in *other*."""
        for alike, items in other.items.items():
            self.items.setdefault(alike, set()).update(items)
        self.singles.update(other.singles)
        self.of = self.of or other.of

    def tasks(self) -> dict[str, Task]:
        """Return the recorded Qarnot tasks that are not items of a fan-out, by uuid."""
        from airflow_qarnot_pool.api.models import Task

        return {uuid: Task.from_json(content) for uuid, content in self.singles.items()}

    def snapshots(self, lineage: str, fingerprints: Sequence[str]) -> list[RemoteSnapshot]:
        """Return the recorded items of *lineage*, for a fan-out with these fingerprints."""
        specs = specs_digest(fingerprints)
        return [
            RemoteSnapshot(
                uuid="",
                usability=Usability.SUCCEEDED if alike.state == "Success" else Usability.DEAD,
                lineage=lineage,
                generation=alike.generation,
                # An item of another spec counts only for the generation.
                fingerprint=fingerprints[index] if alike.specs == specs else "?",
                retries=alike.retries,
                created="",
                try_number=alike.try_number,
                index=index,
                pool=alike.pool,
                cancelled=alike.state == "Cancelled",
            )
            for alike, items in self.items.items()
            if alike.lineage == lineage
            for index in sorted(items)
            if index < len(fingerprints)
        ]

    def names(self) -> list[str]:
        """Return the names of the jobs that store this."""
        pieces: list[Any] = [] if self.of is None else [{"of": self.of}]
        pieces += [{"task": content} for content in self.singles.values()]
        for alike, items in sorted(self.items.items(), key=str):
            pieces += [{"alike": list(alike), "items": part} for part in _parts(format_ranges(items))]
        names: list[str] = []
        inside: list[str] = []
        for text in map(_text, pieces):
            if not is_valid_size(f"[{text}]"):
                continue  # the ids are too long; they only allow the record to be deleted early
            if inside and not is_valid_size(f"[{','.join([*inside, text])}]"):
                names.append(f"[{','.join(inside)}]")
                inside = []
            inside.append(text)
        return [*names, f"[{','.join(inside)}]"] if inside else names

    @classmethod
    def of_jobs(cls, jobs: Iterable[Job]) -> Outcomes:
        """Read the names of *jobs*. Ignore content that cannot be parsed."""
        outcomes = cls()
        for job in jobs:
            content = _content(job)
            for piece in content if isinstance(content, list) else ():
                with suppress(TypeError, ValueError, KeyError, AttributeError):
                    outcomes._read(piece)
        return outcomes

    def _read(self, piece: Mapping[str, Any]) -> None:
        if "task" in piece:
            self.singles[piece["task"]["uuid"]] = piece["task"]
        elif "alike" in piece:
            self.items.setdefault(IdenticalTasks(*piece["alike"]), set()).update(parse_ranges(piece["items"]))
        else:
            self.of = self.of or list(piece["of"])


def _parts(ranges: str) -> Iterator[str]:
    """Split a text of ranges into parts of at most the maximum length."""
    part = ""
    for single in ranges.split(","):
        if part and len(part) + len(single) >= _MAX_RANGES:
            yield part
            part = ""
        part = f"{part},{single}" if part else single
    if part:
        yield part


def specs_digest(fingerprints: Sequence[str]) -> str:
    """Return the digest of a whole fan-out, which is the label ``SPECS_LABEL`` of its Qarnot tasks."""
    return digest(list(fingerprints))


def _alike(task: Task) -> tuple[IdenticalTasks, int]:
    snapshot = RemoteSnapshot.of(task)
    success = snapshot.usability is Usability.SUCCEEDED
    alike = IdenticalTasks(
        lineage=snapshot.lineage,
        specs=task.labels.get(SPECS_LABEL, ""),
        retries=snapshot.retries,
        generation=snapshot.generation,
        state="Success" if success else task.state,
        try_number=0 if success else snapshot.try_number,
        pool=snapshot.pool if snapshot.cancelled else None,
    )
    return alike, snapshot.index or 0


_LABELS = ("format", "namespace", "role", "run_started", "try_number", "retries", "generation", "spec")


def _reduced(task: Task) -> dict[str, Any]:
    """Return the fields of *task* that claims, retries and the operator's result read, as the API's JSON."""
    content = {
        "uuid": task.uuid,
        "name": task.name,
        "state": task.state,
        "poolUuid": task.pool,
        "tags": [tag for tag in task.tags if tag.startswith((LINEAGE_TAG, OWNER_TAG, TRY_TAG))],
        "labels": {
            **{f"airflow.{name}": value for name in _LABELS if (value := label(task.labels, name))},
            **({RECORDABLE_LABEL: task.labels[RECORDABLE_LABEL]} if RECORDABLE_LABEL in task.labels else {}),
        },
        "creationDate": _stamp(task.creation_date),
        "endDate": _stamp(task.end_date),
        "wallTime": span(task.wall_time) if task.wall_time else None,
        "status": {
            "executionTimeSec": task.executed_seconds,
            "succeededRange": format_ranges(task.succeeded_instances),
            "failedRange": format_ranges(task.failed_instances),
        },
        "resultBucket": task.result_bucket,
    }
    return {key: value for key, value in content.items() if value is not None}


def _stamp(when: datetime | None) -> str | None:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ") if when else None


#: Labels that identify a task instance.
_INSTANCE = ("dag_id", "run_id", "task_id", "map_index")


def _instance(labels: Mapping[str, str]) -> list[Any] | None:
    values = [label(labels, name) for name in _INSTANCE]
    return None if None in values else values


def outcomes(client: QarnotClient, owner: str) -> Outcomes:
    """Return the outcomes of the deleted Qarnot tasks of *owner*.

    Search for the Qarnot tasks first. A task that is deleted between the two requests is then found in its record.
    """
    return Outcomes.of_jobs(client.jobs.list(tags=[OUTCOME_TAG + owner]))


def recorded_tasks(client: QarnotClient, identity: TaskInstanceIdentity) -> dict[str, Task]:
    """Return the recorded Qarnot tasks of the owner of *identity* that are not items of a fan-out, by uuid."""
    return outcomes(client, identity.owner).tasks()


def write_outcomes(client: QarnotClient, namespace: str, owner: str, tasks: Iterable[Task]) -> list[Task]:
    """Record the outcomes of finished Qarnot tasks of *owner*, and return the tasks that may be deleted now.

    The new record includes all earlier ones. It is created before they are deleted, and it counts once a listing shows
    it. A reader therefore never misses an outcome.

    :raises QarnotError: nothing more is recorded, and no record is lost.
    """
    earlier = client.jobs.list(tags=[OUTCOME_TAG + owner])
    known, union = Outcomes.of_jobs(earlier), Outcomes.of_jobs(earlier)
    kept = [task for task in tasks if union.add(task)]
    if not kept:
        return []
    if (union.items, union.singles) == (known.items, known.singles):
        return kept
    created = [_create(client, namespace, OUTCOME_TAG + owner, name) for name in union.names()]
    listed = {job.uuid for job in client.jobs.list(tags=[OUTCOME_TAG + owner])}
    if not listed.issuperset(created):
        log.info("The record of %d finished Qarnot tasks is not listed yet, so they are kept", len(kept))
        return []
    _delete(client, [job.uuid for job in earlier])
    return kept


def recorded_owners(client: QarnotClient, namespace: str) -> list[Task]:
    """Return a Qarnot task for each task instance that has a record, with its owner and labels only."""
    from airflow_qarnot_pool.api.models import Task

    by_tag: dict[str, list[Job]] = {}
    for job in client.jobs.list(tags=[namespace_tag(namespace)]):
        for tag in job.tags:
            if tag.startswith(OUTCOME_TAG):
                by_tag.setdefault(tag, []).append(job)
    owners = []
    for tag, jobs in by_tag.items():
        if of := Outcomes.of_jobs(jobs).of:
            labels = dict(zip((f"airflow.{name}" for name in _INSTANCE), of, strict=False))
            owner = OWNER_TAG + tag[len(OUTCOME_TAG) :]
            owners.append(Task.from_json({"uuid": tag, "tags": [owner], "labels": labels}))
    return owners


def delete_outcomes(client: QarnotClient, owner: str) -> None:
    """Delete the record of an owner that never runs again."""
    _delete(client, [job.uuid for job in client.jobs.list(tags=[OUTCOME_TAG + owner])])


# --- shared pools


def record_shared_name(client: QarnotClient, namespace: str, pool: str, name: str) -> None:
    """Record the name of a closed shared pool, for Qarnot tasks that know only its uuid."""
    _create(client, namespace, SHARED_TAG + pool, {"shared": name})


def shared_name(client: QarnotClient, pool: str) -> str | None:
    """Return the name that a deleted pool was shared under, or None."""
    for job in client.jobs.list(tags=[SHARED_TAG + pool]):
        content = _content(job)
        if isinstance(content, dict) and isinstance(content.get("shared"), str):
            return str(content["shared"])
    return None


# --- costs of a DAG run


def record_opened_pool(client: QarnotClient, namespace: str, run: RunKey, pool: str) -> None:
    """Record that *run* has opened *pool*, because its cost still counts after the pool is deleted."""
    with suppress(QarnotNameTakenError):
        _create(
            client,
            namespace,
            _spent_tag(namespace, run),
            {"pool": pool},
            lasts=KEEP_COSTS,
            shortname=f"opened-{digest(pool)}",
        )


def record_cost(client: QarnotClient, namespace: str, run: RunKey, pool: str, euros: float) -> None:
    """Record the final cost of a pool of *run*."""
    content = {"pool": pool, "euros": euros}
    _create(client, namespace, _spent_tag(namespace, run), content, lasts=KEEP_COSTS)


def recorded_costs(client: QarnotClient, namespace: str, run: RunKey) -> dict[str, float | None]:
    """Return the cost of each recorded pool of *run*; None if only the pool was recorded."""
    costs: dict[str, float | None] = {}
    for job in client.jobs.list(tags=[_spent_tag(namespace, run)]):
        content = _content(job)
        if not isinstance(content, dict) or not isinstance(content.get("pool"), str):
            continue
        pool, cost = content["pool"], content.get("euros")
        known = [value for value in (costs.get(pool), cost) if isinstance(value, (int, float))]
        costs[pool] = float(max(known)) if known else None
    return costs


def _spent_tag(namespace: str, run: RunKey) -> str:
    return SPENT_TAG + digest(namespace, *run)


# --- costs of a day


def cost_at_start(client: QarnotClient, namespace: str, pool: str, day: str, euros: float) -> float:
    """Return the cost of *pool* at the start of *day*, in euros.

    The first process that asks on that day records *euros*, the cost so far. All others get what it has recorded.
    """
    name = digest(namespace, pool, day)
    for _ in range(2):
        for job in client.jobs.list(tags=[START_TAG + name]):
            content = _content(job)
            if isinstance(content, dict) and isinstance(content.get("euros"), (int, float)):
                return float(content["euros"])
        with suppress(QarnotNameTakenError):
            content = {"euros": euros}
            _create(client, namespace, START_TAG + name, content, lasts=KEEP_START, shortname=f"start-{name}")
            break
    return euros


# --- use of a pool


@dataclass(frozen=True, kw_only=True)
class LastUse:
    """The recorded time of the last use of a pool, and the time since which a reaper has found it idle."""

    used: datetime | None = None
    idle_since: datetime | None = None


def last_use_of(client: QarnotClient, pool: str) -> LastUse:
    """Return the records about the use of *pool*."""
    return _use(client.jobs.list(tags=[USED_TAG + pool]))


def record_use(client: QarnotClient, namespace: str, pool: str, when: datetime) -> None:
    """Record that *pool* was used until *when*, before the Qarnot tasks that show it are deleted."""
    jobs = client.jobs.list(tags=[USED_TAG + pool])
    before = _use(jobs).used
    if before is not None and when - before < USE_PRECISION:
        return
    _create(client, namespace, USED_TAG + pool, {"used": when.isoformat()})
    _delete(client, [job.uuid for job in jobs])


def record_idle(client: QarnotClient, namespace: str, pool: str, since: datetime) -> None:
    """Record that a reaper has found *pool* idle, and no Qarnot task that shows its last use."""
    _create(client, namespace, USED_TAG + pool, {"idle": since.isoformat()})


def _use(jobs: Iterable[Job]) -> LastUse:
    recorded: dict[str, list[datetime]] = {"used": [], "idle": []}
    for job in jobs:
        content = _content(job)
        for name, times in recorded.items():
            with suppress(TypeError, ValueError, KeyError):
                times.append(datetime.fromisoformat(content[name]).astimezone(UTC))
    used = max(recorded["used"], default=None)
    idle = [time for time in recorded["idle"] if used is None or time > used]
    return LastUse(used=used, idle_since=min(idle, default=None))
