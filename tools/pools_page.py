"""``make pools-page``: a real run for the Pools page, its pictures, and figures of its promises.

The DAGs of :mod:`tools.pools_page_dags` run for ten minutes in a real Airflow against a local Qarnot, and Chromium has
the page open. The pictures of docs/pools-page.md are taken then, so their numbers are those of one account. ``--views``
keeps all views at three widths in both themes, for somebody to look at. ``--large`` adds 500 pools with 10,000 Qarnot
tasks. With ``QARNOT_AXE=axe.min.js`` (npm's axe-core) each view is checked for accessibility.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.states import Phase
from airflow_qarnot_pool.local import LocalQarnot
from tests.plugins.conftest import Maker, identity
from tests.stack.postgres import Postgres, binary
from tests.ui import OBSERVE
from tests.ui.browser import Browser
from tools.airflow_stack import AirflowStack, Endpoint

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
PAGE = "/plugin/qarnot-pools"
NAMESPACE = "studio"
#: Seconds after which the run has not become what the pictures show.
PATIENCE = 1500.0
WIDTHS, THEMES = (400, 1000, 1400), ("light", "dark")
#: What each picture needs.
PROBLEMS = {"failed", "idle", "owner", "tasks"}
ROWS = "return [...document.querySelectorAll('tr[data-uuid]')].map((one) => one.dataset.uuid)"
ASKED = """
    return performance.getEntriesByType('resource').filter((one) => one.name.includes('/api/pools')).length;
"""
SELECT = """
    document.getSelection().selectAllChildren(document.querySelector('td.name a'));
    return String(document.getSelection());
"""
AXE = """
    const ids = (found) => found.violations.map((one) => one.id);
    axe.run(document, {resultTypes: ['violations']}).then((found) => arguments[0](ids(found)));
"""


def wait(look: Callable[[], Any], what: str, pause: float = 1.0) -> Any:
    """Look until there is something true to see, and return it."""
    deadline = time.monotonic() + PATIENCE
    while not (found := look()):
        if time.monotonic() > deadline:
            sys.exit(f"Waited {PATIENCE:.0f} s for {what}")
        time.sleep(pause)
    return found


@dataclass
class Studio:
    """The deployment, its account and its page."""

    qarnot: LocalQarnot
    client: QarnotClient
    airflow: AirflowStack
    browser: Browser
    token: str

    def ask(self, path: str) -> Any:
        """Return an answer of the page's own server."""
        answer = requests.get(
            f"{self.airflow.url}/qarnot-pools/api/{path}",
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=60,
        )
        answer.raise_for_status()
        return answer.json()

    def rows(self) -> list[dict[str, Any]]:
        return list(self.ask("pools")["pools"])

    def pool_of(self, dag_id: str) -> str:
        """Return the address of the newest pool of a DAG."""

        def look() -> str | None:
            found = [row for row in self.rows() if dag_id in row["dag_ids"]]
            return max(found, key=lambda row: row["created"])["uuid"] if found else None

        return str(wait(look, f"the pool of {dag_id}"))

    @contextmanager
    def watched(self, uuid: str) -> Iterator[None]:
        """Keep a pool in full fresh, as somebody who has it open."""
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(2):
                with suppress(requests.RequestException):
                    self.ask(f"connections/qarnot_default/pools/{uuid}")

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def run(self) -> str:
        """Run the DAGs until the page has something to show, and return the pool that is shown in full."""
        for dag_id in (
            "protein_folding",
            "nightly_rendering",
            "genome_qc",
            "crash_tests",
            "market_risk",
            "market_risk",
            "weather",
        ):
            self.airflow.trigger(dag_id)
        uuid = self.pool_of("nightly_rendering")
        with self.watched(uuid):
            wait(lambda: self.problems() >= PROBLEMS, "the problems")
        return uuid

    def problems(self) -> set[str]:
        """Return the kinds of the warnings."""
        return {warning["kind"] for row in self.rows() for warning in row["warnings"]}

    # --- pictures

    def open(self, address: str, theme: str, width: int, height: int, css: str) -> None:
        """Show a view in Airflow's own page."""
        self.browser.resize(width, height)
        self.browser.go("/")
        self.browser.script("localStorage.setItem('theme', arguments[0])", theme)
        self.browser.go(PAGE + address)
        self.browser.in_frame(lambda: self.browser.find(css), f"{address} to show {css}")

    def shoot(self, file: Path, address: str, theme: str, width: int, height: int, css: str) -> None:
        self.open(address, theme, width, height, css)
        self.browser.driver.save_screenshot(str(file))

    def views(self, uuid: str, task: str) -> dict[str, tuple[str, str]]:
        pool = f"#pool=qarnot_default/{uuid}"
        return {
            "list": ("", "tr[data-uuid] .cost"),
            "pool": (pool, "[data-picture=gantt]"),
            "output": (f"{pool}&tab=tasks&task={task}", ".output pre"),
            "nodes": (f"{pool}&tab=nodes", "ol.timeline"),
            "day": ("#tab=day", "figure"),
        }

    def failed_task(self, uuid: str) -> str:
        """Return a Qarnot task of a pool that has failed."""
        detail = wait(
            lambda: self.ask(f"connections/qarnot_default/pools/{uuid}")["pool"], "the pool in full"
        )
        return str(next(one["uuid"] for one in detail["tasks"] if one["group"] == "failed"))

    def axe(self) -> list[str]:
        """Return the violations of the page in the frame."""
        with self.browser.frame():
            self.browser.script(Path(os.environ["QARNOT_AXE"]).read_text())
            return list(self.browser.driver.execute_async_script(AXE))

    def look_at_all(self, folder: Path, views: dict[str, tuple[str, str]]) -> dict[str, Any]:
        """Take each view at each width in each theme, and return the violations of axe."""
        folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, list[str]] = {}
        for theme in THEMES:
            for width in WIDTHS:
                for name, (address, css) in views.items():
                    height = 2600 if name == "pool" and width == 400 else 1500 if name == "pool" else 900
                    self.shoot(folder / f"{name}-{width}-{theme}.png", address, theme, width, height, css)
                    if "QARNOT_AXE" in os.environ and (violations := self.axe()):
                        found[f"{name} {width} {theme}"] = violations
        return {"views": len(THEMES) * len(WIDTHS) * len(views), "axe violations": found}

    # --- figures

    def addresses(self) -> bool:
        """Return whether a filtered and sorted list is the same after a reload, and for somebody else."""
        browser = self.browser
        self.open("#sort=-cost&show=all", "light", 1400, 900, "tr[data-uuid]")
        with browser.frame():
            browser.click("th a", "Slots")
        browser.wait(lambda: "sort=-slots" in browser.driver.current_url, "the address")
        shown = browser.in_frame(lambda: browser.script(ROWS), "the rows")
        address = browser.driver.current_url
        seen = []
        for visit in (browser.driver.refresh, lambda: browser.go("/"), lambda: browser.driver.get(address)):
            visit()
            if browser.driver.current_url == address:
                seen.append(browser.in_frame(lambda: browser.script(ROWS), "the rows"))
        return seen == [shown, shown]

    def clicks(self, count: int = 100) -> dict[str, int]:
        """Click with real input on boxes of a list that changes, and return how many were lost."""
        from selenium.webdriver.common.action_chains import ActionChains

        browser = self.browser
        self.open("", "light", 1400, 900, "[data-pick]")
        with browser.frame():
            count_clicks = "window.clicks = 0; addEventListener('click', () => { window.clicks += 1; });"
            browser.script(OBSERVE + count_clicks)
            for number in range(count):
                boxes = browser.find("[data-pick]")
                ActionChains(browser.driver).click(boxes[number % len(boxes)]).perform()
            clicked, changes = browser.script("return [window.clicks, window.changes.length]")
        return {"clicks": count, "lost": count - clicked, "changes of the list meanwhile": changes}

    def stillness(self, seconds: float = 60.0) -> dict[str, Any]:
        """End everything, and return what changes in the list when nothing happens at Qarnot."""
        for dag in self.airflow.api("GET", "dags")["dags"]:
            self.airflow.api("PATCH", f"dags/{dag['dag_id']}", {"is_paused": True})
            for run in self.airflow.api("GET", f"dags/{dag['dag_id']}/dagRuns")["dag_runs"]:
                if run["state"] == "running":
                    self.airflow.mark_run(dag["dag_id"], run["dag_run_id"], "failed")

        def is_over() -> bool:
            for pool in self.client.pools.list():
                if pool.phase in (Phase.TRANSIENT, Phase.LIVE):
                    self.client.pools.close(pool.uuid)
            rows = self.rows()
            return all(row["ended"] and row["figures"] for row in rows)

        wait(is_over, "the end of all pools")
        browser = self.browser
        self.open("#show=all", "light", 1400, 900, "tr[data-uuid]")
        settled = [0.0, ""]

        def is_settled() -> bool:
            # Bills are read again for ten minutes, and DAG runs end when their Airflow tasks see it.
            seen = json.dumps(self.rows(), sort_keys=True)
            if seen != settled[1]:
                settled[:] = [time.monotonic(), seen]
            return time.monotonic() - settled[0] > 45

        wait(is_settled, "the last change")
        with browser.frame():
            text = browser.script(SELECT)
            before = browser.script(OBSERVE + ASKED)
            time.sleep(seconds)  # the measured time
            changes, selected = browser.script("return [window.changes, String(document.getSelection())]")
            asked = browser.script(ASKED) - before
        return {
            "seconds": seconds,
            "requests of the page": asked,
            "changes": changes,
            "text stays selected": bool(text) and text == selected,
        }

    def large(self, pools: int = 500, tasks: int = 10_000) -> dict[str, Any]:
        """Make many pools without nodes, and return how long the first list takes in a new api-server."""
        self.qarnot.set_account(maxPool=None, maxInstances=None, maxRunningPool=None, maxTask=None)
        self.qarnot.withhold_nodes(True)
        maker = Maker(self.qarnot)
        made = [
            maker.pool(f"large {n}", owner=identity(f"dag_{n % 20}", namespace=NAMESPACE))
            for n in range(pools)
        ]
        for n in range(tasks):
            maker.task(
                made[n % pools], owner=identity(f"dag_{n % pools % 20}", task_id="work", namespace=NAMESPACE)
            )
        self.airflow.restart("api-server")
        self.qarnot.clear_requests()
        began, first, whole = time.monotonic(), 0.0, 0.0
        while not whole:
            body = self.ask("pools")
            first = first or (time.monotonic() - began if len(body["pools"]) >= pools else 0.0)
            whole = time.monotonic() - began if body["known"] else 0.0
        paths = [f"{one['method']} {one['path']}".partition("?")[0] for one in self.qarnot.requests()]
        searches = [path for path in paths if not path.endswith("/paginate")]
        return {
            "pools": pools,
            "tasks": tasks,
            "seconds to all rows": round(first, 2),
            "seconds to their tasks and the first costs": round(whole, 2),
            "requests to Qarnot": len(searches),
        }


@contextmanager
def studio() -> Iterator[Studio]:
    """Start everything, and stop it at the end."""
    with ExitStack() as ends:
        home = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="pools-page-")))
        dags = home / "dags"
        dags.mkdir()
        shutil.copy(ROOT / "tools" / "pools_page_dags.py", dags)
        drivers = all(importlib.util.find_spec(name) for name in ("psycopg2", "asyncpg"))
        database = "sqlite"
        if drivers and binary("initdb") and binary("postgres"):
            database = ends.enter_context(Postgres()).url
        qarnot = ends.enter_context(LocalQarnot(boot_seconds=30, close_seconds=3))
        (home / "airflow").mkdir()
        airflow = ends.enter_context(
            AirflowStack(
                home / "airflow",
                dags,
                database=database,
                qarnot=Endpoint(qarnot.url, qarnot.token),
                namespace=NAMESPACE,
                start_timeout=600,
                env={"AIRFLOW__CORE__PARALLELISM": "24"},
            )
        )
        browser = Browser()
        ends.callback(browser.close)
        browser.begin(airflow.url)
        client = QarnotClient(qarnot.url, qarnot.token)
        yield Studio(qarnot, client, airflow, browser, airflow.token_of(None))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", type=Path, default=IMAGES, help="folder of the pictures of the documentation"
    )
    parser.add_argument("--views", type=Path, help="keep all views in this folder")
    parser.add_argument("--large", action="store_true", help="with 500 pools and 10,000 Qarnot tasks, too")
    given = parser.parse_args()

    def tell(name: str, figures: Any) -> None:
        print(f"{name}: {json.dumps(figures)}", flush=True)

    with studio() as place:
        uuid = place.run()
        views = place.views(uuid, place.failed_task(uuid))
        with place.watched(uuid):
            for name, theme, height in (
                ("list", "light", 640),
                ("pool", "light", 1330),
                ("output", "dark", 760),
            ):
                file = given.images / f"pools-page{'' if name == 'list' else f'-{name}'}.png"
                address, css = views[name]
                place.shoot(file, address, theme, 1280, height, css)
            if given.views:
                tell("all views", place.look_at_all(given.views, views))
            tell("a sent address shows the same", place.addresses())
            tell("clicks", place.clicks())
        tell("quiet", place.stillness())
        if given.large:
            tell("large", place.large())


if __name__ == "__main__":
    main()
