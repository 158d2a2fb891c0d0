"""Assets ``qarnot://bucket/prefix``. Airflow imports these functions (provider metadata, ``asset-uris``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.lineage.places import Place

if TYPE_CHECKING:
    from urllib.parse import SplitResult

    from airflow.sdk import Asset


def create_asset(*, bucket: str, prefix: str = "", extra: dict[str, Any] | None = None) -> Asset:
    """Return the asset of a bucket, or of the files under a prefix of its keys.

    :raises QarnotInvalidSpecError: the bucket or the prefix is not valid.
    """
    from airflow.sdk import Asset

    return Asset(uri=Place.of(bucket, prefix).uri, extra=extra or {})


def sanitize_uri(uri: SplitResult) -> SplitResult:
    """Return *uri* without a connection and with an escaped path, because a place has one URI.

    :raises QarnotInvalidSpecError: the URI names no bucket.
    """
    place = Place.of_uri(uri.geturl())
    return uri._replace(netloc=place.bucket, path=place.path)


def convert_asset_to_openlineage(asset: Asset, lineage_context: Any) -> Any:
    """Return the OpenLineage dataset of *asset*."""
    from airflow_qarnot_pool.lineage.openlineage import dataset

    return dataset(Place.of_uri(asset.uri))


__all__ = ["convert_asset_to_openlineage", "create_asset", "sanitize_uri"]
