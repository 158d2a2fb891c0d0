"""The site builds without a warning, and the reference is complete."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

from airflow_qarnot_pool import exceptions
from airflow_qarnot_pool.get_provider_info import get_provider_info
from tests.conftest import ROOT
from tools import docs_site

REFERENCE = (ROOT / "docs" / "reference.md").read_text()


def test_the_site_builds_and_loads_nothing_from_other_servers(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the site is built with the dev extra")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 10
    for page in [*pages, *tmp_path.rglob("*.css")]:
        loaded = r"""<(?:script|link|img|iframe)\b[^>]*(?:src|href)=["'](https?:)?//|url\(["']?https?:"""
        assert not re.search(loaded, page.read_text()), page.name
    assert "::: " not in "".join(page.read_text() for page in pages)


@pytest.mark.parametrize("kind", ["operators", "sensors"])
def test_every_operator_is_in_the_reference(kind: str) -> None:
    for entry in get_provider_info()[kind]:
        for module in map(importlib.import_module, entry["python-modules"]):
            for name, thing in vars(module).items():
                public = isinstance(thing, type) and thing.__module__ == module.__name__ and name[0] != "_"
                assert not public or f"::: {module.__name__}.{name}\n" in REFERENCE, name


def test_the_reference_can_be_read_without_the_site() -> None:
    """Each entry has a row at the top of the page, with a link to the file that has its docstring."""
    rows = {
        names: (file, module)
        for names, file, module in re.findall(
            r"^\| \[([`\w, ]+)\]\(\.\./([\w/]+\.py)\) \| `([\w.]+)` \|", REFERENCE, re.M
        )
    }
    entries = re.findall(r"^::: ((?:\w+\.)+)(\w+)$", REFERENCE, re.M)
    assert {f"`{name}`" for _, name in entries} <= rows.keys()
    for names, (file, module) in rows.items():
        for name in re.findall(r"\w+", names):
            thing = getattr(importlib.import_module(module), name)
            assert ROOT / file == Path(inspect.getfile(thing)), name


def test_a_parameter_without_documentation_is_an_error() -> None:
    class Silent:
        """Describe the class and no parameter."""

        def __init__(self, *, volume: int) -> None: ...

    with pytest.raises(docs_site.Undocumented, match="volume without :param:"):
        docs_site.entry(Silent)


def test_docstrings_become_markdown() -> None:
    text = "Of :class:`~a.b.C` and ``x | y``.\n\n.. code-block:: python\n\n    f(1)\n\nParameters besides these: more."
    assert docs_site.markdown(text) == "Of `C` and `x | y`.\n\n```python\nf(1)\n```"


def test_every_error_is_explained() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    assert set(re.findall(r"^\| `(Qarnot\w*Error)` \|", page, re.M)) == set(exceptions.__all__)
