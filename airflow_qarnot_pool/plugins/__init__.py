"""The Pools page in the Airflow UI (docs/pools-page.md).

``pools_page`` registers it with Airflow, and is all that processes other than the api-server import. From top to
bottom:

* ``routes``: the web routes. ``registry``: the connections that the page shows.
* ``actions``: what users can do with a pool. ``cache``: the cached values and their refresh policy.
* ``queries``, ``output``, ``airflow_db``: the requests to Qarnot and to Airflow's database.
* Pure functions from responses to the page: ``rows`` (a pool in the list), ``severity`` (its warnings), ``listing``
  (changes of the list), ``details`` (a pool in full), ``pictures`` (numbers over time), ``history`` (facts of earlier
  polls), ``resizing``, ``phases`` and ``texts``.
"""
