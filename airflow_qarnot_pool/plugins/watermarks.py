"""Advance the watermark of a watcher in the transaction that stores its event.

A triggerer may be killed between any two writes. So Airflow's listener for new asset events changes the watermark in
the same transaction, which stores both or none. A triggerer that was frozen, or whose trigger runs elsewhere by now,
may send items again. They are removed from the event, in the same transaction.

The transaction locks the watermark, and a triggerer that waits for a lock does nothing else. So PostgreSQL ends the
transaction of a triggerer that is frozen within it.

Every Airflow process imports this module, so it imports nothing that a process may lack.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from airflow.listeners import hookimpl

if TYPE_CHECKING:
    from airflow.listeners.types import AssetEvent

log = logging.getLogger(__name__)


@hookimpl
def on_asset_event_emitted(asset_event: AssetEvent) -> None:
    """Advance the watermark if a watcher of this provider has emitted the event."""
    extra: Any = asset_event.extra
    if not isinstance(extra, dict) or not extra.get("from_trigger") or asset_event.source_dag_id:
        return
    payload: Any = extra.get("payload")
    change = payload.get("watermark") if isinstance(payload, dict) else None
    if isinstance(change, dict) and str(change.get("key")).startswith("qarnot-"):
        try:
            _advance(extra, payload, change)
        except Exception:
            # Airflow stores the event in any case. The watcher stores the watermark later.
            log.exception("Could not store the watermark of %s", change.get("key"))


def _advance(extra: dict[str, Any], payload: dict[str, Any], change: dict[str, Any]) -> None:
    from airflow.models.asset import AssetEvent
    from airflow.models.asset_state_store import AssetStateStoreModel
    from airflow.state import get_state_backend
    from airflow.state.metastore import MetastoreBackend

    from airflow_qarnot_pool.triggers.watermark import Watermark
    from airflow_qarnot_pool.version_compat import session_of_thread

    session = session_of_thread()
    if session is None or not isinstance(get_state_backend(), MetastoreBackend):
        return
    # The very object, so this is the session and the transaction that store the event.
    events = (each for each in session.identity_map.values() if isinstance(each, AssetEvent))
    event = next((each for each in events if each.extra is extra), None)
    if event is None:
        return
    with session.begin_nested():
        _end_when_frozen(session)
        state = session.get(AssetStateStoreModel, (event.asset_id, change["key"]), with_for_update=True)
        mark = None if state is None else Watermark.from_json(json.loads(state.value))
        if mark is None:
            return
        name = change["items"]
        new, mark = mark.report(payload[name], change["time"], change["floor"])
        if len(new) < len(payload[name]):
            event.extra = {**extra, "payload": {**payload, name: new}}
        state.value = json.dumps(mark.to_json())


def _end_when_frozen(session: Any) -> None:
    """Limit the time in which this transaction may do nothing to that after which Airflow takes a triggerer for dead.

    For PostgreSQL, whose limit ends with the transaction. MySQL limits the wait for a lock instead, to 50 s by default.
    """
    from airflow.configuration import conf
    from sqlalchemy import text

    if session.get_bind().dialect.name == "postgresql":
        limit = f"{conf.getint('triggerer', 'triggerer_health_check_threshold')}s"
        session.execute(
            text("SELECT set_config('idle_in_transaction_session_timeout', :limit, true)"), {"limit": limit}
        )
