"""The official Python SDK, unmodified, as the client: pools and tasks."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import qarnot
import requests
from qarnot.advanced_bucket import BucketPrefixFiltering, PrefixResourcesTransformation
from qarnot.exceptions import (
    MaxPoolException,
    MaxTaskException,
    MissingPoolException,
    MissingProfileException,
    MissingTaskException,
    MissingTaskInstanceException,
    NotEnoughCreditsException,
    QarnotGenericException,
    UnauthorizedException,
)
from qarnot.privileges import Privileges
from qarnot.retry_settings import RetrySettings
from qarnot.scaling import FixedScalingPolicy, ManagedTasksQueueScalingPolicy, Scaling
from qarnot.scaling import TimePeriodAlways as Always

from airflow_qarnot_pool.local import LocalQarnot

from .conftest import finish, in_state, sdk_of, until

Starter = Callable[..., LocalQarnot]
PYTHON = shlex.quote(sys.executable)


def gate(path: Path, before: str = "", after: str = "true") -> str:
    """A command that prints something and its instance, and waits until a file exists."""
    wait = f"while ! test -e {path}; do sleep 0.02; done"
    return f"sh -c 'echo {before} $INSTANCE_ID; {wait}; {after}'"


def new_task(
    sdk: qarnot.Connection, where: qarnot.pool.Pool | str, command: str, count: int = 1, name: str = "work"
) -> qarnot.task.Task:
    task = sdk.create_task(name, where, count)
    task.constants["DOCKER_CMD"] = command
    return task


# ---- connecting ----------------------------------------------------------------------------------


def test_connect(server: LocalQarnot, sdk: qarnot.Connection) -> None:
    assert sdk.user_info.email == server.email
    assert sdk.user_info.max_pool == 1000
    assert "docker-batch" in sdk.profiles_names()
    assert any(p.name == "docker-batch" and "DOCKER_CMD" in dict(p.constants) for p in sdk.profiles())
    with pytest.raises(MissingProfileException):
        sdk.retrieve_profile("no-such-profile")


def test_wrong_token(server: LocalQarnot) -> None:
    with pytest.raises(UnauthorizedException):
        qarnot.Connection(cluster_url=server.url, client_token="wrong")
    with pytest.raises(UnauthorizedException):
        qarnot.Connection(cluster_url=server.url, client_token=f"Bearer {server.token}")


def test_a_trailing_slash_in_the_url_does_no_harm(server: LocalQarnot) -> None:
    connection = qarnot.Connection(cluster_url=server.url + "/", client_token=server.token)
    assert connection.pools() is not None


# ---- limits --------------------------------------------------------------------------------------


def test_limits_and_credit(private: Starter) -> None:
    server = private()
    sdk = sdk_of(server)
    server.set_account(maxPool=1, maxTask=2)
    first = sdk.create_pool("first", "docker-batch", 1)
    first.submit()
    with pytest.raises(MaxPoolException):
        sdk.create_pool("second", "docker-batch", 1).submit()
    tasks = [new_task(sdk, first, "true") for _ in range(3)]
    for task in tasks[:2]:
        task.submit()
        finish(task)
    with pytest.raises(MaxTaskException):  # finished ones count
        tasks[2].submit()
    tasks[0].delete()
    tasks[2].submit()
    server.set_account(maxTask=None, maxRunningPool=1, maxPool=10, credits=0)
    with pytest.raises(NotEnoughCreditsException):
        new_task(sdk, first, "true").submit()
    with pytest.raises(NotEnoughCreditsException):
        sdk.create_pool("third", "docker-batch", 1).submit()
    server.set_account(credits=5)
    with pytest.raises(MaxPoolException):
        sdk.create_pool("third", "docker-batch", 1).submit()
    server.set_account(maxRunningPool=None, maxInstances=3)
    with pytest.raises(UnauthorizedException, match="Maximum number of instances reached: 3"):
        sdk.create_pool("large", "docker-batch", 3).submit()
    with pytest.raises(UnauthorizedException, match="Maximum number of instances reached: 3"):
        new_task(sdk, "docker-batch", "true", 3).submit()
    sdk.create_pool("just right", "docker-batch", 2).submit()


def test_finished_objects_that_allow_it_make_room(private: Starter) -> None:
    server = private(boot_seconds=0)
    sdk = sdk_of(server)
    pool = sdk.create_pool("p", "docker-batch", 1)
    pool.submit()
    server.set_account(maxTask=2)
    kept, given_up = new_task(sdk, pool, "true", name="kept"), new_task(sdk, pool, "true", name="given up")
    given_up.auto_delete = True
    for task in (kept, given_up):
        task.submit()
        finish(task)
    new_task(sdk, pool, "true", name="third").submit()
    assert {task.name for task in sdk.tasks()} == {"kept", "third"}
    with pytest.raises(MissingTaskException):
        given_up.update(True)


# ---- pools ---------------------------------------------------------------------------------------


def test_pool_life(sdk: qarnot.Connection) -> None:
    pool = sdk.create_pool("identity", "docker-batch", 2)
    pool.submit()
    in_state(pool, "FullyExecuting")
    assert [node.instance_id for node in pool.status.running_instances_info.per_running_instance_info] == [
        0,
        1,
    ]
    pool.close()
    in_state(pool, "Closed")
    assert pool.previous_state == "Closing"
    assert pool.end_date >= pool.state_transition_time > "2025"
    with pytest.raises(UnauthorizedException, match="pool that is Closed"):
        pool.close()
    uuid = pool.uuid
    pool.delete()
    with pytest.raises(MissingPoolException):
        sdk.retrieve_pool(uuid)


def test_a_pool_passes_through_the_states_one_by_one(private: Starter) -> None:
    server = private(boot_seconds=100)
    sdk = sdk_of(server)
    pool = sdk.create_pool("states", "docker-batch", 4)
    pool.submit()
    seen = [pool.state]
    for _ in range(30):
        server.advance_clock(4)
        pool.update(True)
        if pool.state != seen[-1]:
            seen.append(pool.state)
    assert seen == [
        "Submitted",
        "PartiallyDispatched",
        "FullyDispatched",
        "PartiallyExecuting",
        "FullyExecuting",
    ]


def test_retrieve_by_uuid_and_shortname(sdk: qarnot.Connection, pool: qarnot.pool.Pool) -> None:
    name = f"short-{uuid4()}"
    named = sdk.create_pool("named", "docker-batch", 1, shortname=name)
    named.submit()
    assert sdk.retrieve_pool(named.uuid).shortname == name
    assert sdk.retrieve_pool(name).uuid == named.uuid
    task = sdk.create_task("t", pool, 1, shortname=name)  # pools and tasks have names of their own
    task.submit()
    assert sdk.retrieve_task(name).uuid == task.uuid
    assert pool.shortname == pool.uuid
    for wrong in (str(uuid4()), "no-such-name"):
        with pytest.raises(MissingPoolException):
            sdk.retrieve_pool(wrong)
        with pytest.raises(MissingTaskException):
            sdk.retrieve_task(wrong)
    named.delete()


def test_shortnames_are_unique_until_deleted(sdk: qarnot.Connection) -> None:
    name = f"short-{uuid4()}"
    first = sdk.create_pool("first", "docker-batch", 1, shortname=name)
    first.submit()
    again = sdk.create_pool("again", "docker-batch", 1, shortname=name)
    with pytest.raises(
        QarnotGenericException, match=r"Invalid pool file\. Invalid fields: shortname-uniqueness"
    ):
        again.submit()
    task = sdk.create_task("t", first, 1, shortname=name)
    task.submit()
    with pytest.raises(
        QarnotGenericException, match=r"Invalid task file\. Invalid fields: shortname-uniqueness"
    ):
        sdk.create_task("t", first, 1, shortname=name).submit()
    first.close()
    in_state(first, "Closed")
    with pytest.raises(QarnotGenericException, match="shortname-uniqueness"):
        again.submit()
    first.delete()
    again.submit()
    again.delete()


def test_shortnames_can_be_left_unenforced(private: Starter) -> None:
    sdk = sdk_of(private(shortnames="free"))
    pools = [sdk.create_pool("p", "docker-batch", 1, shortname="same") for _ in range(2)]
    for pool in pools:
        pool.submit()
    tasks = [sdk.create_task("t", pools[0], 1, shortname="same") for _ in range(2)]
    for task in tasks:
        task.submit()
    assert sdk.retrieve_pool("same").uuid == pools[1].uuid
    assert sdk.retrieve_task("same").uuid == tasks[1].uuid
    pools[1].delete()
    until(lambda: sdk.retrieve_pool("same").uuid == pools[0].uuid)


def test_a_pool_changes_its_scaling_while_it_runs(sdk: qarnot.Connection) -> None:
    pool = sdk.create_pool("elastic", "docker-batch", 1)
    pool.setup_elastic(minimum_total_slots=1, maximum_total_slots=3)
    pool.submit()
    in_state(pool, "FullyExecuting")
    assert pool.is_elastic
    assert pool.running_instance_count == 1
    pool.elastic_minimum_slots = 3
    pool.tags = ["changed"]
    pool.commit()
    until(lambda: pool.update(True) or pool.running_instance_count == 3)
    assert pool.elastic_minimum_slots == 3
    assert [p.uuid for p in sdk.all_pools(tags=["changed"])] == [pool.uuid]
    pool.delete()


def test_scaling_is_set_shown_and_replaced(sdk: qarnot.Connection) -> None:
    pool = sdk.create_pool("scaled", "docker-batch", 1)
    pool.scaling = Scaling([FixedScalingPolicy(2, "two", [Always("always")])])
    pool.submit()
    in_state(pool, "FullyExecuting")
    assert pool.running_instance_count == 2
    assert pool.scaling.active_policy_name == "two"
    queue = ManagedTasksQueueScalingPolicy(0, 3, None, 0, 1, "queue", [Always("always")])
    pool.scaling = Scaling([queue])
    pool.commit()
    until(lambda: pool.update(True) or pool.running_instance_count == 0)
    assert pool.scaling.active_policy_name == "queue"
    assert pool.state == "FullyExecuting"  # it has all the nodes it wants
    task = new_task(sdk, pool, "true", 3)
    task.submit()
    assert finish(task).state == "Success"
    pool.delete()


def test_preparation_runs_on_every_node_before_any_task(sdk: qarnot.Connection, tmp_path: Path) -> None:
    pool = sdk.create_pool("prepared", "docker-batch", 2)
    pool.preparation_command_line = (
        f"sh -c 'echo x >> {tmp_path}/count; echo prepared; echo ready > /job/mark'"
    )
    pool.submit()
    task = new_task(sdk, pool, "cat /job/mark", 2)
    task.submit()
    assert finish(task).stdout() == "0> ready\n1> ready\n"
    in_state(pool, "FullyExecuting")
    assert (tmp_path / "count").read_text() == "x\nx\n"
    assert pool.stdout() == "0> prepared\n1> prepared\n"
    assert pool.stdout(1) == "prepared\n"
    pool.delete()


def test_a_preparation_that_fails_ends_the_pool(sdk: qarnot.Connection) -> None:
    pool = sdk.create_pool("unprepared", "docker-batch", 1)
    pool.preparation_command_line = "false"
    pool.submit()
    in_state(pool, "Failure")
    assert re.fullmatch(r"The preparation task on node \S+ exited with code 1", pool.errors[0].message)
    pool.delete()


# ---- tasks ---------------------------------------------------------------------------------------


def test_four_instances(sdk: qarnot.Connection, pool: qarnot.pool.Pool) -> None:
    task = new_task(sdk, pool, "echo hello from ${INSTANCE_ID} of ${INSTANCE_COUNT}", 4)
    task.submit()
    assert finish(task).state == "Success"
    assert task.previous_state == "UploadingResults"
    assert task.stdout() == "".join(f"{i}> hello from {i} of 4\n" for i in range(4))
    assert task.stdout(2) == "hello from 2 of 4\n"
    assert task.stderr() == ""
    assert task.status.succeeded_range == "0-3"
    assert [i.state for i in task.completed_instances] == ["Success"] * 4
    assert task.pool.uuid == pool.uuid
    with pytest.raises(MissingTaskInstanceException):
        task.stdout(4)


def test_sixteen_instances_run_four_at_a_time(
    sdk: qarnot.Connection, pool: qarnot.pool.Pool, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    work = tmp_path / "work"
    work.mkdir()
    script = f"touch {work}/$INSTANCE_ID; while ! test -e {go}; do sleep 0.02; done; ls {work} | wc -l"
    task = new_task(sdk, pool, f"sh -c '{script}; rm {work}/$INSTANCE_ID'", 16)
    task.submit()
    until(lambda: len(list(work.iterdir())) == 4)
    in_state(task, "PartiallyExecuting")
    assert task.running_instance_count == 4
    go.touch()
    assert finish(task).state == "Success"
    beside = [int(task.stdout(i)) for i in range(16)]
    assert max(beside) <= 4
    assert task.status.succeeded_range == "0-15"


def test_ranges_choose_the_instance_ids(sdk: qarnot.Connection, pool: qarnot.pool.Pool) -> None:
    task = sdk.create_task("ranges", pool, "1-2,7")
    task.constants["DOCKER_CMD"] = "echo ${INSTANCE_ID}"
    task.submit()
    assert finish(task).state == "Success"
    assert task.stdout() == "1> 1\n2> 2\n7> 7\n"
    assert task.status.succeeded_range == "1-2,7"
    with pytest.raises(MissingTaskInstanceException):
        task.stdout(0)


def test_a_failing_command_is_tried_again(
    sdk: qarnot.Connection, pool: qarnot.pool.Pool, tmp_path: Path
) -> None:
    # Instance 0 succeeds the third time, instance 1 never.
    script = f"echo x >> {tmp_path}/$INSTANCE_ID; test $INSTANCE_ID = 0 -a $(wc -l < {tmp_path}/0) -ge 3"
    task = new_task(sdk, pool, f'sh -c "{script}"', 2)
    task.retry_settings = RetrySettings(maxPerInstanceRetries=2)
    task.submit()
    assert finish(task).state == "Failure"
    done = {i.instance_id: i for i in task.completed_instances}
    assert (done[0].state, done[0].execution_attempt_count) == ("Success", 3)
    assert (done[1].state, done[1].execution_attempt_count) == ("Failure", 3)
    assert task.status.succeeded_range == "0"
    assert task.status.failed_range == "1"
    assert task.errors[0].code == "LOCAL_EXIT_CODE"
    assert "code 1" in task.errors[0].message


def test_the_pools_retry_settings_are_the_default(sdk: qarnot.Connection, tmp_path: Path) -> None:
    pool = sdk.create_pool("retries", "docker-batch", 1)
    pool.default_retry_settings = RetrySettings(maxTotalRetries=1)
    pool.submit()
    task = new_task(sdk, pool, f"sh -c 'echo x >> {tmp_path}/tries; exit 9'")
    task.submit()
    assert finish(task).state == "Failure"
    assert (tmp_path / "tries").read_text() == "x\nx\n"
    pool.delete()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("no-such-program", r"code 127 \(no-such-program: not found\)\. Install the program on this machine"),
        ("sh -c 'echo x >&2; no-such-program -y'", r"code 127 \(.*no-such-program: .*not found\)\. Install"),
        ("sh -c 'exit 127'", r"code 127\. Install the program on this machine"),
        ("/etc/passwd", r"code 126 \(/etc/passwd: cannot be run: "),
        ("echo 'open", "cannot be split"),
    ],
)
def test_commands_that_cannot_run(
    sdk: qarnot.Connection, pool: qarnot.pool.Pool, command: str, message: str
) -> None:
    task = new_task(sdk, pool, command)
    task.submit()
    assert finish(task).state == "Failure"
    assert re.search(message, task.errors[0].message)


def test_abort_ends_the_whole_tree(sdk: qarnot.Connection, pool: qarnot.pool.Pool, tmp_path: Path) -> None:
    code = (
        "import os,time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        f"        open({str(tmp_path / 'grandchild')!r}, 'w').write(str(os.getpid()))\n"
        "        time.sleep(600)\n"
        "    os._exit(0)\n"
        f"open({str(tmp_path / 'main')!r}, 'w').write(str(os.getpid()))\n"
        "time.sleep(600)\n"
    )
    task = new_task(sdk, pool, f"{PYTHON} -c {shlex.quote(code)}", 1)
    task.submit()
    pids = [
        int(until(lambda f=f: (tmp_path / f).exists() and (tmp_path / f).read_text()))
        for f in ("main", "grandchild")
    ]
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    task.abort()
    in_state(task, "Cancelled")
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert task.status.failed_range == "0"
    task.abort()  # on a task that is over: nothing happens
    assert task.state == "Cancelled"
    after = new_task(sdk, pool, "true", 4)
    after.submit()
    assert finish(after).state == "Success"  # the slot is free again


def test_abort_of_a_task_that_waits(sdk: qarnot.Connection, pool: qarnot.pool.Pool, tmp_path: Path) -> None:
    go = tmp_path / "go"
    busy = new_task(sdk, pool, gate(go), 4)
    busy.submit()
    waiting = new_task(sdk, pool, "true", 2)
    waiting.submit()
    in_state(busy, "FullyExecuting")
    assert waiting.state == "Submitted"
    waiting.abort()
    waiting.update(True)
    assert waiting.state == "Cancelled"
    go.touch()
    assert finish(busy).state == "Success"


def test_run_with_a_time_limit(sdk: qarnot.Connection, pool: qarnot.pool.Pool) -> None:
    task = new_task(sdk, pool, "sleep 600")
    task.run(job_timeout=0.5)
    in_state(task, "Cancelled")


def test_bulk_submit(sdk: qarnot.Connection, pool: qarnot.pool.Pool) -> None:
    tasks = [new_task(sdk, pool, f"echo {n}") for n in range(5)]
    sdk.submit_tasks(tasks)
    assert [finish(task).stdout() for task in tasks] == [f"0> {n}\n" for n in range(5)]


def test_bulk_submit_with_one_bad_task(sdk: qarnot.Connection, pool: qarnot.pool.Pool) -> None:
    tasks = [new_task(sdk, pool, "true", name=name) for name in ("good", "", "good too")]
    with pytest.raises(QarnotGenericException, match=r"400, Invalid task file\. Invalid fields: name"):
        sdk.submit_tasks(tasks)
    assert [task.uuid is not None for task in tasks] == [True, False, True]


def test_fresh_output(sdk: qarnot.Connection, pool: qarnot.pool.Pool, tmp_path: Path) -> None:
    go = tmp_path / "go"
    task = new_task(sdk, pool, gate(go, "first", "printf second"))
    task.submit()
    fresh = until(lambda: task.fresh_stdout())
    assert fresh == "0> first 0\n"
    assert task.fresh_stdout() == ""
    assert task.stdout() == "0> first 0\n"
    go.touch()
    finish(task)
    assert task.fresh_stdout() == "0> second\n"
    assert task.fresh_stdout() == ""
    assert task.fresh_stdout(0) == "first 0\nsecond"  # the cursor of one instance is its own
    assert task.fresh_stdout(0) == ""
    assert task.stdout(0) == "first 0\nsecond"


@pytest.mark.reading("secret-variables")
def test_constants_and_variables_reach_the_command(sdk: qarnot.Connection, pool: qarnot.pool.Pool) -> None:
    task = new_task(sdk, pool, "env")
    task.constants |= {"GREETING": "hello there", "QARNOT_SECRET__KEY": "s3cret"}
    task.submit()
    finish(task)
    env = dict(line.split("=", 1) for line in task.stdout(0).splitlines())
    assert env["GREETING"] == "hello there"
    assert env["QARNOT_SECRET__KEY"] == "s3cret"
    assert env["INSTANCE_ID"] == "0"
    assert env["TASK_PATH"] == env["HOME"] == env["QARNOT_RESOURCES_DIRECTORY"]
    task.update(True)
    assert task.constants["QARNOT_SECRET__KEY"] == "[SECRET]"
    assert not {"QARNOT_CLIENT_TOKEN", "USER", "VIRTUAL_ENV"} & set(env)


def test_credentials_only_with_the_privilege(
    server: LocalQarnot, sdk: qarnot.Connection, pool: qarnot.pool.Pool
) -> None:
    task = new_task(sdk, pool, "env")
    task.privileges = Privileges(True)
    task.submit()
    finish(task)
    assert f"QARNOT_CLIENT_TOKEN={server.token}" in task.stdout(0)
    assert f"QARNOT_CLUSTER_URL={server.url}" in task.stdout(0)


def test_a_task_without_a_pool_boots_nodes_of_its_own(sdk: qarnot.Connection) -> None:
    task = new_task(sdk, "docker-batch", "echo alone ${INSTANCE_ID}", 2)
    task.submit()
    assert finish(task).stdout() == "0> alone 0\n1> alone 1\n"
    assert task.state == "Success"


def test_a_task_without_a_pool_is_tried_again_and_aborted_while_it_boots(
    private: Starter, tmp_path: Path
) -> None:
    server = private(boot_seconds=60)
    sdk = sdk_of(server)
    task = new_task(sdk, "docker-batch", f"sh -c 'echo x >> {tmp_path}/tries; exit 1'")
    task.retry_settings = RetrySettings(maxPerInstanceRetries=1)
    task.submit()
    booting = new_task(sdk, "docker-batch", "true", 3)
    booting.submit()
    server.advance_clock(30)
    in_state(booting, "FullyDispatched")
    booting.abort()
    in_state(booting, "Cancelled")
    assert len(server.nodes()) == 1
    server.advance_clock(30)
    until(
        lambda: (
            (tmp_path / "tries").exists() and len(server.nodes()) == 1 and not server.nodes()[0]["running"]
        )
    )
    server.advance_clock(60)
    assert finish(task).state == "Failure"
    assert (tmp_path / "tries").read_text() == "x\nx\n"
    assert server.nodes() == []


def test_slots_share_a_node(sdk: qarnot.Connection, tmp_path: Path) -> None:
    pool = sdk.create_pool("multi", "docker-batch", 4)
    pool.multi_slots_settings = qarnot.multi_slots_settings.MultiSlotsSettings(4)
    pool.submit()
    in_state(pool, "FullyExecuting")
    assert len(pool.status.running_instances_info.per_running_instance_info) == 1
    go = tmp_path / "go"
    task = new_task(sdk, pool, gate(go), 5)
    task.submit()
    until(lambda: sum(bool(task.stdout(i)) for i in range(5)) == 4)
    assert task.update(True) or task.state == "PartiallyExecuting"
    go.touch()
    assert finish(task).state == "Success"
    pool.delete()


def test_closing_a_pool_cancels_its_tasks(sdk: qarnot.Connection, tmp_path: Path) -> None:
    pool = sdk.create_pool("closing", "docker-batch", 1)
    pool.submit()
    running = new_task(sdk, pool, f"sh -c 'echo $$ > {tmp_path}/pid; exec sleep 600'")
    waiting = new_task(sdk, pool, "true")
    for task in (running, waiting):
        task.submit()
    pid = int(until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    pool.close()
    in_state(pool, "Closed")
    assert not Path(f"/proc/{pid}").exists()
    for task in (running, waiting):
        in_state(task, "Cancelled")
        assert task.errors[0].code == "GHX0782I"
    with pytest.raises(QarnotGenericException, match=r"Invalid task file\. Invalid fields: pool-not-open"):
        new_task(sdk, pool, "true").submit()
    pool.delete()


def test_deleting_a_pool_that_runs(sdk: qarnot.Connection, tmp_path: Path) -> None:
    pool = sdk.create_pool("deleted", "docker-batch", 1)
    pool.submit()
    task = new_task(sdk, pool, f"sh -c 'echo $$ > {tmp_path}/pid; exec sleep 600'")
    task.submit()
    pid = int(until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    uuid = pool.uuid
    pool.delete()
    until(lambda: uuid not in {p.uuid for p in sdk.pools()})
    assert not Path(f"/proc/{pid}").exists()
    in_state(task, "Cancelled")


def test_deleting_a_task_that_runs(sdk: qarnot.Connection, pool: qarnot.pool.Pool, tmp_path: Path) -> None:
    task = new_task(sdk, pool, f"sh -c 'echo $$ > {tmp_path}/pid; exec sleep 600'")
    task.submit()
    pid = int(until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    task.delete()
    until(lambda: task.uuid not in {t.uuid for t in sdk.tasks()})
    until(lambda: not Path(f"/proc/{pid}").exists())


# ---- finding -------------------------------------------------------------------------------------


def test_tags_and_pages(sdk: qarnot.Connection, pool: qarnot.pool.Pool) -> None:
    mark = str(uuid4())
    tasks = []
    for n in range(7):
        task = new_task(sdk, pool, "true", name=f"t{n}")
        task.tags = [mark, "even" if n % 2 == 0 else "odd", f"{mark}-{n}"]
        tasks.append(task)
    sdk.submit_tasks(tasks)
    assert [t.name for t in sdk.all_tasks(tags=[mark])] == [f"t{n}" for n in range(7)]
    assert [t.name for t in sdk.all_tasks(tags_intersect=[mark, "odd"])] == ["t1", "t3", "t5"]
    assert [t.name for t in sdk.all_tasks(tags=[f"{mark}-1", f"{mark}-4"])] == ["t1", "t4"]
    assert [t.name for t in sdk.tasks(tags=[mark])] == [f"t{n}" for n in range(7)]
    names: list[str] = []
    token = None
    for size in (3, 3, 1):
        page = sdk.tasks_page(token=token, maximum=3, tags=[mark])
        assert len(page.page_data) == size
        names += [t.name for t in page.page_data]
        token = page.next_token
    assert not page.is_truncated
    assert names == [f"t{n}" for n in range(7)]


# ---- buckets -------------------------------------------------------------------------------------


def test_resources_in_and_results_out(sdk: qarnot.Connection, pool: qarnot.pool.Pool, tmp_path: Path) -> None:
    bucket = sdk.retrieve_or_create_bucket(f"in-{uuid4()}")
    (tmp_path / "a.txt").write_text("alpha")
    (tmp_path / "b.txt").write_text("beta")
    bucket.add_file(str(tmp_path / "a.txt"), "wanted/sub/a.txt")
    bucket.add_file(str(tmp_path / "b.txt"), "other/b.txt")
    out = sdk.retrieve_or_create_bucket(f"out-{uuid4()}")
    script = "find . -type f; cat sub/a.txt > keep.txt; echo no > drop.txt; mkdir d; echo deep > d/keep.txt"
    task = new_task(sdk, pool, f"sh -c '{script}'")
    wanted = bucket.with_filtering(BucketPrefixFiltering("wanted/"))
    task.resources.append(wanted.with_resource_transformation(PrefixResourcesTransformation("wanted/")))
    task.results = out
    task.results_whitelist = r"keep|drop|a\.txt"
    task.results_blacklist = "drop"
    task.submit()
    assert finish(task).state == "Success", task.errors
    assert task.stdout(0) == "./sub/a.txt\n"
    # Not the resources, and not what the filters leave out.
    assert sorted(f.key for f in out.list_files()) == ["d/keep.txt", "keep.txt"]
    task.download_results(str(tmp_path / "results"))
    assert (tmp_path / "results" / "keep.txt").read_text() == "alpha"


def test_a_missing_result_bucket_is_made(sdk: qarnot.Connection) -> None:
    name = f"made-{uuid4()}"
    task = new_task(sdk, "docker-batch", "sh -c 'echo $INSTANCE_ID > /job/$INSTANCE_ID.txt'", 3)
    task.results = qarnot.bucket.Bucket(sdk, name, create=False)
    task.submit()
    assert finish(task).state == "Success"
    files = {f.key: f.get()["Body"].read() for f in sdk.retrieve_bucket(name).list_files()}
    assert files == {"0.txt": b"0\n", "1.txt": b"1\n", "2.txt": b"2\n"}


def test_results_of_a_cancelled_task_only_when_asked(
    sdk: qarnot.Connection, pool: qarnot.pool.Pool, tmp_path: Path
) -> None:
    for asked, expected in ((True, ["half"]), (None, [])):
        out = sdk.retrieve_or_create_bucket(f"out-{uuid4()}")
        task = new_task(sdk, pool, f"sh -c 'echo x > half; touch {tmp_path}/{asked}; sleep 600'")
        task.results = out
        task.upload_results_on_cancellation = asked
        task.submit()
        until((tmp_path / str(asked)).exists)
        task.abort()
        in_state(task, "Cancelled")
        assert [f.key for f in out.list_files()] == expected


def test_snapshots(sdk: qarnot.Connection, pool: qarnot.pool.Pool, tmp_path: Path) -> None:
    out = sdk.retrieve_or_create_bucket(f"out-{uuid4()}")
    task = new_task(sdk, pool, f"sh -c 'echo x > half; touch {tmp_path}/ready; sleep 600'")
    task.results = out
    task.submit()
    until((tmp_path / "ready").exists)
    snapshot = task.instant(bucket_prefix="snap/")
    until(lambda: task.snapshot_status(snapshot)._status.is_completed)
    assert [f.key for f in out.list_files()] == ["snap/half"]
    with pytest.raises(ValueError):
        task.snapshot(-5)
    task.snapshot(1)
    until(lambda: "half" in [f.key for f in out.list_files()])
    task.abort()


def test_pool_resources_are_at_job_and_can_be_synchronized(sdk: qarnot.Connection, tmp_path: Path) -> None:
    bucket = sdk.retrieve_or_create_bucket(f"pool-{uuid4()}")
    (tmp_path / "data").write_text("one")
    bucket.add_file(str(tmp_path / "data"), "data")
    pool = sdk.create_pool("with resources", "docker-batch", 1)
    pool.resources.append(bucket)
    pool.submit()
    first = new_task(sdk, pool, "sh -c 'cat /job/data; ls; cd ..; pwd; ls data'")
    first.submit()
    finish(first)
    # Its own directory is empty, and below the one with the pool's resources.
    assert first.stdout(0).startswith("one/")
    assert first.stdout(0).endswith("/job\ndata\n")
    (tmp_path / "data").write_text("two")
    bucket.add_file(str(tmp_path / "data"), "data")
    pool.update_resources()
    second = new_task(sdk, pool, "cat /job/data")
    second.wait_for_pool_resources_synchronization = True
    second.submit()
    finish(second)
    assert second.stdout(0) == "two"
    pool.delete()


def test_a_node_that_boots_during_a_synchronization_has_the_new_files(
    sdk: qarnot.Connection, tmp_path: Path
) -> None:
    bucket = sdk.retrieve_or_create_bucket(f"pool-{uuid4()}")
    (tmp_path / "data").write_text("one")
    bucket.add_file(str(tmp_path / "data"), "data")
    pool = sdk.create_pool("boots", "docker-batch", 1)
    pool.resources.append(bucket)
    copied, proceed = tmp_path / "copied", tmp_path / "proceed"
    pool.preparation_command_line = (
        f"sh -c 'cat data; touch {copied}; while [ ! -e {proceed} ]; do sleep 0.01; done'"
    )
    pool.submit()
    until(copied.exists)
    (tmp_path / "data").write_text("two")
    bucket.add_file(str(tmp_path / "data"), "data")
    pool.update_resources()
    proceed.touch()
    task = new_task(sdk, pool, "cat /job/data")
    task.wait_for_pool_resources_synchronization = True
    task.submit()
    finish(task)
    assert task.stdout(0) == "two"
    pool.delete()


def test_unknown_bucket(sdk: qarnot.Connection, pool: qarnot.pool.Pool) -> None:
    bucket = sdk.create_bucket(f"gone-{uuid4()}")
    task = new_task(sdk, pool, "true")
    task.resources.append(bucket)
    bucket.delete()
    with pytest.raises(qarnot.exceptions.MissingBucketException):
        task.submit()


def test_only_the_accounts_key_opens_the_storage(server: LocalQarnot, sdk: qarnot.Connection) -> None:
    import boto3
    from botocore.exceptions import ClientError

    other = boto3.client(
        "s3",
        endpoint_url=server.storage_url,
        aws_access_key_id="someone@else",
        aws_secret_access_key=server.token,
        region_name="us-east-1",
    )
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        other.list_buckets()
    assert requests.get(server.storage_url, timeout=10).status_code == 403
    bucket = sdk.create_bucket(f"signed-{uuid4()}")
    bucket.add_string("text", "file")
    url = sdk.s3client.generate_presigned_url("get_object", Params={"Bucket": bucket.uuid, "Key": "file"})
    assert requests.get(url, timeout=10).text == "text"


# ---- time ----------------------------------------------------------------------------------------


def test_time_to_live(private: Starter) -> None:
    server = private(boot_seconds=0)
    sdk = sdk_of(server)
    pool = sdk.create_pool("p", "docker-batch", 1)
    pool.completion_ttl = timedelta(hours=1)
    pool.submit()
    task = new_task(sdk, pool, "true")
    task.completion_ttl = timedelta(minutes=10)
    task.submit()
    finish(task)
    assert task.completion_ttl == "00:10:00"
    server.advance_clock(599)
    task.update(True)
    server.advance_clock(2)
    with pytest.raises(MissingTaskException):
        task.update(True)
    pool.close()
    server.advance_clock(10)
    in_state(pool, "Closed")
    server.advance_clock(3601)
    with pytest.raises(MissingPoolException):
        pool.update(True)


def test_dates_are_the_servers(private: Starter) -> None:
    server = private()
    server.advance_clock(86_400)
    sdk = sdk_of(server)
    pool = sdk.create_pool("p", "docker-batch", 1)
    pool.submit()
    tomorrow = datetime.now(UTC).replace(tzinfo=None) + timedelta(days=1)
    assert abs((pool.creation_date.replace(tzinfo=None) - tomorrow).total_seconds()) < 60


def test_queue_time_limit(private: Starter) -> None:
    server = private(boot_seconds=1000)
    sdk = sdk_of(server)
    pool = sdk.create_pool("p", "docker-batch", 1)
    pool.submit()
    task = new_task(sdk, pool, "true", 2)
    task.max_time_queue_seconds = 60
    task.submit()
    server.advance_clock(61)
    in_state(task, "Failure")
    assert "queued for more than 60 s" in task.errors[0].message


def test_credits_and_carbon_follow_node_seconds(private: Starter) -> None:
    server = private(boot_seconds=0)
    sdk = sdk_of(server)
    pool = sdk.create_pool("p", "docker-batch", 2)
    pool.submit()
    in_state(pool, "FullyExecuting")
    server.advance_clock(3600)
    assert 0.71 < pool.credits().amount_in_euros < 0.74
    pool.close()
    server.advance_clock(60)
    in_state(pool, "Closed")
    spent = server.get_account()["creditsSpent"]
    server.advance_clock(86_400)
    assert server.get_account()["creditsSpent"] == spent
    assert pool.credits().amount_in_euros == pytest.approx(spent)
    assert sdk.credits().amount_in_euros == pytest.approx(1000 - spent)
    assert pool.carbon_facts("Elsewhere").energy_it_Wh == pytest.approx(spent / 0.36 * 100)
    assert pool.carbon_facts("Elsewhere").equivalent_datacenter_name == "Elsewhere"
