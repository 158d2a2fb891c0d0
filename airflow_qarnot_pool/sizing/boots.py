"""How long pools of one shared name took to boot, from their record on Qarnot.

A pool that scales to zero boots for its warm-up, a Qarnot task that is aborted as soon as the pool is ready. The time
from the creation of the pool to the end of the warm-up is the boot. Both objects stay on Qarnot for a week after their
end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api import filters
from airflow_qarnot_pool.api.states import TaskState
from airflow_qarnot_pool.ownership.identity import OWNER_TAG, namespace_tag

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Pool, Task
    from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity

#: The boot to expect while no pool of the name has a record.
FIRST_GUESS = timedelta(minutes=2)
#: Maximum number of boots that count, the latest ones, because the service changes.
MAX_BOOTS = 20
#: Share of the boots that the expected boot is not shorter than.
QUANTILE = 0.9
#: Maximum time from the creation of a pool to that of the warm-up that boots it. A later one may find nodes up.
MAX_LATER = timedelta(seconds=30)


@dataclass(frozen=True, kw_only=True)
class Boot:
    """One boot: its duration, and the node-seconds that were paid until all nodes were up."""

    duration: timedelta
    node_seconds: float


def boots_of(pools: Iterable[Pool], warm_ups: Iterable[Task]) -> list[Boot]:
    """Return the boots that *pools* and their *warm_ups* show, the latest first.

    A warm-up counts if it was aborted after an instance had run. One that was not aborted held the nodes longer than
    the boot, and one that never ran was aborted with its pool.
    """
    created = {pool.uuid: pool for pool in pools}
    boots = [
        (task.creation_date, _boot(created[task.pool], task))
        for task in warm_ups
        if task.creation_date is not None and task.pool in created
    ]
    latest_first = (boot for _, boot in sorted(boots, key=itemgetter(0), reverse=True))
    return list(islice((boot for boot in latest_first if boot is not None), MAX_BOOTS))


def _boot(pool: Pool, warm_up: Task) -> Boot | None:
    started, ended, opened = warm_up.creation_date, warm_up.end_date, pool.creation_date
    if started is None or ended is None or opened is None:
        return None
    if warm_up.state != TaskState.CANCELLED or not warm_up.has_run:
        return None
    if started - opened > MAX_LATER or ended <= opened:
        return None
    slots_per_node = pool.slots_per_node or 1
    return Boot(duration=ended - opened, node_seconds=(warm_up.executed_seconds or 0.0) / slots_per_node)


def expected_boot(durations: Sequence[timedelta], longest: timedelta) -> timedelta:
    """Return the 90th percentile (nearest rank) of *durations*, or :data:`FIRST_GUESS` without any.

    :param longest: maximum of the result.
    """
    ordered = sorted(durations)
    expected = ordered[math.ceil(QUANTILE * len(ordered)) - 1] if ordered else FIRST_GUESS
    return min(expected, longest)


def read_boots(client: QarnotClient, identity: TaskInstanceIdentity, warm_up_name: str) -> list[Boot]:
    """Return the boots of the last pools of a shared name. This takes two requests.

    :param identity: a user of the shared pool.
    :param warm_up_name: name of the warm-ups of the pool.
    """
    of_name = filters.equal("Tags", OWNER_TAG + identity.owner)
    warm_ups = filters.and_(
        filters.equal("Tags", namespace_tag(identity.namespace)), filters.equal("Name", warm_up_name)
    )
    latest: dict[str, Any] = {"limit": MAX_BOOTS, "order_by": "creationDate", "descending": True}
    return boots_of(
        list(islice(client.pools.iterate(of_name, **latest), MAX_BOOTS)),
        list(islice(client.tasks.iterate(warm_ups, **latest), MAX_BOOTS)),
    )
