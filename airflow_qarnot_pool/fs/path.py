"""The class of paths that begin with ``qarnot://`` (entry point ``universal_pathlib.implementations``)."""

from __future__ import annotations

from functools import cache
from typing import Any

from upath._flavour import AnyProtocolFileSystemFlavour, WrappedFileSystemFlavour
from upath.implementations.cloud import CloudPath


class _Buckets(AnyProtocolFileSystemFlavour):
    protocol: Any = ("qarnot",)
    root_marker: Any = ""


@cache
def _parser() -> WrappedFileSystemFlavour:
    """Paths begin with a bucket, as those of S3 do; by itself the library knows that of its own protocols only."""
    return WrappedFileSystemFlavour(_Buckets, netloc_is_anchor=True, supports_empty_parts=True)


class QarnotPath(CloudPath):
    """``qarnot://bucket/key``. Airflow wraps it in ``ObjectStoragePath``, which brings the connection."""

    __slots__ = ()

    @property
    def parser(self) -> Any:  # type: ignore[override]
        """How such a path is taken apart."""
        return _parser()

    def write_text(
        self,
        data: str,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> int:
        """Write a file of *data*; where that cannot be encoded, what was there stays."""
        with self.open("w", encoding=encoding, errors=errors, newline=newline) as file:
            return file.write(data)
