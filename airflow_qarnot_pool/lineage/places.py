"""Places in buckets, and their names as Airflow assets and as OpenLineage datasets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from airflow_qarnot_pool.api.buckets import check_bucket, key_prefix
from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.fields import Refusal, short_repr

#: Scheme of the URIs.
SCHEME = "qarnot"


@dataclass(frozen=True, order=True)
class Place:
    """A bucket, or the files under a prefix of its keys. The prefix has no slash at either end.

    ``is_open``: whether keys may continue after the prefix without a slash, as ``frame-1.png`` after ``frame-``.
    """

    bucket: str
    prefix: str = ""
    is_open: bool = field(default=False, compare=False)

    @classmethod
    def of(cls, bucket: Any, prefix: str | None = None) -> Place:
        """Return the place of a bucket and prefix.

        :raises QarnotInvalidSpecError: one of them is not valid.
        """
        name = check_bucket(bucket, "bucket", "Give {bucket!r}, and {path!r} as prefix.")
        words = prefix or ""
        try:
            return cls(name, key_prefix(words.strip("/")), is_open=not words.endswith("/"))
        except Refusal as refusal:
            raise QarnotInvalidSpecError(
                f"prefix {refusal.problem}", field="prefix", remedy=refusal.remedy
            ) from None

    @classmethod
    def of_uri(cls, uri: str) -> Place:
        """Return the place of ``qarnot://bucket/prefix``. The name of a connection before the bucket is ignored.

        ``ObjectStoragePath`` of Airflow 3.1 writes ``qarnot://connection@/bucket/prefix``.

        :raises QarnotInvalidSpecError: the URI names no bucket, or has another scheme, a query or a fragment.
        """
        parts = urlsplit(uri)
        if parts.scheme != SCHEME or parts.query or parts.fragment or not parts.netloc:
            raise QarnotInvalidSpecError(
                f"uri names no place in a bucket, got {short_repr(uri)}",
                field="uri",
                remedy=f"Write {SCHEME}://bucket/prefix.",
            )
        _, connection, bucket = parts.netloc.rpartition("@")
        path = unquote(parts.path)
        if connection and not bucket:
            bucket, _, path = path.lstrip("/").partition("/")
        return cls.of(bucket, f"{path}/")

    @property
    def path(self) -> str:
        """The path of the URI."""
        return f"/{quote(self.prefix, safe='/')}"

    @property
    def uri(self) -> str:
        """The URI of the asset: ``qarnot://bucket/prefix``."""
        return f"{SCHEME}://{self.bucket}{self.path}"

    @property
    def namespace(self) -> str:
        """The namespace of the dataset, as OpenLineage names object stores."""
        return f"{SCHEME}://{self.bucket}"

    @property
    def name(self) -> str:
        """The name of the dataset in its namespace."""
        return self.prefix or "/"

    def has(self, key: str) -> bool:
        """Return whether a file of the bucket is here."""
        if self.is_open or not self.prefix:
            return key.startswith(self.prefix)
        return f"{key}/".startswith(f"{self.prefix}/")

    def contains(self, other: Place) -> bool:
        """Return whether all files of *other* are here, too."""
        if self.bucket != other.bucket:
            return False
        return not self.prefix or f"{other.prefix}/".startswith(f"{self.prefix}/")


__all__ = ["SCHEME", "Place"]
