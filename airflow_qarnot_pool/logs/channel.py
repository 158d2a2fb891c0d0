"""Whether what a trigger has logged is with those who write it to files: Airflow's log channel has no answer.

The process that runs triggers sends its logs to its parent through a socket. When the parent is killed, what it has not
read is lost; and once a trigger is over, the parent writes what it reads of it later to another log.
"""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from typing import Any

from airflow_qarnot_pool.version_compat import log_channel


def bytes_unread(log: Any) -> int:
    """Bytes of the channel behind *log* that its reader has not read; 0 where there is no such channel.

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
    """Return once the reader of the channel behind *log* has read all."""
    pause = 0.005
    while bytes_unread(log):
        await asyncio.sleep(pause)
        pause = min(0.25, pause * 2)
