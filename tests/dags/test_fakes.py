"""The fakes of the tests beside what they stand for: one DAG run asks Airflow, and the fakes must answer the same."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.dags.test_examples import LOCAL_BUNDLE
from tests.harness import FakeTI

pytestmark = pytest.mark.usefixtures("airflow_db")

#: What is pulled, and from where: the same pulls are made by a mapped task and by one that is not.
PULLS: list[dict[str, Any]] = [
    {},
    {"key": "k"},
    {"key": "missing"},
    {"key": "missing", "default": "d"},
    {"task_ids": "mapped", "key": "k"},
    {"task_ids": "plain", "key": "k"},
    {"task_ids": "once", "key": "k"},
    {"task_ids": "nothing", "key": "k"},
    {"task_ids": ["mapped", "plain"], "key": "k"},
    {"task_ids": ["plain"], "key": "k"},
    {"task_ids": ["nothing", "plain"], "key": "k", "default": "d"},
    {"task_ids": "mapped", "key": "k", "map_indexes": 1},
    {"task_ids": "mapped", "key": "k", "map_indexes": [2, 0]},
    {"task_ids": "mapped", "key": "k", "map_indexes": 7},
    {"task_ids": "mapped", "key": "k", "map_indexes": 7, "default": "d"},
    {"task_ids": "mapped", "key": "k", "map_indexes": None},
    {"task_ids": "plain", "key": "k", "map_indexes": None},
    {"task_ids": "plain", "key": "k", "map_indexes": -1},
    {"task_ids": ["mapped", "plain"], "key": "k", "map_indexes": [0, -1], "default": "d"},
    {"task_ids": "mapped", "key": "k", "dag_id": "another"},
    {"task_ids": "mapped", "key": "k", "run_id": "another"},
]
#: The task instances that pull, and the number that each is given.
ASKING = {("asks", 0): 10, ("asks", 1): 20, ("asks_alone", -1): 30}
DAG = """
import json
from airflow.sdk import DAG, task
from airflow_qarnot_pool.ownership import xcoms
from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
from airflow_qarnot_pool.ownership.liveness import dag_run_state, task_instance_state

PULLS = json.loads('''{pulls}''')


def push(value, ti=None):
    ti.xcom_push("k", value)
    if ti.task_id != "nothing":
        return value


def ask(index, ti=None, dag_run=None):
    ti.xcom_push("k", {{"own": index}})
    xcoms.push(ti, "direct", [index])
    xcoms.push(ti, "direct", [index, ti.map_index])
    me = TaskInstanceIdentity.of({{"ti": ti, "dag_run": dag_run, "task": ti.task}}, "fakes")
    found = {{
        "pulls": [ti.xcom_pull(**one) for one in PULLS],
        "direct": [xcoms.pull(ti, "direct"), xcoms.get_direct(me, "direct"), xcoms.pull(ti, "missing")],
        "states": [
            task_instance_state(me),
            task_instance_state(TaskInstanceIdentity(**{{**me.to_kwargs(), "task_id": "plain", "map_index": -1}})),
        ],
        "runs": [dag_run_state(ti.dag_id, ti.run_id), dag_run_state(ti.dag_id, "another")],
        "ti": {{name: getattr(ti, name) for name in ("map_index", "try_number", "max_tries")}},
    }}
    with open("{folder}/" + ti.task_id + str(ti.map_index), "w") as file:
        json.dump(found, file)


with DAG("fakes", schedule=None) as dag:
    mapped = task(push, task_id="mapped").expand(value=["a", "b", {{"c": None}}])
    once = task(push, task_id="once").expand(value=[0])
    plain = task(push, task_id="plain")(value="p")
    nothing = task(task_id="nothing")(lambda: None)()
    asks = task(ask, task_id="asks").expand(index=[10, 20])
    asks_alone = task(ask, task_id="asks_alone")(index=30)
    [mapped, once, plain, nothing] >> asks >> asks_alone
"""


def as_fakes(run_id: str) -> dict[tuple[str, int], FakeTI]:
    """The task instances of the run as fakes, with what they have pushed."""
    values: dict[tuple[str, int], Any] = {
        ("mapped", 0): "a",
        ("mapped", 1): "b",
        ("mapped", 2): {"c": None},
        ("once", 0): 0,
        ("plain", -1): "p",
    }
    made = {
        (task_id, index): FakeTI(
            dag_id="fakes",
            run_id=run_id,
            task_id=task_id,
            map_index=index,
            xcoms={"k": value, "return_value": value},
        )
        for (task_id, index), value in values.items()
    }
    for (task_id, index), own in ASKING.items():
        ti = made[task_id, index] = FakeTI(dag_id="fakes", run_id=run_id, task_id=task_id, map_index=index)
        ti.xcom_push("k", {"own": own})
    for ti in made.values():
        ti.others = [other for other in made.values() if other is not ti]
    return made


def test_the_fake_task_instance_pulls_xcoms_as_airflows_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "dags"
    folder.mkdir()
    bundles = [{"name": "fakes", "classpath": LOCAL_BUNDLE, "kwargs": {"path": str(folder)}}]
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps(bundles))
    (folder / "dag.py").write_text(DAG.format(pulls=json.dumps(PULLS), folder=tmp_path))
    run = runpy.run_path(str(folder / "dag.py"))["dag"].test()
    assert run.state == "success"
    fakes = as_fakes(run.run_id)
    # dag.test() runs one after another: the first of them could not see what the others pushed later.
    order = sorted(
        (path for path in tmp_path.iterdir() if path.is_file()), key=lambda path: path.stat().st_mtime_ns
    )
    pushed = {(task_id, index): fakes[task_id, index].xcoms for task_id, index in ASKING}
    for key in ASKING:
        fakes[key].xcoms = {}
    assert sorted(path.name for path in order) == sorted(f"{task_id}{index}" for task_id, index in ASKING)
    for path in order:
        task_id, index = next(key for key in ASKING if path.name == f"{key[0]}{key[1]}")
        real, fake = json.loads(path.read_text()), fakes[task_id, index]
        fake.xcoms = pushed[task_id, index]
        for pull, expected in zip(PULLS, real["pulls"], strict=True):
            assert fake.xcom_pull(**pull) == expected, (task_id, index, pull)
        own = [ASKING[task_id, index], index]
        assert real["direct"] == [own, own, None]
        assert real["states"] == ["running", "success"]
        assert real["runs"] == ["running", None]
        assert real["ti"] == {name: getattr(fake, name) for name in real["ti"]}
