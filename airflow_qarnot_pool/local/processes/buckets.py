"""Keep the buckets of moto's S3 server, which are in memory, in the state directory.

After each request that may have changed a bucket, the keys that moto holds are compared with those on the disk. A file
is complete before its row is written, and is removed after its row. Kept are the newest version of an object, its ETag,
time and metadata, and no setting of a bucket.
"""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow_qarnot_pool.local.processes.state import Row, State

CHANGING = frozenset({"PUT", "POST", "DELETE"})
"""Methods of requests that may change a bucket."""
_BUCKET, _OBJECT = "bucket", "object"
_REGION = "us-east-1"
_CHECKSUMS = ("checksum_algorithm", "checksum_value", "checksum_type")
"""Attributes with the checksum that a client has sent with an object."""


class _Content:
    """The content of an object on the disk, in place of the temporary file in which moto has it."""

    def __init__(self, path: Path) -> None:
        self._path, self._position = path, 0

    def seek(self, position: int) -> int:
        self._position = position
        return position

    def read(self, size: int = -1) -> bytes:
        with open(self._path, "rb") as file:
            file.seek(self._position)
            data = file.read(size)
        self._position += len(data)
        return data

    def close(self) -> None:
        """Do nothing, because no file is open."""


class KeptBuckets:
    """The buckets on the disk, and the objects of moto that they correspond to."""

    def __init__(self, state: State) -> None:
        self._state, self._folder = state, state.directory / "objects"
        self._lock = threading.Lock()
        self._kept: dict[str, dict[str, tuple[Any, int]]] = {}
        self._files = 0
        self.is_empty = not state.read(_BUCKET)

    def _path(self, file: int) -> Path:
        return self._folder / str(file)

    def restore(self) -> None:
        """Give moto the buckets on the disk, and remove files that a killed server has left without a row."""
        buckets = _moto()
        self._folder.mkdir(exist_ok=True)
        for name, row in self._state.read(_BUCKET).items():
            buckets.create_bucket(name, _REGION).creation_date = datetime.fromtimestamp(row["created"], UTC)
            self._kept[name] = {}
        used = set()
        for id, row in self._state.read(_OBJECT).items():
            name, _, key = id.partition("/")
            made = self._object(name, key, row)
            buckets.buckets[name].keys.setlist(key, [made])
            self._kept[name][key] = (made, row["file"])
            used.add(str(row["file"]))
            self._files = max(self._files, row["file"])
        for file in set(os.listdir(self._folder)) - used:
            os.unlink(self._folder / file)

    def _object(self, bucket: str, key: str, row: dict[str, Any]) -> Any:
        from moto.core.models import DEFAULT_ACCOUNT_ID
        from moto.s3.models import FakeKey

        made = FakeKey(
            key, b"", DEFAULT_ACCOUNT_ID, _REGION, etag=row["etag"], version_id="null", bucket_name=bucket
        )
        made.last_modified = datetime.fromtimestamp(row["modified"], UTC).replace(tzinfo=None)
        made.metadata.update(row["metadata"])
        made.contentsize = row["size"]
        for name, value in row["checksums"].items():
            setattr(made, name, value)
        self._replace(made, row["file"])
        return made

    def _replace(self, made: Any, file: int) -> None:
        with made.lock:
            made._value_buffer.close()  # noqa: SLF001  moto has no other way
            made._value_buffer = _Content(self._path(file))  # noqa: SLF001

    def keep(self, name: str) -> None:
        """Bring the disk up to date with one bucket. Raises OSError and sqlite3.Error."""
        with self._lock:
            self.is_empty = False
            bucket, kept = _moto().buckets.get(name), self._kept.get(name)
            rows: list[Row] = []
            if bucket is None:
                if kept is None:
                    return
                rows.append((_BUCKET, name, None))
            elif kept is None:
                rows.append((_BUCKET, name, {"created": bucket.creation_date.timestamp()}))
            before = kept or {}
            after = {} if bucket is None else self._objects(name, bucket, before, rows)
            rows += [(_OBJECT, f"{name}/{key}", None) for key in before.keys() - after.keys()]
            if rows:
                self._state.write(rows)
            if bucket is None:
                del self._kept[name]
            else:
                self._kept[name] = after
            used = {file for _, file in after.values()}
            for _, file in before.values():
                if file not in used:
                    self._path(file).unlink(missing_ok=True)

    def _objects(
        self, name: str, bucket: Any, before: dict[str, tuple[Any, int]], rows: list[Row]
    ) -> dict[str, tuple[Any, int]]:
        """Return the objects that moto holds with their files, and add the rows of new ones."""
        after = {}
        for key, held in bucket.keys.items():
            if key in before and before[key][0] is held:
                after[key] = before[key]
            elif (written := self._write(bucket, key)) is not None:
                made, file = after[key] = written
                row = {
                    "file": file,
                    "size": made.size,
                    "etag": made.etag.strip('"'),
                    "modified": made.last_modified.replace(tzinfo=UTC).timestamp(),
                    "metadata": dict(made.metadata),
                    "checksums": {name: getattr(made, name, None) for name in _CHECKSUMS},
                }
                rows.append((_OBJECT, f"{name}/{key}", row))
                self._replace(made, file)
        return after

    def _write(self, bucket: Any, key: str) -> tuple[Any, int] | None:
        """Write the content of an object to a new file. Return None if the object has been deleted."""
        while True:
            made = bucket.keys.get(key)
            if not hasattr(made, "contentsize"):
                return None  # deleted, with or without a delete marker
            try:
                content, _ = made.value, made.etag  # moto computes the ETag from the content, once
            except ValueError:
                if bucket.keys.get(key) is made:
                    raise
                continue  # another request has replaced it meanwhile
            self._files += 1
            try:
                self._path(self._files).write_bytes(content)
            except OSError:
                self._path(self._files).unlink(missing_ok=True)
                raise
            return made, self._files


def date_of(bucket: str, key: str) -> datetime | None:
    """Return the date of an object that moto holds, or None if there is none."""
    held = _moto().buckets.get(bucket)
    return getattr(held and held.keys.get(key), "last_modified", None)


def set_date(bucket: str, key: str, date: datetime) -> None:
    """Give an object that moto holds another date."""
    _moto().buckets[bucket].keys[key].last_modified = date


def _moto() -> Any:
    """Return the buckets of the only account."""
    from moto.core.models import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    return s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
