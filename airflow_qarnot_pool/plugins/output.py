"""The end of the output of a Qarnot task, for the Pools page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.plugins.texts import clean_block

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient

#: Maximum characters that are shown of a stream, and that are read for it.
MAX_SHOWN = 64 * 1024
MAX_READ = 16 * 1024 * 1024


def read_tail(client: QarnotClient, task: str, stream: str) -> dict[str, Any]:
    """Return the end of ``stdout`` or ``stderr``: ``{text, cut, read}``.

    Qarnot can return only the whole of what it keeps, which is read in pieces. An output of more than ``MAX_READ``
    characters is read up to there. ``read`` is then the number of characters that were read, and *text* is the end of
    those, not of the output. Otherwise it is None.
    """
    tail, read, is_partial = "", 0, False
    for piece in client.tasks.stream_output(task, stream):
        read += len(piece)
        tail = (tail + piece)[-MAX_SHOWN:]
        if is_partial := read > MAX_READ:
            break
    text = clean_block(tail, MAX_SHOWN)
    return {"text": text, "cut": read > len(tail), "read": read if is_partial else None}
