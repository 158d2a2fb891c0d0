"""Bill nodes: each second for which a node is up. A boot and the tasks on the nodes of a pool cost nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from airflow_qarnot_pool.local.schemas.formats import stamp

EUROS_PER_NODE_SECOND = 0.0001
"""0.36 EUR per node-hour, a round number and not Qarnot's price."""

MAX_BILLS = 10_000
"""Maximum number of deleted pools whose cost is known, because all of them are kept."""
WATTS_PER_NODE = 100.0
CORES_PER_NODE = 8


@dataclass(slots=True)
class BillingMeter:
    """Integrates node counts over virtual time, in node-seconds (slot-seconds for `busy_slots`)."""

    since: float
    up: int = 0
    busy: int = 0
    busy_slots: int = 0
    _up_total: float = 0.0
    _busy_total: float = 0.0
    _slot_total: float = 0.0

    def _accrue(self, now: float) -> None:
        passed = max(0.0, now - self.since)
        self._up_total += passed * self.up
        self._busy_total += passed * self.busy
        self._slot_total += passed * self.busy_slots
        self.since = now

    def change(self, now: float, *, up: int = 0, busy: int = 0, busy_slots: int = 0) -> None:
        self._accrue(now)
        self.up += up
        self.busy += busy
        self.busy_slots += busy_slots

    def node_seconds(self, now: float) -> float:
        self._accrue(now)
        return self._up_total

    def busy_node_seconds(self, now: float) -> float:
        self._accrue(now)
        return self._busy_total

    def busy_slot_seconds(self, now: float) -> float:
        self._accrue(now)
        return self._slot_total

    def credits(self, now: float) -> float:
        """Return the euros spent."""
        return self.node_seconds(now) * EUROS_PER_NODE_SECOND

    def summary(self, now: float) -> dict[str, float | int]:
        up, busy = self.node_seconds(now), self.busy_node_seconds(now)
        return {
            "nodeSeconds": round(up, 3),
            "busyNodeSeconds": round(busy, 3),
            "idleNodeSeconds": round(up - busy, 3),
            "busySlotSeconds": round(self.busy_slot_seconds(now), 3),
            "nodesUp": self.up,
            "nodesBusy": self.busy,
            "creditsSpent": round(up * EUROS_PER_NODE_SECOND, 8),
        }


@dataclass(slots=True)
class AccountLimits:
    """Account limits as in `/info`; None for no limit."""

    maxPool: int | None = 1000
    maxRunningPool: int | None = 1000
    maxTask: int | None = 100_000
    maxRunningTask: int | None = 100_000
    maxJob: int | None = 1000
    maxBucket: int | None = 100
    maxInstances: int | None = 10_000
    maxCores: int | None = 80_000


OVERRUN_POLICIES = ("AlertOnly", "BlockNew", "StopAndBlockAll")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectBudget:
    """A budget of the one project. Amounts in cents, times in epoch seconds.

    ``spent`` is the euros spent before it was set; later spending counts as its consumption.
    """

    uuid: str
    alias: str
    total: float
    consumed: float = 0.0
    begins: float | None = None
    expires: float | None = None
    policy: str = "AlertOnly"
    archived: bool = False
    spent: float = 0.0

    def is_active(self, now: float) -> bool:
        begun = self.begins is None or self.begins <= now
        return begun and not self.archived and (self.expires is None or now < self.expires)

    def to_json(self, spent: float) -> dict[str, object]:
        """Return the budget as in the API (qarnot-api.md 3.10), in whole cents."""
        consumed, total = round(self.consumed + (spent - self.spent) * 100), round(self.total)
        return {
            "uuid": self.uuid,
            "alias": self.alias,
            "consumedAmountInCents": consumed,
            "totalAmountInCents": total,
            "remainingAmountInCents": total - consumed,
            "startDateUtc": stamp(self.begins),
            "expirationDateUtc": None if self.expires is None else stamp(self.expires),
            "budgetOverrunPolicy": self.policy,
            "isArchived": self.archived,
        }


@dataclass(slots=True)
class AccountState:
    """The only account: its limits, and its credit as the balance when it was set."""

    email: str
    limits: AccountLimits = field(default_factory=AccountLimits)
    balance: float = 1000.0
    balance_spent: float = 0.0
    budgets: tuple[ProjectBudget, ...] = ()
    bills_deleted: bool = True
    """Whether the credits of deleted pools are still reported."""
    deleted: dict[str, float] = field(default_factory=dict)
    """Cost of each deleted pool in euros, by uuid."""

    def set_credits(self, credits: float, spent: float) -> None:
        """Set the balance, which later spending lowers.

        :param spent: euros spent so far.
        """
        self.balance, self.balance_spent = credits, spent

    def bill_deleted(self, uuid: str, euros: float) -> None:
        """Note the cost of a deleted pool, and forget the oldest of too many."""
        self.deleted[uuid] = euros
        while len(self.deleted) > MAX_BILLS:
            del self.deleted[next(iter(self.deleted))]

    def credits_left(self, spent: float) -> float:
        return self.balance - (spent - self.balance_spent)


def carbon_facts(node_seconds: float, datacenter: str | None, keys: str = "both") -> dict[str, float | str]:
    """Return GET /carbon/v1/{pools,tasks}/{u}/carbon-facts.

    :param keys: "as the SDKs", "as OpenAPI" or "both".
    """
    it = node_seconds * WATTS_PER_NODE / 3600
    pue, reused_share, grams_per_wh, other_pue = 1.03, 0.8, 0.05, 1.5
    total, reused = it * pue, it * reused_share
    footprint, equivalent = total * grams_per_wh, it * other_pue * grams_per_wh
    saved_compute, saved_heat = equivalent - footprint, reused * grams_per_wh
    percent = 100 * (saved_compute + saved_heat) / equivalent if equivalent else 0.0
    facts: dict[str, float | str] = {"PUE": pue, "ERE": 0.23, "ERF": reused_share, "WUE": 0.0}
    facts |= {"pue": pue, "ere": 0.23, "erf": reused_share, "wue": 0.0}
    other = datacenter or "Conventional datacenter"
    for sdk, openapi, value in (
        ("total_consumed_energy_Wh", "totalConsumedEnergyWh", total),
        ("total_energy_it_Wh", "totalEnergyITWh", it),
        ("total_reused_energy_Wh", "totalReuseEnergyWh", reused),
        ("qarnot_carbon_footprint", "carbonFootprintC02Eq", footprint),
        ("equivalent_datacenter_name", "comparisonDataCenterName", other),
        ("equivalent_DC_carbon_footprint", "equivalentDCCarbonFootprintC02Eq", equivalent),
        ("saved_carbon_footprint_compute", "savedCarbonFootprintComputeC02Eq", saved_compute),
        ("saved_carbon_footprint_heat", "savedCarbonFootprintHeatC02Eq", saved_heat),
        (
            "saved_carbon_footprint_compute_heat",
            "savedCarbonFootprintComputeHeatC02Eq",
            saved_compute + saved_heat,
        ),
        ("saved_carbon_footprint_percent", "savedCarbonFootprintPercentage", percent),
    ):
        facts |= dict.fromkeys(
            {"as the SDKs": (sdk,), "as OpenAPI": (openapi,)}.get(keys, (sdk, openapi)), value
        )
    return facts
