"""Which functions can travel to a node, and as what text. They need neither Airflow nor a server."""

from __future__ import annotations

import functools
import json
import linecache
import math
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from airflow_qarnot_pool.decorators import node
from airflow_qarnot_pool.decorators.function import FunctionSource
from airflow_qarnot_pool.exceptions import QarnotInvalidSpecError
from airflow_qarnot_pool.parameters import json_values

LIMIT = 3


def marked(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inner(*args: Any) -> Any:
        return function(*args)

    return inner


def on_node(function: Callable[..., Any]) -> Any:
    """The function as the node makes it from its text."""
    return node.load(FunctionSource.of(function).to_json())


def test_a_function_is_made_anew_from_its_text() -> None:
    def add(a: int, b: int = 2, *rest: int, c: int = 4) -> int:
        return a + b + sum(rest) + c

    assert on_node(add)(1, 2, 3, c=5) == 11
    assert on_node(add) is not add


def test_decorators_stay_here() -> None:
    @marked
    @marked
    def one() -> int:
        return 1

    assert FunctionSource.of(one).source.lstrip().startswith("def one()")


TRACE = """Traceback (most recent call last):
  |   File "dag.py", line {first}, in f
  File "dag.py", line {twelfth}, in inner
  File "/modules/dag.py", line 12, in helper
  File "another.py", line 2, in helper
ValueError: see File "dag.py", line 3
"""


def test_a_traceback_has_the_lines_of_the_file() -> None:
    source = FunctionSource(name="f", source="", file="dag.py", line=40)
    of_the_node = TRACE.format(first=1, twelfth=12)
    assert source.with_lines_of_file(of_the_node) == TRACE.format(first=40, twelfth=51)


def test_lines_above_a_function_do_not_change_what_is_sent(tmp_path: Path) -> None:
    sent = []
    for above in ("", "\n\nimport os\n"):
        file = tmp_path / "moved.py"
        file.write_text(f"{above}def f():\n    return 1\n")
        linecache.checkcache()
        source = FunctionSource.of(runpy.run_path(str(file))["f"])
        sent.append((source.to_json(), source.line))
    (first, line), (second, moved) = sent
    assert first == second
    assert (line, moved) == (1, 4)


def test_text_that_spans_lines_is_kept_as_it_is() -> None:
    def query() -> str:
        return """select
            1
  from here
"""

    assert on_node(query)() == query()


def test_everything_a_function_may_define_itself_is_fine() -> None:
    def busy(values: list[Any], depth: int = 0) -> Any:
        import json as j
        from os import path

        global seen
        seen = 1

        class Pair:
            kind = "pair"
            label = kind + __qualname__

            def get(self) -> int:
                return seen

        def inner(n: int) -> int:
            nonlocal depth
            depth += n
            return depth

        try:
            total = sum(x for x in values if (y := x) or y)
        except (ValueError, KeyError) as error:
            raise RuntimeError(error) from error
        with open(path.devnull) as file:
            file.read()
        match total:
            case int() as number if number > 100:
                return busy([number // 2], depth)
            case _:
                pass
        return [j.dumps(total), Pair().get(), inner(2), f"{[n + 1 for n in values]!r:>10}", __name__]

    assert on_node(busy)([1, 2])[:3] == ["3", 1, 2]


def test_annotations_may_name_what_the_node_does_not_have() -> None:
    def annotated(path: Callable[..., Any], *more: FunctionSource) -> math.nowhere:  # type: ignore
        count: FunctionSource = path  # type: ignore[assignment]
        return count

    assert on_node(annotated)(1) == 1


def test_an_async_function_travels_too() -> None:
    async def later() -> int:
        return 1

    assert FunctionSource.of(later).source.lstrip().startswith("async def later")


def a_global() -> int:
    return LIMIT


def an_import() -> float:
    return math.pi


def a_default(limit: int = LIMIT) -> int:
    return limit


def deep_inside() -> Any:
    def inner() -> Any:
        return [math.sqrt(x) for x in range(3)]

    return inner()


def closing_over() -> Callable[..., Any]:
    secret = 1

    def closure() -> int:
        return secret

    return closure


def from_nowhere() -> Callable[..., Any]:
    names: dict[str, Any] = {}
    exec("def nowhere():\n    return 1", names)
    made: Callable[..., Any] = names["nowhere"]
    return made


REFUSED: dict[str, tuple[Any, str]] = {
    "a global": (a_global, "'LIMIT'"),
    "a module imported outside": (an_import, "'math'"),
    "a default": (a_default, "'LIMIT'"),
    "a name in a nested function": (deep_inside, "'math'"),
    "a closure": (closing_over(), "'secret'"),
    "a lambda": (lambda x: x, "lambda"),
    "no source": (from_nowhere(), "no source"),
    "a partial": (functools.partial(a_global), "partial"),
    "a class": (dict, "class"),
    "a method": (FunctionSource.of, "method"),
    "a builtin": (len, "builtin"),
    "wrapped": (wrapped(on_node), "another decorator"),
}


@pytest.mark.parametrize(("function", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_an_object_that_cannot_be_sent_is_refused_by_name(function: Any, named: str) -> None:
    with pytest.raises(QarnotInvalidSpecError, match=named) as caught:
        FunctionSource.of(function)
    assert caught.value.field == "python_callable"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"a": [1, (2.5, None)], "b": True}, None),
        ({"a": [1, {"b": {1}}]}, "a value of type set at ['a'][1]['b']"),
        ({"a": {1: "secret"}}, "a dict with a key of type int at ['a']"),
        (b"secret", "a value of type bytes"),
        ([math.nan, "\ud800", 2**64], None),
    ],
)
def test_a_value_that_is_not_json_is_named_by_its_place(value: Any, problem: str | None) -> None:
    assert json_values.json_problem(value) == problem


def nested(levels: int) -> Any:
    value: Any = None
    for _ in range(levels):
        value = [value]
    return value


UNFIT_FOR_XCOM: dict[str, tuple[Any, str]] = {
    "not a number": ({"a": [0, 1, 2, math.nan]}, "NaN at ['a'][3]"),
    "infinity": ([-math.inf], "infinity at [0]"),
    "half a character": ({"a": "x\ud800"}, "half of a surrogate pair at ['a']"),
    "half a character in a key": (
        {"a": {"\udc00": 1}},
        "a dict with half of a surrogate pair in a key at ['a']",
    ),
    "NUL": ("a\0b", "a NUL character"),
    "a large integer": ([2**64], "an integer of more than 64 bits at [0]"),
    "a large negative integer": (-(2**63) - 1, "an integer of more than 64 bits"),
    "too deep": (nested(101), "values nested more than 100 levels deep"),
}


@pytest.mark.parametrize(("value", "problem"), UNFIT_FOR_XCOM.values(), ids=UNFIT_FOR_XCOM.keys())
def test_a_result_that_airflow_cannot_store_is_named_by_its_place(value: Any, problem: str) -> None:
    assert json_values.json_problem(value, for_xcom=True) == problem
    with pytest.raises((TypeError, ValueError), match=f"^f[(][)] returned {re.escape(problem)}, which "):
        node.encode(value, "json", "f() returned")


FIT_FOR_XCOM = (2**64 - 1, -(2**63), -0.0, True, "\U0001f600 \ud7ff", {"": [None, 1e308]}, nested(100))


@pytest.mark.parametrize("value", FIT_FOR_XCOM, ids=range(len(FIT_FOR_XCOM)))
def test_a_result_that_the_node_accepts_passes_the_messages_of_airflow(value: Any) -> None:
    text = node.encode(value, "json", "f() returned")
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(json.loads(text)))
    # The api-server refuses what json.dumps refuses.
    assert sent == value
    json.dumps(sent, allow_nan=False).encode()
