"""The Pools page in the Airflow UI (docs/pools-page.md).

``pools_page`` tells Airflow of it and is all that other processes than the api-server import; ``app`` has the
routes, ``cache`` what is known and when it is asked for again, ``ask`` the questions to Qarnot and to Airflow,
``view`` the pure functions from what was answered to what is shown.
"""
