"""Read the standard output and error of instances, in full (GET) or since the last request (POST).

Qarnot API: /{pools,tasks}/{u}/{stdout,stderr}[/{i}]. Monitors write the files (supervisor.py).
"""

from __future__ import annotations

import contextlib
import os

from airflow_qarnot_pool.local.backend.models import Output
from airflow_qarnot_pool.local.processes.supervisor import segment_bytes, segments

STREAMS = ("stdout", "stderr")
DEFAULT_OUTPUT_BYTES = 4 * 1024 * 1024
"""Bytes kept per instance and stream, because Qarnot's buffers are circular; their size is not documented."""


def _read(path: str, start: int, kept: int) -> tuple[int, bytes]:
    """Return the bytes from `start` on that are still kept, and the offset of the first."""
    size = segment_bytes(kept)
    while True:
        with contextlib.ExitStack() as files:
            parts = []
            for name in segments(path):
                with contextlib.suppress(FileNotFoundError):
                    file = files.enter_context(open(name, "rb", buffering=0))
                    if end := os.fstat(file.fileno()).st_size:
                        parts.append(((end - 1) // size * size, end, file.fileno()))
            parts.sort()
            if len(parts) == 2 and parts[0][1] != parts[1][0]:
                continue  # both files were replaced after the first was opened
            if not parts:
                return start, b""
            start = max(start, parts[-1][1] - kept)
            data = [
                os.pread(file, end - at, at) for first, end, file in parts if (at := max(first, start)) < end
            ]
            return start, b"".join(data)


def read_all(output: Output, stream: str) -> str:
    return _read(getattr(output, stream), 0, output.max_bytes)[1].decode(errors="replace")


def read_new(output: Output, stream: str) -> str:
    """Return the output since the last call, whatever GET has read in between."""
    mark = (stream, False)
    start, data = _read(getattr(output, stream), output.bytes_read.get(mark, 0), output.max_bytes)
    output.bytes_read[mark] = start + len(data)
    return data.decode(errors="replace")


def read_all_aggregated(outputs: dict[int, Output], stream: str) -> str:
    """Return the output of all instances, with the instance id before each line: `0> hello`."""
    return "".join(_prefixed(i, read_all(outputs[i], stream)) for i in sorted(outputs))


def read_new_aggregated(outputs: dict[int, Output], stream: str) -> str:
    """Return the new output of all instances, without incomplete lines of unfinished ones."""
    parts = []
    for number in sorted(outputs):
        output = outputs[number]
        start, data = _read(
            getattr(output, stream), output.bytes_read.get((stream, True), 0), output.max_bytes
        )
        if not output.is_finished:
            data = data[: data.rfind(b"\n") + 1]
        output.bytes_read[stream, True] = start + len(data)
        parts.append(_prefixed(number, data.decode(errors="replace")))
    return "".join(parts)


def _prefixed(number: int, text: str) -> str:
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return "".join(f"{number}> {line}\n" for line in lines)
