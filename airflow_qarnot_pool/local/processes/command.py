"""What one instance executes: its words, its environment, and where `/job` is. Pure functions.

Qarnot API: the docker-batch profile (qarnot-api.md section 7).
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

_VARIABLE = re.compile(r"\$\{([A-Za-z0-9_.-]+)\}")
MOUNT = "/job"


class CommandError(ValueError):
    """The command cannot be split into words."""


@dataclass(frozen=True, slots=True)
class Directories:
    """Where an instance runs. All real paths.

    :param job: stands for the mount point (`/job`): the pool's resources, or the task's own directory.
    :param task: the directory the command starts in, `/job/<JOB_UUID>` in a pool.
    :param scratch: for temporary files.
    """

    job: str
    task: str
    scratch: str


def substitute(text: str, values: Mapping[str, str]) -> str:
    """`${NAME}` -> its value; an unknown name stays as it is, for a shell to expand."""
    return _VARIABLE.sub(lambda found: values.get(found[1], found[0]), text)


def map_path(text: str, mount: str, real: str) -> str:
    """Rewrite `mount` (as a whole path or as the beginning of one) to the real directory, wherever it stands
    in the text. `/jobs`, `a/job` and `http://host/job` are left alone."""
    mount = mount.rstrip("/")
    if not mount:
        return text
    return re.sub(rf"(?<![\w./~-]){re.escape(mount)}(?![\w.-])", lambda _: real, text)


def variables(instance: int, count: int, place: Directories) -> dict[str, str]:
    """The variables Qarnot documents for an instance, paths being real ones."""
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
    """DOCKER_WORKDIR made real, relative to the task's directory; that directory itself when it is not set."""
    asked = substitute(constants.get("DOCKER_WORKDIR", ""), {**constants, **own})
    if not asked or "${" in asked:
        return place.task
    return os.path.join(place.task, map_path(asked, mount_point(constants), place.job))


def words(
    command: str, constants: Mapping[str, str], own: Mapping[str, str], place: Directories
) -> list[str]:
    """Constants and variables substituted, split as a shell would (no shell runs), `/job` made real.

    Raises CommandError.
    """
    text = substitute(command, {**constants, **own})
    try:
        split = shlex.split(text)
    except ValueError as error:
        raise CommandError(f"DOCKER_CMD cannot be split into words: {error}") from None
    return [map_path(word, mount_point(constants), place.job) for word in split]


def environment(
    constants: Mapping[str, str], own: Mapping[str, str], place: Directories, search_path: str
) -> dict[str, str]:
    """The whole environment of an instance: nothing of the server's is in it but PATH."""
    mount = mount_point(constants)
    basic = {"PATH": search_path, "HOME": place.task, "LANG": "C.UTF-8", "TMPDIR": place.scratch}
    exported = {key: map_path(value, mount, place.job) for key, value in constants.items()}
    return {**basic, **exported, **own}
