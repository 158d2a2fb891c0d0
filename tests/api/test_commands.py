"""The script that reports what a command returned, in the shells of this machine."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.api import commands
from airflow_qarnot_pool.api.commands import (
    MARK,
    MAX_VALUE,
    SCRIPT,
    SNAPSHOT_FOLDER,
    CommandReport,
    parse_report,
)
from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.specs import TaskSpec

SHELLS = [shell for name in ("sh", "dash", "bash", "busybox") if (shell := shutil.which(name)) is not None]


def constants_of(command: str, **fields: Any) -> dict[str, str]:
    return TaskSpec.from_mapping({"name": "n", "command": command, **fields}).all_constants()


def ran(constants: Mapping[str, str], shell: str, tmp_path: Path) -> tuple[int, str, str]:
    """Run a command as Qarnot does. Return its exit code, its output without the report, and the report."""
    words = shlex.split(constants["DOCKER_CMD"])
    assert words[0] == "sh"
    words[:1] = [shell, "sh"] if shell.endswith("busybox") else [shell]
    env = {**constants, "PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
    done = subprocess.run(words, env=env, stdout=subprocess.PIPE, text=True, check=False)
    output, _, report = done.stdout.rpartition("\n" + MARK)
    assert os.listdir(tmp_path) == []
    return done.returncode, output, report


CASES: dict[str, tuple[str, dict[str, Any], int, CommandReport]] = {
    "a value": (
        'sh -c \'echo "{\\"a\\": [1, \\"é?>\\"]}" > $QARNOT_RETURN_FILE\'',
        {},
        0,
        CommandReport(0, '{"a": [1, "é?>"]}\n'),
    ),
    "no value": ("true", {}, 0, CommandReport(0, None)),
    "an empty file": ("sh -c ': > $QARNOT_RETURN_FILE'", {}, 0, CommandReport(0, None)),
    "a failure": ("sh -c 'echo 1 > $QARNOT_RETURN_FILE; exit 3'", {}, 3, CommandReport(3, "1\n")),
    "not found": ("no-such-program", {}, 127, CommandReport(127, None)),
    "a skip": ("sh -c 'exit 99'", {"skip_on_exit_code": 99}, 0, CommandReport(99, None)),
    "another code": ("sh -c 'exit 9'", {"skip_on_exit_code": [99, 19]}, 9, CommandReport(9, None)),
    "killed": ("sh -c 'kill -9 $$'", {"skip_on_exit_code": 99}, 137, CommandReport(137, None)),
}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(("command", "fields", "code", "report"), CASES.values(), ids=CASES.keys())
def test_a_command_reports_its_code_and_value(
    shell: str, command: str, fields: dict[str, Any], code: int, report: CommandReport, tmp_path: Path
) -> None:
    constants = constants_of(command, return_file=True, **fields)
    assert "${" not in constants[SCRIPT]
    exit_code, _, encoded = ran(constants, shell, tmp_path)
    assert (exit_code, parse_report(encoded.strip())) == (code, report)


def test_constants_with_names_of_the_script_are_kept(tmp_path: Path) -> None:
    names = ("d", "c", "f")
    command = shlex.join(["sh", "-c", "printf %s $d$c$f"])
    constants = constants_of(command, return_file=True, constants=dict.fromkeys(names, "x"))
    assert ran(constants, "sh", tmp_path)[1] == "xxx"


def test_words_reach_the_command_as_they_are(tmp_path: Path) -> None:
    words = ["printf", "%s|", "a b", "$HOME", "*", "'", '"', "", "\\"]
    constants = constants_of(shlex.join(words), skip_on_exit_code="7")
    assert ran(constants, "sh", tmp_path) == (0, "a b|$HOME|*|'|\"||\\|", "0.none.\n")


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("reports", [False, True], ids=["plain", "with a value"])
def test_a_command_starts_with_the_files_of_a_snapshot(shell: str, reports: bool, tmp_path: Path) -> None:
    here, folder = tmp_path / "a place", tmp_path / "a place" / SNAPSHOT_FOLDER
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / ".step").write_text("2")
    (folder / "input").write_text("changed")
    (here / "input").write_text("as it came")
    constants = constants_of(
        "sh -c 'find . -type f | sort; cat input'", return_file=reports, snapshot_every=60, result_bucket="b"
    )
    assert "${" not in constants[SCRIPT]
    env = {"PATH": os.environ["PATH"], SCRIPT: constants[SCRIPT]}
    for place in ({"TASK_PATH": str(here)}, {}):  # the second run has no snapshot
        words = [shell, *shlex.split(constants["DOCKER_CMD"])[0 if shell.endswith("busybox") else 1 :]]
        done = subprocess.run(
            words, env={**env, **place}, cwd=here, stdout=subprocess.PIPE, text=True, check=True
        )
        assert done.stdout.partition("\n" + MARK)[0] == "./deep/.step\n./input\nchanged"
    folder.write_text("a file of this name is left alone")
    assert subprocess.run(words, env=env, cwd=here, stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_a_value_that_is_too_large_is_refused(tmp_path: Path) -> None:
    command = f"sh -c 'head -c {3 * MAX_VALUE} /dev/zero > $QARNOT_RETURN_FILE'"
    _, _, encoded = ran(constants_of(command, return_file=True), "sh", tmp_path)
    assert len(encoded) < commands.MAX_REPORT
    with pytest.raises(ValueError, match="more than 1,000,000 bytes"):
        parse_report(encoded.strip())


@pytest.mark.parametrize(
    "encoded",
    ["", ".", "0", "x.none.", "0.json.", "0.other.", "1234.none.", "0.json._w==", "-1.none."],
)
def test_a_malformed_report_is_refused(encoded: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_report(encoded)


def test_a_command_without_a_report_is_sent_as_it_is() -> None:
    for fields in ({}, {"return_file": False}, {"skip_on_exit_code": []}, {"skip_on_exit_code": None}):
        assert constants_of("echo a", **fields) == {"DOCKER_CMD": "echo a"}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "code 0": ({"skip_on_exit_code": 0}, "between 1 and 255"),
    "a large code": ({"skip_on_exit_code": [256]}, "between 1 and 255"),
    "not a code": ({"skip_on_exit_code": "no"}, "whole number"),
    "instances": ({"return_file": True, "instance_count": 2}, "return_file is given for several instances"),
    "another instance": ({"skip_on_exit_code": 99, "ranges": "1"}, "skip_on_exit_code is given for several"),
    "no command": ({"return_file": True, "command": None}, "without a command"),
    "its own script": ({"return_file": True, "constants": {SCRIPT: "x"}}, "command= sets too"),
    "a long command": ({"return_file": True, "command": "x" * 2040}, "characters"),
}


@pytest.mark.parametrize(("fields", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_a_report_that_cannot_be_read_is_refused_first(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(QarnotInvalidSpecError, match=named):
        TaskSpec.from_mapping({"name": "n", "command": "c", **fields})
