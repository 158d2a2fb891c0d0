"""Hooks of MkDocs: pages from outside of docs/, and the list of the versions that are built.

Each version is a folder: ``dev``, or the number of a release. The page of the root leads to the newest
release, or to ``dev`` if there is none.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
#: Pages that live at the root of the repository, where people look for them.
AT_ROOT = {"contributing.md": "CONTRIBUTING.md", "security.md": "SECURITY.md", "changelog.md": "CHANGELOG.md"}
EXAMPLES = ROOT / "example_dags"
#: The version of the working tree.
DEV = "dev"
_RELEASE = re.compile(r"\d+(\.\d+)*")


def on_config(config: Any) -> Any:
    """Name the version, and append pages that the navigation does not name, because each must be reachable."""
    from mkdocs.exceptions import ConfigurationError

    version = Path(config["site_dir"]).name
    here = re.findall(
        r'^__version__ = "(.+)"$', (ROOT / "airflow_qarnot_pool" / "__init__.py").read_text(), re.M
    )
    if _RELEASE.fullmatch(version) and version not in here:
        raise ConfigurationError(
            f"VERSION is not that of the package, got {version}. Give {here[0]}, or leave it out."
        )
    config["extra"]["built_version"] = version
    named = set(re.findall(r"[\w/-]+\.md", repr(config["nav"])))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    rest = sorted(pages - named)
    if rest:
        config["nav"] = [*config["nav"], {"More": rest}]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the repository's root, and the sources of the examples."""
    from mkdocs.structure.files import File, InclusionLevel

    for page, source in AT_ROOT.items():
        if (ROOT / source).exists():
            text = (ROOT / source).read_text().replace("](docs/", "](")
            files.append(File.generated(config, page, content=text))
    for path in sorted(EXAMPLES.glob("*.py")):
        text = f"# {path.name}\n\n```python\n{path.read_text()}```\n"
        page = File.generated(config, f"examples/{path.stem}.md", content=text)
        page.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(page)
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Link to the site's copies of pages and files that are outside of docs/, and drop comments."""
    markdown = re.sub(r"^<!--.*-->\n", "", markdown, flags=re.M)
    markdown = re.sub(r"\]\(\.\./example_dags/(\w+)\.py\)", r"](examples/\1.md)", markdown)
    return markdown.replace("](../CONTRIBUTING.md", "](contributing.md")


def on_post_build(config: Any) -> None:
    """List the versions beside this one, for the switch on each page."""
    site = Path(config["site_dir"])
    if site.name == DEV or _RELEASE.fullmatch(site.name):
        list_versions(site.parent)


def list_versions(root: Path) -> None:
    """Write ``versions.js`` and the page that leads to the newest release."""
    names = sorted(
        {page.parent.name for page in root.glob("*/index.html")} - {DEV}, key=_by_number, reverse=True
    )
    names += [DEV] if (root / DEV / "index.html").exists() else []
    pages = {
        name: sorted(page.relative_to(root / name).as_posix() for page in (root / name).rglob("*.html"))
        for name in names
    }
    (root / "versions.js").write_text(f"window.docsVersions = {json.dumps(pages)};\n")
    (root / "index.html").write_text(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Airflow Qarnot pool</title>\n'
        f'<meta http-equiv="refresh" content="0; url={names[0]}/index.html"></head>\n'
        f'<body><a href="{names[0]}/index.html">Airflow Qarnot pool {names[0]}</a></body></html>\n'
    )


def _by_number(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
