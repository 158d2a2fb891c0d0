"""A hook of MkDocs: ``objects.inv`` in the site, so that other projects can link to its entries (Sphinx intersphinx).

It lists the pages, and each entry of the reference: a heading with the name, and below it the line that imports it.
"""

from __future__ import annotations

import importlib
import inspect
import re
import zlib
from collections.abc import Iterable
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


#: What the pages of this build have.
_found: list[Item] = []


def items_of(html: str, url: str) -> list[Item]:
    """Return the entries of the reference on a page."""
    found = []
    for one in _ENTRY.finditer(html):
        thing = getattr(importlib.import_module(one["module"]), one["name"])
        found.append(Item(f"{one['module']}.{one['name']}", _role(thing), f"{url}#{one['anchor']}"))
    return found


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


def on_page_content(html: str, page: Any, **_: Any) -> None:
    """Note a page and its entries."""
    _found.append(Item(page.file.src_uri.removesuffix(".md"), "std:doc", page.url, page.title))
    _found.extend(items_of(html, page.url))


def on_post_build(config: Any, **_: Any) -> None:
    """Write the file."""
    from airflow_qarnot_pool import __version__

    (Path(config["site_dir"]) / "objects.inv").write_bytes(inventory(_found, __version__))
