"""Jobs: the calls needed to refer to one. Qarnot API: ``/jobs``."""

from __future__ import annotations

from collections.abc import Sequence

from airflow_qarnot_pool.api.models import Job
from airflow_qarnot_pool.api.resource import quoted
from airflow_qarnot_pool.api.transport import Transport


class JobResource:
    """Look jobs up."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self, ref: str) -> Job:
        """A job, by uuid or shortname. Raises QarnotNotFoundError. Qarnot API: ``GET /jobs/{u}``."""
        path = f"/jobs/{quoted(ref, 'job')}"
        return Job.from_json(
            self._transport.request("GET", path, idempotent=True, kind="job", ref=ref, shape=dict)
        )

    def list(self, tags: Sequence[str] = ()) -> list[Job]:
        """All jobs, or those with any of the tags. Qarnot API: ``GET /jobs``."""
        params = [("tag", tag) for tag in tags] or None
        data = self._transport.request("GET", "/jobs", params=params, idempotent=True, kind="job", shape=list)
        return [Job.from_json(item) for item in data]
