"""What the programs that judge a release decide without starting anything."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.distributed import cluster
from tools import (
    check_wheel,
    count_file_changes,
    demo,
    doc_block,
    figures,
    matrix,
    new_user,
    second_run,
    worker_growth,
)


def test_a_result_replaces_the_one_before_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Before.\n\n<!-- load -->\n<!-- end of load -->\n\nAfter.\n")
    doc_block.write(page, "load", "| 1 |")
    doc_block.write(page, "load", "| 2 |")
    assert doc_block.read(page, "load") == "| 2 |"
    assert page.read_text() == "Before.\n\n<!-- load -->\n\n| 2 |\n\n<!-- end of load -->\n\nAfter.\n"
    with pytest.raises(ValueError, match="no place for soak"):
        doc_block.write(page, "soak", "| 3 |")


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("distributed", "account"),
        ("distributed", "load"),
        ("distributed", "soak"),
        ("distributed", "growth"),
        ("versions", "matrix"),
        ("versions", "next"),
    ],
)
def test_the_documents_have_a_place_for_each_result(page: str, name: str) -> None:
    doc_block.read(ROOT / "docs" / "contributing" / "evidence" / f"{page}.md", name)


def _qarnot_task(dag_id: str, task_id: str, map_index: int, state: str, **labels: str) -> SimpleNamespace:
    said = {"dag_id": dag_id, "run_id": "run", "task_id": task_id, "map_index": str(map_index), **labels}
    return SimpleNamespace(state=state, labels={f"airflow.{name}": value for name, value in said.items()})


def test_the_account_sees_what_was_done_twice_and_what_was_not_done() -> None:
    wanted = {
        piece for name in ("own_pool", "shared_pool") for piece in cluster.pieces(cluster.Run(name, "run"))
    }
    fan = [_qarnot_task("own_pool", "group.fan", n, "Success") for n in range(cluster.FAN)]
    many = [
        _qarnot_task("shared_pool", "group.many", -1, "Success", item=str(n)) for n in range(cluster.MANY)
    ]
    rest = [
        _qarnot_task("shared_pool", "group.on_worker", -1, "Success"),
        _qarnot_task("own_pool", "group.open_pool", -1, "Success", role="warm-up"),
    ]
    assert cluster.judged(wanted, [*fan, *many, *rest]) == (0, 0)
    assert cluster.judged(wanted, [*fan, *many, *rest, fan[0], many[1]]) == (2, 0)
    cancelled = _qarnot_task("own_pool", "group.fan", 0, "Cancelled")
    assert cluster.judged(wanted, [cancelled, *fan[1:], *many[1:], *rest]) == (0, 2)


def test_the_readme_has_what_a_new_user_needs() -> None:
    readme = new_user.README.read_text()
    qarnot = SimpleNamespace(url="http://127.0.0.1:1", token="of the local Qarnot")
    said = json.loads(new_user.connection(readme, qarnot))
    assert said["conn_type"] == "qarnot"
    assert (said["host"], said["password"]) == (qarnot.url, qarnot.token)
    dag_id, source = new_user.dag(readme)
    assert f'DAG("{dag_id}"' in source
    assert "QarnotPoolGroup" in source


def test_the_matrix_tells_what_was_not_run() -> None:
    good, bad = matrix.Outcome(True, "12 passed"), matrix.Outcome(False, "**1 failed**")
    lines = matrix.table(
        {"3.3.2 3.11": [good, bad, good, good]}, {"3.13": "no such Python here"}
    ).splitlines()
    assert "| 3.3.2 | 3.11 | 12 passed | **1 failed** | 12 passed | 12 passed |" in lines
    assert "| 3.3.2 | 3.12 |" + " not run |" * 4 in lines
    assert "| 3.1.8 | 3.13 |" + " no such Python here |" * 4 in lines
    assert len(lines) == 2 + len(matrix.RELEASES) * len(matrix.PYTHONS)


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"Requires-Dist": "apache-airflow>=3.1, requests, boto3"}, "it requires"),
        ({"Requires-Python": ">=3.9"}, "Requires-Python is >=3.9"),
        ({"Version": "0.0.9"}, "Version is 0.0.9"),
        ({"Classifier": "Typing :: Typed"}, "Framework :: Apache Airflow :: Provider"),
    ],
)
def test_metadata_that_is_wrong_is_named(metadata: dict[str, str], problem: str) -> None:
    from email.message import Message

    message = Message()
    for name, value in metadata.items():
        message[name] = value
    assert any(problem in one for one in check_wheel.of_the_metadata(message, "0.1.0"))


def test_a_file_that_does_not_belong_into_the_wheel_is_named(tmp_path: Path) -> None:
    wheel = tmp_path / "airflow_qarnot_pool-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("airflow_qarnot_pool-0.1.0.dist-info/METADATA", "Version: 0.1.0\n")
        archive.writestr("airflow_qarnot_pool-0.1.0.dist-info/entry_points.txt", "")
        archive.writestr("airflow_qarnot_pool/__init__.py", '__version__ = "0.1.0"\n')
        archive.writestr("tests/test_something.py", "")
    found = list(check_wheel.of_the_wheel(wheel))
    assert "tests/test_something.py does not belong there" in found
    assert "airflow_qarnot_pool/py.typed is missing" in found
    assert "Airflow will not find the provider: no apache_airflow_provider entry point" in found


FLAKY = """
from pathlib import Path

def test_always(): pass

def test_second_time():
    seen = Path(__file__).with_name("seen")
    assert seen.exists() or seen.touch()

def test_never(): assert not Path(__file__).with_name("broken").exists()
"""


@pytest.mark.parametrize("broken", [False, True])
def test_the_matrix_runs_what_failed_once_more_and_says_so(tmp_path: Path, broken: bool) -> None:
    (tmp_path / "test_flaky.py").write_text(FLAKY)
    if broken:
        (tmp_path / "broken").touch()
    found = matrix.tests(sys.executable, ("test_flaky.py",), tmp_path, tmp_path / "log", matrix.NOT_REAL)
    assert found.good is not broken
    assert ("2 passed" in found.text and "when run again" in found.text) is not broken


def test_the_growth_is_told_per_thousand_tasks_after_the_warm_up() -> None:
    # The first two are the warm-up: they grow a lot.
    samples = [
        {"tasks": 5.0 * n, "memory": 50.0 if n < 3 else 100 + n / 100, "files": 4} for n in range(1, 11)
    ]
    (line,) = worker_growth.table({"ours": samples}).splitlines()[2:]
    assert "| 100.0 | 100.1 | +2.0 | 4 | 4 | 4 | +0.0 |" in line


ONCE_LATE = """
import pathlib
import sys

import pytest


def tried(name):
    path = pathlib.Path(__file__).with_name(name)
    before = path.exists()
    path.touch()
    return before


@pytest.mark.parametrize("case", ["x"])
def test_late(case):
    assert tried("late")


def test_wrong():
    assert tried("wrong") and {wrong}


def test_right():
    assert not tried("right"), "it passed, and should not run again"
"""


@pytest.mark.parametrize("wrong", [False, True])
def test_a_second_run_that_hides_a_first_failure_is_counted_and_named(tmp_path: Path, wrong: bool) -> None:
    (tmp_path / "test_flaky.py").write_text(ONCE_LATE.format(wrong=not wrong))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:randomly",
        f"--rootdir={tmp_path}",
        "test_flaky.py",
    ]
    assert second_run.run([sys.executable, "-c", ""], tmp_path) == 0
    assert second_run.run(command, tmp_path) == int(wrong)
    fails_once = (
        "import pathlib, sys; p = pathlib.Path('once'); sys.exit(0 if p.exists() else p.touch() or 3)"
    )
    assert second_run.run([sys.executable, "-c", fails_once], tmp_path) == 0
    first, *lines = second_run.report(tmp_path).splitlines()
    assert first == "=== 3 needed a second run:"
    told = [line.partition("  in ")[0].split(maxsplit=1) for line in lines]
    assert told == [
        ["passed", "test_flaky.py::test_late[x]"],
        ["failed", "again test_flaky.py::test_wrong"] if wrong else ["passed", "test_flaky.py::test_wrong"],
        ["passed", "(no test)"],
    ]
    assert second_run.report(tmp_path) == "=== 0 needed a second run"


def test_no_operator_has_more_named_parameters_than_a_reader_remembers() -> None:
    found = figures.named_parameters()
    assert max(found.values()) <= 18, found


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(1000 + seconds, UTC)


def _instance(task_id: str, map_index: int, start: float, end: float) -> dict[str, Any]:
    dates = {"start_date": _at(start).isoformat(), "end_date": _at(end).isoformat()}
    return {"task_id": task_id, "map_index": map_index, **dates}


def test_the_demo_splits_the_time_between_two_stages() -> None:
    """A worker waits for the first task, and the triggerer for the second one, which is the last of its stage."""
    tasks = [
        SimpleNamespace(
            uuid=uuid,
            labels={"airflow.task_id": uuid[:-1], "airflow.map_index": uuid[-1]},
            creation_date=_at(created),
            end_date=_at(ended),
        )
        for uuid, created, ended in (("fetch0", 0, 5), ("fetch1", 0, 12), ("report0", 20, 25))
    ]
    polls = [("GET", "/tasks/fetch0", at) for at in (4.0, 4.7, 5.4)]
    polls += [("GET", "/tasks/fetch1", at) for at in (1.0, 16.0)]
    polls += [("POST", "/tasks/search", at) for at in (5.1, 11.9, 12.8)]
    polls += [("GET", "/tasks/report0", 24.9)]
    instances = [
        _instance("open_pool", -1, -9, -1),
        _instance("fetch", 0, -1, 6),
        _instance("fetch", 1, -1, 17),
        _instance("report", 0, 18, 26),
    ]
    requests = [{"method": method, "path": path, "at": 1000 + at} for method, path, at in polls]
    found = demo.endings(tasks, requests, instances)  # type: ignore[arg-type]
    assert {name: _rounded(one) for name, one in found.items()} == {
        "fetch[0]": (0.4, 0.6, None, None, None),
        "fetch[1]": (0.8, 4.2, 1.0, 2.0, 8.0),
        "report[0]": (0.0, 1.0, None, None, None),
    }


def _rounded(one: demo.Ending) -> tuple[float | None, ...]:
    parts = (one.seen, one.reported, one.scheduled, one.started, one.next_task)
    return tuple(None if part is None else round(part, 3) for part in parts)


def test_a_run_can_be_followed_with_few_changes_of_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From ``execute()`` to its first request. A step that bounces between two modules shows here."""
    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", "")  # the program sets it, and pytest restores it
    count_file_changes.main()
    found = re.search(r"execute\(\) to POST /tasks: (\d+) changes of file", capsys.readouterr().out)
    assert found is not None
    assert 0 < int(found[1]) <= 35
