"""Airflow on nodes whose image has only Python: an environment with the packages of this machine, made once.

:mod:`airflow_qarnot_pool.environments` installs the packages, stores them in a bucket and names the archive. The pool
brings it to its nodes. The first process of each Qarnot task unpacks it once per node.
"""

from __future__ import annotations

import base64
import shlex
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError, QarnotUnavailableError
from airflow_qarnot_pool.environments.specification import PREFIX, QarnotEnvironment
from airflow_qarnot_pool.executors.image import OWN, Installed, canonical, installed
from airflow_qarnot_pool.executors.node import SHARED

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.specs import ResourceBucket
    from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings

T = TypeVar("T")

#: Version of Python on this machine, and so on nodes.
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
#: Image of a pool with an environment that names no other.
IMAGE = f"python:{PYTHON}-slim"
#: Seconds for which a submission waits for an environment. Those that are there already take less.
PATIENCE = 5.0
#: Run the program in the first argument, which keeps quotes, newlines and dollar signs out of the command.
_LOAD = "import base64,sys,zlib;exec(zlib.decompress(base64.b64decode(sys.argv.pop(1))))"
#: Unpack the archive in the first argument beside it, once per node, and run Python with the other arguments.
_BOOT = f"""
import fcntl, os, shutil, sys, tarfile
archive = os.path.join(os.environ["{SHARED}"], sys.argv[1])
python = "%d.%d" % sys.version_info[:2]
if not sys.argv[1].startswith("{PREFIX}" + python + "-"):
    sys.exit("requirements are for another Python than that of the image, which is " + python)
folder = archive[:-7]
with open(folder + ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not os.path.exists(folder):
        shutil.rmtree(folder + ".part", True)
        with tarfile.open(archive) as file:
            file.extractall(folder + ".part", **({{"filter": "data"}} if hasattr(tarfile, "data_filter") else {{}}))
        os.rename(folder + ".part", folder)
paths = [os.path.join(folder, "packages"), os.environ.get("PYTHONPATH")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
os.execv(sys.executable, [sys.executable] + sys.argv[2:])
"""


def with_environment(command: Sequence[str] | str, archive: str) -> str:
    """Return a command that runs the Python *command* of a node with the packages of *archive*."""
    python, *arguments = shlex.split(command) if isinstance(command, str) else command
    boot = base64.b64encode(zlib.compress(_BOOT.encode(), 9)).decode()
    return shlex.join([python, "-c", _LOAD, boot, archive, *arguments])


def environment_of(requirements: Sequence[str]) -> QarnotEnvironment:
    """Return the environment of nodes: Airflow, its providers and all that they need here, and *requirements*.

    :raises QarnotInvalidSpecError: a package was not installed from an index, and *requirements* have no wheel of it.
    """
    return QarnotEnvironment(
        requirements=[*pins(installed(freeze=True), requirements), *requirements], python=PYTHON
    )


def pins(here: Installed, requirements: Sequence[str]) -> list[str]:
    """Return requirements of the versions that this machine has of Airflow, its providers, and all that they need.

    Packages that *requirements* name are left out, because those have their own version.

    :param here: all packages of this machine.
    :raises QarnotInvalidSpecError: a package was not installed from an index.
    """
    given = set(map(_name_of, requirements))
    wanted = [name for name in _closure(_roots()) if name in here.packages and name not in given]
    for name in wanted:
        if name in here.local:
            raise QarnotInvalidSpecError(
                f"[qarnot_executor] requirements lack a package that this machine has from no index, got {name!r}",
                field="requirements",
                remedy=f"Add its wheel: '{name} @ file:///folder/{name.replace('-', '_')}-...-none-any.whl'.",
            )
    return [f"{name}=={here.packages[name]}" for name in wanted]


def _roots() -> list[str]:
    """Return Airflow, its providers, and what this one needs for buckets."""
    return [*installed().packages, f"{OWN}[storage]"]


def _closure(roots: Iterable[str]) -> list[str]:
    """Return the names of the distributions that *roots* need on this machine, with their own."""
    from packaging.requirements import Requirement

    seen: dict[tuple[str, str], None] = {}
    names: dict[str, None] = {}
    left = [Requirement(root) for root in roots]
    while left:
        requirement = left.pop()
        name = canonical(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen[name, extra] = None
            try:
                needs = metadata.requires(name) or ()
            except metadata.PackageNotFoundError:
                continue
            names[name] = None
            for text in needs:
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    left.append(needed)
    return sorted(names)


def _name_of(line: str) -> str:
    """Return the canonical name of the distribution in a line of requirements; "" for an option."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        return canonical(Requirement(line.strip()).name)
    except InvalidRequirement:
        file = line.strip().rpartition("/")[2]
        return canonical(file.partition("-")[0]) if file.endswith(".whl") else ""


def prepare(settings: ConnectionSettings, requirements: Sequence[str]) -> ResourceBucket:
    """Return the resource of a pool that brings the environment, which is made and uploaded if it is missing.

    :raises QarnotInvalidSpecError: the packages cannot be installed from wheels.
    :raises QarnotError: the index or the storage does not respond.
    """
    from airflow_qarnot_pool.environments.storage import EnvironmentStorage

    environment = environment_of(requirements)
    return EnvironmentStorage(settings, environment.bucket).prepare(environment, Path.cwd())


class Preparations:
    """Environments in preparation, each in a thread of its own, because an installation and an upload take minutes."""

    def __init__(self) -> None:
        self._started: dict[tuple[str, ...], Future[ResourceBucket]] = {}

    def get(self, settings: ConnectionSettings, requirements: Sequence[str]) -> ResourceBucket:
        """Return the result of :func:`prepare`, for which this call waits for seconds at most.

        :raises QarnotUnavailableError: it is still being prepared.
        """
        key = tuple(requirements)
        if key not in self._started:
            self._started[key] = _in_a_thread(partial(prepare, settings, requirements))
        try:
            resource = self._started[key].result(PATIENCE)
        except TimeoutError:
            if not self._started[key].done():
                raise QarnotUnavailableError(
                    "The environment of the nodes is being made and uploaded"
                ) from None
            raise
        finally:
            if self._started[key].done():
                # A later pool looks for it again, because the reaper deletes those that are not used.
                del self._started[key]
        return resource


def _in_a_thread(function: Callable[[], T]) -> Future[T]:
    """Call *function* in a thread that no end of this process waits for."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="qarnot-executor-environment", daemon=True).start()
    return future


def archive_of(resources: Iterable[ResourceBucket]) -> str | None:
    """Return the archive that one of the *resources* of a pool brings, or None."""
    names = (str(resource.prefix or "").rpartition("/")[2] for resource in resources)
    return next((name for name in names if name.startswith(PREFIX)), None)
