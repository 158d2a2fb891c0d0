"""Look into the built wheel: what must be in it is, and nothing else."""

from __future__ import annotations

import sys
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = (
    "airflow_qarnot_pool/py.typed",
    "airflow_qarnot_pool/get_provider_info.py",
    "airflow_qarnot_pool/example_dags/qarnot_warm_pool.py",
)
CLASSIFIERS = ("Framework :: Apache Airflow", "Framework :: Apache Airflow :: Provider", "Typing :: Typed")


def problems(wheel: Path) -> list[str]:
    """What is wrong with *wheel*."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = Parser().parsestr(archive.read(next(n for n in names if n.endswith("/METADATA"))).decode())
        entry_points = archive.read(next(n for n in names if n.endswith("/entry_points.txt"))).decode()
    found = [f"{name} is missing" for name in NEEDED if name not in names]
    found += [
        f"{name} does not belong there"
        for name in names
        if not name.startswith("airflow_qarnot_pool") or name.endswith(".pyc")
    ]
    classifiers = metadata.get_all("Classifier") or []
    found += [f"classifier {one!r} is missing" for one in CLASSIFIERS if one not in classifiers]
    if metadata["Requires-Python"] != ">=3.11" or metadata["License-Expression"] != "Apache-2.0":
        found.append(
            f"metadata: Python {metadata['Requires-Python']}, licence {metadata['License-Expression']}"
        )
    if "apache_airflow_provider" not in entry_points:
        found.append("Airflow will not find the provider: no apache_airflow_provider entry point")
    return found


if __name__ == "__main__":
    (built,) = (ROOT / "dist").glob("*.whl")
    wrong = problems(built)
    print(f"{built.name}: {'; '.join(wrong) or 'as it should be'}")
    sys.exit(bool(wrong))
