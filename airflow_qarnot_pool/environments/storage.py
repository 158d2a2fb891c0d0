"""Find the archive of an environment in its bucket, or make it and upload it (``[storage]`` extra)."""

from __future__ import annotations

import gzip
import json
import logging
import tempfile
from collections.abc import Mapping
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
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


class EnvironmentStorage:
    """The archives of an account.

    ``archives/`` has them by the hash of what is in them. ``sources/`` has the name of the archive that a source was
    made into, so a source is resolved once, and its unpinned requirements keep their versions.
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
        """Copy *archive* into *folder* of the bucket, unless it is there."""
        with with_storage_help(f"The environment could not be copied in bucket {self.bucket}", self.bucket):
            if not self._exists(folder + archive):
                self._s3.copy_object(
                    Bucket=self.bucket,
                    Key=folder + archive,
                    CopySource={"Bucket": self.bucket, "Key": ARCHIVES + archive},
                )

    def _made_from(self, source: EnvironmentSource) -> str | None:
        """Return the archive that was made from *source*, if it exists."""
        note = self._read(SOURCES + source.key)
        try:
            name = json.loads(note or b"null")["archive"]
        except (ValueError, TypeError, KeyError):
            return None
        return name if is_archive_name(name) and self._exists(ARCHIVES + name) else None

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
            if self._exists(ARCHIVES + name):
                log.info("Environment %s is in bucket %s", name, self.bucket)
            else:
                with tempfile.TemporaryFile() as file:
                    pack({"packages": packages, "modules": source.modules}, file)
                    size = file.tell()
                    _check_size(size)
                    file.seek(0)
                    self._s3.put_object(Bucket=self.bucket, Key=ARCHIVES + name, Body=file)
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

    def _exists(self, key: str) -> bool:
        from botocore.exceptions import ClientError

        try:
            self._s3.head_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            if _is_missing(error):
                return False
            raise
        return True


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
