"""``QarnotRunArrayOperator`` against the local Qarnot."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.commands import MARK
from airflow_qarnot_pool.exceptions import QarnotInvalidSpecError, QarnotTaskFailedError
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators import array as array_module
from airflow_qarnot_pool.operators.array import QarnotRunArrayOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.version_compat import AirflowSkipException
from tests.crash.children import made_for
from tests.harness import FakeTI, run

array = partial(QarnotRunArrayOperator, task_id="array")
MODES = pytest.mark.parametrize("deferrable", [True, False], ids=["deferred", "on the worker"])
RETURNS = {"return_file": True, "skip_on_exit_code": 99}
#: Leaves a mark of each execution, fails for the items 1 and 4 until a file exists, and skips 2.
STEP = """sh -c 'printf x >> "$FOLDER/$QARNOT_ITEM"; echo "item $QARNOT_ITEM"
case $QARNOT_ITEM in
[14]) [ -e "$FOLDER/ready" ] || exit 3;;
2) exit 99;;
esac
echo $((N * N)) > "$QARNOT_RETURN_FILE"'"""

#: Writes its last word.
WRITES = ["sh", "-c", 'printf %s "$1" > "$QARNOT_RETURN_FILE"', "sh", '"{% common %}"']


def executions(folder: Path) -> dict[int, int]:
    return {int(one.name): len(one.read_text()) for one in folder.iterdir() if one.name.isdigit()}


@MODES
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_a_retry_runs_exactly_the_commands_that_failed(
    pool: str,
    client: QarnotClient,
    qarnot: LocalQarnot,
    run_id: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    deferrable: bool,
    chunk_size: int | None,
) -> None:
    make = partial(
        array,
        qarnot_pool=pool,
        command=STEP,
        commands=[{"constants": {"N": str(number)}} for number in range(6)],
        constants={"FOLDER": str(tmp_path)},
        task_spec=RETURNS,
        chunk_size=chunk_size,
        deferrable=deferrable,
        retries=2,
    )
    first, second, third = (FakeTI(run_id=run_id, try_number=number, max_tries=2) for number in (1, 2, 3))
    with pytest.raises(QarnotTaskFailedError) as caught:
        run(make, first)
    text = str(caught.value)
    assert text.startswith("2 of 6 commands failed: items 1, 4. A retry runs only these again\n")
    assert "Item 4: the command exited with code 3" in text
    logged = capsys.readouterr().out
    assert f"[stdout {5 // (chunk_size or 1)}] item 5" in logged
    assert MARK not in logged
    assert "Items: 3 of 6 succeeded, 1 skipped, 2 failed" in logged
    (tmp_path / "ready").touch()
    for ti in (second, third):
        assert run(make, ti) == [0, 1, None, 9, 16, 25]
    assert executions(tmp_path) == {number: 2 if number in (1, 4) else 1 for number in range(6)}
    size = chunk_size or 1
    assert [one.instances for one in made_for(client.tasks, run_id)] == [-(-6 // size), -(-2 // size)]
    assert sum((one["method"], one["path"]) == ("POST", "/tasks") for one in qarnot.requests()) == 2


def test_the_same_commands_give_the_same_values_as_in_qarnot_tasks(pool: str, run_id: str) -> None:
    writes = """sh -c 'printf "\\"%s\\"" "$1" > "$QARNOT_RETURN_FILE"' sh """
    commands: list[Any] = [
        f"{writes} plain",
        f"{writes} 'two words'",
        f'{writes} "${{NAME}}-${{SHARED}}"',
        ["sh", "-c", 'printf 1 > "$QARNOT_RETURN_FILE"'],
        {"constants": {"NAME": "own"}},
        {"command": "true"},
    ]
    more: dict[str, Any] = {
        "qarnot_pool": pool,
        "command": """sh -c 'printf "\\"$NAME $SHARED\\"" > "$QARNOT_RETURN_FILE"'""",
        "constants": {"SHARED": "all", "NAME": "name"},
        "task_spec": {"return_file": True},
    }
    values = run(partial(array, commands=commands, **more), FakeTI(run_id=f"{run_id}-array"))
    assert values == ["plain", "two words", "name-all", 1, "own all", None]
    tasks = partial(QarnotRunTasksOperator, task_id="tasks", commands=commands, **more)
    found = run(tasks, FakeTI(run_id=f"{run_id}-tasks"))
    assert [one["value"] for one in found["results"]] == values


def test_rendered_commands_with_braces_run_as_they_are(pool: str, run_id: str) -> None:
    """Text that a template has rendered is no template, whatever is in it."""

    def make() -> Any:
        operator = array(
            qarnot_pool=pool, command="{{ it }}", commands="{{ it }}", task_spec={"return_file": True}
        )
        operator.command = WRITES
        operator.commands = [[*WRITES[:-1], '"{{ own }}"'], {}]
        return operator

    assert run(make, FakeTI(run_id=run_id)) == ["{{ own }}", "{% common %}"]


def test_without_values_the_result_counts_the_commands(pool: str, run_id: str) -> None:
    skips = ["sh -c 'exit 99'"]
    more: dict[str, Any] = {"qarnot_pool": pool, "task_spec": {"skip_on_exit_code": [98, 99]}}
    found = run(partial(array, commands=["true", *skips, "true"], **more), FakeTI(run_id=run_id))
    assert found == {"total": 3, "succeeded": 2, "failed": 0, "skipped": 1}
    with pytest.raises(AirflowSkipException, match=r"All 2 items skipped\. The command exited with code 99"):
        run(partial(array, commands=skips * 2, **more), FakeTI(run_id=f"{run_id}-all"))
    with pytest.raises(AirflowSkipException, match="commands has no items"):
        run(partial(array, commands=[], **more), FakeTI(run_id=f"{run_id}-none"))


def test_a_value_that_is_no_json_fails_its_item(pool: str, run_id: str) -> None:
    make = partial(
        array,
        qarnot_pool=pool,
        command="sh -c 'printf %s \"$TEXT\" > $QARNOT_RETURN_FILE'",
        commands=[{"constants": {"TEXT": text}} for text in ("1", "{", "[NaN]")],
        task_spec={"return_file": True},
        chunk_size=3,
    )
    with pytest.raises(QarnotTaskFailedError, match="2 of 3 commands failed: items 1, 2") as caught:
        run(make, FakeTI(run_id=run_id))
    assert "Item 1: the file QARNOT_RETURN_FILE is not JSON" in str(caught.value)
    assert "Item 2: the file QARNOT_RETURN_FILE has NaN at [0]" in str(caught.value)


def test_the_values_of_an_array_are_bounded(pool: str, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_module, "MAX_VALUES", 10)
    make = partial(
        array,
        qarnot_pool=pool,
        commands=["sh -c 'echo 123456 > $QARNOT_RETURN_FILE'"] * 2,
        task_spec={"return_file": True},
    )
    with pytest.raises(QarnotTaskFailedError, match="more than 10 characters together"):
        run(make, FakeTI(run_id=run_id))


def test_an_image_without_gzip_fails_with_its_stderr(pool: str, run_id: str, tmp_path: Path) -> None:
    gzip = tmp_path / "gzip"
    gzip.write_text("#!/bin/sh\necho no gzip here >&2; exit 127\n")
    gzip.chmod(0o700)
    make = partial(
        array, qarnot_pool=pool, commands=["true"] * 2, constants={"PATH": f"{tmp_path}:/usr/bin:/bin"}
    )
    with pytest.raises(
        QarnotTaskFailedError, match="2 of them have reported neither a result nor an error"
    ) as caught:
        run(make, FakeTI(run_id=run_id))
    assert "no gzip here" in str(caught.value)


# --- what is refused

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "text": ({"commands": "abc"}, "commands must be a list of commands, got 'abc'"),
    "a mapping": ({"commands": {"a": 1}}, "commands must be a list of commands, got dict"),
    "no command": ({"commands": [{}]}, r"commands\[0\]: command is missing"),
    "an empty command": ({"commands": ["true", []]}, r"commands\[1\]: command is missing"),
    "a number": ({"commands": [5]}, r"commands\[0\]: command is no text, got int"),
    "a NUL character": (
        {"commands": [["echo", "a\0"]]},
        r"commands\[0\]: it has a NUL character at \['command'\]\[1\]",
    ),
    "half a character": (
        {"command": "true", "commands": [{"constants": {"A": "\ud800"}}]},
        r"commands\[0\]: it has half of a surrogate pair at \['constants'\]\['A'\]",
    ),
    "half a quotation": ({"commands": ["echo 'a"]}, r"commands\[0\]: command cannot be split into words"),
    "an image of an item": (
        {"commands": ["true", {"command": "true", "image": "alpine"}]},
        r"commands\[1\]: image is not a parameter of an item.*use QarnotRunTasksOperator",
    ),
    "a misspelt name": ({"commands": [{"comand": "true"}]}, r"commands\[0\]: comand is not.*Write command\."),
    "a misspelt name beside a template": (
        {"commands": ["{{ ds }}", {"comand": "true"}]},
        r"commands\[1\]: comand is not.*Write command\.",
    ),
    "a secret of an item": (
        {"command": "true", "commands": [{"constants": {"QARNOT_SECRET__KEY": "geheim"}}]},
        r"commands\[0\]: constants has the secret QARNOT_SECRET__KEY",
    ),
    "a constant of the image": (
        {"command": "true", "commands": [{"constants": {"DOCKER_TAG": "1"}}]},
        r"commands\[0\]: constants has DOCKER_TAG, which all items share",
    ),
    "a constant with a dash": (
        {"command": "true", "commands": [{"constants": {"A-B": "1"}}]},
        r"commands\[0\]: constants has 'A-B', which is no name of a shell variable",
    ),
    "no mapping": (
        {"command": "true", "commands": [{"constants": 5}]},
        r"commands\[0\]: constants is not a mapping",
    ),
    "too many": ({"commands": ["true"] * 10_001}, "commands has 10,001 items, and 10,000 fit"),
    "small chunks": ({"commands": ["true"] * 4_097, "chunk_size": 2}, "chunk_size is too small"),
    "instance_count": ({"commands": ["true"], "instance_count": 2}, "instance_count is not a parameter"),
    "instances": (
        {"commands": ["true"], "task_spec": {"instance_count": 2}},
        "instance_count is not a parameter of an array",
    ),
    "ranges": ({"commands": ["true"], "task_spec": {"ranges": "0"}}, "ranges is not a parameter of an array"),
    "retry": ({"commands": ["true"], "task_spec": {"retry": 2}}, "retry is not a parameter of an array"),
    "snapshots": (
        {"commands": ["true"], "result_bucket": "b", "task_spec": {"snapshot_every": 60}},
        "snapshot_every is not a parameter of an array",
    ),
    "no wait": ({"commands": ["true"], "wait_for_completion": False}, "an array waits for its items"),
}


@pytest.mark.parametrize(("parameters", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_wrong_is_refused_by_name_when_the_dag_is_parsed(
    parameters: dict[str, Any], words: str
) -> None:
    with pytest.raises(QarnotInvalidSpecError, match=rf"^Task 'array'.*{words}") as caught:
        array(**parameters)
    assert "geheim" not in str(caught.value)


def test_commands_that_do_not_fit_into_constants_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_qarnot_pool.api.command_array.MAX_BYTES", 200)
    with pytest.raises(QarnotInvalidSpecError, match=r"commands has .* bytes when compressed, and 200 fit"):
        array(commands=[f"echo {number}" for number in range(100)])


def test_rendered_commands_are_checked_before_anything_is_submitted(
    pool: str, qarnot: LocalQarnot, run_id: str
) -> None:
    def make(commands: Any) -> Any:
        operator = array(qarnot_pool=pool, commands="{{ it }}")
        operator.commands = commands
        return operator

    for commands, words in (
        ("['true', {'image': 'a'}]", r"commands\[1\]: image is not"),
        (["true"] * 10_001, "has 10,001 items"),
        ("text", "must be a list"),
    ):
        with pytest.raises(QarnotInvalidSpecError, match=words):
            run(partial(make, commands), FakeTI(run_id=run_id))
    assert not [one for one in qarnot.requests() if one["path"] == "/tasks"]
    assert run(partial(make, "['true', 'true']"), FakeTI(run_id=run_id))["succeeded"] == 2
