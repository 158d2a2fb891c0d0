"""A hook of MkDocs: ``objects.inv`` in the site, so that other projects can link to its entries (Sphinx intersphinx).

It lists the pages, and each entry of the reference: a heading with the name, and below it the line that imports it. An
entry has two names if the page imports it from another module than the one that defines it.
"""

from __future__ import annotations

import importlib
import inspect
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

PROJECT = "airflow-qarnot-pool"
_ENTRY = re.compile(
    r'<h\d id="(?P<anchor>[^"]+)">(?P<name>\w+)(?:<a [^>]*>[^<]*</a>)?</h\d>\s*'
    r"<p><code>from (?P<module>[\w.]+) import (?P=name)</code>"
)


class Item(NamedTuple):
    """One line of an inventory."""

    name: str
    role: str
    uri: str
    title: str = "-"


_DIRECTIVE = re.compile(r"^::: (?:\w+ )?(?P<path>(?:\w+\.)+(?P<name>\w+))$", re.M)
#: What the pages of this build have, and the paths that their directives name.
_found: set[Item] = set()
_paths: dict[str, str] = {}


def items_of(html: str, url: str) -> Iterator[Item]:
    """Yield the entries of the reference on a page."""
    for one in _ENTRY.finditer(html):
        path = f"{one['module']}.{one['name']}"
        role = _role(getattr(importlib.import_module(one["module"]), one["name"]))
        for name in (path, _paths.get(one["name"], path)):
            yield Item(name, role, f"{url}#{one['anchor']}")


def _role(thing: Any) -> str:
    if not inspect.isclass(thing):
        return "py:function"
    return "py:exception" if issubclass(thing, BaseException) else "py:class"


def inventory(items: Iterable[Item], version: str) -> bytes:
    """Return the file, in version 2 of Sphinx's format."""
    head = (
        "# Sphinx inventory version 2\n"
        f"# Project: {PROJECT}\n# Version: {version}\n"
        "# The remainder of this file is compressed using zlib.\n"
    )
    lines = sorted(f"{one.name} {one.role} 1 {one.uri} {one.title}\n" for one in items)
    return head.encode() + zlib.compress("".join(lines).encode(), 9)


def on_pre_build(**_: Any) -> None:
    """Forget the build before this one."""
    _found.clear()
    _paths.clear()


def on_page_markdown(markdown: str, **_: Any) -> None:
    """Note the directives, before the next hook carries them out."""
    _paths.update((one["name"], one["path"]) for one in _DIRECTIVE.finditer(markdown))


def on_page_content(html: str, page: Any, **_: Any) -> None:
    """Note a page and its entries."""
    _found.add(Item(page.file.src_uri.removesuffix(".md"), "std:doc", page.url, page.title))
    _found.update(items_of(html, page.url))


def on_post_build(config: Any, **_: Any) -> None:
    """Write the file."""
    from airflow_qarnot_pool import __version__

    (Path(config["site_dir"]) / "objects.inv").write_bytes(inventory(_found, __version__))
