"""Fixtures of the operators, as hooks are tested against the same local Qarnot."""

from tests.operators.conftest import client, pool, qarnot, server

__all__ = ["client", "pool", "qarnot", "server"]
