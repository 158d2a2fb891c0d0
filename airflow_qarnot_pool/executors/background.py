"""A thread with an event loop, to which another thread hands calls without a wait."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)


class LoopThread:
    """A thread that starts with the first call, and runs a coroutine function until that returns.

    The processes that LocalExecutor forks at its start have no copy of it then.
    """

    def __init__(self, main: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._main, self._name = main, name
        self._calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def call(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have the thread call *function*. The call is kept if the thread cannot start."""
        self._calls.append((function, arguments))
        self.ensure()

    def ensure(self) -> None:
        """Start the thread if calls wait for it and it does not run."""
        if not self._calls:
            return
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._drain)
            elif not self.is_alive:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        except RuntimeError as error:  # the loop is closed, or the process has too many threads
            log.error("The thread %s cannot start, and is started later: %s", self._name, error)

    def join(self, timeout: float) -> None:
        """Wait for the end of the thread, which its coroutine function decides."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            asyncio.run(self._start())
        except Exception:  # such as of a process with too many open files
            log.exception("The thread %s has ended, and is started again", self._name)
        finally:
            self._loop = None

    async def _start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._drain)
        await self._main()

    def _drain(self) -> None:
        while self._calls:
            function, arguments = self._calls.popleft()
            function(*arguments)
