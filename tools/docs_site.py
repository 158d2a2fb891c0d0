"""Hooks of MkDocs: pages from the root of the repository, and pages that the navigation does not name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
#: Pages that live at the root of the repository, where people look for them.
AT_ROOT = {"contributing.md": "CONTRIBUTING.md", "security.md": "SECURITY.md", "changelog.md": "CHANGELOG.md"}


def on_config(config: Any) -> Any:
    """Append pages that the navigation does not name, because each page must be reachable."""
    named = set(re.findall(r"[\w/-]+\.md", repr(config["nav"])))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    rest = sorted(pages - named)
    if rest:
        config["nav"] = [*config["nav"], {"More": rest}]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the repository's root."""
    from mkdocs.structure.files import File

    for page, source in AT_ROOT.items():
        if (ROOT / source).exists():
            text = (ROOT / source).read_text().replace("](docs/", "](")
            files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Link to the site's copy of CONTRIBUTING.md."""
    return markdown.replace("](../CONTRIBUTING.md", "](contributing.md")
