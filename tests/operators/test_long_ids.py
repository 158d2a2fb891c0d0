"""Every name, tag, label and constant that is made from ids fits Qarnot's limits, for any id that Airflow takes."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from airflow.sdk.definitions._internal.node import validate_key

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.models import Job
from airflow_qarnot_pool.api.specs import TaskSpec
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.bases.warm_up import warm_up
from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.ownership.identity import MAX_NAME_BYTES, with_suffix
from airflow_qarnot_pool.ownership.records import IdenticalTasks, Outcomes
from airflow_qarnot_pool.ownership.shared_pool import HoldOwner, _holder
from tests.harness import FakeTI, life_of, run

#: Characters of one to four bytes, alone and mixed. Airflow takes word characters, '-' and '.' in ids.
LETTERS = ("d", "Z9_.-", "\u0434", "\u6c34\u6728", "\U00020021\U0002b740", "a\u0434\u6c34\U00020021")
#: A run id is any text that ``allowed_run_id_pattern`` lets through.
TEXTS = (*LETTERS, "\"\\'/ +:", "\U0001f600")
LONGEST = 250
DETAIL = {"tags": 511, "labels": 2047, "name": MAX_NAME_BYTES}


def texts(letters: tuple[str, ...], seed: int) -> Iterator[str]:
    """Ids of all lengths that matter, of each alphabet."""
    dice = random.Random(seed)
    for alphabet, length in itertools.product(letters, (1, 63, 249, LONGEST)):
        yield "".join(dice.choices(alphabet, k=length))


def sizes(text: str) -> int:
    """The largest count of a text that a service may use: characters, UTF-16 units or bytes."""
    return max(len(text), len(text.encode("utf-16-le")) // 2, len(text.encode()))


def check(name: str | None, tags: Any, labels: Any, shortname: str | None) -> None:
    assert sizes(name or "") <= DETAIL["name"]
    assert len(tags) <= 10
    assert all(sizes(tag) <= DETAIL["tags"] for tag in tags)
    assert all(sizes(text) <= DETAIL["labels"] for pair in (labels or {}).items() for text in pair)
    assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", shortname or "x")


def test_all_that_is_made_from_ids_fits() -> None:
    dags, tasks = list(texts(LETTERS, 1)), list(texts(LETTERS, 2))
    for key in (*dags, *tasks):
        validate_key(key)
    shortnames, holds, given = set(), set(), set()
    every = [*itertools.product(dags, texts(TEXTS, 3)), *((dags[-1], run_id) for run_id in texts(TEXTS, 4))]
    for number, (dag_id, run_id) in enumerate(every):
        task_id = tasks[number % len(tasks)]
        map_index = 2**31 - 1 if number % 2 else -1
        identity = life_of(
            namespace="n" * 63, dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=map_index
        ).for_item(99_999)
        check(
            f"{dag_id}.{task_id}",
            identity.tags(),
            identity.labels(10**6, "f" * 64),
            identity.shortname(10**6),
        )
        shortnames.add(identity.shortname(1))
        by = task_id if map_index < 0 else f"{task_id}[{map_index}]"
        holder = HoldOwner(dag_id=dag_id, run_id=run_id, opened_by=by)
        given.add(holder)
        check(holder.to_name(), (), {}, None)
        holds.add(holder.to_name())
        found = _holder(holder.to_name())
        assert found is not None
        assert (found.dag_id, found.run_id) == (dag_id, run_id)
        assert found.is_by(task_id)
        assert found.is_given_up_by(identity, [task_id])
        assert found.is_given_up_by(identity, None)
        assert not found.is_given_up_by(identity, ["another"])
        assert not found.is_by("another")
    assert len(shortnames) == len(holds) == len(given)


@pytest.mark.parametrize("letter", ["d", "\u0434", "\u6c34", "\U00020021"])
def test_records_of_ends_fit_and_keep_every_item(letter: str) -> None:
    alike = IdenticalTasks("a" * 16, "b" * 16, 1, 1, "Success")
    scattered = set(range(0, 5000, 2))
    outcomes = Outcomes(items={alike: scattered}, of=[letter * 250, letter * 250, letter * 250, 3])
    jobs = [Job.from_json({"uuid": "u", "name": name}) for name in outcomes.names()]
    assert all(sizes(job.name or "") <= MAX_NAME_BYTES for job in jobs)
    assert Outcomes.of_jobs(jobs).items == {alike: scattered}


@pytest.mark.parametrize("letter", ["n", "\u0434", "\u6c34", "\U00020021"])
def test_a_name_that_is_given_fits_with_what_is_added_to_it(letter: str) -> None:
    longest = letter * (MAX_NAME_BYTES // len(letter.encode()))
    for name in (longest, longest[:-1], longest[:-4], "short"):
        for suffix in (" [0]", " [99999]", " (warm-up)"):
            fitted = with_suffix(name, suffix)
            assert sizes(fitted) <= MAX_NAME_BYTES
            assert fitted.endswith(suffix)
            assert name.startswith(fitted.removesuffix(suffix))
    assert with_suffix("short", " [1]") == "short [1]"
    TaskSpec(name=warm_up(longest, "p", 1, None).name)


def ids(letter: str) -> dict[str, str]:
    return {"dag_id": letter * LONGEST, "run_id": "r" + letter * (LONGEST - 1)}


@pytest.mark.parametrize("letter", ["d", "\u0434", "\u6c34", "\U00020021"])
def test_a_hold_of_long_ids_keeps_a_shared_pool_open(
    qarnot: LocalQarnot, client: QarnotClient, letter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "airflow_qarnot_pool.ownership.liveness.dag_run_state", lambda dag_id, run_id: "running"
    )
    name = f"long-{ord(letter):x}"
    task = letter * (LONGEST - 10)

    def ti(dag: str, task_id: str) -> FakeTI:
        given = ids(letter)
        return FakeTI(**{**given, "dag_id": dag + given["dag_id"][1:], "task_id": task_id})

    make = partial(QarnotCreatePoolOperator, task_id=task, shared=name, instance_count=1, warm_up=False)
    give_up = partial(QarnotClosePoolOperator, task_id="close", shared=name)
    pool = run(make, ti("a", task))
    assert run(make, ti("b", task)) == pool
    assert len(client.pools.jobs(pool)) == 2
    run(give_up, ti("a", "close"))
    assert client.pools.get(pool).state not in ("Closing", "Closed")
    run(give_up, ti("b", "close"))
    assert client.pools.get(pool).state in ("Closing", "Closed")
    assert client.pools.jobs(pool) == []


@pytest.mark.parametrize("letter", ["d", "\u0434", "\U00020021"])
def test_all_that_operators_make_fits(qarnot: LocalQarnot, client: QarnotClient, letter: str) -> None:
    task_id = letter * LONGEST
    before = {one["uuid"] for kind in ("pools", "tasks", "jobs") for one in qarnot.call("GET", f"/{kind}")}

    def go(make: Callable[..., Any], **given: Any) -> Any:
        ti = FakeTI(**ids(letter), task_id=task_id, map_index=1, max_tries=1)
        return run(partial(make, task_id=task_id, retries=1, **given), ti)

    for shared in ({}, {"shared": f"all-{ord(letter):x}"}):
        pool = go(QarnotCreatePoolOperator, instance_count=1, pool_spec={"name": letter * 500}, **shared)
        go(QarnotRunTaskOperator, qarnot_pool=pool, command="true", log_output=False)
        go(QarnotRunTasksOperator, qarnot_pool=pool, commands=["true", "true"])
        made = {
            one["uuid"]: one
            for kind in ("pools", "tasks", "jobs")
            for one in qarnot.call("GET", f"/{kind}")
            if one["uuid"] not in before
        }
        assert len(made) > 3
        for one in made.values():
            check(one["name"], one["tags"], one.get("labels"), one["shortname"])
        client.pools.delete(pool)
