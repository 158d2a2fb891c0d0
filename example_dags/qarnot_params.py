"""A DAG to trigger from the UI, with a form for the size of the pool, the image, the command and the number of items.

The values are Params, so Airflow checks them before a pool boots. Each item is one mapped task and one Qarnot task. The
command has the item's number in `$ITEM`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, chain, task

from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator

COMMAND = """sh -c 'echo "item $ITEM"; sleep 1'"""
IMAGES = {
    "library/ubuntu:24.04": "Ubuntu 24.04",
    "library/python:3.13-slim": "Python 3.13",
    "library/alpine:3.22": "Alpine 3.22, the smallest",
}
POOL: dict[str, Any] = {"section": "The pool", "type": "integer", "minimum": 1}
WORK: dict[str, Any] = {"section": "The work", "type": "string", "minLength": 1, "maxLength": 2048}
MANY: dict[str, Any] = {"section": "The work", "type": "integer", "minimum": 1, "maximum": 200}
#: Default, kind, title and description of each field of the form.
PARAMS = {
    "nodes": Param(2, "Each is billed while it is up.", title="Nodes", maximum=16, **POOL),
    "slots_per_node": Param(
        1, "How many items share one node at a time.", title="Slots per node", enum=[1, 2, 4, 8], **POOL
    ),
    "items": Param(6, "One Qarnot task for each, numbered from 1.", title="Number of items", **MANY),
    "image": Param(
        next(iter(IMAGES)),
        "What the command finds installed.",
        title="Container image",
        enum=list(IMAGES),
        values_display=IMAGES,
        **WORK,
    ),
    "command": Param(COMMAND, "What runs for each item; its number is in `$ITEM`.", title="Command", **WORK),
}


@task
def items(params: dict[str, Any] | None = None) -> list[dict[str, str]]:
    """Return the constants of each item's Qarnot task."""
    assert params is not None
    return [{"ITEM": str(number + 1)} for number in range(params["items"])]


with DAG(
    "qarnot_params",
    description="Pool and work are chosen in the trigger form",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    tags=["qarnot"],
    params=PARAMS,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
) as dag:
    listed = items()
    open_pool = QarnotCreatePoolOperator(
        task_id="open_pool",
        instance_count="{{ params.nodes * params.slots_per_node }}",
        slots_per_node="{{ params.slots_per_node }}",
    ).as_setup()
    close_pool = QarnotClosePoolOperator(task_id="close_pool", qarnot_pool=open_pool.output).as_teardown(
        setups=open_pool
    )
    work = QarnotRunTaskOperator.partial(
        task_id="work",
        qarnot_pool=open_pool.output,
        image="{{ params.image }}",
        command="{{ params.command }}",
    ).expand(constants=listed)
    chain(listed, open_pool, work, close_pool)
