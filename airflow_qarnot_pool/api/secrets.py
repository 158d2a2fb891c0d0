"""Names of the secrets in the account's vault, without their values. Qarnot API: ``/secrets-manager``."""

from __future__ import annotations

from urllib.parse import quote

from airflow_qarnot_pool.api.resource import Endpoint


class SecretResource(Endpoint):
    """Look up names of secrets."""

    def keys(self, prefix: str = "") -> list[str]:
        """List the keys under a prefix, relative to it. A name that ends in ``/`` is a folder.

        Qarnot API: ``GET /secrets-manager/search/{prefix}``.
        """
        path = f"/secrets-manager/search/{quote(prefix, safe='/')}"
        data = self._transport.request("GET", path, idempotent=True, kind="secret", ref=prefix, shape=dict)
        return [str(key) for key in data.get("keys") or ()]
