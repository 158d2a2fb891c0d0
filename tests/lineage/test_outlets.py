"""Events of assets: which outlets get results, and which files count."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import Asset, AssetAlias

from airflow_qarnot_pool.hooks.storage import StoredFile
from airflow_qarnot_pool.lineage.places import Place
from airflow_qarnot_pool.operators.bases.outlets import MAX_COUNTED, MAX_KEYS, count_files, plan_events
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator

OUT = Place("frames", "out")
ASSETS: dict[str, tuple[str, Place | None]] = {
    "the place of the results": ("qarnot://frames/out", OUT),
    "the bucket": ("qarnot://frames", OUT),
    "a folder of the results": ("qarnot://frames/out/left", Place("frames", "out/left")),
    "another folder": ("qarnot://frames/in", None),
    "a longer name": ("qarnot://frames/output", None),
    "another bucket": ("qarnot://scenes/out", None),
    "another storage": ("s3://frames/out", None),
}


@pytest.mark.parametrize(("uri", "place"), ASSETS.values(), ids=ASSETS)
def test_an_asset_gets_the_results_that_it_shares_files_with(uri: str, place: Place | None) -> None:
    asset = Asset(uri)
    expected = [] if place is None else [(asset, place, False)]
    assert plan_events([asset], [Place("elsewhere"), OUT]) == expected


def test_an_alias_gets_each_place_of_results() -> None:
    alias = AssetAlias("frames")
    assert plan_events([alias], [OUT, Place("b")]) == [(alias, OUT, True), (alias, Place("b"), True)]
    assert plan_events([alias], []) == []


def stored(count: int, modified: datetime | None) -> list[StoredFile]:
    return [StoredFile(key=f"out/{number}", size=2, modified=modified) for number in range(count)]


def test_files_are_those_that_are_not_older_than_the_qarnot_task() -> None:
    begun = datetime(2026, 1, 1, 12, 0, 0, 900_000, tzinfo=UTC)
    new, old = begun.replace(microsecond=0), begun - timedelta(seconds=3)
    found = count_files([*stored(3, old), *stored(2, new), *stored(1, None)], begun)
    assert found == {"count": 3, "bytes": 6, "keys": ["out/0", "out/1", "out/0"]}
    assert count_files(stored(4, old), None)["count"] == 4


def test_keys_and_files_are_bounded() -> None:
    found = count_files(stored(MAX_COUNTED + 5, None), None)
    assert (found["count"], len(found["keys"]), found["more"]) == (MAX_COUNTED, MAX_KEYS, True)


def test_a_task_succeeds_though_its_results_cannot_be_described(caplog: Any) -> None:
    operator = QarnotRunTaskOperator(
        task_id="work", command="true", result_bucket="frames", outlets=[Asset("qarnot://frames")]
    )
    operator.post_execute({"outlet_events": {}, "ti": SimpleNamespace()})  # type: ignore[arg-type]
