"""Check that an api-server is that of the deployment whose DAG runs made the objects of a namespace.

Another deployment truly does not know these DAG runs, or knows others with the same ids, because scheduled runs of one
DAG have equal ids in staging and production. The start of a run, to the microsecond, tells them apart. It is a label of
the objects of operators. A Qarnot task of the executor has the id of its Airflow task instance, which no other Airflow
has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api import filters, states
from airflow_qarnot_pool.api.limits import parse_number
from airflow_qarnot_pool.maintenance.airflow_api import AirflowApiError
from airflow_qarnot_pool.ownership.identity import (
    RunKey,
    instance_of,
    is_ours,
    label,
    namespace_tag,
    run_of,
)

if TYPE_CHECKING:
    from uuid import UUID

    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Pool, Task
    from airflow_qarnot_pool.maintenance.airflow_api import AirflowApi

#: Maximum number of DAG runs and task instances that are looked up to find one that has made an object.
MAX_LOOKUPS = 50
#: Number of the newest objects of each kind whose DAG runs are looked up.
_PAGE_SIZE = 100


@dataclass(frozen=True, kw_only=True)
class _Maker:
    """The DAG run that has made an object, and its start, or the id of the Airflow task instance."""

    run: RunKey
    started: datetime | None = None
    task_id: str = ""
    map_index: int = -1
    instance: UUID | None = None

    @classmethod
    def of(cls, remote: Pool | Task) -> _Maker | None:
        """Return the maker of *remote*; None if nothing tells it from that of another Airflow."""
        if (started := _run_start_of(remote)) is not None:
            return cls(run=run_of(remote), started=started)
        if (instance := instance_of(remote)) is None:
            return None
        index = parse_number(label(remote.labels, "map_index"))
        return cls(
            run=run_of(remote),
            task_id=label(remote.labels, "task_id") or "",
            map_index=-1 if index is None else index,
            instance=instance,
        )

    def is_known_to(self, api: AirflowApi) -> bool:
        """Return whether the Airflow of *api* has it.

        :raises AirflowApiError: the response does not say so.
        """
        if self.instance is not None:
            return api.task_instance_id(self.run, self.task_id, self.map_index) == str(self.instance)
        found = api.dag_run(*self.run)
        return found is not None and found.started == self.started


def check_deployment(client: QarnotClient, namespace: str, api: AirflowApi) -> None:
    """Find one DAG run or task instance that has made an object in *namespace*, the newest objects first.

    Nothing is wrong if no object may cost.

    :raises AirflowApiError: there is none.
    """
    problem = ""
    for maker in islice(_newest_makers(client, namespace), MAX_LOOKUPS):
        try:
            if maker.is_known_to(api):
                return
        except AirflowApiError as error:  # such as a DAG that the user may not see
            problem = f" {error}"
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


def _newest_makers(client: QarnotClient, namespace: str) -> Iterator[_Maker]:
    """Yield the makers of the newest objects, each once."""
    seen: set[_Maker] = set()
    for remote in _newest(client, namespace):
        if (maker := _Maker.of(remote)) is not None and maker not in seen:
            seen.add(maker)
            yield maker


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
