"""Qarnot's buckets as a file system of fsspec, which comes with Airflow, on boto3 (``[storage]`` extra)."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from airflow_qarnot_pool.api.buckets import check_bucket
from airflow_qarnot_pool.api.errors import QarnotBucketNotFoundError
from airflow_qarnot_pool.hooks.keys import check_key
from airflow_qarnot_pool.hooks.storage import QarnotStorageHook, find_clash, with_storage_help

#: Bytes of a file that is written which are kept in memory; the rest is on disk until it is closed.
IN_MEMORY = 8 * 1024 * 1024


class QarnotFileSystem(AbstractFileSystem):
    """Paths are ``bucket/key``. Folders are what keys have in common up to a ``/``: they need not be made.

    :param conn_id: connection of type ``qarnot``.
    """

    protocol = "qarnot"
    #: A connection may change: nothing is kept longer than Airflow keeps it.
    cachable = False

    def __init__(self, conn_id: str | None = None, **kwargs: Any) -> None:
        super().__init__(conn_id=conn_id, **kwargs)
        self.conn_id = conn_id or QarnotStorageHook.default_conn_name

    @cached_property
    def s3(self) -> Any:
        """The boto3 client of the connection."""
        return QarnotStorageHook(self.conn_id).s3

    @property
    def fsid(self) -> str:
        """Tells the storages of two connections apart."""
        return f"qarnot-{self.conn_id}"

    # --- looking

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """What is in a bucket or folder; with an empty path, the buckets."""
        bucket, key = self._split(path)
        if not bucket:
            with _as_os_error("", "The buckets could not be listed"):
                found = [_folder(one["Name"]) for one in self.s3.list_buckets().get("Buckets", ())]
        else:
            found = self._entries(bucket, f"{key}/" if key else "")
            if not found and key:
                found = [self.info(path)]
                if found[0]["type"] == "directory":
                    found = []
        return found if detail else [one["name"] for one in found]

    def _entries(self, bucket: str, prefix: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        with _as_os_error(bucket, f"Bucket {bucket} could not be listed"):
            pages = self.s3.get_paginator("list_objects_v2").paginate(
                Bucket=bucket, Prefix=prefix, Delimiter="/"
            )
            for page in pages:
                found += [
                    _folder(f"{bucket}/{one['Prefix']}".rstrip("/")) for one in page.get("CommonPrefixes", ())
                ]
                found += [
                    _file(bucket, one["Key"], one) for one in page.get("Contents", ()) if one["Key"] != prefix
                ]
        return sorted(found, key=lambda one: str(one["name"]))

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Name, type, size in bytes and time of a file, folder or bucket."""
        bucket, key = self._split(path)
        if not bucket:
            return _folder("")
        with _as_os_error(bucket, f"{bucket}/{key} could not be looked up"):
            if not key:
                # Not HeadBucket, whose answers have no body and so no reason.
                self.s3.list_objects_v2(Bucket=bucket, MaxKeys=1)
                return _folder(bucket)
            same = self.s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("Contents", ())
            if same and same[0]["Key"] == key:
                return _file(bucket, key, same[0])
            below = self.s3.list_objects_v2(Bucket=bucket, Prefix=f"{key}/", MaxKeys=1)
            if below.get("KeyCount"):
                return _folder(f"{bucket}/{key}")
        raise FileNotFoundError(f"There is no {key} in bucket {bucket}")

    def created(self, path: str) -> datetime | None:
        """When it was written: files in buckets are not changed, but written anew."""
        return self.modified(path)

    def modified(self, path: str) -> datetime | None:
        """When it was written."""
        found: datetime | None = self.info(path).get("LastModified")
        return found

    def sign(self, path: str, expiration: int = 100, **kwargs: Any) -> str:
        """A URL that gives the file to whoever has it, for *expiration* seconds."""
        bucket, key = self._split(path)
        url: str = self.s3.generate_presigned_url(
            "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=expiration
        )
        return url

    # --- reading and writing

    def open(self, path: str, mode: str = "rb", *args: Any, **kwargs: Any) -> Any:
        """A file object, as the built-in ``open`` gives one. Text modes take ``encoding``, ``errors``, ``newline``."""
        if "r" not in mode and str(path).endswith("/"):
            raise IsADirectoryError(f"{path} ends with '/', as the name of a folder does")
        if "b" in mode or "r" in mode:
            return super().open(path, mode, *args, **kwargs)
        text = {name: kwargs.pop(name) for name in ("encoding", "errors", "newline") if name in kwargs}
        return _TextWriter(self.open(path, mode.replace("t", "") + "b", *args, **kwargs), **text)

    def _open(self, path: str, mode: str = "rb", block_size: Any = None, **kwargs: Any) -> Any:
        bucket, key = self._split(path)
        if not key:
            raise IsADirectoryError(f"{path} is a bucket")
        if mode == "rb":
            if self.isdir(path):
                raise IsADirectoryError(f"{path} is a folder")
            return _Reader(self, path, mode, block_size or "default", **kwargs)
        if mode == "xb" and self.exists(path):
            raise FileExistsError(f"{path} exists")
        if mode in ("wb", "xb"):
            self._check_new(bucket, key)
            return _Writer(self.s3, bucket, key)
        raise ValueError(f"Files in buckets can be read (r) or written anew (w, x), not opened with {mode!r}")

    def _check_new(self, bucket: str, key: str) -> None:
        """Refuse a key that would not come back as a file of that name."""
        check_bucket(bucket, "bucket", "Write {bucket}/{path}.")
        check_key(key)
        with _as_os_error(bucket, f"{bucket}/{key} could not be written"):
            clash = find_clash(self.s3, bucket, [key])
        if clash:
            raise FileExistsError(clash)

    def _fetch(self, path: str, start: int, end: int) -> bytes:
        bucket, key = self._split(path)
        with _as_os_error(bucket, f"{path} could not be read"):
            answer = self.s3.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}")
            data: bytes = answer["Body"].read()
        return data

    def touch(self, path: str, truncate: bool = True, **kwargs: Any) -> None:
        """Write an empty file; with ``truncate=False``, only where there is none."""
        if truncate or not self.exists(path):
            with self.open(path, "wb"):
                pass

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Copy a file within the storage."""
        if self.isdir(path1):
            return  # what is in it is copied by itself
        (bucket, key), (to, new) = self._split(path1), self._split(path2)
        self._check_new(to, new)
        with _as_os_error(bucket, f"{path1} could not be copied to {path2}"):
            self.s3.copy({"Bucket": bucket, "Key": key}, to, new)

    # --- making and deleting

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        """Make a bucket; folders need not be made."""
        bucket, key = self._split(path)
        if key and not create_parents:
            return
        with _as_os_error(bucket, f"Bucket {bucket} could not be made"):
            self.s3.create_bucket(Bucket=bucket)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make the bucket of a path."""
        if not exist_ok and self.exists(path):
            raise FileExistsError(f"{path} exists")
        self.mkdir(path)

    def rmdir(self, path: str) -> None:
        """Delete an empty bucket; folders go with their last file."""
        bucket, key = self._split(path)
        if not key:
            with _as_os_error(bucket, f"Bucket {bucket} could not be deleted"):
                self.s3.delete_bucket(Bucket=bucket)

    def _rm(self, path: str) -> None:
        bucket, key = self._split(path)
        if not key:
            self.rmdir(path)
            return
        with _as_os_error(bucket, f"{path} could not be deleted"):
            self.s3.delete_object(Bucket=bucket, Key=key)

    def rm_file(self, path: str) -> None:
        """Delete a file."""
        self._rm(path)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        """Return ``bucket/key`` of ``qarnot://connection@bucket/key``."""
        stripped = super()._strip_protocol(path)
        if isinstance(stripped, list):
            return stripped
        bucket, slash, key = stripped.partition("/")
        return f"{bucket.rpartition('@')[2]}{slash}{key}"

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        """Return the connection that a URL names, as Airflow's paths do."""
        connection, at, _ = urlsplit(path).netloc.rpartition("@")
        return {"conn_id": connection} if at and connection else {}

    def _split(self, path: str) -> tuple[str, str]:
        bucket, _, key = str(self._strip_protocol(path)).strip("/").partition("/")
        return bucket, key


class _Reader(AbstractBufferedFile):
    """A file that is read block by block."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.fs._fetch(self.path, start, end) if end > start else b""


class _Writer(io.BufferedIOBase):
    """A file that is uploaded when it is closed, whole: until then nothing of it can be seen."""

    def __init__(self, s3: Any, bucket: str, key: str) -> None:
        super().__init__()
        self._s3, self._bucket, self._key = s3, bucket, key
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if self.closed:
            return
        try:
            self._file.seek(0)
            with _as_os_error(self._bucket, f"{self._bucket}/{self._key} could not be written"):
                self._s3.upload_fileobj(self._file, self._bucket, self._key)
        finally:
            self._file.close()
            super().close()

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None:
            # What was written so far is not the file.
            self._file.close()
            super().close()
            return
        self.close()


class _TextWriter(io.TextIOWrapper):
    """Text on its way to such a file: a plain wrapper would close it, and so upload it, after an error too."""

    def __exit__(self, *error: Any) -> None:
        if error[0] is not None:
            file: Any = self.buffer
            file.__exit__(*error)
        super().__exit__(*error)


@contextmanager
def _as_os_error(bucket: str, what: str) -> Iterator[None]:
    """Errors as those who use files expect them, with the reason of the storage."""
    try:
        with with_storage_help(what, bucket):
            yield
    except QarnotBucketNotFoundError as error:
        raise FileNotFoundError(str(error)) from error


def _folder(name: str) -> dict[str, Any]:
    return {"name": name, "type": "directory", "size": 0}


def _file(bucket: str, key: str, entry: Any) -> dict[str, Any]:
    return {
        "name": f"{bucket}/{key}",
        "type": "file",
        "size": entry["Size"],
        "LastModified": entry.get("LastModified"),
        "ETag": entry.get("ETag"),
    }
