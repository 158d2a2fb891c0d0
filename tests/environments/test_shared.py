"""A live shared pool gets the environments of all its users, and each call meets its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.errors import QarnotRefusedError
from airflow_qarnot_pool.decorators import node
from airflow_qarnot_pool.decorators.qarnot import qarnot_task
from airflow_qarnot_pool.environments import storage
from airflow_qarnot_pool.environments.shared import FOLDERS, comparable, folder_for, resource_for
from airflow_qarnot_pool.exceptions import (
    QarnotPoolEndedError,
    QarnotSpecMismatchError,
    QarnotTaskFailedError,
)
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from tests.decorators.test_qarnot_task import call
from tests.harness import FakeTI, run

from .conftest import HERE
from .test_environments import clean

__all__ = ["clean"]


def answer() -> int:
    import helpers  # type: ignore[import-not-found]

    return int(helpers.ANSWER)


class Users:
    """DAG runs that open one shared pool, each with ``helpers.py`` as it is at that moment, and call functions."""

    def __init__(self, folder: Path, client: QarnotClient) -> None:
        self.folder, self.client = folder, client
        self.pools: set[str] = set()
        self.opened: dict[str, FakeTI] = {}

    def _opener(self, **more: Any) -> QarnotCreatePoolOperator:
        more.setdefault("environment", {"modules": ["helpers"], "python": HERE})
        return QarnotCreatePoolOperator(
            task_id="open", instance_count=1, shared=self.folder.name, deferrable=False, **more
        )

    def open(self, run_id: str, answer: int, **more: Any) -> str:
        """Open the pool in a DAG run, with a module that has this answer."""
        (self.folder / "helpers.py").write_text(f"ANSWER = {answer}\n")

        def make() -> Any:
            with DAG("shared", schedule=None) as dag:
                dag.fileloc = str(self.folder / "dag.py")
                return self._opener(**more)

        ti = self.opened[run_id] = FakeTI("shared", run_id, "open")
        ti.xcoms["return_value"] = uuid = str(run(make, ti))
        self.pools.add(uuid)
        return uuid

    def call(self, run_id: str, function: Callable[..., Any] = answer, **more: Any) -> Any:
        """Call a function in a DAG run, with the output of the opening task as its pool."""
        ti = FakeTI("shared", run_id, function.__name__, others=[self.opened[run_id]])

        def make() -> Any:
            with DAG("shared", schedule=None) as dag:
                dag.fileloc = str(self.folder / "dag.py")
                operator = qarnot_task(qarnot_pool=self._opener().output, **more)(function)().operator
                operator.render_template_fields({"ti": ti, "task": operator})
            return operator

        return run(make, ti)


@contextmanager
def refused(qarnot: LocalQarnot) -> Iterator[None]:
    """Refuse to copy the resources of pools again."""
    qarnot.faults([{"method": "PATCH", "path": "^/pools/", "kind": "status", "status": 400}])
    try:
        yield
    finally:
        qarnot.faults([])


@pytest.fixture
def users(client: QarnotClient, tmp_path: Path) -> Iterator[Users]:
    found = Users(tmp_path, client)
    yield found
    for pool in found.pools:
        client.pools.delete(pool)


def test_each_run_meets_its_own_environment_on_a_live_shared_pool(
    users: Users, client: QarnotClient, qarnot: LocalQarnot
) -> None:
    pool = users.open("old", 1)
    assert users.call("old") == 1
    qarnot.clear_requests()
    assert users.open("new", 2) == pool
    assert [one["method"] for one in qarnot.requests() if one["path"].endswith(pool)].count("PATCH") == 1
    assert users.call("new") == 2
    assert users.call("old") == 1, "met the environment of another DAG run"
    qarnot.clear_requests()
    assert users.open("same as the old", 1) == pool
    assert "PATCH" not in {one["method"] for one in qarnot.requests()}, "the pool has it from its start"
    assert users.call("same as the old") == 1
    assert client.pools.get(pool).task_default_wait_for_pool_resources_synchronization


def test_a_retry_asks_for_the_copies_again(users: Users, qarnot: LocalQarnot) -> None:
    """The process of the first try may have ended between the two requests."""
    pool = users.open("old", 1)
    with refused(qarnot), pytest.raises(QarnotRefusedError):
        users.open("new", 2)
    assert users.open("new", 2) == pool
    assert users.call("new") == 2


def test_a_run_that_cannot_bring_its_environment_gives_the_pool_up(
    users: Users, client: QarnotClient, qarnot: LocalQarnot
) -> None:
    pool = users.open("old", 1)
    with refused(qarnot), pytest.raises(QarnotRefusedError):
        users.open("new", 2)
    assert client.pools.get(pool).state == "FullyExecuting", "the other run needs it"
    close = partial(QarnotClosePoolOperator, task_id="close", shared=users.folder.name)
    run(close, FakeTI("shared", "old", "close"))
    assert client.pools.get(pool).state in ("Closing", "Closed")


def test_a_pool_without_nodes_need_not_copy(users: Users, client: QarnotClient, qarnot: LocalQarnot) -> None:
    pool = users.open("old", 1, warm_up=False)
    assert not client.pools.get(pool).ready_slots
    with refused(qarnot):
        assert users.open("new", 2, warm_up=False) == pool
    assert users.call("new") == 2


def test_a_call_that_does_not_say_which_environment_it_means_is_refused(users: Users) -> None:
    pool = users.open("old", 1)
    assert call(pool, answer) == 1
    users.open("new", 2)
    with pytest.raises(QarnotTaskFailedError, match=r"the pool has several .*Give the output of the task"):
        call(pool, answer)


def test_a_call_brings_its_environment_to_the_pool_that_replaces_its_own(
    users: Users, client: QarnotClient
) -> None:
    users.open("old", 1)
    old = users.open("new", 2)
    client.pools.close(old)
    replacement = users.open("another", 3)
    assert replacement != old
    folder, *others = client.pools.get(replacement).resource_buckets
    assert not others
    assert folder.prefix != client.pools.get(old).resource_buckets[0].prefix
    assert users.call("new") == 2
    assert users.call("another") == 3


def test_a_call_that_does_not_know_its_environment_moves_to_no_pool_with_that_of_another_run(
    users: Users, client: QarnotClient
) -> None:
    old = users.open("old", 1)
    client.pools.close(old)
    users.open("another", 3)
    with pytest.raises(QarnotPoolEndedError, match="environment of another DAG run"):
        call(old, answer)


def test_a_pool_without_an_environment_is_not_shared_with_one_that_needs_it(users: Users) -> None:
    users.open("without", 1, environment=None)
    with pytest.raises(QarnotSpecMismatchError, match="differs in resource_buckets"):
        users.open("with", 1)


def test_specs_differ_in_other_resources_only() -> None:
    from airflow_qarnot_pool.api.specs import PoolSpec, ResourceBucket

    def spec(*resources: Any, archive: str = "") -> PoolSpec:
        own = [resource_for("b", folder_for("ns", "name", archive))] if archive else []
        return PoolSpec(name="p", resource_buckets=[*resources, *own])

    def hashed(one: PoolSpec) -> str:
        return comparable(one).fingerprint()

    assert hashed(spec(archive="a")) == hashed(spec(archive="b")) != hashed(spec())
    assert hashed(spec("data", archive="a")) != hashed(spec(archive="a"))
    plain = spec(ResourceBucket(bucket="b", prefix="in/"))
    assert hashed(plain) == plain.fingerprint()
    assert folder_for("ns", "name", "a").startswith(FOLDERS)
    assert len({folder_for(*words) for words in (("n", "s", "a"), ("ns", "", "a"), ("n", "s", "b"))}) == 3


def test_the_node_takes_the_archive_that_is_named_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "task").mkdir()
    monkeypatch.setenv("TASK_PATH", str(tmp_path / "task"))
    old, new = (f"{node.ENVIRONMENT}{HERE}-{digit * 32}.tar.gz" for digit in "01")
    (tmp_path / old).write_bytes(b"")
    assert node.find_environments(None, None) == [str(tmp_path / old)]
    with pytest.raises(node.EnvironmentProblem, match=f"{new} was not brought"):
        node.find_environments(None, new)
    (tmp_path / new).write_bytes(b"")
    assert node.find_environments(None, new) == [str(tmp_path / new)]
    assert storage.is_archive_name(new)
