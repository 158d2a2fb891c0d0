"""Qarnot on this machine, to develop and test without an account and without a bill (docs/local.md).

`python -m airflow_qarnot_pool.local` serves it; `LocalQarnot` does so from Python.
"""

from __future__ import annotations

from airflow_qarnot_pool.local.local_qarnot import LocalQarnot

__all__ = ["LocalQarnot"]
