"""The account: its identity, quotas, credits, profiles and hardware.

Qarnot API: `/info`, `/quotas`, `/profiles`, `/hardware-constraints`, `/credits`.
"""

from __future__ import annotations

from typing import Any

from airflow_qarnot_pool.api.models import Account, AccountQuotas, Budget, Profile
from airflow_qarnot_pool.api.parts import HardwareConstraint
from airflow_qarnot_pool.api.resource import Endpoint, parse_credits, quote_ref

_PAGE = 50


class AccountResource(Endpoint):
    """Calls about the account as a whole."""

    def _get(self, path: str, **options: Any) -> Any:
        return self._transport.request("GET", path, idempotent=True, **options)

    def settings(self) -> dict[str, str | None]:
        """Return the settings of the API, with the ``storage`` URL. Needs no token.

        Qarnot API: ``GET /settings``.
        """
        data: dict[str, str | None] = self._get("/settings", shape=dict, anonymous=True)
        return data

    def versions(self) -> list[dict[str, str]]:
        """List the versions of the API. Needs no token. Qarnot API: ``GET /versions``."""
        data: list[dict[str, str]] = self._get("/versions", shape=list, anonymous=True)
        return data

    def check(self) -> None:
        """Raise QarnotCredentialsError if the token is not valid. Qarnot API: ``GET /``."""
        self._get("/")

    def info(self) -> Account:
        """Return the account, its limits and their use. Qarnot API: ``GET /info``."""
        return Account.from_json(self._get("/info", shape=dict))

    def user_quotas(self) -> AccountQuotas:
        """Return the computing quotas of the user. Qarnot API: ``GET /quotas/computing-quotas/user``."""
        return AccountQuotas.from_json(self._get("/quotas/computing-quotas/user", shape=dict))

    def organization_quotas(self) -> AccountQuotas:
        """Return the computing quotas of the organization. Raises QarnotNotFoundError if there is none.

        Qarnot API: ``GET /quotas/computing-quotas/organization``.
        """
        path = "/quotas/computing-quotas/organization"
        return AccountQuotas.from_json(self._get(path, shape=dict, kind="organization quota"))

    def profiles(self) -> list[str]:
        """List the profiles that the account may use. Qarnot API: ``GET /profiles``."""
        return [str(name) for name in self._get("/profiles", shape=list)]

    def profile(self, name: str) -> Profile:
        """Return a profile and its constants. Raises QarnotNotFoundError.

        Qarnot API: ``GET /profiles/{name}``.
        """
        path = f"/profiles/{quote_ref(name, 'profile')}"
        return Profile.from_json(self._get(path, kind="profile", ref=name, shape=dict))

    def hardware_constraints(self) -> list[HardwareConstraint]:
        """List the hardware constraints that the account may use. Qarnot API: ``GET /hardware-constraints``."""
        constraints: list[Any] = []
        while True:
            params = {"limit": _PAGE, "offset": len(constraints)}
            data = self._get("/hardware-constraints", params=params, shape=dict)
            items = data.get("data") or []
            constraints += items
            total = data.get("total")
            if not items or not isinstance(total, int) or len(constraints) >= total:
                return [HardwareConstraint.from_json(item) for item in constraints]

    def cpu_models(self, text: str) -> list[str]:
        """List the processor models that match a text, the best match first.

        Qarnot API: ``GET /hardware-constraints/cpu-model-constraints/search``.
        """
        path = "/hardware-constraints/cpu-model-constraints/search"
        data = self._get(path, params={"cpuModel": text}, shape=list)
        return [str(item["cpuModel"]) for item in data if isinstance(item, dict) and item.get("cpuModel")]

    def credits(self) -> float:
        """Return the remaining credits of the account, in euros. Qarnot API: ``GET /credits/v1/accounts/credits``."""
        return parse_credits(self._get("/credits/v1/accounts/credits", shape=dict))

    def budgets(self, project: str, *, active_only: bool = True) -> list[Budget]:
        """List the budgets of a project, given by its uuid. Qarnot API: ``GET /credits/v1/projects/{u}/budgets``."""
        path = f"/credits/v1/projects/{quote_ref(project, 'project')}/budgets"
        params = {"activeOnly": str(active_only)}
        data = self._get(path, params=params, kind="project", ref=project, shape=dict)
        return [Budget.from_json(item) for item in data.get("budgets") or ()]
