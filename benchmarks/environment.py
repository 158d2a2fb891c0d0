"""An Airflow of the benchmarks' own: its home, its connections. To be prepared before Airflow is imported."""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_qarnot_pool.local import LocalQarnot

NAMESPACE = "bench"
CONNECTION = "qarnot_default"


@contextmanager
def prepared() -> Iterator[None]:
    """Give this process and its children an Airflow home that vanishes afterwards, and no settings of the user."""
    for name in [name for name in os.environ if name.startswith("AIRFLOW_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="airflow-qarnot-bench-") as home:
        os.environ |= {
            "AIRFLOW_HOME": home,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(os.urandom(32)).decode(),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
            "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
            # A program compares all at the interval that it names, and each half of a wait by itself.
            "AIRFLOW__QARNOT__MIN_POLL_INTERVAL": "86400",
            "AIRFLOW__QARNOT__DEFER_AFTER": "0",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }
        yield


def connect(conn_id: str, **connection: Any) -> None:
    """Define an Airflow connection, for this process and the children it starts from now on."""
    os.environ[f"AIRFLOW_CONN_{conn_id.upper()}"] = json.dumps(connection)


def connect_qarnot(qarnot: LocalQarnot, **extra: Any) -> None:
    """Make a local Qarnot the connection ``qarnot_default``, with *extra* fields such as ``poll_interval``."""
    connect(
        CONNECTION,
        conn_type="qarnot",
        host=qarnot.url,
        password=qarnot.token,
        extra={"namespace": NAMESPACE, "storage_url": qarnot.storage_url, **extra},
    )
