"""An S3 of one bucket, in this process: what ListObjectsV2 promises, and no more."""

from __future__ import annotations

import bisect
import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

START = datetime(2026, 1, 1, tzinfo=UTC)


class FakeS3:
    """A bucket with a clock of its own, which counts listings."""

    def __init__(self, page_size: int = 1000) -> None:
        self.now = START
        self.page_size = page_size
        #: Prefix and start of each request.
        self.requests: list[tuple[str, str]] = []
        self._keys: list[str] = []
        self._files: dict[str, dict[str, Any]] = {}

    def put(self, *keys: str, at: datetime | None = None, content: str = "x", seconds: float = 0.0) -> None:
        """Write files, with *seconds* between them. With *at*, they become visible now with an earlier time."""
        for key in keys:
            if key not in self._files:
                bisect.insort(self._keys, key)
            etag = hashlib.md5(content.encode()).hexdigest()
            self._files[key] = {
                "Key": key,
                "Size": len(content),
                "ETag": f'"{etag}"',
                "LastModified": at or self.now,
            }
            self.now += timedelta(seconds=seconds)

    def delete(self, key: str) -> None:
        self._keys.remove(key)
        del self._files[key]

    def list_objects_v2(
        self, *, Bucket: str, Prefix: str = "", StartAfter: str = "", ContinuationToken: str = ""
    ) -> dict[str, Any]:
        self.requests.append((Prefix, ContinuationToken or StartAfter))
        begin = max(
            bisect.bisect_left(self._keys, Prefix),
            bisect.bisect_right(self._keys, ContinuationToken or StartAfter),
        )
        found = []
        for key in self._keys[begin:]:
            if not key.startswith(Prefix) or len(found) > self.page_size:
                break
            found.append(key)
        page: dict[str, Any] = {"IsTruncated": len(found) > self.page_size}
        found = found[: self.page_size]
        if found:
            page["Contents"] = [dict(self._files[key]) for key in found]
        if page["IsTruncated"]:
            page["NextContinuationToken"] = found[-1]
        date = self.now.strftime("%a, %d %b %Y %H:%M:%S GMT")
        return {**page, "ResponseMetadata": {"HTTPHeaders": {"date": date}}}
