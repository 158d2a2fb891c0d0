"""The size of a pool with ``instance_count="auto"``: the cheapest one within a tolerance of the fastest.

It is chosen from the records of earlier runs, as long as Qarnot keeps their pools. The choice is not part of the
fingerprint of the pool. So a retry adopts the pool of an earlier try with its size, whatever it would have chosen.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.errors import QarnotError, QarnotInvalidSpecError
from airflow_qarnot_pool.api.fields import integer, short_repr
from airflow_qarnot_pool.parameters.configuration import get_option

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.operators.create_pool import QarnotCreatePoolOperator

#: Nodes of the first run, of which there is no record.
FIRST_GUESS = 4
#: Maximum nodes, unless the parameter or the configuration has another bound.
MAX_NODES = 16
#: Seconds for each request for records, because the pool must not wait for them for long.
READ_TIMEOUT = 15.0
_AUTO = re.compile(r"auto(?::([1-9][0-9]{0,5}))?")


def largest_size(instance_count: Any, slots_per_node: Any, *, configured: bool = True) -> int | None:
    """Return the maximum slots of ``"auto"`` or ``"auto:20"``; None for any other *instance_count*.

    :param configured: whether ``[qarnot] max_instance_count`` counts, which may be another one on another worker.
    :raises QarnotInvalidSpecError: the bound is no number of 1 or more.
    """
    text = instance_count.strip().lower() if isinstance(instance_count, str) else ""
    if not text.startswith("auto"):
        return None
    match = _AUTO.fullmatch(text)
    if match is None:
        raise QarnotInvalidSpecError(
            f"instance_count has no valid maximum after 'auto', got {short_repr(instance_count)}",
            field="instance_count",
            remedy='Write "auto", or "auto:20" for at most 20 slots.',
        )
    if match[1]:
        return int(match[1])
    default = MAX_NODES * _slots(slots_per_node)
    return int(get_option("max_instance_count", integer(1, 999_999), default)) if configured else default


def first_guess(largest: int, slots_per_node: Any) -> int:
    """Return the slots of a first run."""
    return min(largest, FIRST_GUESS * _slots(slots_per_node))


def _slots(slots_per_node: Any) -> int:
    text = str(slots_per_node or 1).strip()
    return max(1, int(text)) if text.isdigit() else 1


def choose_size(
    operator: QarnotCreatePoolOperator, context: Context, slots_per_node: Any, largest: int
) -> int:
    """Return a size, in slots, from the records of earlier runs, and log the reason. Without one it is a guess."""
    guess = first_guess(largest, slots_per_node)
    try:
        size = _size_from_records(operator, context, largest)
    except QarnotError as error:
        operator.log.warning("instance_count is %d, because no record could be read: %s", guess, error)
        return guess
    if size is None:
        operator.log.info("instance_count is %d, the first guess, because no earlier run has a record", guess)
    return size or guess


def _size_from_records(operator: QarnotCreatePoolOperator, context: Context, largest: int) -> int | None:
    from airflow_qarnot_pool.sizing.curve import choose, describe_choice, points_of
    from airflow_qarnot_pool.sizing.records import PoolOpener, ended_pools, records_of, upstreams_in

    ti = context["ti"]
    client = operator.client.limited(retries=1, deadline=READ_TIMEOUT)
    opener = PoolOpener(ti.dag_id, ti.task_id, str(-1 if ti.map_index is None else ti.map_index))
    pools = ended_pools(client, operator.hook.settings.namespace, ti.dag_id).get(opener, ())
    has_dag = operator.has_dag()  # type: ignore[no-untyped-call]
    records = records_of(client, pools, upstreams_in(operator.dag) if has_dag else None)
    if not records:
        return None
    points = points_of(records, largest)
    chosen = choose(points)
    operator.log.info(
        "instance_count is %d of at most %d, from %d earlier run%s. %s",
        chosen.size,
        largest,
        len(records),
        "" if len(records) == 1 else "s",
        describe_choice(points, chosen),
    )
    return chosen.size
