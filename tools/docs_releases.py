"""The site of every release: ``make docs-releases`` builds the pages of each tag that the site lacks.

A public host gets the whole folder with each upload, so that readers of an older release keep its pages. They are built
from the sources of the tag, by the MkDocs of this environment.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools import docs_site

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "build" / "site"
MKDOCS = (sys.executable, "-m", "mkdocs")
#: Pre-releases have pages only until the next release.
_RELEASE = re.compile(r"v(\d+(?:\.\d+)+)")


def build_missing(repository: Path, site: Path, mkdocs: Sequence[str] = MKDOCS) -> list[str]:
    """Build the pages of each release that *site* has no folder of. Return the versions that do not build."""
    listed = subprocess.run(["git", "tag"], cwd=repository, check=True, capture_output=True, text=True)
    failed = []
    for found in filter(None, map(_RELEASE.fullmatch, listed.stdout.split())):
        tag, version = found[0], found[1]
        if not (site / version).exists() and not _build(repository, tag, site / version, mkdocs):
            failed.append(version)
    docs_site.list_versions(site)
    return failed


def _build(repository: Path, tag: str, folder: Path, mkdocs: Sequence[str]) -> bool:
    archive = subprocess.run(["git", "archive", tag], cwd=repository, check=True, capture_output=True).stdout
    with tempfile.TemporaryDirectory(prefix="docs-") as place:
        sources, made = Path(place) / "sources", Path(place) / folder.name
        with tarfile.open(fileobj=io.BytesIO(archive)) as members:
            members.extractall(sources, filter="data")
        # The reference of the tag is that of its own package.
        environment = {**os.environ, "PYTHONPATH": str(sources)}
        command = [*mkdocs, "build", "--quiet", "--site-dir", str(made)]
        if subprocess.run(command, cwd=sources, env=environment, check=False).returncode:
            return False
        shutil.copytree(made, folder)
    return True


def main() -> int:
    failed = build_missing(ROOT, SITE)
    for version in failed:
        print(f"The pages of {version} cannot be built by this environment. Copy them from the public site.")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
