"""Start DAGs for new files in a bucket."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.buckets import check_bucket, key_prefix, pattern
from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.fields import Refusal
from airflow_qarnot_pool.triggers.watcher import QarnotWatcher

if TYPE_CHECKING:
    from datetime import datetime

    from airflow_qarnot_pool.triggers.watch_poller import WatchSubscriber
    from airflow_qarnot_pool.triggers.watermark import Item


class QarnotBucketWatcher(QarnotWatcher):
    """Report new files below a prefix of a bucket (``[storage]`` extra).

    .. code-block:: python

        inbox = Asset(
            "inbox",
            watchers=[AssetWatcher(name="inbox", trigger=QarnotBucketWatcher(bucket="scenes", prefix="in/"))],
        )

    Each event has ``bucket``, ``prefix`` and ``files``, a list of ``{key, size, etag, modified}`` with the size in
    bytes. A file that is overwritten is new again. A file that is deleted before it was seen is not reported.

    All watchers of a bucket share its listing, which takes one request for each 1,000 files.

    :param bucket: bucket of the account. It may be created later.
    :param prefix: start of the keys. An empty one is the whole bucket.
    :param whitelist: regular expression to search in the keys, as ``results_whitelist`` of a task.
    """

    items = "files"
    time = "modified"

    def __init__(self, *, bucket: str, prefix: str = "", whitelist: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bucket = check_bucket(bucket, "bucket", "Give {bucket!r}, and {path!r} as prefix.")
        try:
            self.prefix = key_prefix(prefix)
            self.whitelist = None if whitelist is None else pattern(whitelist)
            self._expression = None if self.whitelist is None else re.compile(self.whitelist)
        except (Refusal, re.error) as error:
            field = "whitelist" if hasattr(self, "prefix") else "prefix"
            remedy = error.remedy if isinstance(error, Refusal) else "Write a Python regular expression."
            raise QarnotInvalidSpecError(f"{field} {error}", field=field, remedy=remedy) from None

    def _scope(self) -> dict[str, Any]:
        return {"bucket": self.bucket, "prefix": self.prefix, "whitelist": self.whitelist}

    def _subscribe(self) -> WatchSubscriber:
        from airflow_qarnot_pool.triggers.bucket_poller import watch_bucket

        accepts = None if self._expression is None else self._accepts
        return watch_bucket(self.qarnot_conn_id, self.bucket, self.prefix, self.poll_interval, accepts)

    def _accepts(self, item: Item, _: datetime) -> bool:
        assert self._expression is not None
        return self._expression.search(item["key"]) is not None
