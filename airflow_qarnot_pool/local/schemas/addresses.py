"""Decide from `Host` and `Origin` whether a request may come from a web page of another site. No I/O.

A page of any site can send requests to a loopback address. It can also do so under its own name, if that name resolves
to the loopback address (DNS rebinding). A browser sends the name in `Host` and the site of the page in `Origin`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
DISCARDED_BYTES = 1 << 20
"""Maximum number of bytes read from the body of a refused request, so that its client still sees the response."""


def url_of(host: str, port: int) -> str:
    """Return the address of a server, with brackets around an IPv6 host."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Addresses under which one port of the server is reached.

    :param port: the port.
    :param more: accepted `Host` values in addition to loopback, with or without a port.
    """

    port: int
    more: tuple[str, ...] = ()

    def _accepts(self, host: str) -> bool:
        names = (*LOOPBACK_NAMES, *(name.lower() for name in self.more))
        if self.port == 80 and host.lower() in names:
            return True  # clients leave out the default port
        return host.lower() in {f"{name}:{self.port}" for name in names} | set(names[len(LOOPBACK_NAMES) :])

    def refusal(self, hosts: Iterable[str], origins: Iterable[str]) -> str | None:
        """Return the reason to refuse a request with these headers, or None. A request has one `Host`."""
        given = list(hosts)
        if len(given) != 1 or not self._accepts(given[0]):
            return (
                f"The Host header must be a loopback name with port {self.port}, got {', '.join(given) or 'none'}. "
                "Other names are accepted with --allow-host."
            )
        for origin in origins:
            scheme, _, host = origin.partition("://")
            if scheme not in ("http", "https") or not self._accepts(host):
                return f"Requests from pages of {origin} are refused. Only pages of this server may send requests."
        return None
