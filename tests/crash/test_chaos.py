"""A smaller ``make chaos``: processes killed at random moments, and nothing twice, left on or lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from airflow.sdk.bases.operator import ExecutorSafeguard

from airflow_qarnot_pool.local import LocalQarnot
from tools.chaos import connections, last_line, unleash

KILLS = 30


def test_chaos(
    servers: dict[str, LocalQarnot],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in connections(servers).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ExecutorSafeguard, "test_mode", True)
    found = unleash(3, KILLS, servers, tmp_path)
    with capsys.disabled():
        print(f"\nchaos: {last_line(found)}")
    assert found["kills"] == KILLS
    assert found["runs"] > 0
    assert (found["duplicates"], found["left on"], found["lost"]) == (0, 0, 0)
