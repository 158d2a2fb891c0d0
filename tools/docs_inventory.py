"""A hook of MkDocs: ``objects.inv`` in the site, so that other projects can link to its entries (Sphinx intersphinx).

It lists the pages, and each entry of the reference: a row of its table of contents, or a heading below a directive. An
entry has two names if the page imports it from another module than the one that defines it.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

PROJECT = "airflow-qarnot-pool"
_ROW = re.compile(r"^\| \[`(?P<name>\w+)`\]\(#[\w-]+\) \| `(?P<module>[\w.]+)` \|", re.M)
_DIRECTIVE = re.compile(r"^<!-- ::: (?:methods )?(?P<module>\w+(?:\.\w+)+)\.(?P<name>\w+) -->$", re.M)


class Item(NamedTuple):
    """One line of an inventory."""

    name: str
    role: str
    uri: str
    title: str = "-"


#: What the pages of this build have.
_found: set[Item] = set()


def items_of(markdown: str, url: str) -> Iterator[Item]:
    """Yield the entries of the reference on a page. An anchor is the name in small letters."""
    for one in (*_ROW.finditer(markdown), *_DIRECTIVE.finditer(markdown)):
        path = f"{one['module']}.{one['name']}"
        thing = pkgutil.resolve_name(path)
        for name in {path, f"{thing.__module__}.{one['name']}"}:
            yield Item(name, _role(thing), f"{url}#{one['name'].lower()}")


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


def on_page_markdown(markdown: str, page: Any, **_: Any) -> None:
    """Note the entries of a page, before the next hook drops its comments."""
    _found.update(items_of(markdown, page.url))


def on_page_content(html: str, page: Any, **_: Any) -> None:
    """Note a page, whose title is known by now."""
    _found.add(Item(page.file.src_uri.removesuffix(".md"), "std:doc", page.url, page.title))


def on_post_build(config: Any, **_: Any) -> None:
    """Write the file."""
    from airflow_qarnot_pool import __version__

    (Path(config["site_dir"]) / "objects.inv").write_bytes(inventory(_found, __version__))
