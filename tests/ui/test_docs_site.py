"""The docs site in a browser: the search, the switch of versions, and pages that fit a phone."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from tests.conftest import ROOT
from tools import docs_site

if TYPE_CHECKING:
    from tests.ui.browser import Browser

pytestmark = pytest.mark.airflow_ui


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two versions of the site. The older one has no gallery."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    root = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(root / docs_site.DEV), strict=True))
    shutil.copytree(root / docs_site.DEV, root / "0.0.9")
    (root / "0.0.9" / "gallery.html").unlink()
    docs_site.list_versions(root)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_root_leads_to_the_newest_release(browser: Browser) -> None:
    browser.go("/")
    browser.see("h1", "A warm pool for a DAG")
    assert browser.path() == "/0.0.9/index.html"


def test_the_search_finds_a_parameter(browser: Browser) -> None:
    browser.go("/dev/search.html?q=forced_network_rules")
    browser.see("#mkdocs-search-results article h3", "TaskSpec")
    browser.click("#mkdocs-search-results article h3 a", "TaskSpec")
    browser.see("h3", "TaskSpec")
    assert browser.path().startswith("/dev/reference.html")


@pytest.mark.parametrize(
    ("page", "there"), [("reference.html", "reference.html"), ("gallery.html", "index.html")]
)
def test_the_switch_leads_to_the_same_page_if_the_version_has_it(
    browser: Browser, page: str, there: str
) -> None:
    browser.go(f"/dev/{page}")
    browser.see("#versions", "0.0.9")
    assert browser.script("return document.getElementById('versions').value") == "dev"
    browser.script(
        "const select = document.getElementById('versions'); select.value = '0.0.9';"
        "select.dispatchEvent(new Event('change'))"
    )
    browser.wait(lambda: browser.path() == f"/0.0.9/{there}", "the other version")
    browser.see("#versions", "0.0.9")


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("page", ["index", "reference", "gallery", "recipes", "coming-from"])
def test_no_page_is_wider_than_the_screen(browser: Browser, page: str, width: int) -> None:
    browser.resize(width, 900)
    browser.go(f"/dev/{page}.html")
    browser.see("h1")
    browser.shot(f"docs-{page}-{width}")
    assert browser.script("return document.documentElement.scrollWidth") <= width
    wide = "return [...document.querySelectorAll('.rst-content table, .rst-content img')]"
    assert browser.script(f"{wide}.filter((one) => one.getBoundingClientRect().right > {width}).length") == 0


def test_no_parameter_is_cut_off(browser: Browser) -> None:
    browser.resize(1400, 900)
    browser.go("/dev/reference.html")
    browser.see("table.parameters")
    tables = "[...document.querySelectorAll('table.parameters')]"
    assert browser.script(f"return {tables}.length") > 20
    assert (
        browser.script(f"return {tables}.filter((one) => one.scrollWidth > one.clientWidth + 1).length") == 0
    )
