"""Buckets of a probe run. Needs boto3, the ``[storage]`` extra."""

from __future__ import annotations

import re
from typing import Any

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.probe.ledger import TAG
from airflow_qarnot_pool.probe.sender import Undecided

#: Names of the buckets of all runs. Others may start with the tag too.
_NAME = re.compile(rf"{TAG}-[0-9a-f]{{8}}-\d+")


class Buckets:
    """The storage of an account.

    :param token: the API token, which is the secret key of the storage.
    :param prefix: start of the names of all buckets of this run.
    """

    def __init__(self, client: QarnotClient, token: str, prefix: str) -> None:
        self._client, self._token, self.prefix = client, token, prefix
        self._s3: Any = None
        self._names = 0

    @property
    def s3(self) -> Any:
        """The boto3 client. Raises Undecided without boto3 or storage."""
        if self._s3 is None:
            self._s3 = self.connect()
        return self._s3

    def connect(self) -> Any:
        """Return a new boto3 client with its own connections. Raises Undecided."""
        try:
            import boto3
            from botocore.config import Config
        except ImportError:
            raise Undecided("it needs boto3: pip install 'airflow-qarnot-pool[storage]'") from None
        endpoint = self._client.storage_url()
        if endpoint is None:
            raise Undecided("this Qarnot has no storage")
        # Not the default session, which all threads of the process share.
        return boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=self._client.account.info().email,
            aws_secret_access_key=self._token,
            region_name="us-east-1",
            verify=self._client.transport.verify,
            config=Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                retries={"mode": "standard", "max_attempts": 5},
            ),
        )

    def new_bucket(self) -> str:
        """Create a bucket, and return its name."""
        self._names += 1
        name = f"{self.prefix}-{self._names}"
        self.s3.create_bucket(Bucket=name)
        return name

    def put(self, bucket: str, key: str, content: bytes) -> None:
        """Write a file."""
        self.s3.put_object(Bucket=bucket, Key=key, Body=content)

    def keys(self, bucket: str) -> list[str]:
        """List the files of a small bucket."""
        return [entry["Key"] for entry in self.s3.list_objects_v2(Bucket=bucket).get("Contents", ())]

    def clean_up(self) -> list[str]:
        """Delete all buckets with the prefix. Return a sentence for each that may be left."""
        try:
            names = [bucket["Name"] for bucket in self.s3.list_buckets().get("Buckets", ())]
        except Undecided:
            return []  # without boto3 there are none
        except Exception as error:
            return [f"The buckets with the prefix {self.prefix} could not be listed: {type(error).__name__}"]
        ours = [name for name in names if name.startswith(self.prefix) and _NAME.fullmatch(name)]
        return [left for name in ours if (left := self._delete(name))]

    def _delete(self, bucket: str) -> str | None:
        try:
            while keys := self.keys(bucket):
                for key in keys:
                    self.s3.delete_object(Bucket=bucket, Key=key)
            self.s3.delete_bucket(Bucket=bucket)
        except Exception as error:
            return f"The bucket {bucket} could not be deleted: {type(error).__name__}"
        return None
