"""The Execution API that ``dag.test()`` builds in each process."""

from __future__ import annotations


def serve_the_newest_execution_api() -> None:
    """Have it serve its newest version only, which tasks of this Airflow ask for.

    Airflow builds the routes of all nine versions at the first request, in ten seconds of CPU.
    """
    from airflow.api_fastapi.execution_api import routes, versions
    from cadwyn import HeadVersion, Version, VersionBundle
    from cadwyn.route_generation import _DELETED_ROUTE_TAG

    # From Airflow 3.4 on routes ask the bundle before for the version of a request.
    variable = versions.bundle.api_version_var
    newest = Version(versions.bundle.versions[0].value)
    versions.bundle = VersionBundle(HeadVersion(), newest, api_version_var=variable)
    router = routes.execution_api_router
    # Cadwyn refuses routes of older versions where there are none.
    router.routes[:] = [one for one in router.routes if _DELETED_ROUTE_TAG not in getattr(one, "tags", ())]
