"""Stores of watermarks: the state store of an asset, or an Airflow variable before 3.3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from airflow_qarnot_pool.triggers.airflow_requests import finished, in_thread
from airflow_qarnot_pool.version_compat import HAS_ASSET_STATE_STORE, asset_state_accessors

if TYPE_CHECKING:
    from airflow.triggers.base import BaseEventTrigger


class WatermarkStore(Protocol):
    """A place for JSON values by key."""

    async def load(self, key: str) -> Any:
        """Return the stored value, or None."""

    async def save(self, key: str, value: Any) -> None:
        """Store *value*."""


class AssetStore:
    """The state store of one asset."""

    def __init__(self, accessor: Any) -> None:
        self._accessor = accessor

    async def load(self, key: str) -> Any:
        """Return the stored value, or None."""
        return await finished(self._accessor.aget(key))

    async def save(self, key: str, value: Any) -> None:
        """Store *value*."""
        await finished(self._accessor.aset(key, value))


class VariableStore:
    """Airflow's variables. All assets of a watcher share its watermark."""

    async def load(self, key: str) -> Any:
        """Return the stored value, or None."""
        from airflow.sdk import Variable

        return await in_thread(lambda: Variable.get(key, default=None, deserialize_json=True))

    async def save(self, key: str, value: Any) -> None:
        """Store *value*."""
        from airflow.sdk import Variable

        await in_thread(lambda: Variable.set(key, value, serialize_json=True))


def stores_of(trigger: BaseEventTrigger) -> list[WatermarkStore]:
    """Return the store of each asset that *trigger* reports to."""
    if HAS_ASSET_STATE_STORE:
        return [AssetStore(accessor) for accessor in asset_state_accessors(trigger)]
    return [VariableStore()]
