"""One pool that Qarnot cannot tell all of costs the Pools page that pool's figures and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from airflow_qarnot_pool.plugins import ask
from airflow_qarnot_pool.plugins.desk import LIST
from tests.plugins.conftest import Maker, life, until

if TYPE_CHECKING:
    from airflow_qarnot_pool.local import LocalQarnot

GARBAGE = {"method": "GET", "kind": "garbage"}


@pytest.fixture
def asker(airflow_app: Any, server: LocalQarnot, monkeypatch: pytest.MonkeyPatch) -> Iterator[ask.Asker]:
    """One that is told everything at once, and asks for figures in every round."""
    monkeypatch.setattr(ask, "FIGURES_AFTER", 0.0)
    yield ask.Asker("qarnot_default")
    server.faults([])


def rows_of(asker: ask.Asker) -> dict[str, dict[str, Any]]:
    return {row["uuid"]: row for row in asker(LIST)}


@pytest.mark.parametrize(
    ("path", "fault", "unknown"),
    [
        ("/credits/v1/pools/{}/credits", GARBAGE, "euros"),
        ("/credits/v1/pools/{}/credits", {"kind": "status", "status": 402}, "euros"),
        ("/carbon/v1/pools/{}/carbon-facts", GARBAGE, "carbon_g"),
        ("/pools/{}/tasks", GARBAGE, None),
    ],
)
def test_figures_that_cannot_be_read_are_not_known_and_asked_for_again(
    make: Maker,
    asker: ask.Asker,
    server: LocalQarnot,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    fault: dict[str, Any],
    unknown: str | None,
) -> None:
    odd, fine = make.pool("odd", labels={"airflow.shared": "nightly"}), make.pool("fine")
    make.task(odd, owner=life("frames", "two", "work"))
    server.faults([{**fault, "path": path.format(odd)}])
    rows = rows_of(asker)
    assert {odd, fine} <= rows.keys()
    assert None not in (rows[fine]["figures"]["euros"], rows[fine]["figures"]["carbon_g"])
    not_known = {name for name in ("euros", "carbon_g") if rows[odd]["figures"][name] is None}
    assert not_known == {unknown} - {None}
    # What happens meanwhile is seen, and what is over is asked about until there is an answer.
    monkeypatch.setattr(ask, "SETTLED_AFTER", timedelta(-1))
    make.client.pools.close(odd)
    until(lambda: rows_of(asker)[odd]["phase"] == "closed", "its end")
    server.faults([])
    figures = rows_of(asker)[odd]["figures"]
    assert None not in (figures["euros"], figures["carbon_g"])


def test_a_pool_whose_figures_fail_does_not_keep_others_from_theirs(
    make: Maker, asker: ask.Asker, server: LocalQarnot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask, "FIGURES_PER_ROUND", 1)
    monkeypatch.setitem(ask.LIMITS, "retries", 0)
    server.account(maxPool=None, maxInstances=None, maxRunningPool=None)
    odd, fine = make.pool("odd"), make.pool("fine")
    server.faults([{"kind": "status", "status": 500, "path": f"/pools/{odd}/credits"}])
    for _ in range(len(rows_of(asker)) + 1):
        rows = rows_of(asker)
    assert rows[fine]["figures"]["euros"] is not None
    assert rows[odd]["figures"] is None
    assert asker(odd)["row"]["uuid"] == odd  # and in full it is shown, too
