"""Paths with the scheme ``qarnot://`` (entry point ``universal_pathlib.implementations``)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from upath.implementations.cloud import CloudPath

from airflow_qarnot_pool.lineage.collector import report_read, report_written
from airflow_qarnot_pool.version_compat import bucket_path_parser


@cache
def _parser() -> Any:
    return bucket_path_parser("qarnot")


class QarnotPath(CloudPath):
    """``qarnot://bucket/key``. Airflow wraps it in ``ObjectStoragePath``, which brings the connection."""

    __slots__ = ()

    @property
    def parser(self) -> Any:  # type: ignore[override]
        """The parser of such a path."""
        return _parser()

    def write_text(
        self,
        data: str,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> int:
        """Write *data* to the file. An existing file is kept if *data* cannot be encoded."""
        with self.open("w", encoding=encoding, errors=errors, newline=newline) as file:
            written = file.write(data)
        self._report(report_written)
        return written

    def write_bytes(self, data: bytes) -> int:
        """Write *data* to the file."""
        written = super().write_bytes(data)
        self._report(report_written)
        return written

    def read_text(
        self, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> str:
        """Return the content of the file as text."""
        text = super().read_text(encoding=encoding, errors=errors, newline=newline)
        self._report(report_read)
        return text

    def read_bytes(self) -> bytes:
        """Return the content of the file."""
        data = super().read_bytes()
        self._report(report_read)
        return data

    def _report(self, report: Callable[[Any, str, str], None]) -> None:
        """Report the file to Airflow, which itself reports files that are opened, copied or moved."""
        bucket, _, key = self.path.partition("/")
        report(self, bucket, key)
