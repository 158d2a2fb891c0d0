"""The follower of outputs: within its bounds, whatever they are; no line lost or doubled without a word, whenever
it ends.
"""

from __future__ import annotations

import asyncio
import copy
import os
import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from airflow_qarnot_pool.api.errors import QarnotUnavailableError
from airflow_qarnot_pool.logs.channel import bytes_unread, wait_until_flushed
from airflow_qarnot_pool.logs.cursor import CursorPosition, LogCursor
from airflow_qarnot_pool.logs.writer import acquire_lease, write_new_output
from airflow_qarnot_pool.triggers import log_follower
from airflow_qarnot_pool.triggers.log_follower import MAX_INSTANCES, MAX_READERS, LogFollower
from tests.harness import FakeTI, life_of


class Log:
    def __init__(self) -> None:
        self.said: list[str] = []

    def info(self, text: str, *values: Any, **_: Any) -> None:
        self.said.append(text % values)

    warning = info


@pytest.fixture(autouse=True)
def connected(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(self: LogFollower) -> Any:
        return object()

    monkeypatch.setattr(LogFollower, "_connect", connect)


def follower(log: Log | None = None) -> LogFollower:
    made = LogFollower("qarnot_default", LogCursor(uuid="u").to_json(), 0.01, None, log or Log())
    made.mark_running()
    return made


def test_few_outputs_are_fetched_at_a_time_and_not_on_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    fetching: set[str] = set()
    go = threading.Event()

    def read(client: Any, cursor: LogCursor) -> tuple[LogCursor, list[str]]:
        fetching.add(threading.current_thread().name)
        assert go.wait(60)
        return cursor, []

    monkeypatch.setattr(log_follower, "_read", read)

    async def many() -> None:
        following = [asyncio.create_task(follower().follow()) for _ in range(3 * MAX_READERS)]
        try:
            while log_follower._threads()._work_queue.qsize() + len(fetching) < 3 * MAX_READERS:
                await asyncio.sleep(0.01)
            assert len(fetching) == MAX_READERS
            assert all(name.startswith("qarnot-output") for name in fetching)
        finally:
            go.set()
            for one in following:
                one.cancel()
            await asyncio.wait(following)

    asyncio.run(many())


def test_more_instances_than_an_xcom_should_hold_are_followed_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Log()
    places = {("stdout", instance): CursorPosition(1, (1,)) for instance in range(MAX_INSTANCES + 1)}
    monkeypatch.setattr(
        log_follower, "_read", lambda _, cursor: (LogCursor(uuid="u", places=places), ["line"])
    )
    one = follower(log)
    asyncio.run(asyncio.wait_for(one.follow(), 60))
    assert log.said[0] == "line"
    assert "the rest of the output follows when all are done" in log.said[1]
    assert len(one.position.to_json()["places"]) == MAX_INSTANCES + 1


@pytest.mark.parametrize(
    ("look", "reading", "pause"),
    [(0.1, 0.1, 5.0), (3.0, 2.0, 20.0), (30.0, 0.1, 30.0)],
    ids=["quick", "a large output", "an Airflow that takes its time with notes"],
)
def test_the_pause_after_a_look(look: float, reading: float, pause: float) -> None:
    assert log_follower.pause_after(5.0, look, reading) == pause


def test_a_follower_heeds_retry_after(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    class Jitter:
        """Notes the pause, and makes it none."""

        def __rmul__(self, pause: float) -> float:
            pauses.append(pause)
            return 0.0

    responses = [QarnotUnavailableError(status=429, retry_after=300.0), QarnotUnavailableError(status=503)]

    def read(client: Any, cursor: LogCursor) -> tuple[LogCursor, list[str]]:
        if responses:
            raise responses.pop(0)
        return cursor, []

    monkeypatch.setattr(log_follower, "_read", read)
    monkeypatch.setattr(log_follower, "random", SimpleNamespace(uniform=lambda *_: Jitter()))

    async def case() -> None:
        following = asyncio.create_task(follower().follow())
        while len(pauses) < 3:
            await asyncio.sleep(0)
        following.cancel()
        await asyncio.wait([following])

    asyncio.run(case())
    assert pauses[0] == 300.0
    assert max(pauses[1:3]) < 300.0


# --- whenever it ends


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the follower's runs after it."""


class Line(str):
    time: str | None


class FileLog:
    """A triggerer's log of a task: lines are on their way to its file until the parent process has read them."""

    def __init__(self, airflow: Airflow) -> None:
        self.file: list[Line] = []
        self.way: list[Line] = []
        self._airflow = airflow

    def bind(self) -> FileLog:
        return self

    def info(self, text: str, *values: Any, timestamp: str | None = None, **_: Any) -> None:
        if timestamp is not None:
            self._airflow.line()
        line = Line(text % values)
        line.time = timestamp
        self.way.append(line)

    warning = info

    def arrive(self, share: float = 1.0) -> None:
        arrived = round(len(self.way) * share)
        self.file += self.way[:arrived]
        self.way = []


class Airflow:
    """The XComs of a task instance. Something happens to the follower at one of its boundaries: before and after
    each request and each wait, and at each line.
    """

    def __init__(self, at: int | None = None, do: Callable[[], Any] | None = None) -> None:
        self.ti = FakeTI()
        self.boundaries: list[str] = []
        self._at, self._do = at, do

    async def _boundary(self, name: str) -> None:
        self.boundaries.append(name)
        if len(self.boundaries) - 1 == self._at and self._do is not None:
            await self._do()

    def line(self) -> None:
        self.boundaries.append("line")
        if len(self.boundaries) - 1 == self._at:
            raise Killed

    async def own_xcom(self, identity: Any, key: str) -> Any:
        await self._boundary(f"ask {key}")
        value = copy.deepcopy(self.ti.xcoms.get(key))
        await self._boundary(f"asked {key}")
        return value

    async def store_xcom(self, identity: Any, key: str, value: Any) -> None:
        await self._boundary(f"store {key}")
        self.ti.xcom_push(key, copy.deepcopy(value))
        await self._boundary(f"stored {key}")

    async def wait_until_flushed(self, log: FileLog) -> None:
        await self._boundary("drain")
        log.arrive()
        await self._boundary("wait_until_flushed")


LOOKS = ["1\n2\n3\n", "4\n5", "", "6\n7\n8\n", "9\n10\n11\n"]
ALL = [f"[stdout] {number}" for number in (1, 2, 3, 4, 56, 7, 8, 9, 10, 11)]


class Source:
    """An output that grows with every look, as *LOOKS* says; nothing leaves the buffer."""

    def __init__(self) -> None:
        self.looks = 0

    def fetch(self, client: Any, uuid: str, stream: str, instance: int | None, seconds: float = 1.0) -> str:
        if stream == "stderr":
            return ""
        self.looks += 1
        return "".join(LOOKS[: self.looks])


class AtOnce(Executor):
    def submit(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:  # type: ignore[override]
        done: Future[Any] = Future()
        done.set_result(call(*args, **kwargs))
        return done


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    source = Source()
    monkeypatch.setattr("airflow_qarnot_pool.triggers.log_follower.fetch", source.fetch)
    monkeypatch.setattr(log_follower, "_threads", AtOnce)
    monkeypatch.setattr(log_follower, "READ_TIME_FACTOR", 0)
    return source


LIFE = life_of(task_id="task")


def works_in(
    airflow: Airflow, monkeypatch: pytest.MonkeyPatch, triggerer: str, log: FileLog | None = None
) -> tuple[LogFollower, FileLog]:
    for name in ("own_xcom", "store_xcom", "wait_until_flushed"):
        monkeypatch.setattr(log_follower, name, getattr(airflow, name))
    monkeypatch.setattr(log_follower, "_process_name", lambda pid: triggerer)
    log = log or FileLog(airflow)
    made = LogFollower("qarnot_default", LogCursor(uuid="u", instance=0).to_json(), 0.0, LIFE, log)
    made.mark_running()
    return made, log


async def until_all_is_written(follower: LogFollower, log: FileLog, source: Source) -> None:
    """Let it follow until it has nothing more to write, or ends."""
    following = asyncio.create_task(follower.follow())
    while not following.done() and not (source.looks > len(LOOKS) + 2 and not follower._writing.locked()):
        await asyncio.sleep(0)
    following.cancel()
    with suppress(asyncio.CancelledError, Killed):
        await following


def shown(*files: FileLog) -> Counter[str]:
    """What Airflow's log view shows of the output: of lines that are the same, time included, one."""
    lines = {(line.time, str(line)) for file in files for line in file.file if line.startswith("[std")}
    return Counter(line for _, line in lines)


def missing_or_twice(lines: Counter[str]) -> Counter[str]:
    """What is not as the output was; one line may have been written in two parts."""
    expected = Counter(ALL)
    if lines["[stdout] 6"]:
        expected += Counter(["[stdout] 5", "[stdout] 6"]) - Counter(["[stdout] 56"])
        del expected["[stdout] 56"]
    return (expected - lines) + (lines - expected)


def announced(*files: FileLog) -> int:
    """How many lines were said to be written again."""
    said = "\n".join(str(line) for file in files for line in file.file)
    return sum(
        1 if number == "One line" else int(number.split()[0])
        for number in re.findall(r"(One line|\d+ lines) of the output may not have reached", said)
    )


def boundaries(monkeypatch: pytest.MonkeyPatch, source: Source) -> list[str]:
    """Of a follower to which nothing happens."""
    airflow = Airflow()
    first, log = works_in(airflow, monkeypatch, "first")
    asyncio.run(until_all_is_written(first, log, source))
    assert not missing_or_twice(shown(log))
    assert announced(log) == 0
    source.looks = 0
    return airflow.boundaries


def check(*files: FileLog) -> None:
    """Nothing is missing, nothing there twice for who looks at the log, and what was written twice was announced."""
    wrong = missing_or_twice(shown(*files))
    if announced(*files):
        # Begun as "5", and written again as the whole line that it had become.
        del wrong["[stdout] 5"]
    assert not wrong, [file.file for file in files]
    everything = [str(line) for file in files for line in file.file if line.startswith("[std")]
    assert len(everything) - shown(*files).total() <= announced(*files)


@pytest.mark.parametrize("arrived", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("successor", ["triggerer", "worker"])
def test_killed_at_any_moment_no_line_is_missing_or_twice(
    monkeypatch: pytest.MonkeyPatch, source: Source, successor: str, arrived: float
) -> None:
    """*arrived*: of the lines on their way, how many the parent process still wrote to the file."""

    async def die() -> None:
        raise Killed

    names = boundaries(monkeypatch, source)
    assert names.count("line") >= 10
    assert names.count("drain") >= 3
    repeated = 0
    for at in range(len(names)):
        source.looks = 0
        airflow = Airflow(at, die)
        first, log = works_in(airflow, monkeypatch, "first")
        asyncio.run(until_all_is_written(first, log, source))
        assert len(airflow.boundaries) == at + 1
        log.arrive(arrived)
        second, log2 = works_in(airflow, monkeypatch, "second")
        if successor == "triggerer":
            asyncio.run(until_all_is_written(second, log2, source))
        else:
            source.looks = len(LOOKS)
            start = acquire_lease(airflow.ti, first.to_json(), log2)
            write_new_output(lambda stream, _: source.fetch(None, "u", stream, 0), start, log2)
        log2.arrive()
        check(log, log2)
        repeated += announced(log2)
    # The doubt is there, and it is bounded: none at all in most of the moments.
    assert 0 < repeated < 3 * len(names)


def test_cancelled_at_any_moment_no_line_is_missing_or_twice(
    monkeypatch: pytest.MonkeyPatch, source: Source
) -> None:
    async def cancel() -> None:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        await asyncio.sleep(0)

    names = boundaries(monkeypatch, source)
    for at in [at for at, name in enumerate(names) if name != "line"]:
        source.looks = 0
        airflow = Airflow(at, cancel)
        first, log = works_in(airflow, monkeypatch, "first")
        asyncio.run(until_all_is_written(first, log, source))
        log.arrive(0.0)  # the parent has let go of the trigger, and writes what comes now elsewhere
        second, log2 = works_in(airflow, monkeypatch, "second")
        asyncio.run(until_all_is_written(second, log2, source))
        log2.arrive()
        check(log, log2)


def test_of_two_at_once_one_stops_at_any_moment(monkeypatch: pytest.MonkeyPatch, source: Source) -> None:
    """The older one stands still, another takes over, and the older one goes on."""
    names = boundaries(monkeypatch, source)
    # At 1 and 2 it has not seen the other, and the other not it: see test_two_that_do_not_know_of_each_other.
    for at in [at for at, name in enumerate(names) if name != "line" and at not in (1, 2)]:
        source.looks = 0

        async def scene(at: int = at) -> None:
            stands, goes_on = asyncio.Event(), asyncio.Event()

            async def stand() -> None:
                stands.set()
                await goes_on.wait()

            airflow = Airflow(at, stand)
            first, log = works_in(airflow, monkeypatch, "first")
            older = asyncio.create_task(first.follow())
            await stands.wait()
            # Each has its own triggerer, whose functions it has looked up by now or looks up in the same Airflow.
            second, log2 = works_in(airflow, monkeypatch, "second")
            younger = asyncio.create_task(second.follow())
            while source.looks < len(LOOKS) or second._writing.locked():
                await asyncio.sleep(0)
            goes_on.set()
            while not (older.done() or younger.done()) and source.looks < 3 * len(LOOKS):
                await asyncio.sleep(0)
            for one in (older, younger):
                one.cancel()
            await asyncio.wait([older, younger])
            for one in (log, log2):
                one.arrive()
            # What one of them left to do is the worker's.
            log3 = FileLog(airflow)
            start = acquire_lease(airflow.ti, first.to_json(), log3)
            write_new_output(lambda stream, _: source.fetch(None, "u", stream, 0), start, log3)
            log3.arrive()
            check(log, log2, log3)

        asyncio.run(scene())


def test_a_stalled_parent_does_not_hold_up_the_end_of_a_wait(
    monkeypatch: pytest.MonkeyPatch, source: Source
) -> None:
    """What is on its way by then is in doubt, and the worker writes it."""
    stalled = asyncio.Event()

    async def never() -> None:
        stalled.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(log_follower, "FLUSH_TIMEOUT", 0.01)
    names = boundaries(monkeypatch, source)
    airflow = Airflow(names.index("drain"), never)
    first, log = works_in(airflow, monkeypatch, "first")

    async def ends() -> None:
        following = asyncio.create_task(first.follow())
        await stalled.wait()
        await asyncio.wait_for(first.stop(following), 60)

    asyncio.run(ends())
    log.arrive(0.5)
    source.looks = len(LOOKS)
    log2 = FileLog(airflow)
    start = acquire_lease(airflow.ti, first.to_json(), log2)
    assert start.doubtful == 3
    write_new_output(lambda stream, _: source.fetch(None, "u", stream, 0), start, log2)
    log2.arrive()
    check(log, log2)


def test_nothing_is_written_that_cannot_be_noted(monkeypatch: pytest.MonkeyPatch, source: Source) -> None:
    async def down() -> None:
        raise OSError("no Airflow")

    names = boundaries(monkeypatch, source)
    for at, name in enumerate(names):
        if name.startswith(("ask", "store")):
            source.looks = 0
            airflow = Airflow(at, down)
            first, log = works_in(airflow, monkeypatch, "first")
            asyncio.run(until_all_is_written(first, log, source))
            log.arrive()
            assert not missing_or_twice(shown(log)), name
            assert len([line for line in log.file if "did not store how far" in line]) == 1


def test_a_log_that_airflow_begins_anew_is_announced(monkeypatch: pytest.MonkeyPatch, source: Source) -> None:
    """The wait comes back to a triggerer that had it before."""
    airflow = Airflow()
    for triggerer in ("a", "b", "a"):
        source.looks = 0 if triggerer == "a" else source.looks
        one, log = works_in(airflow, monkeypatch, triggerer)
        asyncio.run(until_all_is_written(one, log, source))
        log.arrive()
    assert "has written up to 11 lines of output to this log before. They may be gone" in "".join(log.file)


async def ended_by(follower: Any, event: Callable[[], object]) -> None:
    """Follow until *event*, which happens once something is written, ends it."""
    following = asyncio.create_task(follower.follow())
    while not follower.position.written:
        await asyncio.sleep(0)
    event()
    await following


def test_two_that_do_not_know_of_each_other_say_so(monkeypatch: pytest.MonkeyPatch, source: Source) -> None:
    airflow = Airflow()
    first, log = works_in(airflow, monkeypatch, "first")

    # Both looked for one before them at the same time, and the other one's claim was stored last.
    asyncio.run(
        ended_by(
            first, lambda: airflow.ti.xcoms.update({log_follower.OUTPUT_KEY: {"followers": ["second.1"]}})
        )
    )
    log.arrive()
    assert "may be in the log twice" in log.file[-1]
    # Where that one has nothing more to write, the worker tells.
    log2 = FileLog(airflow)
    assert acquire_lease(airflow.ti, first.to_json(), log2).cursor == first.position.cursor
    log2.arrive()
    assert "may be in the log twice" in log2.file[-1]


def test_the_follower_of_a_cleared_try_stops_quietly(monkeypatch: pytest.MonkeyPatch, source: Source) -> None:
    airflow = Airflow()
    first, log = works_in(airflow, monkeypatch, "first")

    asyncio.run(ended_by(first, airflow.ti.xcoms.clear))
    log.arrive()
    assert {str(line)[:8] for line in log.file} == {"[stdout]"}


# --- the log channel


def test_a_channel_is_drained_once_all_of_it_is_read() -> None:
    here, there = socket.socketpair()
    with here, there, os.fdopen(os.dup(here.fileno()), "wb", buffering=0) as file:
        log = structlog.wrap_logger(structlog.BytesLogger(file), processors=[lambda *_: b"a line"])
        assert bytes_unread(log) == 0
        log.info("")
        assert bytes_unread(log) > 0

        async def reads() -> None:
            waiting = asyncio.create_task(wait_until_flushed(log))
            there.recv(3)
            await asyncio.sleep(0.02)
            assert not waiting.done()
            there.recv(100)
            await asyncio.wait_for(waiting, 60)

        asyncio.run(reads())


def test_an_object_that_is_no_channel_has_nothing_unread(tmp_path: Any) -> None:
    with (tmp_path / "log").open("wb") as file:
        assert (
            bytes_unread(structlog.wrap_logger(structlog.BytesLogger(file), processors=[lambda *_: b"x"]))
            == 0
        )
    assert bytes_unread(Log()) == 0


WRITER = """
import os, socket
from airflow.sdk.execution_time.supervisor import _configure_logs_over_json_channel
from airflow_qarnot_pool.logs.checkpoint import with_timestamps
from airflow_qarnot_pool.logs.writer import write
from airflow_qarnot_pool.logs.channel import bytes_unread
from airflow_qarnot_pool.triggers.task import QarnotTaskTrigger

here, there = socket.socketpair()
_configure_logs_over_json_channel(os.dup(here.fileno()))
log = QarnotTaskTrigger(qarnot_conn_id="q", uuid="u", condition={}, poll_interval=1).log
empty = bytes_unread(log)
lines, _ = with_timestamps(["[stdout 0] a", "[stdout 0] a", "[stdout 1] a"], (), None, 1_800_000_000.0)
for one in lines:
    write(log, one)
full = bytes_unread(log)
text = there.recv(10_000).decode()
print(empty, full > 0, bytes_unread(log))
print(text, end="")
"""


def test_the_channel_of_a_triggerer_is_drained_and_a_line_written_twice_is_shown_once() -> None:
    """As Airflow sets up the log channel of its processes, and as its log view merges what they wrote."""
    from airflow.utils.log.file_task_handler import _interleave_logs

    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER], stdout=-1, stderr=-1, text=True) for _ in "ab"
    ]
    wrote = []
    for writer in writers:
        said, failed = writer.communicate(timeout=300)
        assert writer.returncode == 0, failed
        counts, *lines = said.splitlines()
        assert counts == "0 True 0"
        wrote.append(lines)
    shown = [one.event for one in _interleave_logs(*map(iter, wrote))]
    assert shown == ["[stdout 0] a", "[stdout 0] a", "[stdout 1] a"]
