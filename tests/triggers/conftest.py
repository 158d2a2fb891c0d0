from tests.operators.conftest import client, pool, qarnot, server

__all__ = ["client", "pool", "qarnot", "server"]
