"""What Airflow is told of the Pools page.

Every Airflow process imports its plugins, so this imports nothing beyond what such a process has; the web
application is built by the first request to it, which only the api-server gets.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin

PREFIX = "/qarnot-pools"


class LazyApp:
    """The page's web application (ASGI), made when it is asked for the first time."""

    def __init__(self) -> None:
        self._app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._app is None:
            # No await between the test and the assignment: it is made once.
            from airflow_qarnot_pool.plugins.routes import make_app

            self._app = make_app()
        await self._app(scope, receive, send)


def _views() -> list[dict[str, Any]]:
    # Airflow takes the path as it is, also where [api] base_url puts the UI below one.
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
                # The run's id comes last: Airflow 3.1 puts it there as it is, with whatever is in it.
                "href": f"{page}?dag_id={{DAG_ID}}&run_id={{RUN_ID}}",
                "destination": "dag_run",
                "url_route": "qarnot-pools-of-run",
            }
        )
    return views


class QarnotPoolsPlugin(AirflowPlugin):
    """Adds the Pools page to the navigation, and a tab with its own pools to every DAG run."""

    name = "qarnot_pools"
    fastapi_apps = [{"app": LazyApp(), "url_prefix": PREFIX, "name": "Qarnot pools"}]
    external_views = _views()
