"""Places in buckets: their URIs as assets, and which files are there."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from airflow.sdk import Asset

from airflow_qarnot_pool.get_provider_info import get_provider_info
from airflow_qarnot_pool.lineage.assets import create_asset, sanitize_uri
from airflow_qarnot_pool.lineage.places import Place

#: URIs as a DAG may write them, and the one that each place has.
URIS = {
    "bucket": ("qarnot://frames", "qarnot://frames/"),
    "bucket with a slash": ("qarnot://frames/", "qarnot://frames/"),
    "prefix": ("qarnot://frames/2026/left", "qarnot://frames/2026/left"),
    "folder": ("qarnot://frames/2026/", "qarnot://frames/2026"),
    "connection": ("qarnot://qarnot_default@frames/a", "qarnot://frames/a"),
    "connection, of Airflow 3.1": ("qarnot://qarnot_default@/frames/a b", "qarnot://frames/a%20b"),
    "space": ("qarnot://frames/a b", "qarnot://frames/a%20b"),
    "escaped": ("qarnot://frames/a%20b", "qarnot://frames/a%20b"),
    "letters": ("qarnot://frames/é", "qarnot://frames/%C3%A9"),
}
REFUSED = {
    "no bucket": ("qarnot:///a", "Write qarnot://bucket/prefix"),
    "no name of a bucket": ("qarnot://-/a", "not the name of a bucket"),
    "a query": ("qarnot://frames/a?b=1", "names no place in a bucket"),
    "a parent": ("qarnot://frames/../a", "'..'"),
    "an empty folder": ("qarnot://frames/a//b", "'//'"),
}


@pytest.mark.parametrize(("uri", "normal"), URIS.values(), ids=URIS)
def test_a_place_has_one_uri(uri: str, normal: str) -> None:
    assert sanitize_uri(urlsplit(uri)).geturl() == normal
    assert sanitize_uri(urlsplit(normal)).geturl() == normal
    assert Asset(uri).uri == normal, "Airflow finds the sanitizer in the provider metadata"


@pytest.mark.parametrize(("uri", "why"), REFUSED.values(), ids=REFUSED)
def test_a_uri_that_names_no_place_is_refused_when_the_dag_is_parsed(uri: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        sanitize_uri(urlsplit(uri))
    with pytest.raises(ValueError, match=why):
        Place.of_uri(uri)


def test_the_factory_makes_the_asset_of_a_place() -> None:
    asset = create_asset(bucket="frames", prefix="a b/", extra={"team": "x"})
    assert (asset.uri, asset.extra) == ("qarnot://frames/a%20b", {"team": "x"})
    (entry,) = get_provider_info()["asset-uris"]
    assert entry["schemes"] == ["qarnot"]


CONTAINS = {
    "itself": ("a", "a", True),
    "a folder": ("a", "a/b", True),
    "its parent": ("a/b", "a", False),
    "a longer name": ("a", "ab", False),
    "the bucket": ("", "a", True),
}


@pytest.mark.parametrize(("outer", "inner", "expected"), CONTAINS.values(), ids=CONTAINS)
def test_a_place_contains_its_folders(outer: str, inner: str, expected: bool) -> None:
    assert Place.of("frames", outer).contains(Place.of("frames", inner)) is expected
    assert not Place.of("frames", outer).contains(Place.of("others", inner))


HAS = {
    "file of a folder": ("out/", "out/a.png", True),
    "file beside a folder": ("out/", "output/a.png", False),
    "file that continues a prefix": ("frame-", "frame-1.png", True),
    "any file of the bucket": ("", "a.png", True),
    "the file itself": ("out/a.png/", "out/a.png", True),
}


@pytest.mark.parametrize(("prefix", "key", "expected"), HAS.values(), ids=HAS)
def test_a_place_has_the_files_under_its_prefix(prefix: str, key: str, expected: bool) -> None:
    assert Place.of("frames", prefix).has(key) is expected
