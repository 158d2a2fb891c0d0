"""Warn of commands that are written for a shell, where none runs them."""

from __future__ import annotations

import re
import shlex
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

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
_OURS = str(Path(__file__).parent.parent)


class QarnotCommandWarning(UserWarning):
    """A command has shell characters, and no shell runs it."""


def shell_characters(command: Any) -> str | None:
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
        if (found := shell_characters(command)) is None:
            continue
        shown = command if len(command) <= _SHOWN else f"{command[:_SHOWN]}..."
        constant = f", or ${{{found[1:]}}} for a constant" if found[1:].isidentifier() else ""
        warnings.warn(
            f"command of task {task_id} has shell characters but no shell, got {found!r} in {shown!r}: the program "
            f"gets them as text. Write command={'sh -c ' + shlex.quote(shown)!r}{constant}, or quote "
            "what is meant as text.",
            QarnotCommandWarning,
            stacklevel=_level_of_author(),
        )
        return


def commands_in(*parameters: Any) -> list[Any]:
    """Return the commands in constants, in specifications, and in a list that has them as text."""
    found: list[Any] = [one for one in parameters if isinstance(one, str)]
    for one in parameters:
        if isinstance(one, Mapping):
            found += [one.get("command"), one.get("DOCKER_CMD")]
            found += commands_in(one["constants"]) if "constants" in one else []
    return found


def _level_of_author() -> int:
    """The level of the frame in which the author of the DAG makes the task, as seen from the caller."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_code.co_filename.startswith(_OURS) or "/airflow/sdk/" in frame.f_code.co_filename
    ):
        level, frame = level + 1, frame.f_back
    return level
