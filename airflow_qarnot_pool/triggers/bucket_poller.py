"""One listing of a bucket for all watchers of it.

A round is one pass over the watched part of the bucket, with one request for each 1,000 files, however many watchers
and prefixes there are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.errors import QarnotBucketNotFoundError
from airflow_qarnot_pool.hooks.listing import date_of, pages
from airflow_qarnot_pool.hooks.storage import s3_client, with_storage_help
from airflow_qarnot_pool.triggers.poller import POLLERS, PollKey
from airflow_qarnot_pool.triggers.watch_poller import Accepts, Search, WatchPoller, WatchSubscriber

if TYPE_CHECKING:
    from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings
    from airflow_qarnot_pool.triggers.watermark import Item

#: Maximum characters of the texts of an item that only describe it.
MAX_TEXT = 256

log = logging.getLogger(__name__)


class BucketPoller(WatchPoller):
    """Poller of one bucket, whose name is the name of the scope. The keys of its subscriptions are prefixes."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._s3: tuple[ConnectionSettings, Any] | None = None
        self._is_missing = False

    def _search_for(self, searches: Sequence[Search]) -> None:
        assert self.scope is not None
        bucket = self.scope.name
        by_prefix: dict[str, list[Search]] = {}
        for search in searches:
            search.watch.begin(None)
            by_prefix.setdefault(search.key, []).append(search)
        lengths = sorted({len(prefix) for prefix in by_prefix})
        try:
            with with_storage_help(f"Bucket {bucket} could not be listed", bucket):
                for number, page in enumerate(pages(self._storage(), bucket, by_prefix)):
                    if number == 0:
                        for search in searches:
                            search.watch.begin(date_of(page))
                    for entry in page.get("Contents", ()):
                        _offer(entry, by_prefix, lengths)
        except QarnotBucketNotFoundError as error:
            # It has no files, and its first ones are new.
            if not self._is_missing:
                log.warning("%s It is watched until it is created", error)
            self._is_missing = True
        else:
            self._is_missing = False

    def _storage(self) -> Any:
        assert self._settings is not None
        if self._s3 is None or self._s3[0] != self._settings:
            self._s3 = (self._settings, s3_client(self._settings))
        return self._s3[1]


POLLERS["bucket"] = BucketPoller


def _offer(entry: dict[str, Any], by_prefix: dict[str, list[Search]], lengths: Iterable[int]) -> None:
    """Offer an entry of a listing to the searches for its prefixes."""
    key, modified = entry["Key"], entry["LastModified"]
    if key.endswith("/") and not entry["Size"]:
        return  # consoles create an empty object for a folder
    item: Item | None = None
    for length in lengths:
        if length > len(key):
            break
        for search in by_prefix.get(key[:length], ()):
            # Most files are too old to be new, and a bucket may have millions.
            if search.watch.may_be_new(modified):
                item = item or {
                    "key": key,
                    "size": entry["Size"],
                    "etag": entry.get("ETag", "").strip('"')[:MAX_TEXT],
                    "modified": modified.isoformat(),
                }
                search.offer(item, modified)


def watch_bucket(
    conn_id: str, bucket: str, prefix: str, interval: float, accepts: Accepts | None
) -> WatchSubscriber:
    """Return an async context manager that yields a subscriber.

    :param interval: seconds between polls. The shortest interval of all watchers of the bucket counts.
    """
    scope = PollKey(id(asyncio.get_running_loop()), conn_id, "bucket", bucket)
    return WatchSubscriber(scope, prefix, False, interval, False, accepts=accepts)
