"""What an Airflow connection of type ``qarnot`` says, read and checked once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_qarnot_pool import __version__
from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.hooks.form import DEFAULT_API_URL

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_qarnot_pool.api.client import QarnotClient

DEFAULT_NAMESPACE = "default"
DEFAULT_CONSOLE_URL = "https://tasq.qarnot.com"
_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_FALSE = {"false", "no", "off", "0", ""}


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
    console_url: str = DEFAULT_CONSOLE_URL
    #: What carbon savings are compared with; None: Qarnot's own choice.
    reference_datacenter: str | None = None

    @classmethod
    def of(cls, connection: Connection) -> ConnectionSettings:
        """Read *connection*; what it leaves out comes from the ``[qarnot]`` section of the configuration.

        :raises QarnotInvalidSpecError: names the field of the connection that is wrong.
        """
        conn_id = connection.conn_id or "qarnot"
        extra = {name: value for name, value in connection.extra_dejson.items() if value not in (None, "")}

        def refuse(name: str, problem: str) -> QarnotInvalidSpecError:
            return QarnotInvalidSpecError(
                f"Connection {conn_id!r}, field {name!r}: {problem}",
                field=name,
                kind="connection",
                ref=conn_id,
            )

        if not connection.password:
            raise refuse("password", "there is no API token; put the token of the Qarnot account there")
        url = _url(connection)
        if not re.match(r"https?://[^/\s]+", url):
            raise refuse("host", f"{url!r} is not a URL such as {DEFAULT_API_URL}")
        namespace = extra.get("namespace") or _option("namespace")
        if namespace and not _NAMESPACE.fullmatch(str(namespace)):
            raise refuse(
                "namespace", f"{namespace!r} may only have letters, digits, '-', '_' and '.' (63 at most)"
            )
        return cls(
            conn_id=conn_id,
            url=url,
            token=connection.password,
            storage_url=extra.get("storage_url"),
            namespace=str(namespace or DEFAULT_NAMESPACE),
            namespace_is_explicit=bool(namespace),
            verify=extra.get("ca_bundle") or _flag(extra.get("verify", True)),
            proxy=extra.get("proxy"),
            timeout=_number(extra, "timeout", 30.0, 0.1, refuse),
            retries=int(_number(extra, "retries", 6, 0, refuse)),
            console_url=str(extra.get("console_url") or _option("console_url") or DEFAULT_CONSOLE_URL).rstrip(
                "/"
            ),
            reference_datacenter=extra.get("reference_datacenter") or _option("reference_datacenter"),
        )

    def client(self, **overrides: Any) -> QarnotClient:
        """A client with these settings; *overrides* are keyword arguments of :class:`QarnotClient`."""
        from airflow_qarnot_pool import metrics
        from airflow_qarnot_pool.api.client import QarnotClient

        arguments: dict[str, Any] = {
            "storage_url": self.storage_url,
            "timeout": self.timeout,
            "retries": self.retries,
            "verify": self.verify,
            "proxy": self.proxy,
            "user_agent": f"airflow-qarnot-pool/{__version__}",
            "observer": metrics.exchanged,
        }
        return QarnotClient(self.url, self.token, **{**arguments, **overrides})

    def console_link(self, kind: str, uuid: str) -> str:
        """Where the web console shows a pool or a Qarnot task."""
        return f"{self.console_url}/{kind}s/{quote(uuid, safe='')}"


def _url(connection: Connection) -> str:
    """The API's address; connections written as a URI keep scheme and port apart from the host."""
    host = (connection.host or DEFAULT_API_URL).strip().rstrip("/")
    if "://" not in host:
        scheme = connection.schema if connection.schema in ("http", "https") else "https"
        host = f"{scheme}://{host}"
    authority = host.split("://", 1)[1].split("/", 1)[0]
    if connection.port and not re.search(r":\d+$", authority):
        host = host.replace(authority, f"{authority}:{connection.port}", 1)
    return host


def _option(name: str) -> str | None:
    from airflow.configuration import conf

    return conf.get("qarnot", name, fallback=None) or None


def _flag(value: Any) -> bool:
    return value.strip().lower() not in _FALSE if isinstance(value, str) else bool(value)


def _number(extra: dict[str, Any], name: str, default: float, minimum: float, refuse: Any) -> float:
    value = extra.get(name, default)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise refuse(name, f"{value!r} is not a number") from None
    if not number >= minimum:
        raise refuse(name, f"{value!r} is less than {minimum}")
    return number
