"""The output of instances in the task log: while they run, once each, and cheaply where nobody asked for more."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.decorators.qarnot import qarnot_task
from airflow_qarnot_pool.exceptions import QarnotInvalidSpecError
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.triggers.task import QarnotTaskTrigger
from airflow_qarnot_pool.version_compat import TaskDeferred
from tests.harness import FakeTI, again, context_of, defer, run
from tests.operators.conftest import connect

task = partial(QarnotRunTaskOperator, task_id="work", log_output="live")
PATIENCE = 60.0


@pytest.fixture(autouse=True)
def _short_interval(qarnot: LocalQarnot, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(qarnot, monkeypatch, poll_interval=0.05)


class Log:
    """A log whose readers can wait for a line."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.warnings: list[str] = []
        self._changed = threading.Condition()

    def info(self, text: str, *values: Any, **_: Any) -> None:
        with self._changed:
            self.lines.append(text % values if values else text)
            self._changed.notify_all()

    def warning(self, text: str, *values: Any) -> None:
        self.warnings.append(text % values)
        self.info(text, *values)

    error = debug = info

    @property
    def output(self) -> list[str]:
        return [line for line in list(self.lines) if line.startswith("[std")]

    def wait(self, line: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: line in self.lines, PATIENCE), self.lines

    async def waited(self, line: str) -> None:
        await asyncio.to_thread(self.wait, line)

    async def waited_for(self, words: str) -> None:
        def look() -> None:
            with self._changed:
                found = self._changed.wait_for(lambda: any(words in line for line in self.lines), PATIENCE)
            assert found, self.lines

        await asyncio.to_thread(look)


class Stores:
    """The XComs of the task instance *ti*, as triggers reach them."""

    def __init__(self) -> None:
        self.ti = FakeTI()
        self.broken = False

    @property
    def xcoms(self) -> dict[str, Any]:
        return self.ti.xcoms

    def of(self, run_id: str) -> FakeTI:
        self.ti.run_id = run_id
        return self.ti

    async def own_xcom(self, identity: Any, key: str) -> Any:
        return json.loads(json.dumps(self.xcoms.get(key)))

    async def store_xcom(self, identity: Any, key: str, value: Any) -> None:
        if self.broken:
            raise OSError("no Airflow")
        self.ti.xcom_push(key, value)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    log = Log()
    for one in (QarnotTaskTrigger, QarnotRunTaskOperator):
        monkeypatch.setattr(one, "log", log, raising=False)
    return log


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> Stores:
    stores = Stores()
    for name in ("own_xcom", "store_xcom"):
        monkeypatch.setattr(f"airflow_qarnot_pool.triggers.log_follower.{name}", getattr(stores, name))
    return stores


class Steps:
    """A command that prints a step each time it is let."""

    def __init__(self, folder: Path, *steps: str) -> None:
        self._folder = folder
        parts = [f"until test -e {folder}/{n}; do sleep 0.02; done; {step}" for n, step in enumerate(steps)]
        self.command = ["sh", "-c", "; ".join(parts)]

    def let(self, *numbers: int) -> None:
        for number in numbers:
            (self._folder / str(number)).touch()


@pytest.fixture
def steps(tmp_path: Path) -> Callable[..., Steps]:
    return lambda *steps: Steps(tmp_path, *steps)


async def first_event(trigger: Any) -> dict[str, Any]:
    async for event in trigger.run():
        return dict(event.payload)
    raise AssertionError("no event")


def fetches(qarnot: LocalQarnot) -> list[str]:
    return [
        one["path"] for one in qarnot.requests() if one["path"].rpartition("/")[2] in ("stdout", "stderr")
    ]


def test_deferred_output_is_logged_while_it_is_written_and_once(
    pool: str, log: Log, stores: Stores, steps: Callable[..., Steps]
) -> None:
    work = steps("echo first $INSTANCE_ID", "echo odd >&2; echo last")
    make = partial(task, qarnot_pool=pool, command=work.command, instance_count=2)
    deferred, context = defer(make, stores.of("live"))

    async def waiting() -> dict[str, Any]:
        firing = asyncio.create_task(first_event(again(deferred.trigger)))
        assert log.output == []
        work.let(0)
        await log.waited("[stdout 0] first 0")
        await log.waited("[stdout 1] first 1")
        assert not firing.done()
        work.let(1)
        return await firing

    event = asyncio.run(waiting())
    assert "first" not in str(stores.xcoms)
    make().execute_complete(context, event)
    assert sorted(log.output) == sorted(
        f"[{line}]{rest}"
        for n in range(2)
        for line, rest in ((f"stdout {n}", f" first {n}"), (f"stderr {n}", " odd"), (f"stdout {n}", " last"))
    )


def test_output_is_logged_while_it_is_written_on_the_worker_too(
    pool: str, log: Log, steps: Callable[..., Steps]
) -> None:
    work = steps("echo first", "printf last")
    make = partial(task, qarnot_pool=pool, command=work.command, deferrable=False)
    done = threading.Thread(target=lambda: run(make, FakeTI(run_id="live-here")))
    done.start()
    work.let(0)
    log.wait("[stdout 0] first")
    assert done.is_alive()
    work.let(1)
    done.join(PATIENCE)
    assert log.output == ["[stdout 0] first", "[stdout 0] last"]


def test_nothing_is_logged_twice_when_another_triggerer_takes_over(
    pool: str, log: Log, stores: Stores, steps: Callable[..., Steps], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = steps("seq 1 30", "seq 31 60", "seq 61 90")
    make = partial(task, qarnot_pool=pool, command=work.command)
    deferred, context = defer(make, stores.of("restart"))

    async def killed(step: int, line: str) -> None:
        firing = asyncio.create_task(first_event(again(deferred.trigger)))
        work.let(step)
        await log.waited(line)
        firing.cancel()
        with suppress(asyncio.CancelledError):
            await firing

    for step, last in ((0, 30), (1, 60)):
        monkeypatch.setattr(
            "airflow_qarnot_pool.triggers.log_follower._process_name", lambda pid, n=step: f"p{n}"
        )
        asyncio.run(killed(step, f"[stdout 0] {last}"))
    monkeypatch.setattr("airflow_qarnot_pool.triggers.log_follower._process_name", lambda pid: "p2")
    work.let(2)
    event = asyncio.run(first_event(again(deferred.trigger)))
    make().execute_complete(context, event)
    # One log stands for all here, and one that ended in the middle of its steps leaves lines in doubt.
    assert list(dict.fromkeys(log.output)) == [f"[stdout 0] {n}" for n in range(1, 91)]
    doubtful = [int(line.split()[0]) for line in log.warnings if "may not have reached the log" in line]
    assert len(log.output) - 90 <= sum(doubtful)
    assert sum("after the lines that another triggerer has written" in line for line in log.lines) == 2


def test_a_gap_is_told_with_how_much_is_kept(
    log: Log, stores: Stores, steps: Callable[..., Steps], monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalQarnot(boot_seconds=0.05, output_bytes=1000) as qarnot:
        connect(qarnot, monkeypatch)
        work = steps("seq 100 110", "seq 200 900", "echo end")
        make = partial(task, command=work.command)
        deferred, context = defer(make, stores.of("gap"))

        async def waiting() -> dict[str, Any]:
            firing = asyncio.create_task(first_event(again(deferred.trigger)))
            work.let(0)
            await log.waited("[stdout 0] 110")
            work.let(1)
            await log.waited("[stdout 0] 900")
            work.let(2)
            return await firing

        event = asyncio.run(waiting())
        make().execute_complete(context, event)
    before, gap, *after = [line.removeprefix("[stdout 0] ") for line in log.output][10:]
    assert before == "110"
    assert "output is missing here: since the last poll more was written than Qarnot keeps" in gap
    # It is not known how quickly it was written, so how many gaps there are; but nothing comes twice.
    numbers = [int(line) for line in after if len(line) == 3 and line.isdigit()]
    assert numbers == sorted(set(numbers))
    assert numbers[-240:] == list(range(661, 901))
    assert after[-1] == "end"


def test_output_that_cannot_be_stored_or_fetched_is_no_reason_to_fail(
    pool: str, qarnot: LocalQarnot, log: Log, stores: Stores, steps: Callable[..., Steps]
) -> None:
    work = steps("echo first", "echo last")
    make = partial(task, qarnot_pool=pool, command=work.command)
    deferred, context = defer(make, stores.of("broken"))
    stores.broken = True
    qarnot.faults([{"method": "GET", "path": "/std", "kind": "status", "status": 500, "times": 3}])

    async def waiting() -> dict[str, Any]:
        firing = asyncio.create_task(first_event(again(deferred.trigger)))
        work.let(0)
        await log.waited_for("did not store how far")
        stores.broken = False
        await log.waited("[stdout 0] first")
        stores.broken = True
        work.let(1)
        return await firing

    event = asyncio.run(waiting())
    make().execute_complete(context, event)
    assert log.output == ["[stdout 0] first", "[stdout 0] last"]
    assert sum("could not be fetched" in line for line in log.warnings) == 1


def test_nothing_is_fetched_before_it_runs(
    client: QarnotClient, qarnot: LocalQarnot, log: Log, stores: Stores
) -> None:
    """Behind a queue live tasks cost nothing."""
    from airflow_qarnot_pool.api.specs import PoolSpec
    from airflow_qarnot_pool.triggers.poller import pollers

    empty = client.pools.create(
        PoolSpec.from_mapping(
            {"name": "empty", "scaling": {"policies": [{"type": "Fixed", "name": "n", "slotsCount": 0}]}}
        )
    )
    deferred, _ = defer(partial(task, qarnot_pool=empty, command="true"), FakeTI(run_id="queued"))

    async def waiting() -> None:
        firing = asyncio.create_task(first_event(again(deferred.trigger)))
        while not any(poller.rounds >= 10 for poller in pollers()):
            await asyncio.sleep(0.02)
        firing.cancel()
        with suppress(asyncio.CancelledError):
            await firing

    asyncio.run(waiting())
    assert fetches(qarnot) == []
    client.pools.delete(empty)


def test_by_default_each_stream_is_fetched_once(pool: str, qarnot: LocalQarnot, log: Log) -> None:
    run(partial(task, qarnot_pool=pool, command="sh -c 'echo a; sleep 0.3'", log_output=True))
    assert [path.rpartition("/")[2] for path in fetches(qarnot)] == ["stdout", "stderr"]
    assert log.output == ["[stdout 0] a"]


def test_secrets_that_a_triggerer_cannot_mask_are_not_logged_by_it(
    pool: str, log: Log, stores: Stores
) -> None:
    make = partial(
        task,
        qarnot_pool=pool,
        command="sh -c 'echo $QARNOT_SECRET__KEY'",
        task_spec={"constants": {"QARNOT_SECRET__KEY": "hush-hush"}},
    )
    deferred, _ = defer(make, FakeTI(run_id="secret"))
    assert "follow_logs" not in deferred.trigger.serialize()[1]
    assert any("QARNOT_SECRET__KEY" in line and "deferrable=False" in line for line in log.warnings)
    assert not any("hush-hush" in line for line in log.lines)


def test_a_function_that_is_followed_does_not_show_its_result(
    pool: str, log: Log, stores: Stores, tmp_path: Path
) -> None:
    def shows(folder: str) -> str:
        import time
        from pathlib import Path

        print("begun")
        while not (Path(folder) / "go").exists():
            time.sleep(0.02)
        print("done", end="")
        return "the result"

    def make() -> Any:
        decorated = qarnot_task(qarnot_pool=pool, log_output="live")(shows)
        return decorated(str(tmp_path)).operator

    operator = make()
    context = context_of(operator, stores.of("function"))
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(context)

    async def waiting() -> dict[str, Any]:
        firing = asyncio.create_task(first_event(again(deferred.value.trigger)))
        await log.waited("[stdout] begun")
        (tmp_path / "go").touch()
        return await firing

    event = asyncio.run(waiting())
    assert make().execute_complete(context, event) == "the result"
    assert log.output == ["[stdout] begun", "[stdout] done"]


@pytest.mark.parametrize("parameters", [{"log_output": "always"}, {"wait_for_completion": False}])
def test_impossible_parameters_are_refused_at_parse(parameters: dict[str, Any]) -> None:
    with pytest.raises(QarnotInvalidSpecError, match="log_output"):
        task(command="true", **parameters)


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """No follower outlives its wait."""
    from airflow_qarnot_pool.triggers.log_follower import LogFollower

    before = len(FOLLOWED)
    original = LogFollower.follow

    async def follow(self: LogFollower) -> None:
        FOLLOWED.append(1)
        try:
            await original(self)
        finally:
            FOLLOWED.pop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LogFollower, "follow", follow)
        yield
    assert len(FOLLOWED) == before


FOLLOWED: list[int] = []
