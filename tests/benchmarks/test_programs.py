"""Each benchmark runs and says what it promises. Its times mean nothing here; requests, which are counted, do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from airflow_qarnot_pool.executors import node
from benchmarks import __main__ as programs
from benchmarks import executor, heartbeats, light_workload
from benchmarks.report import WITHOUT_AIRFLOW, Report, Table, exponent, percentile, shown
from benchmarks.triggerer import _Counted

ROOT = Path(__file__).resolve().parent.parent.parent
WAITERS = 20
Figures = Callable[[str], dict[str, float]]
#: All but those that need PostgreSQL and a whole Airflow.
NAMES = [name for name in programs.NAMES if not name.startswith(("dag_makespan", "on_time", "executor"))]
#: A figure of ours, and what else must be there.
KEYS = {
    "poll_cost": {
        "target.requests_per_minute_20_idle_waiters_ten_minutes_ago",
        "target.requests_per_minute_20_waiters_1_ending_in_each_round",
        "this_provider.idle.20.requests_per_minute",
        "sdk_task.wait.idle.20.requests_per_minute",
        "this_provider.busy.20.requests_per_finished",
        "ratio.idle.20",
    },
    "triggerer_load": {"this_provider.20.cpu_percent", "this_provider.20.lag_p99_ms"},
    "detection_latency": {
        "this_provider.20.p50_of_interval",
        "this_provider.20.p99_of_interval",
        "young.on_a_worker.p50",
        "young.in_the_triggerer.p99",
    },
    "request_cost": {"this_provider.all", "official_sdk.all"},
    "import_time": {"this_provider.percent_of_airflow_sdk", "this_provider.foreign_modules"},
    "fan_out": {"one_qarnotruntasksoperator.requests", "expand.requests", "sdk_mapped.requests"},
    "array": {
        "array.posts",
        "array.cpu_seconds",
        "array.wall_over_best",
        "expand.requests",
        "sdk_mapped.requests",
    },
    "environments": {"installs_on_nodes", "extra_seconds_a_call", "boot_with_the_environment_seconds"},
    "warm_vs_cold": {"warm.0.3.wall_seconds", "cold.0.3.wall_seconds"},
    "ladder": {"patterns", "losses", "cost_over_all_ondemand", "target.patterns_that_ended_late"},
    "right_size": {"error_of_the_makespan", "auto_dearer_than_the_best_size_in_hindsight"},
    "executor": {
        "burst.1000.polls_per_minute",
        "euros.node_for_each_task_over_pool",
        "start.warm_over_local",
        "start.cold_over_warm",
    },
    "local_qarnot": {"get_a_task.20.per_second", "search_by_tag_and_time.20.per_second"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every program has left."""
    folder = tmp_path_factory.mktemp("figures")
    command = [sys.executable, "-m", "tests.benchmarks.forks", str(folder), str(WAITERS), *NAMES]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=600, check=True)
    return folder


@pytest.fixture
def figures(folder: Path) -> Figures:
    """The figures of a program that has run well."""

    def read(name: str) -> dict[str, float]:
        code, out, err = ((folder / f"{name}.{kind}").read_text() for kind in ("status", "out", "err"))
        assert code == "0", out[-2000:] + err[-2000:]
        assert "###" in out
        assert WITHOUT_AIRFLOW in out
        found: dict[str, float] = json.loads((folder / f"{name}.json").read_text())
        return {key.removeprefix(f"{name}."): value for key, value in found.items()}

    return read


@pytest.mark.parametrize("name", NAMES)
def test_a_program_runs_and_writes_its_figures(figures: Figures, name: str) -> None:
    assert KEYS[name] <= figures(name).keys()


def test_waiting_together_costs_no_more_than_one_waiter_does(figures: Figures) -> None:
    found = figures("poll_cost")
    assert found["round.idle.changes.20"] <= 2
    assert found["ratio.idle.20"] >= WAITERS / 3


def test_requests_of_a_window_are_those_of_its_whole_rounds() -> None:
    counted = _Counted()
    counted.sent[1] += 1
    counted.mark_round()
    before = counted.marked
    for _ in range(2):
        counted.sent[1] += 1
        counted.changes += 1
        counted.mark_round()
    counted.sent[2] += 1  # of a round that lasts
    assert counted.marked - before == {"rounds": 2, "requests": 2, "changes": 2}


def test_create_run_close_costs_at_most_half_the_requests_of_the_sdk(figures: Figures) -> None:
    found = figures("request_cost")
    steps = ("connect", "create_the_pool", "submit", "close")
    mine, theirs = (
        sum(found[f"{who}.{step}"] for step in steps) for who in ("this_provider", "official_sdk")
    )
    # Waits are left out: how often somebody looks depends on how fast this machine is.
    assert mine <= 3
    assert mine <= theirs / 2


def test_lost_nodes_are_replaced_in_time_and_nothing_runs_twice(figures: Figures) -> None:
    found = figures("ladder")
    assert found["losses"] > 0
    assert {name: met for name, met in found.items() if name.startswith("target.") and not met} == {}


def test_importing_the_operators_loads_nothing_but_ourselves(figures: Figures) -> None:
    assert figures("import_time")["this_provider.foreign_modules"] == 0


def test_a_fan_out_costs_requests_by_the_chunk_and_not_by_the_command(figures: Figures) -> None:
    found = figures("fan_out")
    # The pool, the quota, one submission, the polls and the final one. The number of polls of both grows with the time
    # that the commands take, so the bound is a share.
    assert found["one_qarnotruntasksoperator.requests"] <= found["sdk_mapped.requests"] / 8
    assert found["sdk_mapped.requests"] >= 5 * WAITERS


def test_an_array_is_created_with_one_request(figures: Figures) -> None:
    assert figures("array")["array.posts"] == 1


def test_no_call_installs_its_environment_and_a_second_dag_uploads_nothing(figures: Figures) -> None:
    found = figures("environments")
    assert found["installs_on_nodes"] == found["bytes_uploaded_by_the_second_dag"] == 0
    assert 1 <= found["unpackings_on_nodes"] <= 2
    assert found["bytes_uploaded_by_the_first_dag"] > 0


def test_the_executor_is_compared_by_heartbeat_minute_and_thousand_tasks() -> None:
    report = Report("executor", 1000, quick=False)
    few = executor.Burst(1000, 100, 60.0, (16, 0, 0), submits=1, polls=100, most=100, running=40.0)
    many = executor.Burst(1000, 1000, 60.0, (16, 0, 16), submits=3, polls=110, most=1000, running=50.0)
    executor.write_bursts(report, executor.FULL, [few, many])
    starts = {
        way: [executor.Start(seconds - 1, seconds)]
        for way, seconds in (("local", 2.0), ("warm", 5.0), ("cold", 25.0))
    }
    executor.write_starts(report, executor.FULL, starts)
    bill = executor.Bill(run=1500.0, idle=6000.0, executed=(5.0,) * 1000, price=1e-4)
    executor.write_bill(report, executor.FULL, 1000, bill)
    found = {key.removeprefix("executor."): value for key, value in report.figures.items()}
    assert KEYS["executor"] <= found.keys()
    assert (found["start.warm_over_local"], found["start.cold_over_warm"]) == (2.5, 5)
    # 1,000 times 20 s of boot and 5 s of work, against 7,500 node-seconds.
    assert found["euros.a_node_for_each_task_boots_of_20_s_paid"] == pytest.approx(2.5)
    assert found["euros.node_for_each_task_over_pool"] == pytest.approx(25_000 / 7500)
    assert [met for _, _, met in report.targets] == [True, False, True]


def test_spans_that_touch_do_not_overlap() -> None:
    assert executor.most_at_once([(0, 2), (1, 3), (2, 4)]) == 2


def test_heartbeats_are_read_as_they_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(heartbeats.NOTES, str(tmp_path / "notes"))
    scheduler = SimpleNamespace(queued_tasks={"a": 1, "b": 2})
    heartbeat = heartbeats._noted(lambda executor: executor.queued_tasks.clear())
    heartbeat(scheduler)
    heartbeat(scheduler)
    assert [beat.tasks for beat in heartbeats.read(tmp_path / "notes")] == [2, 0]


def test_the_light_client_starts_a_task_with_its_token_and_ends_it_with_the_next() -> None:
    received = []

    class Api(BaseHTTPRequestHandler):
        def do_PATCH(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            received.append((self.path, self.headers["Authorization"], body["state"]))
            self.send_response(500 if len(received) == 1 else 200)
            self.send_header("Refreshed-API-Token", "next")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Write nothing."""

    with HTTPServer(("127.0.0.1", 0), Api) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        workload = json.dumps({"token": "first", "ti": {"id": "some-id"}})
        url = f"http://127.0.0.1:{server.server_port}/execution/"
        settings = {"AIRFLOW__CORE__EXECUTION_API_SERVER_URL": url, light_workload.SECONDS: "0"}
        constants = node.pack({"workload": workload, "environment": settings}, 1000)
        subprocess.run([sys.executable, "-IS", light_workload.__file__], env=constants, check=True)
        server.shutdown()
    path = "/execution/task-instances/some-id"
    assert received == [
        *[(f"{path}/run", "Bearer first", "running")] * 2,
        (f"{path}/state", "Bearer next", "success"),
    ]


def test_exponents_and_percentiles() -> None:
    assert exponent({1: 9.0, 100: 1.0, 10_000: 100.0}) == pytest.approx(1.0)
    assert exponent({100: 2.0, 10_000: 2.0}) == 0
    assert exponent({100: 2.0}) is None
    assert percentile(range(1, 101), 0.99) == 99


def test_tables_are_markdown() -> None:
    table = Table("T", ["a", "b"])
    table.row("x", 0.12345)
    assert str(table).splitlines()[2:] == ["| a |     b |", "|---|------:|", "| x | 0.123 |"]
    assert shown(12345.6) == "12,346"
