"""Logs of Airflow tasks in a bucket: ``remote_base_log_folder = qarnot://bucket/folder`` (``[storage]`` extra).

Airflow imports this while it sets up its logging, so it imports the standard library only.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings

#: Maximum bytes of a log in memory while it is written. A larger one is on disk.
MAX_IN_MEMORY = 8 * 1024 * 1024
#: Maximum bytes of a file that are read for a view of the log, and of a line.
MAX_READ = 256 * 1024 * 1024
MAX_LINE = 1024 * 1024
#: Maximum number of files of a try: one of its workers, and one of each triggerer.
MAX_FILES = 100
DEFAULT_CONN_ID = "qarnot_default"
_CHUNK = 1024 * 1024
#: Metadata of a log in the bucket: the host name of the process that uploaded last.
_HOST = "airflow-hostname"


class QarnotRemoteLogIO:
    """Write and read logs of tasks. Airflow calls ``upload`` at the end of a process, and ``stream`` for its page.

    :param place: ``qarnot://bucket/folder``.
    :param base_log_folder: folder of the logs on this machine.
    :param conn_id: connection of type ``qarnot``.
    :param delete_local_copy: whether a file is deleted after its upload.
    """

    processors = ()

    def __init__(
        self, place: str, base_log_folder: str | PathLike[str], conn_id: str, delete_local_copy: bool
    ) -> None:
        parts = urlsplit(place)
        self.bucket, self._folder = parts.netloc.rpartition("@")[2], parts.path.strip("/")
        if parts.scheme != "qarnot" or not self.bucket:
            raise ValueError(
                f"[logging] remote_base_log_folder names no bucket, got {place!r}. Write qarnot://bucket/folder."
            )
        self._base = Path(base_log_folder).expanduser()
        self._conn_id, self._delete_local_copy = conn_id, delete_local_copy

    @classmethod
    def from_config(cls) -> QarnotRemoteLogIO:
        """Return the one that the section ``[logging]`` describes.

        :raises ValueError: ``remote_base_log_folder`` names no bucket.
        """
        from airflow.configuration import conf

        return cls(
            conf.get("logging", "remote_base_log_folder", fallback=""),
            conf.get_mandatory_value("logging", "base_log_folder"),
            conf.get("logging", "remote_log_conn_id", fallback=None) or DEFAULT_CONN_ID,
            conf.getboolean("logging", "delete_local_logs", fallback=False),
        )

    def upload(self, path: str | PathLike[str], ti: Any = None) -> None:
        """Append the local log *path* to that of the bucket. A task that resumes on another node continues its log.

        :raises QarnotError: the storage cannot be read or written. Nothing is lost then on either side.
        """
        from airflow_qarnot_pool.hooks.storage import with_storage_help

        local = self._base / path
        if not local.resolve().is_relative_to(self._base.resolve()) or not local.is_file():
            return
        if not local.stat().st_size:
            return
        key = self._key(local.relative_to(self._base).as_posix())
        with (
            with_storage_help(f"The log {key} could not be written to bucket {self.bucket}", self.bucket),
            tempfile.SpooledTemporaryFile(MAX_IN_MEMORY) as whole,
        ):
            s3 = self._s3
            if not _append(s3, self.bucket, key, whole):
                # Qarnot's CreateBucket is idempotent for the owner of the bucket.
                s3.create_bucket(Bucket=self.bucket)
            with local.open("rb") as file:
                shutil.copyfileobj(file, whole)
            whole.seek(0)
            s3.upload_fileobj(whole, self.bucket, key, ExtraArgs={"Metadata": _launch()})
        if self._delete_local_copy:
            local.unlink()
        else:
            # The next slice of the task on this machine appends to an empty file, and so uploads its own lines only.
            local.write_text("")

    def stream(self, relative_path: str, ti: Any) -> tuple[list[str], list[Iterator[str]]]:
        """Return the places of the logs of a try, and the lines of each.

        If the process that a try started last could not upload its log, the reasons of the executor and the output on
        Qarnot follow.
        """
        from airflow_qarnot_pool.executors.output import task_log
        from airflow_qarnot_pool.hooks.storage import with_storage_help

        prefix, name = self._key(relative_path), _qarnot_task_of(ti)
        with with_storage_help(f"The logs of {prefix} could not be found", self.bucket):
            keys = self._keys(prefix)
            needs_output = name is not None and (not keys or self._lacks_end(prefix, keys, ti))
        places, logs = [f"qarnot://{self.bucket}/{key}" for key in keys], [self._lines(key) for key in keys]
        if name is not None and needs_output:
            places.append(f"Output of Qarnot task {name}")
            lines = [*_reasons_of(ti), *task_log(_settings_of(self._conn_id).client(), [name])]
            logs.append(line for line in lines)
        return places, logs

    def read(self, relative_path: str, ti: Any) -> tuple[list[str], list[str] | None]:
        """Return the same as :meth:`stream`, as texts."""
        places, logs = self.stream(relative_path, ti)
        return places, ["\n".join(lines) for lines in logs] or None

    def _key(self, path: str) -> str:
        return f"{self._folder}/{path}" if self._folder else path

    @property
    def _s3(self) -> Any:
        return s3_of(self._conn_id)

    def _keys(self, prefix: str) -> list[str]:
        from airflow_qarnot_pool.exceptions import QarnotBucketNotFoundError
        from airflow_qarnot_pool.hooks.storage import iterate_files

        keys: list[str] = []
        try:
            for file in iterate_files(self._s3, self.bucket, prefix):
                if len(keys) == MAX_FILES:
                    break
                keys.append(file.key)
        except QarnotBucketNotFoundError:
            return []
        return keys

    def _lines(self, key: str) -> Iterator[str]:
        """Yield the lines of a log, each when it is asked for."""
        from airflow_qarnot_pool.hooks.storage import with_storage_help

        with with_storage_help(f"The log {key} could not be read", self.bucket):
            body = self._s3.get_object(Bucket=self.bucket, Key=key)["Body"]
            rest, read = b"", 0
            for chunk in iter(lambda: body.read(_CHUNK), b""):
                read += len(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line[:MAX_LINE].decode(errors="replace") for line in lines)
                rest = rest[:MAX_LINE]
                if read > MAX_READ:
                    yield f"... the log is longer: its first {read:,} bytes are shown. The rest is in {key}"
                    return
            if rest:
                yield rest.decode(errors="replace")

    def _lacks_end(self, key: str, keys: Sequence[str], ti: Any) -> bool:
        """Return whether the log of a failed try ends before its node was lost, as at a deferral.

        :param key: key of the log of the workers, one of *keys* if any of them has uploaded.
        """
        if str(ti.state) not in ("failed", "up_for_retry") or not ti.hostname:
            return False
        if key not in keys:
            return True
        metadata = self._s3.head_object(Bucket=self.bucket, Key=key).get("Metadata", {})
        return bool(metadata.get(_HOST) != ti.hostname)


def _launch() -> dict[str, str]:
    """Return the metadata of a log that this process uploads: on a node the host name of its launch, as in Airflow."""
    from airflow_qarnot_pool.executors.node import LAUNCH, hostname

    return {_HOST: hostname()} if os.environ.get(LAUNCH) else {}


def _qarnot_task_of(ti: Any) -> str | None:
    """Return the shortname of the Qarnot task of a try that this provider's executor ran; None for others."""
    from airflow_qarnot_pool.executors.running import name_of

    external_id = getattr(ti, "external_executor_id", None)
    # The executor is asked for the output of a running one.
    if not external_id or str(ti.state) == "running" or not _is_ours(getattr(ti, "executor", None)):
        return None
    return name_of(external_id, "")


def _reasons_of(ti: Any) -> list[str]:
    """Return why the executor has failed a try, or queued it again. The api-server reads it in the audit log."""
    from airflow.utils.session import create_session
    from sqlalchemy.exc import SQLAlchemyError

    from airflow_qarnot_pool.executors.airflow_state import read_reasons

    try:
        with create_session() as session:
            return read_reasons(session, ti)
    except SQLAlchemyError:
        return []  # the log is shown without them


def s3_of(conn_id: str) -> Any:
    """Return the storage client of a connection, which is read again. A supervisor has it only while it uploads."""
    return _client(_settings_of(conn_id))


def _settings_of(conn_id: str) -> ConnectionSettings:
    from airflow_qarnot_pool.hooks.qarnot import QarnotHook

    return QarnotHook(conn_id).settings


@lru_cache(maxsize=4)
def _client(settings: ConnectionSettings) -> Any:
    """Return the client of a connection. To make one takes two requests to Qarnot."""
    from airflow_qarnot_pool.hooks.storage import s3_client

    return s3_client(settings)


def _append(s3: Any, bucket: str, key: str, file: Any) -> bool:
    """Append the object to *file*. Return whether it existed."""
    from botocore.exceptions import ClientError

    try:
        s3.download_fileobj(bucket, key, file)
    except ClientError as error:
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
            return False
        raise
    return True


def _is_ours(executor: str | None) -> bool:
    """Return whether *executor*, as a task names it, is the one of this provider."""
    from airflow.executors.executor_loader import ExecutorLoader

    try:
        if executor is None:
            name = ExecutorLoader.get_default_executor_name()
        else:
            name = ExecutorLoader.lookup_executor_name_by_str(executor)
    except Exception:  # of another team, or not configured any more
        return False
    return name.module_path.rpartition(".")[2] == "QarnotExecutor"
