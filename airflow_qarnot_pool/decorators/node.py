"""Program that runs on the node for ``@task.qarnot``. It is sent there as text, for Python 3.8 or newer.

It uses the standard library only. The first process (:func:`main`) unpacks the environments, enforces the timeout and
prints the report. The second one (:func:`call`) runs the function, because the first has to report its crash,
``os._exit`` or hang. The second process of an array (:func:`serve`) runs the items of its instance one after another.
"""

from __future__ import annotations
import __future__

import ast
import base64
import contextlib
import copy
import fcntl
import glob
import hashlib
import importlib.util
import json
import linecache
import os
import pickle
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import traceback
import types
import zlib
from collections.abc import Iterator
from typing import Any

from airflow_qarnot_pool.parameters.array_rounds import items_of
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
#: The same for the results of an item, or of an instance, that need not be in the output because a bucket takes them.
MAX_SMALL = 10_000
#: The same for the traceback of an item of an array, because there may be thousands.
MAX_ITEM_DETAIL = 4_000
#: Maximum bytes of the file with the results of an instance.
MAX_FILE = 256 * 1024 * 1024
#: Maximum characters of the reason for which an item skips.
MAX_ITEM_SKIP = 200
#: Maximum number of errors in the last report of an instance, because all but the last have a report before.
MAX_ERRORS = 20
#: Maximum characters of the progress that the items of an instance have reported.
MAX_PROGRESS = 200_000
#: Name of the module with which a function reports its progress.
PROGRESS = "airflow_qarnot_pool.progress"
#: Name of the exception with which a function skips its Airflow task.
SKIP = "AirflowSkipException"


def main(payload: dict[str, Any]) -> None:
    """Run the function of *payload*, print the report as the last line, and exit with 0 or 1."""
    if payload["array"]:
        sys.exit(run_items(payload))
    report = run(payload)
    print_error(report)
    print_report(payload, report)
    sys.exit(1 if "error" in report else 0)


def print_error(report: dict[str, Any], where: str = "") -> None:
    """Print the error of *report*, if it has one, and *where* it is."""
    if "error" in report:
        text = "{summary}\n{detail}".format(**report["error"]).rstrip()
        print(where + text, file=sys.stderr, flush=True)


def print_report(payload: dict[str, Any], report: dict[str, Any]) -> None:
    """Print *report* as a line of the output."""
    data = base64.urlsafe_b64encode(zlib.compress(json.dumps(report).encode(), 9)).decode()
    # The last line of the function may lack its newline.
    print("\n{} {} {}".format(MARK, payload["nonce"], data), flush=True)


def run(payload: dict[str, Any]) -> dict[str, Any]:
    """Return one of ``{"value"}``, ``{"file", "sha256"}``, ``{"skip"}`` and ``{"error": {"summary", "detail"}}``."""
    deadline, name = _deadline(payload), payload["function"]["name"]
    try:
        with tempfile.TemporaryDirectory(prefix="airflow-qarnot-") as scratch:
            interpreter, environment = _prepare(payload, deadline)
            report = _run_function(
                payload, interpreter, os.path.join(scratch, "report"), environment, _seconds_left(deadline)
            )
    except subprocess.TimeoutExpired:
        return _took_too_long(payload)
    except EnvironmentProblem as error:
        return _error(f"{name}() has no environment on the node: {error}")
    return _fitting(report, payload)


def _prepare(payload: dict[str, Any], deadline: float | None) -> tuple[str, dict[str, str]]:
    """Return the Python and the environment variables of the process that runs the function."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
    # Its output is visible while it runs, and both streams stay in order.
    environment.setdefault("PYTHONUNBUFFERED", "1")
    archives = find_environments(payload["environment"], payload["pool_environment"])
    interpreter = find_interpreter(archives)
    paths = [path for archive in archives for path in unpack(archive, deadline)]
    paths.append(environment.get("PYTHONPATH") or "")
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    if not environment["PYTHONPATH"]:
        del environment["PYTHONPATH"]
    return interpreter, environment


def _fitting(report: dict[str, Any], payload: dict[str, Any]) -> dict[str, Any]:
    """Return *report*, or one about a file or an error if the result does not fit into the output."""
    text = report.get("value", "")
    if len(text) <= MAX_RESULT:
        return report
    if payload["result_file"]:
        return _write_result(payload["result_file"], text)
    return _error(
        "{}() returned too much: {:,} characters as {}, and {:,} fit".format(
            payload["function"]["name"], len(text), payload["serializer"], MAX_RESULT
        ),
        "Give payload_bucket= (without result_bucket=) to bring it back by bucket, or write it to a file, "
        "give result_bucket= and return the file's name.",
    )


def _write_result(name: str, text: str) -> dict[str, Any]:
    """Write a result to a file that Qarnot brings to the bucket, and return the report of it."""
    data = text.encode()
    with open(os.path.join(os.environ.get("TASK_PATH") or ".", name), "wb") as file:
        file.write(data)
    return {"file": name, "sha256": hashlib.sha256(data).hexdigest()}


class EnvironmentProblem(Exception):
    """An environment is not there, or cannot be used on this node."""


def find_environments(own: str | None, of_pool: str | None) -> list[str]:
    """Return the archives of the call and of its pool.

    :param own: name of the archive that the call brings.
    :param of_pool: name of the archive that the DAG run has brought to the pool; None if the pool has at most one.
    """
    task = os.path.abspath(os.environ.get("TASK_PATH") or ".")
    archives = []
    if own:
        archives.append(os.path.join(task, own))
        if not os.path.exists(archives[0]):
            raise EnvironmentProblem(f"the file {own} was not brought to {task}")
    # The resources of a pool are in the folder above those of its tasks. A task that left its pool has both in one.
    folder = os.path.dirname(task)
    if of_pool:
        named = [*_files(folder, glob.escape(of_pool)), *_files(task, glob.escape(of_pool))]
        if not named:
            raise EnvironmentProblem(f"the file {of_pool} was not brought to {folder}")
        return archives + named[:1]
    found = [*_files(folder, ENVIRONMENT + "*.tar.gz"), *_files(task, ENVIRONMENT + "*.tar.gz")]
    found = [path for path in found if path not in archives]
    if len(found) > 1:
        names = ", ".join(sorted(map(os.path.basename, found)))
        raise EnvironmentProblem(
            f"the pool has several ({names}), and the call does not say which one. Give the output of the task that "
            "opens the pool as qarnot_pool"
        )
    return archives + found


def _files(folder: str, pattern: str) -> list[str]:
    return glob.glob(os.path.join(glob.escape(folder), pattern))


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
                _extract(archive, target)
    return [os.path.join(target, name) for name in ("modules", "packages")]


def _extract(archive: str, target: str) -> None:
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


def _run_function(
    payload: dict[str, Any],
    interpreter: str,
    report: str,
    environment: dict[str, str],
    timeout: float | None,
) -> dict[str, Any]:
    # "-c" puts the current directory on the path, from which modules of a resource bucket can be imported.
    process = subprocess.Popen(
        [interpreter, "-c", payload["node"], report],
        stdin=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    try:
        process.communicate(_task_of(payload), timeout=timeout)
    finally:
        _end_session(process)
    if os.path.exists(report):
        with open(report, encoding="utf-8") as file:
            return dict(json.load(file))
    return _died(payload, process.returncode)


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """End *process* and all that it has started, which would slow down what runs next."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _died(payload: dict[str, Any], code: int) -> dict[str, Any]:
    name = payload["function"]["name"]
    if code < 0:
        hint = " (often: no memory left)" if code == -9 else ""
        return _error(f"{name}() was killed on the node by signal {-code}{hint}")
    return _error(f"{name}() ended its process on the node with code {code}, without a result")


def _task_of(payload: dict[str, Any]) -> bytes:
    return json.dumps(
        {key: payload[key] for key in ("function", "arguments", "serializer", "modules", "array")}
    ).encode()


# --- an array


class Items:
    """The arguments of the items of an array: each combination of the lists, the last of which varies fastest."""

    def __init__(self, arguments: str, serializer: str, names: list[str]) -> None:
        self._args, kwargs = decode(arguments, serializer)
        self._lists = [(name, kwargs.pop(name)) for name in names]
        self._kwargs = kwargs

    def arguments(self, item: int) -> tuple[Any, dict[str, Any]]:
        """Return the positional and named arguments of *item*."""
        kwargs = dict(self._kwargs)
        for name, values in reversed(self._lists):
            item, index = divmod(item, len(values))
            kwargs[name] = values[index]
        # An item that changes its arguments does not change those of the next one.
        return copy.deepcopy((self._args, kwargs))


def run_items(payload: dict[str, Any]) -> int:
    """Run the items of this instance one after another, and return 1 if one of them failed.

    Each item is reported when it has ended, and all of them once more at the end, because Qarnot keeps only the end of
    an output.
    """
    array, instance = os.environ[PREFIX + "ARRAY"], int(os.environ.get("INSTANCE_ID") or 0)
    items = items_of(array, payload["array"]["total"], instance)
    # With a bucket, the output has small results only.
    fits = MAX_SMALL if payload["result_file"] else MAX_RESULT
    outcomes: dict[int, dict[str, Any]] = {}
    progress: dict[int, Any] = {}
    size = written = told = 0
    # The outcomes come first, because their last step ends the process.
    for outcome, item in zip(outcomes_of(payload, items), items):  # noqa: B905
        values = outcome.pop("progress", None)
        told += len(json.dumps(values)) if values else 0
        if values and told <= MAX_PROGRESS:
            progress[item] = values
        value = outcome.get("value", "")
        length = _length_in_file(payload, value)
        if written + length > MAX_FILE or (not length and size + len(value) > MAX_RESULT):
            outcome, value, length = _returned_too_much(payload), "", 0
        size, written = size + len(value), written + length
        print_error(outcome, f"Item {item}: ")
        outcomes[item] = outcome
        if item != items[-1] and (size <= fits or "value" not in outcome):
            print_report(payload, {"items": {item: outcome}, **_progress_of(progress, [item])})
    file = (
        "{}-{}-{}".format(payload["result_file"], array.partition(" ")[0], instance) if size > fits else None
    )
    print_report(
        payload, {"instance": instance, **_last_report(outcomes, file), **_progress_of(progress, items)}
    )
    return int(any("error" in outcome for outcome in outcomes.values()))


def _progress_of(progress: dict[int, Any], items: list[int]) -> dict[str, Any]:
    found = {item: progress[item] for item in items if item in progress}
    return {"progress": found} if found else {}


def _length_in_file(payload: dict[str, Any], value: str) -> int:
    return len(json.dumps(value)) + 20 if payload["result_file"] else 0


def _returned_too_much(payload: dict[str, Any]) -> dict[str, Any]:
    name, serializer = payload["function"]["name"], payload["serializer"]
    if payload["result_file"]:
        return _error(
            f"{name}() returned too much: the file with the results of an instance is more than {MAX_FILE:,} bytes",
            "Set a smaller chunk_size, or let the function write files and return their names.",
        )
    return _error(
        f"{name}() returned too much: the results of an instance are more than {MAX_RESULT:,} characters as "
        f"{serializer}",
        "Give payload_bucket= (without result_bucket=) to bring them back by bucket, or a smaller chunk_size=.",
    )


def _last_report(outcomes: dict[int, dict[str, Any]], file: str | None) -> dict[str, Any]:
    """Return the report of all items, whose results go to *file* if one is given."""
    failed = [item for item, outcome in outcomes.items() if "error" in outcome]
    ended = {item: outcome for item, outcome in outcomes.items() if item not in failed[MAX_ERRORS:-1]}
    if file is None:
        return {"items": ended}
    values = {item: outcome["value"] for item, outcome in outcomes.items() if "value" in outcome}
    return {
        "items": {item: outcome for item, outcome in ended.items() if item not in values},
        "sizes": {item: len(value) for item, value in values.items()},
        **_write_result(file, json.dumps(values)),
    }


def outcomes_of(payload: dict[str, Any], items: list[int]) -> Iterator[dict[str, Any]]:
    """Yield the outcome of each of *items*. All of them run in one process, unless an item ends it."""
    name = payload["function"]["name"]
    process: ItemProcess | None = None
    deadline = _deadline(payload)
    try:
        interpreter, environment = _prepare(payload, deadline)
    except subprocess.TimeoutExpired:
        yield from (_took_too_long(payload) for _ in items)
        return
    except EnvironmentProblem as error:
        problem = _error(f"{name}() has no environment on the node: {error}")
        yield from (problem for _ in items)
        return
    for item in items:
        process = process or ItemProcess(payload, interpreter, environment)
        try:
            outcome = process.run(item, _deadline(payload))
        except subprocess.TimeoutExpired:
            outcome = _took_too_long(payload)
            process.end()
        if outcome is None:
            outcome = _died(payload, process.end(1.0))
        if process.ended:
            process = None
        yield _shortened(outcome)
    if process is not None:
        process.end(5.0)


def _shortened(outcome: dict[str, Any]) -> dict[str, Any]:
    """Return *outcome* with texts that may be repeated thousands of times."""
    if "error" in outcome:
        outcome["error"]["detail"] = outcome["error"]["detail"][-MAX_ITEM_DETAIL:]
    elif "skip" in outcome:
        outcome["skip"] = outcome["skip"][:MAX_ITEM_SKIP]
    return outcome


class ItemProcess:
    """The process that runs the items of an instance, one at a time."""

    def __init__(self, payload: dict[str, Any], interpreter: str, environment: dict[str, str]) -> None:
        self._channel, other = socket.socketpair()
        with other:
            self._process = subprocess.Popen(
                [interpreter, "-c", payload["node"], "--items", str(other.fileno())],
                stdin=subprocess.PIPE,
                env=environment,
                pass_fds=[other.fileno()],
                start_new_session=True,
            )
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(_task_of(payload))
            self._process.stdin.close()
        except OSError:
            pass  # it has ended, which run() reports
        self.ended = False

    def run(self, item: int, deadline: float | None) -> dict[str, Any] | None:
        """Return the outcome of *item*; None if the process has ended instead.

        :raises subprocess.TimeoutExpired: the deadline has passed.
        """
        received = b""
        try:
            self._channel.sendall(b"%d\n" % item)
            while not received.endswith(b"\n"):
                left = _seconds_left(deadline)
                if select.select([self._channel], [], [], 1.0 if left is None else min(left, 1.0))[0]:
                    data = self._channel.recv(1 << 20)
                    if not data:
                        return None
                    received += data
                elif self._process.poll() is not None:
                    return None  # a process that the function left behind keeps the channel open
                elif left == 0.0:
                    raise subprocess.TimeoutExpired("items", 0)
            answer = json.loads(received)
        except (OSError, ValueError):
            return None
        # The function can reach the socket, so a line may be none of serve().
        return dict(answer["outcome"]) if answer["item"] == item else None

    def end(self, patience: float = 0.0) -> int:
        """End the process, which has *patience* seconds to end by itself, and return its exit code."""
        self.ended = True
        self._channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        _end_session(self._process)
        return self._process.wait()


def serve(descriptor: int) -> None:
    """Run the items whose numbers come over the socket *descriptor*, in this process, and send back their outcomes."""
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    process = os.getpid()
    task = json.load(sys.stdin)
    arguments: Items | None = None
    for line in channel.makefile("rb"):
        try:
            if arguments is None:
                function = load_function(task)
                arguments = Items(task["arguments"], task["serializer"], task["array"]["names"])
            outcome = outcome_of(task, function, *arguments.arguments(int(line)))
        except BaseException as error:
            outcome = _outcome_of(error, task["function"]["name"])
        if os.getpid() != process:
            os._exit(1)  # a fork of the function, whose end is no outcome
        outcome = {**outcome, "progress": take_progress()}
        channel.sendall(json.dumps({"item": int(line), "outcome": outcome}).encode() + b"\n")


def take_progress() -> Any:
    """Return the progress that the function has reported last, and forget it, because the next item has its own."""
    module = sys.modules.get(PROGRESS)
    values = getattr(module, "last", None)
    if module is not None:
        module.__dict__["last"] = None
    return values


# --- the process that runs the function


def load_function(task: dict[str, Any]) -> Any:
    """Make the function of *task* in this process."""
    for module, source in task["modules"].items():
        _add_module(module, source)
    if SKIP in task["function"]["source"]:
        _stand_in_for_airflow()
    return load(task["function"])


def outcome_of(task: dict[str, Any], function: Any, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a call, as a report."""
    value = function(*args, **kwargs)
    if hasattr(value, "__await__"):
        import asyncio

        value = asyncio.run(value)
    return {"value": encode(value, task["serializer"], task["function"]["name"] + "() returned")}


def call(report: str) -> None:
    """Run the function that standard input describes, in this process, and write the outcome to the file *report*."""
    task = json.load(sys.stdin)
    try:
        outcome = outcome_of(task, load_function(task), *decode(task["arguments"], task["serializer"]))
    except BaseException as error:
        # SystemExit, too, because a function that ends its process has no result.
        outcome = _outcome_of(error, task["function"]["name"])
    with open(report + ".part", "w", encoding="utf-8") as file:
        json.dump(outcome, file)
    os.replace(report + ".part", report)


def _outcome_of(error: BaseException, name: str) -> dict[str, Any]:
    if any(base.__name__ == SKIP for base in type(error).__mro__):
        return {"skip": f"{name}() skipped: {error}"[:2000]}
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals is globals():
        trace = trace.tb_next
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


def _deadline(payload: dict[str, Any]) -> float | None:
    limit = payload["timeout"]
    return None if limit is None else time.monotonic() + float(limit)


def _took_too_long(payload: dict[str, Any]) -> dict[str, Any]:
    return _error(
        "{}() was killed on the node: it took longer than timeout={} s".format(
            payload["function"]["name"], payload["timeout"]
        ),
        "The timeout counts the unpacking of the environment, too. Raise it if the function needs longer.",
    )


def _seconds_left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _error(summary: str, detail: str = "") -> dict[str, Any]:
    return {"error": {"summary": summary[:2000], "detail": detail[-MAX_DETAIL:]}}


if __name__ == "__main__":
    if sys.argv[1] == "--items":
        serve(int(sys.argv[2]))
    else:
        call(sys.argv[1])
