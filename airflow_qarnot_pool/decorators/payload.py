"""Pack a function call into constants of a Qarnot task, and find its report in the output of the task.

Qarnot accepts 150 constants per task, including the command, with at most 2048 characters each. The constants are the
same in every try, because a retry recognizes the Qarnot task of the previous try by them.
"""

from __future__ import annotations

import base64
import hashlib
import inspect
import json
import zlib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal

from airflow_qarnot_pool import progress
from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError, QarnotProtocolError, shortened
from airflow_qarnot_pool.api.limits import decompress, parse_json
from airflow_qarnot_pool.decorators import node
from airflow_qarnot_pool.decorators.function import FunctionSource
from airflow_qarnot_pool.logs.report import LineFinder
from airflow_qarnot_pool.parameters import array_rounds, json_values

Serializer = Literal["json", "pickle"]

#: Maximum bytes of a report, because the longest result has twice as many characters when escaped for JSON.
MAX_REPORT = 2 * node.MAX_RESULT + 1_000_000
#: Maximum characters of a printed report, which is base64 of data that may be incompressible.
MAX_ENCODED = 2 * MAX_REPORT

#: The command of the instance. Everything else is in the constants. It contains no ${...}, which Qarnot would replace.
COMMAND = (
    "python3 -c '"
    'import base64,json,os,zlib;e=os.environ;n="AIRFLOW_QARNOT_PY_";f=e.get(n+"FILE");'
    'd=open(os.path.join(e.get("TASK_PATH")or".",f),"rb").read()if f else '
    'base64.urlsafe_b64decode("".join(e[n+str(i)]for i in range(int(e[n+"PARTS"]))));'
    'p=json.loads(zlib.decompress(d));g={"__name__":"airflow_qarnot_node"};exec(p["node"],g);g["main"](p)'
    "'"
)


def arguments_text(args: Sequence[Any], kwargs: Mapping[str, Any], serializer: Serializer, name: str) -> str:
    """Return the arguments as text.

    :raises QarnotInvalidSpecError: an argument cannot be sent. The message names it and never shows its value.
    """
    if serializer == "pickle":
        try:
            return node.encode((tuple(args), dict(kwargs)), "pickle", "")
        except Exception as error:
            raise QarnotInvalidSpecError(
                f"@task.qarnot: the arguments of {name}() cannot be pickled ({type(error).__name__})",
                field="op_kwargs",
            ) from None
    positional = [_plain(value) for value in args]
    named = {key: _plain(value) for key, value in kwargs.items()}
    for label, value in [*((f"number {n}", v) for n, v in enumerate(positional, 1)), *named.items()]:
        if problem := json_values.json_problem(value):
            raise QarnotInvalidSpecError(
                f"@task.qarnot: argument {label} of {name}() is {problem}, which is not JSON. Give plain values "
                "(text, numbers, lists, dicts with text keys), or serializer='pickle'",
                field="op_kwargs",
            )
    return json.dumps([positional, named])


def _plain(value: Any) -> Any:
    """Return *value* with plain lists and dicts in place of other sequences, such as the results of mapped tasks."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, range)):
        return [_plain(item) for item in value]
    return value


def pack(
    function: FunctionSource,
    arguments: str,
    *,
    nonce: str,
    serializer: Serializer,
    environment: str | None,
    pool_environment: str | None,
    timeout: timedelta | None,
    result_file: str | None,
    array: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the compressed payload, which has everything that the node needs.

    :param environment: name of the archive with the environment that the call brings.
    :param pool_environment: name of the archive that the DAG run has brought to its shared pool.
    :param array: number of the items of an array (``total``), and the arguments that are lists (``names``).
    """
    payload = {
        "node": _program(),
        "function": function.to_json(),
        # Sent only if it is used, because every call has its source.
        "modules": {progress.__name__: inspect.getsource(progress)}
        if progress.__name__ in function.source
        else {},
        "arguments": arguments,
        "nonce": nonce,
        "serializer": serializer,
        "environment": environment,
        "pool_environment": pool_environment,
        "timeout": None if timeout is None else timeout.total_seconds(),
        "result_file": result_file,
        "array": array,
    }
    return zlib.compress(json.dumps(payload).encode(), 9)


def _program() -> str:
    """Return the source of :mod:`~airflow_qarnot_pool.decorators.node` with those of the modules that it imports."""
    program = inspect.getsource(node)
    for module, name in ((array_rounds, "items_of"), (json_values, "json_problem")):
        source = inspect.getsource(module).replace("from __future__ import annotations\n", "")
        program = program.replace(f"from {module.__name__} import {name}\n", source)
    return program


def sha256(data: bytes) -> str:
    """Return the hash of *data* by which a file is checked."""
    return hashlib.sha256(data).hexdigest()


def digest(*parts: str | bytes) -> str:
    """Return 32 hex digits of a hash."""
    return hashlib.sha256(
        b"\0".join(part if isinstance(part, bytes) else part.encode() for part in parts)
    ).hexdigest()[:32]


class ReportFinder(LineFinder[dict[str, Any]]):
    """Finds the report of the node in standard output."""

    def __init__(self, nonce: str) -> None:
        super().__init__(f"{node.MARK} {nonce} ", _report, MAX_ENCODED)


def _report(encoded: str) -> dict[str, Any]:
    """Decode a report. Raises ValueError unless it has the format of :mod:`~airflow_qarnot_pool.decorators.node`."""
    report = parse_json(decompress(base64.urlsafe_b64decode(encoded), MAX_REPORT))
    for fields in (("value",), ("file", "sha256"), ("skip",)):
        if isinstance(report, dict) and all(isinstance(report.get(field), str) for field in fields):
            return report
    error = report.get("error") if isinstance(report, dict) else None
    if isinstance(error, dict) and all(isinstance(error.get(field), str) for field in ("summary", "detail")):
        return {"error": error}
    raise ValueError("it does not have the format that the node writes")


def value_of(text: str, serializer: Serializer, name: str) -> Any:
    """Return the result of the function *name*, which is unpickled only if the author of the DAG chose pickle.

    :raises QarnotProtocolError: the result cannot be decoded here.
    """
    try:
        return node.decode(text, serializer)
    except Exception as error:
        missing = isinstance(error, (ImportError, AttributeError))
        raise QarnotProtocolError(
            f"The result of {name}() cannot be decoded from {serializer} ({type(error).__name__}: "
            f"{shortened(str(error), 500)})",
            remedy="Return plain values, or install the packages of the result's types here."
            if missing
            else "Return plain values that are not deeply nested.",
        ) from None
