"""Words, environment and paths of an instance."""

from __future__ import annotations

import pytest

from airflow_qarnot_pool.local.processes.command import (
    CommandError,
    Directories,
    environment,
    map_path,
    of_instance,
    substitute,
    variables,
    words,
    working_directory,
)

PLACE = Directories(job="/s/n1/job", task="/s/n1/job/abc", scratch="/s/n1/tmp")


def split(command: str, **constants: str) -> list[str]:
    return words(command, constants, variables(3, 8, PLACE), PLACE)


@pytest.mark.parametrize(
    ("command", "constants", "expected"),
    [
        ("echo hello", {}, ["echo", "hello"]),
        ("echo ${INSTANCE_ID}/${INSTANCE_COUNT}", {}, ["echo", "3/8"]),
        ("echo '${NAME}'", {"NAME": "two words"}, ["echo", "two words"]),
        ("echo ${NAME}", {"NAME": "two words"}, ["echo", "two", "words"]),
        ('sh -c "echo $HOME ${UNKNOWN}"', {}, ["sh", "-c", "echo $HOME ${UNKNOWN}"]),
        ("cat /job/in.txt", {}, ["cat", "/s/n1/job/in.txt"]),
        ("ls /job", {}, ["ls", "/s/n1/job"]),
        ("sh -c 'cp /job/a /job/b'", {}, ["sh", "-c", "cp /s/n1/job/a /s/n1/job/b"]),
        (
            "tool --in=/job/a --not=/jobs/b https://host/job/c",
            {},
            ["tool", "--in=/s/n1/job/a", "--not=/jobs/b", "https://host/job/c"],
        ),
        ("cat /data/in.txt /job/x", {"RESOURCES_PATH": "/data"}, ["cat", "/s/n1/job/in.txt", "/job/x"]),
        ("", {}, []),
    ],
)
def test_words(command: str, constants: dict[str, str], expected: list[str]) -> None:
    assert split(command, **constants) == expected


@pytest.mark.parametrize(
    ("profile", "commands"),
    [
        ("docker-batch", ["all", "all"]),
        ("docker-cluster", ["master", "worker"]),
        ("my-cluster", ["master", "worker"]),
    ],
)
def test_a_cluster_has_a_master_and_workers(profile: str, commands: list[str]) -> None:
    constants = {"DOCKER_CMD": "all", "DOCKER_CMD_MASTER": "master", "DOCKER_CMD_WORKER": "worker"}
    assert [of_instance(profile, instance, constants) for instance in (0, 1)] == commands
    assert of_instance(profile, 1, {"DOCKER_CMD": "all", "DOCKER_CMD_MASTER": "master"}) == "all"


def test_a_command_that_cannot_be_split() -> None:
    with pytest.raises(CommandError, match="No closing quotation"):
        split("echo 'oops")


def test_environment_is_what_the_task_says_and_nothing_else() -> None:
    own = variables(0, 1, PLACE)
    env = environment({"DATA": "/job/data:/usr/job", "PATH": "/only"}, own, PLACE, "/bin")
    assert env["DATA"] == "/s/n1/job/data:/usr/job"
    assert env["PATH"] == "/only"
    assert env["TASK_PATH"] == env["QARNOT_RESULTS_DIRECTORY"] == env["HOME"] == PLACE.task
    assert set(env) == {"PATH", "HOME", "LANG", "TMPDIR", "DATA", *own}


@pytest.mark.parametrize(
    ("constants", "directory"),
    [
        ({}, PLACE.task),
        ({"DOCKER_WORKDIR": "${DOCKER_WORKDIR}"}, PLACE.task),
        ({"DOCKER_WORKDIR": "/job/sub"}, "/s/n1/job/sub"),
        ({"DOCKER_WORKDIR": "sub"}, "/s/n1/job/abc/sub"),
        ({"DOCKER_WORKDIR": "/tmp"}, "/tmp"),
    ],
)
def test_working_directory(constants: dict[str, str], directory: str) -> None:
    assert working_directory(constants, variables(0, 1, PLACE), PLACE) == directory


def test_substitution_leaves_what_it_does_not_know() -> None:
    assert substitute("${A} $A ${B}", {"A": "1"}) == "1 $A ${B}"


def test_a_path_is_mapped_once() -> None:
    once = map_path("/job/x", "/job", "/s/job")
    assert map_path(once, "/job", "/s/job") == once
