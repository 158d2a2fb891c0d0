"""Bound the space that output takes, and name a full disk in the error of the task that met it."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.local.backend.models import Output
from airflow_qarnot_pool.local.processes import output
from airflow_qarnot_pool.local.processes.supervisor import Tail, segments

from .conftest import Http, until

KEPT = 10_000


def used(folder: Path) -> int:
    """The space that files take, without holes."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def held(path: Path) -> list[tuple[int, int]]:
    """First and last offset of the data in the files of a stream."""
    spans = []
    for name in segments(str(path)):
        if os.path.exists(name):
            with open(name, "rb") as file:
                end = os.fstat(file.fileno()).st_size
                content = file.read()
            assert content == STREAM[end - len(content.lstrip(b"\0")) : end].rjust(end, b"\0")
            spans.append((end - len(content.lstrip(b"\0")), end))
    return sorted(spans)


STREAM = b"".join(b"%d\n" % number for number in range(1, 60_000))


@pytest.mark.parametrize("seed", range(5))
def test_two_files_hold_the_end_of_a_stream(tmp_path: Path, seed: int) -> None:
    chance, path = random.Random(seed), tmp_path / "0.stdout"
    end, tail, read = 0, Tail(str(path), KEPT), Output(str(path), str(path), KEPT)
    new, seen = "", 0
    while end < len(STREAM):
        if chance.random() < 0.02:
            tail = Tail(str(path), KEPT)  # of the next attempt
        size = chance.choice([1, 100, KEPT, 3 * KEPT])
        tail.write(STREAM[end : end + size])
        end = min(end + size, len(STREAM))
        assert sum(last - first for first, last in held(path)) <= 2 * KEPT
        assert output.read_all(read, "stdout").encode() == STREAM[max(0, end - KEPT) : end]
        if chance.random() < 0.5:
            new = output.read_new(read, "stdout")
            assert new.encode() == STREAM[max(seen, end - KEPT) : end]
            seen = end


def test_a_reader_sees_a_stream_without_gaps_while_it_is_written(tmp_path: Path) -> None:
    path = str(tmp_path / "0.stdout")
    tail, read = Tail(path, KEPT), Output(path, path, KEPT)
    stopped = threading.Event()

    def write() -> None:
        for start in range(0, len(STREAM), 997):
            tail.write(STREAM[start : start + 997])
        stopped.set()

    writer = threading.Thread(target=write)
    writer.start()
    last = b""
    while not stopped.is_set():
        last = output.read_all(read, "stdout").encode() or last
        assert last in STREAM
    writer.join()
    assert output.read_all(read, "stdout").encode() == STREAM[-KEPT:]


def test_endless_output_takes_no_more_of_the_disk_than_is_kept(
    private: Callable[..., LocalQarnot], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    server = private(output_bytes=1 << 20)
    http = Http(server)
    task = run(http, "sh -c 'yes | head -c 60000000; yes no | head -c 30000000 >&2'", wait=False)
    until(lambda: http("GET", f"/tasks/{task}").json()["state"] == "Success")
    assert http("GET", f"/tasks/{task}/stdout/0").text == "y\n" * (1 << 19)
    assert len(http("GET", f"/tasks/{task}/stderr/0").text) == 1 << 20
    assert used(tmp_path) <= 2 * 2 * (1 << 20) + (1 << 16)


# ---- a full disk ---------------------------------------------------------------------------------


def run(http: Http, command: str, *, wait: bool = True, **more: Any) -> Any:
    body = {"name": "t", "profile": "docker-batch", "instanceCount": 1, **more}
    if "poolUuid" in more:
        del body["profile"]
    made = http("POST", "/tasks", {**body, "constants": [{"key": "DOCKER_CMD", "value": command}]})
    assert made.status_code == 200, made.text
    uuid = str(made.json()["uuid"])
    if not wait:
        return uuid
    until(lambda: http("GET", f"/tasks/{uuid}").json()["state"] in ("Success", "Failure", "Cancelled"))
    return http("GET", f"/tasks/{uuid}").json()


class Started:
    """A server that was not started by `LocalQarnot`, for :class:`Http`."""

    def __init__(self, ready: dict[str, str]) -> None:
        self.url, self.storage_url, self.token, self.email = (
            ready[name] for name in ("url", "storage_url", "token", "email")
        )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """A server whose files are on a disk of 24 MB."""
    disk = tmp_path_factory.mktemp("disk")
    mount = f"mount -t tmpfs -o size=24m none {disk}"
    unshare = ["unshare", "--mount", *(["--map-root-user"] if os.getuid() else []), "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, mount], check=False).returncode:
        pytest.skip("this system allows no mount here")
    server = [sys.executable, "-m", "airflow_qarnot_pool.local", "--boot-seconds=0.1", "--exit-with-parent"]
    with subprocess.Popen(
        [*unshare, f'{mount} && exec "$@"', "sh", *server],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(disk)},
    ) as process:
        assert process.stdout is not None
        yield Started(json.loads(process.stdout.readline()))
        process.terminate()


@pytest.fixture
def http_of_small(small: Started) -> Http:
    return Http(small)  # type: ignore[arg-type]


FILLING = {
    "a file in its directory": "sh -c 'head -c 100000000 /dev/zero > big'",
    "a temporary file": "sh -c 'head -c 100000000 /dev/zero > $TMP_PATH/big; exit 3'",
    "a file, so that its output is lost": "sh -c 'head -c 100000000 /dev/zero > big; echo lost; exit 0'",
}


@pytest.mark.parametrize("case", FILLING)
@pytest.mark.parametrize("on_pool", [True, False])
def test_a_full_disk_is_named_and_the_next_task_works(http_of_small: Http, case: str, on_pool: bool) -> None:
    http = http_of_small
    where: dict[str, Any] = {}
    if on_pool:
        pool = {"name": "p", "profile": "docker-batch", "instanceCount": 1}
        where = {"poolUuid": http("POST", "/pools", pool).json()["uuid"]}
    failed = run(http, FILLING[case], **where)
    assert failed["state"] == "Failure"
    assert failed["errors"][0]["code"] == "LOCAL_DISK_FULL"
    assert "is full" in failed["errors"][0]["message"]
    after = run(http, "echo fine", **where)
    assert (after["state"], after["errors"]) == ("Success", [])
    assert http("GET", f"/tasks/{after['uuid']}/stdout/0").text == "fine\n"
    if on_pool:
        http("DELETE", f"/pools/{where['poolUuid']}")


def test_resources_that_do_not_fit_on_the_disk_are_named(small: Started, http_of_small: Http) -> None:
    s3 = boto3.client(
        "s3",
        endpoint_url=small.storage_url,
        aws_access_key_id=small.email,
        aws_secret_access_key=small.token,
        region_name="us-east-1",
    )
    s3.create_bucket(Bucket="large")
    for number in range(8):
        s3.put_object(Bucket="large", Key=f"{number}", Body=b"x" * 4_000_000)
    failed = run(http_of_small, "true", resourceBuckets=["large"])
    assert failed["errors"][0]["code"] == "LOCAL_DISK_FULL"
    assert "resources of bucket large were not copied" in failed["errors"][0]["message"]
    assert run(http_of_small, "true")["state"] == "Success"
