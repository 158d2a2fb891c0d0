"""The output of a workload on Qarnot, for Airflow's log view while remote logging does not have the log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from airflow_qarnot_pool.api.errors import QarnotError, QarnotNotFoundError

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient

#: Maximum characters of a stream that are shown, and that are read for it. Qarnot returns only the whole of a stream.
MAX_SHOWN = 1_000_000
MAX_READ = 64_000_000
#: Maximum seconds for one view of a log, because the page waits.
DEADLINE = 15.0


def task_log(client: QarnotClient, names: Sequence[str]) -> list[str]:
    """Return the lines of Qarnot tasks, those of the last name first. Never raises.

    Lines of Airflow are JSON with a time, as in its log files. A Qarnot task that cannot be read gives a sentence.

    :param names: shortnames of the Qarnot tasks of a try, newest first.
    """
    ends = time.monotonic() + DEADLINE
    lines: list[str] = []
    for name in reversed(names):
        try:
            # Errors before Airflow has set up its log are in the other stream.
            for stream in ("stderr", "stdout"):
                subject = f"{stream} of Qarnot task {name}"
                if (left := ends - time.monotonic()) <= 0:
                    lines.append(f"The {subject} was not read, because the rest took {DEADLINE:g} s.")
                    continue
                pieces = client.limited(deadline=left).tasks.stream_output(name, stream, 0)
                lines += _end(pieces, subject)
        except QarnotNotFoundError:
            lines.append(f"Qarnot has no task {name}. It was not submitted, or deleted.")
        except QarnotError as error:
            lines.append(f"The output of Qarnot task {name} could not be read: {error}")
    return lines


def _end(pieces: Iterable[str], subject: str) -> list[str]:
    """Return the last lines of a stream, after one about those that are left out."""
    text, read = "", 0
    for piece in pieces:
        read += len(piece)
        text = (text + piece)[-MAX_SHOWN:]
        if read > MAX_READ:
            break
    cut = read - len(text)
    if not cut:
        return text.splitlines()
    # The first line lacks its start.
    rest = text.partition("\n")[2] or text
    return [
        f"... the first {read - len(rest):,} characters of the {subject} are left out",
        *rest.splitlines(),
    ]
