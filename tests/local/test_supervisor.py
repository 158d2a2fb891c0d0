"""Nothing outlives the server: the supervisor alone, and under a server that is stopped, killed or orphaned."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.local.processes import supervisor as supervisor_module

from .conftest import until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="child subreapers are Linux's")

# Writes the pids of itself, a child in a session of its own, and a daemon (double fork) that ignores signals.
TREE = """
import os, signal, sys, time
def note(name):
    path = os.path.join(sys.argv[1], name)
    open(path + '.new', 'w').write(str(os.getpid()))
    os.rename(path + '.new', path)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        note('daemon')
        time.sleep(600)
    note('session')
    if len(sys.argv) > 2: os._exit(0)
    time.sleep(600)
note('main')
if len(sys.argv) > 2:
    while not os.path.exists(os.path.join(sys.argv[1], 'daemon')): time.sleep(0.01)
    os._exit(int(sys.argv[2]))
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def pids(folder: Path) -> dict[str, int]:
    names = ("main", "session", "daemon")
    until(lambda: all((folder / name).exists() for name in names))
    return {name: int((folder / name).read_text()) for name in names}


def all_gone(found: dict[str, int]) -> None:
    until(lambda: not any(alive(pid) for pid in found.values()), f"the end of {found}")


class SupervisorProcess:
    """The supervisor script, as the server runs it."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.process = subprocess.Popen(
            [sys.executable, "-ISB", supervisor_module.__file__, str(scratch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def tell(self, **order: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()

    def start(self, run: str, argv: list[str], **changes: Any) -> None:
        base = {"cwd": str(self.scratch), "env": {"PATH": os.defpath}, "kept": 1 << 20}
        files = {name: str(self.scratch / f"{run}.{name}") for name in ("stdout", "stderr")}
        self.tell(run=run, argv=argv, **{**base, **files, **changes})

    def news(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        told: dict[str, Any] = json.loads(self.process.stdout.readline())
        return told


@pytest.fixture
def running(tmp_path: Path) -> Iterator[SupervisorProcess]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    found = SupervisorProcess(scratch)
    yield found
    assert found.process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        found.process.stdin.close()
    found.process.wait(timeout=30)


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
        (["no-such-command"], 127),
        (["/etc/passwd"], 126),
        (["sh", "-c", "test ! -t 0 && read line || exit 5"], 5),  # standard input is empty
    ],
)
def test_exit_codes(running: SupervisorProcess, argv: list[str], code: int) -> None:
    running.start("r1", argv)
    assert running.news() == {"exit": "r1", "code": code}


def test_a_directory_that_is_not_there(running: SupervisorProcess) -> None:
    running.start("r1", ["true"], cwd="/no/such/directory")
    assert running.news()["code"] in (126, 127)


def test_output_is_appended_and_the_environment_is_exactly_what_was_given(running: SupervisorProcess) -> None:
    for run in ("r1", "r2"):
        running.start(
            run,
            ["sh", "-c", "echo out; echo err >&2; env | sort | cut -d= -f1 | tr '\\n' ' '"],
            env={"PATH": os.defpath, "ONLY": "this"},
            stdout=str(running.scratch / "out"),
            stderr=str(running.scratch / "err"),
        )
        running.news()
    assert (running.scratch / "err").read_text() == "err\nerr\n"
    assert (running.scratch / "out").read_text() == "out\nONLY PATH PWD out\nONLY PATH PWD "


def test_signals_are_back_to_normal_in_a_command(running: SupervisorProcess) -> None:
    running.start("r1", ["sh", "-c", "grep -E 'Sig(Blk|Ign)' /proc/self/status"])
    assert running.news()["code"] == 0
    masks = [line.split()[1] for line in (running.scratch / "r1.stdout").read_text().splitlines()]
    assert [int(mask, 16) & 0xFFFF for mask in masks] == [0, 0]


def test_kill_ends_a_tree_with_its_sessions_and_daemons(running: SupervisorProcess, tmp_path: Path) -> None:
    running.start("r1", [sys.executable, "-c", TREE, str(tmp_path)])
    running.start("r2", ["sleep", "600"])
    found = pids(tmp_path)
    assert all(alive(pid) for pid in found.values())
    running.tell(kill="r1")
    assert running.news() == {"exit": "r1", "code": 137}
    assert not any(alive(pid) for pid in found.values())
    running.tell(kill="r2")
    assert running.news() == {"exit": "r2", "code": 137}


def test_processes_that_a_command_leaves_behind_end_with_it(
    running: SupervisorProcess, tmp_path: Path
) -> None:
    running.start("r1", [sys.executable, "-c", TREE, str(tmp_path), "3"])
    found = pids(tmp_path)
    assert running.news() == {"exit": "r1", "code": 3}
    assert not alive(found["daemon"])


def test_killing_what_has_ended_does_nothing(running: SupervisorProcess) -> None:
    running.start("r1", ["true"])
    running.news()
    running.tell(kill="r1")
    running.tell(kill="never was")
    running.start("r2", ["true"])
    assert running.news() == {"exit": "r2", "code": 0}


def test_the_end_of_the_pipe_ends_everything(running: SupervisorProcess, tmp_path: Path) -> None:
    running.start("r1", [sys.executable, "-c", TREE, str(tmp_path)])
    found = pids(tmp_path)
    assert running.process.stdin is not None
    running.process.stdin.close()
    running.process.wait(timeout=30)
    assert not any(alive(pid) for pid in found.values())
    assert not running.scratch.exists()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_killed_supervisor_leaves_nothing(running: SupervisorProcess, tmp_path: Path) -> None:
    running.start("r1", [sys.executable, "-c", TREE, str(tmp_path)])
    found = pids(tmp_path)
    (supervisor,) = children_of(running.process.pid)
    os.kill(supervisor, signal.SIGKILL)
    assert running.news() == {"exit": "r1", "code": 137}
    all_gone(found)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_supervisor_process_leaves_nothing(
    running: SupervisorProcess, tmp_path: Path, number: int
) -> None:
    running.start("r1", [sys.executable, "-c", TREE, str(tmp_path)])
    found = pids(tmp_path)
    running.process.send_signal(number)
    all_gone(found)


# ---- under a server ------------------------------------------------------------------------------


def run_tree(server: LocalQarnot, folder: Path) -> dict[str, int]:
    pool = server.call("POST", "/pools", {"name": "p", "profile": "docker-batch", "instanceCount": 1})["uuid"]
    script = folder / "tree.py"
    script.write_text(TREE)
    constants = [{"key": "DOCKER_CMD", "value": f"{sys.executable} {script} {folder}"}]
    server.call("POST", "/tasks", {"name": "t", "poolUuid": pool, "constants": constants})
    return pids(folder)


def scratch_of(found: dict[str, int]) -> Path:
    """The server's scratch directory, seen from an instance's working directory."""
    place = Path(os.readlink(f"/proc/{found['main']}/cwd"))
    top = next(parent for parent in place.parents if parent.name.startswith("qarnot-local-"))
    assert top.parent == Path(tempfile.gettempdir())
    return top


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_server_that_ends_leaves_nothing(
    private: Callable[..., LocalQarnot], tmp_path: Path, how: str
) -> None:
    server = private()
    found = run_tree(server, tmp_path)
    scratch = scratch_of(found)
    # They must not take the place of what is killed.
    (pool,) = server.call("GET", "/pools")
    constants = [{"key": "DOCKER_CMD", "value": f"touch {tmp_path}/late"}]
    waiting = {"name": "t", "poolUuid": pool["uuid"], "constants": constants, "instanceCount": 50}
    server.call("POST", "/tasks", waiting)
    getattr(server, how)()
    if how == "stop":
        assert not scratch.exists()
    all_gone(found)
    until(lambda: not scratch.exists())
    assert not (tmp_path / "late").exists()


def test_a_server_whose_supervisor_is_killed_says_so_and_stops(
    private: Callable[..., LocalQarnot], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server = private()
    found = run_tree(server, tmp_path)
    process = server.process
    assert process is not None
    (supervisor_pid,) = [
        pid
        for pid in children_of(process.pid)
        if b"supervisor.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(supervisor_pid, signal.SIGKILL)
    assert process.wait(timeout=30) == 1
    all_gone(found)
    assert "supervisor process ended" in capfd.readouterr().err


def test_a_server_goes_when_the_process_that_started_it_is_killed(tmp_path: Path) -> None:
    parent = textwrap.dedent(
        """
        import sys, time
        from airflow_qarnot_pool.local import LocalQarnot
        with LocalQarnot() as server:
            print(server.process.pid, flush=True)
            time.sleep(600)
        """
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        server = int(starter.stdout.readline())
        assert alive(server)
        starter.kill()
    until(lambda: not alive(server))


def test_the_ready_file_tells_everything_and_goes_with_the_server(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    command = [sys.executable, "-m", "airflow_qarnot_pool.local", "--token", "T0", "--ready-file", str(ready)]
    with subprocess.Popen([*command, "--exit-with-parent"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = json.loads(process.stdout.readline())
        assert json.loads(ready.read_text()) == printed
        assert set(printed) == {"url", "storage_url", "token", "email", "pid"}
        assert (printed["token"], printed["pid"]) == ("T0", process.pid)
        assert ready.stat().st_mode & 0o077 == 0  # there is a token in it
        port = printed["url"].rpartition(":")[2]
        second = subprocess.run(
            [*command[:3], "--port", port], capture_output=True, text=True, timeout=60, check=False
        )
        assert second.returncode == 1
        assert f"cannot listen on 127.0.0.1:{port}" in second.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    assert not ready.exists()


def test_the_ready_file_of_a_killed_server_misleads_nobody(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    command = [sys.executable, "-m", "airflow_qarnot_pool.local", "--ready-file", str(ready)]
    with subprocess.Popen([*command, "--exit-with-parent"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        process.kill()
    # It names a process that has ended, and the next server removes it before it can fail.
    assert not alive(json.loads(ready.read_text())["pid"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        second = subprocess.run(
            [*command, f"--port={port}"], capture_output=True, text=True, timeout=60, check=False
        )
    assert second.returncode == 1
    assert not ready.exists(), url


def test_it_serves_on_loopback_only() -> None:
    command = [sys.executable, "-m", "airflow_qarnot_pool.local", "--host", "0.0.0.0"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert "must be a loopback address" in refused.stderr


def test_importing_the_handle_imports_no_server() -> None:
    code = (
        "import sys, airflow_qarnot_pool.local\n"
        "heavy = {'fastapi', 'starlette', 'uvicorn', 'moto', 'boto3', 'requests', 'airflow'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
