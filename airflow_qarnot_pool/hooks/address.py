"""Parse URLs in Airflow connections: a host that is a name or a URL, a port, and a schema.

Users write ``qarnot://:token@h:8600/http``, ``qarnot://http://:token@h:8600/api`` and
``{"host": "http://h/api", "port": 8600}``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from ipaddress import IPv6Address, ip_address
from typing import Any, Literal, NoReturn
from urllib.parse import urlsplit

#: Returns the error for a field of a connection and its problem.
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
    login: Literal["refused", "dropped", "kept"] = "refused",
    fragment: bool = False,
) -> str:
    """Return the URL of these fields of a connection, without a trailing slash.

    The path keeps its case. Scheme and host become lower case.

    :param port: port beside the host; 0 and empty count as none.
    :param schema: ``http`` or ``https``, or a path.
    :param refuse: returns the error to raise.
    :param field: name of the field that holds *host*.
    :param example: a URL for the error message.
    :param login: what becomes of a login in the URL.
    :param fragment: whether the path may hold a ``#``, as that of a web page may.
    """
    text = host.strip()

    def reject(problem: str, name: str = field) -> NoReturn:
        raise refuse(name, problem)

    def malformed(reason: str) -> NoReturn:
        reject(f"{shorten_url(text)!r} {reason}. Write a URL such as {example}")

    scheme, login_text, authority, path = _split(text, schemes, fragment, malformed)
    name, inner_port = _host_and_port(authority, malformed)
    if name in schemes and authority.endswith(":"):
        malformed("has a single slash after its scheme")
    outer_port = _port(port, lambda problem: reject(problem, "port"))
    if inner_port and outer_port and inner_port != outer_port:
        reject(f"is {outer_port}, but {field!r} names {inner_port}. Keep one of them", "port")
    scheme, path = _apply_schema(
        (schema or "").strip(), scheme, path, field, lambda text: reject(text, "schema")
    )
    number = inner_port or outer_port
    address = f"{name}:{number}" if number else name
    base = f"{(scheme or default).lower()}://{_kept_login(login_text, login, malformed)}{address}"
    return f"{base}/{path.lstrip('/')}".rstrip("/")


def _split(
    text: str, schemes: Collection[str], fragment: bool, malformed: Callable[[str], NoReturn]
) -> tuple[str, str, str, str]:
    """Return scheme, login with its ``@``, authority and path of a URL, whose scheme may be missing."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "", text
    elif scheme.lower() not in schemes:
        allowed = " or ".join(f"{name}://" for name in schemes)
        malformed(f"starts with {shorten_url(scheme)!r}, not with {allowed}")
    if _has_invalid_characters(rest, '?\\<>"'):
        malformed("has characters that no base URL has")
    if "#" in rest and not fragment:
        malformed("has a '#'")
    authority, _, path = rest.partition("/")
    if "@" in path:
        malformed("has an '@' after its host. In a password write %40 for it, and %2F for a slash")
    user, at, authority = authority.rpartition("@")
    return scheme, f"{user}{at}", authority, path


def _kept_login(text: str, login: str, malformed: Callable[[str], NoReturn]) -> str:
    if text and login == "refused":
        malformed("holds a login")
    return text if login == "kept" else ""


def _apply_schema(
    schema: str, scheme: str, path: str, field: str, reject: Callable[[str], NoReturn]
) -> tuple[str, str]:
    """Return scheme and path with the schema of the connection, which may be either of them."""
    if (word := schema.lower().rstrip(":/")) in WEB:
        schema = word
        if scheme and scheme.lower() != schema.lower():
            reject(f"is {schema!r}, but {field!r} starts with {scheme}://. Keep one of them")
        return schema, path
    if not schema.strip("/"):
        return scheme, path
    if _has_invalid_characters(schema, "?#@\\:"):
        reject(f"{shorten_url(schema)!r} is neither 'http' nor 'https' nor a path")
    if path.strip("/"):
        reject(f"is the path {shorten_url(schema)!r}, but {field!r} has a path, too. Keep one of them")
    return scheme, schema


def _has_invalid_characters(text: str, invalid: str) -> bool:
    return any(
        character.isspace() or not character.isprintable() or character in invalid for character in text
    )


def is_loopback(url: str) -> bool:
    """Return whether *url*, as :func:`parse_base_url` returns it, is an address of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def shorten_url(text: str) -> str:
    """Return *text* for an error message: shortened, and without a login."""
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


def _port(value: Any, reject: Callable[[str], NoReturn]) -> int | None:
    if value in (None, "", 0):
        return None
    try:
        # int() takes the digits of every script, and underscores between them.
        number = int(value) if re.fullmatch(r"[0-9]+", str(value)) else 0
    except ValueError:
        number = 0
    if not 0 < number < 65536:
        reject(f"has the port {value!r}, which is not a number from 1 to 65535")
    return number
