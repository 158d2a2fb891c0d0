"""An image for nodes with the same versions as this Airflow. Pure, except for :func:`installed`."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

#: Distribution of this package.
OWN = "airflow-qarnot-pool"
#: Entry points by which Airflow finds providers.
_GROUP = "apache_airflow_provider"
_CONSTRAINTS = (
    "https://raw.githubusercontent.com/apache/airflow/constraints-{airflow}/constraints-{python}.txt"
)
_NAME = re.compile(r"[-_.]+")


@dataclass(frozen=True, kw_only=True)
class Installed:
    """Versions of a Python, its Airflow and its providers.

    :param python: such as ``3.12``.
    :param packages: version of each distribution by its canonical name: Airflow and its providers, or all.
    :param local: distributions that no index has, because they were installed from a folder or an address.
    """

    python: str
    packages: Mapping[str, str] = field(default_factory=dict)
    local: Sequence[str] = ()

    @property
    def airflow(self) -> str:
        """The version of Airflow."""
        return self.packages.get("apache-airflow-core") or self.packages.get("apache-airflow", "")

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        return {"python": self.python, "packages": dict(self.packages), "local": list(self.local)}


def canonical(name: str) -> str:
    """Return the canonical form of the name of a distribution."""
    return _NAME.sub("-", name).lower()


def installed(*, freeze: bool = False) -> Installed:
    """Return the versions of this interpreter.

    :param freeze: whether to return every distribution.
    """
    packages, local = {}, []
    for distribution in metadata.distributions():
        name = canonical(str(distribution.metadata["Name"] or ""))
        is_provider = any(point.group == _GROUP for point in distribution.entry_points)
        if not name or name in packages:
            continue
        if (
            freeze
            or is_provider
            or name in ("apache-airflow", "apache-airflow-core", "apache-airflow-task-sdk")
        ):
            packages[name] = distribution.version
            if distribution.read_text("direct_url.json"):
                local.append(name)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Installed(python=version, packages=dict(sorted(packages.items())), local=sorted(local))


def dockerfile(here: Installed, requirements: str | None = None) -> str:
    """Return a Dockerfile for nodes. They get the options of Airflow with each task.

    :param here: versions of this machine.
    :param requirements: name of a requirements file beside the Dockerfile, with what DAGs import.
    """
    own = [name for name in here.local if name in here.packages]
    pins = [f"{name}=={version}" for name, version in here.packages.items() if name not in _IN_BASE]
    # boto3 is for DAG bundles and logs in buckets.
    pins = [pin.replace(f"{OWN}==", f"{OWN}[storage]==") for pin in pins]
    lines = [
        "# Nodes of QarnotExecutor. The same Airflow, Python and providers as where this was printed.",
        f"FROM apache/airflow:slim-{here.airflow}-python{here.python}",
    ]
    if own:
        lines += [
            f"# Not from an index: {', '.join(own)}. Put their wheels into the folder wheels, beside this file:",
            "# pip wheel --no-deps --wheel-dir wheels SOURCE-FOLDER",
            "COPY wheels wheels",
        ]
    if requirements:
        lines += [f"COPY {requirements} requirements.txt"]
    constraints = _CONSTRAINTS.format(airflow=here.airflow, python=here.python)
    options = ["--no-cache-dir", *(["--find-links wheels"] if own else [])]
    last = ["-r requirements.txt"] if requirements else []
    words = [*options, *(f'"{pin}"' for pin in pins), *last]
    lines += [
        f"# If pip needs to choose further versions, add: --constraint {constraints}",
        "RUN pip install \\\n    " + " \\\n    ".join(words),
        "# No process but the first one may keep the token of a task in its environment.",
        "ENTRYPOINT []",
    ]
    return "\n".join(lines) + "\n"


#: Distributions that the base image has in the right version.
_IN_BASE = ("apache-airflow", "apache-airflow-core", "apache-airflow-task-sdk")


def differences(here: Installed, there: Installed) -> list[str]:
    """Return a sentence for each version that a node has, and that is not the one of this machine."""
    sentences = []
    if there.python != here.python:
        sentences.append(
            f"The image has Python {there.python}, and this machine {here.python}. Tasks that exchange pickled objects "
            "fail."
        )
    for name, version in here.packages.items():
        other = there.packages.get(name)
        if other is None:
            sentences.append(f"The image lacks {name}, which this machine has in version {version}.")
        elif other != version:
            sentences.append(f"The image has {name} {other}, and this machine {version}.")
    return sentences
