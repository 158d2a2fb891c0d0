"""Check that an api-server is that of the deployment whose DAG runs made the objects of a namespace.

Another deployment truly does not know these DAG runs, or knows others with the same ids, because scheduled runs of one
DAG have equal ids in staging and production. The start of a run, to the microsecond, tells them apart. It is a label of
every object.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api import filters, states
from airflow_qarnot_pool.maintenance.airflow_api import AirflowApiError
from airflow_qarnot_pool.ownership.identity import RunKey, is_ours, label, namespace_tag, run_of

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Pool, Task
    from airflow_qarnot_pool.maintenance.airflow_api import AirflowApi

#: Maximum number of DAG runs that are looked up to find one with the start that its objects have.
MAX_LOOKUPS = 50
#: Number of the newest objects of each kind whose DAG runs are looked up.
_PAGE_SIZE = 100


def check_deployment(client: QarnotClient, namespace: str, api: AirflowApi) -> None:
    """Find one DAG run with the start that its objects in *namespace* have, the newest objects first.

    Nothing is wrong if no object may cost.

    :raises AirflowApiError: there is none.
    """
    problem = ""
    for run, started in islice(_newest_runs(client, namespace), MAX_LOOKUPS):
        try:
            found = api.dag_run(*run)
        except AirflowApiError as error:  # such as a DAG that the user may not see
            problem = f" {error}"
            continue
        if found is not None and found.started == started:
            return
    if _has_unfinished(client, namespace):
        raise AirflowApiError(
            f"No DAG run at {api.url} has the start that the objects of namespace {namespace} have. Check that this is "
            "the deployment of that namespace. If it is, and its DAG runs were cleared or deleted, give "
            f"--skip-deployment-check.{problem}"
        )


def run_state_of(remote: Pool | Task, api: AirflowApi) -> str | None:
    """Return the state of the DAG run that made *remote*; None if it does not exist.

    :raises AirflowApiError: the state is not known, or the run started before the one that made *remote*. A clear only
        moves the start of a run to a later time.
    """
    run, started = run_of(remote), _run_start_of(remote)
    found = api.dag_run(*run)
    if found is None:
        return None
    if started is not None and found.started is not None and found.started < started:
        raise AirflowApiError(
            f"DAG run {run.run_id} of {run.dag_id} at {api.url} started at {found.started}, before the one that made "
            f"this object ({started}). Check that this is the deployment of its namespace."
        )
    return found.state


def _newest_runs(client: QarnotClient, namespace: str) -> Iterator[tuple[RunKey, datetime]]:
    """Yield the DAG runs that made the newest objects, and their starts, each once."""
    seen: set[tuple[RunKey, datetime]] = set()
    for remote in _newest(client, namespace):
        started = _run_start_of(remote)
        if started is not None and (one := (run_of(remote), started)) not in seen:
            seen.add(one)
            yield one


def _newest(client: QarnotClient, namespace: str) -> Iterator[Pool | Task]:
    tagged = filters.equal("Tags", namespace_tag(namespace))
    resources: tuple[Any, ...] = (client.pools, client.tasks)
    for resource in resources:
        page = resource.page(tagged, limit=_PAGE_SIZE, order_by="creationDate", descending=True)
        yield from (remote for remote in page if is_ours(remote, namespace))


def _run_start_of(remote: Pool | Task) -> datetime | None:
    """Return the start of the DAG run that made *remote*, from its label; None if it is unknown."""
    try:
        started = datetime.fromisoformat(label(remote.labels, "run_started") or "")
    except ValueError:
        return None
    return started if started.tzinfo else None


def _has_unfinished(client: QarnotClient, namespace: str) -> bool:
    """Return whether an object of *namespace* may cost."""
    tagged = filters.equal("Tags", namespace_tag(namespace))
    pools = [state for state in states.PoolState if state not in states.POOL_TERMINAL]
    tasks = [state for state in states.TaskState if state not in states.TASK_TERMINAL]
    kinds: tuple[tuple[Any, list[Any]], ...] = ((client.pools, pools), (client.tasks, tasks))
    return any(
        is_ours(remote, namespace)
        for resource, unfinished in kinds
        for remote in resource.iterate(filters.and_(tagged, filters.in_("State", unfinished)))
    )
