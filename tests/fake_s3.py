"""An S3 of one bucket, in this process or over HTTP: what ListObjectsV2 promises, and no more."""

from __future__ import annotations

import bisect
import hashlib
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit
from xml.sax.saxutils import escape

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


class S3Server(FakeS3):
    """A bucket over HTTP on loopback, for other processes; a context manager. Files appear without a request."""

    def __enter__(self) -> Self:
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def put(self, *keys: str, **options: Any) -> None:
        with self._lock:
            self.now = datetime.now(UTC)
            super().put(*keys, **options)

    def _listing(self, query: dict[str, str]) -> str:
        with self._lock:
            page = self.list_objects_v2(
                Bucket="",
                Prefix=query.get("prefix", ""),
                StartAfter=query.get("start-after", ""),
                ContinuationToken=query.get("continuation-token", ""),
            )
        files = "".join(
            f"<Contents><Key>{escape(file['Key'])}</Key><Size>{file['Size']}</Size><ETag>{file['ETag']}</ETag>"
            f"<LastModified>{file['LastModified']:%Y-%m-%dT%H:%M:%SZ}</LastModified></Contents>"
            for file in page.get("Contents", ())
        )
        token = escape(page.get("NextContinuationToken", ""))
        return (
            f"<ListBucketResult><IsTruncated>{str(page['IsTruncated']).lower()}</IsTruncated>{files}"
            f"<NextContinuationToken>{token}</NextContinuationToken></ListBucketResult>"
        )

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        bucket = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = bucket._listing(dict(parse_qsl(urlsplit(self.path).query))).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
