"""Warn about commands that need a shell but do not run in one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from airflow_qarnot_pool.parameters.dag_warnings import QarnotCommandWarning, warn_at_the_dag
from airflow_qarnot_pool.parameters.templating import is_templated

#: Templates, and constants of Qarnot, which Airflow and Qarnot replace.
_REPLACED = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}|\$\{\w+\}", re.DOTALL)
#: Escaped and quoted text. The text after an option such as ``-c`` is a program, whatever is in it.
_QUOTED = re.compile(
    r"""\\. | '[^']*' | \s-\w*[ce]\s+"(?:\\.|[^"\\])*" | (?P<expanded>"(?:\\.|[^"\\])*")""",
    re.DOTALL | re.VERBOSE,
)
#: Characters that a shell expands, in double quotes, too.
_EXPANSION = r"\$\( | ` | \$\w+ | \$[?@\#$!] | \$\{\w+[^\w}][^}]*\}"
_SHELL_CHARACTERS = re.compile(
    rf"\|\|? | && | &(?=\s|$) | ;;? | \d?>>?(?:&\d)? | <<? | {_EXPANSION} | \* | \n", re.VERBOSE
)
_EXPANDED_CHARACTERS = re.compile(rf"\\. | (?P<found>{_EXPANSION})", re.DOTALL | re.VERBOSE)
#: A shell whose program follows.
_CALLS_SHELL = re.compile(r"(?:^|[\s/])(?:ba|da|z|k|a)?sh\s(?:[^'\"]*\s)?-\w*c\s")
#: Maximum characters of a command that is searched. Qarnot takes 2,047, and a text may be made to be slow.
_MAX_SEARCHED = 2_047
#: Maximum characters of a command in a warning.
_MAX_SHOWN = 200


def find_shell_character(command: Any) -> str | None:
    """Return the first character that only a shell understands, or None.

    None for a list, whose words the program gets unchanged.
    """
    if not isinstance(command, str) or len(command) > _MAX_SEARCHED:
        return None
    unquoted = _QUOTED.sub(_expansions_in, _REPLACED.sub(".", command))
    match = _SHELL_CHARACTERS.search(unquoted.strip())
    return match[0] if match else None


def find_inserted_text(command: Any, constants: Any) -> str | None:
    """Return the first constant that is a template and that Qarnot inserts into the program of a shell, or None."""
    if not isinstance(command, str) or not isinstance(constants, Mapping) or len(command) > _MAX_SEARCHED:
        return None
    if not _CALLS_SHELL.search(command):
        return None
    names = (match[1] for match in re.finditer(r"\$\{(\w+)\}", command))
    return next((name for name in names if is_templated(constants.get(name))), None)


def warn_of_inserted_text(task_id: str, command: Any, constants: Any) -> None:
    """Warn if the text of a template becomes a part of a shell's program."""
    if (name := find_inserted_text(command, constants)) is not None:
        warn_at_the_dag(
            f"command of task {task_id} has ${{{name}}} in the program of a shell, and the constant is a template. "
            f"Qarnot inserts its text before the shell reads the program, and the shell runs what is in it. Write "
            f'"${name}" in the program.',
            QarnotCommandWarning,
        )


def _expansions_in(match: re.Match[str]) -> str:
    """Return a placeholder for quoted text, with the expansions in double quotes."""
    found = _EXPANDED_CHARACTERS.finditer(match["expanded"] or "")
    return " ".join((".", *filter(None, (expansion["found"] for expansion in found)), ""))


def warn_of_shell_characters(task_id: str, commands: Iterable[Any]) -> None:
    """Warn about the first command that needs a shell and does not call one."""
    for command in commands:
        if (character := find_shell_character(command)) is None:
            continue
        shown = command if len(command) <= _MAX_SHOWN else f"{command[:_MAX_SHOWN]}..."
        constant = f", or ${{{character[1:]}}} for a constant" if character[1:].isidentifier() else ""
        warn_at_the_dag(
            f"command of task {task_id} has shell characters but no shell, got {character!r} in {shown!r}. The "
            f"program gets them as text. Write command={'sh -c ' + shlex.quote(shown)!r}{constant}, or quote "
            "them to keep them as text.",
            QarnotCommandWarning,
        )
        return


def find_commands(*parameters: Any) -> list[Any]:
    """Return the commands among *parameters*: texts, and those in constants and specifications."""
    commands: list[Any] = [parameter for parameter in parameters if isinstance(parameter, str)]
    for parameter in parameters:
        if isinstance(parameter, Mapping):
            commands += [parameter.get("command"), parameter.get("DOCKER_CMD")]
            commands += find_commands(parameter["constants"]) if "constants" in parameter else []
    return commands
