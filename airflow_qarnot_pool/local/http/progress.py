"""Show on standard error what boots and runs."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.backend import Backend

SECONDS = 0.25


def summary(backend: Backend) -> str:
    """Return one line about the open pools, the nodes and the instances."""
    nodes = backend.nodes.by_id.values()
    up = sum(node.up is not None for node in nodes)
    pools = [pool for pool in backend.pools.store if pool.is_open]
    running, queued = sum(len(node.running) for node in nodes), sum(pool.waiting for pool in pools)
    return " · ".join(
        (
            f"{len(pools)} open pool{'' if len(pools) == 1 else 's'}",
            f"nodes: {len(nodes) - up} booting, {up} up",
            f"instances: {queued} queued, {running} running",
        )
    )


class Progress:
    """Prints a text when it changes. A terminal shows it in place of the one before."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._shown = stream, ""
        self._is_terminal = stream.isatty()

    def show(self, text: str) -> None:
        if text == self._shown:
            return
        self._shown = text
        if self._is_terminal:
            # A longer line would wrap, and could not be replaced.
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r\x1b[2K{text[:width]}")
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def end(self) -> None:
        """Move to a new line."""
        if self._is_terminal and self._shown:
            self._stream.write("\n")
            self._stream.flush()


async def report(backend: Backend, stream: TextIO) -> None:
    """Show the summary until this is cancelled."""
    progress = Progress(stream)
    try:
        while True:
            progress.show(summary(backend))
            await asyncio.sleep(SECONDS)
    finally:
        progress.end()
