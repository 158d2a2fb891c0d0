"""Texts from Qarnot and Airflow as the Pools page shows them: bounded, and without characters that change others."""

from __future__ import annotations

import re
from datetime import datetime
from urllib.parse import quote

#: Maximum characters of a name, of the text of a warning, and of an error.
MAX_NAME = 250
MAX_WARNING = 500
MAX_ERROR = 2_000
#: Control characters, marks that change the direction of the text around them, separators that are line ends for some
#: programs, and halves of surrogate pairs, which cannot be encoded. Tab and line feed are harmless in a block of text.
_BLOCK_HARMFUL = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
_HARMFUL_IN_BLOCK = re.compile(f"[{_BLOCK_HARMFUL}]")
_HARMFUL_IN_LINE = re.compile(f"[\t\n{_BLOCK_HARMFUL}]")
_LINE_END = re.compile("\r+\n?")
#: Sequences of terminals: those with parameters (colours, moves), titles and links, and short ones.
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")
_VARYING = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|\d+")


def clean_line(text: str, limit: int = MAX_NAME) -> str:
    """Return *text* in one line of at most *limit* characters. Each harmful character becomes U+FFFD."""
    return _HARMFUL_IN_LINE.sub("\ufffd", _clamp(text, limit))


def clean_block(text: str, limit: int = MAX_ERROR) -> str:
    """Do the same, but keep tabs and line ends. Carriage returns become line ends, and ANSI sequences are dropped."""
    lines = _LINE_END.sub("\n", _ANSI.sub("", text))
    return _HARMFUL_IN_BLOCK.sub("\ufffd", _clamp(lines, limit))


def clean_label(text: str | None) -> str | None:
    """Return the value of a label for display; None if it is missing."""
    return None if text is None else clean_line(text)


def _clamp(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def shape_of(text: str) -> str:
    """Return *text* without the numbers and uuids that differ between errors of the same kind."""
    return _VARYING.sub("#", text)


def plural(count: int, noun: str) -> str:
    """Return ``1 slot`` or ``2 slots``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def to_iso(moment: datetime | None) -> str | None:
    """Return a time in whole seconds as ISO text."""
    return None if moment is None else moment.isoformat(timespec="seconds")


def run_link(dag_id: str | None, run_id: str | None) -> str | None:
    """Return the path of a DAG run in the Airflow UI, relative to the UI."""
    if not dag_id or not run_id:
        return None
    return f"dags/{quote(dag_id, safe='', errors='replace')}/runs/{quote(run_id, safe='', errors='replace')}"


def task_link(
    dag_id: str | None, run_id: str | None, task_id: str | None, map_index: str | None
) -> str | None:
    """Return the path of a task instance in the Airflow UI, relative to the UI."""
    run = run_link(dag_id, run_id)
    if run is None or not task_id:
        return run
    mapped = (
        f"/mapped/{quote(map_index, safe='', errors='replace')}" if map_index not in (None, "", "-1") else ""
    )
    return f"{run}/tasks/{quote(task_id, safe='', errors='replace')}{mapped}"
