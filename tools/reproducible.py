"""Build the package a second time, and compare the bytes.

The second build differs in everything that must not count: it is made from the sdist, in another folder, with another
umask, time zone, language and age of the files. Only ``SOURCE_DATE_EPOCH`` and the build requirements are the same.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UV = str(Path(sys.executable).parent / "uv")
ANOTHER_WORLD = {"TZ": "Pacific/Chatham", "LC_ALL": "C", "PYTHONHASHSEED": "4711"}


def rebuild(sdist: Path, place: Path) -> Path:
    """Build wheel and sdist from *sdist* below *place*. Return the folder that has them."""
    before = os.umask(0o077)
    try:
        with tarfile.open(sdist) as archive:
            archive.extractall(place, filter=_with_odd_modes)
        source, out = place / sdist.name.removesuffix(".tar.gz"), place / "out"
        constraints = str(ROOT / "constraints.txt")
        world = {**os.environ, **ANOTHER_WORLD, "PIP_CONSTRAINT": constraints}
        uv = [UV, "build", "--quiet", "--build-constraints", constraints, "--out-dir", str(out), str(source)]
        # pip is the way out where uv cannot see the index that pip is configured for.
        if subprocess.run(uv, check=False, env=world).returncode:
            pip = [sys.executable, "-m", "build", "--outdir", str(out), str(source)]
            subprocess.run(pip, check=True, env=world)
    finally:
        os.umask(before)
    return out


def _with_odd_modes(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
    """Extract a file as a person with a strict umask has it, and as one of another day."""
    return member.replace(mode=(member.mode or 0) & 0o700, mtime=1_000_000_000)


def differences(first: Path, second: Path) -> Iterator[str]:
    """Yield how the files of two folders differ: by name, and within a wheel by member."""
    names = {path.name for folder in (first, second) for path in folder.iterdir() if path.name[0] != "."}
    for name in sorted(names):
        one, other = first / name, second / name
        if not (one.exists() and other.exists()):
            yield f"{name} is in {(first if one.exists() else second)} only"
        elif (found := _sha256(one)) != _sha256(other):
            inside = sorted(_members(one) ^ _members(other)) if name.endswith(".whl") else []
            yield f"{name} differs" + (
                f" in {', '.join(dict.fromkeys(m for m, _ in inside))}" if inside else ""
            )
        else:
            print(f"{name}: the same bytes when built again, sha256 {found}")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _members(wheel: Path) -> set[tuple[str, str]]:
    with zipfile.ZipFile(wheel) as archive:
        return {
            (one.filename, f"{one.CRC} {one.date_time} {one.external_attr}") for one in archive.infolist()
        }


def main() -> int:
    (sdist,) = (ROOT / "dist").glob("*.tar.gz")
    with tempfile.TemporaryDirectory(prefix="rebuilt-") as place:
        found = list(differences(ROOT / "dist", rebuild(sdist, Path(place))))
    print("\n".join(found), end="\n" if found else "")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
