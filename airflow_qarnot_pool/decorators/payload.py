"""A function call packed into constants of a Qarnot task, and its report found in what the task wrote.

Qarnot takes 150 constants per task, each of at most 2048 characters, the command among them. All of this is the
same in every try, so that a retry recognises the Qarnot task of the try before.
"""

from __future__ import annotations

import base64
import hashlib
import inspect
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError, QarnotProtocolError, shortened
from airflow_qarnot_pool.api.limits import decompress, parse_json
from airflow_qarnot_pool.decorators import node
from airflow_qarnot_pool.decorators.function import FunctionSource

Serializer = Literal["json", "pickle"]

#: What one constant holds, how many the payload may take of Qarnot's 150, and what that is in bytes.
PART_LENGTH = 2048
MAX_PARTS = 128
MAX_BYTES = MAX_PARTS * PART_LENGTH * 3 // 4
#: Maximum bytes of a report. Escaped for JSON, the longest result takes twice as many characters as it has.
MAX_REPORT = 2 * node.MAX_RESULT + 1_000_000
#: Maximum characters of a report as it is printed: base64 of what compression can make no smaller.
MAX_ENCODED = 2 * MAX_REPORT

#: What the instance runs; all the rest is in the constants. No ${...} in it, which Qarnot would replace.
COMMAND = (
    "python3 -c '"
    'import base64,json,os,zlib;e=os.environ;n="AIRFLOW_QARNOT_PY_";f=e.get(n+"FILE");'
    'd=open(os.path.join(e.get("TASK_PATH")or".",f),"rb").read()if f else '
    'base64.urlsafe_b64decode("".join(e[n+str(i)]for i in range(int(e[n+"PARTS"]))));'
    'p=json.loads(zlib.decompress(d));g={"__name__":"airflow_qarnot_node"};exec(p["node"],g);g["main"](p)'
    "'"
)


def arguments_text(args: Sequence[Any], kwargs: Mapping[str, Any], serializer: Serializer, name: str) -> str:
    """The arguments as text.

    :raises QarnotInvalidSpecError: names the argument that cannot be sent, and never shows its value.
    """
    if serializer == "pickle":
        try:
            return node.encode((tuple(args), dict(kwargs)), "pickle", "")
        except Exception as error:
            raise QarnotInvalidSpecError(
                f"@task.qarnot: the arguments of {name}() cannot be pickled ({type(error).__name__})",
                field="op_kwargs",
            ) from None
    positions = [_plain(one) for one in args]
    names = {key: _plain(one) for key, one in kwargs.items()}
    for label, value in [*((f"number {n}", v) for n, v in enumerate(positions, 1)), *names.items()]:
        if problem := node.json_problem(value):
            raise QarnotInvalidSpecError(
                f"@task.qarnot: argument {label} of {name}() is {problem}, which is not JSON. Give plain values "
                "(text, numbers, lists, dicts with text keys), or serializer='pickle'",
                field="op_kwargs",
            )
    return json.dumps([positions, names])


def _plain(value: Any) -> Any:
    """*value* with lists for what only behaves like one, such as the results of mapped tasks."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, range)):
        return [_plain(one) for one in value]
    return value


def pack(
    function: FunctionSource,
    arguments: str,
    *,
    nonce: str,
    serializer: Serializer,
    requirements: Sequence[str],
    timeout: timedelta | None,
    result_file: str | None,
) -> bytes:
    """Everything the node needs, compressed."""
    payload = {
        "node": inspect.getsource(node),
        "function": function.to_json(),
        "arguments": arguments,
        "nonce": nonce,
        "serializer": serializer,
        "requirements": list(requirements),
        "timeout": None if timeout is None else timeout.total_seconds(),
        "result_file": result_file,
    }
    return zlib.compress(json.dumps(payload).encode(), 9)


def constants(packed: bytes) -> dict[str, str]:
    """*packed* as constants.

    The alphabet has no '/' and no '$': both have a meaning in constants.
    """
    text = base64.urlsafe_b64encode(packed).decode()
    parts = [text[start : start + PART_LENGTH] for start in range(0, len(text), PART_LENGTH)]
    return {
        node.PREFIX + "PARTS": str(len(parts)),
        **{f"{node.PREFIX}{index}": part for index, part in enumerate(parts)},
    }


def digest(*parts: str | bytes) -> str:
    """32 hex digits of a hash."""
    return hashlib.sha256(
        b"\0".join(part if isinstance(part, bytes) else part.encode() for part in parts)
    ).hexdigest()[:32]


class ReportFinder:
    """Find the report of the node in standard output while that passes by.

    The last report counts, as Qarnot keeps the attempts of an instance in one output.
    """

    def __init__(self, nonce: str) -> None:
        self._mark = f"{node.MARK} {nonce} "
        self._line = re.compile(rf"^{re.escape(self._mark)}([A-Za-z0-9_=-]+)", re.MULTILINE)
        #: The report; None if there is none, or none that can be read.
        self.report: dict[str, Any] | None = None
        #: Why the last report cannot be read.
        self.problem = ""
        #: Whether the output has been read to its end.
        self.complete = False

    def watch(self, pieces: Iterable[str]) -> Iterator[str]:
        """Yield *pieces*, and look at them."""
        self.report, self.problem, self.complete = None, "", False
        rest = ""
        for piece in pieces:
            yield piece
            lines, newline, last = (rest + piece).rpartition("\n")
            if newline:
                self._search(lines)
            known = min(len(last), len(self._mark))
            if last[:known] != self._mark[:known]:
                rest = "."  # in the middle of another line
            elif len(last) > MAX_ENCODED:
                self.report, self.problem, rest = None, f"it has more than {MAX_ENCODED:,} characters", "."
            else:
                rest = last
        self._search(rest)
        self.complete = True

    def _search(self, lines: str) -> None:
        for found in self._line.finditer(lines):
            self.report, self.problem = None, ""
            try:
                self.report = _report(found[1])
            except ValueError as error:
                self.problem = str(error)


def _report(encoded: str) -> dict[str, Any]:
    """Decode a report. Raises ValueError for what :mod:`~airflow_qarnot_pool.decorators.node` does not write."""
    if len(encoded) > MAX_ENCODED:
        raise ValueError(f"it has more than {MAX_ENCODED:,} characters")
    report = parse_json(decompress(base64.urlsafe_b64decode(encoded), MAX_REPORT))
    for fields in (("value",), ("file", "sha256")):
        if isinstance(report, dict) and all(isinstance(report.get(one), str) for one in fields):
            return report
    error = report.get("error") if isinstance(report, dict) else None
    if isinstance(error, dict) and all(isinstance(error.get(one), str) for one in ("summary", "detail")):
        return {"error": error}
    raise ValueError("it is not what the node writes")


def value_of(text: str, serializer: Serializer, name: str) -> Any:
    """Return the result of the function *name*; unpickled only if the author of the DAG asked for pickle.

    :raises QarnotProtocolError: it cannot be decoded here.
    """
    try:
        return node.decode(text, serializer)
    except Exception as error:
        missing = isinstance(error, (ImportError, AttributeError))
        raise QarnotProtocolError(
            f"The result of {name}() cannot be decoded from {serializer} ({type(error).__name__}: "
            f"{shortened(str(error), 500)})",
            remedy="Return plain values, or install here what the result is made of."
            if missing
            else "Return plain values that are not deeply nested.",
        ) from None
