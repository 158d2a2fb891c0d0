"""A process that makes room dies at any request: every command runs exactly once."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.transport import Transport
from airflow_qarnot_pool.local import LocalQarnot
from tests.harness import FakeTI, run
from tests.operators.quota.work import counting, many, ran, single


class Killed(BaseException):
    """Stands for SIGKILL: no handler of ours runs on it."""


def kill_before(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Raise before request *number* of this process; returns the requests that were sent."""
    real, sent = Transport.request, []

    def request(self: Transport, method: str, path: str, **options: Any) -> Any:
        if len(sent) == number:
            raise Killed
        sent.append(f"{method} {path}")
        return real(self, method, path, **options)

    monkeypatch.setattr(Transport, "request", request)
    return sent


@pytest.mark.parametrize("kind", ["single", "fan-out"])
def test_nothing_runs_twice_wherever_a_process_dies_while_it_makes_room(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, tmp_path: Path, kind: str
) -> None:
    """Each round dies one request later, and the next try goes on from there, under a quota of one."""
    qarnot.set_account(maxTask=1)
    names = ["a", "b", "c"]

    def jobs(number: int) -> list[tuple[Any, str]]:
        commands = [counting(tmp_path, f"{name}{number}") for name in names]
        if kind == "fan-out":
            return [(partial(many, pool, commands, deferrable=False), "many")]
        return [
            (
                partial(single, pool, command, deferrable=False, log_output=False),
                f"work-{n}",
            )
            for n, command in enumerate(commands)
        ]

    number = 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            sent = kill_before(patch, number)
            died = False
            for make, task_id in jobs(number):
                try:
                    run(make, FakeTI(run_id=f"{kind}-{number}", task_id=task_id, max_tries=2))
                except Killed:
                    died = True
                    break
        if not died:
            break
        for make, task_id in jobs(number):
            ti = FakeTI(run_id=f"{kind}-{number}", task_id=task_id, max_tries=2, try_number=2)
            run(make, ti)
        number += 1
    assert number > 20, sent
    assert set(ran(tmp_path).values()) == {1}
    assert len(ran(tmp_path)) == 3 * (number + 1)
