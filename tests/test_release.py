"""A release: what is built, what a person must still do, and the files for a public host."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import yaml

from tests.conftest import ROOT
from tools import docs_releases, next_airflow, release_check, reproducible
from tools.check_wheel import URLS, of_the_bill

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
COMMIT, OTHER = "a" * 40, "b" * 40
READY = release_check.Facts(
    version="1.2.3",
    urls={label: f"https://docs.qarnot-pool.dev/{label}" for label in URLS},
    changelog="# Changelog\n\n## 1.2.3 (2026-12-01)\n\n- It works.\n\n## 1.2.2 (2026-11-01)\n",
    tags={"v1.2.2": OTHER, "v1.2.3": COMMIT},
    head=COMMIT,
    committed=1_800_000_000,
    changed_files=0,
    dist={
        "airflow_qarnot_pool-1.2.3-py3-none-any.whl": 1_799_999_999,
        "airflow_qarnot_pool-1.2.3.tar.gz": 1_800_000_000,
    },
    site={"index.html": 1_800_000_060.0, "objects.inv": 1_800_000_060.0},
)
#: What is not ready, and the one line that says so.
TO_DO: dict[str, tuple[dict[str, Any], str]] = {
    "an address of RFC 2606": (
        {"urls": {**READY.urls, "Documentation": "https://docs.example.invalid/x"}},
        "Documentation in pyproject.toml is a placeholder, got 'https://docs.example.invalid/x'",
    ),
    "example.com": ({"urls": {**READY.urls, "Changelog": "https://example.com/x"}}, "Changelog in pyproject"),
    "a name to fill in": (
        {"urls": {**READY.urls, "Bug Tracker": "https://a.dev/OWNER/x"}},
        "Bug Tracker in pyproject",
    ),
    "an address that is missing": (
        {"urls": {label: url for label, url in READY.urls.items() if label != "Source Code"}},
        "Source Code in pyproject.toml is a placeholder, got ''",
    ),
    "an address without encryption": (
        {"urls": {**READY.urls, "Changelog": "http://a.dev"}},
        "Changelog in pyproject",
    ),
    "a changelog without a date": (
        {"changelog": "## 1.2.3 (unreleased)\n"},
        "CHANGELOG.md gives 1.2.3 no date, got 'unreleased'",
    ),
    "a changelog of another version": (
        {"changelog": "## 1.2.2 (2026-11-01)\n"},
        "CHANGELOG.md begins with 1.2.2",
    ),
    "an empty changelog": ({"changelog": "# Changelog\n"}, "CHANGELOG.md begins with nothing"),
    "files that are not committed": ({"changed_files": 2}, "2 files differ from the last commit"),
    "no tag": ({"tags": {"v1.2.2": OTHER}}, "The commit has no tag v1.2.3. Run: git tag -a v1.2.3"),
    "a tag of another commit": (
        {"tags": {"v1.2.3": OTHER}},
        "The tag v1.2.3 is on another commit (bbbbbbbbbbbb)",
    ),
    "no build": ({"dist": {}}, "dist/ is no build of this commit"),
    "a build of another version too": (
        {"dist": {**READY.dist, "x-1.2.2.whl": 0}},
        "dist/ is no build of this commit",
    ),
    "a build of another commit": (
        {"dist": dict.fromkeys(READY.dist, 1_700_000_000)},
        "dist/ is no build of this commit",
    ),
    "no site": ({"site": {}}, "build/site/1.2.3 is no build of this commit. Run: make docs VERSION=1.2.3"),
    "a site of an earlier commit": (
        {"site": dict.fromkeys(READY.site, 1.0)},
        "build/site/1.2.3 is no build of this commit",
    ),
}


def test_nothing_is_left_to_do() -> None:
    assert list(release_check.todo(READY)) == []
    candidate = READY.changelog.replace("1.2.3", "1.2.3rc1")
    dist = {name.replace("1.2.3", "1.2.3rc1"): time for name, time in READY.dist.items()}
    facts = replace(READY, version="1.2.3rc1", changelog=candidate, tags={"v1.2.3rc1": COMMIT}, dist=dist)
    assert list(release_check.todo(facts)) == []


@pytest.mark.parametrize(("changes", "line"), TO_DO.values(), ids=TO_DO.keys())
def test_what_is_left_to_do_is_named_alone(changes: dict[str, Any], line: str) -> None:
    (found,) = release_check.todo(replace(READY, **changes))
    assert line in found


def test_a_version_that_is_none_is_named() -> None:
    assert "__version__ is no version to release, got '1.2.dev0'" in next(
        iter(release_check.todo(replace(READY, version="1.2.dev0")))
    )


def test_the_facts_are_read_from_the_repository(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(
            ["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    files = {
        "airflow_qarnot_pool/__init__.py": '__version__ = "1.2.3"\n',
        "pyproject.toml": '[project.urls]\nDocumentation = "https://a.dev"\n',
        "CHANGELOG.md": "## 1.2.3\n",
        ".gitignore": "dist/\nbuild/\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "First")
    git("tag", "light")
    git("tag", "-am", "Heavy", "heavy")
    (tmp_path / "dist").mkdir()
    with zipfile.ZipFile(tmp_path / "dist" / "one.whl", "w") as wheel:
        wheel.writestr(zipfile.ZipInfo("a", (2026, 12, 1, 10, 0, 2)), "")
    (tmp_path / "new.txt").touch()
    found = release_check.facts(tmp_path)
    head = git("rev-parse", "HEAD")
    assert (found.version, found.head, found.changed_files) == ("1.2.3", head, 1)
    assert found.tags == {"light": head, "heavy": head}
    assert found.urls == {"Documentation": "https://a.dev"}
    assert found.dist == {"one.whl": 1_796_119_202}
    assert (found.site, found.changelog) == ({}, "## 1.2.3\n")


def test_the_addresses_of_the_project_are_in_one_place() -> None:
    hosts = {
        re.sub(r"^https://([^/]+).*", r"\1", url) for url in release_check.project(ROOT)["urls"].values()
    }
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "mkdocs.yml")]
    for folder in ("docs", ".github", "airflow_qarnot_pool"):
        pages += [page for page in (ROOT / folder).rglob("*.*") if page.suffix in (".md", ".yml", ".py")]
    assert [page.name for page in pages for host in hosts if host in page.read_text()] == []


def test_the_entry_of_the_ecosystem_page() -> None:
    table = release_check.project(ROOT)
    url = table["urls"]["Source Code"]
    assert release_check.ecosystem(table).startswith(
        f"[airflow-qarnot-pool]({url}) - Apache Airflow provider that "
    )


# --- The build


@pytest.fixture(scope="module")
def hooks() -> Any:
    """``hatch_build.py``, whose base classes come with the builder alone."""
    stub = ModuleType("stub")
    vars(stub).update(BuildHookInterface=object, MetadataHookInterface=object)
    names = ("hatchling", "hatchling.builders", "hatchling.builders.hooks", "hatchling.builders.hooks.plugin")
    names += ("hatchling.builders.hooks.plugin.interface", "hatchling.metadata", "hatchling.metadata.plugin")
    names += ("hatchling.metadata.plugin.interface",)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, dict.fromkeys(names, stub)):
        spec.loader.exec_module(module)
    return module


def test_the_bill_of_materials_names_the_wheel_and_what_it_requires(hooks: Any) -> None:
    required = ["apache-airflow>=3.1", "requests>=2.31", "tenacity>=8.2.3", "pendulum>=3.0"]
    optional = {"local": ["moto[s3,server]>=5.1"], "storage": ["boto3>=1.34"]}
    urls = {label: f"https://a.dev/{label}" for label in URLS}
    bill = hooks.bill_of_materials(
        "airflow-qarnot-pool", "1.2.3", "About.", urls, required, optional, "1800000000"
    )
    metadata = {"Name": "airflow-qarnot-pool", "Version": "1.2.3"}
    assert list(of_the_bill(bill, metadata)) == []  # type: ignore[arg-type]
    assert list(of_the_bill({}, metadata)) != []  # type: ignore[arg-type]
    assert bill["metadata"]["timestamp"] == "2027-01-15T08:00:00Z"
    moto = next(one for one in bill["components"] if one["name"] == "moto")
    assert (moto["scope"], moto["purl"]) == ("optional", "pkg:pypi/moto")
    assert {"name": "python:requirement", "value": "moto[s3,server]>=5.1"} in moto["properties"]
    assert {one["ref"] for one in bill["dependencies"]} == {"pkg:pypi/airflow-qarnot-pool@1.2.3"}
    assert "timestamp" not in hooks.bill_of_materials("a", "1", "", urls, required, {}, None)["metadata"]


def test_an_index_gets_a_readme_whose_links_lead_somewhere(hooks: Any) -> None:
    text = "[a](docs/a.md#b) ![c](docs/c.png) [d](https://d.dev) [e](#f) `x[0](y)`"
    whole = hooks.with_whole_links(text, "https://s.dev/p", "1.2.3")
    assert whole.startswith(
        "[a](https://s.dev/p/blob/v1.2.3/docs/a.md#b) ![c](https://s.dev/p/blob/v1.2.3/docs/c.png)"
    )
    assert "[d](https://d.dev) [e](#f)" in whole


def test_a_second_build_that_differs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, day in (("one", 1), ("other", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.tar.gz").write_bytes(b"same")
        with zipfile.ZipFile(tmp_path / folder / "a.whl", "w") as wheel:
            wheel.writestr(zipfile.ZipInfo("same.py"), "")
            wheel.writestr(zipfile.ZipInfo("dated.py", (2026, 1, day, 0, 0, 0)), "")
    (tmp_path / "one" / "only.whl").touch()
    found = list(reproducible.differences(tmp_path / "one", tmp_path / "other"))
    assert found == ["a.whl differs in dated.py", f"only.whl is in {tmp_path / 'one'} only"]
    assert capsys.readouterr().out.startswith("same.tar.gz: the same bytes when built again, sha256 ")


BUILDER = """
import os, sys
from pathlib import Path
folder = Path(sys.argv[-1])
assert Path(os.environ["PYTHONPATH"]).samefile(".")
if Path("page").read_text() == "broken":
    sys.exit(1)
folder.mkdir(parents=True)
(folder / "index.html").write_text(Path("page").read_text())
"""


def test_the_pages_of_each_release_come_from_its_tag(tmp_path: Path) -> None:
    repository, site = tmp_path / "repository", tmp_path / "site"

    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *who, *words], cwd=repository, check=True, capture_output=True)

    repository.mkdir()
    git("init", "-q")
    for tag in ("v0.1.0", "v0.2.0", "v0.3.0", "v0.4.0rc1", "elsewhere"):
        (repository / "page").write_text("broken" if tag == "v0.3.0" else tag)
        git("add", "-A")
        git("commit", "-qm", tag)
        git("tag", tag)
    (site / "0.2.0").mkdir(parents=True)
    (site / "0.2.0" / "index.html").write_text("built before")
    (tmp_path / "builder.py").write_text(BUILDER)
    builder = (sys.executable, str(tmp_path / "builder.py"))
    assert docs_releases.build_missing(repository, site, builder) == ["0.3.0"]
    pages = {page.parent.name: page.read_text() for page in site.glob("*/index.html")}
    assert pages == {"0.1.0": "v0.1.0", "0.2.0": "built before"}
    assert '"0.2.0": ["index.html"], "0.1.0"' in (site / "versions.js").read_text()


# --- The next Airflow


def test_a_pre_release_is_asked_for_by_name() -> None:
    assert next_airflow.requirements("9.9.0") == ["apache-airflow==9.9.0"]
    wanted = next_airflow.requirements("9.9.0b2")
    assert wanted[:2] == ["apache-airflow==9.9.0b2", "apache-airflow-core==9.9.0b2"]
    assert next_airflow.is_beyond("9.9.0b2")
    assert not next_airflow.is_beyond(max(next_airflow.RELEASES))
    assert not next_airflow.is_beyond("3.3.2rc1")


def _deprecations() -> set[type[Warning]]:
    import airflow.exceptions
    import airflow.sdk.exceptions
    import airflow.utils.deprecation_tools as tools

    modules = (airflow.exceptions, airflow.sdk.exceptions, tools)
    found = [one for module in modules for one in vars(module).values() if isinstance(one, type)]
    return {one for one in found if issubclass(one, Warning)} | {DeprecationWarning}


@pytest.mark.parametrize("kind", sorted(_deprecations(), key=str), ids=lambda one: one.__name__)
def test_a_deprecated_call_of_the_package_is_an_error_in_every_test(kind: type[Warning]) -> None:
    with pytest.raises(kind):
        warnings.warn_explicit("old", kind, "a.py", 1, module="airflow_qarnot_pool.operators.task")
    warnings.warn_explicit("old", DeprecationWarning, "b.py", 1, module="of_another_package")


# --- A public host


def _steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in yaml.safe_load(workflow.read_text())["jobs"].values() for step in job["steps"]]


def _targets(command: str) -> set[str]:
    return set(re.findall(r"\bmake ([\w.-]+)", command))


def test_the_workflows_call_targets_of_the_makefile() -> None:
    makefile = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.M))
    called = {
        target
        for workflow in WORKFLOWS
        for step in _steps(workflow)
        for target in _targets(step.get("run", ""))
    }
    assert called >= {"next", "check", "release-check", "upload"}
    assert called <= makefile


def test_the_workflow_of_a_change_calls_what_ci_run_calls() -> None:
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["make"]
    commands = "\n".join(
        line
        for line in (ROOT / ".ci" / "run").read_text().splitlines()
        if not line.strip().startswith(("#", "echo")) and "CI_DISTRIBUTED" not in line
    )
    always = _targets(commands) - {"setup", "distributed"}
    assert set(job["strategy"]["matrix"]["target"]) == always


def test_actions_are_pinned_by_version() -> None:
    used = [step["uses"] for workflow in WORKFLOWS for step in _steps(workflow) if "uses" in step]
    assert used
    assert [one for one in used if not re.fullmatch(r"[\w-]+/[\w-]+@v\d+(\.\d+)*", one)] == []


def test_the_forms_of_issues_have_what_the_host_wants() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    for form in forms:
        text = yaml.safe_load(form.read_text())
        if form.name != "config.yml":
            assert {"name", "description", "body"} <= text.keys()
            fields = [one for one in text["body"] if one["type"] != "markdown"]
            assert all(one["id"] and one["attributes"]["label"] for one in fields)
    assert len(forms) > 2
