"""Check the built wheel and sdist: their files, and the metadata that Airflow expects."""

from __future__ import annotations

import importlib
import json
import re
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from email.message import Message
from email.parser import Parser
from importlib.resources import files
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "airflow_qarnot_pool"
NEEDED = (f"{PACKAGE}/py.typed", f"{PACKAGE}/get_provider_info.py", f"{PACKAGE}/probe/assumptions.md")
CLASSIFIERS = (
    "Framework :: Apache Airflow",
    "Framework :: Apache Airflow :: Provider",
    "Typing :: Typed",
    *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)),
)
#: What every Airflow has: the provider adds nothing to an environment.
REQUIREMENTS = {"apache-airflow", "requests", "tenacity", "pendulum"}
#: Files of the sdist, because building, testing and reading must work from it as from the repository.
OF_THE_SDIST = (
    "pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "Makefile",
    "mkdocs.yml", "constraints.txt", "hatch_build.py",
)  # fmt: skip
FOLDERS_OF_THE_SDIST = (PACKAGE, "example_dags", "docs", "tests", "tools", "benchmarks", ".ci", ".github")
#: Labels of an index for the addresses of a project. Airflow shows the first one.
URLS = ("Documentation", "Source Code", "Changelog", "Bug Tracker")
NEVER = re.compile(r"(^|/)(__pycache__|\.venv|\.git|[^/]*\.(pyc|log|db|lock|pem))(/|$)")


def sources(folder: str) -> set[str]:
    """Files below *folder* of the repository, as they are named in an archive."""
    found = (path for path in (ROOT / folder).rglob("*") if path.is_file())
    return {name for path in found if not NEVER.search(name := path.relative_to(ROOT).as_posix())}


def of_the_wheel(wheel: Path) -> Iterator[str]:
    """Yield the problems of *wheel*."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())

        def text(ending: str) -> str:
            return archive.read(next(name for name in names if name.endswith(ending))).decode()

        metadata = Parser().parsestr(text(".dist-info/METADATA"))
        entry_points = text(".dist-info/entry_points.txt")
        version = version_in(text(f"{PACKAGE}/__init__.py"))
        sbom = f"{PACKAGE}-{version}.dist-info/sboms/airflow-qarnot-pool.cdx.json"
        bill = json.loads(archive.read(sbom)) if sbom in names else {}
    examples = {f"{PACKAGE}/{name}" for name in sources("example_dags")}
    wanted = {*NEEDED, *examples, *sources(PACKAGE)}
    yield from (f"{name} is missing" for name in sorted(wanted - names))
    yield from (
        f"{name} does not belong there"
        for name in sorted(names - wanted)
        if not name.startswith(f"{PACKAGE}-{version}.dist-info/")
    )
    yield from of_the_metadata(metadata, version)
    yield from of_the_bill(bill, metadata)
    if (
        f"[apache_airflow_provider]\nprovider_info = {PACKAGE}.get_provider_info:get_provider_info"
        not in entry_points
    ):
        yield "Airflow will not find the provider: no apache_airflow_provider entry point"
    yield from of_the_provider_info(wheel, names)


def of_the_metadata(metadata: Message, version: str) -> Iterator[str]:
    classifiers = metadata.get_all("Classifier") or []
    yield from (f"classifier {one!r} is missing" for one in CLASSIFIERS if one not in classifiers)
    for name, wanted in {
        "Version": version,
        "Requires-Python": ">=3.11",
        "License-Expression": "Apache-2.0",
        "Description-Content-Type": "text/markdown",
    }.items():
        if metadata[name] != wanted:
            yield f"metadata: {name} is {metadata[name]}, not {wanted}"
    urls = dict(one.split(", ", 1) for one in metadata.get_all("Project-URL") or [])
    if urls.keys() != set(URLS):
        yield f"metadata: the labels of Project-URL are {sorted(urls)}, not {sorted(URLS)}"
    if found := re.findall(r"\]\((?!\w+:|#)[^)]*\)", str(metadata.get_payload() or "")):
        yield f"metadata: the description has links that lead nowhere from an index: {found[:3]}"
    required = [one for one in metadata.get_all("Requires-Dist") or [] if "extra ==" not in one]
    if (named := {re.split(r"[^a-z0-9-]", one)[0] for one in required}) != REQUIREMENTS:
        yield f"metadata: it requires {sorted(named)}, not {sorted(REQUIREMENTS)}"


def of_the_bill(bill: dict[str, Any], metadata: Message) -> Iterator[str]:
    """Whether the bill of materials is of this wheel, and names all that the wheel requires."""
    about = bill.get("metadata", {}).get("component", {})
    if (about.get("name"), about.get("version")) != (metadata["Name"], metadata["Version"]):
        yield f"the bill of materials is of {about.get('name')} {about.get('version')}"
    required = {one["name"] for one in bill.get("components", ()) if one["scope"] == "required"}
    if required != REQUIREMENTS:
        yield f"the bill of materials names {sorted(required)}, not {sorted(REQUIREMENTS)}"


def of_the_provider_info(wheel: Path, names: set[str]) -> Iterator[str]:
    """The provider info that is in the wheel, by Airflow's schema, and whether the modules it names exist."""
    import jsonschema

    sys.path.insert(0, str(wheel))
    try:
        module = importlib.import_module(f"{PACKAGE}.get_provider_info")
    finally:
        sys.path.remove(str(wheel))
    if str(wheel) not in str(module.__file__):
        yield f"the provider info was read from {module.__file__}, and not from the wheel"
    info = module.get_provider_info()
    schema = json.loads(files("airflow").joinpath("provider_info.schema.json").read_text())
    validator = jsonschema.Draft7Validator(schema)
    yield from (f"provider info: {error.json_path}: {error.message}" for error in validator.iter_errors(info))
    for named in set(modules(info)):
        path = named.replace(".", "/")
        if not {f"{path}.py", f"{path}/__init__.py"} & names:
            yield f"provider info names {named}, which is not in the wheel"


def modules(info: Any) -> Iterator[str]:
    """Every module or class path of ours in the provider info, as a module."""
    if isinstance(info, dict):
        for value in info.values():
            yield from modules(value)
    elif isinstance(info, list):
        for value in info:
            yield from modules(value)
    elif isinstance(info, str) and re.fullmatch(rf"{PACKAGE}(\.\w+)+", info):
        # A class or a function stands behind its module, and is written module.Class or module:function.
        yield info if is_module(info) else info.rpartition(".")[0]


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def of_the_sdist(sdist: Path, wheel: Path) -> Iterator[str]:
    """Yield the problems of *sdist*."""
    with tarfile.open(sdist) as archive:
        top = sdist.name.removesuffix(".tar.gz")
        names = {one.name.removeprefix(f"{top}/") for one in archive.getmembers() if one.isfile()}
        info = archive.extractfile(f"{top}/PKG-INFO")
        metadata = Parser().parsestr(info.read().decode()) if info else Message()
    wanted = {*OF_THE_SDIST, *(name for folder in FOLDERS_OF_THE_SDIST for name in sources(folder))}
    yield from (f"{name} is missing" for name in sorted(wanted - names))
    yield from (f"{name} does not belong there" for name in sorted(names) if NEVER.search(name))
    version = wheel.name.split("-")[1]
    if metadata["Version"] != version:
        yield f"it is {metadata['Version']}, and the wheel {version}"


def of_the_changelog(version: str) -> Iterator[str]:
    if not re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE):
        yield f"nothing about {version}"


def version_in(source: str) -> str:
    """Return the version from the only place that defines it."""
    found = re.search(r'^__version__ = "([^"]+)"', source, re.MULTILINE)
    return found[1] if found else ""


def main() -> int:
    (wheel,), (sdist,) = (list((ROOT / "dist").glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
    checks: dict[str, Callable[[], Iterable[str]]] = {
        wheel.name: lambda: of_the_wheel(wheel),
        sdist.name: lambda: of_the_sdist(sdist, wheel),
        "CHANGELOG.md": lambda: of_the_changelog(wheel.name.split("-")[1]),
    }
    wrong = {name: list(check()) for name, check in checks.items()}
    for name, problems in wrong.items():
        print(f"{name}: {'; '.join(problems) or 'as it should be'}")
    return int(any(wrong.values()))


if __name__ == "__main__":
    sys.exit(main())
