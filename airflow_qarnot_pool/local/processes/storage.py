"""Serve buckets with moto's S3 server in a thread, and copy between buckets and directories of instances.

Qarnot API: storage is S3, access key = account e-mail, secret key = API token (qarnot-api.md 1.4).
All functions block, so the server calls them in threads.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.sax.saxutils import escape

from airflow_qarnot_pool.local.processes import signatures
from airflow_qarnot_pool.local.processes.buckets import CHANGING, KeptBuckets, date_of, set_date
from airflow_qarnot_pool.local.processes.signatures import S3Request
from airflow_qarnot_pool.local.processes.state import State
from airflow_qarnot_pool.local.schemas.addresses import DISCARDED_BYTES, Addresses, url_of

if find_spec("moto") is None:
    raise ModuleNotFoundError("No module named 'moto'")

MAX_KEY = 1024
"""Maximum length of the key of an S3 object, in bytes."""
MAX_NAMED = 3
"""Maximum number of files that an error names."""
MAX_SHOWN = 200
_ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message></Error>"


class StorageError(Exception):
    """A bucket operation failed; the message becomes the error of the instance.

    :param is_partial: whether some of the files were copied.
    """

    def __init__(self, message: str, *, is_partial: bool = False) -> None:
        super().__init__(message)
        self.is_partial = is_partial


@dataclass(frozen=True, slots=True)
class MountedBucket:
    """One item of advancedResourceBuckets."""

    bucket: str
    prefix: str = ""
    strip: str = ""

    def local_name(self, key: str) -> str | None:
        """Return the path of an object relative to the directory, or None if it is filtered out."""
        if not key.startswith(self.prefix) or key.endswith("/"):
            return None
        name = key.removeprefix(self.strip).lstrip("/")
        parts = Path(name).parts
        return None if not parts or ".." in parts else str(Path(*parts))


@dataclass(frozen=True, slots=True)
class Destination:
    """A bucket for results, with filters that are regular expressions searched in the relative path."""

    bucket: str
    prefix: str = ""
    whitelist: str | None = None
    blacklist: str | None = None

    def wants(self, name: str) -> bool:
        if self.whitelist and not re.search(self.whitelist, name):
            return False
        return not (self.blacklist and re.search(self.blacklist, name))


Seen = dict[str, tuple[int, int]]
"""Size and mtime in ns by relative path: the contents of a directory, to distinguish results from resources."""


def scan(directory: str) -> Seen:
    """Return the regular files under a directory."""
    files: Seen = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path):
                status = os.stat(path)
                files[os.path.relpath(path, directory)] = (status.st_size, status.st_mtime_ns)
    return files


class Storage:
    """S3 server of one account.

    :param email: the access key that is accepted.
    :param token: its secret.
    :param allowed_hosts: accepted `Host` headers in addition to loopback names.
    :param state: keeps the buckets over a restart; None keeps them in memory.
    """

    def __init__(
        self,
        host: str,
        port: int,
        email: str,
        token: str,
        allowed_hosts: tuple[str, ...] = (),
        state: State | None = None,
    ) -> None:
        self._host, self._email, self._token = host, email, token
        self.keeps_dates: Callable[[], bool] = lambda: False
        """Whether a copy of an object onto itself keeps its date."""
        self._kept = KeptBuckets(state) if state else None
        self._lock = threading.Lock()
        self._app: Any = None
        self._client: Any = None
        self._server = self._listen(port)
        self._addresses = Addresses(self._server.server_port, allowed_hosts)
        self.url = url_of(host, self._server.server_port)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def _listen(self, port: int) -> Any:
        from werkzeug.serving import WSGIRequestHandler, make_server

        storage = self

        class Handler(WSGIRequestHandler):
            def log_request(self, *args: Any, **kwargs: Any) -> None:
                pass

            def handle_expect_100(self) -> bool:
                """Refuse before the client sends a body. werkzeug sends the 100 of a request that it runs."""
                return not self._is_refused()

            def run_wsgi(self) -> None:
                if not self._is_refused():
                    super().run_wsgi()

            def _is_refused(self) -> bool:
                refusal = storage._refusal(S3Request(self.command, self.path, self.headers))
                if refusal is not None:
                    self._refuse(*refusal)
                return refusal is not None

            def _refuse(self, code: str, message: str) -> None:
                """Respond here, because werkzeug would read the whole body of the request first."""
                length = self.headers.get("Content-Length", "")
                if length.isdigit() and "Expect" not in self.headers:
                    self.rfile.read(min(int(length), DISCARDED_BYTES))
                body = _ERROR.format(code, escape(message)).encode()
                self.send_response(403)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Connection", "close")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)
                self.close_connection = True

        return make_server(self._host, port, self._answer, threaded=True, request_handler=Handler)

    def _refusal(self, request: S3Request) -> tuple[str, str] | None:
        """Return the S3 error code and the message of a request that is refused."""
        headers = request.headers
        if reason := self._addresses.refusal(headers.get_all("Host", []), headers.get_all("Origin", [])):
            return "AccessDenied", reason
        code = signatures.refusal(request, self._email, self._token)
        return None if code is None else (code, "The request needs a signature by the key of the account.")

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Pass a request to moto, and no permission for pages of other sites back."""
        with self._lock:
            if self._app is None:
                # On first use, because importing moto takes seconds and many tests use no bucket.
                from moto.moto_server.werkzeug_app import create_backend_app

                app = create_backend_app("s3").wsgi_app
                if self._kept is not None:
                    self._kept.restore()
                self._app = app

        started: list[Any] = []

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            kept = [
                (name, value) for name, value in headers if not name.lower().startswith("access-control-")
            ]
            started[:] = [status, kept, *error]
            return started.append

        copied = _copied_onto_itself(environ) if self.keeps_dates() else None
        date = None if copied is None else date_of(*copied)
        response: Iterable[bytes] = self._app(environ, start)
        if copied is not None and date is not None:
            set_date(*copied, date)
        if self._kept is not None and environ["REQUEST_METHOD"] in CHANGING:
            try:
                self._kept.keep(environ["PATH_INFO"].lstrip("/").partition("/")[0])
            except (OSError, sqlite3.Error) as error:
                text = _ERROR.format("InternalError", escape(f"The change was not stored: {error}"))
                started[:] = ["500 Internal Server Error", [("Content-Type", "application/xml")]]
                response = [text.encode()]
        start_response(*started)
        return response

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()

    @property
    def _s3(self) -> Any:
        with self._lock:
            if self._client is None:
                import boto3
                from botocore.config import Config

                self._client = boto3.session.Session().client(
                    "s3",
                    endpoint_url=self.url,
                    aws_access_key_id=self._email,
                    aws_secret_access_key=self._token,
                    region_name="us-east-1",
                    config=Config(s3={"addressing_style": "path"}, proxies={}, max_pool_connections=32),
                )
            return self._client

    def missing(self, buckets: Iterable[str]) -> str | None:
        """Return the first of these buckets that does not exist."""
        from botocore.exceptions import ClientError, ParamValidationError

        for bucket in buckets:
            try:
                self._s3.head_bucket(Bucket=bucket)
            except (ClientError, ParamValidationError):
                return bucket
        return None

    def buckets(self) -> int:
        """Count the buckets."""
        is_empty = self._app is None and (self._kept is None or self._kept.is_empty)
        return 0 if is_empty else len(self._s3.list_buckets().get("Buckets", []))

    def make(self, bucket: str) -> None:
        if self.missing([bucket]):
            self._s3.create_bucket(Bucket=bucket)

    def download(self, resources: Iterable[MountedBucket], directory: str) -> int:
        """Copy resources into a directory, later ones over earlier ones. Return the bytes copied.

        Raises StorageError.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        copied = 0
        for resource in resources:
            try:
                pages = self._s3.get_paginator("list_objects_v2").paginate(
                    Bucket=resource.bucket, Prefix=resource.prefix
                )
                for page in pages:
                    for entry in page.get("Contents", []):
                        name = resource.local_name(entry["Key"])
                        if name is None:
                            continue
                        target = os.path.join(directory, name)
                        os.makedirs(os.path.dirname(target), exist_ok=True)
                        self._s3.download_file(resource.bucket, entry["Key"], target)
                        # Commands run scripts without chmod, as on Qarnot's nodes.
                        os.chmod(target, 0o755)
                        copied += entry["Size"]
            except (BotoCoreError, ClientError, OSError, ValueError) as error:
                raise StorageError(
                    f"resources of bucket {resource.bucket} were not copied: {error}"
                ) from error
        return copied

    def upload(self, directory: str, destination: Destination, before: Seen) -> int:
        """Copy new and changed files since `before` into the bucket, which is created if it is missing.

        Return the bytes copied. Raises StorageError, after all files that can be copied have been.
        """
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        copied, count = 0, 0
        failed: dict[str, Exception] = {}
        try:
            self.make(destination.bucket)
            for name, seen in sorted(scan(directory).items()):
                if before.get(name) == seen or not destination.wants(name):
                    continue
                try:
                    self._put(os.path.join(directory, name), destination.bucket, destination.prefix + name)
                    copied, count = copied + seen[0], count + 1
                except (Boto3Error, BotoCoreError, ClientError, OSError, ValueError) as error:
                    failed[name] = error
        except (BotoCoreError, ClientError, OSError, re.error) as error:
            raise StorageError(f"results were not copied to bucket {destination.bucket}: {error}") from error
        if failed:
            reasons = [f"{_printable(name)}: {error}" for name, error in list(failed.items())[:MAX_NAMED]]
            more = [f"and {len(failed) - MAX_NAMED} others"] if len(failed) > MAX_NAMED else []
            raise StorageError(
                f"results were not copied to bucket {destination.bucket}: {', '.join([*reasons, *more])}",
                is_partial=count > 0,
            ) from next(iter(failed.values()))
        return copied

    def _put(self, path: str, bucket: str, key: str) -> None:
        """Copy one file. Raises ValueError if S3 has no such key."""
        try:
            size = len(key.encode())
        except UnicodeEncodeError:
            raise ValueError("the name is not UTF-8") from None
        if size > MAX_KEY:
            raise ValueError(f"the name has {size} bytes, and S3 takes {MAX_KEY}")
        self._s3.upload_file(path, bucket, key)


def _copied_onto_itself(environ: dict[str, Any]) -> tuple[str, str] | None:
    """Return the bucket and the key of an object that a request copies onto itself."""
    target = environ["PATH_INFO"].encode("latin-1").decode(errors="replace").lstrip("/")
    source = unquote(environ.get("HTTP_X_AMZ_COPY_SOURCE", "")).lstrip("/")
    bucket, _, key = target.partition("/")
    return (bucket, key) if key and source == target else None


def _printable(name: str) -> str:
    """Return the end of a file name as text that can be encoded."""
    return name.encode(errors="backslashreplace").decode()[-MAX_SHOWN:]
