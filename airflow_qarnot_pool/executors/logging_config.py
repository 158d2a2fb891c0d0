"""Airflow's logging with remote logs in a bucket, for ``[logging] logging_config_class``.

Airflow 3.1 to 3.3 refuse a ``remote_base_log_folder`` whose scheme their own configuration does not know, although 3.3
reads the schemes of providers.
"""

from __future__ import annotations

from airflow.configuration import conf

from airflow_qarnot_pool.executors.remote_logging import DEFAULT_CONN_ID, QarnotRemoteLogIO
from airflow_qarnot_pool.version_compat import default_logging_config

LOGGING_CONFIG = default_logging_config()
#: Airflow reads these two by their names.
REMOTE_TASK_LOG = (
    QarnotRemoteLogIO.from_config() if conf.getboolean("logging", "remote_logging", fallback=False) else None
)
DEFAULT_REMOTE_CONN_ID = DEFAULT_CONN_ID
