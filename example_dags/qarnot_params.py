"""Triggered from the UI: its form asks for the size of the pool, the image, the command and how many items.

The answers are Params, so Airflow checks them before anything is booted. `items` becomes one mapped task, and one
Qarnot task, for each item; the command finds the item's number in `$ITEM`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, chain, task

from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator

POOL, WORK = "The pool", "The work"
COMMAND = """sh -c 'echo "item $ITEM"; sleep 1'"""
IMAGES = ["library/ubuntu:24.04", "library/python:3.13-slim", "library/alpine:3.22"]
PARAMS = {
    "nodes": Param(2, type="integer", minimum=1, maximum=16, section=POOL, title="Nodes"),
    "slots_per_node": Param(
        1,
        type="integer",
        enum=[1, 2, 4, 8],
        section=POOL,
        title="Slots per node",
        description="How many items share one node at a time.",
    ),
    "items": Param(6, type="integer", minimum=1, maximum=200, section=WORK, title="Number of items"),
    "image": Param(IMAGES[0], type="string", enum=IMAGES, section=WORK, title="Container image"),
    "command": Param(
        COMMAND,
        type="string",
        minLength=1,
        section=WORK,
        title="Command",
        description="What runs for each item; its number is in $ITEM.",
    ),
}


@task
def items(params: dict[str, Any] | None = None) -> list[dict[str, str]]:
    """The constants of each item's Qarnot task."""
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
    ).expand(constants=items())
    chain(open_pool, work, close_pool)
