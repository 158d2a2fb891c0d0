"""An archive is named by all that is in it, so a changed environment never meets an old one."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.decorators import node
from airflow_qarnot_pool.environments import QarnotEnvironment
from airflow_qarnot_pool.environments.installers import without_logins
from airflow_qarnot_pool.environments.specification import (
    PREFIX,
    EnvironmentSource,
    archive_name,
    check_files,
    is_archive_name,
)

SOURCE = EnvironmentSource(
    requirements=("pandas==2.2.3", "tiny"), modules={"helpers.py": b"A = 1\n", "lib/a.py": b""}, python="3.12"
)
PACKAGES: dict[str, bytes | Path] = {"pandas/__init__.py": b"version = 1\n", "tiny.py": b"B = 2\n"}


def changed_files(files: Any, random: random.Random) -> dict[str, bytes]:
    """Return *files* with one byte changed, one more byte, another name, one file less, or one more."""
    found = dict(files)
    name = random.choice(sorted(found))
    data = found.pop(name)
    how = random.randrange(5)
    if how == 0 and data:
        place = random.randrange(len(data))
        found[name] = data[:place] + bytes([data[place] ^ (1 << random.randrange(8))]) + data[place + 1 :]
    elif how in (0, 1):
        found[name] = data + b"\0"
    elif how == 2:
        found[name + "x"] = data
    elif how == 3:
        found |= {name: data, "new.py": b""}
    return found


@pytest.mark.parametrize("seed", range(200))
def test_any_change_gives_another_archive(seed: int) -> None:
    chance = random.Random(seed)
    name = archive_name(SOURCE, PACKAGES)
    assert is_archive_name(name)
    assert archive_name(replace(SOURCE), dict(reversed(PACKAGES.items()))) == name
    assert archive_name(SOURCE, changed_files(PACKAGES, chance)) != name
    line = chance.randrange(2)
    lines = list(SOURCE.requirements)
    place = chance.randrange(len(lines[line]))
    lines[line] = lines[line][:place] + chr(ord(lines[line][place]) ^ 1) + lines[line][place + 1 :]
    assert replace(SOURCE, requirements=tuple(lines)).key != SOURCE.key
    source = replace(SOURCE, modules=changed_files(SOURCE.modules, chance))
    assert archive_name(source, PACKAGES) != name
    assert source.key != SOURCE.key


@pytest.mark.parametrize("change", [{"python": "3.13"}, {"platform": "manylinux_2_17_x86_64"}])
def test_another_python_or_platform_gives_another_archive(change: dict[str, str]) -> None:
    other = replace(SOURCE, **change)  # type: ignore[arg-type]
    assert other.key != SOURCE.key
    assert archive_name(other, PACKAGES) != archive_name(SOURCE, PACKAGES)


def test_a_module_is_not_taken_for_a_package_of_the_same_name() -> None:
    source = replace(SOURCE, modules={})
    moved = replace(SOURCE, modules={"tiny.py": b"B = 2\n"})
    assert archive_name(source, {"tiny.py": b"B = 2\n"}) != archive_name(moved, {})


@pytest.mark.parametrize("line", ["pandas==2.2.4", "pandas==2.2.3 ; python_version < '3'", "PANDAS==2.2.3"])
def test_another_requirement_is_resolved_again(line: str) -> None:
    assert replace(SOURCE, requirements=(line, "tiny")).key != SOURCE.key
    assert replace(SOURCE, requirements=("tiny", "pandas==2.2.3")).key == SOURCE.key


def test_the_node_finds_archives_by_their_prefix() -> None:
    assert node.ENVIRONMENT == PREFIX


def test_a_requirements_file_and_modules_are_read_beside_the_dag_file(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "__init__.py").write_text("")
    (tmp_path / "lib" / "data.json").write_text("{}")
    (tmp_path / "lib" / "__pycache__").mkdir()
    (tmp_path / "lib" / "__pycache__" / "a.pyc").write_text("")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "helpers.py").write_text("A = 1")
    (tmp_path / "reqs.txt").write_text("# all\npandas==2.2.3 \\\n  --hash=sha256:1\n\ntiny # why\n")
    environment = QarnotEnvironment(requirements="reqs.txt", modules=["lib", "sub/helpers.py"], python="3.13")
    found = EnvironmentSource.read(environment, tmp_path)
    assert replace(found, index={}) == EnvironmentSource(
        requirements=("pandas==2.2.3    --hash=sha256:1", "tiny"),
        modules={"lib/__init__.py": b"", "lib/data.json": b"{}", "helpers.py": b"A = 1"},
        python="3.13",
    )


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "requirements": ({"requirements": {"numpy": "2"}}, "environment.requirements is no list of texts"),
    "python": ({"python": "3"}, "environment.python is no version"),
    "old python": ({"python": "3.7"}, "environment.python is no version"),
    "module": ({"modules": ["my.lib"]}, "environment.modules has no name"),
    "modules": ({"modules": "helpers.py"}, "environment.modules is no list"),
    "bucket": ({"bucket": "s3://b"}, "bucket"),
}


@pytest.mark.parametrize(("values", "problem"), WRONG.values(), ids=WRONG)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], problem: str) -> None:
    for value in (lambda: QarnotEnvironment(**values), lambda: QarnotEnvironment.of(values)):
        with pytest.raises(QarnotInvalidSpecError, match=problem):
            value()


def test_an_environment_is_an_object_or_a_mapping() -> None:
    made = QarnotEnvironment(requirements=["a"])
    assert QarnotEnvironment.of({"requirements": ["a"]}) == made == QarnotEnvironment.of(made)
    for wrong in ({"requirement": ["a"]}, "pandas", ["pandas"]):
        with pytest.raises(QarnotInvalidSpecError, match="environment is no QarnotEnvironment"):
            QarnotEnvironment.of(wrong)


UNREADABLE: dict[str, tuple[dict[str, Any], str]] = {
    "no file": ({"requirements": "missing.txt"}, r"missing\.txt cannot be read"),
    "no module": ({"modules": ["no_such_module"]}, "got 'no_such_module'"),
    "no path": ({"modules": ["sub/none.py"]}, "got 'sub/none.py'"),
    "a nested file": ({"requirements": ["-r other.txt"]}, "got '-r'"),
    "two modules of one name": (
        {"modules": ["one/helpers.py", "two/helpers.py"]},
        "two modules named 'helpers', got 'one/helpers.py' and 'two/helpers.py'",
    ),
    "an editable": ({"requirements": ["-e ."]}, "got '-e'"),
}


@pytest.mark.parametrize(("values", "problem"), UNREADABLE.values(), ids=UNREADABLE)
def test_files_that_do_not_exist_are_refused_by_name(
    tmp_path: Path, values: dict[str, Any], problem: str
) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "helpers.py").write_text("")
    environment = QarnotEnvironment(**values)
    for check in (
        lambda: EnvironmentSource.read(environment, tmp_path),
        lambda: check_files(environment, tmp_path),
    ):
        with pytest.raises(QarnotInvalidSpecError, match=problem):
            check()


def test_another_index_is_asked_again_and_another_login_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(index: str) -> str:
        monkeypatch.setenv("UV_INDEX_URL", index)
        return EnvironmentSource.read(QarnotEnvironment(requirements=["tiny"]), tmp_path).key

    assert key("https://me:one@index.test/simple") == key("https://you:two@index.test/simple")
    assert key("https://index.test/simple") != key("https://other.test/simple")


def test_addresses_with_a_login_are_left_out() -> None:
    place = "--index-url https://user:secret@packages.example/simple"
    text = "Failed https://user:secret@packages.example/simple/a/ and packages.example:443 and https://open.example/"
    shown = without_logins(text, [place])
    assert "secret" not in shown
    assert "packages.example" not in shown
    assert "https://open.example/" in shown
    assert without_logins("https://packages.example/simple/a", [place]) == "<index with a login>"
