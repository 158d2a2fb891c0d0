"""An account with storage, wheels in a folder in place of an index, and nodes whose network is cut."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.decorators.conftest import server
from tests.operators.conftest import client, qarnot

__all__ = ["HERE", "client", "qarnot", "server", "wheels"]

#: The version of Python that the nodes of the tests have for sure.
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"

Wheels = Callable[..., list[str]]


@pytest.fixture
def wheels(tmp_path: Path) -> Wheels:
    """Make a wheel of one module, and return the requirements that find it without an index."""
    folder = tmp_path / "wheels"
    folder.mkdir()

    def make(
        name: str, version: str, source: str, tag: str = "py3-none-any", requires: str = ""
    ) -> list[str]:
        info = f"{name}-{version}.dist-info"
        more = f"Requires-Dist: {requires}\n" if requires else ""
        with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as file:
            file.writestr(f"{name}.py", source)
            file.writestr(
                f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more}"
            )
            file.writestr(
                f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: {tag}\n"
            )
            file.writestr(f"{info}/RECORD", "")
        return ["--no-index", f"--find-links {folder}", f"{name}=={version}"]

    return make
