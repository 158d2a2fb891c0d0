"""An array of which 3 % of the items fail, with its worker killed at every request: each item succeeds exactly once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import PoolSpec
from airflow_qarnot_pool.api.transport import Response, Transport
from airflow_qarnot_pool.decorators.qarnot import qarnot_task
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.array import QarnotRunArrayOperator
from airflow_qarnot_pool.version_compat import TaskDeferred
from tests.crash.children import Say, Serialized, StoringTI, fork, made_for, shape, worker
from tests.decorators.conftest import server
from tests.harness import again, fire
from tests.operators.conftest import connect

__all__ = ["server"]

ITEMS, FAILING, TRIES = 34, [20], 5
FUNCTION, COMMANDS = "a function", "commands"

#: Requests and XComs of each slice of the first try, in which an item fails, and of the second one.
SLICES: dict[str, tuple[tuple[str, ...], ...]] = {
    "on the worker": (
        (
            "POST /tasks",
            "XCom qarnot_task",
            "GET /tasks/{u}",
            "GET /tasks/{u}/stdout",
            "GET /tasks/{u}/stderr",
        ),
        (
            "POST /tasks/paginate",
            "GET /tasks/{u}/stdout",
            "POST /tasks/paginate",
            "GET /jobs",
            "GET /tasks/{name}",
            "POST /tasks",
            "XCom qarnot_task",
            "GET /tasks/{u}",
            "GET /tasks/{u}/stdout",
            "GET /tasks/{u}/stderr",
        ),
    ),
    "deferred": (
        ("POST /tasks", "XCom qarnot_task"),
        ("GET /tasks/{u}", "GET /tasks/{u}/stdout", "GET /tasks/{u}/stderr"),
        (
            "POST /tasks/paginate",
            "GET /tasks/{u}/stdout",
            "POST /tasks/paginate",
            "GET /jobs",
            "GET /tasks/{name}",
            "POST /tasks",
            "XCom qarnot_task",
        ),
        (
            "GET /tasks/{u}",
            "GET /tasks/{u}/stdout",
            "GET /tasks/{u}",
            "GET /tasks/{u}/stdout",
            "GET /tasks/{u}/stderr",
        ),
    ),
}


def step(number: int, folder: str, failing: list[int]) -> int:
    """Fail the first time if the number is one of *failing*. Leave a mark of each success."""
    from pathlib import Path

    tried = Path(folder) / f"tried-{number}"
    if number in failing and not tried.exists():
        tried.touch()
        raise ValueError(f"no {number}")
    with open(Path(folder) / f"done-{number}", "a") as file:
        file.write("x")
    return number * number


#: The same as a command.
STEP = """sh -c 'i=$QARNOT_ITEM
if [ $i = 20 ] && [ ! -e "$FOLDER/tried-$i" ]; then touch "$FOLDER/tried-$i"; exit 1; fi
printf x >> "$FOLDER/done-$i"
echo $((i * i)) > "$QARNOT_RETURN_FILE"'"""


def slices_of(work: str, mode: str) -> tuple[tuple[str, ...], ...]:
    first, failing, *rest = SLICES[mode]
    if work == COMMANDS:
        # The error has the end of what the instance printed.
        failing = (*failing, "GET /pools/{u}", "GET /tasks/{u}/stderr/1")
    return (first, failing, *rest)


@dataclass(frozen=True)
class Point:
    """Where a worker dies: before or after a boundary of a slice of the run."""

    work: str
    mode: str
    slice: int
    index: int
    moment: str

    def __str__(self) -> str:
        at = slices_of(self.work, self.mode)[self.slice][self.index]
        return f"{self.work}, {self.mode}, slice {self.slice + 1}, {self.moment} {at}"


#: Commands share the code between the boundaries with functions, so one mode is enough.
CASES = [*((FUNCTION, mode) for mode in SLICES), (COMMANDS, "deferred")]
POINTS = [
    Point(work, mode, number, index, moment)
    for work, mode in CASES
    for number, boundaries in enumerate(slices_of(work, mode))
    for index in range(len(boundaries))
    # A process that dies after a boundary leaves what it leaves before the next one.
    for moment in (("before", "after") if index == len(boundaries) - 1 else ("before",))
]


def armed(work: Callable[[Say], None], ti: StoringTI, point: Point | None) -> Callable[[Say], None]:
    """*work* in a process that says which boundaries it passes, and dies at *point*. Repeated polls count once."""

    def run(say: Say) -> None:
        real = Transport._exchange
        passed: list[str] = []

        def pass_(at: str, moment: str) -> None:
            if moment == "before" and passed[-1:] != [at]:
                passed.append(at)
                say({"kind": "boundary", "at": at})
            if point and (len(passed) - 1, moment) == (point.index, point.moment):
                os.kill(os.getpid(), signal.SIGKILL)

        def exchange(self: Transport, call: Any) -> Response:
            at = shape(call.method, call.path)
            pass_(at, "before")
            response = real(self, call)
            pass_(at, "after")
            return response

        def around(key: str, when: str) -> None:
            if "_link_" not in key:
                pass_(f"XCom {key}", when)

        Transport._exchange = exchange  # type: ignore[method-assign]
        ti.around = around
        work(say)

    return run


@dataclass
class Run:
    """An Airflow task with its tries, whose slices are processes. One of them is killed."""

    make: Callable[[], Any]
    run_id: str
    point: Point | None
    slices: list[tuple[str, ...]] = field(default_factory=list)

    def whole(self) -> Any:
        """Return the result of the last try."""
        for try_number in range(1, TRIES + 1):
            said = self.slice(try_number, None)
            if said["kind"] == "deferred":
                deferred = TaskDeferred(
                    trigger=again(Serialized(*said["trigger"])), method_name=said["method"]
                )
                said = self.slice(try_number, (said["method"], {"event": fire(deferred)}))
            if said["kind"] == "success":
                return said["value"]
        raise AssertionError(f"no try of {TRIES} succeeded: {said}")

    def slice(self, try_number: int, resumes: tuple[str, dict[str, Any]] | None) -> dict[str, Any]:
        ti = StoringTI(run_id=self.run_id, task_id="step", try_number=try_number, max_tries=TRIES - 1)
        is_point = self.point is not None and self.point.slice == len(self.slices)
        child = fork(armed(worker(self.make, ti, resumes), ti, self.point if is_point else None))
        assert child.wait() == (-signal.SIGKILL if is_point else 0), child.said
        self.slices.append(tuple(one["at"] for one in child.said if one["kind"] == "boundary"))
        return {"kind": "killed"} if is_point else child.said[-1]


@pytest.fixture
def client(server: LocalQarnot, monkeypatch: pytest.MonkeyPatch) -> Iterator[QarnotClient]:
    connect(server, monkeypatch)
    monkeypatch.setenv("AIRFLOW__QARNOT__POLL_INTERVAL", "0.05")
    monkeypatch.setenv("AIRFLOW__QARNOT__DEFER_AFTER", "0")
    with QarnotClient(server.url, server.token) as client:
        yield client


@pytest.fixture
def nodes(client: QarnotClient) -> Iterator[str]:
    uuid = client.pools.create(PoolSpec(name="nodes", instance_count=2))
    yield uuid
    client.pools.delete(uuid)


def array(nodes: str, folder: Path, work: str, mode: str) -> Callable[[], Any]:
    common: dict[str, Any] = {
        "qarnot_pool": nodes,
        "deferrable": mode == "deferred",
        "retries": TRIES - 1,
        "chunk_size": 17,
    }
    if work == COMMANDS:
        common |= {"constants": {"FOLDER": str(folder)}, "task_spec": {"return_file": True}}
        return lambda: QarnotRunArrayOperator(task_id="step", command=STEP, commands=[{}] * ITEMS, **common)
    size = common.pop("chunk_size")
    function = qarnot_task(**common)(step).override(chunk_size=size)
    shared = {"folder": str(folder), "failing": FAILING}
    return lambda: function.partial(**shared).array(number=range(ITEMS)).operator


def check(run: Run, client: QarnotClient, folder: Path) -> None:
    assert run.whole() == [number * number for number in range(ITEMS)]
    done = {number: (folder / f"done-{number}").read_text() for number in range(ITEMS)}
    assert set(done.values()) == {"x"}, done
    # The second round has the failed item alone.
    assert [one.instances for one in made_for(client.tasks, run.run_id)] == [2, 1]


@pytest.mark.parametrize(("work", "mode"), CASES)
def test_no_boundary_is_missing(
    client: QarnotClient, nodes: str, tmp_path: Path, run_id: str, work: str, mode: str
) -> None:
    run = Run(array(nodes, tmp_path, work, mode), run_id, None)
    check(run, client, tmp_path)
    assert tuple(run.slices) == slices_of(work, mode)


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_each_item_succeeds_exactly_once_wherever_a_worker_dies(
    client: QarnotClient, nodes: str, tmp_path: Path, run_id: str, point: Point
) -> None:
    check(Run(array(nodes, tmp_path, point.work, point.mode), run_id, point), client, tmp_path)


@pytest.fixture
def run_id(request: pytest.FixtureRequest) -> str:
    """A DAG run of the test's own."""
    return str(request.node.name)
