"""The Pools page in a browser, without an Airflow around it: in a frame as Airflow makes it, and on its own."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests.plugins.conftest import Maker, identity, until
from tests.ui import CELLS, MISFITS, OBSERVE

if TYPE_CHECKING:
    from airflow_qarnot_pool.local import LocalQarnot
    from tests.ui.browser import Browser

#: What Airflow 3.1 to 3.3 allow the frame.
OUTER = """<!doctype html><html class="light"><head><title>Airflow</title></head>
<body style="margin:0;background-color:rgb(250,250,250)"><iframe src="/qarnot-pools/{query}"
sandbox="allow-scripts allow-same-origin allow-forms" style="border:0;width:100%;height:95vh"></iframe></body></html>"""
PAGE = "/qarnot-pools/"


@pytest.fixture(scope="module")
def site(airflow_db: None, qarnot_of_ui: LocalQarnot) -> Iterator[str]:
    """The page's own application, whose every user is an admin, and a page around it."""
    Maker(qarnot_of_ui).end_all()  # of Airflow's tests
    extra = {"namespace": "page", "console_url": "https://console.example"}
    connection = {"conn_type": "qarnot", "host": qarnot_of_ui.url, "password": qarnot_of_ui.token}
    os.environ["AIRFLOW_CONN_QARNOT_DEFAULT"] = json.dumps({**connection, "extra": extra})
    import uvicorn
    from airflow.api_fastapi.app import create_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from airflow.api_fastapi.core_api.security import get_user
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import HTMLResponse
    from starlette.routing import Mount, Route

    from airflow_qarnot_pool.plugins import queries
    from airflow_qarnot_pool.plugins.routes import ConnectionRegistry, _build_app

    between_bills, queries.FIGURES_MAX_AGE = queries.FIGURES_MAX_AGE, 0.5
    create_auth_manager()
    page = _build_app(ConnectionRegistry(["qarnot_default"], max_age=0.25))
    page.dependency_overrides[get_user] = lambda: SimpleAuthManagerUser(username="anna", role="ADMIN")

    def outer(request: Request) -> HTMLResponse:
        query = f"?{request.url.query}" if request.url.query else ""
        return HTMLResponse(OUTER.format(query=query.replace("&", "&amp;")))

    routes = [Mount("/qarnot-pools", page), Route("/{rest:path}", outer)]
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()
    queries.FIGURES_MAX_AGE = between_bills
    os.environ.pop("AIRFLOW_CONN_QARNOT_DEFAULT")


@pytest.fixture(scope="module")
def base(site: str) -> str:
    """In place of Airflow: what tests the page alone needs none."""
    return site


def row_of(uuid: str) -> str:
    return f"tr[data-uuid='{uuid}']"


def test_from_empty_to_closed_by_hand(browser: Browser, make: Maker) -> None:
    browser.go(PAGE)
    browser.see(".empty", "No pools, and nothing is billed")
    browser.shot("empty")
    uuid = make.pool("by hand", size=2)
    make.task(uuid, "sleep 600")
    browser.see(row_of(uuid), "2 of 2")
    browser.see(row_of(uuid), "1 running")
    browser.see(row_of(uuid), "€")
    browser.click(f"{row_of(uuid)} button", "Close")
    browser.see("dialog", "1 unfinished Qarnot task of 1 DAG run is cancelled")
    browser.shot("dialog")
    browser.click("dialog button", "Keep it")
    browser.wait(lambda: not browser.find("dialog"), "the dialog to go")
    browser.click(f"{row_of(uuid)} button", "Close")
    browser.click("dialog button", "Close the pool")
    browser.see(row_of(uuid), "Closed")
    assert not browser.find(f"{row_of(uuid)} button", "Close")


def test_a_quiet_list_is_not_touched(browser: Browser, make: Maker) -> None:
    uuid = make.pool("quiet")
    failed = make.task(uuid, "false")
    until(lambda: make.client.tasks.get(failed).state == "Failure", "the Qarnot task to fail")
    make.client.pools.close(uuid)
    until(lambda: make.client.pools.get(uuid).state == "Closed", "the pool to close")
    browser.go(PAGE)
    browser.see(row_of(uuid), "Closed")
    browser.see(f"{row_of(uuid)} .cost", "€")
    asked = "return performance.getEntriesByType('resource').filter((one) => one.name.includes('/api/pools')).length"

    def ten_requests() -> None:
        before = browser.script(asked)
        browser.wait(lambda: browser.script(asked) >= before + 10, "ten requests")

    ten_requests()  # The cost that is shown first may be from before the pool closed.
    browser.script(OBSERVE)
    ten_requests()
    assert browser.script("return window.changes") == []


def test_the_pictures_have_the_numbers_of_the_account(browser: Browser, make: Maker) -> None:
    """From Qarnot to the table behind each picture, which has the numbers that are drawn."""
    uuid = make.pool("measured", size=2)
    until(lambda: make.client.pools.get(uuid).ready_slots == 2, "the nodes")
    browser.go(PAGE)
    browser.script("localStorage.setItem('timezone', JSON.stringify('UTC'))")
    browser.go(f"{PAGE}#pool=qarnot_default/{uuid}")
    browser.see("dd", "2 ready of 2 wanted")
    made = {make.task(uuid, "sleep 1", name=f"part {n}"): f"part {n}" for n in range(4)}

    def tasks() -> list[Any]:
        return [task for task in make.client.pools.tasks(uuid) if task.uuid in made]

    until(lambda: all(task.state == "Success" for task in tasks()), "the Qarnot tasks")
    make.client.pools.close(uuid)
    browser.see(".head", "Closed")
    browser.see(".head", "closed")

    def table(name: str) -> list[list[str]]:
        browser.script("document.querySelector(arguments[0]).open = true", f"[data-table={name}]")
        rows = browser.wait(
            lambda: browser.script(CELLS, f"[data-table={name}] tbody tr"), f"the table {name}"
        )
        return [cells for cells in rows if "not observed" not in cells]

    def second(text: str) -> float:
        return datetime.fromisoformat(f"{text}+00:00").timestamp()

    assert len(table("gantt")) == len(made)
    for cells in table("gantt"):
        assert cells[1] in ("on node 1", "on node 2")
        assert cells[2] == "succeeded"
    spans = sorted((second(start), second(end)) for _, _, _, start, end in table("gantt"))
    for (start, end), task in zip(spans, sorted(tasks(), key=lambda one: one.end_date), strict=True):
        assert abs(end - task.end_date.timestamp()) <= 1
        assert abs((end - start) - task.execution_time.total_seconds()) <= 1
    euros = make.client.pools.credits(uuid)
    browser.wait(
        lambda: abs(float(table("cost")[-1][1].strip("€")) - euros) < 0.0001, "the whole bill in the picture"
    )
    slots = [[int(cell) if cell else None for cell in cells[1:]] for cells in table("slots")]
    assert max(ready for _, ready, _ in slots if ready is not None) == 2
    assert [(wanted, ready) for wanted, ready, _ in slots if ready is not None][-1] == (0, 0)
    assert max(busy for *_, busy in slots if busy is not None) == 2
    waiting = [int(cells[1]) for cells in table("queue")]
    assert (max(waiting) in (2, 3, 4), waiting[-1]) == (True, 0)


def test_a_lost_node_is_seen(browser: Browser, make: Maker, qarnot_of_ui: LocalQarnot) -> None:
    uuid = make.pool("hurt", size=2)
    browser.go(PAGE)
    browser.see(row_of(uuid), "2 of 2")
    qarnot_of_ui.kill_node(next(node["id"] for node in qarnot_of_ui.nodes() if node["pool"] == uuid))
    browser.see(row_of(uuid), "1 slot was lost")
    browser.shot("lost")


def test_names_that_look_like_script_are_text(browser: Browser, make: Maker) -> None:
    name = "<img src=x onerror=\"window.top.hacked='img'\"><script>window.top.hacked='script'</script>"
    evil = identity("<b>dag</b>", "javascript:window.top.hacked='link'")
    uuid = make.pool(name, owner=evil, labels={"airflow.task_id": "'\"><svg onload=alert(1)>"})
    make.task(uuid, "sleep 600", owner=evil, name=name)
    browser.go(PAGE)
    browser.see(row_of(uuid), name)
    browser.see(row_of(uuid), "<b>dag</b>")
    browser.click(f"{row_of(uuid)} td.name a")
    browser.see("h1", name)
    browser.shot("script-names")
    assert browser.script("return window.hacked === undefined")
    browser.click(".tabs a", "Qarnot tasks")
    browser.see("td.name", name)
    built = "return document.querySelectorAll('main img, main script, main svg:not(.canvas > svg), main b').length"
    assert browser.script(built) == 0
    links = browser.script("return [...document.querySelectorAll('main a')].map((one) => one.protocol)")
    assert set(links) <= {"http:", "https:"}


def test_one_pool_in_full_and_back_by_keyboard(browser: Browser, make: Maker) -> None:
    uuid = make.pool("frames.open", size=1, owner=identity("frames", "run+1"))
    make.task(uuid, "false", owner=identity("frames", "run+1", "merge"), name="merge")
    browser.go(PAGE)
    browser.see(row_of(uuid), "1 failed")
    browser.script('document.querySelector("td.name a").focus()')
    browser.press("\n")
    browser.see("h1", "frames.open")
    browser.see(".error pre", "exited with code 1")
    browser.see(".error a", "merge")
    browser.see("figure", "Slots")
    browser.shot("detail")
    browser.script('document.querySelector(".tabs a[href*=nodes]").focus()')
    browser.press("\n")
    browser.see("ol.timeline", "FullyExecuting")
    browser.see("tbody tr", "Local CPU")
    browser.script('document.querySelector("a.back").focus()')
    browser.press("\n")
    browser.see(row_of(uuid), "frames.open")


def test_links_in_the_frame_lead_the_page_around_it(browser: Browser, make: Maker) -> None:
    """The frame's sandbox forbids it to steer what is around it."""
    uuid = make.pool("framed", owner=identity("frames", "manual__2026-01-01T00:00:00+00:00"))
    browser.go("/plugin/qarnot-pools")
    browser.in_frame(lambda: browser.find(row_of(uuid), "framed"), "the pool in the frame")
    click = "document.querySelector(arguments[0]).click(); return true"
    link = f"{row_of(uuid)} a[href*='/dags/']"
    browser.in_frame(lambda: browser.script(click, link), "the link")
    wanted = "/dags/frames/runs/manual__2026-01-01T00%3A00%3A00%2B00%3A00"
    browser.wait(lambda: browser.path() == wanted, wanted)
    browser.driver.back()
    browser.wait(lambda: browser.path() == "/plugin/qarnot-pools", "the way back")


@pytest.mark.parametrize(
    ("dag_id", "written"),
    [("as_in_3_1", "manual__1+2:3"), ("as_later", "manual__1%2B2%3A3")],
    ids=["Airflow 3.1", "later"],
)
def test_a_runs_tab_shows_its_own_pools(browser: Browser, make: Maker, dag_id: str, written: str) -> None:
    mine = make.pool("mine", owner=identity(dag_id, "manual__1+2:3"))
    make.pool("not mine", owner=identity(dag_id, "manual__2"))
    browser.go(f"/tab?dag_id={dag_id}&run_id={written}")
    browser.in_frame(lambda: browser.find(row_of(mine), "mine"), "the run's pool")
    shown = browser.in_frame(lambda: browser.find("tr[data-uuid]"), "the rows")
    assert len(shown) == 1


def test_it_follows_airflows_theme(browser: Browser, make: Maker) -> None:
    uuid = make.pool("themed")
    browser.go("/plugin/qarnot-pools")
    browser.in_frame(lambda: browser.find(row_of(uuid), "themed"), "the pool in the frame")
    colour = "return getComputedStyle(document.body).backgroundColor"
    assert browser.in_frame(lambda: browser.script(colour), "the colour") == "rgb(250, 250, 250)"
    browser.script(
        "document.body.style.backgroundColor = 'rgb(17, 24, 39)'; document.documentElement.className = 'dark'"
    )
    wanted = "rgb(17, 24, 39)"
    browser.in_frame(lambda: browser.script(colour) == wanted, "the page to turn dark with Airflow")
    assert browser.in_frame(lambda: browser.script("return document.documentElement.className"), "") == "dark"
    browser.shot("dark")


def test_on_a_telephone(browser: Browser, make: Maker) -> None:
    uuid = make.pool(
        "frames.render.open_pool", size=2, owner=identity("frames", "manual__2026-01-01T00:00:00+00:00")
    )
    make.task(uuid, "sleep 600", owner=identity("frames", "manual__2026-01-01T00:00:00+00:00", "work"))
    browser.resize(400, 900)
    fits = "return document.documentElement.scrollWidth <= window.innerWidth"
    browser.go(PAGE)
    browser.see(row_of(uuid), "1 running")
    assert browser.script(fits)
    browser.shot("narrow")
    browser.click(f"{row_of(uuid)} td.name a")
    browser.see("figure", "Slots")
    assert browser.script(fits)


@pytest.mark.parametrize("where", [PAGE, "/tab"], ids=["page", "tab"])
def test_state_cost_and_close_are_in_sight_at_every_width(browser: Browser, make: Maker, where: str) -> None:
    """Beside Airflow's grid the frame has 700 to 900 px; nobody should have to scroll sideways for the button."""
    run, other = "scheduled__2026-01-01T00:00:00+00:00", "manual__2026-01-02T03:04:05.678901+00:00"
    shared = {"airflow.shared": "nightly-rendering"}
    uuid = make.pool("nightly_rendering.nodes.open_pool", size=3, owner=identity("wide", run), labels=shared)
    for run_id in (run, other):
        make.task(uuid, "sleep 600", owner=identity("nightly_rendering_of_all_frames", run_id, "work"))
    failed = make.task(uuid, "false", owner=identity("nightly_rendering_of_all_frames", run, "work"))
    until(lambda: make.client.tasks.get(failed).state == "Failure", "a Qarnot task to fail")
    browser.go(where + (f"?dag_id=nightly_rendering_of_all_frames&run_id={run}" if where != PAGE else ""))
    if where != PAGE:
        browser.driver.switch_to.frame(browser.see("iframe"))
    browser.see(row_of(uuid), "1 failed, 1 running" if where != PAGE else "1 failed, 2 running")
    browser.see(f"{row_of(uuid)} .cost", "for the pool" if where != PAGE else "€")
    for width in (360, 560, 700, 761, 800, 900, 1000, 1100, 1181, 1400):
        browser.resize(width, 700)
        browser.shot(f"{'tab' if where != PAGE else 'page'}-{width}")
        assert not browser.script(MISFITS), f"at {width} px"
    browser.driver.switch_to.default_content()


def test_known_data_stay_while_qarnot_is_away(
    browser: Browser, make: Maker, qarnot_of_ui: LocalQarnot
) -> None:
    uuid = make.pool("known")
    browser.go(PAGE)
    browser.see(row_of(uuid), "FullyExecuting")
    away = {"method": "POST", "path": ".*/search", "kind": "status", "status": 503, "times": 1000}
    qarnot_of_ui.faults([away])
    try:
        browser.see(".banner", "The data shown is older")
        browser.see(row_of(uuid), "known")
        browser.shot("away")
    finally:
        qarnot_of_ui.faults([])
    browser.wait(lambda: not browser.find(".banner"), "the banner to go")


@pytest.mark.parametrize("way", ["no header", "with the header", "a form"])
def test_another_site_cannot_close_a_pool(browser: Browser, make: Maker, way: str, site: str) -> None:
    """Another host name is another site. Here nobody needs to be logged in, so only the page's own checks count."""
    uuid = make.pool("precious")
    browser.driver.get(site.replace("127.0.0.1", "localhost") + "/kittens")
    close = f"{site}{PAGE}api/connections/qarnot_default/pools/{uuid}/close"
    send = """
        const [url, options, done] = arguments;
        fetch(url, {method: 'POST', credentials: 'include', ...options})
            .then((answer) => done(answer.type), () => done('refused'));
    """
    if way == "no header":
        assert browser.driver.execute_async_script(send, close, {"mode": "no-cors"}) == "opaque"
    elif way == "with the header":
        headers = {"headers": {"X-Qarnot-Pools": "close"}}
        assert browser.driver.execute_async_script(send, close, headers) == "refused"
    else:
        browser.script(
            "const f = document.createElement('form'); f.method = 'post'; f.action = arguments[0];"
            "document.body.append(f); f.submit();",
            close,
        )
        browser.see("body", "Pools are closed from the Pools page of this Airflow only")
    assert make.client.pools.get(uuid).state not in ("Closing", "Closed")
