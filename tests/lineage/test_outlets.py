"""Events of assets: which outlets get results, and which files count."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import Asset, AssetAlias

from airflow_qarnot_pool.hooks.storage import StoredFile
from airflow_qarnot_pool.lineage.places import Place
from airflow_qarnot_pool.operators.bases.lineage import Figures
from airflow_qarnot_pool.operators.bases.outlets import (
    MAX_COUNTED,
    MAX_KEYS,
    _Files,
    count_files,
    plan_events,
)
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
    new, old = begun, begun - timedelta(seconds=2)
    found = count_files([*stored(3, old), *stored(2, new), *stored(1, None)], begun)
    assert found == {"count": 3, "bytes": 6, "keys": ["out/0", "out/1", "out/0"]}
    assert count_files(stored(4, old), None)["count"] == 4


@pytest.mark.parametrize("ahead", [-400, 0, 400])
def test_the_clock_of_the_storage_dates_the_files(ahead: int) -> None:
    now = datetime(2026, 1, 1, 12, 0, 30, tzinfo=UTC)
    entries = [
        {"Key": f"out/{age}", "Size": 1, "LastModified": now - timedelta(seconds=age)} for age in (1, 20)
    ]
    page = {"Contents": entries, "ResponseMetadata": {"HTTPHeaders": {"date": format_datetime(now)}}}
    api_date = now + timedelta(seconds=ahead)
    task: Any = SimpleNamespace(creation_date=api_date - timedelta(seconds=5))
    client: Any = SimpleNamespace(transport=SimpleNamespace(dated=(api_date, time.monotonic())))
    files = _Files(QarnotRunTaskOperator(task_id="work", command="true"), Figures(task=task), client)
    vars(files)["_s3"] = SimpleNamespace(list_objects_v2=lambda **_: page)
    assert files.at(OUT)["files"]["keys"] == ["out/1"]


def test_keys_and_files_are_bounded() -> None:
    found = count_files(stored(MAX_COUNTED + 5, None), None)
    assert (found["count"], len(found["keys"]), found["more"]) == (MAX_COUNTED, MAX_KEYS, True)


def test_a_task_succeeds_though_its_results_cannot_be_described(caplog: Any) -> None:
    operator = QarnotRunTaskOperator(
        task_id="work", command="true", result_bucket="frames", outlets=[Asset("qarnot://frames")]
    )
    operator.post_execute({"outlet_events": {}, "ti": SimpleNamespace()})  # type: ignore[arg-type]
