"""Report progress from a node to Airflow.

The source of this module is sent to nodes, for Python 3.8 or newer, so it uses the standard library only.
"""

from __future__ import annotations

import json
import math
from typing import Any

#: Prefix of a line of standard output that contains a report.
MARK = "QARNOT_PROGRESS "
#: Maximum characters of a report, of a name in it and of a text in it, and maximum number of names.
MAX_REPORT = 4_000
MAX_NAME = 100
MAX_TEXT = 500
MAX_NAMES = 20

#: The last report of this process. The node takes that of an item from here.
last: dict[str, Any] | None = None


def report(**values: Any) -> None:
    """Print *values* as a line that Airflow shows in the task log. The last one becomes the XCom ``qarnot_progress``.

    In an array, that XCom has the last report of each item.

    .. code-block:: python

        report(progress=0.4, frames=12)

    :param values: numbers, booleans and short texts.
    :raises ValueError: a value is too long, or not finite.
    :raises TypeError: a value is something else.
    """
    global last
    text = json.dumps(values)
    last = parse_progress(text)
    print(MARK + text, flush=True)


def parse_progress(text: str) -> dict[str, Any]:
    """Return the values of a report. Raises ValueError if it is malformed, because nodes are not trusted."""
    if len(text) > MAX_REPORT:
        raise ValueError(f"a report has more than {MAX_REPORT:,} characters")
    try:
        values = json.loads(text)
    except RecursionError:
        raise ValueError("a report is nested") from None
    if not isinstance(values, dict) or not 0 < len(values) <= MAX_NAMES:
        raise ValueError(f"a report has 1 to {MAX_NAMES} named values")
    return {_checked_text(name, MAX_NAME): _checked(name, value) for name, value in values.items()}


def _checked(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return _checked_text(value, MAX_TEXT)
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ValueError(f"{name} of a report is not a finite number, a boolean or a text")


def _checked_text(text: str, limit: int) -> str:
    """Return *text*, which may be shown anywhere: without control characters and halves of characters."""
    if len(text) > limit:
        raise ValueError(f"a text of a report has more than {limit} characters")
    if not text.isprintable():
        raise ValueError("a text of a report has a control character")
    return text
