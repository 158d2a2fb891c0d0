"""A command beside the server, and the line that shows what boots and runs."""

from __future__ import annotations

import io
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_qarnot_pool.local.http.progress import Progress, summary

SERVE = [sys.executable, "-m", "airflow_qarnot_pool.local", "--exit-with-parent"]
ASK = """
    import json, os, signal, sys, urllib.request
    given = json.loads(os.environ["AIRFLOW_CONN_QARNOT_DEFAULT"])
    def ask():
        request = urllib.request.Request(given["host"] + "/pools", headers={"Authorization": given["password"]})
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20).status
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SERVE, *arguments], capture_output=True, text=True, timeout=60, check=False)


def program(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(ASK) + textwrap.dedent(code)]


def test_a_command_has_the_connection_and_ends_the_server() -> None:
    ended = run(
        "--token=of the test", "--progress", "--", *program("print(ask(), given, flush=True); sys.exit(7)")
    )
    assert ended.returncode == 7
    ready, shown = ended.stdout.splitlines()
    url = json.loads(ready)["url"]
    connection = {
        "conn_type": "qarnot",
        "host": url,
        "password": "of the test",
        "extra": {"namespace": "local"},
    }
    assert shown == f"200 {connection}"
    assert ended.stderr.splitlines()[0] == (
        "0 open pools · nodes: 0 booting, 0 up · instances: 0 queued, 0 running"
    )


def test_a_command_can_use_the_server_until_it_has_ended() -> None:
    code = """
        def end(*_):
            print(ask(), flush=True)
            sys.exit(0)
        signal.signal(signal.SIGINT, end)
        print("waits", flush=True)
        while True: signal.pause()
    """
    with subprocess.Popen([*SERVE, "--", *program(code)], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert "url" in json.loads(server.stdout.readline())
        assert server.stdout.readline() == "waits\n"
        server.send_signal(signal.SIGTERM)
        assert server.stdout.read() == "200\n"
        assert server.wait(timeout=30) == 0


def test_a_command_that_does_not_exist_is_named(tmp_path: Path) -> None:
    ended = run("--", str(tmp_path / "missing"))
    assert (ended.returncode, ended.stderr) == (
        127,
        f"{tmp_path}/missing cannot be run: No such file or directory.\n",
    )


def test_a_terminal_shows_the_connection_and_the_progress() -> None:
    read_end, terminal = pty.openpty()
    with subprocess.Popen([*SERVE, "--token=it's"], stdout=subprocess.PIPE, stderr=terminal) as server:
        os.close(terminal)
        shown = b""
        while b"running" not in shown:
            shown += os.read(read_end, 4096)
        server.terminate()
        assert server.stdout is not None
        (ready,) = server.stdout.read().splitlines()
        server.wait(timeout=30)
    os.close(read_end)
    lines = shown.decode().splitlines()
    (export,) = (line for line in lines if line.startswith("export "))
    name, _, value = shlex.split(export)[1].partition("=")
    url = json.loads(ready)["url"]
    assert (name, json.loads(value)["password"]) == ("AIRFLOW_CONN_QARNOT_DEFAULT", "it's")
    assert f"{url}/" in shown.decode()
    assert "\x1b[2K0 open pools" in shown.decode()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_is_replaced_on_a_terminal_and_cut_to_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    terminal = Terminal()
    progress = Progress(terminal)
    for text in ("one", "one", "two and much more"):
        progress.show(text)
    progress.end()
    assert terminal.getvalue() == "\r\x1b[2Kone\r\x1b[2Ktwo and m\n"


def test_elsewhere_a_line_is_printed_when_it_changes() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    for text in ("one", "one", "two"):
        progress.show(text)
    progress.end()
    assert stream.getvalue() == "one\ntwo\n"


def test_the_summary_counts_nodes_and_instances() -> None:
    nodes = [SimpleNamespace(up=up, running=running) for up, running in ((None, ()), (1.0, "ab"), (1.0, "c"))]
    pools = [SimpleNamespace(is_open=True, waiting=4), SimpleNamespace(is_open=False, waiting=9)]
    backend: Any = SimpleNamespace(
        nodes=SimpleNamespace(by_id=dict(enumerate(nodes))), pools=SimpleNamespace(store=pools)
    )
    assert summary(backend) == "1 open pool · nodes: 1 booting, 2 up · instances: 4 queued, 3 running"
