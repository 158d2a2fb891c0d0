"""Run a short ``make chaos``: processes are killed at random times, and nothing runs twice, stays on or is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from airflow.sdk.bases.operator import ExecutorSafeguard

from airflow_qarnot_pool.local import LocalQarnot
from tools.chaos import connections, last_line, play, unleash
from tools.chaos_worlds import WORLDS, chosen, label

KILLS = 30
#: Kills for several worlds at once. These take many seconds each, because requests fail.
KILLS_IN_WORLDS = 4


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


def test_chaos_in_all_worlds_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ExecutorSafeguard, "test_mode", True)
    found = play(3, KILLS_IN_WORLDS, tuple(WORLDS.values()))
    with capsys.disabled():
        print(f"\nchaos in worlds: {last_line(found)}")
    assert found["kills"] == KILLS_IN_WORLDS
    assert (found["duplicates"], found["left on"], found["lost"]) == (0, 0, 0)


def test_worlds_are_chosen_by_name() -> None:
    assert [label(worlds) for worlds in chosen("quota+lag,stray")] == ["quota+lag", "stray"]
    assert [label(worlds) for worlds in chosen("")] == ["plain"]
    assert [label(worlds) for worlds in chosen("all")] == [*WORLDS, "all at once"]
    with pytest.raises(ValueError, match="WORLD has no nowhere"):
        chosen("quota+nowhere")
