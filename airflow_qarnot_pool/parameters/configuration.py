"""Validated options of the ``[qarnot]`` section of Airflow's configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError


def get_option(name: str, convert: Callable[[Any], Any], default: Any) -> Any:
    """Return the converted option, or *default* if it is not set.

    :raises QarnotInvalidSpecError: names the option and its environment variable.
    """
    from airflow.configuration import conf

    from airflow_qarnot_pool.api.fields import Refusal

    value = conf.get("qarnot", name, fallback=None)
    if value is None or not value.strip():
        return default
    try:
        return convert(value)
    except Refusal as refusal:
        raise QarnotInvalidSpecError(
            f"[qarnot] {name} in the configuration (or AIRFLOW__QARNOT__{name.upper()}) {refusal.problem}",
            field=name,
            remedy=refusal.remedy,
        ) from None
