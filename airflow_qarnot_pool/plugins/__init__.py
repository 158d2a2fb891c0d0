"""The Pools page in the Airflow UI (docs/pools-page.md).

``pools_page`` registers it with Airflow, and is all that processes other than the api-server import. ``routes`` has the
web routes, ``cache`` the cached values and their refresh policy, ``queries`` the requests to Qarnot and Airflow, and
``rows`` the pure functions from responses to the page.
"""
