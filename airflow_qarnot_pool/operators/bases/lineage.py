"""Describe the run of an operator for OpenLineage, and the places that it reads and writes.

OpenLineage's listener calls this in a child process of the task, in which nothing may fail or last. So all requests use
a new client, because the child has the open connections of its parent, and few seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.errors import QarnotError
from airflow_qarnot_pool.api.specs import PER_TRY_CONSTANTS
from airflow_qarnot_pool.lineage.facets import (
    Report,
    container,
    cost_facet,
    inputs_of,
    masking,
    outputs_of,
    pool_facet,
    task_facet,
)
from airflow_qarnot_pool.version_compat import mask_new_secrets_in_openlineage, redact

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Pool, Task
    from airflow_qarnot_pool.costs.model import Cost
    from airflow_qarnot_pool.operators.bases.base import QarnotOperator

#: Seconds for one request. The listener gives all of them 10, and there are at most five.
REQUEST_TIMEOUT = 1.5


@dataclass(kw_only=True)
class Figures:
    """The objects of an operator and their cost on Qarnot. ``scope`` is that of the cost (see ``cost_facet``)."""

    task: Task | None = None
    pool: Pool | None = None
    cost: Cost | None = None
    scope: str = ""


def describe_start(operator: QarnotOperator) -> Any:
    """Return the ``OperatorLineage`` of an operator that starts or resumes, by its parameters."""
    return _lineage(operator, _report(operator))


def describe_end(operator: QarnotOperator) -> Any:
    """Return the ``OperatorLineage`` of an operator that has ended, with figures from Qarnot."""
    report = _report(operator)
    # Without a connection that has been read, there is no object to ask for.
    if "hook" in vars(operator):
        settings = operator.hook.settings
        client = settings.client(retries=0, timeout=REQUEST_TIMEOUT, deadline=REQUEST_TIMEOUT)
        with client:
            figures = read_figures(operator, client)
        report.run |= _run_facets(operator, figures)
    report.run |= operator._describe_items()
    return _lineage(operator, report)


def _run_facets(operator: QarnotOperator, figures: Figures) -> dict[str, dict[str, Any]]:
    facets, link = {}, operator.hook.settings.console_link
    # The decision is about the object that the operator creates.
    decisions = {operator.kind: operator._decision} if hasattr(operator, "kind") else {}
    if (task := figures.task) is not None:
        facets["qarnot_task"] = task_facet(task, decisions.get("task"), link("task", task.uuid))
    if (pool := figures.pool) is not None:
        facets["qarnot_pool"] = pool_facet(pool, decisions.get("pool"), link("pool", pool.uuid))
    if figures.cost is not None:
        facets["qarnot_cost"] = cost_facet(figures.cost.to_json(), figures.scope)
    return facets


def read_figures(operator: QarnotOperator, client: QarnotClient) -> Figures:
    """Request the figures of *operator*. Those that Qarnot does not report in time are missing."""
    from airflow_qarnot_pool.costs import queries

    figures, reference = Figures(), operator.hook.settings.reference_datacenter
    with _ignoring_errors(operator):
        if uuid := operator._objects.get("task"):
            figures.task = client.tasks.get(uuid)
        pool = figures.task.pool if figures.task is not None else operator._objects.get("pool")
        if pool:
            figures.pool = client.pools.get(pool)
    with _ignoring_errors(operator):
        seconds = figures.task.executed_seconds if figures.task is not None else None
        if figures.task is None:
            seconds = operator._executed_seconds(client)
        if figures.task is not None and not figures.task.pool:
            figures.cost = queries.cost_of_standalone_task(client, figures.task, reference)
            figures.scope = "task"
        elif figures.pool is not None and seconds is not None:
            figures.cost = queries.cost_of_execution(client, figures.pool, seconds, reference)
            figures.scope = "execution"
        elif figures.pool is not None and not operator.owns:
            figures.cost = queries.billed_cost_of_pool(client, figures.pool, reference)
            figures.scope = "pool"
    return figures


def _report(operator: QarnotOperator) -> Report:
    """Return the report by the parameters, which is empty if they are wrong."""
    try:
        specs = operator._given_specs()
        report = Report(inputs=inputs_of(specs), outputs=outputs_of(specs))
        if specs and (facet := container(specs[0], operator._describe_work(specs[0]))):
            report.job["qarnot_container"] = facet
    except (QarnotError, ValueError) as error:  # the task itself fails with it
        operator.log.debug("The lineage of the parameters is unknown: %s", error)
        return Report()
    return report


def _lineage(operator: QarnotOperator, report: Report) -> Any:
    from airflow.providers.common.compat.openlineage.utils.utils import translate_airflow_asset

    from airflow_qarnot_pool.lineage.openlineage import operator_lineage

    mask_new_secrets_in_openlineage()
    masked = report.masked(masking(operator._secrets(), redact))

    def declared(assets: Any) -> list[Any]:
        # OpenLineage reads these itself only if an operator names neither inputs nor outputs.
        found = (translate_airflow_asset(one, None) for one in assets if getattr(one, "uri", None))
        return [one for one in found if one is not None]

    return operator_lineage(masked, declared(operator.inlets), declared(operator.outlets))


def parent_constants(operator: QarnotOperator, context: Context) -> dict[str, str]:
    """Return the ids of the OpenLineage runs of the Airflow task and of its DAG run, for programs on the nodes.

    Each is ``namespace/job/run id``. A Qarnot task that a retry adopts keeps the ids of the try that created it.
    """
    try:
        from airflow.providers.openlineage.plugins.macros import lineage_parent_id, lineage_root_parent_id

        ti = context["ti"]
        ids = (lineage_parent_id(ti), lineage_root_parent_id(ti))
    except Exception as error:  # no work fails for want of lineage
        operator.log.warning("The nodes get no ids of OpenLineage runs: %s", error)
        return {}
    return dict(zip(PER_TRY_CONSTANTS, ids, strict=True))


@contextmanager
def _ignoring_errors(operator: QarnotOperator) -> Iterator[None]:
    try:
        yield
    except QarnotError as error:
        operator.log.info("Figures are missing in the lineage: %s", error)


__all__ = ["Figures", "describe_end", "describe_start", "parent_constants", "read_figures"]
