"""Delete the archives of environments that nothing has used for a long time.

A use renews the date of its archive (see :mod:`airflow_qarnot_pool.environments.storage`), so the date is that of the
last use, to a day. A use and a deletion may meet. The reaper therefore announces a deletion before it reads the date
for the last time, and a use renews the date before it reads the announcements. One of the two sees the other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from airflow_qarnot_pool.api import filters, states
from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.environments.shared import FOLDERS
from airflow_qarnot_pool.environments.storage import (
    ANNOUNCEMENTS,
    ARCHIVES,
    MAX_DELETION,
    RENEW_AFTER,
    SOURCES,
    modified_of,
)
from airflow_qarnot_pool.hooks.storage import s3_client, with_storage_help

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.specs import ResourceBucket
    from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings

log = logging.getLogger(__name__)

#: Age after which an announcement belongs to a reaper that was killed.
_ABANDONED_AFTER = timedelta(hours=1)


def reap_environments(
    settings: ConnectionSettings, bucket: str, max_age: timedelta, *, dry_run: bool = False
) -> list[str]:
    """Delete the archives of *bucket* that were last used longer than *max_age* ago, and return their keys.

    Archives that an unfinished pool or Qarnot task of the account brings are kept.
    """
    check_max_age(max_age)
    client = settings.client()
    if find_spec("boto3") is None or client.storage_url() is None:
        return []  # environments cannot be made here
    with with_storage_help(f"Old environments could not be deleted from bucket {bucket}", bucket):
        reaper = ArchiveReaper(
            s3_client(settings), bucket, datetime.now(UTC) - max_age, lambda: resources_in_use(client)
        )
        try:
            return reaper.reap(dry_run=dry_run)
        except Exception as error:
            if getattr(error, "response", {}).get("Error", {}).get("Code") == "NoSuchBucket":
                return []
            raise


def check_max_age(max_age: timedelta) -> None:
    """Refuse a *max_age* that is shorter than the time between two renewals of a date allows."""
    if max_age < 2 * RENEW_AFTER:
        raise QarnotInvalidSpecError(
            f"delete_environments_after is too short, got {max_age}",
            field="delete_environments_after",
            remedy=f"Give at least {2 * RENEW_AFTER}, because the date of a used archive is renewed once a day.",
        )


def resources_in_use(client: QarnotClient) -> list[ResourceBucket]:
    """Return the resources of all unfinished pools and Qarnot tasks of the account."""
    unfinished_pools = [state for state in states.PoolState if state not in states.POOL_TERMINAL]
    unfinished_tasks = [state for state in states.TaskState if state not in states.TASK_TERMINAL]
    pools = client.pools.iterate(filters.in_("State", unfinished_pools))
    tasks = client.tasks.iterate(filters.in_("State", unfinished_tasks))
    return [resource for one in (*pools, *tasks) for resource in one.resource_buckets]


@dataclass(frozen=True)
class ArchiveReaper:
    """The I/O of one run. Objects that were last used before *cutoff* are old."""

    s3: Any
    bucket: str
    cutoff: datetime
    in_use: Callable[[], Iterable[ResourceBucket]]

    def reap(self, *, dry_run: bool = False) -> list[str]:
        """Delete old archives that are not in use, and return their keys."""
        old = self._old()
        if dry_run:
            return old
        deleted = [key for key in old if self._delete(key)]
        self._tidy()
        return deleted

    def _old(self) -> list[str]:
        """Return the keys of old archives that are not in use."""
        found = {key: date for prefix in (ARCHIVES, FOLDERS) for key, date in self._objects(prefix)}
        old = [key for key, modified in found.items() if modified < self.cutoff]
        used = self._used(found) if old else set()
        return [key for key in old if key not in used]

    def _used(self, keys: Iterable[str]) -> set[str]:
        """Return which of *keys* are in use, and the archives that shared pools bring.

        A shared pool that ends is replaced, and the archives in its folder are copied again.
        """
        prefixes = tuple(str(one.prefix or "") for one in self.in_use() if one.bucket == self.bucket)
        used = {key for key in keys if key.startswith(prefixes)}
        return used | {ARCHIVES + key.rpartition("/")[2] for key in used if key.startswith(FOLDERS)}

    def _delete(self, key: str) -> bool:
        """Delete an archive unless a use has renewed its date."""
        announcement = f"{ANNOUNCEMENTS}{key}/{uuid4().hex}"
        announced = time.monotonic()
        self.s3.put_object(Bucket=self.bucket, Key=announcement, Body=b"")
        try:
            modified = modified_of(self.s3, self.bucket, key)
            is_late = time.monotonic() - announced > MAX_DELETION / 2
            if modified is None or modified >= self.cutoff or is_late:
                return False
            self.s3.delete_object(Bucket=self.bucket, Key=key)
        finally:
            self.s3.delete_object(Bucket=self.bucket, Key=announcement)
        log.info("Deleted environment %s of bucket %s, last used before %s", key, self.bucket, self.cutoff)
        return True

    def _tidy(self) -> None:
        """Delete old notes, whose loss costs an installation, and the announcements of reapers that were killed."""
        abandoned = datetime.now(UTC) - _ABANDONED_AFTER
        for prefix, before in ((SOURCES, self.cutoff), (ANNOUNCEMENTS, abandoned)):
            for key, modified in self._objects(prefix):
                if modified < before:
                    self.s3.delete_object(Bucket=self.bucket, Key=key)

    def _objects(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        for page in pages:
            for entry in page.get("Contents", ()):
                yield entry["Key"], entry["LastModified"]
