from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_qarnot_pool.local import LocalQarnot

pytest.register_assert_rewrite("tests.crash.matrix")

from tests.crash.matrix import Matrix  # noqa: E402


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adopt pools without a pause. A dead process ends nothing."""
    monkeypatch.setattr("airflow_qarnot_pool.ownership.claim.ENDED_WITHIN", 0.0)


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, LocalQarnot]]:
    """A local Qarnot that enforces unique shortnames (unless READINGS says otherwise), and one that does not.

    Each file has its own, because many tests list all objects.
    """
    options = {"boot_seconds": 0.05, "close_seconds": 0.02}
    with (
        LocalQarnot(**options) as enforce,  # type: ignore[arg-type]
        LocalQarnot(shortnames="free", **options) as free,  # type: ignore[arg-type]
    ):
        yield {"enforce": enforce, "free": free}


@pytest.fixture(scope="module")
def matrix(servers: dict[str, LocalQarnot], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Matrix(servers, tmp_path_factory.mktemp("effects"), monkeypatch)
