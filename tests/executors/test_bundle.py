"""DAG files in a bucket: copies, versions, and what a node makes of them."""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.errors import QarnotError, QarnotInvalidSpecError
from airflow_qarnot_pool.api.specs import PoolSpec
from airflow_qarnot_pool.executors import bundle as module
from airflow_qarnot_pool.executors.bundle import QarnotDagBundle, superfluous, version_of
from airflow_qarnot_pool.executors.bundle_archives import (
    BUNDLE_CLASS,
    BroughtArchives,
    archive_of,
    bundle_resources,
    holds_logs,
)
from airflow_qarnot_pool.executors.node import SHARED
from airflow_qarnot_pool.hooks.storage import QarnotStorageHook, StoredFile
from airflow_qarnot_pool.local import LocalQarnot

pytest.importorskip("boto3")

Machine = Callable[..., QarnotDagBundle]


@pytest.fixture
def files(qarnot: LocalQarnot, request: pytest.FixtureRequest) -> Files:
    return Files(QarnotStorageHook(), f"bundle-{abs(hash(request.node.name)) % 10**8}")


class Files:
    """The files of a bucket."""

    def __init__(self, hook: QarnotStorageHook, bucket: str) -> None:
        self.hook, self.bucket = hook, bucket

    def put(self, **files: str) -> None:
        for name, text in files.items():
            self.hook.upload(self.bucket, text.encode(), key=f"prod/{name.replace('__', '/')}.py")

    def delete(self, name: str) -> None:
        self.hook.s3.delete_object(Bucket=self.bucket, Key=f"prod/{name}.py")

    def read(self, key: str) -> bytes:
        return self.hook.read(self.bucket, key)

    def archives(self) -> list[str]:
        return [file.key for file in self.hook.list(self.bucket, module.ARCHIVES)]


@pytest.fixture
def machine(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A bundle on a machine of a name: each has a folder of its own for bundles."""

    def on(name: str, version: str | None = None) -> QarnotDagBundle:
        monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH", str(tmp_path / name))
        return QarnotDagBundle(name="dags", version=version, bucket=files.bucket, prefix="prod")

    return on


def content(bundle: QarnotDagBundle) -> dict[str, str]:
    return {
        path.relative_to(bundle.path).as_posix(): path.read_text()
        for path in sorted(bundle.path.rglob("*.py"))
        if path.is_file()
    }


def version(bundle: QarnotDagBundle) -> str:
    current = bundle.get_current_version()
    return str(getattr(current, "version", current))


def test_each_change_is_a_version_that_other_machines_can_have(files: Files, machine: Machine) -> None:
    files.put(a="1", lib__b="2")
    processor = machine("processor")
    processor.initialize()
    first = version(processor)
    assert content(processor) == {"a.py": "1", "lib/b.py": "2"}
    files.put(a="3", c="4")
    files.delete("lib/b")
    processor.refresh()
    second = version(processor)
    assert content(processor) == {"a.py": "3", "c.py": "4"}
    assert not (processor.path / "lib").exists()
    assert len(files.archives()) == 2
    for number, expected in ((first, {"a.py": "1", "lib/b.py": "2"}), (second, {"a.py": "3", "c.py": "4"})):
        worker = machine("worker", number)
        worker.initialize()
        assert content(worker) == expected
        assert version(worker) == number
    files.put(a="1", lib__b="2")
    files.delete("c")
    processor = machine("processor")
    processor.refresh()
    assert version(processor) == first
    assert len(files.archives()) == 2


def test_nothing_is_copied_again_without_a_change(
    files: Files, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.put(a="1")
    machine("processor").initialize()
    bundle = machine("processor")
    (bundle.path / "__pycache__").mkdir()
    (bundle.path / "__pycache__" / "a.pyc").write_bytes(b"bytecode of a process that parses")
    monkeypatch.setattr(QarnotDagBundle, "_copy", lambda *_: pytest.fail("copied"))
    bundle.initialize()
    assert version_of(bundle.path, content(bundle)) == version(bundle)


def test_bytecode_and_folders_of_a_console_are_no_files_of_a_bundle(files: Files, machine: Machine) -> None:
    files.put(a="1")
    s3 = files.hook.s3
    s3.put_object(Bucket=files.bucket, Key="prod/__pycache__/a.pyc", Body=b"x")
    s3.put_object(Bucket=files.bucket, Key="prod/folder/", Body=b"")
    s3.put_object(Bucket=files.bucket, Key="other/b.py", Body=b"x")
    bundle = machine("processor")
    bundle.initialize()
    assert [path.name for path in bundle.path.rglob("*")] == ["a.py"]


def test_a_file_takes_the_place_of_a_folder_and_back(files: Files, machine: Machine) -> None:
    files.put(**{"a.py__b": "1"})
    bundle = machine("processor")
    bundle.initialize()
    assert content(bundle) == {"a.py/b.py": "1"}
    files.delete("a.py/b")
    files.put(a="2")
    bundle.refresh()
    assert content(bundle) == {"a.py": "2"}


def test_a_node_needs_no_storage_for_a_version_that_the_pool_brings(
    files: Files, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.put(a="1")
    processor = machine("processor")
    processor.initialize()
    (key,) = files.archives()
    bring(files.read(key), tmp_path / "job" / key)
    monkeypatch.setenv(SHARED, str(tmp_path / "job"))
    monkeypatch.delenv("AIRFLOW_CONN_QARNOT_DEFAULT")
    node = machine("node", version(processor))
    node.initialize()
    assert content(node) == {"a.py": "1"}
    assert [path.name for path in node.versions_dir.iterdir()] == [node.version]


def bring(data: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(data)


def invalid_after_a_while(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=31)
    start = packer.compress(gzip.decompress(data)[:300_000]) + packer.flush(zlib.Z_SYNC_FLUSH)
    return start + b"\x07" * 100  # blocks of a type that does not exist


#: How an archive that Qarnot has brought differs from the stored one.
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "its copy has stopped": lambda data: data[: len(data) // 2],
    "its stream is invalid": invalid_after_a_while,
    "it is empty": lambda _: b"",
    "a byte is wrong": lambda data: data[:40] + bytes([data[40] ^ 255]) + data[41:],
    "it is another file": lambda _: b"text",
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_node_downloads_an_archive_that_was_brought_damaged(
    case: str, files: Files, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.put(a="".join(f"text {number}" for number in range(40_000)))
    processor = machine("processor")
    processor.initialize()
    (key,) = files.archives()
    bring(DAMAGES[case](files.read(key)), tmp_path / "job" / key)
    monkeypatch.setenv(SHARED, str(tmp_path / "job"))
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    node = machine("node", version(processor))
    node.initialize()
    assert content(node) == content(processor)
    assert [path.name for path in node.versions_dir.iterdir()] == [node.version]


def test_a_node_waits_while_the_archive_that_it_receives_grows(
    files: Files, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.put(a="1")
    processor = machine("processor")
    processor.initialize()
    (key,) = files.archives()
    data, path = files.read(key), tmp_path / "job" / key
    bring(data[:1], path)
    clock = iter(range(0, 10**6, 9))
    received = iter(range(2, len(data) + 1))

    def receive(_: float) -> None:
        path.write_bytes(data[: next(received)])

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=receive))
    monkeypatch.setenv(SHARED, str(tmp_path / "job"))
    monkeypatch.delenv("AIRFLOW_CONN_QARNOT_DEFAULT")
    node = machine("node", version(processor))
    node.initialize()
    assert content(node) == {"a.py": "1"}


def test_a_node_stores_nothing_and_changes_no_files_that_its_tasks_use(
    files: Files, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs have no version, as with ``disable_bundle_versioning``. The tasks are in two slots of one node."""
    monkeypatch.setenv(SHARED, str(tmp_path / "job"))
    files.put(a="1", lib__b="1")
    first, again = machine("node"), machine("node")
    first.initialize()
    copies = []
    with monkeypatch.context() as patched:
        patched.setattr(QarnotDagBundle, "_copy", lambda *_: copies.append(1))
        again.initialize()
    assert not copies
    files.put(a="2")
    files.delete("lib/b")
    second = machine("node")
    second.initialize()
    assert content(first) == content(again) == {"a.py": "1", "lib/b.py": "1"}
    assert content(second) == {"a.py": "2"}
    files.put(a="1", lib__b="1")
    third = machine("node")
    third.initialize()
    assert third.path == first.path
    assert files.archives() == []
    assert len(list(first.versions_dir.iterdir())) == 2


def test_an_archive_of_other_files_is_refused(files: Files, machine: Machine) -> None:
    files.put(a="1")
    processor = machine("processor")
    processor.initialize()
    first = version(processor)
    files.put(a="2")
    processor.refresh()
    (other,) = (key for key in files.archives() if first not in key)
    files.hook.upload(files.bucket, files.read(other), key=module.archive_key(processor.archives, first))
    node = machine("node", first)
    with pytest.raises(QarnotError, match=f"archive of version {first} of bundle dags is damaged"):
        node.initialize()
    assert not node.path.exists()


def test_a_version_that_was_deleted_is_named_with_its_remedy(files: Files, machine: Machine) -> None:
    files.put(a="1")
    gone = "0" * 32
    with pytest.raises(QarnotError, match=f"Version {gone} .* no longer in bucket .* Clear the DAG run"):
        machine("worker", gone).initialize()


@pytest.mark.parametrize("text", ["../../etc", "0" * 31, "0" * 31 + "/", ""])
def test_a_version_is_no_path(text: str) -> None:
    with pytest.raises(QarnotError, match="no hash"):
        module.check_version(text)


def test_files_that_change_during_a_copy_are_copied_again(
    files: Files, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.put(a="1", b="1")
    bundle = machine("processor")
    listed = bundle._list
    changes = iter(["2", "3"])

    def listed_while_another_uploads() -> dict[str, list[Any]]:
        found = listed()
        if (text := next(changes, None)) is not None:
            files.put(a=text)
        return found

    monkeypatch.setattr(bundle, "_list", listed_while_another_uploads)
    bundle.initialize()
    assert content(bundle) == {"a.py": "3", "b.py": "1"}
    assert len(files.archives()) == 1
    always = iter(range(100))
    monkeypatch.setattr(bundle, "_list", lambda: (files.put(a=f"again {next(always)}"), listed())[1])
    bundle.refresh()
    assert len(files.archives()) == 1


def test_a_bundle_that_is_too_large_is_refused(
    files: Files, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.put(a="1", b="12345678")
    monkeypatch.setattr(module, "MAX_BYTES", 8)
    with pytest.raises(QarnotError, match=r"Bundle dags is too large, got 2 files with 9 bytes"):
        machine("processor").initialize()


def test_a_wrong_bucket_or_prefix_is_refused_when_the_bundle_is_made() -> None:
    with pytest.raises(QarnotInvalidSpecError, match="bucket"):
        QarnotDagBundle(name="dags", bucket="a/b")
    with pytest.raises(QarnotInvalidSpecError, match="folder of the archives"):
        QarnotDagBundle(name="dags", bucket="a", prefix="/airflow-qarnot-bundles/dags")


#: Prefix of the DAG files in bucket "files", the place of the logs, and whether it is among them.
LOG_PLACES: dict[str, tuple[str, str | None, bool]] = {
    "no place": ("", None, False),
    "the whole bucket": ("", "qarnot://files/logs", True),
    "the same folder": ("prod", "qarnot://login@files/prod/", True),
    "a folder in it": ("/prod/", "qarnot://files/prod/logs", True),
    "a folder around it": ("prod/dags", "qarnot://files/prod", False),
    "a folder beside it": ("prod", "qarnot://files/prod-logs", False),
    "another bucket": ("", "qarnot://logs", False),
    "another storage": ("", "s3://files/logs", False),
}


@pytest.mark.parametrize("case", LOG_PLACES)
def test_logs_among_dag_files_are_recognized(case: str) -> None:
    prefix, place, expected = LOG_PLACES[case]
    assert holds_logs("files", prefix, place) is expected


def test_no_version_is_made_of_logs(files: Files, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    files.put(a="1")
    monkeypatch.setenv("AIRFLOW__LOGGING__REMOTE_BASE_LOG_FOLDER", f"qarnot://{files.bucket}/prod/logs")
    with pytest.raises(QarnotInvalidSpecError, match="prefix of bundle dags has the logs of tasks below it"):
        machine("processor").initialize()
    assert files.archives() == []


def test_a_pool_is_asked_once_for_each_new_version(qarnot: LocalQarnot, client: QarnotClient) -> None:
    pool = client.pools.create(PoolSpec(name="p", profile="docker-network", instance_count=1))
    while not client.pools.get(pool).ready_slots:
        time.sleep(0.02)
    brought = BroughtArchives()
    qarnot.clear_requests()
    for archives in ([], ["a"], ["a"], ["a", "b"], ["b"]):
        brought.bring(client, pool, archives)
    asked = [one for one in qarnot.requests() if one["method"] == "PATCH"]
    assert len(asked) == 2
    brought.bring(client, "no-such-pool", ["a"])  # logged, because a node can download it
    client.pools.delete(pool)


@pytest.mark.parametrize(
    ("name", "version", "archive"),
    [
        ("a", "1" * 32, f"airflow-qarnot-bundles/a/df662be7/{'1' * 32}.tar.gz"),
        ("a", None, None),
        ("b", "1", None),
    ],
)
def test_the_archive_of_a_workload_is_known_by_its_bundle(
    name: str, version: str | None, archive: str | None
) -> None:
    config = json.dumps([*CONFIG_LISTS["ours"][0], {"name": "b", "classpath": "x.Git", "kwargs": {}}])
    assert archive_of(name, version, config) == archive


NOW = datetime(2026, 1, 31, tzinfo=UTC)


def test_the_class_of_the_configuration_is_the_bundle() -> None:
    assert f"{module.__name__}.{QarnotDagBundle.__name__}" == BUNDLE_CLASS


GIB = 1024**3
#: Ages in days and sizes of archives, and the ages of those that a pool need not bring. The first is the newest.
STORED: dict[str, tuple[list[tuple[int, int]], list[int]]] = {
    "none": ([], []),
    "as many as it brings": ([(day, 1) for day in range(100, 120)], []),
    "more than it brings": ([(day, 1) for day in range(22)], [20, 21]),
    "too many bytes": ([(0, GIB), (1, GIB), (2, 1), (3, 1)], [2, 3]),
    "the newest is too large alone": ([(0, 3 * GIB), (1, 1)], [1]),
    "the newest has the same date as others": ([(5, GIB), (5, 2 * GIB), (5, 2 * GIB)], [5, 5]),
    "in any order": ([(0, GIB), (9, GIB), (3, GIB)], [9]),
}


@pytest.mark.parametrize("case", STORED)
def test_a_pool_brings_the_newest_archives_that_fit(case: str) -> None:
    archives, expected = STORED[case]
    stored = [
        StoredFile(key=f"{number}/{days}", size=size, modified=NOW - timedelta(days=days))
        for number, (days, size) in enumerate(archives)
    ]
    newest = stored[0].key if stored else ""
    found = superfluous(reversed(stored), newest)
    assert sorted(int(key.rpartition("/")[2]) for key in found) == expected
    assert newest not in found


def test_archives_that_pools_do_not_bring_are_kept_for_a_while(
    files: Files, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node of a run that is older than what its pool brings downloads the version."""
    monkeypatch.setattr(module, "MAX_BROUGHT", 1)
    processor = machine("processor")
    versions = []
    for text in ("1", "2", "3"):
        files.put(a=text)
        processor.refresh()
        versions.append(version(processor))
    (brought,) = [key for key in files.archives() if key.startswith(processor.archives)]
    assert brought == module.archive_key(processor.archives, versions[2])
    for number, text in zip(versions, "123", strict=True):
        worker = machine(f"worker {text}", number)
        worker.initialize()
        assert content(worker) == {"a.py": text}
    monkeypatch.setattr(module, "MAX_AGE", timedelta(seconds=-5))
    files.put(a="1")
    machine("processor").refresh()
    assert files.archives() == [module.archive_key(processor.archives, versions[0])]


def test_a_version_that_is_the_newest_again_has_a_new_date(files: Files, machine: Machine) -> None:
    """Dates of S3 have whole seconds, so the test sees the request that renews the date."""
    files.put(a="1")
    bundle = machine("processor")
    bundle.initialize()
    first, renewed = version(bundle), []
    bundle._s3.meta.events.register(
        "before-call.s3.CopyObject", lambda params, **_: renewed.append(params["url_path"])
    )
    for text in ("2", "1"):
        files.put(a=text)
        bundle.refresh()
    assert version(bundle) == first
    assert renewed == [f"/{module.archive_key(bundle.archives, first)}"]


def test_deployments_that_share_a_bucket_delete_no_archive_of_each_other(
    files: Files, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Production rests, and staging changes more often than archives are kept."""
    monkeypatch.setattr(module, "MAX_BROUGHT", 1)
    monkeypatch.setattr(module, "MAX_AGE", timedelta(seconds=-5))
    files.put(a="production")
    production = machine("production")
    production.initialize()
    machine("staging")
    staging = QarnotDagBundle(name="dags", bucket=files.bucket, prefix="staging/")
    for text in ("1", "2", "3"):
        files.hook.upload(files.bucket, text.encode(), key="staging/a.py")
        staging.refresh()
    assert module.archive_key(production.archives, version(production)) in files.archives()
    node = machine("node", version(production))
    node.initialize()
    assert content(node) == {"a.py": "production"}


def test_the_newest_archive_is_stored_again_if_it_was_deleted(files: Files, machine: Machine) -> None:
    files.put(a="1")
    bundle = machine("processor")
    bundle.initialize()
    stored = files.archives()

    def is_stored_again() -> bool:
        files.hook.s3.delete_object(Bucket=files.bucket, Key=stored[0])
        bundle.refresh()
        return files.archives() == stored

    assert is_stored_again()
    assert not is_stored_again()  # it is checked once an hour
    bundle._check_at = 0.0
    assert is_stored_again()


CONFIG_LISTS: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "none": (None, []),
    "no JSON": ("[", []),
    "no list": ({"name": "a"}, []),
    "others": ([{"name": "a", "classpath": "x.Git", "kwargs": {"bucket": "b"}}, "text"], []),
    "ours": (
        [
            {
                "name": "a",
                "classpath": "airflow_qarnot_pool.executors.bundle.QarnotDagBundle",
                "kwargs": {"bucket": "b", "prefix": "/prod"},
            }
        ],
        [
            {
                "bucketName": "b",
                "filtering": {"prefixFiltering": {"prefix": "airflow-qarnot-bundles/a/df662be7/"}},
            }
        ],
    ),
}


@pytest.mark.parametrize("case", CONFIG_LISTS)
def test_the_pool_brings_the_archives_of_our_bundles(case: str) -> None:
    given, expected = CONFIG_LISTS[case]
    text = given if given is None or isinstance(given, str) else json.dumps(given)
    assert [one.to_json() for one in bundle_resources(text)] == expected
