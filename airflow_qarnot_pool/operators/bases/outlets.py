"""Describe the results of an operator in the events of its outlets that are assets in buckets."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.errors import QarnotError
from airflow_qarnot_pool.lineage.facets import outputs_of
from airflow_qarnot_pool.lineage.places import SCHEME, Place
from airflow_qarnot_pool.operators.bases.lineage import Figures, read_figures

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.hooks.storage import StoredFile
    from airflow_qarnot_pool.operators.bases.base import QarnotOperator

#: Seconds for one request, because the work is done and the task must not wait for figures.
REQUEST_TIMEOUT = 5.0
#: Maximum number of files that are counted, and of keys in an event, which Airflow stores.
MAX_COUNTED, MAX_KEYS = 10_000, 100
#: The times of files and of responses are cut to whole seconds.
ROUNDING = timedelta(seconds=2)


def fill_outlets(operator: QarnotOperator, context: Context) -> None:
    """Add uuid, pool, files and cost to the event of each outlet that has the results of *operator*.

    An asset has them if it is the place of a result bucket, contains it or is in it. An alias gets the asset of each
    place. Never raises, because the work is done.
    """
    try:
        results = outputs_of(operator._given_specs())
        events = plan_events(operator.outlets, results)
        if not events:
            return
        client = operator.client.limited(retries=0, timeout=REQUEST_TIMEOUT, deadline=REQUEST_TIMEOUT)
        figures = read_figures(operator, client)
        common, files = _describe(operator, figures), _Files(operator, figures, client)
        for outlet, place, is_alias in events:
            extra = {**common, **files.at(place)}
            accessor = context["outlet_events"][outlet]
            if is_alias:
                from airflow.sdk import Asset

                accessor.add(Asset(uri=place.uri), extra=extra)
            else:
                accessor.extra = {**extra, **accessor.extra}
    except Exception as error:
        operator.log.warning("The events of the outlets say nothing about the results: %s", error)


def plan_events(outlets: Iterable[Any], results: Iterable[Place]) -> list[tuple[Any, Place, bool]]:
    """Return each outlet to fill with a place of results, and whether it is an alias, of which one place may be new.

    :param outlets: assets, references to assets, and aliases.
    """
    from airflow.sdk import AssetAlias

    events: list[tuple[Any, Place, bool]] = []
    results = list(results)
    for outlet in outlets:
        if isinstance(outlet, AssetAlias):
            events += [(outlet, place, True) for place in results]
        elif (own := _place_of(outlet)) is not None:
            # The smaller of both: the asset may be a folder of the results, or they a folder of the asset.
            inside = [place if own.contains(place) else own for place in results if _overlap(own, place)]
            events += [(outlet, inside[0], False)] if inside else []
    return events


def _overlap(one: Place, other: Place) -> bool:
    return one.contains(other) or other.contains(one)


def _place_of(outlet: Any) -> Place | None:
    uri = getattr(outlet, "uri", None)
    if not isinstance(uri, str) or not uri.startswith(f"{SCHEME}:"):
        return None
    try:
        return Place.of_uri(uri)
    except ValueError:
        return None


def _describe(operator: QarnotOperator, figures: Figures) -> dict[str, Any]:
    many: Mapping[str, Any] = operator._describe_items().get("qarnot_task") or {}
    found = {
        "uuid": operator._objects.get("task"),
        "uuids": many.get("uuids"),
        "pool": figures.pool.uuid if figures.pool is not None else None,
        "cost": None if figures.cost is None else {"scope": figures.scope, **figures.cost.to_json()},
    }
    return {name: value for name, value in found.items() if value is not None}


class _Files:
    """The files of the results, listed with one client of the storage."""

    def __init__(self, operator: QarnotOperator, figures: Figures, client: QarnotClient) -> None:
        self._operator = operator
        #: When the Qarnot task was created, on the monotonic clock.
        self._created: float | None = None
        created = figures.task.creation_date if figures.task is not None else None
        if created is not None and client.transport.dated is not None:
            date, came = client.transport.dated
            self._created = came - (date - created).total_seconds()

    @cached_property
    def _s3(self) -> Any:
        from airflow_qarnot_pool.hooks.storage import s3_client

        return s3_client(replace(self._operator.hook.settings, retries=0), timeout=REQUEST_TIMEOUT)

    def at(self, place: Place) -> dict[str, Any]:
        """Return the files at *place* that are not older than the Qarnot task."""
        from airflow_qarnot_pool.hooks.listing import date_of, pages
        from airflow_qarnot_pool.hooks.storage import files_of, with_storage_help

        try:
            with with_storage_help(f"Bucket {place.bucket} could not be listed", place.bucket):
                listed = pages(self._s3, place.bucket, [place.prefix])
                first = next(listed)
                stored = (file for page in chain([first], listed) for file in files_of(page))
                inside = (file for file in stored if place.has(file.key))
                return {"files": count_files(inside, self._since(date_of(first)))}
        except QarnotError as error:  # boto3 need not be installed
            self._operator.log.info("The files of the results could not be listed: %s", error)
            return {}

    def _since(self, date: datetime | None) -> datetime | None:
        """Return when the Qarnot task was created, on the clock of the storage, which shows *date*.

        The storage and the API need not have the same clock.
        """
        if date is None or self._created is None:
            return None
        return date - timedelta(seconds=time.monotonic() - self._created) - ROUNDING


def count_files(stored: Iterable[StoredFile], since: datetime | None) -> dict[str, Any]:
    """Return ``{count, bytes, keys}`` of files that are not older than *since*. ``more``: some are not counted."""
    found: dict[str, Any] = {"count": 0, "bytes": 0, "keys": []}
    for number, file in enumerate(stored):
        if number >= MAX_COUNTED:
            return {**found, "more": True}
        if since is not None and file.modified is not None and file.modified < since:
            continue
        found["count"] += 1
        found["bytes"] += file.size
        if len(found["keys"]) < MAX_KEYS:
            found["keys"].append(file.key)
    return found


__all__ = ["count_files", "fill_outlets", "plan_events"]
