"""Start and control a local Qarnot from Python: a server in its own process, on free ports."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable
from types import TracebackType
from typing import Any

START_TIMEOUT = 60.0
TOKEN_VARIABLE = "QARNOT_LOCAL_TOKEN"
"""Passes the token to the server, because every user of the machine can read a command line."""
LIKE_VARIABLE = "QARNOT_LOCAL_LIKE"
"""Path of an answers.json for every local Qarnot, as with ``--like``. Tests can run under it."""


def airflow_connection(url: str, token: str, **extra: Any) -> str:
    """Return an Airflow connection as JSON for ``AIRFLOW_CONN_QARNOT_DEFAULT``; *extra* are its extra fields."""
    return json.dumps({"conn_type": "qarnot", "host": url, "password": token, "extra": extra})


class LocalQarnot:
    """Start a local Qarnot, use it, stop it.

    .. code-block:: python

        with LocalQarnot(boot_seconds=0.2) as qarnot:
            os.environ["AIRFLOW_CONN_QARNOT_DEFAULT"] = qarnot.airflow_connection(namespace="tests")

    The server stops when this process ends, however it ends.

    :param boot_seconds: boot time of a node, in virtual seconds.
    :param close_seconds: minimum virtual seconds for which a pool is Closing.
    :param cancel_seconds: minimum virtual seconds for which an aborted task is PendingCancel.
    :param shortnames: "enforce" refuses a shortname that is taken, "free" allows it; by default as ``like``.
    :param queued: "cancel" cancels tasks that are queued when their pool ends, "leave" keeps them queued.
    :param profiles: profiles of the account, in addition to those of Qarnot.
    :param any_profile: accept every name of a profile.
    :param output_bytes: number of bytes kept of each stream of an instance, from its end; 4 MiB by default.
    :param search_cap: maximum number of objects in a search response or on a page; None for no cap.
    :param search_lag: maximum age of the state that searches show, in virtual seconds.
    :param preempt: ``"SEED[:RATE]"``: lose Flex nodes at times that the seed decides, RATE times per hour of a node
        (virtual time, 1 by default); None for no loss.
    :param rate_limit: number of requests per second, after which others get 429; None for no limit.
    :param token: API token; a random one by default.
    :param speed: virtual seconds per real second.
    :param port: port of the API; 0 takes any free one.
    :param storage_port: port of the S3 storage; 0 takes any free one.
    :param like: path of an answers.json: behave as the service that gave these answers to the probe; default:
        ``QARNOT_LOCAL_LIKE`` of the environment.
    :param allowed_hosts: accepted ``Host`` headers in addition to loopback names, with or without a port.
    :param state_dir: directory that keeps the state over a restart, also after :meth:`kill`; None for no directory.
    :raises RuntimeError: the server did not start.
    """

    def __init__(
        self,
        *,
        boot_seconds: float = 0.2,
        close_seconds: float = 0.3,
        cancel_seconds: float = 0.0,
        shortnames: str | None = None,
        token: str | None = None,
        speed: float = 1.0,
        port: int = 0,
        storage_port: int = 0,
        output_bytes: int | None = None,
        search_cap: int | None = None,
        search_lag: float | None = None,
        preempt: str | None = None,
        rate_limit: float | None = None,
        queued: str | None = None,
        profiles: Iterable[str] = (),
        any_profile: bool = False,
        allowed_hosts: Iterable[str] = (),
        state_dir: str | os.PathLike[str] | None = None,
        like: str | os.PathLike[str] | None = None,
    ) -> None:
        self.token = token or secrets.token_urlsafe(24)
        self.url = self.storage_url = self.email = ""
        self._arguments = [
            f"--boot-seconds={boot_seconds}",
            f"--close-seconds={close_seconds}",
            f"--cancel-seconds={cancel_seconds}",
            f"--speed={speed}",
            f"--port={port}",
            f"--storage-port={storage_port}",
            f"--exit-with-parent={os.getpid()}",
        ]
        options = {
            "shortnames": shortnames,
            "queued": queued,
            "output-bytes": output_bytes,
            "search-cap": search_cap,
            "search-lag": search_lag,
            "preempt": preempt,
            "rate-limit": rate_limit,
            "like": like,
            "state-dir": state_dir,
        }
        self._arguments += [f"--{name}={value}" for name, value in options.items() if value is not None]
        self._arguments += [f"--profile={name}" for name in profiles]
        self._arguments += [f"--allow-host={name}" for name in allowed_hosts]
        if any_profile:
            self._arguments.append("--any-profile")
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LocalQarnot:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<LocalQarnot {self.url or 'not running'}>"

    def start(self) -> LocalQarnot:
        """Start the server and wait until it serves."""
        if self.process is not None:
            raise RuntimeError("This local Qarnot has been started already")
        command = [sys.executable, "-m", "airflow_qarnot_pool.local", *self._arguments]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, TOKEN_VARIABLE: self.token},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        # Killing a server that hangs while it starts ends the read below.
        watchdog = threading.Timer(START_TIMEOUT, self.process.kill)
        watchdog.start()
        try:
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
        finally:
            watchdog.cancel()
        try:
            ready = json.loads(line)
        except ValueError:
            self.kill()
            raise RuntimeError("The local Qarnot did not start; see its messages on standard error") from None
        self.url, self.storage_url, self.email = ready["url"], ready["storage_url"], ready["email"]
        return self

    def stop(self) -> None:
        """Stop the server and kill everything it runs. Do nothing if it is not running."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._forget()

    def kill(self) -> None:
        """Kill the server with SIGKILL, as a crash would."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        self._forget()

    def _forget(self) -> None:
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()
        self.process = None

    def airflow_connection(self, **extra: Any) -> str:
        """Return an Airflow connection as JSON for ``AIRFLOW_CONN_QARNOT_DEFAULT``; *extra* are its extra fields."""
        return airflow_connection(self.url, self.token, **{"storage_url": self.storage_url, **extra})

    # ---- control side ----

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request with the token to any path. Return the JSON response, or None if it is empty.

        :raises RuntimeError: the server refused the request or has ended.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": self.token, "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        # No proxy from the environment: the server is on loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {error.code} {error.read().decode()}") from None
        except urllib.error.URLError as error:
            ended = self.process.poll() if self.process else "never started or stopped"
            if ended is None:
                raise
            raise RuntimeError(
                f"The local Qarnot is not running any more (exit code {ended}): {error}"
            ) from None
        return json.loads(content) if content else None

    def faults(self, rules: Iterable[dict[str, Any]], seed: int | None = None) -> None:
        """Replace the fault rules. An empty list removes all faults."""
        listed = list(rules)
        self.call("PUT", "/_local/faults", listed if seed is None else {"seed": seed, "rules": listed})

    def requests(self) -> list[dict[str, Any]]:
        """Return the request log, oldest first."""
        requests: list[dict[str, Any]] = self.call("GET", "/_local/requests")
        return requests

    def clear_requests(self) -> None:
        """Empty the request log."""
        self.call("DELETE", "/_local/requests")

    def get_account(self) -> dict[str, Any]:
        """Return the account: its limits, its credits and the cost of every pool."""
        account: dict[str, Any] = self.call("GET", "/_local/account")
        return account

    def set_account(self, **limits: float | list[dict[str, Any]] | None) -> dict[str, Any]:
        """Set limits (`maxPool=1`), `credits` and `budgets`. Return the account."""
        self.call("PUT", "/_local/account", limits)
        return self.get_account()

    def nodes(self) -> list[dict[str, Any]]:
        """Return all nodes: id, pool, task, number, slots, state, running."""
        nodes: list[dict[str, Any]] = self.call("GET", "/_local/nodes")
        return nodes

    def kill_node(self, id: str) -> None:
        """Lose a node with everything on it."""
        self.call("POST", f"/_local/nodes/{id}/kill")

    def set_readings(self, **answers: str) -> None:
        """Give other answers to the questions of docs/assumptions.md, by id with underscores."""
        self.call("PUT", "/_local/readings", answers)

    def withhold_nodes(self, withheld: bool) -> None:
        """Let no node come up, as if Qarnot had none free. False lets nodes come up again."""
        self.call("PUT", "/_local/nodes", {"withheld": withheld})

    def task_history(self) -> list[dict[str, Any]]:
        """Return `uuid, state, labels, succeeded` of every Qarnot task, also of deleted ones."""
        tasks: list[dict[str, Any]] = self.call("GET", "/_local/tasks")
        return tasks

    def get_clock(self) -> dict[str, Any]:
        """Return the virtual clock: `now` (epoch seconds) and `speed`."""
        clock: dict[str, Any] = self.call("GET", "/_local/clock")
        return clock

    def set_speed(self, speed: float) -> dict[str, Any]:
        """Set the virtual seconds per real second. Return the virtual clock."""
        self.call("PUT", "/_local/clock", {"speed": speed})
        return self.get_clock()

    def advance_clock(self, seconds: float) -> dict[str, Any]:
        """Move the virtual clock ahead. All events that fall due on the way have happened when this returns."""
        clock: dict[str, Any] = self.call("PUT", "/_local/clock", {"advance_seconds": seconds})
        return clock

    def step_clock(self, seconds: float) -> None:
        """Put the clock that the server shows forward or back. No event falls due by that."""
        self.call("PUT", "/_local/clock", {"step_seconds": seconds})

    def skew_clock(self, seconds: float, *, uuid: str | None = None, every: int = 1) -> None:
        """Show wrong times of one pool or Qarnot task, or of each new one whose number *every* divides."""
        skew = {"seconds": seconds, "uuid": uuid, "every": every}
        self.call("PUT", "/_local/clock", {"skew": skew})

    def cap_searches(self, maximum: int | None, *, refuses: bool = False) -> None:
        """Cut each search response and each page after *maximum* objects. None removes the cap.

        :param refuses: respond with 400 if more objects are requested, in place of cutting.
        """
        self.call("PUT", "/_local/searches", {"cap": maximum, "refuses": refuses})

    def lag_searches(self, seconds: float) -> None:
        """Let searches and pages show a state that is up to *seconds* old (virtual time). 0 ends the lag.

        A request for a single object always shows its present state.
        """
        self.call("PUT", "/_local/searches", {"lag_seconds": seconds})

    def expire_page_tokens(self, seconds: float | None) -> None:
        """Refuse the token of a page after *seconds* (virtual time). None lets tokens live."""
        self.call("PUT", "/_local/searches", {"token_seconds": seconds})
