"""The spending of a DAG run, whatever searches miss and proxies respond."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_qarnot_pool.api.errors import QarnotNotFoundError, QarnotUnavailableError
from airflow_qarnot_pool.api.models import Pool
from airflow_qarnot_pool.costs.limits import CostLimit, Spending
from airflow_qarnot_pool.costs.spending import spending_of

RUN = CostLimit(uuid="one", max_run_cost=20.0, namespace="n", dag_id="d", run_id="r")
LABELS = {"airflow.dag_id": "d", "airflow.run_id": "r", "airflow.namespace": "n"}


class Service:
    """The pools of one DAG run, which searches may miss and which may be deleted."""

    def __init__(self) -> None:
        self.pools = self.jobs = self
        self.states: dict[str, str] = {}
        self.costs: dict[str, float] = {}
        self.missed: set[str] = set()
        self.foreign = False

    def add(self, uuid: str, cost: float, state: str = "FullyExecuting") -> None:
        self.states[uuid], self.costs[uuid] = state, cost

    def get(self, uuid: str) -> Pool:
        if uuid not in self.states:
            raise QarnotNotFoundError(ref=uuid, kind="pool", foreign=self.foreign)
        ended = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
        return Pool.from_json(
            {"uuid": uuid, "state": self.states[uuid], "labels": LABELS, "tags": [], "endDate": ended}
        )

    def search_all(self, *_: Any, **__: Any) -> list[Pool]:
        return [self.get(uuid) for uuid in self.states if uuid not in self.missed]

    def credits(self, uuid: str) -> float:
        if uuid not in self.costs:
            raise QarnotNotFoundError(ref=uuid, kind="pool")
        return self.costs[uuid]

    def list(self, tags: Any) -> list[Any]:
        """Every pool was recorded when it was opened, and one that was deleted, too."""
        return [
            SimpleNamespace(name=json.dumps({"pool": uuid})) for uuid in dict.fromkeys([*self.states, "gone"])
        ]


@pytest.fixture
def service() -> Service:
    service = Service()
    service.add("one", 1.0)
    service.add("two", 3.0)
    service.costs["gone"] = 2.0
    return service


def spent(service: Any, settled: dict[str, float]) -> Spending:
    return spending_of(service, RUN, settled)


def test_a_pool_that_a_search_missed_once_goes_on_to_cost(service: Service) -> None:
    settled: dict[str, float] = {}
    service.missed = {"two"}
    found = spent(service, settled)
    assert (found.run, set(found.open_pools)) == (6.0, {"one", "two"})
    service.missed, service.costs["two"] = set(), 500.0
    assert spent(service, settled).run == 503.0


def test_pools_that_no_search_returns_are_of_the_run_and_can_be_closed(service: Service) -> None:
    """The clock of the service is behind, so that they seem older than their run."""
    settled: dict[str, float] = {}
    service.missed = {"one", "two"}
    spent(service, settled)
    service.costs["one"] = 500.0
    found = spent(service, settled)
    assert (found.run, found.of_the_run, set(found.open_pools)) == (505.0, True, {"one", "two"})


def test_only_the_cost_of_a_pool_that_was_seen_to_have_ended_is_final(service: Service) -> None:
    settled: dict[str, float] = {}
    service.add("three", 4.0, "Closed")
    assert spent(service, settled).run == 10.0
    service.costs.update(three=400.0, gone=5.0)
    assert spent(service, settled).run == 13.0
    assert settled == {"three": 4.0}


def test_the_page_of_a_proxy_does_not_mean_that_a_pool_is_deleted(service: Service) -> None:
    service.foreign = True
    with pytest.raises(QarnotUnavailableError):
        spent(service, {})


def test_a_deleted_pool_of_unknown_cost_is_named(service: Service) -> None:
    del service.costs["gone"]
    assert (spent(service, {}).run, spent(service, {}).forgotten) == (4.0, ("gone",))
