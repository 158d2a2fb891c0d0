"""Settings of an Airflow connection of type ``qarnot``, validated."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_qarnot_pool import __version__, metrics
from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.fields import Refusal, integer, number
from airflow_qarnot_pool.hooks.address import PROXIES, Refuse, is_loopback, parse_base_url
from airflow_qarnot_pool.hooks.connection_form import DEFAULT_API_URL, FIELDS
from airflow_qarnot_pool.parameters.configuration import default_poll_interval, poll_seconds

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.transport import Exchange

log = logging.getLogger(__name__)

DEFAULT_NAMESPACE = "default"
DEFAULT_CONSOLE_URL = "https://tasq.qarnot.com"
_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}
#: Fields whose default is an option of the ``[qarnot]`` section.
OPTIONS = ("namespace", "console_url", "reference_datacenter")
#: Maximum seconds of a timeout, because sockets have a limit.
MAX_TIMEOUT = 86400

#: Fields that are addresses, with the rules of :func:`parse_base_url` for each.
_ADDRESSES: Mapping[str, Mapping[str, Any]] = {
    "storage_url": {"example": "https://storage.qarnot.com"},
    "proxy": {
        "example": "http://proxy.example:3128",
        "schemes": PROXIES,
        "default": "http",
        "login": "kept",
    },
    "console_url": {"example": DEFAULT_CONSOLE_URL, "fragment": True},
}

_timeout = number(0.1, MAX_TIMEOUT)
_retries = integer(0)


@dataclass(frozen=True, kw_only=True)
class ConnectionSettings:
    """Settings of one connection. ``timeout`` is in seconds; ``verify`` is a flag or the path of a CA bundle."""

    conn_id: str
    url: str
    token: str = field(repr=False)
    storage_url: str | None = None
    namespace: str = DEFAULT_NAMESPACE
    namespace_is_explicit: bool = False
    verify: bool | str = True
    proxy: str | None = field(default=None, repr=False)
    timeout: float = 30.0
    retries: int = 6
    #: ``poll_interval`` of the connection, in seconds. None for the option of the ``[qarnot]`` section.
    own_poll_interval: float | None = None
    #: Empty if there is no console, as beside a local Qarnot.
    console_url: str = DEFAULT_CONSOLE_URL
    #: Data centre that carbon savings are compared with. None for Qarnot's choice.
    reference_datacenter: str | None = None

    @classmethod
    def of(cls, connection: Connection) -> ConnectionSettings:
        """Parse *connection*. Missing fields come from the ``[qarnot]`` section of the configuration.

        :raises QarnotInvalidSpecError: names the invalid field of the connection, or the invalid option.
        """
        conn_id = connection.conn_id or "qarnot"

        def refuse(name: str, problem: str) -> QarnotInvalidSpecError:
            return QarnotInvalidSpecError(
                f"Connection {conn_id!r}, field {name!r}: {problem}",
                field=name,
                kind="connection",
                ref=conn_id,
            )

        extra = Extra.of(connection, refuse)
        token = _token(connection, refuse)
        namespace = _namespace(extra)
        given = {name: text for name in _ADDRESSES if (text := extra.text(name)) is not None}
        # A login cannot be sent, because the token uses its header.
        url = parse_base_url(
            connection.host or DEFAULT_API_URL,
            connection.port,
            connection.schema,
            refuse=refuse,
            example=DEFAULT_API_URL,
            login="dropped",
        )
        addresses = {
            name: parse_base_url(text, refuse=extra.refused, field=name, **_ADDRESSES[name])
            for name, text in given.items()
        }
        if is_loopback(url) and addresses.get("console_url", DEFAULT_CONSOLE_URL) == DEFAULT_CONSOLE_URL:
            addresses["console_url"] = ""  # Qarnot's console does not show the objects of a local Qarnot
        return cls(
            conn_id=conn_id,
            token=token,
            namespace=namespace or DEFAULT_NAMESPACE,
            namespace_is_explicit=bool(namespace),
            verify=extra.text("ca_bundle") or extra.converted("verify", _flag, True),
            timeout=extra.converted("timeout", _timeout, 30.0),
            retries=extra.converted("retries", _retries, 6),
            own_poll_interval=extra.converted("poll_interval", poll_seconds, None),
            reference_datacenter=extra.text("reference_datacenter"),
            url=url,
            **addresses,
        )

    @property
    def poll_interval(self) -> float:
        """Seconds between two polls of a wait.

        :raises QarnotInvalidSpecError: the option of the ``[qarnot]`` section is invalid.
        """
        return self.own_poll_interval or default_poll_interval()

    @property
    def risks(self) -> tuple[str, ...]:
        """Sentences about unsafe settings of the connection."""
        sentences = []
        if self.url.startswith("http://"):
            sentences.append("The API's URL has plain http, so the API token is sent unencrypted")
        if self.verify is False:
            sentences.append("The server's TLS certificate is not verified (verify is false)")
        return tuple(sentences)

    def client(self, **overrides: Any) -> QarnotClient:
        """Return a client with these settings. *overrides* are keyword arguments of :class:`QarnotClient`."""
        from airflow_qarnot_pool.api.client import QarnotClient

        if isinstance(self.verify, str) and not Path(self.verify).exists():
            raise QarnotInvalidSpecError(
                f"Connection {self.conn_id!r}, field 'ca_bundle': there is no {self.verify} on this machine",
                field="ca_bundle",
                kind="connection",
                ref=self.conn_id,
                remedy="Put the certificates there on every worker, triggerer and API server.",
            )
        for risk in self.risks:
            _warn_once(self.conn_id, risk)
        arguments: dict[str, Any] = {
            "storage_url": self.storage_url,
            "timeout": self.timeout,
            "retries": self.retries,
            "verify": self.verify,
            "proxy": self.proxy,
            "user_agent": f"airflow-qarnot-pool/{__version__}",
            "observer": count_request,
        }
        return QarnotClient(self.url, self.token, **{**arguments, **overrides})

    def console_link(self, kind: str, uuid: str) -> str:
        """Return the URL of a pool or Qarnot task in the web console; empty if there is no console."""
        return f"{self.console_url}/{kind}s/{quote(uuid, safe='')}" if self.console_url else ""


def _token(connection: Connection, refuse: Refuse) -> str:
    if token := (connection.password or "").strip():
        return token
    uri_hint = " In a URI it follows a colon: qarnot://:TOKEN@host" if connection.login else ""
    raise refuse("password", f"has no API token. Put the token of the Qarnot account there.{uri_hint}")


@cache
def _warn_once(conn_id: str, risk: str) -> None:
    log.warning("Connection %r: %s", conn_id, risk)


class Extra:
    """The ``extra`` of a connection, with defaults from the ``[qarnot]`` section.

    :raises QarnotInvalidSpecError: from each method, for an invalid value; it names the field or the option.
    """

    def __init__(self, values: Mapping[str, Any], refuse: Refuse) -> None:
        self._values = {name: value for name, value in values.items() if value not in (None, "")}
        self._refuse = refuse

    @classmethod
    def of(cls, connection: Connection, refuse: Refuse) -> Extra:
        """Parse the extra of *connection*."""
        try:
            parsed = json.loads(connection.extra) if connection.extra else {}
        except (ValueError, RecursionError):
            raise refuse(
                "extra", 'is not JSON. Write an object such as {"namespace": "production"}'
            ) from None
        if not isinstance(parsed, dict):
            raise refuse(
                "extra",
                f'is a {type(parsed).__name__}. Write an object such as {{"namespace": "production"}}',
            )
        for name in parsed:
            if hint := _misspelt(name):
                raise refuse("extra", f"has no field {name!r}. Did you mean {hint!r}?")
        return cls(connection.extra_dejson, refuse)  # parses it again, and masks its secrets

    def refused(self, name: str, problem: str) -> Exception:
        """Return the error for a field, or for the option that is its default."""
        if name not in self._values:
            return QarnotInvalidSpecError(f"[qarnot] {name} in the configuration: {problem}", field=name)
        return self._refuse(name, problem)

    def text(self, name: str) -> str | None:
        """Return a text, or None if it is not set."""
        value = self._values.get(name)
        if value is None and name in OPTIONS:
            value = _option(name)
        # A number in a URI may have been parsed as JSON.
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if value is not None and not (isinstance(value, str) and value.strip()):
            raise self.refused(name, f"{value!r} is not text")
        return None if value is None else value.strip()

    def converted(self, name: str, convert: Callable[[Any], Any], default: Any) -> Any:
        """Return the converted value, or *default* if it is not set."""
        if name not in self._values:
            return default
        try:
            return convert(self._values[name])
        except Refusal as refusal:
            raise self._refuse(name, f"{refusal.problem}. {refusal.remedy}") from None


def _namespace(extra: Extra) -> str | None:
    namespace = extra.text("namespace")
    if namespace and not _NAMESPACE.fullmatch(namespace):
        raise extra.refused(
            "namespace", f"{namespace!r} may only have letters, digits, '-', '_' and '.' (63 at most)"
        )
    return namespace


def _misspelt(name: str) -> str | None:
    """Return the field that *name* may be a misspelling of, or None."""
    names = [field.name for field in FIELDS]
    if name in names:
        return None
    import difflib  # only a misspelt field needs it, and every DAG file would pay for it

    plain = name.removeprefix("extra__qarnot__").lower().replace("-", "_")
    close = difflib.get_close_matches(plain, names, n=1, cutoff=0.85)
    return close[0] if close else None


def _option(name: str) -> str | None:
    from airflow.configuration import conf

    return conf.get("qarnot", name, fallback=None) or None


def _flag(value: Any) -> bool:
    word = str(value).strip().lower()
    if word in _TRUE | _FALSE:
        return word in _TRUE
    raise Refusal(f"is {value!r}, which is neither true nor false", "Give true or false.")


def count_request(exchange: Exchange) -> None:
    """Emit the metrics of one attempt of a request."""
    kind = exchange.path.strip("/").split("/", 1)[0].split("?")[0] or "account"
    tags: dict[str, Any] = {"method": exchange.method, "resource": kind}
    metrics.incr("requests", **tags, status=exchange.status or "none")
    if exchange.attempt > 1:
        metrics.incr("retries", **tags)
    metrics.timing("request.duration", exchange.seconds, **tags)
