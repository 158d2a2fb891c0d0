"""Arguments and results that are too large for constants and output, by way of a bucket (``[storage]`` extra)."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.errors import QarnotError, QarnotInvalidSpecError
from airflow_qarnot_pool.decorators.payload import digest

if TYPE_CHECKING:
    from airflow_qarnot_pool.hooks.settings import ConnectionSettings


class PayloadBucket:
    """The objects of one life of an Airflow task, in a bucket of the account's storage.

    Names are the same in every try, so whatever a try before left is written over with the same bytes, and a
    retry finds the result of the Qarnot task it takes up. Nothing is deleted here.

    Storage: S3, with the account's e-mail as access key and its API token as secret key (Qarnot API: ``/info``).

    :param prefix: what all names begin with.
    """

    def __init__(self, settings: ConnectionSettings, name: str, prefix: str) -> None:
        self._settings, self.name, self.prefix = settings, name, prefix

    @cached_property
    def _s3(self) -> Any:
        try:
            import boto3
            from botocore.config import Config
        except ImportError:
            raise QarnotInvalidSpecError(
                "payload_bucket needs boto3: pip install 'airflow-qarnot-pool[storage]'",
                field="payload_bucket",
            ) from None
        client = self._settings.client()
        endpoint = client.storage_url()
        if endpoint is None:
            raise QarnotInvalidSpecError("This Qarnot has no storage", field="payload_bucket")
        proxies = {"http": self._settings.proxy, "https": self._settings.proxy}
        # A session of its own: the default one is shared by all threads of the process.
        return boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=client.account.info().email,
            aws_secret_access_key=self._settings.token,
            # Qarnot has no regions; any other than this one would have to be named again in CreateBucket.
            region_name="us-east-1",
            verify=self._settings.verify,
            config=Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                retries={"mode": "standard", "max_attempts": 5},
                proxies=proxies if self._settings.proxy else {},
            ),
        )

    def upload(self, data: bytes) -> str:
        """Put *data* into the bucket, which is made where it is missing; returns its name after the prefix."""
        name = f"payload-{digest(data)[:16]}"
        with _Explained(f"The arguments could not be uploaded to bucket {self.name}"):
            # Fine where it exists: Qarnot's CreateBucket is idempotent for its owner.
            self._s3.create_bucket(Bucket=self.name)
            self._s3.put_object(Bucket=self.name, Key=self.prefix + name, Body=data)
        return name

    def download(self, name: str, sha256: str) -> bytes:
        """The object of that name.

        :raises QarnotError: it is not there, or is not what the node wrote.
        """
        import hashlib

        key = self.prefix + name
        with _Explained(f"The result {key} could not be read from bucket {self.name}"):
            data: bytes = self._s3.get_object(Bucket=self.name, Key=key)["Body"].read()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise QarnotError(
                f"The result {key} in bucket {self.name} is not the one that the node wrote; "
                "clear the task to run it again"
            )
        return data


class _Explained:
    """Turns what boto3 raises into an error of ours."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, QarnotError):
            return
        from botocore.exceptions import BotoCoreError, ClientError

        if isinstance(error, (BotoCoreError, ClientError)):
            raise QarnotError(f"{self._what}: {error}") from error
