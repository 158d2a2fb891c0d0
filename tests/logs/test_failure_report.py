"""How long the report of a failed Qarnot task may take."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from airflow_qarnot_pool.logs.failure_report import STDERR_DEADLINE, failure_report


@pytest.mark.parametrize(("deadline", "maximum"), [(5.0, 5.0), (600.0, STDERR_DEADLINE)])
def test_the_report_takes_no_longer_than_its_client_may(deadline: float, maximum: float) -> None:
    given: list[float] = []

    def limited(*, deadline: float) -> Any:
        given.append(deadline)
        return SimpleNamespace(tasks=SimpleNamespace(stream_output=lambda *_: iter(["wrong\n"])))

    client: Any = SimpleNamespace(limited=limited, transport=SimpleNamespace(deadline=deadline))
    pool = SimpleNamespace(state="Closed")
    client.pools = SimpleNamespace(get=lambda uuid: pool)
    task: Any = SimpleNamespace(
        uuid="u", name="n", state="Failure", pool="p", errors=[], constants={}, failed_instances=[0, 1]
    )
    task.completed_instances = []
    report = failure_report(client, task, "", remedy="The next one is open")
    assert len(given) == 2
    assert maximum - 1 < max(given) <= maximum
    assert "its pool p is Closed and takes no more tasks. The next one is open" in report
    assert "wrong" in report
