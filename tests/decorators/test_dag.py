"""``@task.qarnot`` through ``dag.test()``: templates, XComs in and out, ``override``, and a failure."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from tests.dags.test_examples import LOCAL_BUNDLE, Run, client

# Without the directory's own fixtures: this wants the session's server, which the examples use.
from tests.conftest import qarnot  # isort: skip

pytestmark = pytest.mark.usefixtures("airflow_db", "qarnot_connection")
__all__ = ["client", "qarnot"]

FILE = """
from airflow.sdk import DAG, task
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup


@task
def numbers() -> list[int]:
    return [1, 2, 3]


with DAG("functions", schedule=None) as dag:
    with QarnotPoolGroup("g", setup_retries=0):

        @task.qarnot
        def total(numbers: list[int], run: str, *, times: int = 1) -> dict[str, object]:
            return {"total": sum(numbers) * times, "run": run}

        @task.qarnot(multiple_outputs=True)
        def parted(text: str) -> dict[str, str]:
            left, right = text.split("-")
            return {"left": left, "right": right}

        @task.qarnot(log_output="live")
        def joined(left: str, right: str) -> str:
            print("joining", left, right)
            return left + right

        parts = parted("a-b")
        words = joined.partial(right=parts["right"]).expand(left=["a", "c"])
        rows = joined.override(task_id="rows").expand_kwargs(
            [{"left": "1", "right": "2"}, {"left": "3", "right": "4"}]
        )

        @task.qarnot
        def plus(number: int, more: int) -> int:
            return number + more

        sums = plus.partial(more=1).array(number=numbers())
        again = plus.override(task_id="again").array(number=sums, more=[0, 10])

        @task.qarnot
        def shouted(word: str) -> str:
            return word.upper()

        shouted.array(word=words)

        @task.qarnot
        def collected(words: list[str], rows: list[str]) -> list[list[str]]:
            return [words, rows]

        collected(words, rows)

        @task.qarnot(deferrable=False)
        def fails(before: dict[str, object]) -> None:
            raise LookupError(f"nothing after {before['total']}")

        first = total(numbers(), "{{ dag_run.run_id }}")
        second = total.override(task_id="doubled", log_output=False)(numbers(), "r", times=2)
        fails(second)
"""


def test_functions_in_a_dag(
    client: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundles = [{"name": "functions", "classpath": LOCAL_BUNDLE, "kwargs": {"path": str(tmp_path)}}]
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps(bundles))
    (tmp_path / "functions.py").write_text(FILE)
    run = Run.__new__(Run)
    dag = runpy.run_path(str(tmp_path / "functions.py"))["dag"]
    run.dag_run, run._client = dag.test(), client  # type: ignore[assignment]
    assert run.states["g.fails"] == "failed"
    assert run.states["g.total"] == run.states["g.doubled"] == "success", run.states
    assert run.only_pool().state == "Closed"
    ti = run.dag_run.get_task_instance("g.total")
    assert ti.xcom_pull(task_ids="g.total") == {"total": 6, "run": run.dag_run.run_id}
    assert ti.xcom_pull(task_ids="g.doubled") == {"total": 12, "run": "r"}
    assert ti.xcom_pull(task_ids="g.shouted") == ["AB", "CB"]
    assert ti.xcom_pull(task_ids="g.plus") == [2, 3, 4]
    assert ti.xcom_pull(task_ids="g.again") == [2, 12, 3, 13, 4, 14]
    assert ti.xcom_pull(task_ids="g.parted", key="left") == "a"
    assert ti.xcom_pull(task_ids="g.collected") == [["ab", "cb"], ["12", "34"]]
    logged = capsys.readouterr().out
    assert logged.count("[stdout] joining 1 2") == 1
    assert "fails() raised LookupError: nothing after 12" in logged
    assert 'File "functions.py", line 2, in fails' in logged
