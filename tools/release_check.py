"""``make release-check``: what a person must still do before the package is uploaded, one line each, and nothing else.

The exit status is 1 if there is anything to do. ``todo`` decides from facts, which ``facts`` reads.
``--ecosystem`` prints the entry for the Ecosystem page of Airflow's site instead.
"""

from __future__ import annotations

import calendar
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tools.check_wheel import PACKAGE, URLS, version_in

ROOT = Path(__file__).resolve().parent.parent
#: Hosts that RFC 2606 sets aside, and words that stand for a name.
_PLACEHOLDER = re.compile(
    r"\.(invalid|example|test|localhost)$|(^|\.)example\.(com|net|org)$|^localhost$", re.I
)
_STANDS_FOR_A_NAME = re.compile(r"\b(OWNER|YOUR[-_ ]\w+|TODO|CHANGEME|PLACEHOLDER)\b|[<>{}]")
#: Files that a whole site has.
SITE = ("index.html", "objects.inv")
_VERSION = re.compile(r"\d+\.\d+\.\d+((a|b|rc)\d+)?")


@dataclass(frozen=True)
class Facts:
    """What the repository and its build folders are like."""

    version: str
    urls: Mapping[str, str]
    changelog: str
    #: Commits by tag, and the commit that would be released, with its time in seconds since 1970.
    tags: Mapping[str, str]
    head: str
    committed: int
    changed_files: int
    #: Time of the members of each archive in ``dist/``, in seconds since 1970.
    dist: Mapping[str, int]
    #: Time of each file of the site that shows that it is whole.
    site: Mapping[str, float]


def todo(facts: Facts) -> Iterator[str]:
    """Yield what a person must do, in the order in which to do it."""
    yield from _of_the_addresses(facts.urls)
    yield from _of_the_version(facts)
    if facts.changed_files:
        yield f"{facts.changed_files} files differ from the last commit. Commit or remove them."
    yield from _of_the_tag(facts)
    yield from _of_the_builds(facts)


def _of_the_addresses(urls: Mapping[str, str]) -> Iterator[str]:
    for label in URLS:
        url = urls.get(label, "")
        parts = urlsplit(url)
        placeholder = _PLACEHOLDER.search(parts.hostname or "") or _STANDS_FOR_A_NAME.search(url)
        if parts.scheme != "https" or not parts.hostname or placeholder:
            yield f"[project.urls] {label} in pyproject.toml is a placeholder, got {url!r}. Set the address."


def _of_the_version(facts: Facts) -> Iterator[str]:
    if not _VERSION.fullmatch(facts.version):
        yield f"__version__ is no version to release, got {facts.version!r}. Set one such as 1.2.3 or 1.2.3rc1."
    heading = re.search(r"^## +(?P<version>\S+)(?: +\((?P<date>[^)]*)\))?", facts.changelog, re.MULTILINE)
    found = heading["version"] if heading else "nothing"
    if heading is None or found != facts.version:
        yield f"CHANGELOG.md begins with {found}, and __version__ is {facts.version}. Make them the same."
    elif not re.fullmatch(r"\d{4}-\d\d-\d\d", heading["date"] or ""):
        yield f"CHANGELOG.md gives {found} no date, got {heading['date']!r}. Write the day of the release."


def _of_the_tag(facts: Facts) -> Iterator[str]:
    tag = f"v{facts.version}"
    tagged = facts.tags.get(tag)
    if tagged is None:
        yield f"The commit has no tag {tag}. Run: git tag -a {tag} -m '{tag}'"
    elif tagged != facts.head:
        yield f"The tag {tag} is on another commit ({tagged[:12]}). Raise __version__, or check that commit out."


def _of_the_builds(facts: Facts) -> Iterator[str]:
    name = f"{PACKAGE}-{facts.version}"
    wanted = {f"{name}-py3-none-any.whl", f"{name}.tar.gz"}
    # A zip archive counts in steps of two seconds.
    if facts.dist.keys() != wanted or any(abs(time - facts.committed) > 2 for time in facts.dist.values()):
        yield f"dist/ is no build of this commit, got {sorted(facts.dist)}. Run: make check"
    if facts.site.keys() != set(SITE) or any(time < facts.committed for time in facts.site.values()):
        yield f"build/site/{facts.version} is no build of this commit. Run: make docs VERSION={facts.version}"


def facts(root: Path) -> Facts:
    """Read the facts of the repository at *root*."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    tags = (
        line.split()
        for line in git("tag", "--format=%(refname:short) %(objectname) %(*objectname)").splitlines()
    )
    version = version_in((root / PACKAGE / "__init__.py").read_text())
    files = (root / "build" / "site" / version / name for name in SITE)
    return Facts(
        version=version,
        urls=project(root)["urls"],
        changelog=(root / "CHANGELOG.md").read_text(),
        # An annotated tag is an object of its own, whose commit is last.
        tags={words[0]: words[-1] for words in tags},
        head=git("rev-parse", "HEAD"),
        committed=int(git("log", "-1", "--format=%ct")),
        changed_files=len(git("status", "--porcelain").splitlines()),
        dist={path.name: _built(path) for path in (root / "dist").glob("[!.]*")},
        site={path.name: path.stat().st_mtime for path in files if path.exists()},
    )


def project(root: Path) -> dict[str, Any]:
    """Return the table ``[project]``."""
    found: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return found


def _built(archive: Path) -> int:
    """Return the time of the members of an archive, which is that of its commit."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return calendar.timegm((*wheel.infolist()[0].date_time, 0, 0, 0))
    with tarfile.open(archive) as sdist:
        return int(sdist.getmembers()[0].mtime)


def ecosystem(table: Mapping[str, Any]) -> str:
    """Return the entry for the Ecosystem page of Airflow's site, in its list of third-party providers."""
    return f"[{table['name']}]({table['urls']['Source Code']}) - {table['description']}."


def main() -> int:
    if "--ecosystem" in sys.argv[1:]:
        print(ecosystem(project(ROOT)))
        return 0
    found = list(todo(facts(ROOT)))
    print("\n".join(found), end="\n" if found else "")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
