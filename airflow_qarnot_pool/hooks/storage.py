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
    """Upload inputs and fetch results, with the Airflow connection that everything else uses.

    .. code-block:: python

        storage = QarnotStorageHook()
        storage.upload("scenes", "/data/scenes")  # a folder, with all below it
        storage.upload("scenes", b'{"frames": 12}', key="settings.json")
        ...
        storage.download("frames", "/data/frames", prefix="2026-01-01/")

    Buckets that are missing are made. Storage: S3, with the account's e-mail as access key and its API token as
    secret key (Qarnot API: ``/settings``, ``/info``).

    :param qarnot_conn_id: connection of type ``qarnot``.
    """

    @cached_property
    def s3(self) -> Any:
        """A boto3 client for whatever is not here."""
        return s3_client(self.settings)

    def upload(self, bucket: str, source: str | os.PathLike[str] | bytes, key: str = "") -> list[str]:
        """Upload a file, a folder with all below it, or bytes; returns the keys.

        :param key: of the file (default: its name) or the bytes; of a folder, what all keys begin with.
        :raises FileNotFoundError: there is no such file or folder.
        :raises QarnotInvalidSpecError: a key would not come back as a file of that name; nothing is uploaded then.
        """
        bucket = _bucket(bucket, "key")
        sources = _sources(bucket, source, key)
        for name in sources:
            check_key(name)
        what = key if isinstance(source, bytes) else source
        with with_storage_help(f"{what} could not be uploaded to bucket {bucket}", bucket):
            # Fine where it exists: Qarnot's CreateBucket is idempotent for its owner.
            self.s3.create_bucket(Bucket=bucket)
            if clash := find_clash(self.s3, bucket, sources):
                raise QarnotInvalidSpecError(clash, field="key")
            for name, content in sources.items():
                if isinstance(content, bytes):
                    self.s3.put_object(Bucket=bucket, Key=name, Body=content)
                else:
                    self.s3.upload_file(str(content), bucket, name)
        self.log.info("Uploaded %d files to bucket %s", len(sources), bucket)
        return list(sources)

    def list(self, bucket: str, prefix: str = "") -> list[StoredFile]:
        """The files of a bucket whose keys begin with *prefix*, sorted by key.

        :raises QarnotBucketNotFoundError: there is no such bucket.
        """
        bucket = _bucket(bucket, "prefix")
        with with_storage_help(f"Bucket {bucket} could not be listed", bucket):
            pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            return [
                StoredFile(key=one["Key"], size=one["Size"], modified=one.get("LastModified"))
                for page in pages
                for one in page.get("Contents", ())
                # Consoles mark folders that they make with empty objects.
                if one["Size"] or not one["Key"].endswith("/")
            ]

    def download(
        self,
        bucket: str,
        directory: str | os.PathLike[str],
        prefix: str = "",
        whitelist: str | None = None,
    ) -> builtins.list[Path]:
        """Download files into *directory*, under their keys without *prefix*; returns where they are.

        :param whitelist: regular expression to be found in the keys, as ``results_whitelist`` of a task.
        :raises QarnotInvalidSpecError: a key is no path in the directory, or two are the same; nothing is downloaded.
        """
        wanted_by = _pattern(whitelist)
        wanted = [one.key for one in self.list(bucket, prefix) if wanted_by.search(one.key)]
        targets = [(key, Path(directory, name)) for key, name in local_paths(wanted, prefix)]
        for key, target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
            # boto3 adds to the name while it writes, which may make it too long.
            unfinished = target.with_name(f".{uuid4().hex}")
            with with_storage_help(f"{key} could not be read from bucket {bucket}", bucket):
                self.s3.download_file(bucket, key, str(unfinished))
            unfinished.replace(target)
        self.log.info("Downloaded %d files from bucket %s", len(targets), bucket)
        return [target for _, target in targets]

    def read(self, bucket: str, key: str) -> bytes:
        """The content of one file."""
        bucket = _bucket(bucket, "key")
        with with_storage_help(f"{key} could not be read from bucket {bucket}", bucket):
            data: bytes = self.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        return data


def s3_client(settings: ConnectionSettings) -> Any:
    """A boto3 client for the storage of a connection.

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
    # A session of its own: the default one is shared by all threads of the process.
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=client.account.info().email,
        aws_secret_access_key=settings.token,
        # Qarnot has no regions; any other than this one would have to be named again in CreateBucket.
        region_name="us-east-1",
        verify=settings.verify,
        config=Config(
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"mode": "standard", "max_attempts": 5},
            # None: those of the environment, as the API has them; an empty dict would mean none at all.
            proxies=proxies if settings.proxy else None,
        ),
    )


@contextmanager
def with_storage_help(what: str, bucket: str) -> Iterator[None]:
    """Turn what boto3 raises into an error of ours that begins with *what*."""
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
                f"{what}: the storage refuses the account's token ({code}); is the connection's token the one "
                "of the account?",
                status=status,
                kind="bucket",
                ref=bucket,
            ) from error
        raise QarnotError(f"{what}: {error}", status=status, kind="bucket", ref=bucket) from error


def find_clash(s3: Any, bucket: str, keys: Iterable[str]) -> str | None:
    """Return why files of these keys cannot be in the bucket beside those that are: one is the folder of another."""

    def first(prefix: str) -> str | None:
        found = s3.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1).get("Contents", ())
        return found[0]["Key"] if found else None

    groups: dict[str, builtins.list[str]] = {}
    for key in sorted(keys):
        groups.setdefault(key.rpartition("/")[0], []).append(key)
    for folder in sorted({one for group in groups.values() for one in folders_of(group[0])}):
        if first(folder) == folder:
            return f"Bucket {bucket} has a file {folder!r}, so that nothing can be below {folder + '/'!r}"
    for folder, group in groups.items():
        if len(group) > 1 and first(f"{folder}/" if folder else "") is None:
            continue
        for key in group:
            if first(f"{key}/") is not None:
                return f"Bucket {bucket} has files below {key + '/'!r}, so that no file can be {key!r}"
    return None


def _bucket(name: str, parameter: str) -> str:
    return check_bucket(name, "bucket", f"Give {{bucket!r}}, and {{path!r}} as {parameter}.")


def _pattern(whitelist: str | None) -> re.Pattern[str]:
    """Return what *whitelist* finds; without one, everything."""
    try:
        return re.compile(pattern(whitelist or ""))
    except (Refusal, re.error) as error:
        remedy = error.remedy if isinstance(error, Refusal) else "Write a regular expression of Python's."
        raise QarnotInvalidSpecError(f"whitelist {error}", field="whitelist", remedy=remedy) from None


def _sources(bucket: str, source: str | os.PathLike[str] | bytes, key: str) -> dict[str, bytes | Path]:
    """Return what each key gets: the bytes, or a file."""
    if isinstance(source, bytes):
        if not key:
            raise QarnotInvalidSpecError("Bytes have no name: give key='...'", field="key")
        return {key: source}
    if not str(source).strip():
        raise QarnotInvalidSpecError("source is empty: give the path of a file or folder", field="source")
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"There is no {path} to upload to bucket {bucket} on this worker")
    if not path.is_dir():
        return {key or path.name: _regular(path)}
    start = f"{key.rstrip('/')}/" if key else ""
    return {start + one.relative_to(path).as_posix(): one for one in _files(path)}


def _files(folder: Path) -> Iterator[Path]:
    for one in sorted(folder.rglob("*")):
        if not one.is_dir() or one.is_symlink():
            yield _regular(one)


def _regular(path: Path) -> Path:
    if path.is_file():
        return path
    what = "a link to a folder or to nothing" if path.is_symlink() else "no regular file"
    raise QarnotInvalidSpecError(
        f"{path} is {what}, which cannot be uploaded",
        field="source",
        remedy="Upload the files it stands for.",
    )


__all__ = ["QarnotStorageHook", "StoredFile", "find_clash", "s3_client", "with_storage_help"]
