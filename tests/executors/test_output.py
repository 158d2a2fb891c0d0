"""Live log of a workload."""

from __future__ import annotations

import time

import pytest

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import TaskSpec
from airflow_qarnot_pool.executors import output
from airflow_qarnot_pool.local import LocalQarnot

PRINT = "import sys; print('one'); print('two', flush=True); print('wrong', file=sys.stderr)"


def test_both_streams_of_all_tasks_of_a_try_are_shown(qarnot: LocalQarnot, client: QarnotClient) -> None:
    programs = {"output-1": PRINT, "output-2": "print('three')"}
    for name, text in programs.items():
        client.tasks.create(TaskSpec(name=name, shortname=name, command=["python3", "-c", text]))
    while not all(states.is_terminal(client.tasks.get(name).state) for name in programs):
        time.sleep(0.05)
    assert output.task_log(client, ["output-2", "output-1"]) == ["wrong", "one", "two", "three"]
    assert output.task_log(client, []) == []
    assert output.task_log(client, ["output-none"]) == [
        "Qarnot has no task output-none. It was not submitted, or deleted."
    ]
    qarnot.faults([{"path": "stdout/0$", "kind": "status", "status": 400}])
    shown, sentence = output.task_log(client, ["output-1"])
    assert shown == "wrong"
    assert "The output of Qarnot task output-1 could not be read" in sentence


def test_a_view_of_a_log_has_one_deadline(
    qarnot: LocalQarnot, client: QarnotClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "DEADLINE", 0.0)
    qarnot.clear_requests()
    lines = output.task_log(client, ["slow"])
    assert lines == [
        f"The {each} of Qarnot task slow was not read, because the rest took 0 s."
        for each in ("stderr", "stdout")
    ]
    assert qarnot.requests() == []


def test_a_long_output_is_cut_at_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "MAX_SHOWN", 20)
    assert output._end(["one\n", "two\n"], "stdout") == ["one", "two"]
    first, *rest = output._end((f"line {number}\n" for number in range(100)), "stdout of Qarnot task x")
    assert rest == ["line 98", "line 99"]
    assert first == "... the first 774 characters of the stdout of Qarnot task x are left out"
    monkeypatch.setattr(output, "MAX_READ", 30)
    assert output._end(iter(["a" * 25] * 1000), "stdout")[1:] == ["a" * 20]
