"""The page for a browser: who gets it and its facts, and how it looks and behaves in Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import requests

from airflow_qarnot_pool.local import LocalQarnot

from .conftest import Http, until
from .test_senders import ask

if TYPE_CHECKING:
    from tests.ui.browser import Browser

HTML = {"Accept": "text/html,application/xhtml+xml"}
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><b>&amp;"


def test_the_page_has_no_data_and_needs_no_token(server: LocalQarnot) -> None:
    page = requests.get(f"{server.url}/", headers=HTML, timeout=20)
    assert page.status_code == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert server.token not in page.text
    policy = page.headers["Content-Security-Policy"].split("; ")
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert not [one for one in policy if "unsafe" in one or "http" in one]
    assert "//" not in page.text.replace("// ", "")  # no address of another site


def test_a_client_of_the_api_gets_no_page(server: LocalQarnot, http: Http) -> None:
    assert requests.get(f"{server.url}/", timeout=20).status_code == 401
    assert http("GET", "/", headers=HTML).text == ""
    assert requests.get(f"{server.url}/pools", headers=HTML, timeout=20).status_code == 401
    assert requests.post(f"{server.url}/", headers=HTML, timeout=20).status_code == 401


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
@pytest.mark.parametrize("path", ["/", "/_local/page"])
def test_another_site_gets_neither_the_page_nor_its_facts(
    server: LocalQarnot, path: str, headers: dict[str, str]
) -> None:
    sent = {"Host": server.url.removeprefix("http://"), **HTML, **headers}
    if path != "/":
        sent["Authorization"] = server.token
    assert ask(server.url + path, "GET", sent)[0] == 403


def test_the_facts_need_the_token_and_are_not_logged(private: Any) -> None:
    server = private(boot_seconds=600)
    http = Http(server)
    server.faults([{"kind": "status"}])
    assert requests.get(f"{server.url}/_local/page", timeout=20).status_code == 401
    facts = http("GET", "/_local/page?pool=gone&task=gone&instance=x").json()
    assert (facts["pools"], facts["tasks"], "instances" in facts) == ([], [], False)
    assert requests.get(f"{server.url}/", headers=HTML, timeout=20).status_code == 200
    assert server.requests() == []


def test_the_facts_have_the_pools_tasks_and_output_that_are_chosen(server: LocalQarnot, http: Http) -> None:
    pool = http("POST", "/pools", {"name": HOSTILE, "profile": "docker-batch"}).json()["uuid"]
    task = submit(http, "sh -c 'echo out; echo err >&2; exit 3'", name="t", poolUuid=pool, instanceCount=2)
    until(lambda: http("GET", f"/tasks/{task}").json()["state"] == "Failure")
    facts = http("GET", f"/_local/page?pool={pool}&task={task}&instance=1").json()
    (shown,) = (one for one in facts["pools"] if one["uuid"] == pool)
    assert (shown["name"], shown["isOpen"], shown["up"], shown["slots"]) == (HOSTILE, True, 1, 1)
    (row,) = facts["tasks"]
    assert (row["total"], row["failed"], row["pool"]) == (2, 2, HOSTILE)
    assert [(one["id"], one["state"], one["error"]) for one in facts["instances"]] == [
        (number, "Failure", "The command exited with code 3") for number in (0, 1)
    ]
    assert facts["output"] == {"stdout": "out\n", "stderr": "err\n"}
    assert facts["command"] == "sh -c 'echo out; echo err >&2; exit 3'"
    # The page moves no cursor of fresh output.
    assert http("POST", f"/tasks/{task}/stdout/1").text == "out\n"
    http("DELETE", f"/pools/{pool}")


def test_pools_and_tasks_are_found_by_name_uuid_and_tag(server: LocalQarnot, http: Http) -> None:
    pool = http(
        "POST", "/pools", {"name": "Rendering", "profile": "docker-batch", "tags": ["dag=frames"]}
    ).json()["uuid"]
    task = submit(http, "true", name="Frame 7", poolUuid=pool, tags=["dag=frames", "try=1"])

    def found(text: str) -> tuple[list[str], list[str]]:
        facts = http("GET", "/_local/page", params={"find": text}).json()
        assert facts["counts"] == {kind: len(facts[kind]) for kind in ("pools", "tasks")}
        return tuple([one["uuid"] for one in facts[kind]] for kind in ("pools", "tasks"))  # type: ignore[return-value]

    assert found(" rendering ") == ([pool], [])
    assert found("frame 7") == ([], [task])
    assert found("DAG=FRAMES") == ([pool], [task])
    assert found("try=1") == ([], [task])
    assert found(pool[:20]) == ([pool], [])
    assert found("Frame 8") == ([], [])
    http("DELETE", f"/pools/{pool}")


def submit(http: Http, command: str, **body: Any) -> str:
    constants = [{"key": "DOCKER_CMD", "value": command}]
    made = http("POST", "/tasks", {"constants": constants, **body})
    assert made.status_code == 200, made.text
    return str(made.json()["uuid"])


# ---- Chromium ------------------------------------------------------------------------------------

POOLS = 60


@pytest.fixture(scope="module")
def busy() -> Iterator[LocalQarnot]:
    """Sixty pools in all states."""
    with LocalQarnot(boot_seconds=0.2, close_seconds=0.1) as server:
        http = Http(server)
        made = []
        for number in range(POOLS):
            body = {
                "name": f"render-{number:02d}",
                "profile": "docker-batch",
                "instanceCount": 1 + number % 3,
            }
            made.append(http("POST", "/pools", body).json()["uuid"])
        for number in range(0, POOLS, 4):
            submit(http, f"echo frame {number}", name=f"frame {number}", poolUuid=made[number])
        submit(http, "sleep 600", name="long", poolUuid=made[1])
        submit(http, "sh -c 'echo before; exit 3'", name=HOSTILE, poolUuid=made[2], instanceCount=3)
        until(lambda: all(one["state"] == "FullyExecuting" for one in http("GET", "/pools").json()))
        running = {"Success": False, "Failure": False}
        until(
            lambda: (
                [t["name"] for t in http("GET", "/tasks").json() if running.get(t["state"], True)] == ["long"]
            )
        )
        for uuid in made[40:50]:
            http("POST", f"/pools/{uuid}/close")
        until(lambda: sum(one["state"] == "Closed" for one in http("GET", "/pools").json()) == 10)
        yield server


@pytest.fixture(scope="module")
def browser(busy: LocalQarnot, chromium: Browser) -> Browser:
    chromium.begin(busy.url)
    return chromium


WATCH = """
    window.changes = [];
    new MutationObserver((found) => window.changes.push(...found.map((one) => one.target.className || one.type)))
        .observe(document.body, {subtree: true, childList: true, attributes: true, characterData: true});
    window.fetched = 0;
    const real = window.fetch;
    window.fetch = (...given) => { window.fetched += 1; return real(...given); };
"""


@pytest.mark.airflow_ui
def test_the_page_in_a_browser(browser: Browser, busy: LocalQarnot) -> None:
    http = Http(busy)
    browser.go("/")
    browser.write("#token", "wrong")
    browser.click("#login button")
    browser.see("#problem", "does not accept this token")
    browser.write("#token", busy.token)
    browser.click("#login button")
    browser.see("#pools h2", f"{POOLS} pools")
    assert len(browser.script("return [...document.querySelectorAll('#pools tbody tr')]")) == POOLS
    browser.see("#summary", "50 open pools")
    browser.shot("local-light")
    browser.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    browser.shot("local-dark")

    # A hostile name is text.
    browser.click("#tasks button", HOSTILE)
    browser.see("#detail h2", f"Instance 0 of {HOSTILE}")
    browser.see("#detail pre", "before")
    browser.click("#detail tbody button", "2")
    browser.see("#detail h2", "Instance 2")
    browser.click("#stderr")
    browser.see("#detail pre", "No output.")
    assert browser.script("return [document.title, document.images.length]") == ["Local Qarnot", 0]
    browser.see("#command", "echo before; exit 3")
    browser.shot("local-detail")

    browser.click("#pools button", "render-04")
    browser.see("#tasks h2", "1 task on render-04")
    browser.click("#all")
    browser.see("#tasks h2", "17 tasks")

    browser.write("#find", "RENDER-2")
    browser.see("#pools h2", "10 pools")
    browser.see("#tasks h2", "0 tasks")
    browser.script(
        "const find = document.querySelector('#find'); find.value = ''; find.dispatchEvent(new Event('input'))"
    )
    browser.see("#pools h2", f"{POOLS} pools")

    # The token stays for this tab.
    browser.driver.refresh()
    browser.see("#pools h2", f"{POOLS} pools")

    # Only the costs of open pools change, and a selection stays.
    busy.set_speed(0)
    browser.script(WATCH)
    browser.wait(lambda: browser.script("return window.fetched") >= 3, "three requests")
    assert set(browser.script("return window.changes.slice(0, 500)")) <= {"number", "quiet"}
    browser.script("window.changes.length = 0; window.fetched = 0")
    browser.wait(lambda: browser.script("return window.fetched") >= 3, "three requests")
    assert browser.script("return window.changes") == []
    http("POST", "/pools", {"name": "new one", "profile": "docker-batch"})
    browser.see("#pools button", "new one")

    browser.resize(420, 900)
    browser.shot("local-narrow")
    assert browser.script("return document.documentElement.scrollWidth <= window.innerWidth")
    browser.click("#forget")
    browser.see("#login h1", "Local Qarnot")
    assert browser.script("return sessionStorage.length") == 0
    assert [
        one for one in browser.driver.get_log("browser") if "Content Security Policy" in one["message"]
    ] == []
