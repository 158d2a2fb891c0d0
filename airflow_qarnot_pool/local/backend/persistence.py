"""Keep pools, Qarnot tasks, jobs and the account in the state directory, and continue them after a restart.

A row has the plain fields of an object, and the few facts from which the others follow. A restart is the loss of all
nodes at the moment of the last write. Everything else continues: instances wait, pools request nodes, objects expire.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_qarnot_pool.local.backend import states
from airflow_qarnot_pool.local.backend.billing import AccountLimits, BillingMeter, ProjectBudget
from airflow_qarnot_pool.local.backend.models import (
    Dependency,
    Instance,
    InstancePhase,
    Job,
    Pool,
    Remote,
    Task,
)
from airflow_qarnot_pool.local.processes.state import Row, State
from airflow_qarnot_pool.local.schemas.fields import Profiles
from airflow_qarnot_pool.local.schemas.requests import read_pool, read_task
from airflow_qarnot_pool.local.schemas.scaling import ELASTIC_OFF, read_scaling

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.backend import Backend

R = TypeVar("R", bound=Remote)

SAVE_SECONDS = 0.1
"""Minimum interval between writes of changes that no request has made or seen."""
BILLING_SECONDS = 1.0
"""Interval at which the time is written while nodes are billed."""
_ACCOUNT, _BILLS = "account", "bills"


def _plain(kind: type[Remote], *others: str) -> tuple[str, ...]:
    """Return the fields that a row has as they are: all but *others*."""
    return tuple(field.name for field in fields(kind) if field.name not in (*others, "skew"))


_FIELDS: dict[type[Remote], tuple[str, ...]] = {
    Pool: _plain(
        Pool,
        *("scaling", "meter", "output", "nodes", "tasks", "queue", "waiting", "running", "slots"),
        *("grow_after", "resize_timer", "close_timer", "syncing", "syncs"),
    ),
    Task: _plain(
        Task,
        *("pool", "job", "meter", "output", "instances", "waiting", "placed", "running", "uploading"),
        *("depends_on", "snapshot_timer"),
    ),
    Job: _plain(Job, "pool", "tasks"),
}
_FORMAT = [
    *((kind.__name__, names) for kind, names in _FIELDS.items()),
    *(
        (kind.__name__, [field.name for field in fields(kind)])
        for kind in (BillingMeter, Dependency, AccountLimits, ProjectBudget)
    ),
    sorted(read_pool({"name": "any", "profile": "docker-batch"}, Profiles()).spec),
    sorted(read_task({"name": "any", "profile": "docker-batch"}).spec),
]
VERSION = f"1-{hashlib.sha256(repr(_FORMAT).encode()).hexdigest()[:8]}"
"""The form of the rows. It changes with each field of an object. The number is for the rest."""


# ---- objects as rows -----------------------------------------------------------------------------


def _row(item: Remote) -> dict[str, Any]:
    row = {name: getattr(item, name) for name in _FIELDS[type(item)]}
    if isinstance(item, (Pool, Task)):
        row["meter"] = asdict(item.meter)
        row["output"] = {
            number: [
                output.max_bytes,
                output.is_finished,
                [[*mark, at] for mark, at in output.bytes_read.items()],
            ]
            for number, output in item.output.items()
        }
    if isinstance(item, Pool):
        row |= _pool_row(item)
    if isinstance(item, (Task, Job)):
        row["pool"] = item.pool.uuid if item.pool else None
    if isinstance(item, Task):
        row |= _task_row(item)
    return row


def _pool_row(pool: Pool) -> dict[str, Any]:
    return {
        "scaling": None if pool.scaling is None else [policy.source for policy in pool.scaling],
        "close_at": None if pool.close_timer is None else pool.close_timer.when,
    }


def _task_row(task: Task) -> dict[str, Any]:
    return {
        "job": task.job.uuid if task.job else None,
        "instances": [
            [i.id, i.phase.name, i.attempts, i.started, i.executed, i.node is not None]
            for i in task.instances.values()
        ],
        "depends_on": [{**asdict(one), "allowed": sorted(one.allowed)} for one in task.depends_on],
    }


def _fill(item: R, row: dict[str, Any]) -> R:
    """Set the plain fields. The constructor has set some of them to those of a new object."""
    for name in _FIELDS[type(item)]:
        setattr(item, name, row[name])
    return item


def _arguments(kind: type[Remote], row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in _FIELDS[kind]}


def _pool(row: dict[str, Any]) -> Pool:
    scaling = None if row["scaling"] is None else read_scaling({"policies": row["scaling"]})[0]
    return _fill(
        Pool(**_arguments(Pool, row), scaling=scaling, meter=BillingMeter(**row["meter"])),
        row,
    )


def _removed_pool(uuid: str) -> Pool:
    """Return what is left of a pool that was deleted before its tasks."""
    spec = {"defaultRetrySettings": {}, "taskDefaultWaitForPoolResourcesSynchronization": False}
    return Pool(
        uuid=uuid,
        seq=0,
        name="",
        shortname=uuid,
        created=0.0,
        state=states.CLOSED,
        spec=spec,
        profile="",
        instance_count=0,
        slots_per_node=1,
        elastic=ELASTIC_OFF,
        scaling=None,
        meter=BillingMeter(0.0),
    )


def _removed_job(uuid: str) -> Job:
    return Job(uuid=uuid, seq=0, name="", shortname=uuid, created=0.0, state="Completed", pool=None)


def _task(row: dict[str, Any], pool: Pool | None, job: Job | None, ended: float) -> Task:
    """Return a task. An instance that had a node is marked as lost at the time *ended*."""
    task = _fill(
        Task(**_arguments(Task, row), pool=pool, job=job, meter=BillingMeter(**row["meter"])),
        row,
    )
    for id, phase, attempts, started, executed, has_node in row["instances"]:
        ran = 0.0 if started is None else max(0.0, ended - started)
        task.instances[id] = Instance(
            task, id, InstancePhase[phase], attempts, executed=executed + ran, lost=has_node
        )
    task.depends_on = [
        Dependency(**{**one, "allowed": frozenset(one["allowed"])}) for one in row["depends_on"]
    ]
    for snapshot in task.snapshots.values():
        if snapshot["status"] != "success":
            snapshot["status"] = "failure"
    return task


def _end_billing(meter: BillingMeter, ended: float) -> BillingMeter:
    meter.change(ended, up=-meter.up, busy=-meter.busy, busy_slots=-meter.busy_slots)
    return meter


# ---- the whole account ---------------------------------------------------------------------------


class Persistence:
    """Writes changed objects to the state directory, and reads them at the start.

    A response shows only what has been written. After a kill, a client therefore finds all that it has seen.
    """

    def __init__(self, backend: Backend, state: State) -> None:
        self._backend, self._state = backend, state
        self._changed: dict[str, Remote] = {}
        self._is_due = False
        self._has_failed = False
        self._saved = 0.0
        self._stale: list[str] = []

    # ---- writing ----

    def note(self, item: Remote | None) -> None:
        """Note a change of an object, or of the account, for the next write."""
        self._is_due = True
        if item is not None:
            self._changed[item.uuid] = item

    def forget(self, folder: str) -> None:
        """Remove a folder once the removal of its owner has been written."""
        self._stale.append(folder)

    def wait(self) -> float | None:
        """Write what has been due for long enough. Return the seconds until this must be called again."""
        passed = time.monotonic() - self._saved
        is_billed = self._backend.meter.up > 0
        if passed >= SAVE_SECONDS and (self._is_due or (is_billed and passed >= BILLING_SECONDS)):
            self.save(force=True)
            passed = 0.0
        if self._is_due:
            return max(0.0, SAVE_SECONDS - passed)
        return max(0.0, BILLING_SECONDS - passed) if is_billed else None

    def save(self, *, force: bool = False) -> None:
        """Write all changes in one transaction. If the disk is full, keep them for the next time."""
        if not (self._is_due or force):
            return
        self._saved = time.monotonic()
        backend, has_bill = self._backend, False
        rows: list[Row] = [(_ACCOUNT, "", self._account())]
        for item in self._changed.values():
            kind, store = backend.stores[type(item)]
            is_kept = store.get(item.uuid) is item
            rows.append((kind, item.uuid, _row(item) if is_kept else None))
            has_bill = has_bill or (not is_kept and isinstance(item, Pool))
        if has_bill:
            rows.append((_BILLS, "", backend.account.deleted))
        try:
            self._state.write(rows)
        except sqlite3.Error as error:
            if not self._has_failed:
                print(f"State was not written to {self._state.directory}: {error}.", file=sys.stderr)
            self._has_failed = True
            return
        self._has_failed = self._is_due = False
        self._changed.clear()
        for folder in self._stale:
            shutil.rmtree(folder, ignore_errors=True)
        self._stale.clear()

    def _account(self) -> dict[str, Any]:
        backend, account = self._backend, self._backend.account
        return {
            "now": backend.now,
            "real": time.time(),
            "sequence": backend.sequence,
            "nodes": backend.nodes.numbers,
            "meter": asdict(backend.meter),
            "limits": asdict(account.limits),
            "balance": [account.balance, account.balance_spent],
            "budgets": [asdict(budget) for budget in account.budgets],
            "bills_deleted": account.bills_deleted,
            "secrets": backend.secrets,
        }

    # ---- reading ----

    def restore(self) -> None:
        """Take up what an earlier server has left, and write what became of it."""
        account = self._state.read(_ACCOUNT).get("")
        if account is not None:
            ended = account["now"]
            self._restore_account(account)
            pools = self._read("pool", _pool)
            jobs = self._read("job", lambda row: _fill(Job(**_arguments(Job, row), pool=None), row))
            self._restore_objects(pools, jobs, ended)
        self._remove_strays()
        self.save(force=True)

    def _restore_account(self, row: dict[str, Any]) -> None:
        backend, account = self._backend, self._backend.account
        ended = row["now"]
        # The clock of the account goes on while no server runs, and never back.
        backend.clock.start_at(ended + max(0.0, time.time() - row["real"]))
        backend.sequence, backend.nodes.numbers = row["sequence"], row["nodes"]
        backend.meter = _end_billing(BillingMeter(**row["meter"]), ended)
        account.limits = AccountLimits(**row["limits"])
        account.balance, account.balance_spent = row["balance"]
        account.budgets = tuple(ProjectBudget(**budget) for budget in row["budgets"])
        account.bills_deleted = row["bills_deleted"]
        account.deleted = self._state.read(_BILLS).get("", {})
        backend.secrets = row["secrets"]

    def _read(self, kind: str, build: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
        """Return the objects of one kind with their rows, in order of creation."""
        rows = sorted(self._state.read(kind).values(), key=lambda row: row["seq"])
        return {row["uuid"]: (build(row), row) for row in rows}

    def _restore_objects(self, pools: dict[str, Any], jobs: dict[str, Any], ended: float) -> None:
        backend = self._backend
        gone_pools: dict[str, Pool] = {}
        gone_jobs: dict[str, Job] = {}

        def pool_of(uuid: str | None) -> Pool | None:
            if uuid is None or uuid in pools:
                return pools[uuid][0] if uuid else None
            return gone_pools.setdefault(uuid, _removed_pool(uuid))

        def job_of(uuid: str | None) -> Job | None:
            if uuid is None or uuid in jobs:
                return jobs[uuid][0] if uuid else None
            return gone_jobs.setdefault(uuid, _removed_job(uuid))

        for job, row in jobs.values():
            job.pool = pool_of(row["pool"])
        tasks = self._read("task", lambda row: _task(row, pool_of(row["pool"]), job_of(row["job"]), ended))
        backend.pools.store.load(pool for pool, _ in pools.values())
        backend.jobs.store.load(job for job, _ in jobs.values())
        backend.tasks.store.load(task for task, _ in tasks.values())
        for owner, row in [*pools.values(), *tasks.values()]:
            if owner.meter.up:
                self.note(owner)  # or the next restart would bill its nodes up to then
            _end_billing(owner.meter, ended)
            self._restore_output(owner, row["output"])
        for task, _ in tasks.values():
            backend.tasks.adopt(task)
        # The first in a queue is put back last.
        for task, _ in reversed(tasks.values()):
            backend.tasks.resume(task)
        for job, _ in jobs.values():
            backend.jobs.resume(job)
        for pool, row in pools.values():
            backend.pools.resume(pool, row["close_at"])

    def _restore_output(self, owner: Pool | Task, rows: dict[str, Any]) -> None:
        for number, (kept, is_finished, marks) in rows.items():
            output = self._backend.new_output(owner, int(number), kept)
            output.is_finished = is_finished
            output.bytes_read = {(stream, aggregated): at for stream, aggregated, at in marks}

    def _remove_strays(self) -> None:
        """Remove output that a killed server had not removed yet."""
        folder = self._backend.outputs
        owners: Iterable[Any] = (*self._backend.pools.store, *self._backend.tasks.store)
        known = {owner.uuid for owner in owners}
        for name in os.listdir(folder) if os.path.isdir(folder) else ():
            if name not in known:
                shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
