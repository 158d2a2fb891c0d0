"""Whether an api-server is that of a namespace: the number of requests, and the error.

With Airflow's real API: tests/plugins/test_reap_over_api.py.
"""

from __future__ import annotations

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import PoolSpec
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.maintenance import deployment
from airflow_qarnot_pool.maintenance.airflow_api import AirflowApi, AirflowApiError
from tests.maintenance.test_airflow_api import TOKEN, Server, server
from tests.plugins.conftest import identity

__all__ = ["server"]


def test_the_newest_runs_are_looked_up_each_once_and_a_hidden_one_is_named(
    qarnot: LocalQarnot, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "MAX_LOOKUPS", 2)
    client = QarnotClient(qarnot.url, qarnot.token)
    starts = [
        "2026-01-01T00:00:00+00:00",
        "2026-01-02T00:00:00+00:00",
        "no date",
        *["2026-01-03T00:00:00Z"] * 2,
    ]
    for number, started in enumerate(starts):
        owner = identity(run_id=started, task_id=f"open_{number}", run_started=started)
        client.pools.create(PoolSpec(name="warm", tags=owner.tags(), labels=owner.labels(1, "x")))
    server.answer = (403, b'{"detail": "Forbidden"}')
    with pytest.raises(AirflowApiError, match=r"of namespace page have\. .* user who may read all DAGs"):
        deployment.check_deployment(client, "page", AirflowApi(server.url, TOKEN))
    assert [path.rpartition("/")[2][:10] for path, _ in server.asked] == ["2026-01-03", "2026-01-02"]
