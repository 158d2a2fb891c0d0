"""Transfer arguments and results that are too large for constants and output by bucket (``[storage]`` extra)."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.errors import QarnotError
from airflow_qarnot_pool.decorators.node import MAX_FILE
from airflow_qarnot_pool.decorators.payload import digest
from airflow_qarnot_pool.hooks.storage import s3_client, with_storage_help

if TYPE_CHECKING:
    from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings


#: Maximum bytes of a result, because it becomes an XCom.
MAX_RESULT_FILE = MAX_FILE


class PayloadBucket:
    """The objects of one lineage of an Airflow task, in a bucket of the account's storage.

    The names are the same in every try. So a retry overwrites the objects of an earlier try with the same bytes, and
    finds the result of the Qarnot task that it adopts. Nothing is deleted here.

    The storage is S3, with the account's e-mail as access key and its API token as secret key (Qarnot API: ``/info``).

    :param prefix: prefix of all names.
    """

    def __init__(self, settings: ConnectionSettings, name: str, prefix: str) -> None:
        self._settings, self.name, self.prefix = settings, name, prefix

    @cached_property
    def _s3(self) -> Any:
        return s3_client(self._settings)

    def connected(self) -> PayloadBucket:
        """Return this bucket with its client, which several threads can use at once."""
        _ = self._s3
        return self

    def upload(self, data: bytes, kind: str = "payload") -> str:
        """Put *data* into the bucket, which is created if missing, and return the object's name after the prefix."""
        name = f"{kind}-{digest(data)[:16]}"
        with with_storage_help(f"The {kind} could not be uploaded to bucket {self.name}", self.name):
            # The bucket may exist, because Qarnot's CreateBucket is idempotent for its owner.
            self._s3.create_bucket(Bucket=self.name)
            self._s3.put_object(Bucket=self.name, Key=self.prefix + name, Body=data)
        return name

    def download(self, name: str, sha256: str) -> bytes:
        """Return the object *name*.

        :raises QarnotError: the object does not exist, or is not the one that the node wrote.
        """
        key = self.prefix + name
        with with_storage_help(f"The result {key} could not be read from bucket {self.name}", self.name):
            data: bytes = self._s3.get_object(Bucket=self.name, Key=key)["Body"].read(MAX_RESULT_FILE + 1)
        if len(data) > MAX_RESULT_FILE:
            raise QarnotError(
                f"The result {key} in bucket {self.name} has more than {MAX_RESULT_FILE:,} bytes",
                remedy="Write it to a file, give result_bucket= and return the file's name.",
            )
        if hashlib.sha256(data).hexdigest() != sha256:
            raise QarnotError(
                f"The result {key} in bucket {self.name} is not the one that the node wrote. "
                "Clear the task to run it again"
            )
        return data

    def has(self, name: str) -> bool:
        """Return whether the object *name* exists."""
        key = self.prefix + name
        with with_storage_help(f"The result {key} could not be found in bucket {self.name}", self.name):
            found = self._s3.list_objects_v2(Bucket=self.name, Prefix=key)
        return any(one["Key"] == key for one in found.get("Contents", ()))
