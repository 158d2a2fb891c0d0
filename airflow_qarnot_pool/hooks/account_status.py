"""Result of the Test button of the connection form. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Account


def account_status(account: Account, credits: float | None, risks: Sequence[str] = ()) -> tuple[bool, str]:
    """Return ``(usable, sentences)``: the account with its use of quotas, or why it cannot start anything.

    :param credits: remaining euros; None if the account may not see them.
    :param risks: sentences about unsafe settings of the connection.
    """
    usable, sentence = _usable(account, credits)
    return usable, " ".join((sentence, *(f"Warning: {risk}." for risk in risks)))


def _usable(account: Account, credits: float | None) -> tuple[bool, str]:
    user = f"Connected as {account.email or 'an account without e-mail'}"
    quotas = _quotas(account)
    if credits is not None and credits <= 0:
        return (
            False,
            f"{user}, but no credits are left ({credits:.2f} EUR): Qarnot starts nothing. Add credits.",
        )
    if full := [f"{used} of {maximum} {name}" for name, used, maximum in quotas if used >= maximum > 0]:
        return False, (
            f"{user}, but its quota is used up ({', '.join(full)}): nothing more can be created. Finished objects "
            "count too: delete some, wait until others end, or ask Qarnot for more."
        )
    facts = [f"{used} of {maximum} {name} used" for name, used, maximum in quotas]
    if credits is not None:
        facts.append(f"{credits:.2f} EUR of credits left")
    return True, f"{user}. {', '.join(facts) or 'The account reports no quotas'}."


def _quotas(account: Account) -> list[tuple[str, int, int]]:
    """Return name, use and maximum of each quota that the account reports."""
    counts = (
        ("pools", account.pool_count, account.max_pool),
        ("running pools", account.running_pool_count, account.max_running_pool),
        ("Qarnot tasks", account.task_count, account.max_task),
        ("running Qarnot tasks", account.running_task_count, account.max_running_task),
        ("running instances", account.running_instance_count, account.max_instances),
    )
    return [
        (name, used, maximum) for name, used, maximum in counts if used is not None and maximum is not None
    ]
