"""Program that runs on the node for ``@task.qarnot``. It is sent there as text, for Python 3.8 or newer.

It uses the standard library only. The first process (:func:`main`) unpacks the environments, enforces the timeout and
prints the report. The second one (:func:`call`) runs the function, because the first has to report its crash,
``os._exit`` or hang.
"""

from __future__ import annotations
import __future__

import ast
import base64
import fcntl
import glob
import hashlib
import importlib.util
import json
import linecache
import os
import pickle
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import traceback
import types
import zlib
from typing import Any

from airflow_qarnot_pool.parameters.json_values import json_problem

#: Prefix of the constants that contain the function.
PREFIX = "AIRFLOW_QARNOT_PY_"
#: Prefix of the line that contains the report. The function cannot print such a line, because it lacks the nonce.
MARK = "AIRFLOW_QARNOT_RESULT"
#: Prefix of the files with environments, which Qarnot brings to the node.
ENVIRONMENT = "airflow-qarnot-environment-"
#: Maximum characters of a result in the output.
MAX_RESULT = 1_000_000
#: Maximum characters of a traceback. Its end matters most.
MAX_DETAIL = 20_000
#: Name of the exception with which a function skips its Airflow task.
SKIP = "AirflowSkipException"


def main(payload: dict[str, Any]) -> None:
    """Run the function of *payload*, print the report as the last line, and exit with 0 or 1."""
    report = run(payload)
    if "error" in report:
        print("{summary}\n{detail}".format(**report["error"]).rstrip(), file=sys.stderr, flush=True)
    data = base64.urlsafe_b64encode(zlib.compress(json.dumps(report).encode(), 9)).decode()
    # The last line of the function may lack its newline.
    print("\n{} {} {}".format(MARK, payload["nonce"], data), flush=True)
    sys.exit(1 if "error" in report else 0)


def run(payload: dict[str, Any]) -> dict[str, Any]:
    """Return one of ``{"value"}``, ``{"file", "sha256"}``, ``{"skip"}`` and ``{"error": {"summary", "detail"}}``."""
    limit = payload["timeout"]
    deadline = None if limit is None else time.monotonic() + limit
    name = payload["function"]["name"]
    try:
        with tempfile.TemporaryDirectory(prefix="airflow-qarnot-") as scratch:
            environment = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
            # Its output is visible while it runs, and both streams stay in order.
            environment.setdefault("PYTHONUNBUFFERED", "1")
            archives = find_environments(payload["environment"])
            interpreter = find_interpreter(archives)
            paths = [path for archive in archives for path in unpack(archive, deadline)]
            paths.append(environment.get("PYTHONPATH") or "")
            environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
            if not environment["PYTHONPATH"]:
                del environment["PYTHONPATH"]
            report = _run_function(
                payload, interpreter, os.path.join(scratch, "report"), environment, _seconds_left(deadline)
            )
    except subprocess.TimeoutExpired:
        return _error(
            f"{name}() was killed on the node: it took longer than timeout={limit} s",
            "The timeout counts the unpacking of the environment, too. Raise it if the function needs longer.",
        )
    except EnvironmentProblem as error:
        return _error(f"{name}() has no environment on the node: {error}")
    return _fitting(report, payload)


def _fitting(report: dict[str, Any], payload: dict[str, Any]) -> dict[str, Any]:
    """Return *report*, or one about a file or an error if the result does not fit into the output."""
    text = report.get("value", "")
    if len(text) <= MAX_RESULT:
        return report
    if payload["result_file"]:
        data = text.encode()
        with open(os.path.join(os.environ.get("TASK_PATH") or ".", payload["result_file"]), "wb") as file:
            file.write(data)
        return {"file": payload["result_file"], "sha256": hashlib.sha256(data).hexdigest()}
    return _error(
        "{}() returned too much: {:,} characters as {}, and {:,} fit".format(
            payload["function"]["name"], len(text), payload["serializer"], MAX_RESULT
        ),
        "Give payload_bucket= (without result_bucket=) to bring it back by bucket, or write it to a file, "
        "give result_bucket= and return the file's name.",
    )


class EnvironmentProblem(Exception):
    """An environment is not there, or cannot be used on this node."""


def find_environments(own: str | None) -> list[str]:
    """Return the archives of the call and of its pool.

    :param own: name of the archive that the call brings.
    """
    task = os.path.abspath(os.environ.get("TASK_PATH") or ".")
    archives = []
    if own:
        archives.append(os.path.join(task, own))
        if not os.path.exists(archives[0]):
            raise EnvironmentProblem(f"the file {own} was not brought to {task}")
    # The resources of a pool are in the folder above those of its tasks.
    of_pool = glob.glob(os.path.join(glob.escape(os.path.dirname(task)), ENVIRONMENT + "*.tar.gz"))
    if len(of_pool) > 1:
        names = ", ".join(sorted(map(os.path.basename, of_pool)))
        raise EnvironmentProblem(f"the pool has several, and which one is meant is not known: {names}")
    return archives + of_pool


def find_interpreter(archives: list[str]) -> str:
    """Return the Python that the environments are for: the running one, or another of the ``PATH``."""
    versions = {os.path.basename(archive)[len(ENVIRONMENT) :].partition("-")[0] for archive in archives}
    here = "{}.{}".format(*sys.version_info)
    if versions <= {here}:
        return sys.executable
    if len(versions) > 1:
        raise EnvironmentProblem("that of the call and that of the pool are for different versions of Python")
    (version,) = versions
    test = f"import sys; sys.exit('{{}}.{{}}'.format(*sys.version_info) != {version!r})"
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        candidate = os.path.join(folder, "python" + version)
        if (
            os.access(candidate, os.X_OK)
            and not subprocess.run(
                [candidate, "-c", test], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
            ).returncode
        ):
            return candidate
    raise EnvironmentProblem(
        f"it is for Python {version}, and the node has Python {here}. Give python={here!r} in the environment, or an "
        f"image with Python {version}"
    )


def private_folder() -> str:
    """Return the folder for temporary files of this user, in which no other user can put code."""
    folder = os.path.join(tempfile.gettempdir(), f"airflow-qarnot-{os.getuid()}")
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        found = os.lstat(folder)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise EnvironmentProblem(f"other users can write to {folder}. Delete it") from None
    return folder


def unpack(archive: str, deadline: float | None) -> list[str]:
    """Unpack *archive* unless another call on this node has done it, and return the folders for the path."""
    folder = os.path.dirname(archive)
    task = os.path.abspath(os.environ.get("TASK_PATH") or ".")
    if folder == task or not os.access(folder, os.W_OK):
        folder = private_folder()  # files in the folder of the task would be results
    target = os.path.join(folder, os.path.basename(archive)[: -len(".tar.gz")])
    if not os.path.exists(target):
        with open(target + ".lock", "w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if deadline is not None and time.monotonic() > deadline:
                        raise subprocess.TimeoutExpired("unpack", 0) from None
                    time.sleep(0.02)
            if not os.path.exists(target):
                import tarfile

                part = target + ".part"
                shutil.rmtree(part, ignore_errors=True)
                try:
                    with tarfile.open(archive) as file:
                        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
                        file.extractall(part, **safe)  # type: ignore[arg-type]
                except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
                    raise EnvironmentProblem(
                        f"its archive cannot be unpacked ({type(error).__name__}: {error})"
                    ) from None
                os.makedirs(part, exist_ok=True)
                os.rename(part, target)
    return [os.path.join(target, name) for name in ("modules", "packages")]


def _run_function(
    payload: dict[str, Any],
    interpreter: str,
    report: str,
    environment: dict[str, str],
    timeout: float | None,
) -> dict[str, Any]:
    # "-c" puts the current directory on the path, from which modules of a resource bucket can be imported.
    process = subprocess.Popen(
        [interpreter, "-c", payload["node"], report], stdin=subprocess.PIPE, env=environment
    )
    task = {key: payload[key] for key in ("function", "arguments", "serializer", "modules")}
    try:
        process.communicate(json.dumps(task).encode(), timeout=timeout)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if os.path.exists(report):
        with open(report, encoding="utf-8") as file:
            return dict(json.load(file))
    name, code = payload["function"]["name"], process.returncode
    if code < 0:
        hint = " (often: no memory left)" if code == -9 else ""
        return _error(f"{name}() was killed on the node by signal {-code}{hint}")
    return _error(f"{name}() ended its process on the node with code {code}, without a result")


def call(report: str) -> None:
    """Run the function that standard input describes, in this process, and write the outcome to the file *report*."""
    task = json.load(sys.stdin)
    name = task["function"]["name"]
    try:
        for module, source in task["modules"].items():
            _add_module(module, source)
        if SKIP in task["function"]["source"]:
            _stand_in_for_airflow()
        function = load(task["function"])
        args, kwargs = decode(task["arguments"], task["serializer"])
        value = function(*args, **kwargs)
        if hasattr(value, "__await__"):
            import asyncio

            value = asyncio.run(value)
        outcome = {"value": encode(value, task["serializer"], name + "() returned")}
    except BaseException as error:
        # SystemExit, too, because a function that ends its process has no result.
        outcome = _outcome_of(error, name)
    with open(report + ".part", "w", encoding="utf-8") as file:
        json.dump(outcome, file)
    os.replace(report + ".part", report)


def _outcome_of(error: BaseException, name: str) -> dict[str, Any]:
    if any(base.__name__ == SKIP for base in type(error).__mro__):
        return {"skip": f"{name}() skipped: {error}"[:2000]}
    trace = error.__traceback__.tb_next if error.__traceback__ else None
    lines = traceback.format_exception(type(error), error, trace)
    return _error(
        f"{name}() raised {traceback.format_exception_only(type(error), error)[-1].strip()}",
        "".join(lines),
    )


def _add_module(name: str, source: str) -> None:
    """Make a module of this provider importable from its source, unless the node has the provider."""
    parent, _, child = name.rpartition(".")
    if importlib.util.find_spec(parent) is not None:
        return
    package, module = types.ModuleType(parent), types.ModuleType(name)
    exec(compile(source, child + ".py", "exec", dont_inherit=True), module.__dict__)
    setattr(package, child, module)
    sys.modules.update({parent: package, name: module})


def _stand_in_for_airflow() -> None:
    """Make the exception that skips importable on a node without Airflow, from the modules that have it."""
    if importlib.util.find_spec("airflow") is not None:
        return
    skip = type(SKIP, (Exception,), {})
    for name in ("airflow", "airflow.exceptions", "airflow.sdk", "airflow.sdk.exceptions"):
        module = sys.modules[name] = types.ModuleType(name)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
        setattr(module, SKIP, skip)


def load(function: dict[str, Any]) -> Any:
    """Make the function from its source. Tracebacks show its lines, counted from its ``def``."""
    source, label = function["source"], function["file"]
    indented = source[:1].isspace()
    tree = ast.parse(("if True:\n" if indented else "") + source)
    if indented:
        tree.body = ast.increment_lineno(tree, -1).body[0].body
    linecache.cache[label] = (len(source), None, source.splitlines(True), label)
    module = types.ModuleType("qarnot_function")
    module.__file__ = label
    sys.modules[module.__name__] = module
    # Annotations are not evaluated, because they may use names that only the DAG file imports.
    flags = __future__.annotations.compiler_flag
    exec(compile(tree, label, "exec", flags=flags, dont_inherit=True), module.__dict__)
    return getattr(module, function["name"])


def encode(value: Any, serializer: str, what: str) -> str:
    """Return *value* as text. Raises TypeError, which starts with *what* and names the place of the problem."""
    if serializer == "pickle":
        return base64.b64encode(pickle.dumps(value, protocol=4)).decode()
    problem = json_problem(value)
    if problem:
        raise TypeError(
            f"{what} {problem}, which is not JSON; give plain values (text, numbers, lists, dicts with text keys), "
            "or serializer='pickle'"
        )
    problem = json_problem(value, for_xcom=True)
    if problem:
        raise ValueError(f"{what} {problem}, which no XCom can have; return None or text in its place")
    return json.dumps(value)


def decode(text: str, serializer: str) -> Any:
    """Return the value of which :func:`encode` returned *text*."""
    return pickle.loads(base64.b64decode(text)) if serializer == "pickle" else json.loads(text)


def _seconds_left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _error(summary: str, detail: str = "") -> dict[str, Any]:
    return {"error": {"summary": summary[:2000], "detail": detail[-MAX_DETAIL:]}}


if __name__ == "__main__":
    call(sys.argv[1])
