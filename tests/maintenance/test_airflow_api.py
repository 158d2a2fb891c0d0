"""The reaper's view of DAG runs through Airflow's API: only Airflow itself can say that a run does not exist."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from airflow_qarnot_pool.maintenance import airflow_api
from airflow_qarnot_pool.maintenance.airflow_api import AirflowApi, AirflowApiError

DAG, RUN = "frames", "manual__2026-01-01T00:00:00+00:00"
NOT_FOUND = f"The DagRun with dag_id: `{DAG}` and run_id: `{RUN}` was not found"
TOKEN = "a-token-of-airflow"


class Server(ThreadingHTTPServer):
    """Gives one answer to every request, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: tuple[int, bytes] = (200, b"")
        self.headers: dict[str, str] = {}
        #: Seconds before each byte of the body.
        self.pause = 0.0
        self.asked: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Authorization"]))
        status, body = self.server.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status in (302, 307):
            self.send_header("Location", f"{self.server.url}/login")
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if not self.server.pause:
            self.wfile.write(body)
            return
        with suppress(OSError):  # the client gives up
            for byte in body:
                time.sleep(self.server.pause)
                self.wfile.write(bytes([byte]))

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def run(**fields: Any) -> bytes:
    return json.dumps({"dag_id": DAG, "dag_run_id": RUN, "state": "running", **fields}).encode()


ANSWERS = {
    "a run that runs": (200, run(), "running"),
    "a run that has failed": (200, run(state="failed"), "failed"),
    "no such run": (404, json.dumps({"detail": NOT_FOUND}).encode(), None),
}
#: Answers that do not say whether the run exists, and a part of the error.
UNCLEAR = {
    "a wrong path": (404, b'{"detail": "Not Found"}', "Check --api-url"),
    "a proxy's page": (404, b"<html>no such page</html>", "status 404"),
    "another run that is not found": (404, b'{"detail": "`frames` and `x` was not found"}', "status 404"),
    "a detail that is no text": (404, b'{"detail": [{"msg": "`frames`"}]}', "status 404"),
    "an expired token": (401, b'{"detail": "Not authenticated"}', "Not authenticated.*AIRFLOW_CLI_TOKEN"),
    "a user without permission": (403, b'{"detail": "Invalid JWT token"}', "may read all DAGs"),
    "an error of the server": (500, b"oops", "status 500"),
    "a page where JSON is expected": (200, b"<html>log in</html>", "status 200"),
    "a list where an object is expected": (200, b"[]", "status 200"),
    "JSON that is too deep": (200, b"[" * 100_000, "status 200"),
    "a run without a state": (200, run(state=None), "status 200"),
    "another run": (200, run(dag_run_id="x"), "another DAG run"),
    "a redirect to a login": (302, b"", "status 302"),
}


@pytest.mark.parametrize(("status", "body", "state"), ANSWERS.values(), ids=ANSWERS.keys())
def test_the_state_of_a_run(server: Server, status: int, body: bytes, state: str | None) -> None:
    server.answer = (status, body)
    assert AirflowApi(f"{server.url}/base/", TOKEN).dag_run_state(DAG, RUN) == state
    path = "/base/api/v2/dags/frames/dagRuns/manual__2026-01-01T00%3A00%3A00%2B00%3A00"
    assert server.asked == [(path, f"Bearer {TOKEN}")]


@pytest.mark.parametrize(("status", "body", "problem"), UNCLEAR.values(), ids=UNCLEAR.keys())
def test_an_unclear_answer_does_not_say_that_a_run_is_gone(
    server: Server, status: int, body: bytes, problem: str
) -> None:
    server.answer = (status, body)
    with pytest.raises(AirflowApiError, match=problem) as caught:
        AirflowApi(server.url, TOKEN).dag_run_state(DAG, RUN)
    assert TOKEN not in str(caught.value)
    assert len(server.asked) == 1


def test_an_answer_is_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(airflow_api, "MAX_RESPONSE", 10_000)
    server.answer = (200, run(conf="x" * 10_000))
    with pytest.raises(AirflowApiError, match="more than 10,000 bytes"):
        AirflowApi(server.url, TOKEN).dag_run_state(DAG, RUN)


def test_a_slow_answer_is_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(airflow_api, "DEADLINE", 0.3)
    server.answer, server.pause = (200, run()), 0.1
    with pytest.raises(AirflowApiError, match="could not be reached"):
        AirflowApi(server.url, TOKEN).dag_run_state(DAG, RUN)


def test_the_server_does_not_choose_the_time_between_attempts(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("urllib3.util.retry.Retry.sleep_for_retry", lambda *_: pytest.fail("it waits"))
    server.answer, server.headers = (503, b"busy"), {"Retry-After": "3600"}
    with pytest.raises(AirflowApiError, match="status 503"):
        AirflowApi(server.url, TOKEN).dag_run_state(DAG, RUN)


def test_no_netrc_entry_replaces_the_token(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password other\n")
    monkeypatch.setenv("NETRC", str(netrc))
    server.answer = (200, run())
    AirflowApi(server.url, TOKEN).dag_run_state(DAG, RUN)
    assert [authorization for _, authorization in server.asked] == [f"Bearer {TOKEN}"]


def test_an_api_that_is_down_is_an_error() -> None:
    with Server() as stopped:
        url = stopped.url
    with pytest.raises(AirflowApiError, match="could not be reached"):
        AirflowApi(url, TOKEN).dag_run_state(DAG, RUN)


def test_the_check_accepts_only_airflow_and_a_good_token(server: Server) -> None:
    api = AirflowApi(server.url, TOKEN)
    server.answer = (200, b'{"dags": [], "total_entries": 0}')
    api.check()
    for server.answer in ((200, b"{}"), (200, b"<html>"), (401, b'{"detail": "Invalid JWT"}'), (404, b"")):
        with pytest.raises(AirflowApiError, match=str(server.answer[0])):
            api.check()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "airflow.example",
        "ftp://a",
        "https://u:p@a",
        "https://:p@a",
        "https://a?x=1",
        "https://a#x",
        "https://",
        "https://[",
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(AirflowApiError, match="--api-url is not the address") as caught:
        AirflowApi(url, TOKEN)
    assert "u:p" not in str(caught.value)


def test_an_empty_token_is_refused() -> None:
    with pytest.raises(AirflowApiError, match="AIRFLOW_CLI_TOKEN is not set"):
        AirflowApi("https://airflow.example", " ")
