"""What type checkers say of decorated functions: ``make types`` reads this, nothing runs it.

A line that must be refused says so; where it is not, mypy reports the comment as unused.
"""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

from airflow.sdk import DAG, task

from airflow_qarnot_pool.decorators.qarnot import qarnot_task

with DAG("typed", schedule=None):

    @qarnot_task
    def plain(x: int, y: str = "") -> float:
        return x * 0.5

    @qarnot_task(
        environment={"requirements": ["numpy"]},
        timeout=timedelta(minutes=1),
        retries=3,
        task_id="other",
        log_output="live",
    )
    def configured(x: int) -> list[int]:
        return [x]

    @task.qarnot(image="python:3.13-slim", multiple_outputs=True)
    def by_airflow(x: int) -> dict[str, int]:
        return {"x": x}

    # The function itself keeps its types; a call takes and gives XComs, too.
    assert_type(plain.function(1, y="a"), float)
    assert_type(configured.function(1), list[int])
    plain.function("1")  # type: ignore[arg-type]
    one = plain(1)
    plain(configured(one))
    plain.partial(y="a").expand(x=[1, 2])
    plain.expand_kwargs([{"x": 1}])
    plain.partial(y="a").array(x=range(10))
    plain.override(chunk_size=5).array(x=configured(one), y=["a", "b"])
    plain.override(task_id="again", qarnot_pool="shared")(1)
    by_airflow(one)
    by_airflow.expand(x=[1, 2])

    @qarnot_task(timeout=[5])  # type: ignore[call-overload, untyped-decorator]
    def no_duration() -> None: ...

    @qarnot_task(serializer="cloudpickle")  # type: ignore[call-overload, untyped-decorator]
    def no_such_serializer() -> None: ...

    @qarnot_task(task_spec=["retry"])  # type: ignore[call-overload, untyped-decorator]
    def no_specification() -> None: ...
