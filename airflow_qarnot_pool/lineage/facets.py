"""Decide the content of OpenLineage events: datasets, and facets as mappings. Pure functions.

The names of the figures are those of the other reports of costs. The schemas of the facets are the files in
``schemas/``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.lineage.places import Place

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Pool, Task
    from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec

#: Maximum number of inputs, and of outputs, of an event.
MAX_DATASETS = 100
#: Maximum number of uuids in a facet.
MAX_UUIDS = 100
#: Maximum characters of a text in a facet.
MAX_TEXT = 4_000
#: Shorter secrets are not searched in texts, in which they could be anything.
MIN_SECRET = 4
MASK = "***"
#: An apostrophe of a word that ``shlex.quote`` has quoted.
QUOTED_APOSTROPHE = "'\"'\"'"

#: Facets of a run and of a job by their keys, with the files of their schemas.
RUN_FACETS = {
    "qarnot_task": "QarnotTaskRunFacet",
    "qarnot_pool": "QarnotPoolRunFacet",
    "qarnot_cost": "QarnotCostRunFacet",
}
JOB_FACETS = {"qarnot_container": "QarnotContainerJobFacet"}


@dataclass(kw_only=True)
class Report:
    """The lineage of a run. ``run`` and ``job`` are the facets by their keys."""

    inputs: list[Place] = field(default_factory=list)
    outputs: list[Place] = field(default_factory=list)
    run: dict[str, dict[str, Any]] = field(default_factory=dict)
    job: dict[str, dict[str, Any]] = field(default_factory=dict)

    def masked(self, mask: Callable[[str], str]) -> Report:
        """Return the report with masked texts."""
        return Report(
            inputs=[replace(one, prefix=mask(one.prefix)) for one in self.inputs],
            outputs=[replace(one, prefix=mask(one.prefix)) for one in self.outputs],
            run=_each_text(self.run, mask),
            job=_each_text(self.job, mask),
        )


def inputs_of(specs: Iterable[PoolSpec | TaskSpec]) -> list[Place]:
    """Return the places of the resource buckets, each once."""
    buckets: Iterable[Any] = (one for spec in specs for one in spec.resource_buckets or ())
    return _first_of(Place.of(one.bucket, one.prefix) for one in buckets)


def outputs_of(specs: Iterable[PoolSpec | TaskSpec]) -> list[Place]:
    """Return the places of the result buckets, each once."""
    return _first_of(
        Place.of(bucket, getattr(spec, "results_prefix", None))
        for spec in specs
        if (bucket := getattr(spec, "result_bucket", None))
    )


def container(spec: PoolSpec | TaskSpec, work: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facet of the job.

    :param work: fields about the command or function.
    """
    return _given({"image": image_of(spec), "profile": spec.profile, **work})


def image_of(spec: PoolSpec | TaskSpec) -> str | None:
    """Return ``[registry/]repository[:tag]``; None if the pool or Qarnot chooses it."""
    if spec.image:
        return spec.image
    repository, tag = (spec.constants.get(name) for name in ("DOCKER_REPO", "DOCKER_TAG"))
    return f"{repository}:{tag}" if repository and tag else repository


def command_of(spec: PoolSpec | TaskSpec) -> str | None:
    """Return the command of each instance."""
    command = getattr(spec, "command", None) or spec.constants.get("DOCKER_CMD")
    return None if command is None else str(command)


def task_facet(task: Task, decision: str | None, console: str) -> dict[str, Any]:
    """Return the facet of a Qarnot task."""
    return _given(
        {
            "uuid": task.uuid,
            "name": task.name,
            "state": task.state,
            "decision": decision,
            "console": console,
            "instances": task.instances,
            "succeeded": len(task.succeeded_instances),
            "failed": len(task.failed_instances),
            "created": _text(task.creation_date),
            "ended": _text(task.end_date),
            "execution_seconds": task.executed_seconds,
        }
    )


def tasks_facet(succeeded: Mapping[int, str | None], failed: Mapping[int, str | None], total: int) -> Any:
    """Return the facet of many Qarnot tasks, given their uuids by item."""
    uuids = [uuid for uuid in (*succeeded.values(), *failed.values()) if uuid]
    return {
        "total": total,
        "succeeded": len(succeeded),
        "failed": len(failed),
        "uuids": sorted(uuids)[:MAX_UUIDS],
    }


def pool_facet(pool: Pool, decision: str | None, console: str) -> dict[str, Any]:
    """Return the facet of a pool."""
    return _given(
        {
            "uuid": pool.uuid,
            "name": pool.name,
            "state": pool.state,
            "decision": decision,
            "console": console,
            "slots_per_node": pool.slots_per_node,
            "created": _text(pool.creation_date),
            "ended": _text(pool.end_date),
        }
    )


def cost_facet(figures: Mapping[str, float | None], scope: str) -> dict[str, Any]:
    """Return the facet of a cost, without unknown figures.

    :param figures: ``Cost.to_json()``.
    :param scope: ``pool``, ``task`` or ``execution``, as in the schema.
    """
    return {"scope": scope, **_given(figures)}


def masking(secrets: Iterable[str], redact: Callable[[str], str]) -> Callable[[str], str]:
    """Return the function that masks *secrets* and all that *redact* knows, and then shortens the text."""
    known = sorted({one for one in secrets if len(one) >= MIN_SECRET}, key=len, reverse=True)

    def hide(text: str) -> str:
        for secret in known:
            text = text.replace(secret, MASK)
        return redact(text)

    def mask(text: str) -> str:
        plain = text.replace(QUOTED_APOSTROPHE, "'")
        hidden = hide(plain)
        text = hidden if hidden != plain else hide(text)
        return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 3]}..."

    return mask


def _first_of(places: Iterable[Place]) -> list[Place]:
    return list(dict.fromkeys(places))[:MAX_DATASETS]


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in (None, "")}


def _text(moment: datetime | None) -> str | None:
    # Qarnot writes the year 1 for "not yet".
    return None if moment is None or moment.year < 1971 else moment.isoformat()


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _each_text(entry, change) for name, entry in value.items()}
    return [_each_text(entry, change) for entry in value] if isinstance(value, list) else value


__all__ = [
    "JOB_FACETS",
    "RUN_FACETS",
    "Report",
    "command_of",
    "container",
    "cost_facet",
    "image_of",
    "inputs_of",
    "masking",
    "outputs_of",
    "pool_facet",
    "task_facet",
    "tasks_facet",
]
