"""A StatsD server that only remembers."""

from __future__ import annotations

import re
import socket
import threading
from types import TracebackType
from typing import Self

LINE = re.compile(r"^airflow\.(?P<name>qarnot\.[a-z_.]+):(?P<value>[-+0-9.e]+)\|(?P<kind>c|g|ms)$")


class Statsd:
    """Listens on a port of loopback, from entering the context to leaving it."""

    def __enter__(self) -> Self:
        self.lines: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An empty datagram ends the loop.
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join(5)
        self._socket.close()

    def _listen(self) -> None:
        while data := self._socket.recv(65535):
            # The rest is Airflow's own.
            self.lines += [line for line in data.decode().splitlines() if ".qarnot." in line]

    def settings(self) -> dict[str, str]:
        """Environment variables that make an Airflow send its metrics here."""
        host, port = self._socket.getsockname()
        return {
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__STATSD_HOST": host,
            "AIRFLOW__METRICS__STATSD_PORT": str(port),
        }

    def seen(self) -> dict[str, tuple[str, float]]:
        """Kind and last value of each metric of ours; counters are summed up."""
        found: dict[str, tuple[str, float]] = {}
        for line in list(self.lines):
            if match := LINE.match(line):
                name, value = match["name"], float(match["value"])
                before = found.get(name, ("", 0.0))[1] if match["kind"] == "c" else 0.0
                found[name] = (match["kind"], value + before)
        return found
