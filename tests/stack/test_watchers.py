"""Triggerers that watch a bucket are killed and frozen, and each file is reported once."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

from airflow_qarnot_pool.local import LocalQarnot
from tests.stack.world import World

ALONE = True
BUCKET, ASSET = "stack-inbox", "stack_inbox"
EACH = 2000
UPLOADS = 4


def put(qarnot: LocalQarnot, keys: list[str]) -> None:
    """Upload files, some at a time."""
    import boto3

    def client() -> Any:
        return boto3.session.Session().client(
            "s3",
            endpoint_url=qarnot.storage_url,
            aws_access_key_id=qarnot.email,
            aws_secret_access_key=qarnot.token,
            region_name="us-east-1",
        )

    def upload(keys: list[str]) -> None:
        s3 = client()
        for key in keys:
            s3.put_object(Bucket=BUCKET, Key=key, Body=b"x")

    client().create_bucket(Bucket=BUCKET)
    with ThreadPoolExecutor(UPLOADS) as uploads:
        list(uploads.map(upload, [keys[start::UPLOADS] for start in range(UPLOADS)]))


def test_ten_thousand_files_are_reported_once_over_kills_of_triggerers(world: World) -> None:
    airflow, database, qarnot = world.airflow, world.database, world.lanes["plain"].qarnot
    airflow.wait_dag("watched")
    world.wait(lambda: database.asset_state(ASSET), "the watcher to start")
    keys: list[str] = []

    def reported() -> list[str]:
        payloads = database.payloads(ASSET)
        return [file["key"] for file in chain.from_iterable(payload["files"] for payload in payloads)]

    for part, deed in enumerate(["kill", "kill", "freeze", "kill", "kill"]):
        before = len(keys)
        keys += [f"in/{number * 7919 % EACH:05}/{part}" for number in range(EACH)]
        holder = world.wait(lambda: database.watching_triggerer(ASSET), "a triggerer to watch")
        if deed == "freeze":
            airflow.signal(holder, signal.SIGSTOP)
            put(qarnot, keys[before:])
            world.wait(
                lambda part=part: len(reported()) >= EACH * (part + 1), "another triggerer to report them"
            )
            airflow.signal(holder, signal.SIGCONT)
            continue
        put(qarnot, keys[before:])
        # In the midst of storing the events.
        world.wait(lambda before=before: len(reported()) > before, "the first events")
        airflow.signal(holder, signal.SIGKILL)
        airflow.restart(holder)
    world.wait(lambda: len(reported()) >= len(keys), "all files to be reported")
    assert len(keys) == 10_000
    assert sorted(reported()) == sorted(keys)
