"""An account of its own for these tests, whose buckets can be listed."""

from __future__ import annotations

from tests.operators.conftest import client, pool, qarnot, server

__all__ = ["client", "pool", "qarnot", "server"]
