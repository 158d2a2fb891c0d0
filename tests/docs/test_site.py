"""The site builds without a warning, and loads nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from airflow_qarnot_pool import exceptions
from tests.conftest import ROOT


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


def test_every_error_is_explained() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    assert set(re.findall(r"^\| `(Qarnot\w*Error)` \|", page, re.M)) == set(exceptions.__all__)
