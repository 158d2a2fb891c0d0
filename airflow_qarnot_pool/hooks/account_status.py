"""What the Test button of the connection form says of an account. A pure function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Account


def account_status(account: Account, credits: float | None, risks: Sequence[str] = ()) -> tuple[bool, str]:
    """Return ``(usable, sentences)``: the account and its remaining quota, or why it cannot start anything.

    :param credits: remaining euros; None if the account may not see them.
    :param risks: what makes the connection unsafe, in sentences.
    """
    usable, sentence = _usable(account, credits)
    return usable, " ".join((sentence, *(f"Warning: {risk}." for risk in risks)))


def _usable(account: Account, credits: float | None) -> tuple[bool, str]:
    who = f"Connected as {account.email or 'an account without e-mail'}"
    counts = (
        ("pools", account.pool_count, account.max_pool),
        ("running pools", account.running_pool_count, account.max_running_pool),
        ("Qarnot tasks", account.task_count, account.max_task),
        ("running Qarnot tasks", account.running_task_count, account.max_running_task),
        ("running instances", account.running_instance_count, account.max_instances),
    )
    limits = [(what, used, most) for what, used, most in counts if used is not None and most is not None]
    full = [f"{used} of {most} {what}" for what, used, most in limits if used >= most > 0]
    if credits is not None and credits <= 0:
        return (
            False,
            f"{who}, but no credits are left ({credits:.2f} EUR): Qarnot starts nothing. Add credits.",
        )
    if full:
        return False, (
            f"{who}, but its quota is used up ({', '.join(full)}): nothing more can be created. Finished objects "
            "count too: delete some, wait until others end, or ask Qarnot for more."
        )
    left = [f"{used} of {most} {what} used" for what, used, most in limits]
    if credits is not None:
        left.append(f"{credits:.2f} EUR of credits left")
    return True, f"{who}. {', '.join(left) or 'It tells no quotas'}."
