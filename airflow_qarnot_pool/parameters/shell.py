"""Warn of commands that are written for a shell, where none runs them."""

from __future__ import annotations

import re
import shlex
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import airflow.sdk

#: What Qarnot replaces and what a template replaces, what is quoted, and what a backslash takes its meaning.
_NO_SHELL_CHARACTERS = re.compile(
    r"""\{\{.*?\}\} | \{%.*?%\} | \{\#.*?\#\} | \$\{\w+\} | \\. | '[^']*' | "(?:\\.|[^"\\])*" """,
    re.DOTALL | re.VERBOSE,
)
_SHELL_CHARACTERS = re.compile(
    r"\|\|? | && | &(?=\s|$) | ;;? | \d?>>?(?:&\d)? | <<? | \$\( | ` | \$\w+ | \* | \n", re.VERBOSE
)
#: Longest command that a warning shows in full.
_SHOWN = 200
#: Makes a warning point at the line of the DAG. Python 3.11 counts: this module, an ``__init__``, Airflow's wrapper.
_OF_THE_AUTHOR: dict[str, Any] = (
    {"skip_file_prefixes": (str(Path(__file__).parent.parent), str(Path(airflow.sdk.__file__).parent))}
    if sys.version_info >= (3, 12)
    else {"stacklevel": 4}
)


class QarnotCommandWarning(UserWarning):
    """A command has shell characters, and no shell runs it."""


def find_shell_character(command: Any) -> str | None:
    """Return the first of the characters outside quotes that mean something to a shell only, if there is one.

    The words of a list are what the program gets, so they have none.
    """
    if not isinstance(command, str):
        return None
    found = _SHELL_CHARACTERS.search(_NO_SHELL_CHARACTERS.sub("_", command).strip())
    return found[0] if found else None


def warn_of_shell_characters(task_id: str, commands: Iterable[Any]) -> None:
    """Warn once of the first command that needs a shell and names none."""
    for command in commands:
        if (found := find_shell_character(command)) is None:
            continue
        shown = command if len(command) <= _SHOWN else f"{command[:_SHOWN]}..."
        constant = f", or ${{{found[1:]}}} for a constant" if found[1:].isidentifier() else ""
        warnings.warn(
            f"command of task {task_id} has shell characters but no shell, got {found!r} in {shown!r}: the program "
            f"gets them as text. Write command={'sh -c ' + shlex.quote(shown)!r}{constant}, or quote "
            "what is meant as text.",
            QarnotCommandWarning,
            **_OF_THE_AUTHOR,
        )
        return


def find_commands(*parameters: Any) -> list[Any]:
    """Return the commands in constants, in specifications, and in a list that has them as text."""
    found: list[Any] = [one for one in parameters if isinstance(one, str)]
    for one in parameters:
        if isinstance(one, Mapping):
            found += [one.get("command"), one.get("DOCKER_CMD")]
            found += find_commands(one["constants"]) if "constants" in one else []
    return found
