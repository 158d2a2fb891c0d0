"""A state directory: what a restart shows, and a kill before each single write."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest

from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.local.__main__ import main
from airflow_qarnot_pool.local.backend import persistence, snapshots
from airflow_qarnot_pool.local.backend.backend import Backend
from airflow_qarnot_pool.local.backend.context import Settings
from airflow_qarnot_pool.local.backend.models import InstancePhase, Pool, Task
from airflow_qarnot_pool.local.backend.persistence import VERSION
from airflow_qarnot_pool.local.http.server import application
from airflow_qarnot_pool.local.processes import buckets as buckets_module
from airflow_qarnot_pool.local.processes import state as state_module
from airflow_qarnot_pool.local.processes.buckets import KeptBuckets
from airflow_qarnot_pool.local.processes.state import State, StateError
from airflow_qarnot_pool.local.schemas import requests, responses
from airflow_qarnot_pool.local.schemas.addresses import Addresses
from airflow_qarnot_pool.local.schemas.fields import Profiles

from .conftest import Http, until
from .test_supervisor import alive

BOOT = 10.0


# ---- one account in this process -----------------------------------------------------------------


class Account:
    """A backend whose clock stands still unless it is told to move, and whose nodes run nothing."""

    def __init__(self, directory: Path, scratch: Path) -> None:
        runner: Any = SimpleNamespace(kill=lambda run: None)
        self.state = State(directory, VERSION, wait=0)
        self.backend = Backend(
            Settings("token", "me@example", boot_seconds=BOOT), runner, runner, str(scratch)
        )
        self.backend.clock.set_speed(0)
        self.backend.spawn = self._drop  # type: ignore[method-assign]
        self.backend.keep(self.state)

    @staticmethod
    def _drop(work: Any) -> None:
        work.close()  # an instance stays on its node

    def end(self) -> None:
        """End as a killed server does: nothing more is written."""
        self.state.close()

    def pool(self, **body: Any) -> Pool:
        creation = requests.read_pool({"name": "p", "profile": "docker-batch", **body}, Profiles())
        return self.backend.pools.create(creation)

    def task(self, pool: Pool | None = None, **body: Any) -> Task:
        where = {"poolUuid": pool.uuid} if pool else {} if "jobUuid" in body else {"profile": "docker-batch"}
        return self.backend.tasks.create(
            requests.read_task({"name": "t", "instanceCount": 1, **where, **body})
        )

    def advance(self, seconds: float) -> None:
        self.backend.clock.advance(seconds)
        self.backend.save()

    def pool_now(self, uuid: str) -> dict[str, Any]:
        return responses.POOL.full(self.backend, self.backend.pools.find(uuid))

    def task_now(self, uuid: str) -> dict[str, Any]:
        return responses.TASK.full(self.backend, self.backend.tasks.find(uuid))

    def everything(self) -> dict[str, Any]:
        backend = self.backend
        return {
            **{pool.uuid: responses.POOL.full(backend, pool) for pool in backend.pools.store},
            **{task.uuid: responses.TASK.full(backend, task) for task in backend.tasks.store},
            **{job.uuid: responses.JOB.full(backend, job) for job in backend.jobs.store},
            "order": [*backend.pools.store._by_uuid, *backend.tasks.store._by_uuid],
        }


class Restarts:
    """Starts one account after another with the same directory."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._last: Account | None = None

    def __call__(self) -> Account:
        if self._last is not None:
            self._last.end()
        self._last = Account(self._place / "state", self._place / "scratch")
        return self._last


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Restarts]:
    # No time passes between two accounts, unless a test says so.
    monkeypatch.setattr(
        persistence, "time", SimpleNamespace(time=lambda: 1e9, monotonic=itertools.count().__next__)
    )
    restarts = Restarts(tmp_path)
    yield restarts
    if restarts._last is not None:
        restarts._last.end()


def test_an_object_is_after_a_restart_as_it_was(start: Restarts) -> None:
    account = start()
    policy = {
        "type": "ManagedTasksQueue",
        "maxTotalSlots": 4,
        "name": "few",
        "enabledPeriods": [{"type": "Always"}],
    }
    scaled = account.pool(
        shortname="one", tags=["a"], scaling={"policies": [policy]}, autoDeleteOnCompletion=True
    )
    closed = account.pool(
        constants=[{"key": "QARNOT_SECRET_X", "value": "hidden"}], completionTimeToLive="1.00:00:00"
    )
    job = account.backend.jobs.create({"name": "j", "poolUuid": scaled.uuid, "useDependencies": True})
    first = account.task(jobUuid=job.uuid, labels={"a": "b"}, advancedRanges="3,5-6", instanceCount=None)
    account.task(jobUuid=job.uuid, dependencies={"dependsOn": [first.uuid]})
    account.task(
        jobUuid=job.uuid,
        dependencies={
            "advancedDependsOn": [{"taskUuid": first.uuid, "taskFinalStateCondition": ["failure"]}]
        },
    )
    cancelled = account.task(closed, resultsBucketPrefix="x/")
    account.backend.tasks.abort(cancelled)
    account.backend.pools.close(closed)
    account.advance(2)
    before = account.everything()
    after = start().everything()
    assert after == before
    assert start().everything() == before
    assert {before[uuid]["state"] for uuid in (closed.uuid, cancelled.uuid)} == {"Closed", "Cancelled"}


def test_the_fields_of_every_object_are_written(start: Restarts) -> None:
    """A field that has no place in a row would be lost without a word."""
    account = start()
    for item in (account.pool(), account.task()):
        row = persistence._row(item)
        again = json.loads(json.dumps(row))
        assert {**row, "output": None} == {**again, "output": None}


def test_a_restart_loses_all_nodes(start: Restarts) -> None:
    account = start()
    pool = account.pool(instanceCount=2, multiSlotsSettings={"slotsPerNode": 2})
    account.advance(BOOT)
    retried = [account.task(pool, retrySettings={"maxPerInstanceRetries": 1}) for _ in range(2)]
    queued = account.task(pool)
    failed = account.task()
    account.advance(BOOT + 1)
    booting = account.task()
    account.advance(1)
    for task in (*retried, failed):
        (instance,) = task.instances.values()
        account.backend.tasks.enter(instance, InstancePhase.RUNNING)
        instance.started = account.backend.now
    account.advance(5)
    assert account.pool_now(pool.uuid)["state"] == "FullyExecuting"

    account = start()
    now = account.pool_now(pool.uuid)
    assert (now["state"], now["runningInstanceCount"], now["totalSlotCapacity"]) == (
        "PartiallyExecuting",
        0,
        2,
    )
    shown = account.task_now(failed.uuid)
    assert (shown["state"], shown["errors"][0]["code"]) == ("Failure", "LOCAL_NODE_LOST")
    assert shown["completedInstances"][0]["execTimeSec"] == 5
    states = {task.uuid: account.task_now(task.uuid)["state"] for task in (*retried, queued, booting)}
    assert list(states.values()) == ["PartiallyExecuting", "PartiallyExecuting", "Submitted", "Submitted"]
    # Lost instances are first in the queue again.
    waiting = account.backend.pools.find(pool.uuid).queue
    assert [instance.task.uuid for instance in waiting] == [task.uuid for task in (*retried, queued)]
    account.advance(BOOT)
    assert account.pool_now(pool.uuid)["state"] == "FullyExecuting"
    found = [account.backend.tasks.find(task.uuid).instances[0] for task in (*retried, queued, booting)]
    placed = InstancePhase.PLACED
    assert [(one.phase, one.attempts) for one in found] == [
        *[(placed, 2)] * 2,
        (InstancePhase.WAITING, 0),
        (placed, 1),
    ]


def test_ends_that_were_due_happen_after_a_restart(start: Restarts) -> None:
    account = start()
    kept, closing, deleted = (account.pool(instanceCount=1) for _ in range(3))
    account.advance(BOOT)
    tasks = [account.task(pool) for pool in (closing, deleted)]
    account.backend.pools.close(closing)
    account.backend.pools.delete(deleted)
    late = account.task(kept, maxTimeQueueSeconds=3600, instanceCount=2)
    job = account.backend.jobs.create({"name": "j", "maxWallTime": "01:00:00"})
    account.backend.save()
    account = start()
    account.advance(1)
    assert account.pool_now(closing.uuid)["state"] == "Closed"
    assert account.backend.pools.store.get(deleted.uuid) is None
    assert [account.task_now(one.uuid)["state"] for one in tasks] == ["Cancelled", "Cancelled"]
    # A task whose pool is gone still names it, also after another restart.
    account = start()
    assert account.task_now(tasks[1].uuid)["poolUuid"] == deleted.uuid
    account.backend.tasks.abort(account.backend.tasks.find(late.uuid))
    account.advance(3600)
    assert account.backend.jobs.find(job.uuid).state == "Completed"


def test_periodic_snapshots_continue(start: Restarts) -> None:
    account = start()
    task = account.task(account.pool(instanceCount=1), retrySettings={"maxPerInstanceRetries": 1})
    snapshots.repeat(account.backend, task, {"interval": 60, "bucket": "box", "whitelist": "x"})
    account.advance(61)
    (first,) = task.snapshots
    account = start()
    again = account.backend.tasks.find(task.uuid)
    assert again.snapshots[first]["status"] == "failure"  # nothing was copied
    account.advance(60)
    second = again.snapshots[list(again.snapshots)[1]]
    assert second["snapshotConfig"] == again.snapshots[first]["snapshotConfig"]
    assert second["snapshotConfig"]["whitelist"] == "x"


def test_no_node_is_billed_while_no_server_runs(start: Restarts, monkeypatch: pytest.MonkeyPatch) -> None:
    account = start()
    pool = account.pool(instanceCount=2)
    gone = account.pool(instanceCount=1)
    account.advance(BOOT)
    account.advance(100)
    account.backend.account.set_credits(5, account.backend.spent())
    account.backend.note()
    account.backend.pools.delete(gone)
    account.advance(60)
    cost, left = pool.meter.credits(account.backend.now), account.backend.credits_left()
    now = account.backend.now
    later = SimpleNamespace(time=lambda: 1e9 + 7200, monotonic=itertools.count().__next__)
    monkeypatch.setattr(persistence, "time", later)
    account = start()
    assert account.backend.now == now + 7200
    assert account.backend.pools.find(pool.uuid).meter.credits(account.backend.now) == pytest.approx(cost)
    assert account.backend.credits_left() == pytest.approx(left)
    assert account.backend.account.deleted[gone.uuid] > 0
    account.advance(BOOT)
    account.advance(50)
    assert account.backend.credits_left() == pytest.approx(left - 0.01, abs=0.0005)


def test_a_second_restart_bills_nothing_of_the_first(start: Restarts) -> None:
    account = start()
    pool = account.pool(instanceCount=2)
    account.advance(BOOT * 0.99)
    assert account.pool_now(pool.uuid)["state"] == "PartiallyExecuting"
    account = start()
    cost = account.backend.pools.find(pool.uuid).meter.credits(account.backend.now)
    account.pool()  # a later time is written, and not this pool
    account.advance(BOOT / 100)
    account = start()
    assert account.backend.pools.find(pool.uuid).meter.credits(account.backend.now) == pytest.approx(cost)


def test_the_time_is_written_while_nodes_are_billed(start: Restarts) -> None:
    account = start()
    account.pool(instanceCount=1)
    account.advance(BOOT)
    assert account.backend.persistence is not None
    account.backend.clock.advance(30)  # no event and no request
    account.backend.persistence.wait()
    spent = account.backend.spent()
    assert spent > 0
    assert start().backend.spent() == pytest.approx(spent)


def test_a_change_is_written_before_the_response(start: Restarts) -> None:
    account = start()
    written: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b'{"name": "p", "profile": "docker-batch"}'}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            written.append((message["status"], list(account.state.read("pool"))))

    headers = [(b"host", b"localhost"), (b"authorization", b"token")]
    scope = {"type": "http", "method": "POST", "path": "/pools", "query_string": b"", "headers": headers}
    asyncio.run(application(account.backend, Addresses(80))(scope, receive, send))
    assert written == [(200, [pool.uuid for pool in account.backend.pools.store])]
    assert len(account.backend.pools.store) == 1


def test_a_full_disk_delays_a_write(start: Restarts, capfd: pytest.CaptureFixture[str]) -> None:
    account = start()
    real = account.state.write

    def full(rows: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    account.state.write = full  # type: ignore[method-assign]
    pool = account.pool()
    account.backend.save()
    account.backend.save()
    assert capfd.readouterr().err.count("database or disk is full") == 1
    account.state.write = real  # type: ignore[method-assign]
    account.backend.save()
    assert start().pool_now(pool.uuid)["state"] == "Submitted"


# ---- a kill before each write --------------------------------------------------------------------


class Dying(sqlite3.Connection):
    """Kills its process at one of its steps."""

    left = -1

    @classmethod
    def step(cls) -> None:
        if cls.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        cls.left -= 1

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        self.step()
        return super().execute(*arguments)

    def __exit__(self, *arguments: Any) -> Any:
        self.step()  # before the commit
        ended = super().__exit__(*arguments)
        self.step()
        return ended


def killed_at(step: int, run: Callable[[Callable[[Any], None]], None]) -> tuple[list[Any], bool]:
    """Run in a forked process that is killed at a step. Return the facts it has confirmed, and whether it has ended."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            facts = os.fdopen(write_end, "w")
            Dying.left = step
            real = sqlite3.connect
            dying = SimpleNamespace(connect=lambda *a, **k: real(*a, **k, factory=Dying), Error=sqlite3.Error)
            setattr(state_module, "sqlite3", dying)  # noqa: B010
            run(lambda fact: print(json.dumps(fact), file=facts, flush=True))
            os._exit(0)
        except BaseException:
            os._exit(1)
    os.close(write_end)
    with os.fdopen(read_end) as lines:
        confirmed = [json.loads(line) for line in lines]
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return confirmed, code == 0


def test_a_kill_before_any_write_loses_nothing_that_was_confirmed(tmp_path: Path) -> None:
    for step in itertools.count():
        place, scratch = tmp_path / str(step), tmp_path / "scratch"

        def live(confirm: Callable[[Any], None], place: Path = place, scratch: Path = scratch) -> None:
            account = Account(place, scratch)
            pool = account.pool(instanceCount=1)
            account.backend.save()
            confirm(["pool", pool.uuid, "Submitted"])
            task = account.task(pool)
            account.backend.save()
            confirm(["task", task.uuid, "Submitted"])
            account.backend.tasks.abort(task)
            account.backend.save()
            confirm(["task", task.uuid, "Cancelled"])
            account.backend.output_of(task, 0)
            account.backend.tasks.delete(task)
            account.backend.save()
            confirm(["task", task.uuid, None])
            account.backend.pools.close(pool)
            account.advance(1)
            confirm(["pool", pool.uuid, "Closed"])
            job = account.backend.jobs.create({"name": "j"})
            account.backend.save()
            confirm(["job", job.uuid, "Active"])
            account.backend.jobs.terminate(job)
            account.backend.save()
            confirm(["job", job.uuid, "Completed"])
            account.backend.pools.delete(pool)
            account.backend.save()
            confirm(["pool", pool.uuid, None])

        confirmed, is_done = killed_at(step, live)
        after = Account(place, scratch)
        backend = after.backend
        stores: dict[str, Any] = {
            "pool": backend.pools.store,
            "task": backend.tasks.store,
            "job": backend.jobs.store,
        }
        last = {(kind, uuid): state for kind, uuid, state in confirmed}
        for (kind, uuid), state in last.items():
            found = stores[kind].get(uuid)
            now = found.state if found else None
            # The next change may have been written, and not been confirmed.
            following = {
                "Submitted": ("Cancelled", "Closing", "Closed"),
                "Cancelled": (None,),
                "Active": ("Completed",),
                "Closed": (None,),
            }
            assert now == state or now in following.get(str(state), ()), (step, kind, state, now)
            # All of a change is written, or nothing.
            if kind == "pool":
                assert (uuid in backend.account.deleted) == (now is None)
        folder = Path(backend.outputs)
        assert not folder.is_dir() or set(os.listdir(folder)) <= set(backend.tasks.store._by_uuid)
        after.end()
        if is_done:
            assert step > 20
            return


def test_a_kill_at_any_write_leaves_whole_files(tmp_path: Path) -> None:
    from moto.s3.models import s3_backends

    moto = buckets_module._moto()

    def forget() -> None:
        s3_backends.bucket_accounts.clear()
        moto.reset()

    moto.create_bucket("warm", "us-east-1")  # its imports are done before the forks
    forget()
    for step in itertools.count():
        place = tmp_path / str(step)

        def live(confirm: Callable[[Any], None], place: Path = place) -> None:
            real = Path.write_bytes

            def write(path: Path, content: bytes) -> int:
                real(path, content[: len(content) // 2])
                Dying.step()
                return real(path, content)

            Path.write_bytes = write  # type: ignore[assignment, method-assign]
            kept = KeptBuckets(State(place, "1"))
            kept.restore()
            moto.create_bucket("box", "us-east-1")
            kept.keep("box")
            confirm(["box", {}])
            for key, content in (("a", b"one"), ("b/c", b"two"), ("a", b"three")):
                moto.put_object("box", key, content)
                kept.keep("box")
                confirm([key, content.decode()])
            moto.delete_object("box", "a")
            kept.keep("box")
            confirm(["a", None])

        try:
            confirmed, is_done = killed_at(step, live)
            state = State(place, "1", wait=0)
            KeptBuckets(state).restore()
            state.close()
            found = {
                key: held.value.decode()
                for bucket in moto.buckets.values()
                for key, held in bucket.keys.items()
            }
            wanted = {key: content for key, content in dict(confirmed[1:]).items() if content is not None}
            order: list[dict[str, str]] = [
                {},
                {"a": "one"},
                {"a": "one", "b/c": "two"},
                {"a": "three", "b/c": "two"},
            ]
            order.append({"b/c": "two"})
            at = max(0, len(confirmed) - 1)
            assert wanted == order[at]
            assert found in order[at : at + 2], (step, confirmed, found)
            if confirmed:
                assert "box" in moto.buckets
            # No file is left without a row.
            assert len(os.listdir(place / "objects")) == len(found)
        finally:
            forget()
        if is_done:
            assert step > 15
            return


# ---- a directory that is refused -----------------------------------------------------------------


def use(place: Path) -> None:
    State(place, "1-new", wait=0).close()


def of_another_version(place: Path) -> None:
    State(place, "1-old").close()


def with_other_files(place: Path) -> None:
    place.mkdir()
    (place / "thesis.txt").touch()


def with_a_broken_database(place: Path) -> None:
    place.mkdir()
    (place / "state.db").write_bytes(b"no database" * 1000)


def with_a_database_that_cannot_be_opened(place: Path) -> None:
    (place / "state.db").mkdir(parents=True)


def that_is_a_file(place: Path) -> None:
    place.touch()


REFUSED: dict[Callable[[Path], None], str] = {
    of_another_version: "has the state of version 1-old, and this local Qarnot reads version 1-new. Remove",
    with_other_files: "has other files (thesis.txt). Choose an empty or a new directory.",
    with_a_broken_database: "has an unreadable state.db: file is not a database. Remove the directory.",
    with_a_database_that_cannot_be_opened: (
        "cannot be used: unable to open database file. Make space, and allow access to its state.db."
    ),
    that_is_a_file: "cannot be used: File exists. Choose another directory.",
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_a_directory_that_cannot_be_used_is_refused_by_name(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    place = tmp_path / "state"
    make(place)
    with pytest.raises(StateError) as refused:
        use(place)
    assert str(refused.value).startswith(f"--state-dir {place} {REFUSED[make]}")


def test_an_option_is_refused_before_a_directory_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["local", f"--state-dir={tmp_path}/new", "--rate-limit=0"])
    with pytest.raises(SystemExit):
        main()
    assert "--rate-limit must be a number above 0" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_a_directory_has_one_server(tmp_path: Path) -> None:
    first = State(tmp_path, "1-new")
    with pytest.raises(StateError, match=f"is in use by process {os.getpid()}. Stop it"):
        use(tmp_path)
    # A process that has inherited the lock, as the supervisor of a killed server, holds it longer.
    inherited = os.dup(first.lock)
    first.close()
    with pytest.raises(StateError, match="is in use"):
        use(tmp_path)
    os.close(inherited)
    use(tmp_path)


def test_only_the_owner_reads_the_directory_and_the_token_stays(tmp_path: Path) -> None:
    place = tmp_path / "state"
    first = State(place, "1")
    token = first.token()
    first.close()
    assert place.stat().st_mode & 0o777 == 0o700
    again = State(place, "1")
    assert again.token() == token
    again.close()


# ---- a real server -------------------------------------------------------------------------------


def test_a_killed_server_continues(tmp_path: Path) -> None:
    server = LocalQarnot(boot_seconds=0.1, close_seconds=0.1, state_dir=tmp_path / "state")
    pids = tmp_path / "pids"
    with server:
        http, s3 = Http(server), s3_of(server)
        s3.create_bucket(Bucket="box")
        s3.put_object(
            Bucket="box", Key="a b/ü.txt", Body=b"kept", Metadata={"who": "me"}, ContentType="text/plain"
        )
        s3.put_object(Bucket="box", Key="gone", Body=b"x")
        s3.delete_object(Bucket="box", Key="gone")
        http("PUT", "/secrets-manager/data/key", {"value": "hidden"})
        done = submit(http, "sh -c 'echo one; echo two'", resultBucket="box")
        until(lambda: http("GET", f"/tasks/{done}").json()["state"] == "Success")
        assert http("POST", f"/tasks/{done}/stdout").text == "0> one\n0> two\n"
        pool = http("POST", "/pools", {"name": "p", "profile": "docker-batch", "instanceCount": 1}).json()
        retried = submit(
            http,
            f"sh -c 'echo $$ >> {pids}; echo try; sleep 600'",
            poolUuid=pool["uuid"],
            maxRetriesPerInstance=5,
        )
        until(lambda: pids.exists() and http("GET", f"/tasks/{retried}/stdout/0").text == "try\n")
        before = shown(http, done)
        listed = s3.list_objects_v2(Bucket="box")["Contents"]
        # The directory is free only when no process of the killed server runs any more.
        assert server.process is not None
        (supervisor,) = children(server.process.pid)
        os.kill(supervisor, signal.SIGSTOP)
        try:
            server.kill()
            with pytest.raises(StateError, match="is in use"):
                State(tmp_path / "state", VERSION, wait=0)
        finally:
            os.kill(supervisor, signal.SIGCONT)
        server.start()
        assert not alive(int(pids.read_text().split()[0]))
        http, s3 = Http(server), s3_of(server)
        assert shown(http, done) == before
        assert http("GET", f"/tasks/{done}/stdout/0").text == "one\ntwo\n"
        assert http("POST", f"/tasks/{done}/stdout").text == ""
        assert http("GET", "/secrets-manager/data/key").json() == {"value": "hidden"}
        assert http("GET", "/info").json()["bucketCount"] == 1
        assert s3.list_objects_v2(Bucket="box")["Contents"] == listed
        found = s3.get_object(Bucket="box", Key="a b/ü.txt")
        assert (found["Body"].read(), found["ContentType"], found["Metadata"]) == (
            b"kept",
            "text/plain",
            {"who": "me"},
        )
        assert s3.get_object(Bucket="box", Key="a b/ü.txt", Range="bytes=1-2")["Body"].read() == b"ep"
        until(lambda: http("GET", f"/tasks/{retried}/stdout/0").text == "try\ntry\n")
        http("DELETE", f"/tasks/{retried}")
        http("DELETE", f"/pools/{pool['uuid']}")
        until(lambda: http("GET", f"/pools/{pool['uuid']}").status_code == 404)
        server.stop()
        server.start()
        http = Http(server)
        assert [one["uuid"] for one in http("GET", "/tasks").json()] == [done]
        assert http("GET", "/pools").json() == []
        assert os.listdir(tmp_path / "state" / "output") == [done]


def shown(http: Http, task: str) -> dict[str, Any]:
    """The task without its status, which has the time of the request."""
    found: dict[str, Any] = http("GET", f"/tasks/{task}").json()
    return {**found, "status": None}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def s3_of(server: LocalQarnot) -> Any:
    keys = {"aws_access_key_id": server.email, "aws_secret_access_key": server.token}
    return boto3.client("s3", endpoint_url=server.storage_url, region_name="us-east-1", **keys)


def submit(http: Http, command: str, **body: Any) -> str:
    where = {} if "poolUuid" in body else {"profile": "docker-batch"}
    constants = [{"key": "DOCKER_CMD", "value": command}]
    made = http("POST", "/tasks", {"name": "t", "instanceCount": 1, "constants": constants, **where, **body})
    assert made.status_code == 200, made.text
    return str(made.json()["uuid"])
