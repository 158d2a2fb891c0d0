"""The login of a private registry: read from an Airflow connection, and sent to the server it names only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_qarnot_pool.api.specs import TaskSpec

LOGIN, PASSWORD, SERVER = "DOCKER_REGISTRY_LOGIN", "DOCKER_REGISTRY_PASSWORD", "DOCKER_SRV"
#: Hosts that all stand for Docker Hub, one of which its users have in their connections.
DOCKER_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})


@dataclass(frozen=True)
class RegistryLogin:
    """Login and password, and the URL of the server they are for; None if the connection has no host."""

    conn_id: str
    login: str
    password: str = field(repr=False)
    url: str | None

    @classmethod
    def of(cls, connection: Connection) -> RegistryLogin:
        """Read a connection such as those of type ``docker``.

        :raises QarnotInvalidSpecError: login or password is missing, or host, port and schema make no URL.
        """
        from airflow_qarnot_pool.hooks.address import parse_base_url

        conn_id = str(connection.conn_id)

        def refuse(name: str, problem: str) -> QarnotInvalidSpecError:
            return QarnotInvalidSpecError(
                f"Connection {conn_id!r}, field {name!r}: {problem}",
                field="registry_conn_id",
                kind="connection",
                ref=conn_id,
            )

        for name in ("login", "password"):
            if not getattr(connection, name):
                raise refuse(name, f"the connection has no {name}, which the registry needs")
        url = None
        if connection.host or connection.port or connection.schema:
            url = parse_base_url(
                connection.host or "",
                connection.port,
                connection.schema,
                refuse=refuse,
                example="https://registry.example:5000",
            )
        return cls(conn_id, str(connection.login), str(connection.password), url)

    def added_to(self, spec: TaskSpec) -> TaskSpec:
        """Return *spec* with the login, and with the connection's server as the one its image comes from.

        :raises QarnotInvalidSpecError: *spec* names another server, or another login.
        """
        from airflow_qarnot_pool.api.specs import image_constants

        constants = dict(spec.constants)
        for name in (LOGIN, PASSWORD):
            if name in constants:
                raise self._refused(f"constants has {name}, too", "Keep one of them.")
        constants |= {LOGIN: self.login, PASSWORD: self.password}
        if self.url is None:
            return replace(spec, constants=constants)
        by_image = image_constants(spec.image) if spec.image else {}
        forced = [one.forced_value for one in spec.forced_constants if one.constant_name == SERVER]
        for server in (constants.get(SERVER), by_image.get(SERVER), *forced):
            if server and _server(server) != _server(self.url):
                raise self._refused(
                    f"connection {self.conn_id!r} is for {self.url}, but the image comes from {server}",
                    "Write the image without its registry, or name a connection for that one.",
                )
        constants[SERVER] = self.url
        if spec.image:
            repository = spec.image.partition("/")[2] if SERVER in by_image else spec.image
            constants |= _constants_on(self.url, repository)
            constants.setdefault("DOCKER_TAG", "latest")
        return replace(spec, image=None, constants=constants)

    def _refused(self, problem: str, remedy: str) -> QarnotInvalidSpecError:
        return QarnotInvalidSpecError(
            f"registry_conn_id is given, and {problem}", field="registry_conn_id", remedy=remedy
        )


def _constants_on(server: str, repository: str) -> dict[str, str]:
    """Return the constants of an image on *server*, without that of the server."""
    from airflow_qarnot_pool.api.specs import image_constants

    if _server(server) != _server("docker.io"):
        # Only Docker Hub has a library/ that names without a slash stand for.
        repository = f"registry.invalid/{repository}"
    return {name: value for name, value in image_constants(repository).items() if name != SERVER}


def _server(url: str) -> tuple[str, int | None]:
    """Return host and port, which tell two servers apart."""
    parts = urlsplit(url if "://" in url else f"https://{url}")
    host = (parts.hostname or "").lower()
    try:
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme.lower())
    except ValueError:
        port = -1
    return ("docker.io", 443) if host in DOCKER_HUB and port in (80, 443) else (host, port)
