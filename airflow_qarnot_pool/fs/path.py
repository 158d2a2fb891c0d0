"""Paths with the scheme ``qarnot://`` (entry point ``universal_pathlib.implementations``)."""

from __future__ import annotations

from functools import cache
from typing import Any

from upath.implementations.cloud import CloudPath

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
            return file.write(data)
