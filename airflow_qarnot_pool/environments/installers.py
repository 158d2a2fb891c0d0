"""Install wheels for the Python of the nodes into a folder, with uv or pip. No code of the packages runs."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from airflow_qarnot_pool.api.errors import QarnotError, QarnotInvalidSpecError
from airflow_qarnot_pool.environments.specification import PLATFORM, EnvironmentSource

_GLIBC, _MACHINE = (int(PLATFORM.split("_")[2]), PLATFORM.split("_", 3)[3])
_INDEX_VARIABLES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX")
_UNREACHABLE = re.compile(
    r"error sending request|failed to fetch|max retries|connection ?(error|refused|reset)|timed out|"
    r"name resolution|dns error|tunnel connection|sslerror|certificate|40[13] (unauthorized|forbidden|client)",
    re.IGNORECASE,
)
#: What uv says of a package that its index does not have. pip says the same of one without wheels.
_NOT_FOUND = re.compile(r"Because ([\w.-]+) was\s+not\s+found")
_MAX_MESSAGE = 3000
#: Maximum seconds of an installation, because an index may never answer.
MAX_SECONDS = 1800.0


def install(source: EnvironmentSource, folder: Path) -> None:
    """Install the requirements of *source* into *folder*.

    :raises QarnotInvalidSpecError: there is no uv or pip that can do it, or no wheels fit.
    :raises QarnotError: an index cannot be reached.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write("\n".join(source.requirements) + "\n")
        file.flush()
        command, environment = _command(source.python, file.name, folder)
        try:
            done = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
                timeout=MAX_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise QarnotError(
                f"The packages of the environment could not be installed within {MAX_SECONDS:.0f} s. Check that the "
                "worker reaches their index"
            ) from None
    if done.returncode == 0:
        return
    message = without_logins(done.stdout, [*source.requirements, *environment.values()])[-_MAX_MESSAGE:]
    if _UNREACHABLE.search(done.stdout):
        raise QarnotError(
            f"The packages of the environment could not be fetched from their index.\n{message}"
        )
    if found := _NOT_FOUND.search(message):
        raise QarnotInvalidSpecError(
            f"environment.requirements needs a package that was not found in the index, got {found[1]!r}",
            field="environment.requirements",
            remedy=f"Correct its name, or set the index on the worker (UV_INDEX_URL).\n{message}",
        )
    raise QarnotInvalidSpecError(
        f"environment.requirements cannot be installed from wheels for Python {source.python} on {source.platform}",
        field="environment.requirements",
        remedy=f"Give versions that have such wheels, or use an image that contains the packages.\n{message}",
    )


def _command(python: str, requirements: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command of uv, or else of pip, and its environment."""
    environment = dict(os.environ)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    common = ["install", "--quiet", "--target", str(folder), "--only-binary", ":all:", "-r", requirements]
    if uv := _uv():
        for name in _INDEX_VARIABLES:
            if name in environment:
                environment.setdefault(f"UV_{name.removeprefix('PIP_')}", environment[name])
        platform = f"{_MACHINE}-manylinux_2_{_GLIBC}"
        # To uv 3.12 is 3.12.0, and some packages need a later one. An image has the newest.
        version = f"{here}.{sys.version_info.micro}" if python == here else python
        options = ["--python-version", version, "--python-platform", platform, "--link-mode", "copy"]
        # Without the check of the running interpreter, which the packages are not for.
        return [*uv, "pip", *common, *options, "--python", sys.executable, "--no-progress"], environment
    if importlib.util.find_spec("pip") is None:
        raise _no_installer(
            "environment.requirements needs uv or pip on the worker, and neither is installed"
        )
    if here != python or not sys.platform.startswith("linux"):
        # pip evaluates the conditions of requirements (python_version < "3.11") for the Python that runs it.
        raise _no_installer(
            f"environment.python is {python}, and pip resolves for the Python and system of the worker only ({here} "
            f"on {sys.platform})"
        )
    platforms = [f"manylinux_2_{minor}_{_MACHINE}" for minor in range(_GLIBC, 4, -1)]
    platforms += [f"manylinux{old}_{_MACHINE}" for old in ("2014", "2010", "1")]
    options = ["--python-version", python, "--implementation", "cp", "--no-input", "--no-compile"]
    for platform in platforms:
        options += ["--platform", platform]
    return [
        sys.executable, "-m", "pip", "--disable-pip-version-check", *common, *options
    ], environment  # fmt: skip


def _uv() -> list[str]:
    if importlib.util.find_spec("uv") is not None:
        return [sys.executable, "-m", "uv"]
    found = shutil.which("uv")
    return [found] if found else []


def _no_installer(problem: str) -> QarnotInvalidSpecError:
    return QarnotInvalidSpecError(
        problem, field="environment", remedy="Install uv on the worker (pip install uv)."
    )


def without_logins(text: str, places: Iterable[str]) -> str:
    """Return *text* without the addresses of indexes that carry a login.

    :param places: texts that may contain such addresses.
    """
    address = re.compile(r"[a-z+]+://[^/@\s'\"]*@([^/\s:'\"]+)[^\s'\"]*", re.IGNORECASE)
    hosts = {match[1] for place in [text, *places] for match in address.finditer(place)}
    text = address.sub("<index with a login>", text)
    for host in sorted(hosts, key=len, reverse=True):
        text = re.sub(rf"([a-z+]+://)?{re.escape(host)}[^\s'\"]*", "<index with a login>", text)
    return text


def installed_files(folder: Path) -> Mapping[str, Path]:
    """Return the files of the packages in *folder* that are the same whatever installed them."""
    left_out = {"INSTALLER", "REQUESTED", "RECORD", "direct_url.json", "uv_cache.json"}
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.relative_to(folder).parts[0] != "bin"  # scripts for the interpreter of the worker
        and not path.relative_to(folder).parts[0].startswith(".")
        and "__pycache__" not in path.parts
        and not (path.parent.name.endswith(".dist-info") and path.name in left_out)
    }
