"""What a failure tells besides what Qarnot says, and outputs that are hard to read."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_qarnot_pool.api.errors import MAX_MESSAGE
from airflow_qarnot_pool.api.models import Task
from airflow_qarnot_pool.api.transport import ResponseInterruptedError
from airflow_qarnot_pool.exceptions import QarnotError, QarnotTaskFailedError, QarnotUnavailableError
from airflow_qarnot_pool.logs import failure_report as failure_reports
from airflow_qarnot_pool.logs import writer
from airflow_qarnot_pool.logs.checkpoint import MAX_DOUBTFUL, Offset, WriterLease
from airflow_qarnot_pool.logs.cursor import LogCursor
from airflow_qarnot_pool.logs.failure_report import MAX_REPORT, failure_report
from airflow_qarnot_pool.logs.writer import acquire_lease, write_new_output
from tests.harness import FakeTI

# --- reports are bounded


class Outputs:
    """A client whose tasks have written what a test says."""

    def __init__(self, **streams: str) -> None:
        self.tasks = self
        self.transport = SimpleNamespace(deadline=60.0)
        self._streams = streams

    def limited(self, **limits: Any) -> Outputs:
        return self

    def stream_output(self, ref: str, stream: str, instance: int | None = None) -> Iterator[str]:
        text = self._streams[stream]
        return (text[at : at + 65_536] for at in range(0, len(text), 65_536))


def failed(instances: int = 1, **fields: Any) -> Task:
    completed = [{"instanceId": n, "state": "Failure", "error": {"code": "X"}} for n in range(instances)]
    return Task.from_json(
        {"uuid": "u", "name": "work", "state": "Failure", "completedInstances": completed, **fields}
    )


@pytest.mark.parametrize(
    "stderr", ["x" * 3_000_000, "word " * 600_000, "line of stderr\n" * 200_000], ids=len
)
@pytest.mark.parametrize("instances", [0, 1, 5, 400])
def test_a_report_is_bounded_and_keeps_the_end_of_stderr(stderr: str, instances: int) -> None:
    client: Any = Outputs(stderr=f"{stderr}\nit all ended here\n")
    long = {"code": "c" * 3_000_000, "message": "m" * 3_000_000}
    task = failed(instances, name="n" * 3_000_000, errors=[long] * 300)
    for one in (failed(instances), task):
        report = failure_report(client, one, "https://console/tasks/u")
        assert len(report) <= MAX_REPORT
        assert "it all ended here" in report
        assert report.endswith("See https://console/tasks/u for more")
        assert report.startswith("Qarnot task u (")
    assert len(str(QarnotTaskFailedError("\n".join([report] * 100)))) <= MAX_MESSAGE


def test_a_long_line_of_stderr_shows_its_end_and_no_part_of_a_word() -> None:
    for shift in range(30):
        line = f"{'a ' * 5_000}secret-of-the-node {'b ' * (490 + shift % 20)}{'c' * (shift // 10)}the end"
        report = failure_report(Outputs(stderr=line), failed(), "link")  # type: ignore[arg-type]
        assert "the end" in report
        assert "node" not in report.replace("secret-of-the-node", "")


# --- no output costs a result


class Log:
    def __init__(self) -> None:
        self.said: list[str] = []

    def info(self, text: str, *values: Any, **_: Any) -> None:
        self.said.append(text % values if values else text)

    warning = info


def nothing_written(**options: Any) -> Offset:
    return Offset(cursor=LogCursor(uuid="u", **options))


def test_an_output_of_any_size_is_written_in_little_memory() -> None:
    def pieces(stream: str, seconds: float) -> Iterator[str]:
        for instance in range(64):
            for _ in range(10):
                yield f"{instance}> {'x' * 2_000}\n" * 50

    log = Log()
    tracemalloc.start()
    try:
        write_new_output(pieces, nothing_written(), log)
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()
    assert log.said[-1].startswith("[stderr 63] xxx")
    assert sum("left out here" in line for line in log.said) == 2


@pytest.mark.parametrize(
    "error", [QarnotError("away"), RecursionError(), MemoryError(), ValueError("x" * 3_000_000)]
)
def test_an_output_that_cannot_be_read_is_logged_as_such(error: Exception) -> None:
    def read(stream: str, seconds: float) -> Iterator[str]:
        if stream == "stdout":
            raise error
        yield "0> end\n"

    log = Log()
    write_new_output(read, nothing_written(), log)
    assert "The stdout of Qarnot task u could not be fetched" in log.said[0]
    assert len(log.said[0]) < 2_000
    assert log.said[1:] == ["[stderr 0] end"]


def test_an_output_that_breaks_off_in_the_middle_is_read_again_and_written_once() -> None:
    tries = {"stdout": 0, "stderr": 0}

    def read(stream: str, seconds: float) -> Iterator[str]:
        tries[stream] += 1
        yield "0> first\n0> sec"
        if tries[stream] < 3:
            raise ResponseInterruptedError("the connection broke off")
        yield "ond\n"

    log = Log()
    write_new_output(read, nothing_written(), log)
    assert log.said == [f"[{stream} 0] {line}" for stream in tries for line in ("first", "second")]


class Clock:
    """The clock of the reads, on which each of them takes as long as a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *takes: float) -> None:
        self.now, self.takes, self.given = 0.0, list(takes), list[float]()
        monkeypatch.setattr(writer, "time", SimpleNamespace(monotonic=lambda: self.now, time=lambda: 0.0))

    def broken_read(self, seconds: float) -> Any:
        self.given.append(seconds)
        self.now += self.takes.pop(0)
        raise ResponseInterruptedError("the connection broke off")


@pytest.mark.parametrize(
    ("takes", "given"),
    [
        pytest.param([30.0], [30.0], id="a body that trickles"),
        pytest.param([12.0, 18.5], [30.0, 18.0], id="the second read reaches the deadline"),
        pytest.param([1.0, 1.0, 1.0], [30.0, 29.0, 28.0], id="broken three times"),
    ],
)
def test_all_reads_of_a_stream_share_one_deadline(
    monkeypatch: pytest.MonkeyPatch, takes: list[float], given: list[float]
) -> None:
    clock = Clock(monkeypatch, *takes)
    with pytest.raises(ResponseInterruptedError):
        writer.retry_broken_read(clock.broken_read, 30.0)
    assert clock.given == given


def test_each_stream_of_a_log_has_its_own_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 40.0, 40.0)
    log = Log()
    write_new_output(lambda _, seconds: clock.broken_read(seconds), nothing_written(), log)
    assert clock.given == [writer.OUTPUT_DEADLINE] * 2
    assert sum("could not be fetched" in line for line in log.said) == 2


def test_a_report_reads_the_stderr_of_all_instances_within_one_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, given = [0.0], list[float]()
    monkeypatch.setattr(failure_reports, "time", SimpleNamespace(monotonic=lambda: now[0]))

    class Slow(Outputs):
        def limited(self, *, deadline: float) -> Outputs:  # type: ignore[override]
            given.append(deadline)
            if deadline <= 0:
                raise QarnotUnavailableError("the deadline has passed")
            return self

        def stream_output(self, ref: str, stream: str, instance: int | None = None) -> Iterator[str]:
            now[0] += 20.0
            return super().stream_output(ref, stream, instance)

    report = failure_report(Slow(stderr="it broke\n"), failed(4), "link")  # type: ignore[arg-type]
    assert given == [30.0, 10.0, -10.0]
    assert report.count("it broke") == 2


def test_a_log_that_cannot_be_written_costs_no_result() -> None:
    def info(*_: Any) -> None:
        raise OSError("no space left on device")

    log = SimpleNamespace(info=info, warning=info)
    assert write_new_output(lambda *_: "0> a\n", nothing_written(), log).cursor.uuid == "u"


NOTES = [
    None,
    5,
    "x",
    [],
    {},
    {"uuid": None, "places": [1]},
    {"uuid": "u", "places": [["stdout", 0, 1, "@", 0, 0]]},
    {"uuid": "u", "batches": [[1]]},
    {"uuid": "u", "batches": [[[["[stdout", MAX_DOUBTFUL + 1]], 1.0, 1.0]]},
    {"uuid": "u", "written": "many"},
    {"followers": 5},
]


@pytest.mark.parametrize("note", NOTES, ids=repr)
def test_a_note_that_cannot_be_read_back_costs_no_result(note: Any) -> None:
    log = Log()
    ti = FakeTI()
    good = nothing_written(instance=0).to_json()
    # What the trigger hands over, what it has stored, and who else has written.
    for told, stored, claim in (
        (note, good, {"followers": ["f"]}),
        (good, note, {"followers": ["f"]}),
        (good, good, note),
    ):
        ti.xcoms.update({"qarnot_output": claim, "qarnot_output_f": stored})
        position = acquire_lease(ti, told, log)
        write_new_output(lambda *_: "a\n", position or nothing_written(instance=0), log)
        assert log.said[-2:] == ["[stdout] a", "[stderr] a"]
    assert isinstance(WriterLease.from_json(note), WriterLease)
