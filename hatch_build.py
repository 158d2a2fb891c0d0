"""Hooks of the build (hatchling): the README with whole addresses, and a bill of materials in the wheel.

Both depend on files of the repository and on ``SOURCE_DATE_EPOCH`` only, so the same commit gives the same bytes.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

#: Name of the bill of materials in ``.dist-info/sboms/`` (PEP 770).
SBOM = "airflow-qarnot-pool.cdx.json"
_RELATIVE_LINK = re.compile(r"\]\((?!\w+:|#|/)([^)\s]+)\)")


def with_whole_links(readme: str, source: str, version: str) -> str:
    """Return *readme* with its relative links led to the files of this version, because an index has only this page."""
    return _RELATIVE_LINK.sub(rf"]({source}/blob/v{version}/\1)", readme)


def bill_of_materials(
    name: str,
    version: str,
    description: str,
    urls: Mapping[str, str],
    required: Sequence[str],
    optional: Mapping[str, Sequence[str]],
    epoch: str | None,
) -> dict[str, Any]:
    """Return the bill of materials of the wheel, as CycloneDX 1.6.

    The wheel contains no code of others. Its components are the requirements, without a version, because the
    installer chooses that.

    :param required: requirements of the package, such as ``requests>=2.31``.
    :param optional: requirements of each extra.
    :param epoch: seconds since 1970 of the commit, if they are known.
    """
    package = f"pkg:pypi/{name}@{version}"
    extras = [(one, extra) for extra, ones in optional.items() for one in ones]
    components = {}
    for requirement, extra in [*((one, "") for one in required), *extras]:
        component = _component(requirement, extra)
        components.setdefault(component["bom-ref"], component)
    about: dict[str, Any] = {
        "lifecycles": [{"phase": "build"}],
        "component": {
            "type": "library",
            "bom-ref": package,
            "name": name,
            "version": version,
            "description": description,
            "licenses": [{"license": {"id": "Apache-2.0"}}],
            "purl": package,
            "externalReferences": [
                {"type": kind, "url": urls[label]}
                for kind, label in (
                    ("documentation", "Documentation"),
                    ("vcs", "Source Code"),
                    ("issue-tracker", "Bug Tracker"),
                    ("release-notes", "Changelog"),
                )
            ],
        },
    }
    if epoch is not None:
        about["timestamp"] = f"{datetime.fromtimestamp(int(epoch), UTC):%Y-%m-%dT%H:%M:%SZ}"
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": about,
        "components": list(components.values()),
        "dependencies": [{"ref": package, "dependsOn": list(components)}],
    }


def _component(requirement: str, extra: str) -> dict[str, Any]:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None, requirement
    name = re.sub(r"[-_.]+", "-", found[0]).lower()
    noted = {"python:requirement": requirement, **({"python:extra": extra} if extra else {})}
    return {
        "type": "library",
        "bom-ref": f"pkg:pypi/{name}",
        "name": name,
        "scope": "optional" if extra else "required",
        "purl": f"pkg:pypi/{name}",
        "properties": [{"name": key, "value": value} for key, value in noted.items()],
    }


class ReadmeHook(MetadataHookInterface):
    """Sets the long description."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the README."""
        root = Path(self.root)
        found = re.search(
            r'^__version__ = "(.+)"', (root / "airflow_qarnot_pool/__init__.py").read_text(), re.MULTILINE
        )
        assert found is not None
        text = (root / "README.md").read_text()
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": with_whole_links(text, metadata["urls"]["Source Code"], found[1]),
        }


class SbomHook(BuildHookInterface):
    """Adds the bill of materials to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write it to a temporary folder, which the builder reads before :meth:`finalize`."""
        self._folder = tempfile.TemporaryDirectory(prefix="sbom-")
        core = self.metadata.core
        bill = bill_of_materials(
            core.name,
            self.metadata.version,
            core.description,
            core.urls,
            core.dependencies,
            {extra: core.optional_dependencies[extra] for extra in self.config["extras"]},
            os.environ.get("SOURCE_DATE_EPOCH"),
        )
        path = Path(self._folder.name) / SBOM
        path.write_text(json.dumps(bill, indent=2) + "\n", encoding="utf-8")
        build_data["sbom_files"].append(str(path))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the temporary folder."""
        self._folder.cleanup()
