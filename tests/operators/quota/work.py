"""Commands that note that they ran, and the operators that run them."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator


def counting(tmp_path: Path, name: Any) -> str:
    """A command that notes that it ran."""
    return f"sh -c 'echo {name} >> {tmp_path}/ran'"


def ran(tmp_path: Path) -> Counter[str]:
    """How often each command ran."""
    return Counter((tmp_path / "ran").read_text().split())


def once(*names: Any) -> Counter[str]:
    return Counter(map(str, names))


def single(pool: str, command: str, **kwargs: Any) -> QarnotRunTaskOperator:
    return QarnotRunTaskOperator(
        task_id="work",
        qarnot_pool=pool,
        command=command,
        retries=2,
        wait_for_quota=timedelta(minutes=10),
        **kwargs,
    )


def many(pool: str, commands: list[str], **kwargs: Any) -> QarnotRunTasksOperator:
    return QarnotRunTasksOperator(
        task_id="many",
        qarnot_pool=pool,
        commands=commands,
        retries=2,
        wait_for_quota=timedelta(minutes=10),
        **kwargs,
    )
