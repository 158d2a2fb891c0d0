"""Standard output and error of instances: all of it (GET) or what is new since the last look (POST).

Qarnot API: /{pools,tasks}/{u}/{stdout,stderr}[/{i}]. The files are written by the processes themselves.
"""

from __future__ import annotations

from airflow_qarnot_pool.local.backend.models import Output

KEPT = 4 * 1024 * 1024
"""Bytes kept per instance and stream: Qarnot's buffers are circular, of a size it does not document."""


def _read(path: str, start: int, kept: int) -> tuple[int, bytes]:
    """(where it begins, what is there from `start` on, as far as it is kept)."""
    try:
        with open(path, "rb") as file:
            start = max(start, file.seek(0, 2) - kept)
            file.seek(start)
            return start, file.read()
    except FileNotFoundError:
        return start, b""


def whole(output: Output, stream: str) -> str:
    return _read(getattr(output, stream), 0, output.kept)[1].decode(errors="replace")


def fresh(output: Output, stream: str) -> str:
    """What came since the last call. Does not depend on what GET was asked in between."""
    mark = (stream, False)
    start, data = _read(getattr(output, stream), output.fresh.get(mark, 0), output.kept)
    output.fresh[mark] = start + len(data)
    return data.decode(errors="replace")


def whole_aggregated(outputs: dict[int, Output], stream: str) -> str:
    """All instances, each line after its instance id: `0> hello`."""
    return "".join(_prefixed(i, whole(outputs[i], stream)) for i in sorted(outputs))


def fresh_aggregated(outputs: dict[int, Output], stream: str) -> str:
    """What is new of every instance. A line that is not complete yet waits, unless its instance is over."""
    parts = []
    for number in sorted(outputs):
        output = outputs[number]
        start, data = _read(getattr(output, stream), output.fresh.get((stream, True), 0), output.kept)
        if not output.over:
            data = data[: data.rfind(b"\n") + 1]
        output.fresh[stream, True] = start + len(data)
        parts.append(_prefixed(number, data.decode(errors="replace")))
    return "".join(parts)


def _prefixed(number: int, text: str) -> str:
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return "".join(f"{number}> {line}\n" for line in lines)
