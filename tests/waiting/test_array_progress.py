"""The lines of a log about the progress of an array."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from airflow_qarnot_pool.api.models import Task
from airflow_qarnot_pool.waiting.array_progress import REPORT_INTERVAL, ArrayProgress


def polled(succeeded: Iterable[int] = (), failed: Iterable[int] = (), running: int | None = 0) -> Task:
    completed = [{"instanceId": one, "state": "Success"} for one in succeeded]
    completed += [{"instanceId": one, "state": "Failure"} for one in failed]
    return Task.from_json(
        {
            "uuid": "u",
            "state": "FullyExecuting",
            "completedInstances": completed,
            "runningInstanceCount": running,
        }
    )


LINES: dict[str, tuple[ArrayProgress, Task, str | None]] = {
    "an item in each instance": (
        ArrayProgress(10, 1),
        polled(range(3), [3], 2),
        "Items: 4 of 10 finished (1 failed), 2 running",
    ),
    "chunks": (
        ArrayProgress(10_000, 10),
        polled(range(400), [400], 8),
        "Items: 4,010 of 10,000 finished (10 in instances that failed), 80 running",
    ),
    "a short last chunk": (
        ArrayProgress(25, 10),
        polled([2], [], 2),
        "Items: 5 of 25 finished, 20 running",
    ),
    "the short last chunk runs": (
        ArrayProgress(25, 10),
        polled([0, 1], [], 1),
        "Items: 20 of 25 finished, 5 running",
    ),
    "a later round": (
        ArrayProgress(3, 1, 97),
        polled([0], [], 2),
        "Items: 98 of 100 finished, 2 running",
    ),
    "instances of no item": (
        ArrayProgress(2, 1),
        polled([0, 7], [], None),
        "Items: 1 of 2 finished, 0 running",
    ),
    "nothing yet": (ArrayProgress(10, 1), polled(), None),
    "a poll that shows no instances": (
        ArrayProgress(10, 1),
        Task.from_json({"uuid": "u", "state": "Submitted"}),
        None,
    ),
}


@pytest.mark.parametrize(("progress", "task", "line"), LINES.values(), ids=LINES.keys())
def test_a_line_counts_items(progress: ArrayProgress, task: Task, line: str | None) -> None:
    again = ArrayProgress.from_json(progress.to_json())
    assert again.line(task, 5.0) == line


def test_lines_come_at_a_bounded_rate_and_only_with_news() -> None:
    progress = ArrayProgress(4, 1)
    assert progress.line(polled([0]), 100.0)
    assert progress.line(polled([0, 1]), 100.0 + REPORT_INTERVAL / 2) is None
    assert progress.line(polled([0, 1]), 100.0 + REPORT_INTERVAL)
    assert progress.line(polled([0, 1]), 200.0) is None
