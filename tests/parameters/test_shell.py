"""Commands with shell characters and no shell are warned of when the DAG is parsed."""

from __future__ import annotations

import shlex
import time
import warnings
from typing import Any

import pytest
from airflow.sdk import DAG, task

from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.parameters.dag_warnings import QarnotCommandWarning
from airflow_qarnot_pool.parameters.shell import find_inserted_text, find_shell_character
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

NEEDS_A_SHELL = {
    "echo a | wc -l": "|",
    "a|b": "|",
    "a || b": "||",
    "mkdir x && cd x": "&&",
    "a; b": ";",
    "sleep 5 &": "&",
    "echo a > out": ">",
    "echo a >> out": ">>",
    "make 2>err": "2>",
    "make 2>&1": "2>&1",
    "sort < in": "<",
    "echo $HOME": "$HOME",
    "echo frame $INSTANCE_ID": "$INSTANCE_ID",
    "echo $(date)": "$(",
    "echo `date`": "`",
    "ls *.png": "*",
    "echo one\necho two": "\n",
    "sh -c echo a | wc -l": "|",
    "sh -c 'echo a' | wc -l": "|",
    "echo {{ ds | upper }} | wc -l": "|",
    'echo "a b" ${NAME} > out': ">",
    'echo "$HOME"': "$HOME",
    'echo "in ${NAME} it is `date`"': "`",
    'echo "today: $(date)"': "$(",
    "echo ${HOME:-nowhere}": "${HOME:-nowhere}",
    'mv a "${NAME%.png}.jpg"': "${NAME%.png}",
    "echo $?": "$?",
    'run "$@"': "$@",
}
NEEDS_NONE = [
    "sh -c 'echo a | wc -l'",
    'bash -c "ls *.png > all.txt && echo $HOME; sleep 1 &"',
    "sh -c 'echo frame $INSTANCE_ID'",
    'perl -e "print $x"',
    'bash -lc "echo $(date)"',
    'echo "${NAME} \\$HOME {{ macros.f("$x") }} a|b *"',
    "awk '{print $1}' file",
    "echo 'a | b' \"c > d\" e\\;f",
    "echo ${INSTANCE_ID} ${NAME}",
    "echo {{ ds | upper }} {% if a < b %}c{% endif %} {# a | b #}",
    "curl https://h/p?a=1&b=2#c",
    "ffmpeg -i in-%03d.png -vf scale=320:-1 out.mp4",
    "python -m tool --name=a,b --at 10:00 (x) [y] ~z !w",
    "\n  echo a  \n",
    "",
    "echo it's",
    ["echo", "a | b"],
    None,
    5,
    {"a": "b | c"},
]


@pytest.mark.parametrize(("command", "found"), NEEDS_A_SHELL.items())
def test_shell_characters_outside_quotes_are_found(command: str, found: str) -> None:
    assert find_shell_character(command) == found
    assert find_shell_character(f"sh -c {shlex.quote(command)}") is None, "what the warning says to write"


@pytest.mark.parametrize("command", NEEDS_NONE, ids=repr)
def test_quotes_constants_templates_and_lists_are_none(command: Any) -> None:
    assert find_shell_character(command) is None


@pytest.mark.parametrize("part", ["{{", "{%", '"', "'", "${", "\\\\", '-c "'])
def test_no_command_is_slow_to_search(part: str) -> None:
    started = time.process_time()
    find_shell_character(part * 100_000)
    find_shell_character((part * 2047)[:2047])
    assert time.process_time() - started < 5


def one(command: Any) -> None:
    QarnotRunTaskOperator(task_id="t", command=command)


def many(command: Any) -> None:
    QarnotRunTasksOperator(task_id="t", commands=["true", {"command": command}, command, command])


def mapped(command: Any) -> None:
    with QarnotPoolGroup("g", prefix_group_id=False):
        QarnotRunTaskOperator.partial(task_id="t").expand(command=["true", command, command])


def mapped_rows(command: Any) -> None:
    with QarnotPoolGroup("g", prefix_group_id=False):
        QarnotRunTaskOperator.partial(task_id="t").expand_kwargs([{"command": "true"}, {"command": command}])


def of_a_mapped_task(command: Any) -> None:
    with QarnotPoolGroup("g", prefix_group_id=False):
        QarnotRunTaskOperator.partial(task_id="t", command=command).expand(constants=[{"A": "b"}])


def by_constant(command: Any) -> None:
    QarnotRunTaskOperator(task_id="t", constants={"DOCKER_CMD": command})


def by_specification(command: Any) -> None:
    QarnotRunTaskOperator(task_id="t", task_spec={"command": command})


WAYS = [one, many, mapped, mapped_rows, of_a_mapped_task, by_constant, by_specification]


@pytest.mark.parametrize("way", WAYS)
def test_the_warning_comes_once_at_parse_and_says_what_to_write(way: Any) -> None:
    with DAG("d", schedule=None), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        way("echo a | wc -l")
    (warning,) = [one for one in caught if one.category is QarnotCommandWarning]
    assert warning.filename == __file__, "the line of the author"
    said = str(warning.message)
    assert said.startswith("command of task t has shell characters but no shell, got '|' in 'echo a | wc -l'")
    assert "sh -c 'echo a | wc -l'" in said


@pytest.mark.parametrize("way", WAYS)
def test_a_command_with_a_shell_is_no_matter(way: Any) -> None:
    with DAG("d", schedule=None), warnings.catch_warnings():
        warnings.simplefilter("error", QarnotCommandWarning)
        way("sh -c 'echo a | wc -l'")


def test_a_variable_of_the_shell_may_be_a_constant() -> None:
    with pytest.warns(QarnotCommandWarning, match=r"or \$\{INSTANCE_ID\} for a constant"), DAG("d"):
        one("echo frame $INSTANCE_ID")


#: Commands with the constant SCENE, and whether a shell runs its text.
INSERTED: dict[str, bool] = {
    "sh -c 'echo \"${SCENE}\"'": True,
    "/bin/bash -ec 'echo ${SCENE}'": True,
    "sh -c 'echo \"$SCENE\"'": False,
    "sh -c 'echo ${INSTANCE_ID}'": False,
    "render ${SCENE}": False,
    "push -c ${SCENE}": False,
}


@pytest.mark.parametrize(("command", "is_inserted"), INSERTED.items())
def test_text_of_a_template_in_the_program_of_a_shell_is_warned_of(command: str, is_inserted: bool) -> None:
    constants = {"SCENE": "{{ params.scene }}"}
    assert find_inserted_text(command, constants) == ("SCENE" if is_inserted else None)
    assert find_inserted_text(command, {"SCENE": "castle"}) is None
    with DAG("d", schedule=None), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", QarnotCommandWarning)
        QarnotRunTaskOperator(task_id="t", command=command, constants=constants)
    said = [str(one.message) for one in caught if one.category is QarnotCommandWarning]
    assert [one for one in said if 'Write "$SCENE" in the program' in one] == said[: 1 if is_inserted else 0]


def test_a_function_on_a_node_is_no_matter() -> None:
    with DAG("d", schedule=None), warnings.catch_warnings():
        warnings.simplefilter("error", QarnotCommandWarning)

        @task.qarnot
        def function() -> None: ...

        function()
