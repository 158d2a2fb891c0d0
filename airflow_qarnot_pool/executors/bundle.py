"""DAG files in a bucket, and on the nodes of a pool: ``QarnotDagBundle`` (``[storage]`` extra).

The DAG processor copies the files of the bucket, and stores each version of them as an archive in the same bucket.
Qarnot brings the archives to the nodes with the resources of the pool, so a node needs no access to the storage. A pool
that booted before a version existed is asked to copy its resources again. A node without the archive downloads it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.configuration import conf
from airflow.dag_processing.bundles.base import BaseDagBundle

from airflow_qarnot_pool.api.buckets import check_bucket
from airflow_qarnot_pool.api.errors import QarnotError, QarnotInvalidSpecError
from airflow_qarnot_pool.executors.bundle_archives import (
    ARCHIVES,
    archive_key,
    archives_folder,
    holds_logs,
    source_prefix,
)
from airflow_qarnot_pool.executors.node import SHARED
from airflow_qarnot_pool.version_compat import bundle_version

if TYPE_CHECKING:
    from airflow_qarnot_pool.hooks.storage import StoredFile

log = logging.getLogger(__name__)

#: Maximum number and bytes of the archives that a pool brings to its nodes. The newest one is always among them.
MAX_BROUGHT, MAX_BROUGHT_BYTES = 20, 2 * 1024**3
#: How long others are kept. A node downloads them.
MAX_AGE = timedelta(days=30)
#: Maximum bytes of the files of a bundle, and their maximum number.
MAX_BYTES, MAX_FILES = 1024**3, 20_000
#: Seconds after which the newest archive is checked again while no file changes.
CHECK_INTERVAL = 3600.0
#: Maximum number of copies of a bundle whose files change meanwhile.
_MAX_COPIES = 5
#: Folder of the files in an archive.
_FILES = "dags"
#: Seconds without growth after which an archive that Qarnot copies to the node is taken for damaged.
PATIENCE = 10.0
_POLL_SECONDS = 1.0


class QarnotDagBundle(BaseDagBundle):
    """DAG files below a prefix of a bucket. Each change of a file makes a version, and a DAG run keeps its version.

    .. code-block:: ini

        [dag_processor]
        dag_bundle_config_list = [{"name": "dags",
            "classpath": "airflow_qarnot_pool.executors.bundle.QarnotDagBundle",
            "kwargs": {"bucket": "airflow-dags", "prefix": "production"}}]

    :param bucket: bucket of the account.
    :param prefix: folder in the bucket. Default: the whole bucket.
    :param qarnot_conn_id: connection of type ``qarnot``.
    :raises QarnotInvalidSpecError: *bucket* or *prefix* cannot be one.
    """

    supports_versioning = True

    def __init__(
        self, *, bucket: str, prefix: str = "", qarnot_conn_id: str = "qarnot_default", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.bucket = check_bucket(bucket, "bucket", "Give {bucket!r}, and {path!r} as prefix.")
        self.prefix = source_prefix(prefix)
        if self.prefix.startswith(ARCHIVES):
            raise QarnotInvalidSpecError(
                f"prefix of bundle {self.name} is the folder of the archives, got {prefix!r}",
                field="prefix",
                remedy="Keep the DAG files in another folder.",
            )
        self.qarnot_conn_id = qarnot_conn_id
        self._newest = self.base_dir / "newest"
        #: Folder of the archives in the bucket, and below the resources of a pool.
        self.archives = archives_folder(self.name, prefix)
        #: Time of ``time.monotonic`` at which the newest archive is checked again.
        self._check_at = 0.0

    # --- what Airflow calls

    def initialize(self) -> None:
        """Copy the files of this version, or the newest ones, unless they are on this machine."""
        with self.lock():
            if self.version:
                self._fetch(self.version)
            else:
                self.refresh()
        super().initialize()

    @property
    def path(self) -> Path:
        """The folder of the files on this machine."""
        return self.versions_dir / self.version if self.version else self._newest

    def get_current_version(self) -> Any:
        """Return the version of the files on this machine: a hash of their names and contents."""
        version = self.version or self._noted().get("version")
        return bundle_version(version) if version else None

    def refresh(self) -> None:
        """Copy the newest files, and store their archive. A node stores nothing.

        :raises QarnotInvalidSpecError: Airflow stores the logs of tasks below the prefix.
        :raises QarnotError: the storage cannot be read or written, or the bundle is too large.
        """
        if self.version:
            raise QarnotError(f"Version {self.version} of bundle {self.name} cannot be refreshed")
        with self.lock():
            if os.environ.get(SHARED):
                self._copy_on_node()
            else:
                self._copy_and_store()

    def _copy_and_store(self) -> None:
        log_folder = conf.get("logging", "remote_base_log_folder", fallback="")
        if holds_logs(self.bucket, self.prefix, log_folder):
            raise QarnotInvalidSpecError(
                f"prefix of bundle {self.name} has the logs of tasks below it, got {self.prefix!r} and [logging] "
                f"remote_base_log_folder {log_folder!r}",
                field="prefix",
                remedy="Keep the logs in another bucket.",
            )
        copied, files = self._noted().get("files") if self.path.is_dir() else None, self._list()
        if copied == files and self._is_stored():
            return
        files, is_stable = self._copy_all(files, copied or {})
        if not is_stable:
            log.warning(
                "The files of bundle %s in bucket %s change all the time. It has no version until they rest",
                self.name,
                self.bucket,
            )
            return
        version = version_of(self.path, files)
        self._store(version, files)
        self._note({"files": files, "version": version})
        self._put_aside(version)
        log.info("Bundle %s has version %s with %d files", self.name, version, len(files))

    def _copy_on_node(self) -> None:
        """Copy the newest files for a run without a version. Tasks in other slots keep the files that they have."""
        noted, files = self._noted(), self._list()
        version = noted.get("version") if noted.get("files") == files else None
        if version is None or not (self.versions_dir / version).is_dir():
            self.versions_dir.mkdir(parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(prefix=".", dir=self.versions_dir))
            self._newest = part / _FILES
            try:
                files, _ = self._copy_all(files, {})
                version = version_of(self._newest, files)
                if not (self.versions_dir / version).is_dir():
                    self._newest.rename(self.versions_dir / version)
            finally:
                shutil.rmtree(part, ignore_errors=True)
            self._note({"files": files, "version": version})
        self._newest = self.versions_dir / version

    # --- the newest files

    def _list(self) -> dict[str, list[Any]]:
        """Return the ETag and the size of each file of the bucket, by its path in the bundle."""
        from airflow_qarnot_pool.hooks.keys import local_paths
        from airflow_qarnot_pool.hooks.storage import with_storage_help

        found: dict[str, list[Any]] = {}
        with with_storage_help(f"Bundle {self.name} could not be listed", self.bucket):
            for page in self._s3.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix
            ):
                for entry in page.get("Contents", ()):
                    if is_source(entry["Key"]):
                        found[entry["Key"]] = [entry["ETag"], entry["Size"]]
                check_size(self.name, len(found), sum(size for _, size in found.values()))
        return {str(path): found[key] for key, path in local_paths(found, self.prefix)}

    def _copy_all(
        self, files: dict[str, list[Any]], old: dict[str, list[Any]]
    ) -> tuple[dict[str, list[Any]], bool]:
        """Copy the files until they rest, because files that changed meanwhile could be of different versions.

        :return: the files of the last copy, and whether they had not changed after it.
        """
        for _ in range(_MAX_COPIES):
            self._copy(files, old)
            old, files = files, self._list()
            if old == files:
                return old, True
        return old, False

    def _copy(self, files: Mapping[str, list[Any]], old: Mapping[str, list[Any]]) -> None:
        """Copy files that are new or have changed, and delete those that are gone."""
        from airflow_qarnot_pool.hooks.storage import with_storage_help

        self._note({})
        self.path.mkdir(parents=True, exist_ok=True)
        for name in old.keys() - files.keys():
            (self.path / name).unlink(missing_ok=True)
        s3 = self._s3
        for name, about in files.items():
            target = self.path / name
            if old.get(name) == about and target.is_file():
                continue
            self._make_room(target)
            part = target.with_name(f".{target.name[:200]}.part")
            with with_storage_help(f"{self.prefix}{name} could not be read", self.bucket):
                s3.download_file(self.bucket, self.prefix + name, str(part))
            part.replace(target)
        self._delete_others(files)

    def _delete_others(self, files: Mapping[str, Any]) -> None:
        """Delete other files, and empty folders. A process that parses may write bytecode there."""
        for path in sorted(self.path.rglob("*"), reverse=True):
            with suppress(OSError):
                if path.is_dir():
                    path.rmdir()
                elif is_source(name := path.relative_to(self.path).as_posix()) and name not in files:
                    path.unlink()

    def _make_room(self, target: Path) -> None:
        """Delete a folder in place of the file, or a file in place of a folder around it."""
        if target.is_dir():
            shutil.rmtree(target)
        for folder in target.relative_to(self.path).parents:
            if (self.path / folder).is_file():
                (self.path / folder).unlink()
        target.parent.mkdir(parents=True, exist_ok=True)

    @property
    def _notes(self) -> Path:
        return self.base_dir / "newest.json"

    def _noted(self) -> dict[str, Any]:
        """Return the files and the version of the last copy."""
        try:
            noted = json.loads(self._notes.read_text())
        except (OSError, ValueError):
            return {}
        return noted if isinstance(noted, dict) else {}

    def _note(self, noted: dict[str, Any]) -> None:
        self._notes.parent.mkdir(parents=True, exist_ok=True)
        part = self._notes.with_suffix(".part")
        part.write_text(json.dumps(noted))
        part.replace(self._notes)

    # --- archives

    def _is_stored(self) -> bool:
        """Return whether the newest version has an archive. A rule of the bucket or a person may have deleted it."""
        from airflow_qarnot_pool.environments.storage import modified_of
        from airflow_qarnot_pool.hooks.storage import with_storage_help

        if time.monotonic() < self._check_at:
            return True
        key = archive_key(self.archives, self._noted()["version"])
        with with_storage_help(f"The archives of bundle {self.name} could not be read", self.bucket):
            is_stored = modified_of(self._s3, self.bucket, key) is not None
        self._check_at = time.monotonic() + CHECK_INTERVAL
        return is_stored

    def _store(self, version: str, names: Iterable[str]) -> None:
        """Store the archive of the newest files."""
        from airflow_qarnot_pool.environments.storage import modified_of, pack
        from airflow_qarnot_pool.hooks.storage import with_storage_help

        key = archive_key(self.archives, version)
        with with_storage_help(f"Version {version} of bundle {self.name} could not be stored", self.bucket):
            if modified_of(self._s3, self.bucket, key) is not None:
                # The files are as they once were. The new date says from when on.
                source = {"Bucket": self.bucket, "Key": key}
                self._s3.copy_object(
                    Bucket=self.bucket, Key=key, CopySource=source, MetadataDirective="REPLACE"
                )
            else:
                with tempfile.TemporaryFile() as file:
                    pack({_FILES: {name: self.path / name for name in names}}, file)
                    file.seek(0)
                    self._s3.put_object(Bucket=self.bucket, Key=key, Body=file)

    def _put_aside(self, version: str) -> None:
        """Move archives that pools need not bring, and delete those that were moved long ago.

        :param version: the newest one.
        """
        from airflow_qarnot_pool.hooks.storage import iterate_files, with_storage_help

        s3, now = self._s3, datetime.now(UTC)
        with with_storage_help(f"Old archives of bundle {self.name} could not be moved", self.bucket):
            stored = iterate_files(s3, self.bucket, self.archives)
            for key in superfluous(stored, archive_key(self.archives, version)):
                source = {"Bucket": self.bucket, "Key": key}
                target = self._older + key.removeprefix(self.archives)
                s3.copy_object(Bucket=self.bucket, Key=target, CopySource=source)
                s3.delete_object(Bucket=self.bucket, Key=key)
            for file in iterate_files(s3, self.bucket, self._older):
                if now - (file.modified or now) > MAX_AGE:
                    s3.delete_object(Bucket=self.bucket, Key=file.key)

    def _fetch(self, version: str) -> None:
        """Unpack the archive of a version, unless it is on this machine."""
        if self.path.is_dir():
            return
        check_version(version)
        brought = Path(os.environ.get(SHARED) or "/nonexistent", archive_key(self.archives, version))
        if brought.is_file():
            try:
                self._unpack(brought, patience=PATIENCE)
                return
            except QarnotError as error:
                log.warning("%s. This node downloads it", error)
        with tempfile.TemporaryDirectory(prefix="airflow-qarnot-") as scratch:
            downloaded = Path(scratch, "archive.tar.gz")
            self._download(version, downloaded)
            self._unpack(downloaded, patience=0)

    def _unpack(self, archive: Path, patience: float) -> None:
        """Unpack the files of this version into their folder, which other processes see when it is complete."""
        self.versions_dir.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".", dir=self.versions_dir))
        try:
            unpack(archive, part, patience)
            names = [path.relative_to(part / _FILES).as_posix() for path in (part / _FILES).rglob("*")]
            if version_of(part / _FILES, names) != self.version:
                raise QarnotError(f"The archive of version {self.version} of bundle {self.name} is damaged")
            (part / _FILES).rename(self.path)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _download(self, version: str, target: Path) -> None:
        """Download the archive of a version to *target*."""
        from airflow_qarnot_pool.hooks.storage import with_storage_help

        for folder in (self.archives, self._older):
            try:
                with with_storage_help(
                    f"Version {version} of bundle {self.name} could not be read", self.bucket
                ):
                    self._s3.download_file(self.bucket, archive_key(folder, version), str(target))
                return
            except QarnotError as error:
                if error.status != 404:
                    raise
        raise QarnotError(
            f"Version {version} of bundle {self.name} is no longer in bucket {self.bucket}. It is kept for "
            f"{MAX_AGE.days} days after the newest {MAX_BROUGHT}. Clear the DAG run with the newest version"
        )

    @property
    def _older(self) -> str:
        """Folder of the archives that pools do not bring."""
        return f"{self.archives.rstrip('/')}-older/"

    @property
    def _s3(self) -> Any:
        from airflow_qarnot_pool.executors.remote_logging import s3_of

        return s3_of(self.qarnot_conn_id)


def check_size(name: str, count: int, size: int) -> None:
    """Refuse a bundle that is too large to copy for each version.

    :raises QarnotError: it is.
    """
    if count > MAX_FILES or size > MAX_BYTES:
        raise QarnotError(
            f"Bundle {name} is too large, got {count:,} files with {size:,} bytes. At most {MAX_FILES:,} files with "
            f"{MAX_BYTES:,} bytes are copied. Keep data in other folders than DAG files"
        )


def check_version(version: str) -> None:
    """Refuse a text that is no version, because it becomes part of a path.

    :raises QarnotError: it is none.
    """
    if len(version) != _DIGITS or set(version) - set("0123456789abcdef"):
        raise QarnotError(f"The version of the bundle is no hash, got {version[:80]!r}")


_DIGITS = 32


def version_of(folder: Path, names: Iterable[str]) -> str:
    """Return the version of the files of these names in *folder*: a hash of their paths and contents."""
    digest = hashlib.sha256()
    for name in sorted(names):
        if (folder / name).is_file():
            content = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            digest.update(json.dumps([name, content]).encode())
    return digest.hexdigest()[:_DIGITS]


def is_source(key: str) -> bool:
    """Return whether a key is a file of a bundle, and not a folder, an archive or bytecode."""
    return not key.endswith("/") and not key.startswith(ARCHIVES) and "__pycache__" not in key.split("/")


def superfluous(stored: Iterable[StoredFile], newest: str) -> list[str]:
    """Return the keys of archives that pools need not bring, because newer ones take the place for them.

    :param newest: key of the newest archive. Others are ordered by the time from which they were the newest.
    """
    latest = datetime.max.replace(tzinfo=UTC)
    by_age = sorted(stored, key=lambda file: (file.key == newest, file.modified or latest), reverse=True)
    sums = accumulate(file.size for file in by_age)
    return [
        file.key
        for number, (file, size) in enumerate(zip(by_age, sums, strict=True))
        if number and (number >= MAX_BROUGHT or size > MAX_BROUGHT_BYTES)
    ]


def unpack(archive: Path, folder: Path, patience: float) -> None:
    """Unpack *archive* into *folder*. Nothing is written outside of it.

    A node may still be receiving the archive, so an incomplete one is tried again while it grows.

    :param patience: maximum seconds without growth.
    :raises QarnotError: it is damaged or too large.
    """
    size, deadline = -1, 0.0
    while True:
        try:
            with tarfile.open(archive) as file:
                members = file.getmembers()
                check_size(archive.parent.name, len(members), sum(member.size for member in members))
                file.extractall(folder, filter="data")
        except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
            if (grown := _size_of(archive)) != size:
                size, deadline = grown, time.monotonic() + patience
            if time.monotonic() < deadline and not isinstance(error, tarfile.FilterError):
                time.sleep(_POLL_SECONDS)
                continue
            raise QarnotError(
                f"The archive {archive.name} of the bundle cannot be unpacked: {error}"
            ) from error
        return


def _size_of(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


__all__ = ["QarnotDagBundle"]
