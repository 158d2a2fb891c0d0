"""The values that commands return, and the exit codes with which they skip, against the local Qarnot."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.commands import MARK
from airflow_qarnot_pool.decorators.qarnot import qarnot_task
from airflow_qarnot_pool.exceptions import (
    QarnotDeletedError,
    QarnotInvalidSpecError,
    QarnotKilledError,
    QarnotTaskFailedError,
)
from airflow_qarnot_pool.logs.writer import fetch
from airflow_qarnot_pool.operators import tasks as tasks_module
from airflow_qarnot_pool.operators.bases import command_result
from airflow_qarnot_pool.operators.bases.command_result import MAX_READERS
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.ownership.fan_out import FanOutState
from airflow_qarnot_pool.ownership.identity import RECORDABLE_LABEL, SPECS_LABEL
from airflow_qarnot_pool.version_compat import AirflowSkipException
from tests.harness import FakeTI, context_of, run

task = partial(QarnotRunTaskOperator, task_id="work")
tasks = partial(QarnotRunTasksOperator, task_id="many")
MODES = pytest.mark.parametrize("deferrable", [True, False], ids=["deferred", "on the worker"])

VALUE = """sh -c 'echo working; echo "{\\"loss\\": [0.5, \\"$NAME\\"]}" > $QARNOT_RETURN_FILE; printf end'"""
RETURNS = {"return_file": True}


SAID = """sh -c 'printf "%s" "$TEXT" > $QARNOT_RETURN_FILE'"""


@MODES
@pytest.mark.parametrize("log_output", [True, False, "live"])
def test_the_value_of_a_command_is_the_xcom(
    client: QarnotClient, pool: str, deferrable: bool, log_output: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    ti = FakeTI(run_id=f"value-{deferrable}-{log_output}", max_tries=1)
    make = partial(
        task,
        qarnot_pool=pool,
        command=VALUE,
        constants={"NAME": "é"},
        task_spec=RETURNS,
        deferrable=deferrable,
        log_output=log_output,
    )
    assert run(make, ti) == {"loss": [0.5, "é"]}
    first = ti.xcoms["qarnot_task"]
    logged = capsys.readouterr().out
    assert ("[stdout] working" in logged) == bool(log_output)
    assert ("[stdout] end" in logged) == bool(log_output)
    assert MARK not in logged
    # A retry adopts the Qarnot task and gets the same value.
    ti.try_number = 2
    assert run(make, ti) == {"loss": [0.5, "é"]}
    assert ti.xcoms["qarnot_task"] == first
    # No process records and deletes it before its value has been read.
    assert RECORDABLE_LABEL not in client.tasks.get(first).labels


def test_a_command_that_writes_no_file_returns_none(pool: str) -> None:
    make = partial(task, qarnot_pool=pool, command="true", task_spec=RETURNS)
    assert run(make, FakeTI(run_id="no-value")) is None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{'a': 1}", "is not JSON"),
        ('{"a": [0, NaN]}', r"has NaN at \['a'\]\[1\], which no XCom can have"),
        ("[" * 200 + "]" * 200, "nested too deeply"),
        (r'["\ud800"]', r"half of a surrogate pair at \[0\]"),
        ("99999999999999999999", "an integer of more than 64 bits"),
    ],
)
def test_a_file_that_is_no_xcom_fails_the_task(pool: str, text: str, named: str) -> None:
    make = partial(task, qarnot_pool=pool, command=SAID, constants={"TEXT": text}, task_spec=RETURNS)
    with pytest.raises(QarnotTaskFailedError, match=named) as caught:
        run(make, FakeTI(run_id=f"bad-{named}"))
    assert "QARNOT_RETURN_FILE" in str(caught.value)


def test_output_of_the_command_is_not_its_value(pool: str) -> None:
    make = partial(
        task,
        qarnot_pool=pool,
        command=f"sh -c 'echo \"{MARK}0.json.MQ==\"; echo 2 > $QARNOT_RETURN_FILE'",
        task_spec=RETURNS,
    )
    assert run(make, FakeTI(run_id="imitating")) == 2


@MODES
def test_an_exit_code_skips_the_airflow_task(client: QarnotClient, pool: str, deferrable: bool) -> None:
    ti = FakeTI(run_id=f"skip-{deferrable}", max_tries=1)
    make = partial(
        task,
        qarnot_pool=pool,
        command="sh -c 'exit 99'",
        task_spec={"skip_on_exit_code": 99, "retry": 3},
        deferrable=deferrable,
    )
    for ti.try_number in (1, 2):
        with pytest.raises(AirflowSkipException, match="exited with code 99"):
            run(make, ti)
    assert client.tasks.get(ti.xcoms["qarnot_task"]).state == "Success"


def test_another_exit_code_fails_and_success_returns_the_summary(pool: str) -> None:
    make = partial(task, qarnot_pool=pool, task_spec={"skip_on_exit_code": [99, 100]})
    with pytest.raises(QarnotTaskFailedError):
        run(partial(make, command="sh -c 'exit 9'"), FakeTI(run_id="code-9"))
    assert run(partial(make, command="true"), FakeTI(run_id="code-0"))["state"] == "Success"


def test_a_command_with_a_value_reports_its_progress(pool: str) -> None:
    ti = FakeTI(run_id="progress")
    command = """sh -c 'for n in 1 2; do echo "QARNOT_PROGRESS {\\"frames\\": $n}"; done'"""
    assert run(partial(task, qarnot_pool=pool, command=command, task_spec=RETURNS), ti) is None
    assert ti.xcoms["qarnot_progress"] == {"frames": 2}


# --- a fan-out

ITEMS = [
    {"constants": {"N": "1"}},
    {"constants": {"N": "99"}},
    {"command": "true", "return_file": False},
    {"constants": {"N": "4"}},
]
SQUARE = "sh -c '[ $N = 99 ] && exit 99; echo $((N * N)) > $QARNOT_RETURN_FILE'"


@MODES
def test_each_item_of_a_fan_out_returns_a_value(client: QarnotClient, pool: str, deferrable: bool) -> None:
    ti = FakeTI(run_id=f"items-{deferrable}", max_tries=1)
    make = partial(
        tasks,
        qarnot_pool=pool,
        command=SQUARE,
        commands=ITEMS,
        task_spec={"return_file": True, "skip_on_exit_code": 99},
        deferrable=deferrable,
    )
    result = run(make, ti)
    entries = [{key: value for key, value in one.items() if key != "uuid"} for one in result["results"]]
    assert entries == [
        {"item": 0, "state": "Success", "value": 1},
        {"item": 1, "state": "Skipped"},
        {"item": 2, "state": "Success", "value": None},
        {"item": 3, "state": "Success", "value": 16},
    ]
    assert {name: result[name] for name in ("total", "succeeded", "failed", "skipped")} == {
        "total": 4,
        "succeeded": 3,
        "failed": 0,
        "skipped": 1,
    }
    # A retry reads the same values, and runs nothing again.
    ti.try_number = 2
    assert run(make, ti) == result
    # No process records and deletes an item whose value may not have been read.
    assert all(SPECS_LABEL not in client.tasks.get(one["uuid"]).labels for one in result["results"])


def test_a_fan_out_of_which_all_items_skip_is_skipped(pool: str) -> None:
    make = partial(
        tasks, qarnot_pool=pool, commands=["sh -c 'exit 7'"] * 2, task_spec={"skip_on_exit_code": 7}
    )
    with pytest.raises(AirflowSkipException, match="All 2 commands"):
        run(make, FakeTI(run_id="all-skip"))


def test_a_value_whose_qarnot_task_was_deleted_is_not_none(pool: str) -> None:
    operator = tasks(qarnot_pool=pool, commands=["true"], task_spec=RETURNS)
    specs = operator._specs(operator.commands, operator._given(), pool)
    with pytest.raises(QarnotDeletedError, match="item 0 was deleted before its result was read"):
        operator._item_results(FanOutState(total=1, succeeded={0: None}), specs)


def test_the_values_of_a_fan_out_are_read_eight_at_a_time(pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read waits for seven others. A reader without them breaks the barrier, and the item fails."""
    barrier, lock = threading.Barrier(MAX_READERS, timeout=60), threading.Lock()
    reads, most = 0, 0

    def fetch_together(*args: Any) -> Iterator[str]:
        nonlocal reads, most
        with lock:
            reads += 1
            most = max(most, reads)
        barrier.wait()
        yield from fetch(*args)
        with lock:
            reads -= 1

    monkeypatch.setattr(command_result, "fetch", fetch_together)
    count = 3 * MAX_READERS
    make = partial(
        tasks,
        qarnot_pool=pool,
        command="sh -c 'echo $N > $QARNOT_RETURN_FILE'",
        commands=[{"constants": {"N": str(number)}} for number in range(count)],
        task_spec=RETURNS,
    )
    result = run(make, FakeTI(run_id="values-together"))
    assert [one["value"] for one in result["results"]] == list(range(count))
    assert most == MAX_READERS


def test_a_killed_fan_out_reads_no_more_values(pool: str) -> None:
    operator = tasks(qarnot_pool=pool, commands=["true"], task_spec=RETURNS)
    specs = operator._specs(operator.commands, operator._given(), pool)
    operator._own(context_of(operator)).killed.set()
    with pytest.raises(QarnotKilledError):
        operator._item_results(FanOutState(total=1, succeeded={0: "no-request-is-sent"}), specs)


def test_the_values_of_a_fan_out_are_bounded(pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks_module, "MAX_VALUES", 10)
    make = partial(
        tasks,
        qarnot_pool=pool,
        commands=["sh -c 'echo 123456 > $QARNOT_RETURN_FILE'"] * 2,
        task_spec=RETURNS,
    )
    with pytest.raises(QarnotTaskFailedError, match="more than 10 characters together"):
        run(make, FakeTI(run_id="bounded-values"))


# --- refused when the DAG is parsed

MISSING = "command is missing"
PARSED: dict[str, tuple[Any, str]] = {
    "no wait": (partial(task, command="c", task_spec=RETURNS, wait_for_completion=False), "without a wait"),
    "items without a wait": (
        partial(tasks, commands=["c"], task_spec=RETURNS, wait_for_completion=False),
        "without a wait",
    ),
    "instances": (partial(task, command="c", instance_count=2, task_spec=RETURNS), "several instances"),
    "by its name": (
        partial(task, command="c", skip_on_exit_code=99),
        r"Give task_spec=\{'skip_on_exit_code'",
    ),
    "an item without a command": (partial(tasks, commands=["c", {"constants": {"A": "1"}}]), MISSING),
    "a templated one": (partial(tasks, commands=[{"constants": {"A": "{{ ds }}"}}]), MISSING),
    "a bad constant beside a templated command": (
        partial(tasks, commands=[{"command": "{{ ds }}", "constants": {"a b": "1"}}]),
        "has the key 'a b'",
    ),
    "a function": (lambda: qarnot_task(task_spec=RETURNS)(nothing)(), "parameters of commands"),
}


def nothing() -> None:
    pass


@pytest.mark.parametrize(("make", "named"), PARSED.values(), ids=PARSED.keys())
def test_it_is_refused_when_the_dag_is_parsed(make: Any, named: str) -> None:
    with pytest.raises(QarnotInvalidSpecError, match=named):
        make()


def test_an_item_whose_command_comes_at_run_time_is_accepted() -> None:
    tasks(commands=[{"command": "{{ ds }}"}, {"constants": "{{ x }}"}, "{{ ds }}"])
    tasks(commands=[{"constants": {"DOCKER_CMD": "{{ ds }}"}}])
    tasks(commands=[{"name": "{{ ds }}", "constants": {"DOCKER_CMD": "true"}}])
    tasks(commands=[{"constants": {"A": "{{ ds }}"}}, {}], command="{{ ds }}")
    tasks(commands="{{ ds }}", command="c")
