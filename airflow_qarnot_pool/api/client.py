"""The client: one object per Qarnot account, one attribute per kind of resource.

    with QarnotClient("https://api.qarnot.com", token) as qarnot:
        uuid = qarnot.pools.create(PoolSpec(name="warm", instance_count=4))
        qarnot.tasks.create(TaskSpec(name="hello", pool=uuid, command="echo hello", image="alpine"))

The first request imports the HTTP libraries. Threads may share a client.
"""

from __future__ import annotations

import copy
from types import TracebackType
from typing import Self

from airflow_qarnot_pool.api.account import AccountResource
from airflow_qarnot_pool.api.jobs import JobResource
from airflow_qarnot_pool.api.pools import PoolResource
from airflow_qarnot_pool.api.secrets import SecretResource
from airflow_qarnot_pool.api.tasks import TaskResource
from airflow_qarnot_pool.api.transport import (
    DEFAULT_DEADLINE,
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT,
    Observer,
    Transport,
)

DEFAULT_STORAGE_URL = "https://storage.qarnot.com"


class QarnotClient:
    """Qarnot's REST API.

    :param storage_url: URL of the storage; default: the one that the API announces.
    :param timeout: maximum seconds of one attempt of a request.
    :param deadline: maximum seconds of a request with all its retries.
    :param retries: maximum number of retries of a request.
    :param verify: whether to verify TLS certificates, or the path of a CA bundle.
    :param proxy: URL of an HTTP proxy; default: the environment's.
    :param observer: called after every attempt of a request.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        storage_url: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        deadline: float = DEFAULT_DEADLINE,
        retries: int = DEFAULT_RETRIES,
        verify: bool | str = True,
        proxy: str | None = None,
        user_agent: str | None = None,
        observer: Observer | None = None,
    ) -> None:
        transport = Transport(
            url,
            token,
            timeout=timeout,
            deadline=deadline,
            retries=retries,
            verify=verify,
            proxy=proxy,
            user_agent=user_agent,
            observer=observer,
        )
        self._storage_url = storage_url
        self._use(transport)

    def _use(self, transport: Transport) -> None:
        self.transport = transport
        self.pools = PoolResource(transport)
        self.tasks = TaskResource(transport)
        self.jobs = JobResource(transport)
        self.secrets = SecretResource(transport)
        self.account = AccountResource(transport)

    @property
    def url(self) -> str:
        """The API's base URL."""
        return self.transport.url

    def storage_url(self) -> str | None:
        """Return the URL of the storage: the configured one, else the API's. None if there is no storage."""
        if self._storage_url is None:
            self._storage_url = self.account.settings().get("storage", DEFAULT_STORAGE_URL)
        return self._storage_url

    def limited(
        self, *, deadline: float | None = None, timeout: float | None = None, retries: int | None = None
    ) -> QarnotClient:
        """Return a client with other limits and the same connections: ``client.limited(deadline=4)``."""
        other = copy.copy(self)
        other._use(self.transport.limited(deadline=deadline, timeout=timeout, retries=retries))
        return other

    def close(self) -> None:
        """Close the connections. A later request opens new ones."""
        self.transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"QarnotClient({self.url!r})"
