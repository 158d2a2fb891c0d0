"""Instances of a profile without a network reach none, and the account has the profiles that it is given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.local.processes import supervisor

from .conftest import sdk_of, until

#: Where the kernel allows no network namespaces, the proxy variables stop this program, too.
FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode())"
OWN_LOOPBACK = """
import socket
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
print("itself")
"""


@pytest.fixture(scope="module")
def outside() -> Iterator[str]:
    """The address of a web server of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"outside")

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def own() -> Iterator[LocalQarnot]:
    with LocalQarnot(boot_seconds=0.1, close_seconds=0.1, profiles=["acme-network-gpu", "acme"]) as running:
        yield running


def ended(server: LocalQarnot, tmp_path: Path, script: str, *arguments: str, **where: str) -> tuple[str, str]:
    """Run a script in one instance, and return its state and output."""
    file = tmp_path / "script.py"
    file.write_text(script)
    command = " ".join([sys.executable, str(file), *arguments])
    constants = [{"key": "DOCKER_CMD", "value": command}]
    uuid = server.call("POST", "/tasks", {"name": "t", "constants": constants, **where})["uuid"]
    state = until(
        lambda: (found := server.call("GET", f"/tasks/{uuid}")["state"]) in ("Success", "Failure") and found
    )
    return state, sdk_of(server).retrieve_task(uuid).stdout(0).strip()


@pytest.mark.parametrize(
    ("profile", "state"),
    [
        ("docker-batch", "Failure"),
        ("docker-cluster", "Failure"),
        ("acme", "Failure"),
        ("docker-network", "Success"),
        ("docker-cluster-network-ssh", "Success"),
        ("acme-network-gpu", "Success"),
    ],
)
def test_the_name_of_the_profile_decides_whether_there_is_a_network(
    own: LocalQarnot, tmp_path: Path, outside: str, profile: str, state: str
) -> None:
    output = "outside" if state == "Success" else ""
    assert ended(own, tmp_path, FETCH, outside, profile=profile) == (state, output)


@pytest.mark.parametrize(("profile", "state"), [("docker-batch", "Failure"), ("docker-network", "Success")])
def test_a_task_and_the_preparation_have_the_network_of_the_pool(
    own: LocalQarnot, tmp_path: Path, outside: str, profile: str, state: str
) -> None:
    pool = own.call("POST", "/pools", {"name": "p", "profile": profile, "instanceCount": 1})["uuid"]
    assert ended(own, tmp_path, FETCH, outside, poolUuid=pool)[0] == state
    prepared = own.call(
        "POST",
        "/pools",
        {
            "name": "p",
            "profile": profile,
            "instanceCount": 1,
            "preparationTask": {"commandLine": f"{sys.executable} {tmp_path / 'script.py'} {outside}"},
        },
    )["uuid"]
    last = until(
        lambda: (
            (found := own.call("GET", f"/pools/{prepared}")["state"]) in ("Failure", "FullyExecuting")
            and found
        )
    )
    assert last == ("Failure" if state == "Failure" else "FullyExecuting")


def test_an_instance_without_a_network_reaches_itself(own: LocalQarnot, tmp_path: Path) -> None:
    assert ended(own, tmp_path, OWN_LOOPBACK, profile="docker-batch") == ("Success", "itself")


def test_the_account_has_the_profiles_that_it_is_given(
    own: LocalQarnot, private: Callable[..., LocalQarnot]
) -> None:
    assert own.call("GET", "/profiles")[-2:] == ["acme-network-gpu", "acme"]
    assert own.call("GET", "/profiles/acme")["name"] == "acme"
    for path in ("/pools", "/tasks"):
        with pytest.raises(
            RuntimeError, match=r"fields: profile \(start .* with --profile other or --any-profile"
        ):
            own.call("POST", path, {"name": "p", "profile": "other", "instanceCount": 1})
    generous = private(any_profile=True)
    assert generous.call("GET", "/profiles/other")["name"] == "other"
    pool = generous.call("POST", "/pools", {"name": "p", "profile": "other", "instanceCount": 1})["uuid"]
    assert generous.call("GET", f"/pools/{pool}")["profile"] == "other"
    with pytest.raises(RuntimeError, match="profile"):
        generous.call("POST", "/pools", {"name": "p", "instanceCount": 1})


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        (
            "acme",
            "Nothing ran: DOCKER_CMD is empty, and the local Qarnot has no program of the profile acme.",
        ),
        ("docker-batch", ""),
    ],
)
def test_a_task_without_a_command_says_why_nothing_ran(own: LocalQarnot, profile: str, said: str) -> None:
    body = {"name": "t", "profile": profile, "constants": [{"key": "ACME_CMD", "value": "acme -np 4"}]}
    uuid = own.call("POST", "/tasks", body)["uuid"]
    until(lambda: own.call("GET", f"/tasks/{uuid}")["state"] == "Success")
    assert sdk_of(own).retrieve_task(uuid).stderr(0).strip() == said


#: A supervisor under a kernel that refuses every new namespace.
REFUSED = """
import runpy, sys
module = runpy.run_path(sys.argv[1])
def refuse():
    raise OSError(1, "unshare")
module["leave_networks"].__globals__["leave_networks"] = refuse
module["Supervisor"](sys.argv[2]).serve()
"""


def test_without_namespaces_proxies_lead_nowhere(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    files = {name: str(scratch / name) for name in ("stdout", "stderr")}
    env = {"PATH": os.defpath, "A": "b"}
    order = {"cwd": str(scratch), "env": env, **files, "kept": 1 << 20, "argv": ["env"]}
    with subprocess.Popen(
        [sys.executable, "-ISB", "-c", REFUSED, supervisor.__file__, str(scratch)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        assert "proxies that lead nowhere" in process.stderr.readline()
        for network in (False, True):
            process.stdin.write(json.dumps({"run": f"r{network}", "network": network, **order}) + "\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["code"] == 0
            lines = (scratch / "stdout").read_text().split()
            (scratch / "stdout").unlink()
            assert "A=b" in lines
            assert (
                {f"{name}={value}" for name, value in supervisor.NOWHERE.items()} <= set(lines)
            ) != network
        process.stdin.close()
