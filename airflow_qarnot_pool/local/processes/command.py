"""Words, environment and directories of the command of an instance. Pure functions, but for the search for Pythons.

Qarnot API: the docker-batch profile (qarnot-api.md section 7).
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_VARIABLE = re.compile(r"\$\{([A-Za-z0-9_.-]+)\}")
MOUNT = "/job"


class CommandError(ValueError):
    """The command cannot be split into words."""


@dataclass(frozen=True, slots=True)
class Directories:
    """Directories of an instance, as real paths.

    :param job: replaces the mount point (`/job`); the resources of the pool, or the directory of the task.
    :param task: directory in which the command starts, `/job/<JOB_UUID>` in a pool.
    :param scratch: for temporary files.
    """

    job: str
    task: str
    scratch: str


def substitute(text: str, values: Mapping[str, str]) -> str:
    """Replace `${NAME}` by its value. An unknown name stays as it is, because a shell may expand it."""
    return _VARIABLE.sub(lambda match: values.get(match[1], match[0]), text)


def map_path(text: str, mount: str, real: str) -> str:
    """Replace `mount` by the real directory, as a whole path or at the start of one.

    `/jobs`, `a/job` and `http://host/job` do not change.
    """
    mount = mount.rstrip("/")
    if not mount:
        return text
    return re.sub(rf"(?<![\w./~-]){re.escape(mount)}(?![\w.-])", lambda _: real, text)


def variables(instance: int, count: int, place: Directories) -> dict[str, str]:
    """Return the variables that Qarnot documents for an instance, with real paths."""
    return {
        "INSTANCE_ID": str(instance),
        "INSTANCE_COUNT": str(count),
        "FRAME_ID": str(instance),
        "QRANK": str(instance),
        "QSIZE": str(count),
        "TASK_PATH": place.task,
        "QARNOT_RESOURCES_DIRECTORY": place.task,
        "QARNOT_RESULTS_DIRECTORY": place.task,
        "TMP_PATH": place.scratch,
        "TMP_RAMFS_PATH": place.scratch,
    }


def mount_point(constants: Mapping[str, str]) -> str:
    return constants.get("RESOURCES_PATH") or MOUNT


def working_directory(constants: Mapping[str, str], own: Mapping[str, str], place: Directories) -> str:
    """Return the real path of DOCKER_WORKDIR, or the directory of the task if it is not set."""
    requested = substitute(constants.get("DOCKER_WORKDIR", ""), {**constants, **own})
    if not requested or "${" in requested:
        return place.task
    return os.path.join(place.task, map_path(requested, mount_point(constants), place.job))


def of_instance(profile: str, instance: int, constants: Mapping[str, str]) -> str:
    """Return the command of an instance. In a cluster the first one may have another than the workers."""
    role = "DOCKER_CMD_WORKER" if instance else "DOCKER_CMD_MASTER"
    general = constants.get("DOCKER_CMD", "")
    return constants.get(role, general) if "cluster" in profile else general


def words(
    command: str, constants: Mapping[str, str], own: Mapping[str, str], place: Directories
) -> list[str]:
    """Substitute constants and variables, split the text as a shell would, and make `/job` real.

    No shell runs. Raises CommandError.
    """
    text = substitute(command, {**constants, **own})
    try:
        split = shlex.split(text)
    except ValueError as error:
        raise CommandError(f"DOCKER_CMD cannot be split into words: {error}") from None
    return [map_path(word, mount_point(constants), place.job) for word in split]


def with_uv_pythons(search_path: str) -> str:
    """Return *search_path* with the folders of the Pythons that uv has installed at its end."""
    default = Path.home() / ".local" / "share" / "uv" / "python"
    folder = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or default)
    return os.pathsep.join([search_path, *map(str, sorted(folder.glob("cpython-3.*/bin")))])


def environment(
    constants: Mapping[str, str], own: Mapping[str, str], place: Directories, search_path: str
) -> dict[str, str]:
    """Return the environment of an instance. Only PATH is taken from the server."""
    mount = mount_point(constants)
    basic = {"PATH": search_path, "HOME": place.task, "LANG": "C.UTF-8", "TMPDIR": place.scratch}
    exported = {key: map_path(value, mount, place.job) for key, value in constants.items()}
    return {**basic, **exported, **own}
