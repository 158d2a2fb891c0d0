"""Read what a wrapped command reports in the output of its Qarnot task."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from airflow_qarnot_pool.api.commands import MARK, MAX_REPORT, RETURN_FILE, CommandReport, parse_report
from airflow_qarnot_pool.api.limits import parse_json
from airflow_qarnot_pool.exceptions import QarnotTaskFailedError
from airflow_qarnot_pool.logs.report import LineFinder
from airflow_qarnot_pool.logs.writer import RESULT_DEADLINE, fetch, retry_broken_read
from airflow_qarnot_pool.parameters.json_values import json_problem

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient

T = TypeVar("T")

#: Maximum number of results that are read at the same time: at 50 ms each, those of 10,000 items take a minute.
MAX_READERS = 8
#: Maximum number of results in memory that the caller has not got, because one may have megabytes.
_BATCH = 2 * MAX_READERS


class CommandResult(NamedTuple):
    """The value that a command returned, or the exit code with which it skipped."""

    value: Any = None
    skipped_with: int | None = None


def command_finder() -> LineFinder[CommandReport]:
    """Return a finder of the report of a wrapped command."""
    return LineFinder(MARK, parse_report, MAX_REPORT)


def read_result(client: QarnotClient, uuid: str) -> CommandResult:
    """Return the result of a Qarnot task that has succeeded."""
    finder = command_finder()

    def read(seconds: float) -> None:
        deque(finder.watch(fetch(client, uuid, "stdout", 0, seconds)), maxlen=0)

    retry_broken_read(read, RESULT_DEADLINE)
    return result_of(finder, uuid)


def read_all(read: Callable[[T], CommandResult], items: Sequence[T]) -> Iterator[CommandResult]:
    """Yield the result of each item in order. Some are read at the same time.

    :param read: function that reads the result of an item, in another thread. Its first error, in order, is raised.
    """
    with ThreadPoolExecutor(min(len(items), MAX_READERS) or 1) as threads:
        for start in range(0, len(items), _BATCH):
            yield from threads.map(read, items[start : start + _BATCH])


def result_of(finder: LineFinder[CommandReport], uuid: str) -> CommandResult:
    """Return the result of a Qarnot task that has succeeded, and whose output *finder* has read.

    :raises QarnotTaskFailedError: the command did not write JSON that Airflow can store, or there is no report.
    """
    report = finder.report
    if report is None:
        problem = finder.problem or (
            "it is not in the output. Qarnot keeps the end of an output only, and a process that the command left "
            "running may have continued to write. Or the image's entrypoint does not run the command"
        )
        raise _error(f"The result of Qarnot task {uuid} cannot be read: {problem}", uuid)
    if report.exit_code:
        return CommandResult(skipped_with=report.exit_code)
    if report.text is None:
        return CommandResult()
    try:
        value = parse_json(report.text)
    except ValueError as error:
        raise _error(f"The file {RETURN_FILE} of Qarnot task {uuid} is not JSON ({error})", uuid) from None
    if unfit := json_problem(value, for_xcom=True):
        raise _error(
            f"The file {RETURN_FILE} of Qarnot task {uuid} has {unfit}, which no XCom can have", uuid
        )
    return CommandResult(value)


def _error(message: str, uuid: str) -> QarnotTaskFailedError:
    return QarnotTaskFailedError(f"{message}. Clear the task to run it again", kind="task", ref=uuid)
