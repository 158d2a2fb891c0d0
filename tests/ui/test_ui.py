"""The provider in Airflow's UI as a person meets it, from the login on."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
import requests

from tests.plugins.conftest import Maker, identity
from tests.ui import MISFITS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_qarnot_pool.local import LocalQarnot
    from tests.ui.browser import Browser
    from tools.airflow_stack import AirflowStack

PAGE = "/plugin/qarnot-pools"
CLOSE = {"X-Qarnot-Pools": "close"}
#: The colour of the nearest element around the frame that has one.
AROUND = """
    for (let one = document.querySelector('iframe'); one; one = one.parentElement) {
        const colour = getComputedStyle(one).backgroundColor;
        if (!/^(transparent|.*[,/] ?0\\))$/.test(colour)) return colour;
    }
"""


def login(browser: Browser, airflow: AirflowStack, user: str) -> None:
    browser.go("/auth/login")
    browser.driver.delete_all_cookies()
    browser.go("/auth/login")
    browser.write("input[name=username]", user)
    browser.write("input[name=password]", airflow.passwords[user])
    browser.click("button[type=submit]")
    browser.wait(lambda: "/auth/" not in browser.path(), "the login to be accepted")


def page_shows(browser: Browser, css: str, text: str = "") -> None:
    browser.in_frame(lambda: browser.find(css, text), f"the Pools page to show {text!r}")


def click_inside(browser: Browser, css: str, text: str = "") -> None:
    def clicked() -> bool:
        found = browser.find(css, text)
        if found:
            found[0].click()
        return bool(found)

    browser.in_frame(clicked, f"{css} with {text!r} in the frame")


@pytest.fixture
def connected(browser: Browser, airflow: AirflowStack, qarnot_of_ui: LocalQarnot) -> None:
    """An admin who is logged in, and the connection, whether its form has made it or not."""
    known = airflow.api("GET", "connections")["connections"]
    if not any(one["connection_id"] == "qarnot_default" for one in known):
        body = {"connection_id": "qarnot_default", "conn_type": "qarnot", "extra": '{"namespace": "page"}'}
        airflow.api("POST", "connections", {**body, "host": qarnot_of_ui.url, "password": qarnot_of_ui.token})
    login(browser, airflow, "anna")


def test_the_page_needs_a_login(airflow: AirflowStack) -> None:
    for path in ("/", "/static/pools.js", "/api/pools"):
        assert requests.get(f"{airflow.url}/qarnot-pools{path}", timeout=30).status_code == 401


def test_the_connection_is_made_in_its_form_and_tested(
    browser: Browser, airflow: AirflowStack, qarnot_of_ui: LocalQarnot
) -> None:
    login(browser, airflow, "anna")
    browser.go(PAGE)
    page_shows(browser, ".banner", "There is no such connection")
    browser.go("/connections")
    browser.click("button", "Add Connection")
    form = "[role=dialog]"
    browser.write(f"{form} input[name=connection_id]", "qarnot_default")
    browser.see(f"{form} input[role=combobox]").send_keys("qarnot")
    browser.click("[role=option]", "arnot")
    host, token = f"{form} input[name=host]", f"{form} input[name=password]"
    address, port = qarnot_of_ui.url.rsplit(":", 1)
    browser.unfold(host, "Standard Fields")
    for label in ("API URL", "API token"):
        browser.see(form, label)
    assert browser.see(host).get_attribute("placeholder") == "https://api.qarnot.com"
    assert browser.see(token).get_attribute("type") == "password"
    browser.unfold(f"{form} input[name=element_namespace]", "Extra Fields")
    for label in ("Namespace", "Verify TLS", "CA bundle", "Request timeout (s)", "Console URL"):
        browser.see(form, label)
    browser.unfold(host, "Standard Fields")
    browser.write(host, address)
    browser.write(f"{form} input[name=port]", port)
    browser.write(token, qarnot_of_ui.token)
    browser.unfold(f"{form} input[name=element_namespace]", "Extra Fields")
    browser.write(f"{form} input[name=element_namespace]", "page")
    browser.shot("connection-form")
    browser.click(f"{form} button", "Save")
    browser.see("tbody tr", "qarnot_default")
    browser.click("tbody tr button[aria-label='Test Connection']")
    browser.see("body", f"Connected as {qarnot_of_ui.email}")
    stored = airflow.api("GET", "connections/qarnot_default")
    assert qarnot_of_ui.token not in str(stored)
    assert stored["conn_type"] == "qarnot"


@pytest.fixture
def until_seen() -> Iterator[Path]:
    """A script that ends when there is a file ``seen`` beside it. Its path is short, because the form is slow."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "w"
        script.write_text(f"until [ -e {folder}/seen ]; do sleep 0.1; done\n")
        yield script


@pytest.mark.usefixtures("connected")
def test_a_run_from_the_form_to_the_closed_pool(
    browser: Browser, airflow: AirflowStack, qarnot_of_ui: LocalQarnot, until_seen: Path
) -> None:
    airflow.wait_dag("qarnot_params")
    airflow.api("PATCH", "dags/qarnot_params", {"is_paused": False})
    browser.go(PAGE)
    page_shows(browser, ".empty", "No pools, and nothing is billed")
    browser.go("/dags/qarnot_params")
    browser.click("button", "Trigger")
    browser.unfold("[role=dialog] input[name=element_items]", "The work")
    browser.write("[role=dialog] input[name=element_items]", "2")
    browser.unfold("[role=dialog] [name=element_command]", "The work")
    browser.write("[role=dialog] [name=element_command]", f"sh {until_seen}")
    browser.shot("trigger-form")
    browser.click("[role=dialog] button", "Trigger")
    [run] = browser.wait(lambda: airflow.api("GET", "dags/qarnot_params/dagRuns")["dag_runs"], "the run")
    run_id = run["dag_run_id"]

    browser.go(PAGE)
    page_shows(browser, "tr[data-uuid]", "FullyExecuting")
    page_shows(browser, "tr[data-uuid]", run_id)
    page_shows(browser, "tr[data-uuid]", "running")
    browser.shot("executing")
    links = airflow.api("GET", f"dags/qarnot_params/dagRuns/{quote(run_id)}/taskInstances/open_pool/links")
    assert not links["extra_links"]["Qarnot pool"], "no console shows the pools of a local Qarnot"

    # To the task, in Airflow's own page around the frame, and back.
    click_inside(browser, "tr[data-uuid] a")
    click_inside(browser, ".tabs a", "Qarnot tasks")
    browser.wait(lambda: browser.driver.current_url.endswith("&tab=tasks"), "the address of the tab")
    address = browser.driver.current_url
    link = f"/dags/qarnot_params/runs/{run_id}/tasks/work/mapped/"

    def follow() -> bool:
        for one in browser.find("td a"):
            if "/tasks/work/mapped/" in (one.get_attribute("href") or ""):
                one.click()
                return True
        return False

    browser.in_frame(follow, "the link to the Airflow task")
    browser.wait(lambda: browser.path().replace("%3A", ":").replace("%2B", "+").startswith(link), link)
    browser.driver.back()
    browser.wait(lambda: browser.path().startswith(PAGE), "the Pools page again")

    # The run's own tab.
    browser.go(f"/dags/qarnot_params/runs/{quote(run_id)}/plugin/qarnot-pools-of-run")
    page_shows(browser, "h1", "Qarnot pools of this DAG run")
    page_shows(browser, "tr[data-uuid]", "qarnot_params.open_pool")
    page_shows(browser, "tr[data-uuid] .act button", "Close")
    browser.shot("run-tab")
    with browser.frame():
        width, misfits = browser.script(f"return [innerWidth, (() => {{{MISFITS}}})()]")
        assert width < 1400, "Airflow's grid is beside it"
        assert not misfits

    until_seen.with_name("seen").touch()
    browser.go(PAGE)
    page_shows(browser, "tr[data-uuid]", "Closed")
    page_shows(browser, "tr[data-uuid]", "2 done")
    # The address of Airflow's own page is that of the pool and its tab. It survives a reload, and can be sent.
    sent = links["extra_links"]["Qarnot pool in Airflow"]
    assert address.endswith(f"#{sent.split('#')[1]}&tab=tasks")
    browser.driver.get(f"{airflow.url}/{sent}")
    page_shows(browser, "h1", "qarnot_params.open_pool")
    click_inside(browser, ".tabs a", "Qarnot tasks")
    page_shows(browser, "tr[data-task]", "succeeded")
    browser.driver.refresh()
    page_shows(browser, "tr[data-task]", "succeeded")
    assert browser.driver.current_url.endswith("&tab=tasks")
    assert airflow.wait_run("qarnot_params", run_id) == "success"


@pytest.mark.usefixtures("connected")
def test_the_page_is_as_dark_as_airflow(browser: Browser) -> None:
    browser.go(PAGE)
    browser.script("localStorage.setItem('theme', 'dark')")
    try:
        browser.driver.refresh()
        page_shows(browser, "h1", "Qarnot pools")
        assert "dark" in browser.script("return document.documentElement.className").split()
        around = browser.script(AROUND)
        shown = "return [document.documentElement.className, getComputedStyle(document.body).backgroundColor]"
        browser.in_frame(lambda: browser.script(shown) == ["dark", around], f"the page to have {around}")
        browser.shot("dark")
    finally:
        browser.script("localStorage.removeItem('theme')")


@pytest.mark.parametrize(
    ("user", "reads", "closes"), [("vera", 403, 403), ("otto", 200, 200), ("anna", 200, 200)]
)
@pytest.mark.usefixtures("connected")
def test_permissions_of_each_role(
    airflow: AirflowStack, make: Maker, user: str, reads: int, closes: int
) -> None:
    uuid = make.pool(owner=identity(f"of_{user}"))
    auth = {"Authorization": f"Bearer {airflow.token_of(user)}"}
    base = f"{airflow.url}/qarnot-pools/api"
    assert requests.get(f"{base}/pools", headers=auth, timeout=30).status_code == reads
    pool = f"{base}/connections/qarnot_default/pools/{uuid}"
    assert requests.get(pool, headers=auth, timeout=30).status_code == reads
    run = f"{base}/dags/qarnot_params/pools?run_id=x"
    assert requests.get(run, headers=auth, timeout=30).status_code == 200
    assert requests.post(f"{pool}/close", headers={**auth, **CLOSE}, timeout=30).status_code == closes
    assert (make.client.pools.get(uuid).state in ("Closing", "Closed")) is (closes == 200)


@pytest.mark.usefixtures("connected")
def test_a_viewer_is_told_what_is_missing(browser: Browser, airflow: AirflowStack) -> None:
    login(browser, airflow, "vera")
    browser.go(PAGE)
    page_shows(browser, ".banner", "permission to read connections")
