"""Tasks. Qarnot API: ``/tasks``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow_qarnot_pool.api import filters
from airflow_qarnot_pool.api.errors import (
    QarnotError,
    QarnotNameTakenError,
    QarnotProtocolError,
    QarnotRefusedError,
)
from airflow_qarnot_pool.api.limits import parse_number
from airflow_qarnot_pool.api.models import BulkItem, Snapshot, Task
from airflow_qarnot_pool.api.resource import (
    REQUEST_LABEL,
    Resource,
    quote_ref,
    with_rejected_values,
    with_request_label,
)
from airflow_qarnot_pool.api.responses import error_from_response
from airflow_qarnot_pool.api.specs import TaskSpec

log = logging.getLogger(__name__)


class TaskResource(Resource[TaskSpec, Task]):
    """Create, watch and abort tasks."""

    kind = "task"
    base = "/tasks"
    spec = TaskSpec
    model = Task

    def update(
        self,
        ref: str,
        *,
        constants: Mapping[str, str] | None = None,
        tags: Sequence[str] | None = None,
    ) -> None:
        """Change constants or tags of a running task; what is None stays. Qarnot API: ``PUT /tasks/{u}``."""
        given = {"constants": constants, "tags": tags}
        self._put(ref, self.spec.encode_fields({k: v for k, v in given.items() if v is not None}))

    def abort(self, ref: str) -> None:
        """Stop a task. Raises QarnotRefusedError where it cannot be (it may be over: look at its state).

        Qarnot API: ``POST /tasks/{u}/abort``.
        """
        self._end(ref, "abort")

    end = abort

    def create_many(self, specs: Sequence[TaskSpec]) -> list[BulkItem]:
        """Create several tasks with one request; what became of each, in the same order.

        One that is refused does not keep the others from being created. Where every one has a shortname, a
        lost answer loses nothing (see ``create``); else it raises QarnotUnavailableError with ``ambiguous``.
        Qarnot API: ``POST /tasks`` with a list.
        """
        if not specs:
            return []
        made = [with_request_label(spec.to_json()) for spec in specs]
        done: dict[int, BulkItem] = {}
        wanted = [*range(len(specs))]
        bodies = [body for body, _ in made]

        def look(left: float) -> Sequence[Any] | None:
            """Take what a request whose answer was lost did create off the next one."""
            done.update(self._made_by_stamps(specs, made, wanted, left))
            wanted[:] = [index for index in wanted if index not in done]
            bodies[:] = [made[index][0] for index in wanted]
            return None if wanted else ()

        data = self._transport.request(
            "POST",
            self.base,
            json=bodies,
            idempotent=False,
            kind=self.kind,
            shape=list,
            creating=True,
            bulk=True,
            recover=look if all(spec.shortname for spec in specs) else None,
        )
        if len(data) != len(wanted):
            raise QarnotProtocolError(
                f"Qarnot answered {len(data)} items for {len(wanted)} tasks", kind=self.kind, path=self.base
            )
        for index, item in zip(wanted, data, strict=True):
            done[index] = self._item(index, specs[index], item)
        taken = [index for index, item in done.items() if isinstance(item.error, QarnotNameTakenError)]
        if taken:
            # An earlier attempt may have been slower than our look at what it made.
            done.update(self._made_by_stamps(specs, made, taken, self._transport.deadline))
        return [done[index] for index in range(len(specs))]

    def _item(self, index: int, spec: TaskSpec, item: Any) -> BulkItem:
        fields = {str(key).lower(): value for key, value in item.items()} if isinstance(item, dict) else {}
        uuid, status = fields.get("uuid"), fields.get("statuscode")
        status = status if isinstance(status, int) else 200 if uuid else 400
        if uuid and status < 400:
            return BulkItem(index=index, status=status, uuid=str(uuid))
        error: QarnotError = error_from_response(
            max(status, 400),
            str(fields.get("message") or ""),
            creating=True,
            kind=self.kind,
            ref=spec.shortname or spec.name,
            method="POST",
            path=self.base,
        )
        if isinstance(error, QarnotRefusedError):
            error = with_rejected_values(error, self.spec, spec.to_json())
        return BulkItem(index=index, status=status, error=error)

    def _made_by_stamps(
        self,
        specs: Sequence[TaskSpec],
        made: Sequence[tuple[dict[str, Any], str]],
        wanted: Sequence[int],
        left: float,
    ) -> dict[int, BulkItem]:
        """The tasks among those wanted that this very call has created, by the stamps they carry."""
        by_stamp = {made[index][1]: index for index in wanted}
        names = [specs[index].shortname for index in wanted]
        quick = TaskResource(self._transport.limited(deadline=left))
        found = {}
        for task in quick.search_all(filters.in_("Shortname", names)):
            index = by_stamp.get(task.labels.get(REQUEST_LABEL, ""))
            if index is not None:
                found[index] = BulkItem(index=index, status=200, uuid=task.uuid)
        log.info("%d of %d tasks had been created although the answer was lost", len(found), len(wanted))
        return found

    def retry(self, ref: str, **overrides: Any) -> str:
        """A new task over the failed instances; returns its uuid. Qarnot API: ``POST /tasks/{u}/retry``."""
        return self._again("retry", ref, overrides)

    def resume(self, ref: str, **overrides: Any) -> str:
        """A new task over the cancelled instances; returns its uuid. Qarnot API: ``POST /tasks/{u}/resume``."""
        return self._again("resume", ref, overrides)

    def recover(self, ref: str, **overrides: Any) -> str:
        """A new task over failed and cancelled instances; returns its uuid.

        Qarnot API: ``POST /tasks/{u}/recover``.
        """
        return self._again("recover", ref, overrides)

    def _again(self, verb: str, ref: str, overrides: Mapping[str, Any]) -> str:
        return self._make(self._path(ref, verb), self.spec.encode_fields(overrides), ref=ref)

    def snapshot(
        self,
        ref: str,
        *,
        whitelist: str | None = None,
        blacklist: str | None = None,
        bucket: str | None = None,
        prefix: str | None = None,
    ) -> str:
        """Take a snapshot now; returns its id. Qarnot API: ``POST /tasks/{u}/snapshot``."""
        data = self._transport.request(
            "POST",
            self._path(ref, "snapshot"),
            json=_snapshot_json(whitelist, blacklist, bucket, prefix),
            idempotent=False,
            kind=self.kind,
            ref=ref,
            shape=dict,
        )
        return Snapshot.from_json(data).id or ""

    def snapshot_every(
        self,
        ref: str,
        interval: timedelta,
        *,
        whitelist: str | None = None,
        blacklist: str | None = None,
        bucket: str | None = None,
        prefix: str | None = None,
    ) -> None:
        """Take snapshots at an interval; zero stops them. Qarnot API: ``POST /tasks/{u}/snapshot/periodic``."""
        body = {
            "interval": int(interval.total_seconds()),
            **_snapshot_json(whitelist, blacklist, bucket, prefix),
        }
        self._read("POST", self._path(ref, "snapshot", "periodic"), ref=ref, json=body)

    def snapshot_status(self, ref: str, snapshot_id: str) -> Snapshot:
        """How far a snapshot is. Qarnot API: ``GET /tasks/{u}/snapshot/{id}``."""
        path = self._path(ref, "snapshot", quote_ref(snapshot_id, "snapshot"))
        return Snapshot.from_json(self._read("GET", path, ref=ref, shape=dict))

    def port_forward(self, ref: str) -> dict[int, dict[str, Any]]:
        """Ports that can be reached from outside: instance id, rule name, what the API says of it.

        Qarnot API: ``GET /v1/network/tasks/{u}/port-forward``.
        """
        path = f"/v1/network{self._path(ref, 'port-forward')}"
        data = self._read("GET", path, ref=ref, shape=dict)
        numbers = {parse_number(str(key)): value for key, value in data.items()}
        return {key: value for key, value in numbers.items() if key is not None}


def _snapshot_json(
    whitelist: str | None, blacklist: str | None, bucket: str | None, prefix: str | None
) -> dict[str, Any]:
    body = {"whitelist": whitelist, "blacklist": blacklist, "bucket": bucket, "bucketPrefix": prefix}
    return {key: value for key, value in body.items() if value is not None}
