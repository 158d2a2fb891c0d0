"""Report files that a worker reads and writes to Airflow's hook lineage."""

from __future__ import annotations

import logging
from typing import Any

from airflow_qarnot_pool.lineage.places import Place
from airflow_qarnot_pool.version_compat import hook_lineage_collector

log = logging.getLogger(__name__)


def report_read(context: Any, bucket: str, key: str = "") -> None:
    """Report that *context*, a hook or a path, has read a file or the files under a prefix."""
    _report("add_input_asset", context, bucket, key)


def report_written(context: Any, bucket: str, key: str = "") -> None:
    """Report that *context*, a hook or a path, has written a file or the files under a prefix."""
    _report("add_output_asset", context, bucket, key)


def _report(method: str, context: Any, bucket: str, key: str) -> None:
    try:
        getattr(hook_lineage_collector(), method)(context=context, uri=Place.of(bucket, key).uri)
    except Exception as error:  # The transfer has succeeded. An asset may have no URI so long.
        log.debug("No lineage of %s in bucket %s: %s", key or "all files", bucket, error)


__all__ = ["report_read", "report_written"]
