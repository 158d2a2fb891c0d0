from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_qarnot_pool.local import LocalQarnot


@pytest.fixture(scope="session")
def servers() -> Iterator[dict[str, LocalQarnot]]:
    """A local Qarnot that enforces unique shortnames, and one that does not."""
    options = {"boot_seconds": 0.05, "close_seconds": 0.02}
    with (
        LocalQarnot(shortnames="enforce", **options) as enforce,  # type: ignore[arg-type]
        LocalQarnot(shortnames="free", **options) as free,  # type: ignore[arg-type]
    ):
        yield {"enforce": enforce, "free": free}
