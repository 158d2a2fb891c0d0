"""The provider in Airflow's UI as a person meets it, from the login on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import requests

from tests.plugins.conftest import Maker, life

if TYPE_CHECKING:
    from airflow_qarnot_pool.local import LocalQarnot
    from tests.ui.browser import Browser
    from tools.airflow_stack import AirflowStack

PAGE = "/plugin/qarnot-pools"
CLOSE = {"X-Qarnot-Pools": "close"}


def login(browser: Browser, airflow: AirflowStack, user: str) -> None:
    browser.go("/auth/logout")
    browser.go("/auth/login")
    browser.write("input[name=username]", user)
    browser.write("input[name=password]", airflow.passwords[user])
    browser.click("button[type=submit]")
    browser.wait(lambda: "/auth/" not in browser.path(), "the login to be accepted")


def page_shows(browser: Browser, css: str, text: str = "") -> None:
    browser.in_frame(lambda: browser.find(css, text), f"the Pools page to show {text!r}")


@pytest.fixture
def connected(browser: Browser, airflow: AirflowStack, qarnot_of_ui: LocalQarnot) -> None:
    """An admin who is logged in, and the connection, whether its form has made it or not."""
    known = airflow.api("GET", "connections")["connections"]
    if not any(one["connection_id"] == "qarnot_default" for one in known):
        body = {"connection_id": "qarnot_default", "conn_type": "qarnot", "extra": '{"namespace": "page"}'}
        airflow.api("POST", "connections", {**body, "host": qarnot_of_ui.url, "password": qarnot_of_ui.token})
    login(browser, airflow, "anna")


def test_nobody_gets_in_without_a_login(airflow: AirflowStack) -> None:
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
    browser.see(form, "API URL")
    browser.unfold(f"{form} input[name=element_namespace]", "Extra Fields")
    for label in ("API token", "Namespace", "Verify TLS", "CA bundle", "Request timeout (s)", "Console URL"):
        browser.see(form, label)
    host, token = f"{form} input[name=host]", f"{form} input[name=password]"
    browser.unfold(host, "Standard Fields")
    assert browser.see(host).get_attribute("placeholder") == "https://api.qarnot.com"
    assert browser.see(token).get_attribute("type") == "password"
    browser.write(host, qarnot_of_ui.url)
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


@pytest.mark.usefixtures("connected")
def test_a_run_from_the_form_to_the_closed_pool(
    browser: Browser, airflow: AirflowStack, qarnot_of_ui: LocalQarnot
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
    browser.write("[role=dialog] [name=element_command]", "sh -c 'sleep 15; echo done'")
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
    assert "/pools/" in links["extra_links"]["Qarnot pool"]

    # To the task, in Airflow's own page around the frame, and back.
    browser.in_frame(lambda: browser.find("tr[data-uuid] a")[0].click() or True, "the pool's name")
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
    browser.shot("run-tab")

    browser.go(PAGE)
    page_shows(browser, "tr[data-uuid]", "Closed")
    page_shows(browser, "tr[data-uuid]", "2 done")
    assert airflow.wait_run("qarnot_params", run_id) == "success"


@pytest.mark.usefixtures("connected")
def test_a_lost_node_is_seen_and_a_pool_is_closed_by_hand(
    browser: Browser, airflow: AirflowStack, qarnot_of_ui: LocalQarnot, make: Maker
) -> None:
    uuid = make.pool("by hand", size=2, owner=life("by_hand", "manual__1"))
    make.task(uuid, "sleep 600")
    browser.go(PAGE)
    row = f"tr[data-uuid='{uuid}']"
    page_shows(browser, row, "2 of 2")
    node = next(node for node in qarnot_of_ui.nodes() if node["pool"] == uuid)
    qarnot_of_ui.kill_node(node["id"])
    page_shows(browser, row, "1 slot was lost")
    browser.shot("lost-node")
    browser.in_frame(lambda: browser.find(f"{row} button", "Close")[0].click() or True, "the Close button")
    page_shows(browser, "dialog", "1 unfinished Qarnot task")
    browser.in_frame(lambda: browser.find("dialog button", "Close the pool")[0].click() or True, "the dialog")
    page_shows(browser, row, "Closed")
    log = airflow.api("GET", "eventLogs", dag_id="by_hand")["event_logs"]
    assert [(entry["event"], entry["owner"]) for entry in log] == [("qarnot.close_pool", "anna")]


@pytest.mark.usefixtures("connected")
def test_names_that_look_like_script_are_text(browser: Browser, make: Maker) -> None:
    name = "<img src=x onerror=\"window.top.hacked='img'\"><script>window.top.hacked='script'</script>"
    evil = life("<b>dag</b>", "javascript:window.top.hacked='link'")
    uuid = make.pool(name, owner=evil, labels={"airflow.task_id": "'\"><svg onload=alert(1)>"})
    make.task(uuid, "sleep 600", owner=evil, name=name)
    browser.go(PAGE)
    page_shows(browser, f"tr[data-uuid='{uuid}']", name)
    page_shows(browser, f"tr[data-uuid='{uuid}']", "<b>dag</b>")
    browser.in_frame(lambda: browser.find(f"tr[data-uuid='{uuid}'] a")[0].click() or True, "the pool's name")
    page_shows(browser, "h1", name)
    page_shows(browser, "td.name", name)
    assert browser.script("return window.top.hacked === undefined")

    def parsed() -> int:
        return int(
            browser.script(
                "return document.querySelectorAll('#view img, #view script, #view svg, #view b').length"
            )
        )

    assert browser.in_frame(lambda: [parsed()], "the page") == [0]


@pytest.fixture
def another_site() -> Iterator[str]:
    """A page on another port of the same host: browsers send the cookie along, SameSite or not."""
    pages: dict[str, str] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<!doctype html><title>Kittens</title>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/{''.join(pages)}"
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("connected")
def test_another_site_cannot_close_a_pool(
    browser: Browser, airflow: AirflowStack, make: Maker, another_site: str
) -> None:
    uuid = make.pool("precious", owner=life("precious"))
    browser.go(PAGE)
    page_shows(browser, f"tr[data-uuid='{uuid}']", "FullyExecuting")
    close = f"{airflow.url}/qarnot-pools/api/connections/qarnot_default/pools/{uuid}/close"
    browser.driver.get(another_site)
    browser.driver.set_script_timeout(60)
    attempts = """
        const [url, done] = arguments;
        const send = (options) => fetch(url, {method: 'POST', credentials: 'include', ...options})
            .then((answer) => `${answer.type} ${answer.status}`, () => 'refused');
        Promise.all([
            send({mode: 'no-cors'}),
            send({mode: 'cors', headers: {'X-Qarnot-Pools': 'close'}}),
            send({mode: 'cors', headers: {'Content-Type': 'text/plain'}, body: 'x'}),
        ]).then(done);
    """
    answers = browser.driver.execute_async_script(attempts, close)
    assert answers == ["opaque 0", "refused", "refused"]
    browser.script(
        "const f = document.createElement('form'); f.method = 'post'; f.action = arguments[0];"
        "document.body.append(f); f.submit();",
        close,
    )
    browser.see("body", "Pools are closed from the Pools page of this Airflow only")
    assert make.client.pools.get(uuid).state == "FullyExecuting"
    # The same request with nothing missing works: the attempts failed for the right reason.
    headers = {**CLOSE, "Authorization": f"Bearer {airflow.token_of('anna')}"}
    assert requests.post(close, headers=headers, timeout=30).ok


@pytest.mark.parametrize(
    ("user", "reads", "closes"), [("vera", 403, 403), ("otto", 200, 200), ("anna", 200, 200)]
)
@pytest.mark.usefixtures("connected")
def test_what_each_role_may_do(
    airflow: AirflowStack, make: Maker, user: str, reads: int, closes: int
) -> None:
    uuid = make.pool(owner=life(f"of_{user}"))
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


@pytest.mark.usefixtures("connected")
def test_it_looks_right_dark_and_narrow_and_while_qarnot_is_away(
    browser: Browser, airflow: AirflowStack, qarnot_of_ui: LocalQarnot, make: Maker
) -> None:
    uuid = make.pool("frames.render.open_pool", size=2, owner=life("frames", "manual__1"))
    login(browser, airflow, "otto")
    browser.go(PAGE)
    page_shows(browser, f"tr[data-uuid='{uuid}']", "2 of 2")
    browser.script("localStorage.setItem('theme', 'dark')")
    browser.go(PAGE)
    page_shows(browser, "html.dark body")
    page_shows(browser, f"tr[data-uuid='{uuid}']", "2 of 2")
    browser.shot("dark")
    browser.script("localStorage.setItem('theme', 'light')")
    browser.resize(400, 900)
    browser.go("/qarnot-pools/")
    browser.see(f"tr[data-uuid='{uuid}']", "2 of 2")
    assert browser.script("return document.documentElement.scrollWidth <= window.innerWidth")
    browser.shot("narrow")
    browser.resize(1400, 900)
    away = [{"method": "POST", "path": ".*/search", "kind": "status", "status": 503, "times": 1000}]
    qarnot_of_ui.faults(away)
    try:
        browser.see(".banner", "What you see is")
        browser.see(f"tr[data-uuid='{uuid}']", "frames.render.open_pool")
        browser.shot("away")
    finally:
        qarnot_of_ui.faults([])
