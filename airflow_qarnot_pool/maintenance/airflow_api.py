"""States of DAG runs from Airflow's REST API, for a command line without access to Airflow's database.

The reaper closes the pools of a DAG run that does not exist. So only Airflow's own response about this run counts as
"does not exist". A proxy, a wrong URL and a user without permission give an error, which spares the pool.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlsplit

import requests
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from airflow_qarnot_pool.api import _http

if TYPE_CHECKING:
    from airflow_qarnot_pool.ownership.identity import RunKey

#: Seconds that connecting may take.
TIMEOUT = 10.0
#: Seconds for the whole response.
DEADLINE = 30.0
#: Maximum bytes of a response. A DAG run contains the ``conf`` that its user gave.
MAX_RESPONSE = 4 * 1024 * 1024
#: Variable that has the token, as for ``airflowctl``. A command line is visible to others, so no option takes it.
TOKEN_VARIABLE = "AIRFLOW_CLI_TOKEN"


class AirflowApiError(Exception):
    """Airflow's API could not be asked, or its response is no state of the DAG run."""


class DagRun(NamedTuple):
    """The facts about a DAG run. ``started`` is None for one that has not started, also after a clear."""

    state: str
    started: datetime | None


class AirflowApi:
    """Airflow's REST API (``/api/v2``), as the user of *token*.

    :param url: address of the api-server, such as ``https://airflow.example``, with the path that it is served under.
    :param token: a token of Airflow's ``/auth/token``.
    :raises AirflowApiError: the address is no web address, or the token is empty.
    """

    def __init__(self, url: str, token: str) -> None:
        try:
            parts = urlsplit(url.strip())
        except ValueError:  # such as an IPv6 address without an end
            parts = urlsplit("")
        is_plain = "@" not in parts.netloc and not parts.query and not parts.fragment
        if parts.scheme not in ("http", "https") or not parts.hostname or not is_plain:
            raise AirflowApiError(
                f"--api-url is not the address of an api-server, got {parts.scheme}://{parts.hostname or ''}. "
                "Give one such as https://airflow.example, without user, password, query or fragment."
            )
        if not token.strip():
            raise AirflowApiError(
                f"{TOKEN_VARIABLE} is not set. Set it to a token of Airflow's API: see `airflowctl auth token`, or "
                "POST /auth/token."
            )
        self.url = url.strip().rstrip("/")
        retry = Retry(
            2,
            backoff_factor=0.5,
            status_forcelist=(502, 503, 504),
            raise_on_status=False,
            respect_retry_after_header=False,  # it may ask for hours
        )
        self._session = _http.new_session(user_agent="airflow-qarnot-pool", retries=retry)
        self._session.auth = _http.Token(f"Bearer {token.strip()}")

    def check(self) -> None:
        """Check that this is Airflow's API, and that it accepts the token.

        :raises AirflowApiError: it is not, or does not.
        """
        status, answer = self._get("dags?limit=1")
        if status != 200 or "dags" not in answer:
            raise self._refusal(status, answer)

    def dag_run_state(self, dag_id: str, run_id: str) -> str | None:
        """Return the state of a DAG run; None if Airflow says that it does not exist.

        :raises AirflowApiError: the state is not known.
        """
        run = self.dag_run(dag_id, run_id)
        return None if run is None else run.state

    def dag_run(self, dag_id: str, run_id: str) -> DagRun | None:
        """Return a DAG run; None if Airflow says that it does not exist.

        :raises AirflowApiError: the run is not known.
        """
        status, answer = self._get(f"dags/{quote(dag_id, safe='')}/dagRuns/{quote(run_id, safe='')}")
        detail = answer.get("detail")
        if status == 404 and isinstance(detail, str) and f"`{dag_id}`" in detail and f"`{run_id}`" in detail:
            return None
        state = answer.get("state")
        if status != 200 or not isinstance(state, str):
            raise self._refusal(status, answer)
        if (answer.get("dag_id"), answer.get("dag_run_id")) != (dag_id, run_id):
            raise AirflowApiError(
                f"Airflow's API at {self.url} returned another DAG run than {dag_id} {run_id}."
            )
        return DagRun(state, _time(answer.get("start_date")))

    def task_instance_id(self, run: RunKey, task_id: str, map_index: int) -> str | None:
        """Return the id of a task instance, which no other Airflow has; None if it is not found.

        :raises AirflowApiError: the id is not known.
        """
        parts = (quote(part, safe="") for part in (*run, task_id))
        status, answer = self._get("dags/{}/dagRuns/{}/taskInstances/{}/{}".format(*parts, map_index))
        if status == 404:
            return None
        if status != 200 or not isinstance(answer.get("id"), str):
            raise self._refusal(status, answer)
        return str(answer["id"])

    def _get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Return the status and the JSON object of a response; an empty one if it has none."""
        try:
            # A redirect would lead to a page for people, such as a login.
            with self._session.get(
                f"{self.url}/api/v2/{path}",
                timeout=(TIMEOUT, DEADLINE),
                stream=True,
                allow_redirects=False,
            ) as response:
                body = _http.read(response, MAX_RESPONSE)
                status: int = response.status_code
        except _http.TooLarge as error:
            raise AirflowApiError(f"Airflow's API at {self.url} returned {error}. Check --api-url.") from None
        except (requests.RequestException, HTTPError, OSError) as error:
            raise AirflowApiError(
                f"Airflow's API at {self.url} could not be reached ({type(error).__name__}). Check --api-url, and "
                "that the api-server runs."
            ) from error
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        return status, answer if isinstance(answer, dict) else {}

    def _refusal(self, status: int, answer: dict[str, Any]) -> AirflowApiError:
        detail = answer.get("detail")
        said = f" ({detail[:200]})" if isinstance(detail, str) else ""
        if status in (401, 403):  # an expired token, too, gives either
            remedy = f"Set {TOKEN_VARIABLE} to a new token, of a user who may read all DAGs and their runs."
        else:
            remedy = "Check --api-url: it is the address of the UI, without /api/v2."
        return AirflowApiError(f"Airflow's API at {self.url} responded with status {status}{said}. {remedy}")


def _time(text: Any) -> datetime | None:
    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return time if time.tzinfo else None
