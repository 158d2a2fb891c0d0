"""Jobs. Qarnot API: ``/jobs``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from airflow_qarnot_pool.api.errors import QarnotProtocolError
from airflow_qarnot_pool.api.fields import span
from airflow_qarnot_pool.api.models import Job
from airflow_qarnot_pool.api.resource import Endpoint, quote_ref


class JobResource(Endpoint):
    """Create, look up and delete jobs."""

    def create(
        self,
        name: str,
        *,
        shortname: str | None = None,
        pool: str | None = None,
        tags: Sequence[str] = (),
        max_wall_time: timedelta | None = None,
        use_dependencies: bool = False,
        completion_ttl: timedelta | None = None,
    ) -> str:
        """Create a job, and return its uuid. It is active until ``max_wall_time`` has passed, or it is deleted.

        Its tasks may have ``dependencies`` only with ``use_dependencies``.
        A lost response raises QarnotUnavailableError with ``ambiguous``. Raises QarnotNameTakenError, QarnotQuotaError,
        QarnotRefusedError (also for a pool that is not open). Qarnot API: ``POST /jobs``.
        """
        body = {
            "name": name,
            "shortname": shortname,
            "poolUuid": pool,
            "tags": list(tags),
            "maxWallTime": span(max_wall_time) if max_wall_time else None,
            "useDependencies": use_dependencies or None,
            "completionTimeToLive": span(completion_ttl) if completion_ttl else None,
            "autoDeleteOnCompletion": completion_ttl is not None,
        }
        data = self._transport.request(
            "POST",
            "/jobs",
            json={key: value for key, value in body.items() if value is not None},
            idempotent=False,
            kind="job",
            ref=shortname,
            shape=(dict, str),
            creating=True,
        )
        uuid = data if isinstance(data, str) else Job.from_json(data).uuid
        if not uuid:
            raise QarnotProtocolError(
                "Qarnot created a job but did not return its uuid", kind="job", ref=shortname
            )
        return uuid

    def delete(self, ref: str) -> None:
        """Delete a job that has no tasks. Raises QarnotNotFoundError. Qarnot API: ``DELETE /jobs/{u}``."""
        self._transport.request(
            "DELETE", f"/jobs/{quote_ref(ref, 'job')}", idempotent=True, kind="job", ref=ref
        )

    def get(self, ref: str) -> Job:
        """Return a job, by uuid or shortname. Raises QarnotNotFoundError. Qarnot API: ``GET /jobs/{u}``."""
        path = f"/jobs/{quote_ref(ref, 'job')}"
        return Job.from_json(
            self._transport.request("GET", path, idempotent=True, kind="job", ref=ref, shape=dict)
        )

    def list(self, tags: Sequence[str] = ()) -> list[Job]:
        """List all jobs, or those with any of the tags. Qarnot API: ``GET /jobs``."""
        params = [("tag", tag) for tag in tags] or None
        data = self._transport.request("GET", "/jobs", params=params, idempotent=True, kind="job", shape=list)
        return [Job.from_json(item) for item in data]
