"""Qarnot tasks. Qarnot API: ``/tasks``."""

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
from airflow_qarnot_pool.api.transport import Recover

log = logging.getLogger(__name__)


class TaskResource(Resource[TaskSpec, Task]):
    """Create, monitor and abort Qarnot tasks."""

    kind = "task"
    base = "/tasks"
    end_verb = "abort"
    spec = TaskSpec
    model = Task

    def update(
        self,
        ref: str,
        *,
        constants: Mapping[str, str] | None = None,
        tags: Sequence[str] | None = None,
    ) -> None:
        """Change constants or tags of a running task. None keeps them. Qarnot API: ``PUT /tasks/{u}``."""
        changes = {"constants": constants, "tags": tags}
        self._put(ref, self.spec.encode_fields({k: v for k, v in changes.items() if v is not None}))

    def abort(self, ref: str) -> None:
        """Abort a task. Raises QarnotRefusedError if it cannot be aborted. It may have finished, so check its state.

        Qarnot API: ``POST /tasks/{u}/abort``.
        """
        self.end(ref)

    def create_many(self, specs: Sequence[TaskSpec]) -> list[BulkItem]:
        """Create several tasks with one request, and return the result of each, in the same order.

        A rejected task does not prevent the others. If all have a shortname, a lost response is recovered (see
        ``create``). Else it raises QarnotUnavailableError with ``ambiguous``.
        Qarnot API: ``POST /tasks`` with a list.
        """
        if not specs:
            return []
        labelled = [with_request_label(spec.to_json()) for spec in specs]
        results: dict[int, BulkItem] = {}
        pending = [*range(len(specs))]
        bodies = [body for body, _ in labelled]

        def recover(seconds_left: float) -> Sequence[Any] | None:
            """Remove the tasks that an earlier attempt has created from the next one."""
            results.update(self._find_by_label(specs, labelled, pending, seconds_left))
            pending[:] = [index for index in pending if index not in results]
            bodies[:] = [labelled[index][0] for index in pending]
            return None if pending else ()

        data = self._post_many(bodies, recover if all(spec.shortname for spec in specs) else None)
        if len(data) != len(pending):
            raise QarnotProtocolError(
                f"Qarnot returned {len(data)} items for {len(pending)} tasks", kind=self.kind, path=self.base
            )
        for index, item in zip(pending, data, strict=True):
            results[index] = self._item(index, specs[index], item)
        taken = [index for index, item in results.items() if isinstance(item.error, QarnotNameTakenError)]
        if taken:
            # An earlier attempt may have created them after the search for its tasks.
            results.update(self._find_by_label(specs, labelled, taken, self._transport.deadline))
        return [results[index] for index in range(len(specs))]

    def _post_many(self, bodies: list[dict[str, Any]], recover: Recover | None) -> Sequence[Any]:
        """Return the result of each item in the response."""
        try:
            results: Sequence[Any] = self._transport.request(
                "POST",
                self.base,
                json=bodies,
                idempotent=False,
                kind=self.kind,
                shape=list,
                creating=True,
                bulk=True,
                recover=recover,
            )
        except QarnotNameTakenError as error:
            # If all items fail, a server may say so with the error of one of them.
            return [{"statusCode": error.status, "message": error.server_message}] * len(bodies)
        return results

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

    def _find_by_label(
        self,
        specs: Sequence[TaskSpec],
        labelled: Sequence[tuple[dict[str, Any], str]],
        indexes: Sequence[int],
        seconds_left: float,
    ) -> dict[int, BulkItem]:
        """Return the tasks at *indexes* that this call has created, by their request label."""
        by_label = {labelled[index][1]: index for index in indexes}
        names = [specs[index].shortname for index in indexes]
        quick = TaskResource(self._transport.limited(deadline=seconds_left))
        created = {}
        for task in quick.search_all(filters.in_("Shortname", names)):
            index = by_label.get(task.labels.get(REQUEST_LABEL, ""))
            if index is not None:
                created[index] = BulkItem(index=index, status=200, uuid=task.uuid)
        log.info("%d of %d tasks were created although the response was lost", len(created), len(indexes))
        return created

    def retry(self, ref: str, **overrides: Any) -> str:
        """Create a task with the failed instances, and return its uuid. Qarnot API: ``POST /tasks/{u}/retry``."""
        return self._again("retry", ref, overrides)

    def resume(self, ref: str, **overrides: Any) -> str:
        """Create a task with the cancelled instances, and return its uuid. Qarnot API: ``POST /tasks/{u}/resume``."""
        return self._again("resume", ref, overrides)

    def recover(self, ref: str, **overrides: Any) -> str:
        """Create a task with the failed and cancelled instances, and return its uuid.

        Qarnot API: ``POST /tasks/{u}/recover``.
        """
        return self._again("recover", ref, overrides)

    def _again(self, verb: str, ref: str, overrides: Mapping[str, Any]) -> str:
        return self._make(self._path(ref, verb), overrides, ref=ref)

    def snapshot(
        self,
        ref: str,
        *,
        whitelist: str | None = None,
        blacklist: str | None = None,
        bucket: str | None = None,
        prefix: str | None = None,
    ) -> str:
        """Take a snapshot now, and return its id. Qarnot API: ``POST /tasks/{u}/snapshot``."""
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
        """Take snapshots at an interval. Zero stops them. Qarnot API: ``POST /tasks/{u}/snapshot/periodic``."""
        body = {
            "interval": int(interval.total_seconds()),
            **_snapshot_json(whitelist, blacklist, bucket, prefix),
        }
        self._read("POST", self._path(ref, "snapshot", "periodic"), ref=ref, json=body)

    def snapshot_status(self, ref: str, snapshot_id: str) -> Snapshot:
        """Return the progress of a snapshot. Qarnot API: ``GET /tasks/{u}/snapshot/{id}``."""
        path = self._path(ref, "snapshot", quote_ref(snapshot_id, "snapshot"))
        return Snapshot.from_json(self._read("GET", path, ref=ref, shape=dict))

    def port_forward(self, ref: str) -> dict[int, dict[str, Any]]:
        """Return the ports that are reachable from outside, by instance id and rule name.

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
