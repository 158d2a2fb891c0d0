"""Describe an environment, and name its archive by all that is in it. Pure, except for reading files."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from airflow_qarnot_pool.api.buckets import check_bucket
from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.fields import short_repr

#: Start of the name of every archive, by which the node finds it (``decorators/node.py`` has it, too).
PREFIX = "airflow-qarnot-environment-"
#: The platform of the nodes, as the newest wheel tag that they run.
PLATFORM = "manylinux_2_28_x86_64"
#: The bucket for the archives, unless an environment names another.
DEFAULT_BUCKET = "airflow-qarnot-environments"
#: Changes when the layout of an archive changes.
_LAYOUT = 1
_PYTHON = re.compile(r"3\.([89]|[1-9][0-9])")
_ARCHIVE = re.compile(re.escape(PREFIX) + r"3\.[0-9]+-[0-9a-f]{32}\.tar\.gz")
#: Variables that choose the index, of uv and of pip.
_INDEX_VARIABLE = re.compile(r"(UV|PIP)_(((DEFAULT|EXTRA)_)?INDEX(_URL|_STRATEGY)?|FIND_LINKS|NO_INDEX)")
#: Maximum number of files of a module that are searched for imports when a DAG is parsed.
_MAX_SEARCHED_FILES = 200
#: The name of the distribution in the path or address of a wheel.
_WHEEL = re.compile(r"([^/\s-]+)-[^/\s]*\.whl\b")
_FOREIGN_OPTIONS = ("-r", "--requirement", "-c", "--constraint", "-e", "--editable")


@dataclass(frozen=True, kw_only=True)
class QarnotEnvironment:
    """Packages and modules that Python functions can import on the nodes.

    .. code-block:: python

        QarnotEnvironment(requirements=["pandas==2.2.3"], modules=["my_lib", "helpers.py"], python="3.12")

    The worker installs the packages once, without running code of them, and uploads one archive. A later pool, run or
    DAG with the same environment uploads nothing.

    :param requirements: requirements, or the path of a requirements file. Only wheels are used.
    :param modules: modules and packages of the DAG's bundle: names, or paths beginning at the folder of the DAG file.
    :param python: the version of Python in the image.
    :param bucket: the bucket for the archives. It is created if it is missing.
    :raises QarnotInvalidSpecError: a value is wrong.
    """

    requirements: Sequence[str] | str = ()
    modules: Sequence[str] = ()
    python: str = "3.12"
    bucket: str = DEFAULT_BUCKET

    def __post_init__(self) -> None:
        if not isinstance(self.requirements, str):
            _check_texts(
                "requirements", self.requirements, "Give a list such as ['pandas==2.2.3'], or a file."
            )
        _check_texts("modules", self.modules, "Give a list such as ['my_lib', 'helpers.py'].")
        for name in self.modules:
            if not is_path(name) and not name.isidentifier():
                raise _refusal(
                    "modules",
                    f"has no name of a module or package in it, got {name!r}",
                    "Give the name of a top-level module, or a path such as 'lib/helpers.py'.",
                )
        if not isinstance(self.python, str) or not _PYTHON.fullmatch(self.python):
            raise _refusal(
                "python", f"is no version such as '3.12', got {self.python!r}", "Give that of the image."
            )
        check_bucket(self.bucket, "environment.bucket", "Write {bucket!r}.")

    @classmethod
    def of(cls, value: Any) -> QarnotEnvironment | None:
        """Return the environment that *value* is, or describes as a mapping."""
        if value is None or isinstance(value, cls):
            return value
        names = [field.name for field in fields(cls)]
        if not isinstance(value, Mapping) or not set(value) <= set(names):
            raise QarnotInvalidSpecError(
                f"environment is no QarnotEnvironment, got {short_repr(value)}",
                field="environment",
                remedy=f"Give QarnotEnvironment(...), or a mapping with {', '.join(names)}.",
            )
        return cls(**value)

    def ships(self, module: str) -> bool:
        """Return whether *module* is one of the modules, or a requirement has its name."""
        lines = () if isinstance(self.requirements, str) else self.requirements
        distributions = {re.split(r"[^A-Za-z0-9._-]", line.strip())[0] for line in lines}
        distributions |= {match[1] for line in lines if (match := _WHEEL.search(line))}
        names = {re.sub(r"[-_.]+", "_", name).lower() for name in distributions}
        return module.lower() in names or any(Path(name).stem == module for name in self.modules)


@dataclass(frozen=True, kw_only=True)
class EnvironmentSource:
    """What an environment is made from: the lines of its requirements, the files of its modules, and the index."""

    requirements: tuple[str, ...]
    modules: Mapping[str, bytes]
    python: str
    platform: str = PLATFORM
    #: Variables of the worker that choose the index, without logins.
    index: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, environment: QarnotEnvironment, folder: Path) -> EnvironmentSource:
        """Read the files of an environment.

        :param folder: folder of the DAG file.
        :raises QarnotInvalidSpecError: one does not exist, or cannot be used.
        """
        lines = environment.requirements
        if isinstance(lines, str):
            lines = _read_requirements(folder / lines)
        modules: dict[str, bytes] = {}
        for path in _module_paths(environment.modules, folder):
            modules |= dict(_files_of_module(path))
        cleaned = _cleaned(lines)
        return cls(
            requirements=cleaned,
            modules=modules,
            python=environment.python,
            index=_index_of_worker() if cleaned else {},
        )

    @property
    def key(self) -> str:
        """Return the name under which the result of the installation is noted."""
        return _digest(
            "source",
            self.python,
            self.platform,
            sorted(self.requirements),
            sorted(self.index.items()),
            _hashes(self.modules),
            _hashes(_local_files(self.requirements)),
        )


def archive_name(source: EnvironmentSource, packages: Mapping[str, bytes | Path]) -> str:
    """Return the name of the archive with these *packages* and the modules of *source*.

    It depends on every byte and every name in the archive, and on the version of Python and the platform. So a changed
    environment never has the name of an old one.
    """
    digest = _digest("archive", source.python, source.platform, _hashes(packages), _hashes(source.modules))
    return f"{PREFIX}{source.python}-{digest}.tar.gz"


def is_archive_name(name: Any) -> bool:
    """Return whether *name* is one that :func:`archive_name` returns."""
    return isinstance(name, str) and _ARCHIVE.fullmatch(name) is not None


def is_beside(module: str, folder: Path) -> bool:
    """Return whether *folder* has a module of this name, which is none of the standard library."""
    if module in sys.stdlib_module_names:
        return False
    return (folder / f"{module}.py").is_file() or (folder / module / "__init__.py").is_file()


def missing_imports(environment: QarnotEnvironment, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the modules beside the DAG file that a module of *environment* imports, and that it does not bring.

    Only imports at the level of the module count, because others may never run on a node.

    :param folder: folder of the DAG file.
    :return: the file, and the module that it imports.
    """

    @cache  # many files import the same
    def is_missing(module: str) -> bool:
        return is_beside(module, folder) and not environment.ships(module)

    for name in environment.modules:
        path = find_module(name, folder)
        if path is None or not path.is_relative_to(folder):
            continue
        for file in islice(sorted(path.rglob("*.py")) if path.is_dir() else [path], _MAX_SEARCHED_FILES):
            for module in _imports_of(file, file.stat().st_mtime_ns) if file.is_file() else ():
                if is_missing(module):
                    yield file.relative_to(folder).as_posix(), module


@lru_cache(maxsize=1024)
def _imports_of(file: Path, _changed: int) -> tuple[str, ...]:
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ()  # the node tells it
    names = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    names += [
        node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module and not node.level
    ]
    return tuple(dict.fromkeys(name.partition(".")[0] for name in names))


def find_module(name: str, folder: Path) -> Path | None:
    """Return the file or folder of a module: beside the DAG file, or where Python finds it."""
    if is_path(name):
        path = folder / name
        return path if path.exists() else None
    for path in (folder / name, folder / f"{name}.py"):
        if path.is_file() or (path.is_dir() and any(path.rglob("*.py"))):
            return path
    return None if name in sys.stdlib_module_names else _find_installed(name)


def _find_installed(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.origin and Path(spec.origin).is_file() else None


def check_files(environment: QarnotEnvironment, *folders: Path) -> None:
    """Refuse a requirements file or a module that does not exist, and requirements that name other files.

    :param folders: folders that may be that of the DAG file. The message names the first one.
    """
    lines = environment.requirements
    if isinstance(lines, str):
        found = [folder / lines for folder in folders if (folder / lines).is_file()]
        lines = _read_requirements((found or [folders[0] / lines])[0])
    _cleaned(lines)
    _module_paths(environment.modules, *folders)


def folders_being_loaded() -> list[Path]:
    """Return the folders of the files that are being imported, one of which is the DAG file when that is parsed."""
    files: list[str] = []
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            files.append(frame.f_code.co_filename)
        frame = frame.f_back
    return list(dict.fromkeys(Path(file).resolve().parent for file in files))


def folder_of(function: Callable[..., Any]) -> Path:
    """Return the folder of the file that defines *function*."""
    return Path(function.__code__.co_filename).resolve().parent


def is_path(name: str) -> bool:
    """Return whether *name* is a path and no name of a module."""
    return "/" in name or name.endswith(".py")


def _module_paths(names: Sequence[str], *folders: Path) -> list[Path]:
    """Return the file or folder of each module. Refuse one that is missing, and two that are imported by one name."""
    found: dict[str, tuple[str, Path]] = {}
    for name in names:
        path = next((path for folder in folders if (path := find_module(name, folder))), None)
        if path is None:
            raise _missing_module(name, folders[0])
        other, place = found.setdefault(path.stem, (name, path))
        if place.resolve() != path.resolve():
            raise _refusal(
                "modules",
                f"has two modules named {path.stem!r}, got {other!r} and {name!r}",
                "Rename one. A function imports both by that name.",
            )
    return [path for _, path in found.values()]


def _files_of_module(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_file():
        yield path.name, path.read_bytes()
        return
    for file in sorted(path.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            yield f"{path.name}/{file.relative_to(path).as_posix()}", file.read_bytes()


def _missing_module(name: str, folder: Path) -> QarnotInvalidSpecError:
    return _refusal(
        "modules",
        f"has a module that is neither beside the DAG file in {folder} nor installed here, got {name!r}",
        "Correct the name, or give the path beginning at the folder of the DAG file.",
    )


def _read_requirements(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _refusal(
            "requirements",
            f"is a text, and the file {path} cannot be read ({type(error).__name__})",
            "Give a list such as ['pandas==2.2.3'], or the path of a file beginning at the folder of the DAG file.",
        ) from None


def _cleaned(lines: Sequence[str]) -> tuple[str, ...]:
    """Return the lines without comments, joined where they go on."""
    text = "\n".join(lines).replace("\\\n", " ")
    found = [re.sub(r"(^|\s)#.*$", "", line).strip() for line in text.splitlines()]
    for line in found:
        if line.startswith(_FOREIGN_OPTIONS) and not line.startswith("--config"):
            raise _refusal(
                "requirements",
                f"refers to another file or folder, got {line.split()[0]!r}",
                "Write the requirements themselves; modules= takes code of the bundle.",
            )
    return tuple(line for line in found if line)


def _index_of_worker() -> dict[str, str]:
    """Return the variables that choose the index. A login is left out, because it may change any day."""
    return {
        name: re.sub(r"//[^/@\s]*@", "//", value)
        for name, value in os.environ.items()
        if _INDEX_VARIABLE.fullmatch(name)
    }


def _local_files(lines: Sequence[str]) -> dict[str, Path]:
    """Return the files of this machine that requirements name, and those in the folders that they name."""
    found: dict[str, Path] = {}
    for word in (word for line in lines for word in line.split()):
        if "/" not in word and not word.endswith((".whl", ".zip", ".tar.gz")):
            continue
        path = Path(unquote(re.sub(r"^(?:--?[a-z-]+=)?(?:file://(?:localhost)?)?", "", word)))
        if path.is_file():
            found[word] = path
        elif path.is_dir():
            found |= {f"{word}/{one.name}": one for one in path.iterdir() if one.is_file()}
    return found


def _hashes(files: Mapping[str, bytes | Path]) -> list[list[str]]:
    return [
        [name, hashlib.sha256(data if isinstance(data, bytes) else data.read_bytes()).hexdigest()]
        for name, data in sorted(files.items())
    ]


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps([_LAYOUT, *parts]).encode()).hexdigest()[:32]


def _check_texts(field: str, value: Any, remedy: str) -> None:
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) and item.strip() for item in value):
        return
    raise _refusal(field, f"is no list of texts, got {short_repr(value)}", remedy)


def _refusal(field: str, problem: str, remedy: str) -> QarnotInvalidSpecError:
    return QarnotInvalidSpecError(
        f"environment.{field} {problem}", field=f"environment.{field}", remedy=remedy
    )
