"""The script of the Pools page in a browser, against a server that a test controls."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.ui import CELLS, MISFITS, OBSERVE
from tests.ui.replay import START, Replay, detail, failed, iso, row, task, uuid_of, wrong

if TYPE_CHECKING:
    from tests.ui.browser import Browser

PAGE = "/qarnot-pools/"
FRAMED = "/plugin/qarnot-pools"
#: The rows that are whole above 900 px.
WHOLE = """
    return [...document.querySelectorAll('tr[data-uuid]')]
        .filter((one) => one.getBoundingClientRect().bottom <= 900).length;
"""
#: The class of each path of bars, and how many bars it has.
BARS = """
    return [...document.querySelectorAll('.bars')]
        .map((one) => [one.getAttribute('class'), one.getAttribute('d').split('M').length - 1]);
"""
AXE = """
    const short = (one) => [one.id, one.nodes[0].html.slice(0, 300)];
    axe.run(document, {resultTypes: ['violations']}).then((found) => arguments[0](found.violations.map(short)));
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Replay]:
    with Replay() as running:
        yield running


@pytest.fixture(scope="module")
def base(server: Replay, chromium: Browser) -> str:
    chromium.driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    return server.url


@pytest.fixture(autouse=True)
def fresh(server: Replay, browser: Browser) -> Iterator[None]:
    server.reset()
    server.theme = "light"
    yield
    browser.go("/blank")
    browser.script("localStorage.clear()")


def tr(n: int) -> str:
    return f"tr[data-uuid='{uuid_of(n)}']"


def pool_of(n: int, **parts: str) -> str:
    more = "".join(f"&{name}={value}" for name, value in parts.items())
    return f"#pool=qarnot_default/{uuid_of(n)}{more}"


def open_pool(browser: Browser, n: int, **parts: str) -> None:
    """Open a pool from the list, whose answer says how often to ask."""
    browser.go(PAGE)
    browser.see(".live", "as of")
    browser.script("location.hash = arguments[0]", pool_of(n, **parts))
    browser.see("h1", str(n))


def asked(browser: Browser, server: Replay, more: int) -> None:
    """Wait until the page has asked *more* times, and has drawn the answer."""
    before = server.requests
    browser.wait(lambda: server.requests > before + more, f"{more} requests")


def uuids(browser: Browser) -> list[str]:
    return browser.script(
        "return [...document.querySelectorAll('tr[data-uuid]')].map((one) => one.dataset.uuid)"
    )


def crowd() -> list[dict[str, Any]]:
    """60 pools, as the server would send them in any order, of which one failed."""
    rows = [row(n) for n in range(1, 57)]
    rows.append(
        wrong(57, 8, "tasks", "3 Qarnot tasks failed", errors=[{"text": "E1: exited with 1", "count": 3}])
    )
    rows.append(
        wrong(58, 2, "idle", "No work, and 8 slots billed", word="idle", busy=0, idle_since=iso(START - 2400))
    )
    rows.append(
        row(59, phase="closed", word="closed", state="Closed", ended=iso(START - 600), closable=False)
    )
    return [*rows, failed(60)]


# ---- still


@pytest.mark.parametrize("where", ["list", "pool"])
def test_nothing_changes_in_a_minute_in_which_nothing_happens(
    browser: Browser, server: Replay, where: str
) -> None:
    server.show(crowd())
    server.details[uuid_of(1)] = detail(row(1))
    browser.go(PAGE)
    browser.see(tr(60))
    if where == "pool":
        open_pool(browser, 1)
        browser.see("figure")
    browser.script(OBSERVE)
    server.step = 5.0
    asked(browser, server, 13)
    assert server.now >= START + 60
    assert browser.script("return window.changes") == []


def test_a_change_touches_only_its_own_row(browser: Browser, server: Replay) -> None:
    server.show(crowd())
    browser.go(PAGE)
    browser.see(tr(3))
    browser.script(OBSERVE)
    browser.script("window.was = [...document.querySelectorAll('tr[data-uuid]')]")
    server.rows[2]["busy"] = 7
    browser.see(tr(3), "busy 7 of 8")
    changes = browser.script("return window.changes")
    assert changes
    assert [one for one in changes if "busy" not in one] == []
    assert browser.script("return window.was.every((one) => one.isConnected)")


def test_the_last_day_tells_of_an_outage(browser: Browser, server: Replay) -> None:
    server.error = "Qarnot does not answer (503)."
    browser.go(f"{PAGE}#tab=day")
    browser.see(".banner", "Qarnot does not answer (503).")
    browser.see(".live", "Stale, as of")


def test_a_pool_is_shown_though_the_page_is_paused(browser: Browser, server: Replay) -> None:
    server.show([row(1)])
    browser.go(PAGE)
    browser.click(".live button", "Pause")
    server.is_fetching = True
    browser.click(f"{tr(1)} td.name a")
    asked(browser, server, 2)
    server.details[uuid_of(1)] = detail(row(1))
    server.is_fetching = False
    browser.see("figure", "Queue")


@pytest.mark.parametrize("where", ["list", "pool"])
def test_a_restart_of_the_server_takes_nothing_away(browser: Browser, server: Replay, where: str) -> None:
    server.show(crowd())
    server.details[uuid_of(1)] = detail(row(1))
    browser.go(PAGE + (pool_of(1) if where == "pool" else ""))
    browser.see("figure" if where == "pool" else tr(60))
    browser.script(OBSERVE)
    server.is_new = True
    asked(browser, server, 3)
    server.is_new = False
    asked(browser, server, 3)
    assert browser.script("return window.changes") == []
    server.is_new, server.error = True, "Qarnot does not answer (503)."
    browser.see(".banner", "Qarnot does not answer (503). The data shown is older.")
    assert browser.find("figure" if where == "pool" else tr(60))


def test_a_tick_keeps_every_row(browser: Browser, server: Replay) -> None:
    server.show(crowd())
    browser.go(PAGE)
    browser.see(tr(3))
    browser.script("window.was = [...document.querySelectorAll('.tile, .tools, tr[data-uuid], .foot')]")
    kept = "return window.was.every((one) => one.isConnected)"
    browser.click(f"{tr(3)} [data-pick]")
    browser.see(".bulk", "1 pool selected")
    assert browser.script(kept)
    browser.click(".bulk button", "Clear")
    browser.wait(lambda: not browser.find(".bulk"), "the selection to be gone")
    assert browser.script(kept)


def test_the_first_error_keeps_the_pictures(browser: Browser, server: Replay) -> None:
    server.show([row(1)])
    server.details[uuid_of(1)] = detail(row(1), errors=[])
    open_pool(browser, 1)
    browser.see("figure", "Queue")
    browser.script("window.was = [...document.querySelectorAll('.facts, .zoom, figure, .head button')]")
    server.details[uuid_of(1)] = detail(row(1, resizable=False))
    browser.see(".error", "Traceback")
    lost = "return window.was.filter((one) => !one.isConnected).map((one) => one.textContent)"
    assert browser.script(lost) == ["Resize…"]


def test_next_stays_next_under_the_focus(browser: Browser, server: Replay) -> None:
    server.show([row(n) for n in range(1, 121)])
    browser.go(PAGE)
    browser.click(".pager a", "Next")
    browser.see(".foot", "page 2 of 3")
    assert browser.script("return document.activeElement.textContent") == "Next →"


def test_selected_text_and_the_focus_survive_a_new_order(browser: Browser, server: Replay) -> None:
    server.show(crowd())
    browser.go(PAGE)
    browser.see(tr(58))
    browser.script(
        "const text = document.querySelector(arguments[0]).firstChild;"
        "document.getSelection().setBaseAndExtent(text, 0, text, text.length)",
        f"{tr(58)} .problem .text",
    )
    browser.script("document.querySelector(arguments[0]).focus()", f"{tr(2)} td.name a")
    # Both rows become the most urgent ones, so the others have to move around them.
    server.rows[57]["rank"] = 0
    server.rows[1] |= {"rank": 1, "severity": "nodes"}
    wanted = [uuid_of(n) for n in (58, 60, 2, 57)]
    browser.wait(lambda: uuids(browser)[:4] == wanted, "the new order")
    asked(browser, server, 2)
    assert browser.script("return String(document.getSelection())") == "No work, and 8 slots billed"
    assert browser.script("return document.activeElement.closest('tr').dataset.uuid") == uuid_of(2)


def test_an_open_menu_stays_open(browser: Browser, server: Replay) -> None:
    server.show(crowd())
    browser.go(PAGE)
    browser.click(".tools summary", "Export")
    server.rows.append(row(70))
    browser.see(".menu button", "CSV of 61 pools")


def test_no_click_is_lost(browser: Browser, server: Replay) -> None:
    """Each press is held while the pools change, and most of them move."""
    server.show(crowd())
    server.every = 0.02
    browser.go(PAGE)
    browser.see(tr(1))

    def shuffle(n: int) -> None:
        for place, each in enumerate(server.rows[:56]):
            each["rank"] = (place * 7 + n) % 90
            each["severity"], each["warnings"] = (
                "errors",
                [{"kind": "errors", "text": f"round {n}", "since": None}],
            )

    server.change = shuffle
    pressed = """
        const [selector, done] = arguments;
        let clicks = 0;
        document.addEventListener('click', () => { clicks += 1; });
        const send = (type, at, clientX, clientY) => at.dispatchEvent(
            new PointerEvent(type, {bubbles: true, clientX, clientY, buttons: type === 'pointerdown' ? 1 : 0}));
        const real = window.fetch;
        let answers = 0;
        window.fetch = (...request) => real(...request).finally(() => { answers += 1; });
        const wait = async () => {
            const before = answers;
            while (answers === before) await new Promise((then) => setTimeout(then, 5));
        };
        (async () => {
            for (let n = 0; n < 100; n += 1) {
                const target = document.querySelectorAll(selector)[n % 15];
                const {left, top} = target.getBoundingClientRect();
                send('pointerdown', target, left + 2, top + 2);
                await wait();
                const under = document.elementFromPoint(left + 2, top + 2);
                send('pointerup', target, left + 2, top + 2);
                if (under === target && target.isConnected) target.click();
                await new Promise((then) => setTimeout(then));
            }
            done(clicks);
        })();
    """
    assert browser.driver.execute_async_script(pressed, "[data-pick]") == 100


def test_a_press_by_the_driver_is_a_click(browser: Browser, server: Replay) -> None:
    """The same with real input: the button moves away unless it is held."""
    server.show(crowd())
    browser.go(PAGE)
    from selenium.webdriver.common.action_chains import ActionChains

    button = browser.see(f"{tr(5)} td.act button")
    ActionChains(browser.driver).click_and_hold(button).perform()
    server.rows[20] = failed(21)
    asked(browser, server, 3)
    ActionChains(browser.driver).release().perform()
    browser.see("dialog", "open_pool_5")


def test_a_screen_reader_hears_of_a_problem_once(browser: Browser, server: Replay) -> None:
    server.show([row(1), row(2)])
    browser.go(PAGE)
    browser.see(tr(1))
    asked(browser, server, 2)
    assert browser.script("return document.getElementById('announcer').textContent") == ""
    browser.script(
        "window.said = []; const at = document.getElementById('announcer');"
        "new MutationObserver((all) => window.said.push(...all)).observe(at, {childList: true})"
    )
    server.rows[1] = failed(2)
    browser.see(tr(2), "failed")
    asked(browser, server, 4)
    assert "No node is left" in browser.script("return document.getElementById('announcer').textContent")
    assert browser.script("return window.said.length") == 1


def test_an_outage_is_told_once_and_the_state_is_beside_the_title(browser: Browser, server: Replay) -> None:
    server.show([row(1)])
    browser.go(PAGE)
    browser.see(".live", "as of 1 s ago")
    server.error = "Qarnot does not answer (503)."
    browser.see(".banner", "Qarnot does not answer (503).")
    browser.see(".live", "Stale, as of")
    browser.script(OBSERVE)
    asked(browser, server, 3)
    assert browser.script("return window.changes") == []
    browser.see(tr(1))
    server.error = None
    browser.wait(lambda: not browser.find(".banner"), "the banner to go")
    browser.click(".live button", "Pause")
    browser.see(".live", "Paused")
    before = server.requests
    browser.click(".live button", "Refresh")
    browser.wait(lambda: server.requests == before + 1, "one request")
    browser.click(".live button", "Resume")
    asked(browser, server, 2)


@pytest.mark.parametrize("where", ["list", "pool"])
def test_data_that_are_old_are_stale_though_nothing_has_failed(
    browser: Browser, server: Replay, where: str
) -> None:
    server.show([row(1)])
    server.details[uuid_of(1)] = detail(row(1))
    browser.go(PAGE + (pool_of(1) if where == "pool" else ""))
    browser.see(".live .good", "as of")
    server.age = 181.0
    browser.see(".live .bad", "Stale, as of 3 min")
    server.every = 61.0  # a page that is asked for so seldom is as fresh as it can be
    browser.click(".live button", "Refresh")
    browser.see(".live .good", "as of 3 min")


def test_a_server_that_does_not_answer_is_not_waited_for(browser: Browser, server: Replay) -> None:
    server.show([row(1)])
    browser.go(PAGE)
    browser.see(tr(1))
    browser.script(
        "window.limits = []; window.timeout = AbortSignal.timeout.bind(AbortSignal);"
        "AbortSignal.timeout = (limit) => { window.limits.push(limit); return window.timeout(100); }"
    )
    server.may_read.clear()
    try:
        browser.see(".banner", "Airflow does not respond.")
        browser.see(".live", "Stale, as of")
        browser.see(tr(1))
        assert set(browser.script("AbortSignal.timeout = window.timeout; return window.limits")) == {30_000}
    finally:
        server.may_read.set()
    browser.wait(lambda: not browser.find(".banner"), "the banner to go")


def test_title_and_focus_follow(browser: Browser, server: Replay) -> None:
    server.show([row(1)])
    server.details[uuid_of(1)] = detail(row(1))
    browser.go(PAGE)
    browser.click(f"{tr(1)} td.name a")
    browser.see("h1", "frames.render.open_pool_1")
    assert browser.driver.title == "frames.render.open_pool_1 · Qarnot pools"
    assert browser.script("return document.activeElement.tagName") == "H1"
    browser.driver.back()
    browser.see(tr(1))
    assert browser.driver.title == "Qarnot pools"
    assert browser.script("return document.activeElement.textContent") == "Qarnot pools"


# ---- urgent first


def test_the_failed_one_of_60_is_first(browser: Browser, server: Replay) -> None:
    server.show(crowd())
    browser.go(PAGE)
    browser.see(tr(60))
    assert uuids(browser)[:3] == [uuid_of(60), uuid_of(58), uuid_of(57)]
    browser.see(".tile.bad", "Need attention")
    browser.click("a.tile", "Need attention")
    browser.wait(lambda: len(uuids(browser)) == 3, "the three")
    browser.see(f"{tr(58)} .phase", "idle 40 min")
    browser.shot("attention")


def test_many_rows_are_on_a_screen(browser: Browser, server: Replay) -> None:
    server.show(crowd())
    browser.go(PAGE)
    browser.see(tr(60))
    browser.shot("dense")
    assert browser.script(WHOLE) >= 16


def test_on_a_telephone_the_first_error_is_before_the_carbon(browser: Browser, server: Replay) -> None:
    server.show(crowd())
    server.details[uuid_of(60)] = detail(failed(60))
    browser.resize(400, 850)
    browser.go(PAGE)
    browser.see(tr(60))
    browser.shot("phone-list")
    top = """
        const seen = [...document.querySelectorAll(arguments[0])].filter((one) => one.checkVisibility());
        return Math.min(...seen.map((one) => one.getBoundingClientRect().top));
    """
    assert browser.script(top, ".problem") < browser.script(top, ".carbon")
    browser.go(PAGE + pool_of(60))
    browser.see(".error", "Command exited with 1")
    browser.shot("phone-pool")
    assert browser.script(top, ".error pre") < 850


def test_errors_are_grouped_with_their_time_and_links(browser: Browser, server: Replay) -> None:
    server.show([row(1)])
    server.details[uuid_of(1)] = detail(row(1))
    browser.go(PAGE + pool_of(1))
    browser.see(".error", "3 Qarnot tasks")
    shown = browser.see(".error", "Traceback").text
    assert shown.count("Traceback") < 10, "a long text is clamped"
    browser.click(".error summary")
    browser.wait(lambda: browser.see(".error").text.count("Traceback") == 30, "all of it")
    links = browser.script(
        "return [...document.querySelectorAll('.error a')].map((one) => one.getAttribute('href'))"
    )
    assert links[0].endswith("/dags/frames/runs/r/tasks/render.frame/mapped/0")
    assert links[1].endswith("?try_number=1")
    browser.click(".tabs a", "Qarnot tasks")
    browser.see("tr[data-task]", "frame-0")
    groups = browser.script(
        "return [...document.querySelectorAll('tr[data-task] .state')].map((one) => one.textContent)"
    )
    assert groups[:3] == ["failed", "running", "queued"]


def test_odd_characters_break_and_hide_nothing(browser: Browser, server: Replay) -> None:
    name = "a\0b\u202egnp.exe\u2066 <img src=x onerror=alert(1)>"
    long = "x" * 2000
    server.show([row(1, name=name), wrong(2, 0, "errors", long), row(3, name=long, tags=[long])])
    server.details[uuid_of(3)] = detail(row(3, name=long, tags=[long]))
    browser.go(PAGE)
    browser.see(tr(1), "a␀b�gnp.exe� <img src=x onerror=alert(1)>")
    for width in (360, 800, 1400):
        browser.resize(width, 800)
        assert browser.script(MISFITS) == [], f"at {width} px"
    browser.go(PAGE + pool_of(3))
    browser.see("h1")
    for width in (360, 800, 1400):
        browser.resize(width, 800)
        assert browser.script(MISFITS) == [], f"at {width} px"
    assert browser.script("return document.querySelectorAll('img').length") == 0


# ---- addresses


def test_an_address_survives_reload_and_can_be_sent(browser: Browser, server: Replay) -> None:
    server.show(crowd())
    browser.go(FRAMED)
    browser.in_frame(lambda: browser.find(tr(60)), "the list")
    with browser.frame():
        browser.write("input[type=search]", "team-1")
        browser.click("th a", "Cost")
        browser.wait(lambda: len(uuids(browser)) < 25, "fewer rows")
        shown = uuids(browser)
    address = browser.driver.current_url
    assert "q=team-1&sort=-cost" in address
    browser.driver.refresh()
    browser.in_frame(lambda: uuids(browser) == shown, "the same after a reload")
    assert browser.driver.current_url == address
    browser.go("/blank")
    browser.driver.get(address)
    browser.in_frame(lambda: uuids(browser) == shown, "the same for whom it was sent to")
    browser.go(f"{PAGE}#{address.split('#')[1]}")
    browser.wait(lambda: uuids(browser) == shown, "the same without a frame")


def test_a_pool_in_the_frame_has_an_address(browser: Browser, server: Replay) -> None:
    server.show(crowd())
    server.details[uuid_of(4)] = detail(row(4))
    browser.go(FRAMED)
    browser.in_frame(lambda: browser.find(tr(4)), "the list")
    with browser.frame():
        browser.click(f"{tr(4)} td.name a")
        browser.see("h1", "open_pool_4")
        browser.click(".tabs a", "Nodes and events")
        browser.see("li", "Node 3 was lost")
    assert browser.driver.current_url.endswith(f"{pool_of(4)}&tab=nodes")
    browser.driver.refresh()
    browser.in_frame(lambda: browser.find("li", "Node 3 was lost"), "the same tab")
    # Somebody writes another address into the bar of the browser.
    browser.script("location.hash = arguments[0]", "#show=wrong")
    browser.in_frame(lambda: len(uuids(browser)) == 3, "what the new address says")


def test_a_search_that_finds_nothing_can_be_widened(browser: Browser, server: Replay) -> None:
    old = {"phase": "closed", "word": "closed", "state": "Closed", "closable": False}
    server.show([row(1), row(2, name="old", ended=iso(START - 90_000), **old)])
    browser.go(f"{PAGE}#q=old")
    browser.click(".empty a", "Search all pools")
    browser.see(tr(2))
    browser.go(f"{PAGE}#q=nothing&show=all")
    browser.click(".empty a", "Remove all filters")
    browser.see(tr(1))


def test_back_leads_to_the_filtered_list(browser: Browser, server: Replay) -> None:
    server.show(crowd())
    server.details[uuid_of(58)] = detail(row(58))
    browser.go(PAGE + "#show=wrong")
    browser.click(f"{tr(58)} td.name a")
    browser.see("h1", "open_pool_58")
    browser.click("a.back")
    browser.wait(lambda: len(uuids(browser)) == 3, "the filtered list")


EXECUTOR = {
    "kind": "executor",
    "dag_id": "",
    "run_id": "",
    "task_id": None,
    "shared": "gpu-01234567",
    "executor": "gpu",
    "namespace": "production",
    "run_state": None,
    "link": None,
    "over": False,
}


def test_a_pool_of_the_executor(browser: Browser, server: Replay) -> None:
    """Who owns it, what became of its Airflow tasks, and what a close does."""
    pool = row(1, name="Airflow executor, gpu", owner=EXECUTOR, follows_load=True, max_slots=32)
    server.show([pool, row(2)])
    tasks = [task(0, airflow_state="up_for_retry"), task(1, airflow_state="success", run_id="another")]
    server.details = {uuid_of(1): detail(pool, tasks=tasks, task_count=2)}
    user = {
        "dag_id": "train",
        "run_id": "r",
        "run_state": "running",
        "link": "dags/train/runs/r",
        "holds": False,
    }
    server.preview = {"users": [{**user, "unfinished": 7, "tasks": ["fit", "score [2]"]}]}
    browser.go(f"{PAGE}#q=qarnotexecutor")
    browser.see(tr(1), "QarnotExecutor: gpu")
    assert not browser.find(tr(2))
    browser.go(f"{PAGE}#group=owner")
    browser.see("tr.group", "QarnotExecutor: gpu")
    browser.click(f"{tr(1)} .act button")
    browser.see("dialog", "7 unfinished: fit, score [2], …")
    browser.see("dialog", "Without a reaper it stays open, without nodes.")
    browser.click("dialog button", "Keep it")
    browser.click(f"{tr(1)} .name a")
    browser.see(".facts", "all schedulers of namespace production")
    browser.see(".facts", "32 at most")
    browser.click(".tabs a", "Qarnot tasks")
    browser.see("td .bad", "in Airflow: up for retry")
    browser.see("td .under", "another")
    assert len(browser.find("td", "in Airflow")) == 1


@pytest.mark.parametrize(
    ("parts", "count"),
    [
        ("dag=frames_1", 12),
        ("state=idle", 1),
        ("tag=team-2", 20),
        ("owner=scheduled__2026-09-02T00:00:00%2B00:00", 3),
        ("q=No%20node%20is%20left", 1),
        ("q=render.frame%20team-0", 20),
        ("q=exited%20with", 1),
        ("show=idle", 1),
        ("show=ended", 2),
        ("group=dag", 50),
    ],
)
def test_filters_search_and_groups(browser: Browser, server: Replay, parts: str, count: int) -> None:
    server.show(crowd())
    browser.go(PAGE + "#" + parts)
    browser.wait(lambda: len(uuids(browser)) == count, f"{count} rows")
    if "group" in parts:
        browser.see("tr.group", "frames_0")


def test_the_search_finds_what_the_rows_leave_out(browser: Browser, server: Replay) -> None:
    """A pool has any number of Airflow tasks, users and errors. Its row has the first ones."""
    server.show([row(1), row(2, has_more=True), row(3, has_more=True)])
    server.left_out = {uuid_of(2): "render.frame_31\nnightly", uuid_of(3): "render.frame_32"}
    browser.go(PAGE)
    browser.see(tr(1))
    browser.write("input[type=search]", "frame_31 pool_2")
    browser.wait(lambda: uuids(browser) == [uuid_of(2)], "a word of the row, and one that it leaves out")
    browser.go("/blank")
    browser.go(f"{PAGE}#q=FRAME_3")
    browser.wait(lambda: uuids(browser) == [uuid_of(2), uuid_of(3)], "both, also from an address")
    server.left_out[uuid_of(2)] = "something else"
    browser.wait(lambda: uuids(browser) == [uuid_of(3)], "the next answer")
    for nowhere in ("nowhere", "constructor", "__proto__"):
        browser.write("input[type=search]", nowhere)
        browser.see(".empty", "No pool matches")


def test_a_filter_is_chosen_and_removed(browser: Browser, server: Replay) -> None:
    from selenium.webdriver.support.select import Select

    server.show(crowd())
    browser.go(PAGE)
    browser.click(".tools summary", "Filter")
    Select(browser.see(".menu [data-set=dag]")).select_by_value("frames_2")
    browser.wait(lambda: len(uuids(browser)) == 12, "the pools of the DAG")
    assert browser.driver.current_url.endswith("#dag=frames_2")
    browser.click(".chip")
    browser.wait(lambda: len(uuids(browser)) == 50, "the first page of all")


def test_unknown_costs_are_last_and_said(browser: Browser, server: Replay) -> None:
    nothing = {**row()["figures"], "euros": None}
    server.show([row(1, figures=None), row(2), row(3, figures=nothing), row(4)])
    for sort, first in (("cost", [2, 4]), ("-cost", [4, 2])):
        browser.go(PAGE + f"#sort={sort}")
        browser.wait(
            lambda first=first: uuids(browser)[:2] == [uuid_of(n) for n in first], f"sorted by {sort}"
        )
    browser.see(".tile", "≥ €1.06")
    browser.see(".tile", "2 unknown, since 12:13")


def test_exports(browser: Browser, server: Replay) -> None:
    server.show(
        [row(1, name="=HYPERLINK(1)", tags=["a; =b", "c;-d"]), row(2, name='a "b", c'), row(3, figures=None)]
    )
    browser.go(PAGE)
    browser.see(tr(1))
    browser.script(
        "window.saved = []; const real = URL.createObjectURL;"
        "URL.createObjectURL = (blob) => {"
        "blob.text().then((text) => window.saved.push(text)); return real.call(URL, blob); }"
    )
    browser.click(".tools summary", "Export")
    browser.click(".menu button", "CSV of 3 pools")
    [text] = browser.wait(lambda: browser.script("return window.saved"), "the file")
    found = {each["uuid"]: each for each in csv.DictReader(io.StringIO(text.removeprefix("\ufeff")))}
    assert found[uuid_of(1)]["name"] == "'=HYPERLINK(1)"
    assert found[uuid_of(1)]["tags"] == "a; '=b; c;'-d", "no formula where a semicolon separates cells"
    assert found[uuid_of(2)]["name"] == 'a "b", c'
    assert (found[uuid_of(2)]["euros"], found[uuid_of(3)]["euros"]) == ("0.52", "")
    browser.script(
        "window.copied = []; navigator.clipboard.writeText = async (text) => { window.copied.push(text); }"
    )
    browser.click(".tools summary", "Export")
    browser.click(".menu button", "Copy their uuids")
    [text] = browser.wait(lambda: browser.script("return window.copied"), "the uuids")
    assert sorted(text.split("\n")) == [uuid_of(n) for n in (1, 2, 3)]


# ---- pictures


def table_shows(browser: Browser, name: str, points: list[list[Any]], gaps: int = 0) -> None:
    """Check the table behind a picture. It may have one row more: the last values hold up to now."""
    browser.click(f"[data-table={name}] summary")
    shown = browser.wait(lambda: browser.script(CELLS, f"[data-table={name}] tbody tr"), "the table")
    unseen = [cells for cells in shown if "not observed" in cells]
    assert len(unseen) == gaps
    shown = [cells for cells in shown if cells not in unseen]
    assert [cells[1:] for cells in shown[: len(points)]] == [point[1:] for point in points]
    assert len(shown) <= len(points) + 1


def test_the_numbers_of_the_pictures(browser: Browser, server: Replay) -> None:
    full = detail(row(1))
    server.show([row(1)])
    server.details[uuid_of(1)] = full
    browser.go(PAGE + pool_of(1))
    browser.see("figure", "Queue")
    pictures = full["pictures"]
    slots = [[t, str(wanted), str(ready), ""] for t, wanted, ready in pictures["slots"]["points"]]
    work = [[t, "", "", str(busy)] for t, busy, _ in pictures["work"]["points"]]
    table_shows(browser, "slots", sorted(slots + work), gaps=1)
    table_shows(browser, "queue", [[t, str(queued)] for t, _, queued in pictures["work"]["points"]])
    table_shows(browser, "cost", [[t, f"€{euros:.2f}"] for t, euros in pictures["cost"]["points"]])
    browser.shot("pool")
    marks = (
        "return [...document.querySelectorAll('[data-picture=gantt] .tick')].map((one) => one.textContent)"
    )
    assert [text for text in browser.script(marks) if "node" in text] == [f"node {n}" for n in (1, 2, 3, 4)]
    browser.click("[data-table=gantt] summary")
    drawn = browser.wait(lambda: browser.script(CELLS, "[data-table=gantt] tbody tr"), "the table")
    placed = [f"on node {bar[0] // 2 + 1}, slot {bar[0] % 2 + 1}" for bar in pictures["gantt"]["bars"]]
    assert sorted(cells[1] for cells in drawn) == sorted(placed)
    bars = browser.script(BARS)
    assert sum(count for _, count in bars) == 40
    assert {kind for kind, _ in bars} == {"bars good", "bars bad", "bars busy"}


def test_the_sizes_of_an_ended_pool(browser: Browser, server: Replay) -> None:
    points = [[1, 2520, 0.31], [2, 1320, 0.33], [6, 660, 0.48], [16, 540, 1.1]]
    server.show([row(1)])
    server.details[uuid_of(1)] = detail(row(1), sizes={"points": points, "chosen": 6, "recorded": 16})
    browser.go(PAGE + pool_of(1))
    svg = browser.see("[data-picture=sizes] svg")
    assert svg.get_attribute("aria-label") == (
        "6 slots, cheapest within the tolerance: 11 min 0 s, €0.48; 16 slots, this pool: 9 min 0 s, €1.10"
    )
    assert len(browser.script("return [...document.querySelectorAll('[data-picture=sizes] circle')]")) == 4
    browser.click("[data-table=sizes] summary")
    shown = browser.wait(lambda: browser.script(CELLS, "[data-table=sizes] tbody tr"), "the table")
    assert shown == [
        ["1", "42 min 0 s", "€0.31", ""],
        ["2", "22 min 0 s", "€0.33", ""],
        ["6", "11 min 0 s", "€0.48", "cheapest within the tolerance"],
        ["16", "9 min 0 s", "€1.10", "this pool"],
    ]
    browser.shot("sizes")


def test_hover_zoom_and_colours(browser: Browser, server: Replay) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    server.show([row(1)])
    server.details[uuid_of(1)] = detail(row(1))
    browser.go(PAGE + pool_of(1))
    svg = browser.see("[data-picture=gantt] svg")
    browser.script("arguments[0].scrollIntoView({block: 'center'})", svg)
    ActionChains(browser.driver).move_to_element(svg).perform()
    browser.see("[data-picture=gantt] .tip", "2026-09-21")
    ActionChains(browser.driver).move_to_element(svg).click_and_hold().move_by_offset(
        200, 0
    ).release().perform()
    browser.wait(lambda: "zoom=" in browser.driver.current_url, "the zoom in the address")
    browser.see(".zoom", "2026-09-21")
    browser.click(".zoom a", "All")
    browser.wait(lambda: "zoom=" not in browser.driver.current_url, "all of the time")
    browser.click("[data-picture=gantt] a", "Colour by Airflow task")
    browser.see("[data-picture=gantt] .legend", "render.frame")


def test_output_of_a_qarnot_task(browser: Browser, server: Replay) -> None:
    server.show([row(1)])
    server.details[uuid_of(1)] = detail(row(1))
    browser.go(PAGE + pool_of(1, tab="tasks"))
    browser.click(f"tr[data-task='{task(0)['uuid']}'] a", "Show")
    browser.see(".output pre", "frame 1 of 10")
    browser.see(".output pre", "warning: slow disk")
    browser.see(".output h3", "its end; the start is left out")
    server.output["stdout"] |= {"cut": True, "read": 16_777_217}
    browser.click(".live button", "Refresh")
    browser.see(".output h3", "the end of its first 16,777,217 characters")
    assert f"task={task(0)['uuid']}" in browser.driver.current_url
    browser.shot("output")


def test_the_last_day(browser: Browser, server: Replay) -> None:
    server.show([row(1)])
    browser.go(PAGE)
    browser.click(".tabs a", "Last 24 hours")
    browser.see("figure", "Cost of the last day")
    browser.see("figure", "€2.86 while it was observed")
    browser.see(".live", "as of")
    browser.shot("day")


# ---- acting


def test_close_says_what_it_does(browser: Browser, server: Replay) -> None:
    server.show([row(1), row(2)])
    browser.go(PAGE)
    browser.click(f"{tr(1)} td.act button")
    for text in (
        "8 unfinished Qarnot tasks of 1 DAG run are cancelled",
        "€2.88 an hour",
        "8 unfinished, has it open",
        "frames_1 · scheduled",
    ):
        browser.see("dialog", text)
    browser.shot("close")
    asked(browser, server, 3)
    server.refusals["close"] = (502, "Qarnot does not answer")
    browser.click("dialog button", "Close the pool")
    browser.see("dialog .bad", "Qarnot does not answer")
    server.refusals.clear()
    browser.click("dialog button", "Close the pool")
    browser.wait(lambda: not browser.find("dialog"), "the dialog to go")
    path = f"/api/connections/qarnot_default/pools/{uuid_of(1)}/close"
    assert [each[0] for each in server.posts] == [path, path]
    focus = "return document.activeElement.dataset.uuid"
    assert browser.script(focus) == uuid_of(1)


def test_a_close_that_fails_after_its_dialog_is_told(browser: Browser, server: Replay) -> None:
    server.show([row(1)])
    server.refusals["close"] = (502, "Qarnot does not answer")
    server.may_answer.clear()
    browser.go(PAGE)
    browser.click(f"{tr(1)} td.act button")
    browser.click("dialog button", "Close the pool")
    browser.click("dialog button", "Hide")
    server.may_answer.set()
    browser.see(".toast", "open_pool_1 is not closed: Qarnot does not answer")


def test_close_when_idle(browser: Browser, server: Replay) -> None:
    server.show([row(1), row(2, idle_closable=False)])
    browser.go(PAGE)
    browser.click(f"{tr(2)} td.act button")
    browser.see("dialog button", "Close the pool")
    assert not browser.find("dialog button", "when idle")
    browser.click("dialog button", "Keep it")
    browser.click(f"{tr(1)} td.act button")
    browser.see("dialog", "the reaper closes the pool once it has had no work for 5 minutes")
    browser.shot("close-when-idle")
    browser.click("dialog button", "Close when idle")
    browser.wait(lambda: not browser.find("dialog"), "the dialog to go")
    path = f"/api/connections/qarnot_default/pools/{uuid_of(1)}/close-when-idle"
    assert server.posts == [(path, {"wanted": True})]
    wish = {"closes_when_idle": True, "idle_close_by": {"user": "anna", "at": iso(START - 5)}}
    server.rows[0] |= wish
    server.details[uuid_of(1)] = detail(row(1, **wish))
    browser.see(f"{tr(1)} .phase", "closes when idle")
    browser.click(f"{tr(1)} td.name a")
    browser.see("p", "To be closed by the reaper when idle, as anna asked")
    browser.click(".head button", "Close…")
    browser.click("dialog button", "Do not close when idle")
    browser.wait(lambda: len(server.posts) == 2, "the request")
    assert server.posts[1] == (path, {"wanted": False})


def test_who_closed_it_is_shown(browser: Browser, server: Replay) -> None:
    closing = {"phase": "closing", "word": "closing", "state": "Closing", "closable": False}
    by = {"user": "anna", "at": iso(START - 5)}
    server.show([row(1, **closing, closed_by=by)])
    server.details[uuid_of(1)] = detail(row(1, **closing, closed_by=by))
    browser.go(PAGE)
    browser.see(f"{tr(1)} .phase", "by anna")
    browser.click(f"{tr(1)} td.name a")
    browser.see("p", "Closed from this page by anna")


def test_bulk_close_of_all_that_are_idle(browser: Browser, server: Replay) -> None:
    idle = {"word": "idle", "busy": 0, "queued": 0, "idle_since": iso(START - 2400)}
    unknown = row(5)["figures"] | {"per_hour": None}
    server.show(
        [
            row(1),
            row(2, **idle),
            row(3, **idle, figures=unknown),
            row(4, **{**idle, "idle_since": iso(START - 60)}),
        ]
    )
    browser.go(PAGE)
    browser.see(tr(4))
    browser.click(".tools summary", "Select")
    browser.shot("select")
    browser.click(".menu button", "All idle for 30 min (2)")
    browser.click(".bulk button", "Close…")
    browser.see("dialog", "Close 2 pools?")
    browser.see("dialog", "16 slots up, ≥ €2.88 an hour")
    browser.click("dialog button.danger", "Close them")
    browser.see("dialog .results", "closing")
    browser.click("dialog button", "Done")
    assert {each[0].split("/")[-2] for each in server.posts} == {uuid_of(2), uuid_of(3)}
    browser.wait(lambda: not browser.find(".bulk"), "the selection to be gone")


def test_bulk_close_when_idle_tells_which_pools_cannot(browser: Browser, server: Replay) -> None:
    server.show([row(1), row(2)])
    browser.go(PAGE)
    for n in (1, 2):
        browser.click(f"{tr(n)} [data-pick]")
    browser.click(".bulk button", "Close…")
    server.refusals["close-when-idle"] = (409, "The pool is elastic")
    browser.click("dialog button", "Close them when idle")
    browser.see("dialog .results", "not closed: The pool is elastic")
    browser.see("dialog", "2 of 2 done")
    browser.click("dialog button", "Done")
    browser.see(".bulk", "2 pools selected")
    server.refusals.clear()
    browser.click(".bulk button", "Close…")
    browser.click("dialog button", "Close them when idle")
    browser.see("dialog .results", "closes when idle")
    assert [path.rpartition("/")[2] for path, _ in server.posts] == ["close-when-idle"] * 4
    browser.click("dialog button", "Done")
    browser.wait(lambda: not browser.find(".bulk"), "the selection to be gone")


def test_resize_keeps_the_maximum_of_a_pool_that_follows_its_load(browser: Browser, server: Replay) -> None:
    pool = row(1, wanted=2, ready=2, max_slots=50, follows_load=True)
    server.show([pool])
    server.details[uuid_of(1)] = detail(pool)
    browser.go(PAGE + pool_of(1))
    browser.click(".head button", "Resize…")
    browser.see("dialog label", "Slots at most")
    browser.click("dialog button", "Resize")
    browser.wait(lambda: server.posts, "the request")
    assert server.posts[0][1] == {"slots": 50, "idle_seconds": None}


def test_resize_and_release(browser: Browser, server: Replay) -> None:
    server.show([row(1)])
    server.details[uuid_of(1)] = detail(row(1))
    open_pool(browser, 1)
    browser.click(".head button", "Resize…")
    browser.write("#resize-slots", "4")
    browser.click("#resize-release")
    browser.shot("resize")
    asked(browser, server, 2)
    browser.click("dialog button", "Resize")
    browser.wait(lambda: server.posts, "the request")
    assert server.posts == [
        (f"/api/connections/qarnot_default/pools/{uuid_of(1)}/resize", {"slots": 4, "idle_seconds": 300})
    ]


# ---- Airflow around it


def test_times_are_in_airflows_zone_and_format(browser: Browser, server: Replay) -> None:
    server.show([row(1)])
    server.details[uuid_of(1)] = detail(row(1))
    browser.go("/blank")
    browser.script("localStorage.setItem('timezone', JSON.stringify('Asia/Tokyo'))")
    browser.go(FRAMED + pool_of(1))
    browser.in_frame(lambda: browser.find("time", "2026-09-21 21:13:19"), "the time in Tokyo")
    browser.script(
        "localStorage.setItem('timezone', JSON.stringify('UTC'));"
        "dispatchEvent(new StorageEvent('local-storage', {key: 'timezone'}))"
    )
    browser.in_frame(lambda: browser.find("time", "2026-09-21 12:13:19"), "the time in the new zone")


def test_the_theme_is_airflows(browser: Browser, server: Replay) -> None:
    server.show([row(1)])
    server.theme = "dark"
    browser.go(FRAMED)
    look = "return [document.documentElement.className, getComputedStyle(document.body).backgroundColor]"
    browser.in_frame(lambda: browser.script(look) == ["dark", "rgb(15, 23, 42)"], "Airflow's dark")
    browser.script(
        "document.documentElement.className = 'light'; document.body.style.backgroundColor = 'rgb(250, 250, 250)'"
    )
    browser.in_frame(lambda: browser.script(look) == ["", "rgb(250, 250, 250)"], "Airflow's light")


def test_a_page_that_is_left_leaves_airflows_page_alone(browser: Browser, server: Replay) -> None:
    """Airflow's page lives longer. What comes back as it was follows it again."""
    server.show([row(1)])
    browser.go("/blank")
    browser.script(
        "window.listening = 0;"
        "for (const [name, change] of [['addEventListener', 1], ['removeEventListener', -1]]) {"
        "  const real = window[name];"
        "  window[name] = (type, ...more) => {"
        "    if (type === 'local-storage') window.listening += change;"
        "    return real.call(window, type, ...more); }; }"
        "const frame = document.createElement('iframe');"
        "frame.src = '/qarnot-pools/'; document.body.append(frame)"
    )
    browser.in_frame(lambda: browser.script("return document.querySelectorAll('tr[data-uuid]').length"), "it")

    def is_dark_after(event: str, theme: str) -> bool:
        with browser.frame():
            browser.script("dispatchEvent(new PageTransitionEvent(arguments[0], {persisted: true}))", event)
        browser.script("document.documentElement.className = arguments[0]", theme)
        with browser.frame():
            return browser.script("return document.documentElement.classList.contains('dark')")

    assert browser.script("return window.listening") == 1
    assert not is_dark_after("pagehide", "dark")
    assert browser.script("return window.listening") == 0
    assert is_dark_after("pageshow", "dark")
    assert not is_dark_after("pageshow", "light")


@pytest.mark.parametrize("width", [860, 905, 930, 1000])
def test_the_texts_of_pictures_keep_their_size(browser: Browser, server: Replay, width: int) -> None:
    """A picture is drawn for the width that it gets, with one or two in a row."""
    browser.resize(width, 300)  # with a scroll bar
    browser.go(f"{PAGE}#tab=day")
    browser.see("figure")
    drawn = "(one) => one.getBoundingClientRect().width / one.viewBox.baseVal.width"
    scales = browser.script(f"return [...document.querySelectorAll('svg')].map({drawn})")
    assert min(scales) > 0.95


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1000, 1400])
def test_every_view_fits_at_every_width(browser: Browser, server: Replay, width: int, theme: str) -> None:
    server.show(crowd())
    server.details[uuid_of(58)] = detail(crowd()[57])
    server.theme = theme
    browser.resize(width, 900)
    for name, view, css in (
        ("list", "", tr(60)),
        ("groups", "#group=problem", "tr.group"),
        ("pool", pool_of(58), "figure"),
        ("tasks", pool_of(58, tab="tasks", task=task(0)["uuid"]), ".output pre"),
        ("nodes", pool_of(58, tab="nodes"), "ol.timeline"),
        ("day", "#tab=day", "figure"),
    ):
        browser.go("/blank")
        browser.go(FRAMED + view)
        browser.in_frame(lambda css=css: browser.find(css), name)
        with browser.frame():
            assert browser.script(MISFITS) == [], name
            audit(browser, name)
        browser.shot(f"{theme}-{width}-{name}")


def audit(browser: Browser, name: str) -> None:
    """Run axe, if QARNOT_AXE is the path of axe.min.js (npm's axe-core)."""
    if not (path := os.environ.get("QARNOT_AXE")):
        return
    browser.script(Path(path).read_text())
    assert browser.driver.execute_async_script(AXE) == [], name


# ---- many


def cpu_seconds(browser: Browser, name: str) -> float:
    """Return the processor time of the page's thread so far. It does not depend on what else runs on the machine."""
    metrics = browser.driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return next(float(each["value"]) for each in metrics if each["name"] == name)


def cpu_of_refreshes(browser: Browser, server: Replay, count: int) -> float:
    """Return the milliseconds of script that each of some refreshes takes."""
    started, requests = cpu_seconds(browser, "ScriptDuration"), server.requests
    browser.wait(lambda: server.requests >= requests + count, f"{count} refreshes")
    return (cpu_seconds(browser, "ScriptDuration") - started) / (server.requests - requests) * 1000


def test_500_pools_and_10000_tasks(browser: Browser, server: Replay) -> None:
    server.show([row(n) for n in range(1, 501)])
    server.details[uuid_of(1)] = detail(row(1), bars=2000)
    browser.go("/blank")
    before = cpu_seconds(browser, "TaskDuration")
    browser.go(PAGE)
    browser.see(tr(1))
    first = cpu_seconds(browser, "TaskDuration") - before
    each = []
    for view, css, change in (
        ("#show=open", tr(1), lambda n: server.rows[n % 40].update(busy=n % 7)),
        (
            pool_of(1),
            "[data-picture=gantt]",
            lambda n: server.details[uuid_of(1)]["row"].update(busy=n % 7),
        ),
    ):
        browser.script("location.hash = arguments[0]", view)
        browser.see(css)
        server.change = change
        each.append(cpu_of_refreshes(browser, server, 10))
        server.change = lambda n: None
    print(
        f"first list {first * 1000:.0f} ms, refresh of the list {each[0]:.1f} ms, of a pool {each[1]:.1f} ms"
    )
    assert first < 1
    assert max(each) < 50


def test_10000_pools_are_usable(browser: Browser, server: Replay) -> None:
    server.show([*(row(n) for n in range(1, 10_000)), failed(10_000)])
    server.every = 1.0
    browser.go(PAGE)
    browser.see(tr(10_000))
    assert uuids(browser)[0] == uuid_of(10_000)
    browser.see(".foot", "1–50 of 10,000 pools")
    server.change = lambda n: server.rows[n % 40].update(busy=n % 7)
    each = cpu_of_refreshes(browser, server, 3)
    server.change = lambda n: None
    browser.write("input[type=search]", "open_pool_4321")
    browser.wait(lambda: uuids(browser) == [uuid_of(4321)], "the one")
    browser.write("input[type=search]", "render")
    browser.click(".pager a", "Next")
    browser.see(".foot", "51–100 of 10,000 pools")
    print(f"refresh of 10,000 pools {each:.0f} ms")
