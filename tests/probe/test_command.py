"""The command: what it prints and writes, and that nothing is left, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.probe import command
from airflow_qarnot_pool.probe.buckets import Buckets
from airflow_qarnot_pool.probe.ledger import TAG, clean_up
from airflow_qarnot_pool.probe.session import Session
from tests.probe.conftest import PAUSE, MakeSession

#: Rows that are asked in a moment.
QUICK = "pool-name-taken,scheduling-spelling"
#: `python -m airflow_qarnot_pool.probe`, with shorter waits.
PROGRAM = f"""
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from airflow_qarnot_pool.probe import command
command.PAUSE = {PAUSE}
sys.exit(command.main())
"""


def _left(asked: LocalQarnot) -> list[str]:
    kinds = ("pools", "tasks", "jobs")
    paths = [f"/{kind}?tag={TAG}" for kind in kinds]
    return [item["uuid"] for path in paths for item in asked.call("GET", path)]


@pytest.fixture(autouse=True)
def fast(asked: LocalQarnot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "PAUSE", PAUSE)
    monkeypatch.setenv("QARNOT_CLUSTER_URL", asked.url)
    monkeypatch.setenv("QARNOT_CLIENT_TOKEN", asked.token)


def test_the_command_prints_and_writes(
    asked: LocalQarnot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "answers.json"
    assert command.main(["--only", QUICK, "--answers", str(path)]) == 0
    answers = json.loads(path.read_text())
    assert {row: finding["answer"] for row, finding in answers["rows"].items()} == {
        "pool-name-taken": "400",
        "scheduling-spelling": "flex",
    }
    printed = capsys.readouterr().out
    assert "2 as assumed" in printed
    assert "reading taken" in printed
    assert asked.token not in printed + path.read_text()
    assert _left(asked) == []


def test_airflows_command_uses_a_connection(
    asked: LocalQarnot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.cli.cli_parser import get_parser

    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", asked.airflow_connection())
    path = tmp_path / "answers.json"
    words = ["qarnot", "probe", "--max-cost", "1.00", "--only", "put-on-closed", "--answers", str(path)]
    arguments = get_parser().parse_args(words)
    arguments.func(arguments)
    assert json.loads(path.read_text())["rows"]["put-on-closed"]["answer"] == "refused"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-cost", "nan"], "--max-cost is not a positive number, got nan"),
        (["--max-minutes", "0"], "--max-minutes is not a positive number, got 0"),
        (["--answers", "nowhere/answers.json"], "--answers is not in a folder that exists"),
        (["--answers", "."], "--answers is not a file that can be written, got \\."),
        (["--only", "body-sizes"], "body-sizes is not asked: the limit"),
        (["--only", "no-such-row"], "without an experiment, got no-such-row. Give some of"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_before_any_request(
    asked: LocalQarnot, words: list[str], message: str
) -> None:
    asked.clear_requests()
    with pytest.raises(SystemExit, match=message):
        command.main(words)
    assert asked.requests() == []


def test_a_bad_token_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--token", "wrong", "--only", QUICK]) == 2
    assert "token" in capsys.readouterr().err


def test_an_error_of_an_experiment_cleans_up(
    asked: LocalQarnot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(finding: object) -> None:
        raise RuntimeError("the terminal is gone")

    monkeypatch.setattr(command, "_note", lambda findings, finding: fail(finding))
    with pytest.raises(RuntimeError, match="terminal"):
        command.main(["--only", QUICK, "--answers", str(tmp_path / "answers.json")])
    assert _left(asked) == []


def test_nothing_stops_the_clean_up_and_what_is_left_is_named(
    asked: LocalQarnot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(session: object) -> None:
        raise OverflowError("of the costs")

    monkeypatch.setattr(Session, "report_costs", fail)
    monkeypatch.setattr(Buckets, "clean_up", lambda buckets: ["The bucket b could not be deleted"])
    with pytest.raises(OverflowError, match="of the costs"):
        command.main(["--only", QUICK, "--answers", str(tmp_path / "answers.json")])
    assert _left(asked) == []
    assert "The bucket b could not be deleted" in capsys.readouterr().err


@pytest.mark.parametrize("is_lost", [True, False])
def test_the_clean_up_looks_again_after_a_lost_creation(
    asked: LocalQarnot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_lost: bool
) -> None:
    looks: list[int] = []

    def record(*given: Any, **options: Any) -> list[str]:
        looks.append(options["looks"])
        return clean_up(*given, **options)

    monkeypatch.setattr(command, "clean_up", record)
    if is_lost:
        asked.faults([{"kind": "lost", "method": "POST", "path": "^/pools$", "times": 1}])
    words = ["--only", "scheduling-spelling", "--answers", str(tmp_path / "answers.json")]
    assert command.main(words) == 0
    assert looks == [command.LOOKS if is_lost else 1]


@pytest.fixture
def running(asked: LocalQarnot, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A probe that waits for a node that never comes up."""
    asked.withhold_nodes(True)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "--only", "progress-scale"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"QARNOT_CLUSTER_URL": asked.url, "QARNOT_CLIENT_TOKEN": asked.token},
    )
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    yield process
    watchdog.cancel()
    process.kill()
    process.communicate()
    asked.withhold_nodes(False)


def _await_pool(asked: LocalQarnot, process: subprocess.Popen[str]) -> None:
    """Wait until the probe has created its pool."""
    assert process.stdout is not None
    assert TAG in process.stdout.readline()
    while not asked.call("GET", f"/pools?tag={TAG}"):
        assert process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_cleans_up(
    asked: LocalQarnot, running: subprocess.Popen[str], tmp_path: Path, number: int
) -> None:
    _await_pool(asked, running)
    running.send_signal(number)
    printed, _ = running.communicate(timeout=60)
    assert running.returncode == command.STOPPED
    assert "Everything that the probe created is deleted." in printed
    assert _left(asked) == []
    assert (tmp_path / "answers.json").exists()


def test_a_later_clean_up_finds_what_a_killed_probe_left(
    asked: LocalQarnot, running: subprocess.Popen[str]
) -> None:
    _await_pool(asked, running)
    running.kill()
    running.wait()
    assert len(_left(asked)) == 1
    assert command.main(["--clean-up"]) == 0
    assert _left(asked) == []


def test_the_clean_up_survives_faults(
    asked: LocalQarnot, client: QarnotClient, new_session: MakeSession
) -> None:
    session = new_session()
    pool = session.pool()
    session.created("jobs", poolUuid=pool)
    unknown = session.wire.send("POST", "/pools", session.body("pools", instanceCount=1))
    assert unknown.ok, "not in the ledger, as after a lost response"
    asked.faults([{"kind": kind, "probability": 0.1} for kind in ("status", "lost")], seed=1)
    try:
        left = clean_up(client.transport, session.ledger.tag, session.ledger.objects, pause=PAUSE)
    finally:
        asked.faults([])
    assert left == []
    assert _left(asked) == []
