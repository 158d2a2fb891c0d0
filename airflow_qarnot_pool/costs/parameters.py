"""Parameters of operators that limit costs. The limits themselves are in :mod:`airflow_qarnot_pool.costs.limits`."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.fields import number, short_repr
from airflow_qarnot_pool.ownership.identity import MAX_COST_LABEL, MAX_RUN_COST_LABEL
from airflow_qarnot_pool.parameters.configuration import get_option

#: Share of a limit at which a warning is logged, unless the configuration has another.
WARN_AT = 0.8
#: Labels that store the limits on the pool, because the reaper must read them without the DAG.
LIMIT_LABELS = {"max_cost": MAX_COST_LABEL, "max_run_cost": MAX_RUN_COST_LABEL}


@dataclass(frozen=True, kw_only=True)
class LimitParameters:
    """Maximum cost of an object (a pool, or a Qarnot task without a pool) and of its DAG run, in euros."""

    max_cost: float | None = None
    max_run_cost: float | None = None
    warn_at: float = WARN_AT

    @classmethod
    def of(cls, max_cost: Any, max_run_cost: Any) -> LimitParameters | None:
        """Check the parameters of an operator; None if there is no limit.

        :raises QarnotInvalidSpecError: a parameter, or the configured threshold of warnings, is invalid. The error
            names it.
        """
        limits = cls(
            max_cost=parse_amount("max_cost", max_cost),
            max_run_cost=parse_amount("max_run_cost", max_run_cost),
            warn_at=float(get_option("cost_warning_threshold", number(0.01, 1), WARN_AT)),
        )
        return None if limits.max_cost is None and limits.max_run_cost is None else limits

    def labels(self) -> dict[str, str]:
        """Return the labels that store the limits on the pool. :func:`limits_from_labels` reads them."""
        limits = {key: getattr(self, name) for name, key in LIMIT_LABELS.items()}
        return {key: repr(limit) for key, limit in limits.items() if limit is not None}


def parse_amount(name: str, value: Any) -> float | None:
    """Return a number greater than 0, which may be text from a template; None for an empty value."""
    if value is None or (isinstance(value, str) and value.strip() in ("", "None")):
        return None
    with suppress(TypeError, ValueError, OverflowError):
        number = float(value)
        if number > 0 and math.isfinite(number) and not isinstance(value, bool):
            return number
    raise QarnotInvalidSpecError(
        f"{name} must be a number of more than 0, got {short_repr(value)}",
        field=name,
        remedy="Give euros as a number.",
    )
