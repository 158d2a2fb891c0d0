"""Files in the buckets of a Qarnot account (``[storage]`` extra)."""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from airflow_qarnot_pool.api.buckets import check_bucket, pattern
from airflow_qarnot_pool.api.errors import (
    QarnotBucketNotFoundError,
    QarnotCredentialsError,
    QarnotError,
    QarnotInvalidSpecError,
)
from airflow_qarnot_pool.api.fields import Refusal
from airflow_qarnot_pool.hooks.keys import check_key, folders_of, local_paths
from airflow_qarnot_pool.hooks.qarnot import QarnotHook
from airflow_qarnot_pool.lineage.collector import report_read, report_written

if TYPE_CHECKING:
    import os

    from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file in a bucket. ``size`` is in bytes."""

    key: str
    size: int
    modified: datetime | None = None


class QarnotStorageHook(QarnotHook):
    """Upload inputs and download results, with the same connection as the other hook.

    .. code-block:: python

        storage = QarnotStorageHook()
        storage.upload("scenes", "/data/scenes")  # a folder, with all below it
        storage.upload("scenes", b'{"frames": 12}', key="settings.json")
        ...
        storage.download("frames", "/data/frames", prefix="2026-01-01/")

    Missing buckets are created. Storage: S3, with the account's e-mail as access key and its API token as
    secret key (Qarnot API: ``/settings``, ``/info``).

    :param qarnot_conn_id: connection of type ``qarnot``.
    """

    @cached_property
    def s3(self) -> Any:
        """The boto3 client, for other calls."""
        return s3_client(self.settings)

    def upload(self, bucket: str, source: str | os.PathLike[str] | bytes, key: str = "") -> list[str]:
        """Upload a file, a folder with all its files, or bytes, and return the keys.

        :param key: key of the bytes or the file (default: its name), or prefix of all keys of a folder.
        :raises FileNotFoundError: there is no such file or folder.
        :raises QarnotInvalidSpecError: a key cannot be downloaded as a file of that name. Nothing is uploaded.
        """
        bucket = _bucket(bucket, "key")
        sources = _sources(bucket, source, key)
        for name in sources:
            check_key(name)
        what = key if isinstance(source, bytes) else source
        with with_storage_help(f"{what} could not be uploaded to bucket {bucket}", bucket):
            # Qarnot's CreateBucket is idempotent for the owner of the bucket.
            self.s3.create_bucket(Bucket=bucket)
            if clash := find_clash(self.s3, bucket, sources):
                raise QarnotInvalidSpecError(clash, field="key")
            for name, content in sources.items():
                if isinstance(content, bytes):
                    self.s3.put_object(Bucket=bucket, Key=name, Body=content)
                else:
                    self.s3.upload_file(str(content), bucket, name)
        self.log.info("Uploaded %d files to bucket %s", len(sources), bucket)
        if sources:
            # A folder is one place, because Airflow collects a limited number.
            report_written(self, bucket, next(iter(sources)) if len(sources) == 1 else key)
        return list(sources)

    def list(self, bucket: str, prefix: str = "") -> list[StoredFile]:
        """List the files of a bucket whose keys start with *prefix*, sorted by key.

        :raises QarnotBucketNotFoundError: there is no such bucket.
        """
        bucket = _bucket(bucket, "prefix")
        return builtins.list(iterate_files(self.s3, bucket, prefix))

    def download(
        self,
        bucket: str,
        directory: str | os.PathLike[str],
        prefix: str = "",
        whitelist: str | None = None,
    ) -> builtins.list[Path]:
        """Download files into *directory*, under their keys without *prefix*, and return their paths.

        :param whitelist: regular expression to search in the keys, as ``results_whitelist`` of a task.
        :raises QarnotInvalidSpecError: a key is not a path in the directory, or two paths are equal. Nothing is
            downloaded.
        """
        expression = _pattern(whitelist)
        keys = [file.key for file in self.list(bucket, prefix) if expression.search(file.key)]
        targets = [(key, Path(directory, name)) for key, name in local_paths(keys, prefix)]
        for key, target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
            # A short name, because boto3 appends to it while it writes.
            unfinished = target.with_name(f".{uuid4().hex}")
            with with_storage_help(f"{key} could not be read from bucket {bucket}", bucket):
                self.s3.download_file(bucket, key, str(unfinished))
            unfinished.replace(target)
        self.log.info("Downloaded %d files from bucket %s", len(targets), bucket)
        report_read(self, bucket, prefix)
        return [target for _, target in targets]

    def read(self, bucket: str, key: str) -> bytes:
        """Return the content of one file."""
        bucket = _bucket(bucket, "key")
        with with_storage_help(f"{key} could not be read from bucket {bucket}", bucket):
            data: bytes = self.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        report_read(self, bucket, key)
        return data


def iterate_files(s3: Any, bucket: str, prefix: str = "") -> Iterator[StoredFile]:
    """Iterate over the files of a bucket whose keys start with *prefix*, sorted by key.

    :raises QarnotBucketNotFoundError: there is no such bucket.
    """
    with with_storage_help(f"Bucket {bucket} could not be listed", bucket):
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            yield from files_of(page)


def files_of(page: dict[str, Any]) -> Iterator[StoredFile]:
    """Iterate over the files in a response of ``ListObjectsV2``."""
    for entry in page.get("Contents", ()):
        # Consoles create an empty object for a folder.
        if entry["Size"] or not entry["Key"].endswith("/"):
            yield StoredFile(key=entry["Key"], size=entry["Size"], modified=entry.get("LastModified"))


def s3_client(settings: ConnectionSettings, timeout: float | None = None) -> Any:
    """Return a boto3 client for the storage of a connection.

    :param timeout: seconds for each of two attempts. Default: those of boto3, and five attempts.
    :raises QarnotInvalidSpecError: boto3 is not installed, or this Qarnot has no storage.
    """
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise QarnotInvalidSpecError(
            "Files in buckets need boto3: pip install 'airflow-qarnot-pool[storage]'", field="bucket"
        ) from None
    client = settings.client()
    endpoint = client.storage_url()
    if endpoint is None:
        raise QarnotInvalidSpecError(
            f"The Qarnot of connection {settings.conn_id!r} has no storage", field="storage_url"
        )
    proxies = {"http": settings.proxy, "https": settings.proxy}
    # Not the default session, which all threads of the process share.
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=client.account.info().email,
        aws_secret_access_key=settings.token,
        # Qarnot has no regions. CreateBucket would have to name any other one again.
        region_name="us-east-1",
        verify=settings.verify,
        config=Config(
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"mode": "standard", "max_attempts": 5 if timeout is None else 2},
            **({} if timeout is None else {"connect_timeout": timeout, "read_timeout": timeout}),
            # None means the proxies of the environment, as for the API. An empty dict would mean no proxy.
            proxies=proxies if settings.proxy else None,
        ),
    )


@contextmanager
def with_storage_help(what: str, bucket: str) -> Iterator[None]:
    """Turn an exception of boto3 into a QarnotError whose message starts with *what*."""
    try:
        yield
    except QarnotError:
        raise
    except Exception as error:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        if not isinstance(error, (Boto3Error, BotoCoreError, ClientError)):
            raise
        answer = getattr(error, "response", {})
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        code = str(answer.get("Error", {}).get("Code"))
        if code == "NoSuchBucket":
            raise QarnotBucketNotFoundError(
                f"{what}: there is no such bucket", kind="bucket", ref=bucket
            ) from error
        if status in (401, 403):
            raise QarnotCredentialsError(
                f"{what}: the storage rejected the token of the account ({code})",
                status=status,
                kind="bucket",
                ref=bucket,
            ) from error
        raise QarnotError(f"{what}: {error}", status=status, kind="bucket", ref=bucket) from error


def find_clash(s3: Any, bucket: str, keys: Iterable[str]) -> str | None:
    """Return why these keys conflict with files in the bucket: a file would be the folder of another. Else None."""

    def first(prefix: str) -> str | None:
        entries = s3.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1).get("Contents", ())
        return entries[0]["Key"] if entries else None

    groups: dict[str, builtins.list[str]] = {}
    for key in sorted(keys):
        groups.setdefault(key.rpartition("/")[0], []).append(key)
    for folder in sorted({parent for group in groups.values() for parent in folders_of(group[0])}):
        if first(folder) == folder:
            return f"Bucket {bucket} has a file {folder!r}, so it cannot have files below {folder + '/'!r}"
    for folder, group in groups.items():
        if len(group) > 1 and first(f"{folder}/" if folder else "") is None:
            continue
        for key in group:
            if first(f"{key}/") is not None:
                return f"Bucket {bucket} has files below {key + '/'!r}, so it cannot have a file {key!r}"
    return None


def _bucket(name: str, parameter: str) -> str:
    return check_bucket(name, "bucket", f"Give {{bucket!r}}, and {{path!r}} as {parameter}.")


def _pattern(whitelist: str | None) -> re.Pattern[str]:
    """Compile *whitelist*. Without one, the expression matches every key."""
    try:
        return re.compile(pattern(whitelist or ""))
    except (Refusal, re.error) as error:
        remedy = error.remedy if isinstance(error, Refusal) else "Write a Python regular expression."
        raise QarnotInvalidSpecError(f"whitelist {error}", field="whitelist", remedy=remedy) from None


def _sources(bucket: str, source: str | os.PathLike[str] | bytes, key: str) -> dict[str, bytes | Path]:
    """Return the content of each key: the bytes, or a file."""
    if isinstance(source, bytes):
        if not key:
            raise QarnotInvalidSpecError(
                "key is missing for bytes, which have no name", field="key", remedy="Give key='...'."
            )
        return {key: source}
    if not str(source).strip():
        raise QarnotInvalidSpecError(
            "source is empty", field="source", remedy="Give the path of a file or folder."
        )
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"There is no {path} to upload to bucket {bucket} on this worker")
    if not path.is_dir():
        return {key or path.name: _regular(path)}
    prefix = f"{key.rstrip('/')}/" if key else ""
    return {prefix + file.relative_to(path).as_posix(): file for file in _files(path)}


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if not path.is_dir() or path.is_symlink():
            yield _regular(path)


def _regular(path: Path) -> Path:
    if path.is_file():
        return path
    problem = "a link to a folder or to nothing" if path.is_symlink() else "not a regular file"
    raise QarnotInvalidSpecError(
        f"{path} is {problem} and cannot be uploaded",
        field="source",
        remedy="Upload regular files.",
    )


__all__ = [
    "QarnotStorageHook",
    "StoredFile",
    "files_of",
    "find_clash",
    "iterate_files",
    "s3_client",
    "with_storage_help",
]
