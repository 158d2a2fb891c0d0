"""The connections that the Pools page shows, each with its cache and its actions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from fastapi import HTTPException

from airflow_qarnot_pool.api.fields import Refusal, is_uuid, number
from airflow_qarnot_pool.parameters.configuration import get_option
from airflow_qarnot_pool.plugins.actions import PoolActions
from airflow_qarnot_pool.plugins.cache import LIST, Cache, CacheEntry
from airflow_qarnot_pool.plugins.listing import Listing, RowEntry
from airflow_qarnot_pool.plugins.queries import Fetcher, describe_error

#: Maximum number of uuids in a request that count as displayed.
MAX_SHOWN = 50


class ConnectionRegistry:
    """The caches and actions of the connections that the page shows, by connection id."""

    def __init__(self, conn_ids: Sequence[str], max_age: float) -> None:
        self.max_age = max_age
        self.fetchers = {conn_id: Fetcher(conn_id) for conn_id in conn_ids}
        self.actions = {conn_id: PoolActions(conn_id) for conn_id in conn_ids}
        self.caches = {
            conn_id: Cache(fetcher, max_age=max_age, describe=describe_error)
            for conn_id, fetcher in self.fetchers.items()
        }

    @classmethod
    def from_configuration(cls) -> ConnectionRegistry:
        """Read section ``[qarnot]`` of Airflow's configuration."""
        max_age = get_option("pools_page_refresh", number(1, 3600), 5.0)
        return cls(get_option("pools_page_connections", _conn_ids, ["qarnot_default"]), max_age)

    def cache(self, conn_id: str, *uuids: str) -> Cache:
        """Return the cache of a connection. 404 if the page does not show it, or if a uuid is malformed."""
        if conn_id not in self.caches:
            raise HTTPException(404, f"The Pools page does not show the connection {conn_id[:250]!r}")
        for uuid in uuids:
            if not is_uuid(uuid):
                raise HTTPException(404, f"{uuid[:80]!r} is no uuid")
        return self.caches[conn_id]

    def find(self, uuid: str, run: tuple[str, str]) -> tuple[str, RowEntry] | CacheEntry:
        """Return the connection and the row of a pool that a DAG run uses. 404 if no connection has such a pool.

        After a restart the lists were not read yet. Then this returns the state of one that was not, without a value.
        """
        lists = {conn_id: cache.get(LIST) for conn_id, cache in self.caches.items()}
        for conn_id, entry in lists.items():
            row = (entry.value or Listing()).entries.get(uuid)
            if row is not None and run in row.runs:
                return conn_id, row
        unread = next((entry for entry in lists.values() if not entry.complete), None)
        if unread is None:
            raise HTTPException(404, f"No pool {uuid[:80]} belongs to this DAG run")
        return replace(unread, value=None, age=None)

    def prioritize(self, conn_id: str, uuids: Sequence[str]) -> None:
        """Prioritize the cost figures of the pools currently displayed."""
        shown = self.fetchers[conn_id].shown
        shown.update(dict.fromkeys(uuids[:MAX_SHOWN], time.monotonic()))
        while len(shown) > 10 * MAX_SHOWN:
            shown.pop(next(iter(shown), ""), None)


def listing_of(cache: Cache) -> Listing:
    """Return the cached list of pools, which is empty before the first answer."""
    listing: Listing | None = cache.get(LIST).value
    return listing or Listing()


def _conn_ids(names: str) -> list[str]:
    conn_ids = [name.strip() for name in names.split(",") if name.strip()]
    if not conn_ids:
        raise Refusal(f"is {names!r}, which names no connection", "Give connection ids, separated by commas.")
    return conn_ids
