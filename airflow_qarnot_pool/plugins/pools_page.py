"""Register the Pools page, the listener of watchers and a timetable with Airflow.

Every Airflow process imports the plugins, so this imports no module that such a process lacks. The web application is
built by the first request to it, which only the api-server receives.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin

from airflow_qarnot_pool.plugins import watermarks
from airflow_qarnot_pool.timetables.ahead import AheadTimetable
from airflow_qarnot_pool.version_compat import HAS_ASSET_STATE_STORE

PREFIX = "/qarnot-pools"


class LazyApp:
    """The web application of the page (ASGI), which is built by the first request."""

    def __init__(self) -> None:
        self._app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle a request."""
        if self._app is None:
            # No await between the test and the assignment, so it is built once.
            from airflow_qarnot_pool.plugins.routes import make_app

            self._app = make_app()
        await self._app(scope, receive, send)


def _views() -> list[dict[str, Any]]:
    # Airflow uses the path as it is, even if [api] base_url has the path of the UI.
    page = urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/") + PREFIX + "/"
    views = [
        {
            "name": "Qarnot pools",
            "href": page,
            "destination": "nav",
            "category": "browse",
            "url_route": "qarnot-pools",
            "icon": f"{page}static/icon.svg",
            "icon_dark_mode": f"{page}static/icon-dark.svg",
        }
    ]
    if conf.getboolean("qarnot", "pools_page_run_tab", fallback=True):
        views.append(
            {
                **views[0],
                # The run's id is last, because Airflow 3.1 inserts it without encoding.
                "href": f"{page}?dag_id={{DAG_ID}}&run_id={{RUN_ID}}",
                "destination": "dag_run",
                "url_route": "qarnot-pools-of-run",
            }
        )
    return views


class QarnotPoolsPlugin(AirflowPlugin):
    """Adds the Pools page to the navigation, a tab to every DAG run, the listener, and the timetable of companions."""

    name = "qarnot_pools"
    fastapi_apps = [{"app": LazyApp(), "url_prefix": PREFIX, "name": "Qarnot pools"}]
    external_views = _views()
    listeners = [watermarks] if HAS_ASSET_STATE_STORE else []
    timetables = [AheadTimetable]
