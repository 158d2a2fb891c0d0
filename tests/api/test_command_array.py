"""The shell script that runs the commands of an array, in a shell."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from airflow_qarnot_pool.api import command_array
from airflow_qarnot_pool.api.command_array import CommandItem, as_constants, pack, runner, split_command
from airflow_qarnot_pool.api.commands import MARK

SHELLS = pytest.mark.parametrize(
    "shell", [one for one in ("sh", "bash --posix", "busybox sh") if shutil.which(one.split()[0])]
)


def ran(
    shell: str, items: dict[int, CommandItem], *, size: int = 100, instance: int = 0, **variables: str
) -> str:
    """The output of an instance, with its exit code at the end."""
    constants = as_constants(command_array.ITEMS, pack(items, skip_on_exit_code=(99,))) | runner("abc", size)
    words = [*shell.split(), *shlex.split(command_array.COMMAND)[1:]]
    environment = {**os.environ, **constants, **variables, "INSTANCE_ID": str(instance)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    return f"{done.stdout}{done.returncode}"


def item(*words: str, **constants: str) -> CommandItem:
    return CommandItem(words, constants)


def reports(output: str) -> list[str]:
    return [line.removeprefix(f"{MARK}abc ") for line in output.splitlines() if line.startswith(MARK)]


@SHELLS
def test_words_reach_the_program_as_they_are_and_constants_are_replaced(shell: str) -> None:
    plain = [
        "a b",
        "$HOME",
        "`id`",
        '"q"',
        "back\\slash",
        "new\nline",
        "it's",
        "!x",
        "*",
        "$(id)",
        "${1}",
        "${A-b}",
        "",
    ]
    items = {7: item("printf", "<%s>", *plain, "${OWN}-${SHARED}-${QARNOT_ITEM}", OWN="it's $x `y`")}
    output = ran(shell, items, SHARED="two words")
    assert output.startswith("".join(f"<{word}>" for word in [*plain, "it's $x `y`-two words-7"]))


@SHELLS
def test_an_instance_runs_its_chunk_and_reports_each_item_twice(shell: str) -> None:
    items = {
        2: item("true"),
        3: item("sh", "-c", 'echo "[$N]" > "$QARNOT_RETURN_FILE"', N="5"),
        5: item("sh", "-c", "exit 4"),
        8: item("sh", "-c", "echo 1 > $QARNOT_RETURN_FILE; exit 99"),
        9: item("no-such-program"),
        11: item("sh", "-c", 'test -z "$N" && kill -9 $$'),
        12: item("cat"),
    }
    expected = [
        ["2.0.none.", "3.0.json.WzVdCg==", "5.4.none."],
        ["8.99.none.", "9.127.none.", "11.137.none."],
        ["12.0.none."],
    ]
    for instance, lines in enumerate(expected):
        output = ran(shell, items, size=3, instance=instance)
        assert reports(output) == [*lines, *lines, f"end.{instance}"]
        assert output[-1] == ("0" if instance == 2 else "1")
    skipped = ran(shell, {1: items[8]})
    assert skipped[-1] == "0"


@SHELLS
def test_values_beyond_the_limit_of_an_instance_are_reported_as_such(shell: str) -> None:
    def writes(size: int) -> CommandItem:
        return item("sh", "-c", f"head -c {size} /dev/zero > $QARNOT_RETURN_FILE")

    output = ran(shell, {0: writes(600_000), 1: writes(600_000), 2: writes(400_000)})
    assert [line[:9] for line in reports(output)][:3] == ["0.0.json.", "1.0.long.", "2.0.json."]


@SHELLS
def test_a_process_that_an_item_left_behind_does_not_write_the_value_of_the_next(
    shell: str, tmp_path: Path
) -> None:
    leaves = f"""sh -c 'until [ -e "{tmp_path}/next" ]; do sleep 0.01; done; echo 1 > $QARNOT_RETURN_FILE
touch "{tmp_path}/written"' > /dev/null 2>&1 &"""
    waits = f"""touch "{tmp_path}/next"; until [ -e "{tmp_path}/written" ]; do sleep 0.01; done"""
    output = ran(shell, {0: item("sh", "-c", leaves), 1: item("sh", "-c", waits)})
    assert reports(output)[:2] == ["0.0.none.", "1.0.none."]


@SHELLS
def test_constants_with_names_of_the_script_are_kept(shell: str) -> None:
    names = ("d", "k", "i", "c", "v", "f", "n")
    shows = item("sh", "-c", "".join(f"printf %s, ${name};" for name in names), n="own")
    assert ran(shell, {0: shows}, **dict.fromkeys(names, "x")).startswith("x," * 6 + "own,")


def test_the_script_fits_into_a_constant_that_qarnot_does_not_change() -> None:
    constants = runner("0" * 32, 10_000)
    assert all(
        len(text) < command_array.PART_LENGTH - 100 and "${" not in text for text in constants.values()
    )
    packed = pack({number: item("render", "--frame", str(number)) for number in range(10_000)})
    assert len(packed) < command_array.MAX_BYTES / 2
    assert packed == pack({number: item("render", "--frame", str(number)) for number in range(10_000)})


@pytest.mark.parametrize("command", ["a  b\t\nc", "a 'b c' \"d e\" f\\ g", "é\u00a0è", "a#b # c"])
def test_a_command_is_split_as_a_shell_does(command: str) -> None:
    assert split_command(command) == shlex.split(command)


@pytest.mark.parametrize(("command", "problem"), [("", "empty"), ([], "empty"), ("'a", "quotation")])
def test_no_command_is_made_of_this(command: str | list[str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        split_command(command)
