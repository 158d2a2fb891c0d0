"""Ask a person before a run that will cost more than a price.

`estimate` replays the last runs at other sizes of the pool. If the run will probably cost more than `max_euros`,
Airflow asks for approval (*Required Actions* in its UI) and shows the estimate and the cost of other sizes. A rejected
run is skipped, and opens no pool.

The first run has no estimate and is not asked for. Its pool closes when it has cost `max_euros`. A later run may cost
twice its estimate.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, Param, get_current_context, task

from airflow_qarnot_pool.hooks.qarnot import QarnotHook
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

try:
    from airflow.providers.standard.operators.hitl import ApprovalOperator
except ImportError:  # an old standard provider
    ApprovalOperator = None  # type: ignore[assignment,misc]

#: The largest pool of a run.
MAX_SLOTS = 8
ESTIMATE = "ti.xcom_pull('estimate')"

with DAG(
    "qarnot_ask_before_cost",
    description="Approval of a run above a price",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    tags=["qarnot"],
    params={
        "max_euros": Param(1.0, type="number", minimum=0.01, title="Euros above which a person is asked"),
        "seconds": Param(2, type="number", minimum=0, title="Seconds that each task works"),
    },
) as dag:

    @task
    def estimate() -> dict[str, Any]:
        """Return the probable cost of this run, and the limit of its pool."""
        from airflow_qarnot_pool.sizing.records import estimate_of

        context, hook = get_current_context(), QarnotHook()
        found = estimate_of(
            hook.client, hook.settings.namespace, context["dag"], "nodes.open_pool", MAX_SLOTS
        )
        price = context["params"]["max_euros"]
        return {**found, "limit": max(price, 2 * (found["euros"] or 0.0))}

    @task.branch
    def is_dear(found: Any) -> str:
        """Return the next task: to ask, or to start."""
        price = get_current_context()["params"]["max_euros"]
        return "ask" if (found["euros"] or 0.0) > price else "start"

    if ApprovalOperator is not None:
        ask: Any = ApprovalOperator(
            task_id="ask",
            subject=f"Spend about {{{{ '%.2f' % {ESTIMATE}['euros'] }}}} EUR on {{{{ dag.dag_id }}}}?",
            body=f"Its pool is closed above {{{{ '%.2f' % {ESTIMATE}['limit'] }}}} EUR. "
            f"The mean of {{{{ {ESTIMATE}['runs'] }}}} runs at each size:\n\n"
            f"```\n{{{{ {ESTIMATE}['table'] }}}}\n```",
        )
    else:

        @task(task_id="ask")
        def refuse() -> None:
            """Fail, because nobody can be asked."""
            raise RuntimeError(
                "The run is too dear. Upgrade apache-airflow-providers-standard to ask a person."
            )

        ask = refuse()

    @task(trigger_rule="none_failed_min_one_success")
    def start() -> None:
        """Start without approval, or after it."""

    found = estimate()
    choice, started = is_dear(found), start()
    choice >> [ask, started]
    ask >> started
    with QarnotPoolGroup(
        "nodes", instance_count=f"auto:{MAX_SLOTS}", max_cost=f"{{{{ {ESTIMATE}['limit'] }}}}"
    ) as nodes:
        parts = QarnotRunTaskOperator.partial(task_id="part", command="sleep {{ params.seconds }}").expand(
            constants=[{"PART": str(part)} for part in range(6)]
        )
        parts >> QarnotRunTaskOperator(task_id="merge", command="sleep {{ params.seconds }}")
    started >> nodes
