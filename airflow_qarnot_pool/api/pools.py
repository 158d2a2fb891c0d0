"""Pools. Qarnot API: ``/pools``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.models import Job, Pool, Task
from airflow_qarnot_pool.api.resource import Resource
from airflow_qarnot_pool.api.specs import Elastic, PoolSpec, Scaling


class PoolResource(Resource[PoolSpec, Pool]):
    """Create, monitor, resize and close pools."""

    kind = "pool"
    base = "/pools"
    end_verb = "close"
    spec = PoolSpec
    model = Pool

    def update(
        self,
        ref: str,
        *,
        constants: Mapping[str, str] | None = None,
        tags: Sequence[str] | None = None,
        elastic: Elastic | Mapping[str, Any] | None = None,
        scaling: Scaling | Mapping[str, Any] | None = None,
    ) -> None:
        """Change a running pool. Parameters that are None stay unchanged.

        Constants and tags replace all earlier ones. Qarnot API: ``PUT /pools/{u}``.
        """
        if elastic is not None and scaling is not None:
            raise QarnotInvalidSpecError(
                "elastic is given together with scaling",
                field="elastic",
                kind=self.kind,
                ref=ref,
                remedy="Keep scaling; it replaces the elastic block.",
            )
        changes = {"constants": constants, "tags": tags, "elastic": elastic, "scaling": scaling}
        self._put(ref, self.spec.encode_fields({k: v for k, v in changes.items() if v is not None}))

    def close(self, ref: str) -> None:
        """Close a pool: stop everything on it and release its nodes.

        Raises QarnotRefusedError if it cannot be closed. It may be closed already, so check its state.
        Qarnot API: ``POST /pools/{u}/close``.
        """
        self.end(ref)

    def scaling(self, ref: str) -> Scaling | None:
        """Return the scaling policies, or None. Qarnot API: ``GET /pools/{u}/scaling``."""
        data = self._read("GET", self._path(ref, "scaling"), ref=ref, shape=(dict, type(None)))
        return Scaling.from_json(data) if data and data.get("policies") else None

    def set_scaling(self, ref: str, scaling: Scaling | Mapping[str, Any]) -> None:
        """Replace the scaling policies. Qarnot API: ``PUT /pools/{u}/scaling``."""
        body = Scaling.of(scaling).to_json()
        self._read("PUT", self._path(ref, "scaling"), ref=ref, json=body)

    def check_scaling(self, scaling: Scaling | Mapping[str, Any]) -> None:
        """Let Qarnot validate policies without applying them. Raises QarnotRefusedError.

        Qarnot API: ``POST /sanity-checks/pools/scaling``.
        """
        body = scaling.to_json() if isinstance(scaling, Scaling) else dict(scaling)
        self._read("POST", "/sanity-checks/pools/scaling", json=body)

    def tasks(self, ref: str) -> list[Task]:
        """List the Qarnot tasks of a pool. Qarnot API: ``GET /pools/{u}/tasks``."""
        data = self._read("GET", self._path(ref, "tasks"), ref=ref, shape=list)
        return [Task.from_json(item) for item in data]

    def jobs(self, ref: str) -> list[Job]:
        """List the jobs of a pool. Qarnot API: ``GET /pools/{u}/jobs``."""
        data = self._read("GET", self._path(ref, "jobs"), ref=ref, shape=list)
        return [Job.from_json(item) for item in data]
