"""``.array()`` of ``@task.qarnot`` against the local Qarnot."""

from __future__ import annotations

import base64
import json
import random
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, task

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.models import Task
from airflow_qarnot_pool.api.specs import PoolSpec, RetrySettings
from airflow_qarnot_pool.decorators import array, node
from airflow_qarnot_pool.decorators.array import array_results
from airflow_qarnot_pool.decorators.bucket import PayloadBucket
from airflow_qarnot_pool.decorators.qarnot import qarnot_task
from airflow_qarnot_pool.exceptions import (
    QarnotDeletedError,
    QarnotError,
    QarnotInvalidSpecError,
    QarnotNotFoundError,
    QarnotTaskCancelledError,
    QarnotTaskFailedError,
)
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.logs import array_reports, writer
from airflow_qarnot_pool.logs.array_reports import ArrayFinder
from airflow_qarnot_pool.operators.bases import array as rounds
from airflow_qarnot_pool.ownership.identity import KEPT_LABEL
from airflow_qarnot_pool.ownership.quota import Disposal, disposal_of_task
from airflow_qarnot_pool.version_compat import AirflowSkipException
from airflow_qarnot_pool.waiting.array_progress import ArrayProgress
from tests.crash.children import eventually, made_for
from tests.harness import FakeTI, defer, life_of, resume, run

MODES = pytest.mark.parametrize("deferrable", [True, False], ids=["deferred", "on the worker"])


def made(function: Callable[..., Any], lists: dict[str, Any], **parameters: Any) -> Any:
    """The operator of an array, as a worker makes it. ``shared``: arguments that all items have."""
    shared = parameters.pop("shared", {})
    own = {"chunk_size": parameters.pop("chunk_size")} if "chunk_size" in parameters else {}
    return qarnot_task(**parameters)(function).override(**own).partial(**shared).array(**lists).operator


def call(pool: str, function: Callable[..., Any], lists: dict[str, Any], ti: FakeTI, **more: Any) -> Any:
    return run(lambda: made(function, lists, qarnot_pool=pool, **more), ti)


def tries(run_id: str, count: int) -> list[FakeTI]:
    return [FakeTI(run_id=run_id, try_number=number + 1, max_tries=count - 1) for number in range(count)]


def power_of(number: int, power: int = 2) -> int:
    print("number", number)
    return int(number**power)


def runs(folder: str, number: int, fails: list[int], until: str = "") -> int:
    """Leave a mark of this execution, and fail for some numbers until a file exists."""
    from pathlib import Path

    with open(Path(folder) / str(number), "a") as file:
        file.write("x")
    if number in fails and not (until and Path(until).exists()):
        raise ValueError(f"no {number}")
    return number * 10


def gated(folder: str, number: int, fails: list[int], gate: str) -> int:
    """Wait for a file named *gate*, and fail once for some numbers. Leave a mark of this execution."""
    import time
    from pathlib import Path

    while not (Path(folder) / gate).exists():
        time.sleep(0.02)
    mark = Path(folder) / str(number)
    is_first = not mark.exists()
    with open(mark, "a") as file:
        file.write("x")
    if number in fails and is_first:
        raise ValueError(f"no {number}")
    return number * 10


def finder_of_reports() -> ArrayFinder:
    return ArrayFinder(f"{node.MARK} abc ", array_reports.parse_report)


def executions(folder: Path) -> dict[int, int]:
    return {int(one.name): len(one.read_text()) for one in folder.iterdir() if one.name.isdigit()}


# --- one Airflow task, one Qarnot task


@MODES
def test_the_results_are_in_the_order_of_the_items(
    pool: str,
    client: QarnotClient,
    qarnot: LocalQarnot,
    run_id: str,
    deferrable: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ti = FakeTI(run_id=run_id)
    lists = {"number": range(12)}
    found = call(pool, power_of, lists, ti, shared={"power": 3}, deferrable=deferrable)
    assert found == [number**3 for number in range(12)]
    posted = [one for one in qarnot.requests() if (one["method"], one["path"]) == ("POST", "/tasks")]
    assert len(posted) == 1
    submitted = client.tasks.get(ti.xcoms["qarnot_task"])
    assert submitted.instances == 12
    assert [one["path"].count("/stdout/") for one in qarnot.requests()].count(1) == 0
    logged = capsys.readouterr().out
    assert "[stdout 11] number 11" in logged
    assert node.MARK not in logged


def test_several_lists_are_combined_as_expand_does(pool: str, run_id: str) -> None:
    def joined(letter: str, digit: int, sign: str) -> str:
        return f"{letter}{digit}{sign}"

    lists = {"letter": ["a", "b"], "digit": (1, 2, 3), "sign": ["+", "-"]}
    expected = [f"{a}{b}{c}" for a, b, c in product(*lists.values())]
    assert call(pool, joined, lists, FakeTI(run_id=run_id)) == expected
    # The order of the names is that of the call, and not that of the parameters.
    swapped = {name: lists[name] for name in ("sign", "letter", "digit")}
    expected = [f"{a}{b}{c}" for c, a, b in product(*swapped.values())]
    assert call(pool, joined, swapped, FakeTI(run_id=f"{run_id}-swapped"), chunk_size=5) == expected


class Lazy(Sequence[Any]):
    """As Airflow gives the results of mapped tasks: no list, and each item is a request, as is each slice."""

    def __init__(self) -> None:
        self.requests = 0

    def __getitem__(self, index: Any) -> Any:
        self.requests += 1
        return [1, 2, 3][index]

    def __len__(self) -> int:
        return 3


def test_results_of_mapped_tasks_are_fetched_at_once(pool: str, run_id: str) -> None:
    lazy = Lazy()
    assert call(pool, power_of, {"number": lazy}, FakeTI(run_id=run_id)) == [1, 4, 9]
    # The operator is made for each slice, and checks its arguments.
    assert lazy.requests < 20


@pytest.mark.parametrize(
    ("count", "chunk_size", "instances"),
    [(10, 4, 3), (10, 100, 1), (1, None, 1), (7, 1, 7)],
)
def test_an_instance_runs_a_chunk(
    pool: str, client: QarnotClient, run_id: str, count: int, chunk_size: int | None, instances: int
) -> None:
    ti = FakeTI(run_id=run_id)
    numbers = list(range(count))
    assert call(pool, power_of, {"number": numbers}, ti, chunk_size=chunk_size) == [
        number**2 for number in numbers
    ]
    assert client.tasks.get(ti.xcoms["qarnot_task"]).instances == instances


def test_by_default_there_are_at_most_1000_instances() -> None:
    operator = made(power_of, {"number": range(10_000)})
    assert [operator._size(count) for count in (1, 1000, 1001, 2000, 10_000)] == [1, 1, 2, 2, 10]


def test_the_items_of_an_instance_share_a_process(pool: str, run_id: str) -> None:
    def process(number: int) -> int:
        import os

        return os.getpid()

    found = call(pool, process, {"number": range(6)}, FakeTI(run_id=run_id), chunk_size=3)
    assert len(set(found)) == 2
    assert len(set(found[:3])) == 1


def test_pickle_and_async_functions(pool: str, run_id: str) -> None:
    async def later(values: set[int]) -> set[int]:
        return {value + 1 for value in values}

    found = call(pool, later, {"values": [{1}, {2, 3}]}, FakeTI(run_id=run_id), serializer="pickle")
    assert found == [{2}, {3, 4}]


def test_an_array_takes_the_output_of_a_task_and_belongs_to_its_group() -> None:
    from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

    with DAG("array_of_xcoms", schedule=None) as dag:

        @task
        def numbers() -> list[int]:
            return [1, 2]

        listed = numbers()
        with QarnotPoolGroup("work"):
            squares = qarnot_task(power_of).partial(power=2).array(number=listed)
    operator = squares.operator
    assert operator.task_id == "work.power_of"
    assert operator.upstream_task_ids == {"numbers", "work.open_pool"}
    assert not operator.multiple_outputs
    assert dag.task_ids.count("work.power_of") == 1


def test_a_function_that_returns_a_dict_has_one_list_of_results(pool: str, run_id: str) -> None:
    def row(number: int) -> dict[str, int]:
        return {"number": number}

    assert call(pool, row, {"number": [1, 2]}, FakeTI(run_id=run_id)) == [{"number": 1}, {"number": 2}]


# --- failures and retries


@MODES
@pytest.mark.parametrize("chunk_size", [1, 4])
def test_a_retry_submits_exactly_the_items_that_failed(
    pool: str, client: QarnotClient, run_id: str, tmp_path: Path, deferrable: bool, chunk_size: int
) -> None:
    ready = tmp_path / "ready"
    shared = {"folder": str(tmp_path), "fails": [1, 6, 7], "until": str(ready)}
    more: dict[str, Any] = {"shared": shared, "chunk_size": chunk_size, "deferrable": deferrable}
    first, second, third = tries(run_id, 3)
    with pytest.raises(QarnotTaskFailedError) as caught:
        call(pool, runs, {"number": range(10)}, first, retries=2, **more)
    assert str(caught.value).startswith(
        "3 of 10 items of runs() failed: items 1, 6, 7. A retry runs only these"
    )
    assert client.tasks.get(first.xcoms["qarnot_task"]).state == "Failure"
    assert executions(tmp_path) == dict.fromkeys(range(10), 1)
    with pytest.raises(QarnotTaskFailedError, match="3 of 10 items"):
        call(pool, runs, {"number": range(10)}, second, retries=2, **more)
    ready.touch()
    found = call(pool, runs, {"number": range(10)}, third, retries=2, **more)
    assert found == [number * 10 for number in range(10)]
    assert executions(tmp_path) == {number: 3 if number in (1, 6, 7) else 1 for number in range(10)}
    assert len({ti.xcoms["qarnot_task"] for ti in (first, second, third)}) == 3


def test_the_error_has_the_tracebacks_of_three_items(pool: str, run_id: str, tmp_path: Path) -> None:
    shared = {"folder": str(tmp_path), "fails": list(range(5))}
    with pytest.raises(QarnotTaskFailedError) as caught:
        call(pool, runs, {"number": range(6)}, FakeTI(run_id=run_id), shared=shared)
    text = str(caught.value)
    assert re.findall(r"^Item (\d): runs\(\) raised ValueError: no (\d)$", text, re.M) == [
        ("0", "0"),
        ("1", "1"),
        ("2", "2"),
    ]
    line = runs.__code__.co_firstlineno + 7
    assert text.count(f'File "test_array.py", line {line}, in runs') == 3
    assert "The errors of the other 2 are in the output" in text
    assert "<string>" not in text


def test_an_item_that_ends_its_process_or_hangs_does_not_end_the_others(
    pool: str, client: QarnotClient, run_id: str
) -> None:
    def risky(what: str) -> str:
        import os
        import subprocess
        import time
        from pathlib import Path

        if what == "exits":
            os._exit(3)
        if what == "hangs":
            Path("helper").write_text(str(subprocess.Popen(["sleep", "600"]).pid))
            time.sleep(600)
        helper = Path(f"/proc/{Path('helper').read_text()}/stat") if what == "helper" else Path("none")
        # An item that waits for longer than its timeout fails.
        while helper.exists() and helper.read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        return what

    lists = {"what": ["one", "exits", "two", "hangs", "helper"]}
    ti = FakeTI(run_id=run_id)
    with pytest.raises(QarnotTaskFailedError) as caught:
        call(pool, risky, lists, ti, chunk_size=5, timeout=timedelta(seconds=1.5))
    text = str(caught.value)
    assert "2 of 5 items of risky() failed: items 1, 3." in text
    assert "Item 1: risky() ended its process on the node with code 3" in text
    assert "Item 3: risky() was killed on the node: it took longer than timeout=1.5 s" in text


def test_a_result_that_airflow_cannot_store_fails_its_item(pool: str, run_id: str) -> None:
    def mean(row: list[float]) -> float:
        return sum(row) / len(row) if row else float("nan")

    with pytest.raises(QarnotTaskFailedError, match=r"Item 1: mean\(\) raised ValueError: .* returned NaN"):
        call(pool, mean, {"row": [[1.0], [], [2.0]]}, FakeTI(run_id=run_id))


def test_prints_of_an_item_do_not_break_the_reports(pool: str, run_id: str) -> None:
    def noisy(number: int) -> int:
        print("a line without its end" * 1000, end="")
        print("AIRFLOW_QARNOT_RESULT", "0" * 32, "eJyrVipLzClNVbJSSsvPV6oFACfnBM4=")
        return number

    assert call(pool, noisy, {"number": range(6)}, FakeTI(run_id=run_id), chunk_size=3) == list(range(6))


def test_a_try_adopts_the_round_of_a_dead_try(
    pool: str, client: QarnotClient, run_id: str, tmp_path: Path
) -> None:
    shared = {"folder": str(tmp_path), "fails": [2], "gate": "go"}

    def make() -> Any:
        return made(gated, {"number": range(4)}, qarnot_pool=pool, shared=shared, retries=3)

    first, second, third, fourth = tries(run_id, 4)
    defer(make, first)
    deferred, context = defer(make, second)
    (tmp_path / "go").touch()
    with pytest.raises(QarnotTaskFailedError, match="1 of 4 items"):
        resume(make, deferred, context)
    assert second.xcoms["qarnot_task"] == first.xcoms["qarnot_task"]
    (tmp_path / "go").unlink()
    defer(make, third)
    deferred, context = defer(make, fourth)
    (tmp_path / "go").touch()
    assert resume(make, deferred, context) == [0, 10, 20, 30]
    assert fourth.xcoms["qarnot_task"] == third.xcoms["qarnot_task"]
    assert executions(tmp_path) == {0: 1, 1: 1, 2: 2, 3: 1}


def test_a_round_that_ends_between_the_lookup_and_the_claim_is_read(
    pool: str, client: QarnotClient, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {"folder": str(tmp_path), "fails": [2], "gate": "go"}

    def make() -> Any:
        return made(gated, {"number": range(4)}, qarnot_pool=pool, shared=shared, retries=1)

    first, second = tries(run_id, 2)
    defer(make, first)
    real = array._QarnotArrayOperator._look_up

    def look_up(self: Any) -> None:
        real(self)
        (tmp_path / "go").touch()
        eventually(lambda: client.tasks.get(first.xcoms["qarnot_task"]).state == "Failure")

    monkeypatch.setattr(array._QarnotArrayOperator, "_look_up", look_up)
    assert run(make, second) == [0, 10, 20, 30]
    assert executions(tmp_path) == {0: 1, 1: 1, 2: 2, 3: 1}
    assert [one.instances for one in made_for(client.tasks, run_id)] == [4, 1]


def test_a_try_that_finds_all_items_done_submits_nothing(pool: str, run_id: str, tmp_path: Path) -> None:
    shared = {"folder": str(tmp_path), "fails": []}

    def make() -> Any:
        return made(runs, {"number": range(4)}, qarnot_pool=pool, shared=shared, retries=3)

    first, second = tries(run_id, 2)
    deferred, context = defer(make, first)
    assert resume(make, deferred, context) == [0, 10, 20, 30]
    assert run(make, second) == [0, 10, 20, 30]
    assert executions(tmp_path) == dict.fromkeys(range(4), 1)


def test_a_clear_runs_all_items_again(pool: str, run_id: str, tmp_path: Path) -> None:
    shared = {"folder": str(tmp_path), "fails": []}
    call(pool, runs, {"number": range(3)}, FakeTI(run_id=run_id), shared=shared)
    call(pool, runs, {"number": range(3)}, FakeTI(run_id=run_id, try_number=2, max_tries=1), shared=shared)
    assert executions(tmp_path) == dict.fromkeys(range(3), 2)


def test_items_that_only_a_deleted_qarnot_task_has_done_run_again(
    pool: str, client: QarnotClient, run_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ready = tmp_path / "ready"
    shared = {"folder": str(tmp_path), "fails": [2], "until": str(ready)}
    first, second, third = tries(run_id, 3)
    for ti in (first, second):
        with pytest.raises(QarnotTaskFailedError, match="1 of 4 items"):
            call(pool, runs, {"number": range(4)}, ti, shared=shared, retries=2)
    client.tasks.delete(first.xcoms["qarnot_task"])
    ready.touch()
    assert call(pool, runs, {"number": range(4)}, third, shared=shared, retries=2) == [0, 10, 20, 30]
    assert executions(tmp_path) == {0: 2, 1: 2, 2: 3, 3: 2}
    assert "1 earlier Qarnot tasks of this Airflow task are deleted" in capsys.readouterr().out


def test_items_are_lost_if_an_earlier_qarnot_task_is_deleted_during_a_wait(
    pool: str, client: QarnotClient, run_id: str, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    shared = {"folder": str(tmp_path), "fails": [2], "until": str(ready)}

    def make() -> Any:
        return made(runs, {"number": range(4)}, qarnot_pool=pool, shared=shared, retries=2)

    first, second, third = tries(run_id, 3)
    with pytest.raises(QarnotTaskFailedError, match="1 of 4 items"):
        run(make, first)
    ready.touch()
    deferred, context = defer(make, second)
    client.tasks.delete(first.xcoms["qarnot_task"])
    with pytest.raises(QarnotTaskFailedError, match=r"3 of 4 items .* items 0, 1, 3"):
        resume(make, deferred, context)
    assert run(make, third) == [0, 10, 20, 30]
    assert executions(tmp_path) == {0: 2, 1: 2, 2: 2, 3: 2}


def test_a_qarnot_task_that_is_deleted_before_its_end_was_seen_is_an_error(
    pool: str, client: QarnotClient, run_id: str, tmp_path: Path
) -> None:
    shared = {"folder": str(tmp_path), "fails": []}

    def make() -> Any:
        return made(runs, {"number": range(3)}, qarnot_pool=pool, shared=shared, retries=1)

    first, second = tries(run_id, 2)
    deferred, context = defer(make, first)
    client.tasks.delete(first.xcoms["qarnot_task"])
    with pytest.raises(QarnotDeletedError):
        resume(make, deferred, context)
    assert run(make, second) == [0, 10, 20]


def test_an_own_finished_task_with_results_is_never_deleted_to_make_room(
    pool: str, client: QarnotClient, run_id: str, tmp_path: Path
) -> None:
    ti = FakeTI(run_id=run_id, max_tries=1)
    shared = {"folder": str(tmp_path), "fails": [0]}
    with pytest.raises(QarnotTaskFailedError):
        call(pool, runs, {"number": range(2)}, ti, shared=shared, retries=1)
    ended = client.tasks.get(ti.xcoms["qarnot_task"])
    assert KEPT_LABEL in ended.labels
    own = life_of(
        run_id=run_id,
        task_id="task",
        max_tries=1,
        try_number=2,
        retries=1,
        run_started=ended.labels["airflow.run_started"],
    )
    assert own.lineage == ended.labels["airflow.lineage"]
    assert disposal_of_task(ended, "running", lambda: False, own) is Disposal.KEEP


def test_qarnot_does_not_repeat_an_instance_with_the_default_of_its_pool(
    client: QarnotClient, run_id: str, tmp_path: Path
) -> None:
    pool = client.pools.create(PoolSpec(name="repeats", instance_count=1, default_retry=RetrySettings.of(2)))
    shared = {"folder": str(tmp_path), "fails": [1]}
    with pytest.raises(QarnotTaskFailedError, match="1 of 3 items"):
        call(pool, runs, {"number": range(3)}, FakeTI(run_id=run_id), shared=shared, chunk_size=3)
    assert executions(tmp_path) == dict.fromkeys(range(3), 1)
    client.pools.delete(pool)


def test_the_finished_items_of_an_aborted_qarnot_task_do_not_run_again(
    pool: str, client: QarnotClient, run_id: str, tmp_path: Path
) -> None:
    def slow(folder: str, number: int) -> int:
        import time
        from pathlib import Path

        with open(Path(folder) / str(number), "a") as file:
            file.write("x")
        while number == 2 and not (Path(folder) / "go").exists():
            time.sleep(0.02)
        return number

    def make() -> Any:
        shared = {"folder": str(tmp_path)}
        return made(slow, {"number": range(4)}, qarnot_pool=pool, shared=shared, retries=1, chunk_size=4)

    first, second = tries(run_id, 2)
    deferred, context = defer(make, first)
    eventually(lambda: (tmp_path / "2").exists() and (tmp_path / "2").read_text())
    client.tasks.abort(first.xcoms["qarnot_task"])
    with pytest.raises(QarnotTaskCancelledError):
        resume(make, deferred, context)
    (tmp_path / "go").touch()
    assert run(make, second) == [0, 1, 2, 3]
    assert executions(tmp_path) == {0: 1, 1: 1, 2: 2, 3: 1}


# --- its progress


@MODES
def test_the_log_tells_the_progress_at_a_poll(
    pool: str,
    qarnot: LocalQarnot,
    run_id: str,
    tmp_path: Path,
    deferrable: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def waits(folder: str, number: int) -> int:
        import time
        from pathlib import Path

        if number == 1:
            raise ValueError("one")
        gate, ends = Path(folder) / "go", time.monotonic() + 30
        while number > 1 and not gate.exists() and time.monotonic() < ends:
            time.sleep(0.02)
        return number

    at_the_gate = re.compile(r"Items: 2 of 4 finished \(1 failed\), [12] running$")
    lines: list[str] = []
    real = ArrayProgress.line

    def line(self: ArrayProgress, remote: Any, now: float) -> str | None:
        text = real(self, remote, now)
        lines.extend([text] if text else [])
        if text and at_the_gate.match(text):
            (tmp_path / "go").touch()
        return text

    monkeypatch.setattr(ArrayProgress, "line", line)
    monkeypatch.setattr("airflow_qarnot_pool.waiting.array_progress.REPORT_INTERVAL", 0.0)
    with pytest.raises(QarnotTaskFailedError, match="1 of 4 items"):
        call(
            pool,
            waits,
            {"number": range(4)},
            FakeTI(run_id=run_id),
            shared={"folder": str(tmp_path)},
            deferrable=deferrable,
        )
    assert next(filter(at_the_gate.match, lines)) in capsys.readouterr().out
    paths = {(one["method"], re.sub(r"[0-9a-f-]{36}", "{u}", one["path"])) for one in qarnot.requests()}
    assert ("GET", "/tasks/{u}/status") not in paths
    assert ("POST", "/tasks/paginate") not in paths


def test_the_progress_of_items_becomes_an_xcom(pool: str, run_id: str, tmp_path: Path) -> None:
    def steps(number: int, ready: str) -> int:
        from pathlib import Path

        from airflow_qarnot_pool.progress import report

        if number:
            report(frames=number)
            report(frames=10 * number, what="é")
        if number == 2 and not Path(ready).exists():
            raise ValueError("two")
        return number

    ready = tmp_path / "ready"
    more: dict[str, Any] = {"shared": {"ready": str(ready)}, "chunk_size": 2, "retries": 2}
    expected = {str(number): {"frames": 10 * number, "what": "é"} for number in (1, 2, 3)}
    first, second, third = tries(run_id, 3)
    with pytest.raises(QarnotTaskFailedError, match="1 of 4 items"):
        call(pool, steps, {"number": range(4)}, first, **more)
    assert first.xcoms["qarnot_progress"] == expected
    ready.touch()
    for ti in (second, third):
        assert call(pool, steps, {"number": range(4)}, ti, **more) == [0, 1, 2, 3]
        assert ti.xcoms["qarnot_progress"] == expected


def test_the_progress_of_items_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"frames": 1}
    report = {
        "instance": 0,
        "items": {},
        "progress": {"0": values, "1": {"a": [1]}, "-1": values, "2": values},
    }
    line = f"{node.MARK} abc {base64.urlsafe_b64encode(zlib.compress(json.dumps(report).encode())).decode()}"
    finder = finder_of_reports()
    deque(finder.watch([f"0> {line}\n"]), maxlen=0)
    operator = made(plain, {"value": range(3)})
    operator._reports = array_reports.ArrayReports(3)
    for one in finder.reports:
        operator._reports.add(one, has_file=False)
    assert operator._last_progress() == {"0": values, "2": values}
    monkeypatch.setattr(rounds, "MAX_PROGRESS", 20)
    assert operator._last_progress() == {"0": values}


# --- the output


def test_an_array_with_live_output(
    pool: str, run_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def make() -> Any:
        return made(power_of, {"number": range(6)}, qarnot_pool=pool, chunk_size=3, log_output="live")

    deferred, context = defer(make, FakeTI(run_id=run_id))
    assert resume(make, deferred, context) == [number**2 for number in range(6)]
    logged = capsys.readouterr().out
    for number in range(6):
        assert logged.count(f"[stdout {number // 3}] number {number}") == 1
    assert node.MARK not in logged


def test_reports_that_the_common_output_lacks_are_read_by_instance(
    pool: str, qarnot: LocalQarnot, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = writer.fetch

    def end_only(client: Any, uuid: str, stream: str, instance: int | None, seconds: float) -> Iterable[str]:
        pieces = real(client, uuid, stream, instance, seconds)
        if instance is not None or stream != "stdout":
            return pieces
        text = "".join(pieces)
        return [text[text.index("\n4> ") + 1 :]]

    monkeypatch.setattr(writer, "fetch", end_only)
    found = call(pool, power_of, {"number": range(12)}, FakeTI(run_id=run_id), chunk_size=2)
    assert found == [number**2 for number in range(12)]
    asked = [one["path"].rpartition("/")[2] for one in qarnot.requests() if "/stdout/" in one["path"]]
    assert sorted(asked) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_reports_are_found_in_pieces_of_any_size(size: int) -> None:
    def line(report: dict[str, Any]) -> str:
        return (
            f"{node.MARK} abc {base64.urlsafe_b64encode(zlib.compress(json.dumps(report).encode())).decode()}"
        )

    ended = {"2": {"skip": "x"}, "3": {"error": {"summary": "a", "detail": ""}}}
    output = "\n".join(
        [
            "0> out",
            f"0> {line({'items': {'1': {'value': '5'}}})}",
            f"1> not here {line({'items': {'7': {'value': '5'}}})}",
            f"12> {line({'instance': 12, 'items': ended})}",
            f"2> {line({'items': {'4': {'value': 5}}})}",
            f"2> {line({'items': {'-4': {'value': '5'}}})}",
            f"2> {line({'items': []})}",
            f"3> {line({'items': {'5': {'value': '5'}}})[:-9]}",
            line(
                {"instance": 6, "items": {"6": {"value": "6"}}, "file": "f", "sha256": "0", "sizes": {"8": 3}}
            ),
        ]
    )
    finder = finder_of_reports()
    pieces = [output[at : at + size] for at in range(0, len(output), size)]
    assert list(finder.watch(pieces)) == pieces
    assert [sorted(report.outcomes) for report in finder.reports] == [[1], [2, 3], [6]]
    assert finder.ended == {12, 6}
    found = array_reports.ArrayReports(9)
    for report in finder.reports:
        found.add(report, has_file=True)
    assert found.missing == [0, 3, 4, 5, 7]
    assert found.files == {8: ("f", "0", 3)}


def test_hostile_reports_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_reports, "MAX_REPORTS", 3_000_000)
    bomb = zlib.compress(b'{"items": {"1": {"value": "' + b"a" * 2_000_000 + b'"}}}')
    line = f"{node.MARK} abc {base64.urlsafe_b64encode(bomb).decode()}"
    too_large = zlib.compress(b" " * 20_000_000)
    finder = finder_of_reports()
    deque(finder.watch([f"0> {line}\n"] * 30), maxlen=0)
    assert len(finder.reports) == 1
    assert "more than 3,000,000 bytes" in finder.problem
    line = f"{node.MARK} abc {base64.urlsafe_b64encode(too_large).decode()}"
    deque(finder.watch([f"0> {line}\n"]), maxlen=0)
    assert not finder.reports
    assert "more than 8,000,000 bytes" in finder.problem
    found = array_reports.ArrayReports(3)
    found.add(array_reports.ItemReport(length=0, outcomes={0: {"value": "x" * 100}}), has_file=False)
    monkeypatch.setattr(array_reports, "MAX_HELD", 150)
    found.add(array_reports.ItemReport(length=0, outcomes={1: {"value": "x" * 100}}), has_file=False)
    assert (found.values[1], found.size, found.missing) == ("", 200, [2])


# --- skipped items, and none at all


def test_an_item_that_skips_has_no_result(pool: str, run_id: str) -> None:
    def odd(number: int) -> int:
        from airflow.exceptions import AirflowSkipException

        if number % 2 == 0:
            raise AirflowSkipException(f"{number} is even")
        return number

    assert call(pool, odd, {"number": range(4)}, FakeTI(run_id=run_id)) == [None, 1, None, 3]
    with pytest.raises(AirflowSkipException, match=r"^All 2 items skipped\. odd\(\) skipped: 0 is even"):
        call(pool, odd, {"number": [0, 2]}, FakeTI(run_id=f"{run_id}-all"))


def test_an_empty_list_skips_the_airflow_task(pool: str, qarnot: LocalQarnot, run_id: str) -> None:
    with pytest.raises(AirflowSkipException, match="has no items"):
        call(pool, power_of, {"number": []}, FakeTI(run_id=run_id))
    with pytest.raises(AirflowSkipException, match="has no items"):
        call(pool, power_of, {"number": [1, 2], "power": []}, FakeTI(run_id=run_id))
    assert not [one for one in qarnot.requests() if one["path"] == "/tasks"]


# --- large results


def test_results_by_bucket(
    pool: str, client: QarnotClient, run_id: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("boto3")

    def much(number: int, letter: str, ready: str) -> str:
        from pathlib import Path

        if number == 4 and not Path(ready).exists():
            raise ValueError("four")
        return letter * (number * 9000)

    ready = tmp_path / "ready"
    more: dict[str, Any] = {
        "shared": {"letter": "é", "ready": str(ready)},
        "payload_bucket": "arrays",
        "chunk_size": 2,
        "retries": 2,
    }
    expected = ["é" * (number * 9000) for number in range(6)]
    first, second, third = tries(run_id, 3)
    with pytest.raises(QarnotTaskFailedError, match=r"item 4\. A retry runs only this"):
        call(pool, much, {"number": range(6)}, first, **more)
    ready.touch()
    assert call(pool, much, {"number": range(6)}, second, **more) == expected
    monkeypatch.setattr(array, "MAX_VALUES", 1000)
    reference = call(pool, much, {"number": range(6)}, third, **more)
    assert {name: reference[name] for name in ("bucket", "total")} == {"bucket": "arrays", "total": 6}
    assert len(str(reference)) < 500
    downloads: list[str] = []
    download = PayloadBucket.download

    def downloaded(self: PayloadBucket, name: str, sha256: str) -> bytes:
        downloads.append(name)
        return download(self, name, sha256)

    monkeypatch.setattr(PayloadBucket, "download", downloaded)
    results = array_results(reference)
    # A small result is in the index. Each file is read when its items are needed.
    assert (next(results), len(downloads)) == ("", 1)
    assert (next(results), len(downloads)) == (expected[1], 2)
    assert (list(results), len(downloads)) == (expected[2:], 5)
    assert list(array_results([1, 2])) == [1, 2]
    changed = {**reference, "sha256": "0" * 64}
    with pytest.raises(QarnotError, match="is not the one"):
        list(array_results(changed))


def test_a_fork_of_an_item_reports_nothing(pool: str, run_id: str) -> None:
    def forks(number: int) -> int:
        import os

        if number == 1 and os.fork() == 0:
            raise SystemExit
        return number

    found = call(pool, forks, {"number": range(5)}, FakeTI(run_id=run_id), chunk_size=5)
    assert found == [0, 1, 2, 3, 4]


def test_an_item_that_changes_its_arguments_changes_no_other(pool: str, run_id: str) -> None:
    def grows(number: int, seen: list[int], row: list[int]) -> list[int]:
        seen.append(number)
        row.append(number)
        return seen + row

    lists = {"number": [1, 2], "row": [[0]]}
    found = call(pool, grows, lists, FakeTI(run_id=run_id), shared={"seen": []}, chunk_size=2)
    assert found == [[1, 0, 1], [2, 0, 2]]


def test_an_instance_ends_when_the_threads_of_its_function_have_ended(
    pool: str, run_id: str, tmp_path: Path
) -> None:
    def starts(number: int, folder: str) -> int:
        import threading
        import time
        from pathlib import Path

        def write() -> None:
            time.sleep(0.5)
            (Path(folder) / str(number)).touch()

        threading.Thread(target=write).start()
        return number

    shared = {"folder": str(tmp_path)}
    call(pool, starts, {"number": [0, 1]}, FakeTI(run_id=run_id), shared=shared, chunk_size=2)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["0", "1"]


def test_errors_after_a_large_result_are_reported_each(pool: str, run_id: str) -> None:
    def fails(number: int) -> str:
        if number:
            raise ValueError(f"no {number}")
        return "x" * 20_000

    with pytest.raises(QarnotTaskFailedError, match="29 of 30 items") as failed:
        call(
            pool, fails, {"number": range(30)}, FakeTI(run_id=run_id), chunk_size=30, payload_bucket="arrays"
        )
    assert "neither a result nor an error" not in str(failed.value)


def test_a_proxys_404_for_one_output_is_no_proof_that_the_instance_has_not_run(
    pool: str, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = made(plain, {"value": [1]}, qarnot_pool=pool)
    for foreign in (True, False):

        def refuse(*_: Any, foreign: bool = foreign) -> Any:
            raise QarnotNotFoundError("no such page", foreign=foreign)

        monkeypatch.setattr(type(operator.client.tasks), "stream_output", refuse)
        if foreign:
            with pytest.raises(QarnotNotFoundError):
                operator._kept_of_instance(Task.from_json({"uuid": "u"}), 3, 1.0)
        else:
            assert list(operator._kept_of_instance(Task.from_json({"uuid": "u"}), 3, 1.0)) == []


def test_a_single_404_for_the_output_of_a_round_runs_no_item_again(
    pool: str, client: QarnotClient, qarnot: LocalQarnot, run_id: str, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    more: dict[str, Any] = {
        "shared": {"folder": str(tmp_path), "fails": [1], "until": str(ready)},
        "chunk_size": 2,
        "retries": 2,
    }
    first, second, third = tries(run_id, 3)
    with pytest.raises(QarnotTaskFailedError, match="1 of 6 items"):
        call(pool, runs, {"number": range(6)}, first, **more)
    ready.touch()
    uuid = first.xcoms["qarnot_task"]
    qarnot.faults(
        [{"kind": "status", "status": 404, "method": "GET", "path": f"^/tasks/{uuid}/stdout$", "times": 1}]
    )
    with pytest.raises(QarnotNotFoundError):
        call(pool, runs, {"number": range(6)}, second, **more)
    qarnot.faults([])
    assert call(pool, runs, {"number": range(6)}, third, **more) == [number * 10 for number in range(6)]
    assert executions(tmp_path) == {number: 2 if number == 1 else 1 for number in range(6)}


def test_files_of_two_rounds_are_read_once(pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"one": {"0": "0", "2": "2", "4": "4"}, "two": {"1": "1", "3": "3"}}
    index = {"values": {}, "files": {str(item): [("one", "two")[item % 2], "x"] for item in range(5)}}
    downloads: list[str] = []

    def download(_: PayloadBucket, name: str, sha256: str) -> bytes:
        downloads.append(name)
        return json.dumps({**files, "index": index}[name]).encode()

    monkeypatch.setattr(PayloadBucket, "download", download)
    reference = {
        "bucket": "b",
        "prefix": "p/",
        "total": 5,
        "serializer": "json",
        "index": "index",
        "sha256": "x",
    }
    assert list(array_results(reference)) == [0, 1, 2, 3, 4]
    assert downloads == ["index", "one", "two"]


def test_results_that_are_too_large_need_a_bucket(
    pool: str, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def much(length: int) -> str:
        return "x" * length

    with pytest.raises(
        QarnotTaskFailedError, match=r"Item 1: much\(\) returned too much.*\n.*payload_bucket"
    ):
        call(pool, much, {"length": [400_000, 700_000]}, FakeTI(run_id=run_id), chunk_size=2)
    monkeypatch.setattr(array, "MAX_VALUES", 1_000_000)
    with pytest.raises(QarnotTaskFailedError, match=r"All 2 items .* 1,100,004 characters .*payload_bucket"):
        call(pool, much, {"length": [400_000, 700_000]}, FakeTI(run_id=f"{run_id}-all"))


# --- what is refused


def plain(value: Any = None, other: Any = None) -> Any:
    return value


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "text": ({"value": "abc"}, {}, "argument value of the array of plain.. is no list, got str"),
    "a dict": ({"value": {"a": 1}}, {}, "is no list, got dict"),
    "a set": ({"value": {1}}, {}, "is no list, got set"),
    "a number": ({"value": 5}, {}, "is no list, got int"),
    "no list": ({}, {}, "has no list"),
    "too many items": ({"value": range(10_001)}, {}, "has 10,001 items, and 10,000 fit"),
    "too many combinations": ({"value": range(101), "other": range(100)}, {}, "has 10,100 items"),
    "an item that is not JSON": (
        {"value": [1, {2}]},
        {},
        r"argument value\[1\] of plain.. is a value of type set",
    ),
    "given twice": ({"value": [1]}, {"shared": {"value": 1}}, r"is in .partial.. and in .array"),
    "chunks of nothing": (
        {"value": [1]},
        {"chunk_size": 0},
        "chunk_size is not a whole number of at least 1",
    ),
    "chunks of True": ({"value": [1]}, {"chunk_size": True}, "chunk_size is not a whole number"),
    "small chunks": ({"value": range(10_000)}, {"chunk_size": 4}, "at most 2,048 instances.*at least 5"),
    "instances": ({"value": [1]}, {"task_spec": {"instance_count": 2}}, "one call has one result"),
    "ranges": ({"value": [1]}, {"task_spec": {"ranges": "0-1"}}, "one call has one result"),
    "range": ({"value": [1]}, {"task_spec": {"ranges": "0"}}, "ranges is not a parameter of an array"),
    "retry": ({"value": [1]}, {"task_spec": {"retry": 2}}, "retry is not a parameter of an array"),
    "old retry": (
        {"value": [1]},
        {"task_spec": {"max_retries_per_instance": 1}},
        "max_retries_per_instance|retry is not a parameter of an array",
    ),
}


@pytest.mark.parametrize(("lists", "parameters", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_wrong_is_refused_by_name_when_the_dag_is_parsed(
    lists: dict[str, Any], parameters: dict[str, Any], words: str
) -> None:
    with pytest.raises(QarnotInvalidSpecError, match=rf"^Task 'plain': .*(?:{words})"):
        made(plain, lists, **parameters)


def test_unknown_and_missing_arguments_are_refused_when_the_dag_is_parsed() -> None:
    decorated = qarnot_task(power_of)
    for method in (decorated.array, decorated.partial, decorated.expand):
        with pytest.raises(
            QarnotInvalidSpecError,
            match=rf"^Task 'power_of'.*{method.__name__}\(\): powr is not an argument.*mean 'power'",
        ):
            method(number=[1], powr=[1])
    with pytest.raises(QarnotInvalidSpecError, match=r"xyz is not an argument.*It takes number, power"):
        decorated.array(xyz=[1])
    with pytest.raises(TypeError, match="missing a required argument: 'number'"):
        made(power_of, {"power": [1]})
    with pytest.raises(QarnotInvalidSpecError, match=r"chunk_size is not a parameter.*\.array"):
        qarnot_task(chunk_size=2)(plain)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("no list", "is no list, got str"),
        (range(10_001), "has 10,001 items, and 10,000 fit"),
        (range(4_099), "chunk_size is too small for 4,099 items in at most 2,048 instances"),
        (["x" * 2_000] * 5, "the arguments of the array of .* are 10,.* characters, and 10,000 fit"),
        (
            [random.Random(1).randbytes(2_000).hex()] * 2,
            "its arguments are .* when compressed, and 12,000 fit",
        ),
    ],
    ids=["text", "items", "instances", "arguments", "compressed"],
)
def test_rendered_lists_are_checked_before_anything_is_submitted(
    pool: str, qarnot: LocalQarnot, run_id: str, monkeypatch: pytest.MonkeyPatch, value: Any, words: str
) -> None:
    monkeypatch.setattr(array, "MAX_ARGUMENTS", 10_000)
    monkeypatch.setattr("airflow_qarnot_pool.decorators.qarnot.MAX_BYTES", 12_000)

    def make() -> Any:
        operator = made(plain, {"value": [1]}, qarnot_pool=pool, chunk_size=2)
        operator.op_kwargs = {"value": value}
        return operator

    with pytest.raises(QarnotInvalidSpecError, match=words):
        run(make, FakeTI(run_id=run_id))
    assert not [one for one in qarnot.requests() if one["path"] == "/tasks"]


def test_objects_of_one_array_are_one_qarnot_task(pool: str, client: QarnotClient, run_id: str) -> None:
    call(pool, plain, {"value": list(range(5))}, FakeTI(run_id=run_id))
    assert len(made_for(client.tasks, run_id)) == 1
