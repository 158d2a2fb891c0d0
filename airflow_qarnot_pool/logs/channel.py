"""Find out whether the log lines of a trigger have reached the process that writes them to files.

Airflow's log channel confirms nothing. The process that runs triggers sends its logs to its parent through a socket. If
the parent is killed, the lines that it has not read are lost. Once a trigger has finished, the parent writes lines that
it reads later to another log.
"""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from typing import Any

from airflow_qarnot_pool.version_compat import log_channel


def bytes_unread(log: Any) -> int:
    """Return the bytes that the reader of the channel behind *log* has not read, or 0 if there is no such channel.

    Linux counts them, with its own overhead, for every socket (``SIOCOUTQ``, which is ``TIOCOUTQ``).
    """
    try:
        import fcntl
        import termios

        descriptor = log_channel(log)
        if descriptor is None or not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return 0
        answer = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4))
    except (ImportError, OSError):
        return 0
    return int.from_bytes(answer, sys.byteorder)


async def wait_until_flushed(log: Any) -> None:
    """Wait until the reader of the channel behind *log* has read everything."""
    pause = 0.005
    while bytes_unread(log):
        await asyncio.sleep(pause)
        pause = min(0.25, pause * 2)
