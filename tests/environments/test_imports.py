"""Modules that do not exist, and imports of modules that do not reach the node, are refused at parse."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.environments.specification import QarnotEnvironment, missing_imports

HEAD = """
from airflow.sdk import DAG, task
from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

SHIPS = {"modules": ["helpers", "sub/other.py"]}

with DAG("imports", schedule=None):
    @task.qarnot
    def uses():
        import json, pandas
        from helpers.inner import double
        try:
            import optional_module
        except ImportError:
            pass
        return double(1)

    @task.qarnot
    def maps(x, y=0):
        from helpers.inner import double
        return double(x)

"""
REFUSED = {
    "alone": "uses()",
    "in a group": """
    with QarnotPoolGroup("g", instance_count=1):
        uses()
""",
    "in a group with another module": """
    with QarnotPoolGroup("g", instance_count=1, environment={"modules": ["sub/other.py"]}):
        uses()
""",
    "on the pool of an operator": """
    uses.override(qarnot_pool=QarnotCreatePoolOperator(task_id="open", instance_count=1).output)()
""",
    "in another image of Python": """uses.override(image="python:3.13-slim")()""",
}
ACCEPTED = {
    "with an environment": "uses.override(environment=SHIPS)()",
    "in a group that ships it": """
    with QarnotPoolGroup("g", instance_count=1, environment=SHIPS):
        uses()
""",
    "on the pool of an operator that ships it": """
    opened = QarnotCreatePoolOperator(task_id="open", instance_count=1, environment=SHIPS)
    uses.override(qarnot_pool=opened.output)()
""",
    "on a pool that is not known": """uses.override(qarnot_pool="{{ params.pool }}")()""",
    "in another image": """uses.override(image="registry.example/team:1")()""",
    "as a package": """
    with QarnotPoolGroup("g", instance_count=1, environment={"requirements": ["Helpers==1.2"]}):
        uses()
""",
    "as a wheel": """
    with QarnotPoolGroup("g", environment={"requirements": ["/opt/of-us/helpers-1.2-py3-none-any.whl"]}):
        uses()
""",
    "with files of a bucket": """uses.override(resource_buckets=["code"])()""",
    "with files of a bucket of its group": """
    with QarnotPoolGroup("g", instance_count=1, pool_spec={"resourceBuckets": ["code"]}):
        uses()
""",
}


MAPPED = {
    "one call": None,
    "expand": ".expand(x=[1, 2])",
    "partial and expand": ".partial(y=1).expand(x=[1, 2])",
    "expand_kwargs": ".expand_kwargs([{'x': 1}, {'x': 2}])",
}


#: Source of a module that is shipped, the modules of the environment, and whether one is missing.
IMPORTS_OF_SHIPPED: dict[str, tuple[str, list[str], bool]] = {
    "import": ("import rates", ["helpers"], True),
    "import from": ("from rates import x", ["helpers"], True),
    "shipped, too": ("import rates", ["helpers", "rates"], False),
    "in a function": ("def late():\n    import rates", ["helpers"], False),
    "of an installed module": ("import json, no_such_module", ["helpers"], False),
}


@pytest.mark.parametrize(
    ("source", "modules", "is_missing"), IMPORTS_OF_SHIPPED.values(), ids=IMPORTS_OF_SHIPPED
)
def test_what_a_shipped_module_imports_must_be_shipped_too(
    tmp_path: Path, source: str, modules: list[str], is_missing: bool
) -> None:
    (tmp_path / "rates.py").write_text("")
    text = f"""
    with QarnotPoolGroup("g", instance_count=1, environment={{"modules": {modules!r}}}):
        uses()
"""
    if is_missing:
        with pytest.raises(
            QarnotInvalidSpecError, match=r"brings helpers/__init__\.py, which imports 'rates'.* Add 'rates'"
        ):
            parse(tmp_path, text, helpers=source)
    else:
        parse(tmp_path, text, helpers=source)


def test_a_link_to_nothing_is_no_module(tmp_path: Path) -> None:
    """Editors leave such locks beside a file that they edit."""
    package = tmp_path / "lib"
    package.mkdir()
    (package / "__init__.py").write_text("import rates")
    (package / ".#__init__.py").symlink_to("nothing")
    (tmp_path / "rates.py").write_text("")
    found = list(missing_imports(QarnotEnvironment(modules=["lib"]), tmp_path))
    assert found == [("lib/__init__.py", "rates")]


def parse(folder: Path, text: str, mapping: str | None = None, helpers: str = "") -> Any:
    if mapping is not None:
        text = re.sub(r"uses(\.override\(.*\))?\(\)", lambda match: f"maps{match[1] or ''}{mapping}", text)
    (folder / "sub").mkdir()
    (folder / "sub" / "other.py").write_text("")
    (folder / "helpers").mkdir()
    (folder / "helpers" / "__init__.py").write_text(helpers)
    (folder / "optional_module.py").write_text("")
    (folder / "json.py").write_text("")
    file = folder / "imports_dag.py"
    body = text.strip("\n")
    file.write_text(HEAD + (body if body.startswith(" ") else f"    {body}") + "\n")
    spec = importlib.util.spec_from_file_location("imports_dag", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["imports_dag"] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["imports_dag"]


@pytest.mark.parametrize("mapping", MAPPED.values(), ids=MAPPED)
@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_an_import_that_is_not_shipped_is_refused_by_name(
    tmp_path: Path, text: str, mapping: str | None
) -> None:
    problem = r"(uses|maps)\(\) imports 'helpers'.*modules=\['helpers'\]"
    with pytest.raises(QarnotInvalidSpecError, match=problem):
        parse(tmp_path, text, mapping)


@pytest.mark.parametrize("mapping", MAPPED.values(), ids=MAPPED)
@pytest.mark.parametrize("text", ACCEPTED.values(), ids=ACCEPTED)
def test_an_import_that_may_reach_the_node_is_accepted(
    tmp_path: Path, text: str, mapping: str | None
) -> None:
    parse(tmp_path, text, mapping)


PLACES = {
    "a group": """
    with QarnotPoolGroup("g", instance_count=1, environment=WRONG):
        pass
""",
    "an operator": """QarnotCreatePoolOperator(task_id="open", instance_count=1, environment=WRONG)""",
    "a function": """task.qarnot(environment=WRONG)(lone)()""",
    "a mapped function": """task.qarnot(environment=WRONG)(lone).expand(x=[1])""",
    "an override": """task.qarnot(lone).override(environment=WRONG).expand_kwargs([{"x": 1}])""",
}
MISSING = {
    "requirements": ("'requirements': 'missing.txt'", r"the file \S+/missing\.txt cannot be read"),
    "a file": ("'modules': ['sub/none.py']", r"in \S+ nor installed here, got 'sub/none.py'"),
    "a module": ("'modules': ['helpers', 'no_such']", r"in \S+ nor installed here, got 'no_such'"),
    "another file": ("'requirements': ['-r more.txt']", "refers to another file or folder"),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize(("wrong", "problem"), MISSING.values(), ids=MISSING)
def test_files_that_do_not_exist_are_refused_when_the_dag_is_parsed(
    tmp_path: Path, place: str, wrong: str, problem: str
) -> None:
    head = f"    WRONG = {{{wrong}}}\n    def lone(x=0): return x\n"
    with pytest.raises(QarnotInvalidSpecError, match=problem) as caught:
        parse(tmp_path, head + ("" if place.startswith("\n") else "    ") + place.strip("\n"))
    assert str(tmp_path) in str(caught.value) or "another file" in problem


def test_modules_are_beside_the_dag_file_if_another_file_makes_the_dag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow sets the file of such a DAG after it is parsed."""
    factory = tmp_path / "elsewhere"
    factory.mkdir()
    (factory / "qarnot_factory.py").write_text(
        "from airflow.sdk import DAG\n\ndef make(): return DAG('made')\n"
    )
    monkeypatch.syspath_prepend(factory)
    text = """
    with __import__("qarnot_factory").make():
        with QarnotPoolGroup("g", environment=SHIPS):
            uses()
"""
    parse(tmp_path, text)
