"""The site builds without a warning, and loads nothing from elsewhere."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

import pytest

from airflow_qarnot_pool import __version__, exceptions
from tests.conftest import ROOT
from tools import docs_site


def test_the_site_builds_and_loads_nothing_from_other_servers(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the site is built with the dev extra")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 10
    for page in [*pages, *tmp_path.rglob("*.css")]:
        loaded = r"""<(?:script|link|img|iframe)\b[^>]*(?:src|href)=["'](https?:)?//|url\(["']?https?:"""
        assert not re.search(loaded, page.read_text()), page.name
    assert "::: " not in "".join(page.read_text() for page in pages)
    check_inventory(tmp_path)


def check_inventory(site: Path) -> None:
    """Read ``objects.inv`` as Sphinx does: each line leads to a place that exists, and no entry is missing."""
    *head, packed = (site / "objects.inv").read_bytes().split(b"\n", 4)
    assert head[0] == b"# Sphinx inventory version 2"
    assert head[2] == f"# Version: {__version__}".encode()
    line = re.compile(r"(?P<name>.+?)\s+(?P<role>\w+:\w+)\s+(?P<prio>-?\d+)\s+?(?P<uri>\S*)\s+(?P<title>.*)")
    found = {}
    for one in zlib.decompress(packed).decode().splitlines():
        item = line.fullmatch(one)
        assert item is not None, one
        page, _, anchor = item["uri"].partition("#")
        assert not anchor or f'id="{anchor}"' in (site / page).read_text(), one
        assert (site / page).exists(), one
        found[item["name"]] = item["role"]
    reference = (ROOT / "docs" / "reference.md").read_text()
    entries = re.findall(r"^\| \[`(\w+)`\]\(#", reference, re.M)
    assert len(entries) > 20
    assert set(entries) <= {name.rpartition(".")[2] for name in found}
    assert found["airflow_qarnot_pool.operators.pool.QarnotCreatePoolOperator"] == "py:class"
    assert found["airflow_qarnot_pool.operators.create_pool.QarnotCreatePoolOperator"] == "py:class"
    assert found["airflow_qarnot_pool.decorators.qarnot.qarnot_task"] == "py:function"
    assert found["airflow_qarnot_pool.api.client.QarnotClient"] == "py:class"
    assert found["index"] == "std:doc"


def test_a_release_is_built_from_its_own_sources(tmp_path: Path) -> None:
    exceptions_of_mkdocs = pytest.importorskip(
        "mkdocs.exceptions", reason="the site is built with the dev extra"
    )
    with pytest.raises(
        exceptions_of_mkdocs.ConfigurationError, match=r"not that of the package, got 9\.9\.9"
    ):
        docs_site.on_config({"site_dir": str(tmp_path / "9.9.9"), "extra": {}, "nav": []})


def test_the_root_leads_to_the_newest_release(tmp_path: Path) -> None:
    for version in ("dev", "0.9.0", "0.10.0"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "index.html").touch()
    docs_site.list_versions(tmp_path)
    names = json.loads((tmp_path / "versions.js").read_text().partition(" = ")[2].rstrip(";\n"))
    assert list(names) == ["0.10.0", "0.9.0", "dev"]
    assert "url=0.10.0/index.html" in (tmp_path / "index.html").read_text()


def test_every_error_is_explained() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    assert set(re.findall(r"^\| `(Qarnot\w*Error)` \|", page, re.M)) == set(exceptions.__all__)
