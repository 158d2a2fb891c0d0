"""An fsspec file system for Qarnot's buckets, with boto3 (``[storage]`` extra)."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from airflow_qarnot_pool.api.buckets import check_bucket
from airflow_qarnot_pool.api.errors import QarnotBucketNotFoundError
from airflow_qarnot_pool.hooks.keys import check_key
from airflow_qarnot_pool.hooks.storage import QarnotStorageHook, find_clash, with_storage_help

#: Maximum bytes of an unfinished file in memory, because files may be large. A larger one is on disk.
MAX_IN_MEMORY = 8 * 1024 * 1024


class QarnotFileSystem(AbstractFileSystem):
    """File system with paths ``bucket/key``. A folder is a common prefix of keys, so it need not be created.

    :param conn_id: connection of type ``qarnot``.
    """

    protocol = "qarnot"
    #: Instances are not cached, because a connection may change.
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
        """Identifier of the storage of the connection."""
        return f"qarnot-{self.conn_id}"

    # --- listing

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """List a bucket or folder. An empty path lists the buckets."""
        bucket, key = self._split(path)
        if not bucket:
            with _as_os_error("", "The buckets could not be listed"):
                entries = [_folder(entry["Name"]) for entry in self.s3.list_buckets().get("Buckets", ())]
        else:
            entries = self._entries(bucket, f"{key}/" if key else "")
            if not entries and key:
                entries = [entry for entry in (self.info(path),) if entry["type"] != "directory"]
        return entries if detail else [entry["name"] for entry in entries]

    def _entries(self, bucket: str, prefix: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        with _as_os_error(bucket, f"Bucket {bucket} could not be listed"):
            pages = self.s3.get_paginator("list_objects_v2").paginate(
                Bucket=bucket, Prefix=prefix, Delimiter="/"
            )
            for page in pages:
                entries += [
                    _folder(f"{bucket}/{folder['Prefix']}".rstrip("/"))
                    for folder in page.get("CommonPrefixes", ())
                ]
                entries += [
                    _file(bucket, file["Key"], file)
                    for file in page.get("Contents", ())
                    if file["Key"] != prefix
                ]
        return sorted(entries, key=lambda entry: str(entry["name"]))

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Return name, type, size in bytes and time of a file, folder or bucket."""
        bucket, key = self._split(path)
        if not bucket:
            return _folder("")
        with _as_os_error(bucket, f"{bucket}/{key} could not be looked up"):
            if not key:
                # Not HeadBucket, whose responses have no body and so no error message.
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
        """Return when a file was written, because a file in a bucket is always replaced as a whole."""
        return self.modified(path)

    def modified(self, path: str) -> datetime | None:
        """Return when a file was written."""
        moment: datetime | None = self.info(path).get("LastModified")
        return moment

    def sign(self, path: str, expiration: int = 100, **kwargs: Any) -> str:
        """Return a URL that grants access to the file for *expiration* seconds."""
        bucket, key = self._split(path)
        url: str = self.s3.generate_presigned_url(
            "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=expiration
        )
        return url

    # --- reading and writing

    def open(self, path: str, mode: str = "rb", *args: Any, **kwargs: Any) -> Any:
        """Open a file as the built-in ``open`` does. Text modes take ``encoding``, ``errors`` and ``newline``."""
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
        raise ValueError(f"mode must be r, w or x for a file in a bucket, got {mode!r}")

    def _check_new(self, bucket: str, key: str) -> None:
        """Reject a key that cannot be downloaded as a file of that name."""
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
        """Write an empty file. With ``truncate=False``, only if it does not exist."""
        if truncate or not self.exists(path):
            with self.open(path, "wb"):
                pass

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Copy a file within the storage."""
        if self.isdir(path1):
            return  # Its files are copied one by one.
        if path2.endswith("/"):
            raise IsADirectoryError(f"{path2} ends with '/', as the name of a folder does")
        (bucket, key), (to, new) = self._split(path1), self._split(path2)
        self._check_new(to, new)
        with _as_os_error(bucket, f"{path1} could not be copied to {path2}"):
            self.s3.copy({"Bucket": bucket, "Key": key}, to, new)

    # --- creating and deleting

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        """Create a bucket. Folders need not be created."""
        bucket, key = self._split(path)
        if key and not create_parents:
            return
        with _as_os_error(bucket, f"Bucket {bucket} could not be created"):
            self.s3.create_bucket(Bucket=bucket)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Create the bucket of a path."""
        if not exist_ok and self.exists(path):
            raise FileExistsError(f"{path} exists")
        self.mkdir(path)

    def rmdir(self, path: str) -> None:
        """Delete an empty bucket. A folder is deleted with its last file."""
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

    def rm(self, path: str | list[str], recursive: bool = False, maxdepth: int | None = None) -> None:
        """Delete files, and with ``recursive`` folders and buckets."""
        for one in [path] if isinstance(path, str) else path:
            if recursive and maxdepth is None:
                self._delete_markers(*self._split(one))
            super().rm(one, recursive=recursive, maxdepth=maxdepth)

    def _delete_markers(self, bucket: str, key: str) -> None:
        """Delete the empty keys that a console makes for folders. Listings leave them out."""
        with _as_os_error(bucket, f"{bucket}/{key} could not be deleted"):
            pages = self.s3.get_paginator("list_objects_v2").paginate(
                Bucket=bucket, Prefix=f"{key}/" if key else ""
            )
            for one in (one["Key"] for page in pages for one in page.get("Contents", ())):
                if one.endswith("/"):
                    self.s3.delete_object(Bucket=bucket, Key=one)

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
        """Return the connection in a URL."""
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
    """A file that is uploaded as a whole when it is closed."""

    def __init__(self, s3: Any, bucket: str, key: str) -> None:
        super().__init__()
        self._s3, self._bucket, self._key = s3, bucket, key
        self._file = tempfile.SpooledTemporaryFile(max_size=MAX_IN_MEMORY)  # noqa: SIM115

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

    def discard(self) -> None:
        """Close the file without an upload, because it is incomplete."""
        self._file.close()
        super().close()

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None:
            self.discard()
            return
        self.close()

    def __del__(self) -> None:
        # Not closed by its user. The base class would close, which uploads.
        self.discard()


class _TextWriter(io.TextIOWrapper):
    """A text layer that does not upload the file after an error, as a plain wrapper would."""

    def __exit__(self, *error: Any) -> None:
        if error[0] is not None:
            file: Any = self.buffer
            file.__exit__(*error)
        super().__exit__(*error)

    def __del__(self) -> None:
        with suppress(ValueError):  # detached
            file: Any = self.buffer
            file.discard()


@contextmanager
def _as_os_error(bucket: str, what: str) -> Iterator[None]:
    """Turn an error of the storage into an OSError if the file system needs one."""
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
