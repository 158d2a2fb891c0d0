"""Environments reach nodes without a network: resolved and uploaded once, unpacked once per node."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import boto3
import pytest
from airflow.sdk import DAG

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.errors import QarnotError, QarnotInvalidSpecError
from airflow_qarnot_pool.decorators import node
from airflow_qarnot_pool.environments import QarnotEnvironment, installers, storage
from airflow_qarnot_pool.environments.specification import EnvironmentSource
from airflow_qarnot_pool.exceptions import QarnotTaskFailedError
from airflow_qarnot_pool.hooks.qarnot import QarnotHook
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator
from tests.decorators.test_qarnot_task import call, made
from tests.harness import FakeTI, defer, resume, run

from .conftest import HERE, Wheels

BUCKET = QarnotEnvironment().bucket


@pytest.fixture(autouse=True)
def clean(qarnot: LocalQarnot) -> None:
    """Remove what other tests stored."""
    s3 = storage_of(qarnot)
    if BUCKET in [found["Name"] for found in s3.list_buckets()["Buckets"]]:
        for key in keys(qarnot):
            s3.delete_object(Bucket=BUCKET, Key=key)


def storage_of(qarnot: LocalQarnot) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=qarnot.storage_url,
        aws_access_key_id=qarnot.email,
        aws_secret_access_key=qarnot.token,
        region_name="us-east-1",
    )


def keys(qarnot: LocalQarnot) -> dict[str, datetime]:
    found = storage_of(qarnot).list_objects_v2(Bucket=BUCKET).get("Contents", [])
    return {item["Key"]: item["LastModified"] for item in found}


def prepare(environment: QarnotEnvironment, folder: Path) -> str:
    store = storage.EnvironmentStorage(QarnotHook().settings, environment.bucket)
    return storage.archive_in(store.prepare(environment, folder))


@pytest.fixture
def opened(client: QarnotClient, tmp_path: Path) -> Iterator[Any]:
    """Open pools whose DAG file is in the test's folder."""
    pools = []

    def open_pool(environment: Any, slots: int = 1, **more: Any) -> str:
        def make() -> Any:
            with DAG("environments", schedule=None) as dag:
                dag.fileloc = str(tmp_path / "dag.py")
                return QarnotCreatePoolOperator(
                    task_id="open", instance_count=slots, environment=environment, deferrable=False, **more
                )

        pools.append(run(make, FakeTI(task_id="open", run_id=f"run-{datetime.now(UTC).timestamp()}")))
        return str(pools[-1])

    yield open_pool
    for pool in pools:
        client.pools.delete(pool)


def uses() -> list[Any]:
    import helpers  # type: ignore[import-not-found]
    import qarnot_tiny  # type: ignore[import-not-found]

    return [qarnot_tiny.ANSWER, helpers.double(21), qarnot_tiny.__file__]


def test_calls_import_packages_and_modules_with_the_network_cut(
    opened: Any, wheels: Wheels, tmp_path: Path, client: QarnotClient
) -> None:
    (tmp_path / "helpers.py").write_text("def double(value):\n    return 2 * value\n")
    environment = QarnotEnvironment(
        requirements=wheels("qarnot_tiny", "1.0", "ANSWER = 42\n"), modules=["helpers.py"], python=HERE
    )
    pool = opened(environment)
    assert client.pools.get(pool).profile == "docker-batch"
    first, second = call(pool, uses), call(pool, uses)
    assert first[:2] == second[:2] == [42, 42]
    assert first[2] == second[2], "unpacked twice"


def test_the_next_pool_uploads_nothing_and_resolves_nothing(
    opened: Any, wheels: Wheels, qarnot: LocalQarnot, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"requirements": wheels("qarnot_tiny", "1.0", "ANSWER = 42\n"), "python": HERE}
    opened(environment)
    before = keys(qarnot)
    assert sorted(key.partition("/")[0] for key in before) == ["archives", "sources"]
    monkeypatch.setattr(storage, "install", None)
    monkeypatch.setattr(storage, "pack", None)
    opened(environment)
    assert keys(qarnot) == before


def test_an_equal_environment_that_is_written_otherwise_uploads_no_archive(
    wheels: Wheels, qarnot: LocalQarnot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = wheels("qarnot_tiny", "1.0", "ANSWER = 42\n")
    name = prepare(QarnotEnvironment(requirements=lines, python=HERE), tmp_path)
    monkeypatch.setattr(storage, "pack", None)
    (tmp_path / "requirements.txt").write_text("\n".join([*lines[:2], "qarnot-tiny >= 1.0"]))
    assert prepare(QarnotEnvironment(requirements="requirements.txt", python=HERE), tmp_path) == name


def test_an_archive_that_was_deleted_is_made_again(
    wheels: Wheels, qarnot: LocalQarnot, tmp_path: Path
) -> None:
    environment = QarnotEnvironment(requirements=wheels("qarnot_tiny", "1.0", "ANSWER = 42\n"), python=HERE)
    name = prepare(environment, tmp_path)
    storage_of(qarnot).delete_object(Bucket=BUCKET, Key=f"archives/{name}")
    assert prepare(environment, tmp_path) == name
    assert f"archives/{name}" in keys(qarnot)


@pytest.mark.parametrize("changes", ["requirement", "module"])
def test_a_changed_environment_never_meets_an_old_one(
    opened: Any, wheels: Wheels, tmp_path: Path, changes: str
) -> None:
    helpers = tmp_path / "helpers.py"
    helpers.write_text("def double(value):\n    return 2 * value\n")
    old = wheels("qarnot_tiny", "1.0", "ANSWER = 42\n")
    environment = QarnotEnvironment(requirements=old, modules=["helpers"], python=HERE)
    assert call(opened(environment), uses)[:2] == [42, 42]
    if changes == "requirement":
        new = wheels("qarnot_tiny", "1.1", "ANSWER = 43\n")
        environment = QarnotEnvironment(requirements=new, modules=["helpers"], python=HERE)
        assert call(opened(environment), uses)[:2] == [43, 42]
    else:
        helpers.write_text("def double(value):\n    return 3 * value\n")
        assert call(opened(environment), uses)[:2] == [42, 63]


@pytest.mark.parametrize("seed", range(3))
def test_no_history_of_changes_by_one_byte_meets_an_old_environment(
    seed: int, qarnot: LocalQarnot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The installer is replaced: it writes a package whose content follows from the requirements."""

    def install(source: EnvironmentSource, folder: Path) -> None:
        (folder / "tiny.py").write_text(f"{source.requirements} for {source.python}")

    monkeypatch.setattr(storage, "install", install)
    chance = random.Random(seed)
    helpers = tmp_path / "helpers.py"
    state: dict[str, Any] = {"module": b"ANSWER = 42\n", "requirement": "tiny==1.0", "python": "3.12"}
    names: dict[str, dict[str, Any]] = {}
    history = [dict(state)]
    for _ in range(15):
        changes = chance.choice([*state, "back"])
        if changes == "module":
            data = bytearray(state["module"])
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            state["module"] = bytes(data)
        elif changes == "requirement":
            state["requirement"] = f"tiny=={chance.randrange(3)}.{chance.randrange(3)}"
        elif changes == "python":
            state["python"] = chance.choice(["3.11", "3.12", "3.13"])
        else:
            state = dict(chance.choice(history))
        history.append(dict(state))
        helpers.write_bytes(state["module"])
        requirement, python = state["requirement"], state["python"]
        name = prepare(
            QarnotEnvironment(requirements=[requirement], modules=["helpers"], python=python), tmp_path
        )
        assert names.setdefault(name, dict(state)) == state, "two environments have one archive"
        assert len(names) == len({tuple(sorted(one.items())) for one in history[1:]}), "one has two archives"
        data = storage_of(qarnot).get_object(Bucket=BUCKET, Key=f"archives/{name}")["Body"].read()
        with tarfile.open(fileobj=BytesIO(data)) as archive:
            stored = {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]
        assert stored == {
            "modules/helpers.py": state["module"],
            "packages/tiny.py": f"{(requirement,)} for {python}".encode(),
        }


@pytest.mark.parametrize(
    "line", ["{wheel}", "tiny @ file://{wheel}", "--find-links={folder}", "--find-links {folder}"]
)
def test_a_local_file_of_a_requirement_counts_with_its_bytes(tmp_path: Path, line: str) -> None:
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    wheel.write_bytes(b"one")

    def key() -> str:
        lines = [line.format(wheel=wheel, folder=tmp_path)]
        return EnvironmentSource.read(QarnotEnvironment(requirements=lines, python=HERE), tmp_path).key

    before = key()
    assert key() == before
    wheel.write_bytes(b"two")
    assert key() != before


def test_a_function_with_nodes_of_its_own_brings_its_environment(wheels: Wheels, qarnot: LocalQarnot) -> None:
    def tiny() -> list[Any]:
        import qarnot_tiny

        return [qarnot_tiny.ANSWER, qarnot_tiny.__file__]

    environment = {"requirements": wheels("qarnot_tiny", "1.0", "ANSWER = 42\n"), "python": HERE}
    ti = FakeTI(run_id=f"own-{datetime.now(UTC).timestamp()}")
    answer, place = run(lambda: made(tiny, environment=environment), ti)
    assert answer == 42
    assert "/job/" not in place, "in the folder of results"


def test_the_slots_of_a_node_share_one_copy(opened: Any, wheels: Wheels, tmp_path: Path) -> None:
    lines = wheels("qarnot_tiny", "1.0", "ANSWER = 42\n")
    pool = opened(QarnotEnvironment(requirements=lines, python=HERE), slots=3, slots_per_node=3)
    barrier = tmp_path / "calls"
    barrier.mkdir()

    def place(folder: str, count: int) -> str:
        import os
        import time

        import qarnot_tiny

        open(os.path.join(folder, str(os.getpid())), "w").close()
        while len(os.listdir(folder)) < count:
            time.sleep(0.01)
        return str(qarnot_tiny.__file__)

    def make() -> Any:
        return made(place, str(barrier), 3, qarnot_pool=pool, deferrable=True, timeout=60)

    submitted = [defer(make, FakeTI(run_id=f"slot-{n}-{datetime.now(UTC).timestamp()}")) for n in range(3)]
    places = {resume(make, deferred, context) for deferred, context in submitted}
    assert len(places) == 1


@pytest.mark.parametrize("made", ["a link", "open to others"])
def test_a_folder_that_another_user_may_have_made_is_not_unpacked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str
) -> None:
    monkeypatch.setattr(node.tempfile, "tempdir", str(tmp_path))
    mine = Path(node.private_folder())
    assert mine.stat().st_mode & 0o777 == 0o700
    assert node.private_folder() == str(mine)
    mine.rmdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if made == "a link":
        mine.symlink_to(elsewhere)
    else:
        mine.mkdir()
        mine.chmod(0o777)
    with pytest.raises(node.EnvironmentProblem, match="other users"):
        node.private_folder()


def test_processes_that_unpack_at_once_unpack_once(tmp_path: Path) -> None:
    """Each process appends to a file of the archive once it is unpacked, which another unpacking would replace."""
    job = tmp_path / "job"
    (job / "task").mkdir(parents=True)
    archive = job / f"{node.ENVIRONMENT}{HERE}-{'0' * 32}.tar.gz"
    with archive.open("wb") as file:
        storage.pack({"modules": {f"m{n}.py": os.urandom(20_000) for n in range(50)}, "packages": {}}, file)
    program = (
        "import sys; from airflow_qarnot_pool.decorators import node; "
        "modules, _ = node.unpack(sys.argv[1], None); open(modules + '/m0.py', 'ab').write(b'x')"
    )
    environment = {**os.environ, "TASK_PATH": str(job / "task")}
    with tarfile.open(archive) as packed:
        size = packed.getmember("modules/m0.py").size
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(archive)], env=environment) for _ in range(4)
    ]
    assert [process.wait() for process in processes] == [0] * 4
    assert (job / archive.name.removesuffix(".tar.gz") / "modules" / "m0.py").stat().st_size == size + 4


def test_a_call_on_a_node_with_another_python_says_so(opened: Any, tmp_path: Path) -> None:
    (tmp_path / "helpers.py").write_text("A = 1\n")
    pool = opened(QarnotEnvironment(modules=["helpers"], python="3.99"))

    def nothing() -> None: ...

    with pytest.raises(QarnotTaskFailedError, match=rf"for Python 3\.99, and the node has Python {HERE}"):
        call(pool, nothing)


def test_another_python_of_the_path_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, fine = tmp_path / "broken", tmp_path / "fine"
    for folder, script in ((broken, "exit 127"), (fine, "exit 0")):
        folder.mkdir()
        (folder / "python3.99").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "python3.99").chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken}{os.pathsep}{fine}")
    archive = f"/job/{node.ENVIRONMENT}3.99-{'0' * 32}.tar.gz"
    assert node.find_interpreter([archive]) == str(fine / "python3.99")
    assert node.find_interpreter([]) == sys.executable


def test_an_archive_that_is_damaged_is_told(opened: Any, qarnot: LocalQarnot, tmp_path: Path) -> None:
    (tmp_path / "helpers.py").write_text("A = 1\n")
    environment = QarnotEnvironment(modules=["helpers"], python=HERE)
    name = prepare(environment, tmp_path)
    storage_of(qarnot).put_object(Bucket=BUCKET, Key=f"archives/{name}", Body=b"no archive")

    def nothing() -> None: ...

    with pytest.raises(QarnotTaskFailedError, match="cannot be unpacked"):
        call(opened(environment), nothing)


# --- errors on the Airflow side


@pytest.fixture(autouse=True)
def few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("PIP_RETRIES", "1")


@pytest.fixture(params=["uv", "pip"])
def installer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pip":
        monkeypatch.setattr(installers, "_uv", list)
    elif not installers._uv():
        pytest.skip("uv is not installed")
    return str(request.param)


def test_uv_and_pip_make_the_same_archive(
    installer: str, wheels: Wheels, tmp_path: Path, qarnot: LocalQarnot
) -> None:
    wheels("qarnot_inner", "2.0", "")
    lines = wheels("qarnot_tiny", "1.0", "ANSWER = 42\n", requires="qarnot_inner>=1")
    name = prepare(QarnotEnvironment(requirements=lines, python=HERE), tmp_path)
    data = storage_of(qarnot).get_object(Bucket=BUCKET, Key=f"archives/{name}")["Body"].read()
    with tarfile.open(fileobj=BytesIO(data)) as archive:
        names = {entry.name for entry in archive}
    assert {"packages/qarnot_tiny.py", "packages/qarnot_inner.py"} <= names
    stored = tmp_path.parent / "archive_of_uv_and_pip"
    assert stored.read_text() == name if stored.exists() else stored.write_text(name)


def test_a_package_without_a_wheel_for_the_nodes_is_told(
    installer: str, wheels: Wheels, tmp_path: Path
) -> None:
    lines = wheels("qarnot_tiny", "1.0", "", tag="cp38-cp38-win_amd64")
    with pytest.raises(QarnotInvalidSpecError, match=rf"wheels for Python {HERE} on manylinux") as caught:
        prepare(QarnotEnvironment(requirements=lines, python=HERE), tmp_path)
    assert "qarnot" in str(caught.value)


def test_a_package_that_does_not_exist_is_named_first(installer: str, wheels: Wheels, tmp_path: Path) -> None:
    lines = [*wheels("qarnot_tiny", "1.0", "")[:-1], "no-such-package==1"]
    words = "environment.requirements needs a package that was not found in the index, got 'no-such-package'"
    # pip says the same of a package without wheels.
    words = words if installer == "uv" else "cannot be installed from wheels"
    with pytest.raises(QarnotInvalidSpecError, match=words):
        prepare(QarnotEnvironment(requirements=lines, python=HERE), tmp_path)


def test_an_index_that_cannot_be_reached_is_told_without_its_login(
    installer: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = ["--index-url http://somebody:secret@127.0.0.1:9/simple", "qarnot-tiny==1.0"]
    with pytest.raises(QarnotError, match="could not be fetched") as caught:
        prepare(QarnotEnvironment(requirements=lines, python=HERE), tmp_path)
    assert not isinstance(caught.value, QarnotInvalidSpecError), "it is worth a retry"
    for text in (str(caught.value), caplog.text):
        for hidden in ("secret", "somebody", "127.0.0.1:9"):
            assert hidden not in text


def test_an_index_that_never_answers_is_told(
    installer: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(installers, "MAX_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = f"--index-url http://127.0.0.1:{silent.getsockname()[1]}/simple"
        with pytest.raises(QarnotError, match="could not be installed within"):
            prepare(QarnotEnvironment(requirements=[index, "qarnot-tiny==1.0"], python=HERE), tmp_path)


def test_an_environment_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qarnot: LocalQarnot
) -> None:
    (tmp_path / "helpers.py").write_bytes(os.urandom(5000))
    monkeypatch.setattr(storage, "MAX_ARCHIVE", 4000)
    with pytest.raises(QarnotInvalidSpecError, match="too large"):
        prepare(QarnotEnvironment(modules=["helpers"], python=HERE), tmp_path)
    assert not keys(qarnot)


def test_without_an_installer_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wheels: Wheels
) -> None:
    lines = wheels("qarnot_tiny", "1.0", "")
    monkeypatch.setattr(installers, "_uv", list)
    with pytest.raises(QarnotInvalidSpecError, match="pip install uv"):
        prepare(QarnotEnvironment(requirements=lines, python="3.98"), tmp_path)


def test_an_index_of_pip_is_also_that_of_uv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not installers._uv():
        pytest.skip("uv is not installed")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/mirror")
    source = EnvironmentSource(requirements=("qarnot-tiny",), modules={}, python=HERE)
    assert installers._command(HERE, "r.txt", tmp_path)[1]["UV_INDEX_URL"] == "http://127.0.0.1:9/mirror"
    with pytest.raises(QarnotError, match="could not be fetched"):
        installers.install(source, tmp_path)


def test_a_note_that_is_garbled_counts_as_none(qarnot: LocalQarnot, tmp_path: Path) -> None:
    (tmp_path / "helpers.py").write_text("A = 1\n")
    environment = QarnotEnvironment(modules=["helpers"], python=HERE)
    name = prepare(environment, tmp_path)
    key = f"sources/{EnvironmentSource.read(environment, tmp_path).key}"
    for garbled in (b"", b"[]", b"{", json.dumps({"archive": "../x"}).encode()):
        storage_of(qarnot).put_object(Bucket=BUCKET, Key=key, Body=garbled)
        assert prepare(environment, tmp_path) == name
