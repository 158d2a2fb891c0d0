"""Each kind of metric leaves a process in which nobody but this provider has set up Airflow's stats.

Needs no Qarnot, so that ``make check-install`` runs it with every supported Airflow.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.statsd import Statsd

SEND = """
from airflow_qarnot_pool import metrics
metrics.incr("requests", 2, method="GET")
metrics.gauge("pools.open", 3, namespace="x")
metrics.timing("poll.duration", 0.25, kind="task")
# What is no number is not sent, and nothing raises.
from airflow_qarnot_pool.costs.model import Cost, PoolCost
from airflow_qarnot_pool.operators.teardown_cost import count_closed_pool
from airflow_qarnot_pool.ownership.identity import RunKey
nan = float("nan")
figures = Cost(euros=nan, carbon_g=nan, node_seconds=float("inf"), used_node_seconds=0.0)
count_closed_pool(PoolCost(uuid="u", name="p", opened_by=RunKey("d", "r"), cost=figures), "d")
"""


def test_each_kind_of_metric_is_sent_on_this_airflow() -> None:
    pytest.importorskip("statsd")
    with Statsd() as listener:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SEND],
            env={**os.environ, **listener.settings()},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    # Leaving has read what had arrived.
    assert listener.seen() == {
        "qarnot.requests": ("c", 2.0),
        "qarnot.pools.open": ("g", 3.0),
        "qarnot.poll.duration": ("ms", 250.0),
    }
