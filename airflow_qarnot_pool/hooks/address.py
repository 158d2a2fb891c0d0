"""URLs in Airflow connections: a host that is a name or a URL, a port beside it, and a schema.

A URI keeps these apart in its own way: ``qarnot://:token@h:8600/http``, ``qarnot://http://:token@h:8600/api`` and
``{"host": "http://h/api", "port": 8600}`` are all written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from ipaddress import IPv6Address
from typing import Any, NoReturn

#: Builds the error for a field of a connection and the problem with it.
Refuse = Callable[[str, str], Exception]

WEB = ("http", "https")
PROXIES = (*WEB, "socks4", "socks4a", "socks5", "socks5h")
_HOST = re.compile(r"[^\s/?#@\\:\[\]()<>\"'`{}|^,;]+")


def parse_base_url(
    host: str,
    port: Any = None,
    schema: str | None = None,
    *,
    refuse: Refuse,
    field: str = "host",
    example: str,
    schemes: Collection[str] = WEB,
    default: str = "https",
    login: bool = False,
    fragment: bool = False,
) -> str:
    """Return the URL that these fields of a connection stand for, without a slash at its end.

    The path keeps its case; scheme and host become lower case.

    :param port: port beside the host; 0 and empty count as none.
    :param schema: ``http`` or ``https``, or a path.
    :param refuse: builds the error that is raised.
    :param field: name of the field that holds *host*.
    :param example: a URL for the error message.
    :param login: whether the URL may hold a login.
    :param fragment: whether the path may hold a ``#``, as that of a web page may.
    """
    text = host.strip()

    def wrong(problem: str, name: str = field) -> NoReturn:
        raise refuse(name, problem)

    def malformed(why: str) -> NoReturn:
        wrong(f"{shorten_url(text)!r} {why}. Write a URL such as {example}")

    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "", text
    if separator and scheme.lower() not in schemes:
        malformed(
            f"begins with {shorten_url(scheme)!r}, not with {' or '.join(f'{one}://' for one in schemes)}"
        )
    if any(one.isspace() or not one.isprintable() or one in '?\\<>"' for one in rest):
        malformed("has characters that no base URL has")
    if "#" in rest and not fragment:
        malformed("has a '#'")
    authority, _, path = rest.partition("/")
    if "@" in path:
        malformed("has an '@' after its host. In a password write %40 for it, and %2F for a slash")
    user, at, authority = authority.rpartition("@")
    if at and not login:
        malformed("holds a login")
    name, inner_port = _host_and_port(authority, malformed)
    outer_port = _port(port, lambda problem: wrong(problem, "port"))
    if inner_port and outer_port and inner_port != outer_port:
        wrong(f"is {outer_port}, but {field!r} names {inner_port}. Keep one of them", "port")
    word = (schema or "").strip()
    if word.lower() in WEB:
        if scheme and scheme.lower() != word.lower():
            wrong(f"is {word!r}, but {field!r} begins with {scheme}://. Keep one of them", "schema")
        scheme = word
    elif word.strip("/"):
        if any(one.isspace() or not one.isprintable() or one in "?#@\\" for one in word):
            wrong(f"{shorten_url(word)!r} is neither 'http' nor 'https' nor a path", "schema")
        if path.strip("/"):
            wrong(
                f"is the path {shorten_url(word)!r}, but {field!r} has a path, too. Keep one of them",
                "schema",
            )
        path = word
    number = inner_port or outer_port
    base = f"{(scheme or default).lower()}://{user}{at}{name}{f':{number}' if number else ''}"
    return f"{base}/{path.lstrip('/')}".rstrip("/")


def shorten_url(text: str) -> str:
    """Return *text* as an error may show it: short, and without a login."""
    if "@" in text:
        text = f"***@{text.rpartition('@')[2]}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _host_and_port(authority: str, malformed: Callable[[str], NoReturn]) -> tuple[str, int | None]:
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::([0-9]*))?", authority)
    name, text = bracketed.groups() if bracketed else (authority, None)
    if bracketed or authority.count(":") > 1:
        try:
            name = f"[{IPv6Address(name)}]"
        except ValueError:
            malformed("has no valid IPv6 address")
    else:
        name, _, text = authority.partition(":")
        if not _HOST.fullmatch(name):
            malformed("names no host")
    return name.lower(), _port(text, malformed)


def _port(value: Any, wrong: Callable[[str], NoReturn]) -> int | None:
    if value in (None, "", 0):
        return None
    try:
        number = 0 if isinstance(value, (bool, float)) else int(value)
    except ValueError:
        number = 0
    if not 0 < number < 65536:
        wrong(f"has the port {value!r}, which is not a number from 1 to 65535")
    return number
