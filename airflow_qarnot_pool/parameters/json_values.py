"""Check that a value is JSON, and that Airflow can store it as an XCom.

Its source is sent to nodes, too, for Python 3.8 or newer, so it uses the standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

#: Maximum nesting of a value. Airflow cannot store much more.
MAX_DEPTH = 100
#: The integers that fit into the messages between Airflow's processes.
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**64 - 1


def json_problem(value: Any, path: str = "", *, for_xcom: bool = False, depth: int = 0) -> str | None:
    """Return the type in *value* that is not JSON, and its place. Never the value, which may be a secret.

    :param for_xcom: refuse values of these types, too, that Airflow cannot store.
    """
    place = " at " + path if path else ""
    if value is None or isinstance(value, (str, bool, int, float)):
        problem = _xcom_problem(value) if for_xcom else None
        return problem and problem + place
    if depth >= MAX_DEPTH:
        return f"values nested more than {MAX_DEPTH} levels deep"

    def inner(item: Any, step: Any) -> str | None:
        return json_problem(item, f"{path}[{step!r}]", for_xcom=for_xcom, depth=depth + 1)

    if isinstance(value, (list, tuple)):
        return _first(inner(item, index) for index, item in enumerate(value))
    if isinstance(value, dict):
        return _first(_key_problem(key, place, for_xcom) or inner(item, key) for key, item in value.items())
    return f"a value of type {type(value).__qualname__}{place}"


def _key_problem(key: Any, place: str, for_xcom: bool) -> str | None:
    if not isinstance(key, str):
        return f"a dict with a key of type {type(key).__name__}{place}"
    problem = _xcom_problem(key) if for_xcom else None
    return problem and f"a dict with {problem} in a key{place}"


def _xcom_problem(value: Any) -> str | None:
    """Return the reason for which Airflow cannot store *value*, which is no list and no dict."""
    if isinstance(value, str):
        # PostgreSQL stores no NUL.
        if "\0" in value:
            return "a NUL character"
        try:
            value.encode()
        except UnicodeEncodeError:
            return "half of a surrogate pair"
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinity"
    if isinstance(value, int) and not MIN_INTEGER <= value <= MAX_INTEGER:
        return "an integer of more than 64 bits"
    return None


def _first(problems: Iterable[str | None]) -> str | None:
    return next((problem for problem in problems if problem), None)
