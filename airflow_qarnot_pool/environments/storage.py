"""Find the archive of an environment in its bucket, or make it and upload it (``[storage]`` extra)."""

from __future__ import annotations

import gzip
import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from airflow_qarnot_pool.api.errors import QarnotError, QarnotInvalidSpecError
from airflow_qarnot_pool.environments.installers import install, installed_files
from airflow_qarnot_pool.environments.specification import (
    EnvironmentSource,
    QarnotEnvironment,
    archive_name,
    is_archive_name,
)
from airflow_qarnot_pool.hooks.storage import s3_client, with_storage_help

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.specs import ResourceBucket
    from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings

log = logging.getLogger(__name__)

#: Maximum bytes of an archive.
MAX_ARCHIVE = 2 * 1024**3
ARCHIVES, SOURCES = "archives/", "sources/"
#: Prefix of the keys with which the reaper announces that it is about to delete the key after it.
ANNOUNCEMENTS = "deleting/"
#: Age of the date of an object after which a use renews it. The reaper deletes objects by their date.
RENEW_AFTER = timedelta(days=1)
#: Age of the date after which all deletions that were announced before are over, however clocks differ.
SETTLED_AFTER = timedelta(minutes=10)
#: Maximum seconds of a deletion. A reaper that takes longer was killed, or gives up.
MAX_DELETION = 60.0
_POLL_SECONDS = 0.2


class EnvironmentStorage:
    """The archives of an account.

    ``archives/`` has them by the hash of what is in them. ``sources/`` has the name of the archive that a source was
    made into, so a source is resolved once, and its unpinned requirements keep their versions. A use renews the date of
    both (see :mod:`airflow_qarnot_pool.maintenance.environments`).
    """

    def __init__(self, settings: ConnectionSettings, bucket: str) -> None:
        self._settings, self.bucket = settings, bucket

    @cached_property
    def _s3(self) -> Any:
        return s3_client(self._settings)

    def prepare(self, environment: QarnotEnvironment, folder: Path) -> ResourceBucket:
        """Return the resource that brings the archive of *environment*, which is uploaded if it is not there.

        :param folder: folder of the DAG file.
        """
        from airflow_qarnot_pool.api.specs import ResourceBucket

        source = EnvironmentSource.read(environment, folder)
        with with_storage_help(f"The environment could not be stored in bucket {self.bucket}", self.bucket):
            name = self._made_from(source)
            if name is None:
                name = self._make(source)
            else:
                log.info("Environment %s is in bucket %s", name, self.bucket)
        return ResourceBucket(bucket=self.bucket, prefix=ARCHIVES + name, strip_prefix=ARCHIVES)

    def copy(self, archive: str, folder: str) -> None:
        """Copy *archive* into *folder* of the bucket, unless it is there.

        :raises QarnotError: the archive does not exist.
        """

        def write() -> None:
            if not self._copy(ARCHIVES + archive, folder + archive):
                raise QarnotError(
                    f"Environment {archive} is not in bucket {self.bucket}",
                    remedy="Clear the task that opens the pool, which makes it again.",
                )

        with with_storage_help(f"The environment could not be copied in bucket {self.bucket}", self.bucket):
            if not self._keep(folder + archive):
                self._write(folder + archive, write)

    def _made_from(self, source: EnvironmentSource) -> str | None:
        """Return the archive that was made from *source*, if it exists."""
        note = self._read(SOURCES + source.key)
        try:
            name = json.loads(note or b"null")["archive"]
        except (ValueError, TypeError, KeyError):
            return None
        if not is_archive_name(name) or not self._keep(ARCHIVES + name):
            return None
        self._keep(SOURCES + source.key)
        return str(name)

    def _make(self, source: EnvironmentSource) -> str:
        with tempfile.TemporaryDirectory(prefix="airflow-qarnot-") as scratch:
            folder = Path(scratch) / "packages"
            folder.mkdir()
            if source.requirements:
                log.info("Installing the packages of the environment for Python %s", source.python)
                install(source, folder)
            packages = installed_files(folder)
            name = archive_name(source, packages)
            self._s3.create_bucket(Bucket=self.bucket)
            if self._keep(ARCHIVES + name):
                log.info("Environment %s is in bucket %s", name, self.bucket)
            else:
                with tempfile.TemporaryFile() as file:
                    pack({"packages": packages, "modules": source.modules}, file)
                    size = file.tell()
                    _check_size(size)

                    def upload() -> None:
                        file.seek(0)
                        self._s3.put_object(Bucket=self.bucket, Key=ARCHIVES + name, Body=file)

                    self._write(ARCHIVES + name, upload)
                log.info("Uploaded environment %s (%s bytes) to bucket %s", name, f"{size:,}", self.bucket)
        self._s3.put_object(
            Bucket=self.bucket, Key=SOURCES + source.key, Body=json.dumps({"archive": name}).encode()
        )
        return name

    def _read(self, key: str) -> bytes | None:
        from botocore.exceptions import ClientError

        try:
            data: bytes = self._s3.get_object(Bucket=self.bucket, Key=key)["Body"].read(1 << 16)
        except ClientError as error:
            if _is_missing(error):
                return None
            raise
        return data

    def _keep(self, key: str) -> bool:
        """Return whether *key* exists, after the reaper was told of its use."""
        modified = modified_of(self._s3, self.bucket, key)
        if modified is None:
            return False
        age = datetime.now(UTC) - modified
        if SETTLED_AFTER < age < RENEW_AFTER:
            return True
        # A new date may have come after a reaper had read the old one.
        return (age < RENEW_AFTER or self._copy(key, key)) and self._survives(key)

    def _write(self, key: str, write: Callable[[], Any]) -> None:
        """Write *key* so that it survives the deletion of an older object of its name."""
        write()
        while not self._survives(key):
            write()

    def _copy(self, source: str, target: str) -> bool:
        """Copy an object, or renew its date. Return whether it existed."""
        from botocore.exceptions import ClientError

        try:
            self._s3.copy_object(
                Bucket=self.bucket,
                Key=target,
                CopySource={"Bucket": self.bucket, "Key": source},
                MetadataDirective="REPLACE",  # without it S3 refuses a copy of an object onto itself
            )
        except ClientError as error:
            if _is_missing(error):
                return False
            raise
        return True

    def _survives(self, key: str) -> bool:
        """Return whether *key*, which was just written, exists when the deletions that were announced are over."""
        deadline = time.monotonic() + MAX_DELETION
        prefix = f"{ANNOUNCEMENTS}{key}/"
        while found := self._s3.list_objects_v2(Bucket=self.bucket, Prefix=prefix).get("Contents"):
            if time.monotonic() > deadline:
                for entry in found:
                    self._s3.delete_object(Bucket=self.bucket, Key=entry["Key"])
            time.sleep(_POLL_SECONDS)
        return modified_of(self._s3, self.bucket, key) is not None


def modified_of(s3: Any, bucket: str, key: str) -> datetime | None:
    """Return when *key* was written; None if it does not exist."""
    from botocore.exceptions import ClientError

    try:
        modified: datetime = s3.head_object(Bucket=bucket, Key=key)["LastModified"]
    except ClientError as error:
        if _is_missing(error):
            return None
        raise
    return modified


def archive_in(resource: ResourceBucket) -> str:
    """Return the name of the archive that *resource* brings."""
    return str(resource.prefix).removeprefix(ARCHIVES)


def pack(folders: Mapping[str, Mapping[str, bytes | Path]], file: IO[bytes]) -> None:
    """Write an archive with these folders. The same files give the same bytes."""
    import tarfile

    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|") as archive,
    ):
        for folder, files in folders.items():
            for name, data in sorted(files.items()):
                entry = tarfile.TarInfo(f"{folder}/{name}")
                # A time that is the same for all, and that zip files can express.
                entry.mtime, entry.mode = 315_532_800, 0o755
                content = data if isinstance(data, bytes) else data.read_bytes()
                entry.size = len(content)
                archive.addfile(entry, BytesIO(content))


def _check_size(size: int) -> None:
    if size > MAX_ARCHIVE:
        raise QarnotInvalidSpecError(
            f"environment is too large: its archive has {size:,} bytes, and {MAX_ARCHIVE:,} are the maximum",
            field="environment",
            remedy="Use an image that contains the largest packages.",
        )


def _is_missing(error: Any) -> bool:
    return bool(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404)


__all__ = ["EnvironmentStorage", "pack"]
