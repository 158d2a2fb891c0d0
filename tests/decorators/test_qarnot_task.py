"""``@task.qarnot`` against the local Qarnot."""

from __future__ import annotations

import base64
import json
import random
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, XComArg, task

from airflow_qarnot_pool.api import command_array
from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.decorators import node, payload
from airflow_qarnot_pool.decorators.qarnot import DEFAULT_IMAGE, qarnot_task
from airflow_qarnot_pool.exceptions import QarnotInvalidSpecError, QarnotProtocolError, QarnotTaskFailedError
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup
from airflow_qarnot_pool.version_compat import AirflowSkipException
from tests.harness import FakeTI, defer, resume, run

MODES = pytest.mark.parametrize("deferrable", [True, False], ids=["deferred", "on the worker"])


def made(function: Callable[..., Any], *args: Any, **parameters: Any) -> Any:
    """The operator of a call, as a worker makes it. ``kwargs``: keyword arguments of the function."""
    kwargs = parameters.pop("kwargs", {})
    return qarnot_task(**parameters)(function)(*args, **kwargs).operator


def call(pool: str, function: Callable[..., Any], *args: Any, ti: FakeTI | None = None, **more: Any) -> Any:
    """Run a call to its end; every one is another Airflow task."""
    ti = ti or FakeTI(run_id=f"{function.__name__}-{datetime.now(UTC).timestamp()}")
    return run(lambda: made(function, *args, qarnot_pool=pool, **more), ti)


def describe(numbers: list[int], *, scale: float = 1.0, **labels: str) -> dict[str, Any]:
    import os
    import sys

    print("describing", len(numbers), "numbers")
    print("this is no error", file=sys.stderr)
    return {
        "sum": sum(numbers) * scale,
        "labels": labels,
        "left": [name for name in os.environ if name.startswith("AIRFLOW_")],
        "none": None,
        "text": "é\n",
    }


@MODES
def test_a_function_runs_on_a_node_and_its_result_comes_back(
    pool: str, client: QarnotClient, deferrable: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    ti = FakeTI(run_id=f"round-trip-{deferrable}")
    kwargs = {"scale": 0.5, "colour": "secret blue"}
    result = call(pool, describe, [1, 2, 3], kwargs=kwargs, ti=ti, deferrable=deferrable)
    assert result == {
        "sum": 3.0,
        "labels": {"colour": "secret blue"},
        "left": [],
        "none": None,
        "text": "é\n",
    }
    logged = capsys.readouterr().out
    assert "[stdout] describing 3 numbers" in logged
    assert "[stderr] this is no error" in logged
    assert node.MARK not in logged
    assert "secret blue" not in logged
    submitted = client.tasks.get(ti.xcoms["qarnot_task"])
    assert submitted.constants["DOCKER_REPO"] == "library/python"
    assert submitted.pool == pool
    assert len(submitted.constants["DOCKER_CMD"]) <= 2048
    assert "secret blue" not in json.dumps([ti.xcoms, dict(submitted.labels), submitted.tags])


def test_prints_of_the_function_are_never_taken_for_its_result(
    pool: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def imitating() -> str:
        import os

        print("AIRFLOW_QARNOT_RESULT", "0" * 32, "eJyrVipLzClNVbJSSsvPV6oFACfnBM4=")
        print(sorted(os.environ), end="")
        return "the truth"

    assert call(pool, imitating) == "the truth"
    logged = capsys.readouterr().out
    assert "[stdout] AIRFLOW_QARNOT_RESULT 0000" in logged
    assert "AIRFLOW_QARNOT_PY_0" not in logged


@MODES
def test_an_exception_comes_back_with_the_traceback(pool: str, deferrable: bool) -> None:
    def divide(by: int) -> float:
        def inner() -> float:
            # A comment, so that lines can be told apart.
            return 1 / by

        return inner()

    with pytest.raises(QarnotTaskFailedError) as caught:
        call(pool, divide, 0, deferrable=deferrable)
    text = str(caught.value)
    assert text.startswith("divide() raised ZeroDivisionError: division by zero\nTraceback")
    line = divide.__code__.co_firstlineno + 3
    assert f'File "test_qarnot_task.py", line {line}, in inner\n    return 1 / by' in text
    assert "airflow_qarnot_node" not in text
    assert "https://console.example/tasks/" in text


def test_a_result_that_is_not_json_is_refused_on_the_node(pool: str) -> None:
    def when() -> Any:
        import datetime

        return {"at": [datetime.date(2026, 1, 1)]}

    with pytest.raises(
        QarnotTaskFailedError, match=r"returned a value of type date at \['at'\]\[0\].*pickle"
    ):
        call(pool, when)


def test_a_result_that_airflow_cannot_store_is_refused_on_the_node(pool: str) -> None:
    def means(*rows: list[float]) -> dict[str, list[float]]:
        return {"means": [sum(row) / len(row) if row else float("nan") for row in rows]}

    with pytest.raises(
        QarnotTaskFailedError, match=r"returned NaN at \['means'\]\[1\], which no XCom can have"
    ):
        call(pool, means, [1.0], [])


@MODES
def test_a_function_skips_its_airflow_task(pool: str, client: QarnotClient, deferrable: bool) -> None:
    def new_rows(day: str) -> int:
        from airflow.exceptions import AirflowSkipException

        raise AirflowSkipException(f"nothing new on {day}")

    ti = FakeTI(run_id=f"skip-{deferrable}", max_tries=1)
    used = set()
    for try_number in (1, 2):
        ti.try_number = try_number
        with pytest.raises(AirflowSkipException, match=r"^new_rows\(\) skipped: nothing new on Monday$"):
            call(pool, new_rows, "Monday", ti=ti, deferrable=deferrable, task_spec={"retry": 3})
        used.add(ti.xcoms["qarnot_task"])
    assert [client.tasks.get(uuid).state for uuid in used] == ["Success"]


def test_any_exception_of_that_name_skips(pool: str) -> None:
    def own() -> None:
        class AirflowSkipException(Exception):
            pass

        class NothingToDoError(AirflowSkipException):
            pass

        raise NothingToDoError("\n".join(["reason"] * 1000))

    with pytest.raises(AirflowSkipException) as caught:
        call(pool, own)
    assert len(str(caught.value)) == 2000


@MODES
def test_a_function_reports_its_progress(
    pool: str, deferrable: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def render(frames: int) -> int:
        from airflow_qarnot_pool.progress import report

        for frame in range(frames):
            report(progress=(frame + 1) / frames, frames=frame + 1)
        if frames == 3:
            raise ValueError("three")
        return frames

    ti = FakeTI(run_id=f"progress-{deferrable}")
    assert call(pool, render, 4, ti=ti, deferrable=deferrable) == 4
    assert ti.xcoms["qarnot_progress"] == {"progress": 1.0, "frames": 4}
    assert '[stdout] QARNOT_PROGRESS {"progress": 0.25, "frames": 1}' in capsys.readouterr().out
    ti = FakeTI(run_id=f"progress-of-a-failure-{deferrable}")
    with pytest.raises(QarnotTaskFailedError, match="ValueError: three"):
        call(pool, render, 3, ti=ti, deferrable=deferrable)
    assert ti.xcoms["qarnot_progress"]["frames"] == 3


def test_pickle_on_request(pool: str) -> None:
    def later(at: datetime, by: set[int]) -> Any:
        return at.replace(year=at.year + max(by)), by

    at = datetime(2026, 1, 2, tzinfo=UTC)
    result = call(pool, later, at, kwargs={"by": {1, 2}}, serializer="pickle")
    assert result == (datetime(2028, 1, 2, tzinfo=UTC), {1, 2})


def test_nothing_is_unpickled_unless_asked_for(pool: str) -> None:
    def poison() -> str:
        import base64

        return base64.b64encode(b"cos\nsystem\n(S'false'\ntR.").decode()

    assert call(pool, poison) == "Y29zCnN5c3RlbQooUydmYWxzZScKdFIu"


def test_a_process_that_dies_is_told(pool: str) -> None:
    def exits() -> None:
        import os

        os._exit(3)

    def is_killed() -> None:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)

    def leaves() -> None:
        import sys

        sys.exit(0)

    for function, said in ((exits, "with code 3"), (is_killed, "signal 9"), (leaves, "raised SystemExit: 0")):
        with pytest.raises(QarnotTaskFailedError, match=said):
            call(pool, function)


def test_a_function_that_takes_too_long_is_killed_there(pool: str, client: QarnotClient) -> None:
    def sleeps() -> None:
        import time

        time.sleep(600)

    ti = FakeTI(run_id="too-long")
    with pytest.raises(QarnotTaskFailedError, match=r"sleeps\(\) was killed on the node: .* timeout=0.3 s"):
        call(pool, sleeps, timeout=timedelta(seconds=0.3), ti=ti)
    assert client.tasks.get(ti.xcoms["qarnot_task"]).state == "Failure"


def test_async_functions_are_awaited(pool: str) -> None:
    async def later(value: int) -> int:
        import asyncio

        await asyncio.sleep(0)
        return value + 1

    assert call(pool, later, 1) == 2


def test_results_of_mapped_tasks_are_lists_on_the_node(pool: str) -> None:
    class Lazy(Sequence[Any]):
        """As Airflow gives them: not a list, and fetched one by one."""

        def __getitem__(self, index: Any) -> Any:
            return [1, 2, 3][index]

        def __len__(self) -> int:
            return 3

    def kind(values: list[int], nested: dict[str, list[int]]) -> list[Any]:
        return [type(values).__name__, values, nested]

    assert call(pool, kind, Lazy(), kwargs={"nested": {"a": Lazy()}}) == [
        "list",
        [1, 2, 3],
        {"a": [1, 2, 3]},
    ]


# --- large arguments and results


def noise(length: int) -> str:
    """Text that cannot be compressed much below six bits a character."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return "".join(random.Random(7).choices(letters, k=length))


def test_arguments_fit_as_long_as_the_constants_do(pool: str, client: QarnotClient) -> None:
    def size(text: str) -> int:
        return len(text)

    ti = FakeTI(run_id="large")
    assert call(pool, size, noise(200_000), ti=ti) == 200_000
    constants = client.tasks.get(ti.xcoms["qarnot_task"]).constants
    assert all(len(value) <= 2048 for value in constants.values())
    assert 60 < len(constants) <= 150
    with pytest.raises(QarnotInvalidSpecError, match=r"196,608 fit .*payload_bucket.*resource bucket"):
        call(pool, size, noise(400_000))


def test_a_result_that_is_too_large_is_refused_on_the_node(pool: str) -> None:
    def much(length: int) -> str:
        return "x" * length

    assert len(call(pool, much, 999_000)) == 999_000
    with pytest.raises(QarnotTaskFailedError, match=r"1,000,002 characters as json, and 1,000,000 fit"):
        call(pool, much, 1_000_000)


def test_an_argument_that_is_too_large_goes_by_bucket(
    pool: str, client: QarnotClient, qarnot: LocalQarnot, capsys: pytest.CaptureFixture[str]
) -> None:
    boto3 = pytest.importorskip("boto3")

    def doubled(text: str) -> str:
        from pathlib import Path

        Path("scratch.txt").write_text("not a result")
        return text * 2

    ti = FakeTI(run_id="bucket")
    text = noise(600_000)
    assert call(pool, doubled, text, ti=ti, payload_bucket="payloads") == text * 2
    s3 = boto3.client(
        "s3",
        endpoint_url=qarnot.storage_url,
        aws_access_key_id=qarnot.email,
        aws_secret_access_key=qarnot.token,
        region_name="default",
    )
    submitted = client.tasks.get(ti.xcoms["qarnot_task"])
    lineage = submitted.labels["airflow.lineage"]
    keys = [one["Key"].rpartition("/") for one in s3.list_objects_v2(Bucket="payloads")["Contents"]]
    assert {key[0] for key in keys} == {f"airflow-qarnot/{lineage}"}
    assert sorted(key[2].partition("-")[0] for key in keys) == ["payload", "result"]
    assert len(submitted.constants) < 8
    assert text[:100] not in capsys.readouterr().out
    # A small one makes no use of it.
    ti = FakeTI(run_id="bucket-small")
    assert call(pool, doubled, "a", ti=ti, payload_bucket="payloads") == "aa"
    assert len(s3.list_objects_v2(Bucket="payloads")["Contents"]) == 2
    for nothing in ("", "None"):
        operator = made(doubled, "a", qarnot_pool=pool, payload_bucket="{{ params.bucket }}")
        operator.payload_bucket = nothing  # as rendered
        with pytest.raises(QarnotInvalidSpecError, match="payload_bucket is empty"):
            run(lambda operator=operator: operator, FakeTI(run_id="bucket-none"))


def test_files_of_the_function_go_to_the_result_bucket(pool: str, qarnot: LocalQarnot) -> None:
    boto3 = pytest.importorskip("boto3")

    def writes() -> str:
        from pathlib import Path

        Path("table.csv").write_text("1,2\n")
        return "table.csv"

    def reads(name: str) -> str:
        from pathlib import Path

        return Path(name).read_text()

    name = call(pool, writes, task_spec={"result_bucket": "tables"})
    assert call(pool, reads, name, resource_buckets=["tables"]) == "1,2\n"
    assert boto3 is not None


# --- lives


def test_a_retry_takes_up_the_result_of_the_try_before(pool: str, client: QarnotClient) -> None:
    def once(word: str) -> str:
        import uuid

        return word + str(uuid.uuid4())

    def make() -> Any:
        return made(once, "same ", qarnot_pool=pool, serializer="pickle", retries=2)

    deferred, context = defer(make, FakeTI(run_id="retry", max_tries=2))
    first = context["ti"].xcoms["qarnot_task"]
    second = FakeTI(run_id="retry", max_tries=2, try_number=2)
    result = run(make, second)
    assert second.xcoms["qarnot_task"] == first
    assert result.startswith("same ")
    assert resume(make, deferred, context) == result
    cleared = FakeTI(run_id="retry", max_tries=3, try_number=3)
    assert run(make, cleared) != result
    assert cleared.xcoms["qarnot_task"] != first


def test_a_retry_after_a_failure_runs_it_again(pool: str) -> None:
    def fails(number: int) -> None:
        raise RuntimeError(f"number {number}")

    for try_number in (1, 2):
        with pytest.raises(QarnotTaskFailedError, match="RuntimeError: number 7"):
            call(pool, fails, 7, ti=FakeTI(run_id="fails", max_tries=1, try_number=try_number, xcoms={}))


def test_the_function_on_the_node_may_run_in_several_attempts(pool: str) -> None:
    def third_time() -> int:
        from pathlib import Path

        mark = Path("..") / "third-time"
        count = len(mark.read_text()) if mark.exists() else 0
        mark.write_text("x" * (count + 1))
        if count < 2:
            raise RuntimeError("not yet")
        return count

    assert call(pool, third_time, task_spec={"retry": 2}) in (2, 3, 4)


# --- what is refused when the DAG is parsed


def plain(value: Any = None) -> Any:
    return value


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "many instances": ({"instance_count": 2}, "one call has one result"),
    "ranges": ({"task_spec": {"ranges": "0-3"}}, "one call has one result"),
    "many instances by spec": ({"task_spec": {"instance_count": 2}}, "one call has one result"),
    "bucket of results": ({"result_bucket": "b"}, r"Give task_spec=\{'result_bucket': \.\.\.\}"),
    "prefix without a bucket": ({"task_spec": {"results_prefix": "p/"}}, "without result_bucket"),
    "a command": ({"command": "true"}, "command is not a parameter of @task.qarnot"),
    "no waiting": ({"wait_for_completion": False}, "wait_for_completion is not a parameter of @task.qarnot"),
    "serializer": ({"serializer": "cloudpickle"}, "'json' or 'pickle'"),
    "timeout": ({"timeout": "soon"}, "timedelta"),
    "no time": ({"timeout": timedelta()}, "timedelta"),
    "requirements": ({"requirements": ["numpy"]}, "requirements is not a parameter"),
    "environment": (
        {"environment": {"requirements": "numpy", "pip": 1}},
        "environment is no QarnotEnvironment",
    ),
    "not json": ({"kwargs": {"value": {"a": {1}}}}, r"argument value of plain\(\) is .*set at \['a'\]"),
    "image": ({"image": "UPPER CASE"}, "image"),
}


@pytest.mark.parametrize(("parameters", "named"), BAD.values(), ids=BAD.keys())
def test_bad_parameters_are_refused_at_parse(parameters: dict[str, Any], named: str) -> None:
    with pytest.raises(QarnotInvalidSpecError, match=named):
        made(plain, **parameters)


def test_context_parameters_are_refused_as_there_is_no_airflow_on_the_node() -> None:
    def dated(ds: str | None = None) -> str | None:
        return ds

    with pytest.raises(
        QarnotInvalidSpecError, match=r"'ds' does not reach the node.*\{\{ dag_run\.run_after \| ds \}\}"
    ):
        made(dated)
    assert made(dated, kwargs={"ds": "{{ ds }}"}).op_kwargs == {"ds": "{{ ds }}"}


def test_mapped_calls_are_checked_at_parse_too() -> None:
    with DAG("mapped"), pytest.raises(QarnotInvalidSpecError, match="'pytest'"):

        @qarnot_task
        def uses_a_global(x: int) -> Any:
            return pytest

    with DAG("mapped-instances"), pytest.raises(QarnotInvalidSpecError, match="one call has one result"):
        qarnot_task(instance_count=2)(plain).expand(value=[1, 2])
    for spec in ({"instanceCount": 2}, {"ranges": "1-2"}):
        with DAG("mapped-spec"), pytest.raises(QarnotInvalidSpecError, match="one call has one result"):
            qarnot_task(task_spec=spec)(plain).expand(value=[1, 2])
    with DAG("overridden"), pytest.raises(QarnotInvalidSpecError, match="instance_count is not a parameter"):
        qarnot_task(plain).override(instance_count=2)(1)


def read(path: Any, ti: Any = None) -> Any:
    return path


PATHS = [Path("a"), Path("b")]
BAD_MAPPED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "partial": (
        lambda f: f.partial(value=Path("a")).expand(other=[1]),
        r"argument value of both\(\) is .*PosixPath",
    ),
    "list": (lambda f: f.expand(value=PATHS, other=[1]), r"argument value\[0\] of both\(\) is .*PosixPath"),
    "dict": (lambda f: f.expand(value={"k": Path("a")}, other=[1]), r"PosixPath at \[1\]"),
    "rows": (
        lambda f: f.expand_kwargs([{"value": 1, "other": 1}, {"value": PATHS, "other": 1}]),
        r"argument value \(row 1\) of both\(\) is .*PosixPath at \[0\]",
    ),
    "partial of rows that are not known": (
        lambda f: f.partial(value=Path("a")).expand_kwargs(XComArg(EmptyOperator(task_id="rows"))),
        "PosixPath",
    ),
    "a known row beside one that is not": (
        lambda f: f.expand_kwargs([{"value": PATHS, "other": 1}, XComArg(EmptyOperator(task_id="row"))]),
        "PosixPath",
    ),
    "overridden": (lambda f: f.override(task_id="x").expand(value=PATHS, other=[1]), "PosixPath"),
}


@pytest.mark.parametrize(("call", "named"), BAD_MAPPED.values(), ids=BAD_MAPPED.keys())
def test_mapped_arguments_that_cannot_be_sent_are_refused_at_parse(
    call: Callable[[Any], Any], named: str
) -> None:
    def both(value: Any, other: int) -> Any:
        return value

    with DAG("mapped"), pytest.raises(QarnotInvalidSpecError, match=named):
        call(qarnot_task(both))
    with DAG("pickled"):
        call(qarnot_task(serializer="pickle")(both))


def test_mapped_calls_refuse_names_of_airflow_at_parse() -> None:
    named = r"Airflow's 'ti' does not reach the node"
    with DAG("mapped"):
        for expand in (
            lambda: qarnot_task(read).expand(path=["a"]),
            lambda: task.qarnot(read).partial(path="a").expand(path=["a"]),
            lambda: qarnot_task(read).expand_kwargs([{"path": "a"}]),
        ):
            with pytest.raises(QarnotInvalidSpecError, match=named):
                expand()


def test_mapped_arguments_that_are_known_at_run_time_only_are_accepted_at_parse() -> None:
    with DAG("mapped"):
        listed = task(lambda: [1]).override(task_id="listed")()
        one = qarnot_task(plain)
        assert one.expand(value=listed).operator.operator_name == "@task.qarnot"
        one.expand(value=[listed, "{{ ds }}"])
        one.expand_kwargs(listed)
        one.expand_kwargs([{"value": "{{ ds }}"}, listed])
        one.expand_kwargs(listed.map(lambda row: row))


def test_a_value_that_is_refused_is_not_shown() -> None:
    with pytest.raises(QarnotInvalidSpecError) as caught:
        made(plain, kwargs={"value": {"token": b"very secret"}})
    assert "very secret" not in str(caught.value)


# --- in a DAG


def test_it_is_registered_and_takes_the_pool_of_its_group() -> None:
    with DAG("grouped"):

        @task.qarnot(environment={"requirements": ["numpy"]})
        def one(value: int) -> int:
            return value

        with QarnotPoolGroup("g") as group:
            single = one(1)
            mapped = one.override(task_id="many").expand(value=[1, 2])
            elsewhere = one.override(task_id="elsewhere", qarnot_pool="another")(2)
    pool = group.pool
    assert isinstance(single.operator, QarnotRunTaskOperator)
    assert single.operator.operator_name == "@task.qarnot"
    assert isinstance(single.operator.qarnot_pool, XComArg)
    assert single.operator.qarnot_pool.operator is pool.operator
    assert mapped.operator.partial_kwargs["qarnot_pool"].operator is pool.operator
    assert elsewhere.operator.qarnot_pool == "another"
    assert single.operator.upstream_task_ids == {"g.open_pool"}


def test_the_default_image_stands_back() -> None:
    assert made(plain).image == DEFAULT_IMAGE
    assert made(plain, constants={"DOCKER_REPO": "library/pypy"}).image is None
    assert made(plain, task_spec={"image": "pypy:3"}).image is None
    assert made(plain, image=None).image is None


def test_the_command_brings_what_the_constants_hold() -> None:
    """Qarnot replaces ${...} in commands and its limit is 2048; a slash in a constant may be taken for a path."""
    assert len(payload.COMMAND) < 1000
    assert "$" not in payload.COMMAND
    assert payload.COMMAND.count("'") == 2
    assert f'"{node.PREFIX}"' in payload.COMMAND
    packed = random.Random(3).randbytes(command_array.MAX_BYTES)
    constants = command_array.as_constants(node.PREFIX, packed)
    assert len(constants) == command_array.MAX_PARTS + 1
    assert not set("".join(constants.values())) & set("/$+{}")


def test_the_payload_is_the_same_in_every_try() -> None:
    def packed() -> bytes:
        operator = made(plain, kwargs={"value": [1]})
        return payload.pack(
            operator._function,
            payload.arguments_text((), {"value": [1]}, "json", "plain"),
            nonce=payload.digest("result", "lineage"),
            serializer="json",
            environment=None,
            pool_environment=None,
            timeout=None,
            result_file=None,
        )

    assert packed() == packed()


def test_a_report_that_was_cut_off_is_no_report() -> None:
    good = '{"value": "1"}'
    data = base64.urlsafe_b64encode(zlib.compress(good.encode())).decode()
    line = f"\n{node.MARK} abc {data}\n"
    for size in (1, 5, 100, 1000):

        def found(output: str, nonce: str = "abc", size: int = size) -> dict[str, Any] | None:
            finder = payload.ReportFinder(nonce)
            pieces = [output[at : at + size] for at in range(0, len(output), size)]
            assert list(finder.watch(pieces)) == pieces
            assert finder.complete
            return finder.report

        assert found(f"out{line}") == {"value": "1"}
        assert found(f"out\n{line}late\n") == {"value": "1"}
        assert found(f"out{line}", "abd") is None
        assert found(f"out{line[:-12]}") is None
        assert found(f"out{line}{line[:-12]}") is None
        assert found(f"first{line[:-12]}\n{line}second") == {"value": "1"}
        assert found(f"out {line[1:]}") is None  # not at the beginning of a line


def encoded(report: Any, *, level: int = 9) -> str:
    data = report if isinstance(report, bytes) else json.dumps(report).encode()
    return base64.urlsafe_b64encode(zlib.compress(data, level)).decode()


#: Each is made by its test: the bombs take seconds, and every process of pytest imports this file.
HOSTILE: dict[str, Callable[[], str]] = {
    "a bomb": lambda: encoded(b'{"value": "' + b"a" * 100_000_000 + b'"}'),
    "a bomb of blanks": lambda: encoded(b" " * 100_000_000),
    "deep": lambda: encoded(b"[" * 100_000 + b"]" * 100_000),
    "no object": lambda: encoded([1]),
    "no text": lambda: encoded({"value": 5}),
    "no sentence": lambda: encoded({"error": {"summary": [], "detail": None}}),
    "no error": lambda: encoded({"error": "x"}),
    "half a file": lambda: encoded({"file": "x"}),
    "a huge number": lambda: encoded(b'{"value": ' + b"9" * 1_000_000 + b"}"),
    "no base64": lambda: "====",
    "endless": lambda: "A" * 10_000_000,
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_report_that_no_node_writes_is_no_report_and_takes_little_memory(make: Callable[[], str]) -> None:
    output = f"out\n{node.MARK} abc {make()}\nlate\n"
    pieces = [output[at : at + 65_536] for at in range(0, len(output), 65_536)]
    finder = payload.ReportFinder("abc")
    tracemalloc.start()
    try:
        for _ in finder.watch(pieces):
            pass
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()
    assert finder.report is None
    assert finder.problem
    assert len(finder.problem) < 500


@pytest.mark.parametrize("character", ["a", '"', "\\\\", "\x00", "é", "🎉"])
def test_the_longest_results_and_errors_that_a_node_reports_are_read(character: str) -> None:
    value = character * node.MAX_RESULT
    reports: list[dict[str, Any]] = [
        {"value": json.dumps(value)[: node.MAX_RESULT]},
        node._error(value, value),
        {"file": "f", "sha256": "0"},
    ]
    for report in reports:
        finder = payload.ReportFinder("abc")
        for _ in finder.watch([f"{node.MARK} abc {encoded(report, level=0)}\n"]):
            pass
        assert finder.report == report


@pytest.mark.parametrize(
    ("text", "serializer", "words"),
    [
        ("[" * 100_000 + "]" * 100_000, "json", "RecursionError"),
        ("{", "json", "JSONDecodeError"),
        (base64.b64encode(b"cno_such_module\nThing\n.").decode(), "pickle", "install the packages"),
        ("@", "pickle", "cannot be decoded from pickle"),
    ],
)
def test_a_result_that_cannot_be_decoded_is_a_qarnot_error(
    text: str, serializer: payload.Serializer, words: str
) -> None:
    with pytest.raises(QarnotProtocolError, match=r"The result of f\(\)") as caught:
        payload.value_of(text, serializer, "f")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 1500
