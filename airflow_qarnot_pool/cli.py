"""The command ``airflow qarnot``. Every start of the CLI imports this module, so it imports little."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from airflow.cli.cli_config import ActionCommand, Arg, GroupCommand, lazy_load_command

from airflow_qarnot_pool.probe.options import OPTIONS

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.hooks.qarnot import QarnotHook
    from airflow_qarnot_pool.maintenance.airflow_api import AirflowApi
    from airflow_qarnot_pool.maintenance.reaper import RunState
    from airflow_qarnot_pool.sizing.demand import Upstreams

#: Why a pool has no table.
NO_RECORD = (
    "  No run can be replayed. A run is left out if its pool is shared by runs, its work failed or took a few seconds, "
    "its cost is unknown, it has more than 2,000 instances, or its nodes came and went in another way than the replay "
    "says."
)


def get_cli_commands() -> list[GroupCommand]:
    """Return the commands of this provider."""
    reap_command = ActionCommand(
        name="reap",
        help="Close idle pools, pools over a cost limit, and pools whose DAG run has finished or is unknown; "
        "abort Qarnot tasks without a pool of such runs; delete old objects",
        func=lazy_load_command("airflow_qarnot_pool.cli.reap"),
        args=(
            Arg(("--conn-id",), help="Connection of type qarnot", default="qarnot_default"),
            Arg(("--dry-run",), help="Report without closing, aborting or deleting", action="store_true"),
            Arg(
                ("--api-url",),
                help="Address of Airflow's api-server, which then has the states of DAG runs; for a machine without "
                "access to Airflow's database. AIRFLOW_CLI_TOKEN has the token",
            ),
            Arg(
                ("--skip-deployment-check",),
                help="With --api-url: reap even if no DAG run there has the start that the objects of the namespace "
                "have, because its DAG runs were cleared or deleted",
                action="store_true",
            ),
            Arg(
                ("--grace-period-minutes",),
                help="Minutes to keep a pool of a finished or unknown DAG run after its last work",
                type=float,
                default=15.0,
            ),
            Arg(("--idle-timeout-minutes",), help="Minutes to keep idle pools", type=float, default=60.0),
            Arg(
                ("--delete-environments-after-days",),
                help="Days to keep environments of Python functions after their last use, at least 2",
                type=float,
                default=30.0,
            ),
        ),
    )
    probe_command = ActionCommand(
        name="probe",
        help="Ask Qarnot the open questions of docs/assumptions.md, by small experiments",
        func=lazy_load_command("airflow_qarnot_pool.cli.probe"),
        args=(
            Arg(("--conn-id",), help="Connection of type qarnot", default="qarnot_default"),
            *(Arg(flags, **about) for flags, about in OPTIONS.items()),
        ),
    )
    tune_command = ActionCommand(
        name="tune",
        help="Show what the last runs of a DAG would have taken and cost with other sizes of their pools",
        func=lazy_load_command("airflow_qarnot_pool.cli.tune"),
        args=(
            Arg(("dag_id",), help="Id of the DAG"),
            Arg(("--conn-id",), help="Connection of type qarnot", default="qarnot_default"),
            Arg(("--runs",), help="Number of runs, 1 to 20", type=int, default=3),
        ),
    )
    commands = (reap_command, probe_command, tune_command, _executor_commands())
    return [GroupCommand(name="qarnot", help="Manage Qarnot pools", subcommands=commands)]


def _executor_commands() -> GroupCommand:
    image_command = ActionCommand(
        name="image",
        help="Print a Dockerfile for nodes, with the Airflow, Python and providers of this machine",
        func=lazy_load_command("airflow_qarnot_pool.cli.executor_image"),
        args=(
            Arg(("--freeze",), help="Install every package of this machine", action="store_true"),
            Arg(("--requirements",), help="Requirements file beside the Dockerfile, for what DAGs import"),
        ),
    )
    check_command = ActionCommand(
        name="check",
        help="Run one small Qarnot task as QarnotExecutor does, and say what is missing, in under two minutes",
        func=lazy_load_command("airflow_qarnot_pool.cli.executor_check"),
        args=(
            Arg(
                ("--pool",),
                help="Name of a pool in the option pools; default: the pool of the section itself",
            ),
        ),
    )
    return GroupCommand(
        name="executor", help="Set up QarnotExecutor", subcommands=(image_command, check_command)
    )


def executor_image(args: Namespace) -> None:
    """Run ``airflow qarnot executor image``: print a Dockerfile."""
    from airflow_qarnot_pool.executors.image import dockerfile, installed

    print(dockerfile(installed(freeze=args.freeze), args.requirements), end="")


def executor_check(args: Namespace) -> None:
    """Run ``airflow qarnot executor check``, and exit with 1 if there is a problem."""
    import signal

    from airflow.configuration import conf

    from airflow_qarnot_pool.exceptions import QarnotError
    from airflow_qarnot_pool.executors.check import check
    from airflow_qarnot_pool.executors.options import read_options

    # The Qarnot task is deleted on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        options = read_options(conf)
        pool = options.pools.get(args.pool or options.default_pool)
        if pool is None:
            raise SystemExit(
                f"--pool names no pool of [qarnot_executor], got {args.pool!r}. Give one of "
                f"{', '.join(sorted(options.pools))}."
            )
        hook = _hook(options.conn_id, "[qarnot_executor] conn_id")
        problems = check(hook.client, hook.settings, options, pool, print)
    except QarnotError as error:
        raise SystemExit(str(error)) from None
    if problems:
        raise SystemExit("\n".join(f"- {problem}" for problem in problems))
    print("A node can run the tasks of this Airflow.")


def reap(args: Namespace) -> None:
    """Run ``airflow qarnot reap``: as ``QarnotReapOperator``, with the states of DAG runs from database or API."""
    from airflow_qarnot_pool.environments.specification import DEFAULT_BUCKET
    from airflow_qarnot_pool.exceptions import QarnotError
    from airflow_qarnot_pool.maintenance.deployment import run_state_of
    from airflow_qarnot_pool.maintenance.environments import check_max_age, reap_environments
    from airflow_qarnot_pool.maintenance.reaper import HAS_ENDED, ReapLimits
    from airflow_qarnot_pool.maintenance.reaper import reap as reap_pools

    hook = _hook(args.conn_id)
    max_age = timedelta(days=args.delete_environments_after_days)
    check_max_age(max_age)
    namespace = hook.settings.namespace if hook.settings.namespace_is_explicit else None
    run_state: RunState
    if args.api_url is None:
        run_state, state_of = _checked_database(), None
    else:
        api = _checked_api(args.api_url, hook.client, None if args.skip_deployment_check else namespace)
        run_state, state_of = api.dag_run_state, partial(run_state_of, api=api)
    report = reap_pools(
        hook.client,
        namespace,
        run_state,
        ReapLimits(
            grace_period=timedelta(minutes=args.grace_period_minutes),
            idle_timeout=timedelta(minutes=args.idle_timeout_minutes),
        ),
        dry_run=args.dry_run,
        state_of=state_of,
    )
    for entry in [*report.entries, *report.tasks]:
        if entry.reason != HAS_ENDED:
            print(f"{entry.action:<7}{entry.uuid}  {entry.name or ''}: {entry.reason}")
    counts = report.to_json()
    would = "would be " if args.dry_run else ""
    print(f"{counts['closed']} {would}closed, {counts['deleted']} {would}deleted, {counts['kept']} kept")
    if report.tasks:
        print(f"{counts['aborted']} of {len(report.tasks)} Qarnot tasks with their own nodes {would}aborted")
    try:
        for key in reap_environments(hook.settings, DEFAULT_BUCKET, max_age, dry_run=args.dry_run):
            print(
                f"delete {key} of bucket {DEFAULT_BUCKET}: it was last used more than {max_age.days} days ago"
            )
    except QarnotError as error:
        report.failures.append(str(error))
    if report.failures:
        raise SystemExit("\n".join(["Could not check or clean up:", *report.failures]))


def probe(args: Namespace) -> None:
    """Run ``airflow qarnot probe``: as ``python -m airflow_qarnot_pool.probe``, with a connection."""
    from airflow_qarnot_pool.probe.command import probe as run_probe

    hook = _hook(args.conn_id)
    if code := run_probe(hook.client, hook.settings.token, args):
        raise SystemExit(code)


def tune(args: Namespace) -> None:
    """Run ``airflow qarnot tune``: a table of sizes for each task that opens a pool, from its last runs."""
    from airflow_qarnot_pool.sizing.curve import table_of
    from airflow_qarnot_pool.sizing.records import ended_pools, records_of

    if not 1 <= args.runs <= 20:
        raise SystemExit(f"--runs must be between 1 and 20, got {args.runs}. Give another number.")
    hook = _hook(args.conn_id)
    found = ended_pools(hook.client, hook.settings.namespace, args.dag_id)
    if not found:
        raise SystemExit(
            f"dag_id has no ended pool in the namespace {hook.settings.namespace!r}, got {args.dag_id!r}. Check the "
            "id, or run the DAG. Qarnot keeps ended pools for a week, unless their completion_ttl is another."
        )
    upstreams = _upstreams(args.dag_id)
    for opener, pools in sorted(found.items(), key=lambda item: (item[0].task_id, item[0].map_index)):
        index = "" if opener.map_index == "-1" else f"[{opener.map_index}]"
        records = records_of(hook.client, pools, upstreams, args.runs)
        mean = f", mean of {len(records)} run{'' if len(records) == 1 else 's'}" if records else ""
        print(f"{opener.task_id}{index}{mean}")
        print(table_of(records) if records else NO_RECORD)


def _upstreams(dag_id: str) -> Upstreams | None:
    """Return the upstreams of the tasks of a DAG; None if the database does not have it or cannot be read."""
    from sqlalchemy.exc import SQLAlchemyError

    from airflow_qarnot_pool.sizing.records import upstreams_in
    from airflow_qarnot_pool.version_compat import dag_in_the_database

    try:
        dag = dag_in_the_database(dag_id)
    except SQLAlchemyError as error:
        print(
            f"Airflow's database cannot be read ({type(error).__name__}), so each task counts as downstream of all "
            "tasks that ended before it."
        )
        return None
    return None if dag is None else upstreams_in(dag)


def _hook(conn_id: str, option: str = "--conn-id") -> QarnotHook:
    """Return the hook of a connection in the environment, a secrets backend, or the database if there is one.

    :param option: the option that names it, for the error.
    """
    from airflow_qarnot_pool.hooks.qarnot import QarnotHook
    from airflow_qarnot_pool.version_compat import (
        AirflowNotFoundException,
        read_connections_from_the_database,
    )

    read_connections_from_the_database()
    hook = QarnotHook(conn_id)
    try:
        hook.get_connection(conn_id)
    except AirflowNotFoundException:
        raise SystemExit(
            f"{option} names no connection of this environment, of its secrets backend or of its database, got "
            f"{conn_id!r}. Set AIRFLOW_CONN_{conn_id.upper()}, or run the command on a machine that has it. Airflow's "
            "API does not return tokens."
        ) from None
    return hook


def _checked_api(url: str, client: QarnotClient, namespace: str | None) -> AirflowApi:
    """Return Airflow's API at *url*, which is that of the deployment of *namespace* (None: unchecked).

    :raises SystemExit: it is not, or does not accept the token.
    """
    from airflow_qarnot_pool.maintenance.airflow_api import TOKEN_VARIABLE, AirflowApi, AirflowApiError
    from airflow_qarnot_pool.maintenance.deployment import check_deployment

    try:
        api = AirflowApi(url, os.environ.get(TOKEN_VARIABLE, ""))
        api.check()
        if namespace is not None:
            check_deployment(client, namespace, api)
    except AirflowApiError as error:
        raise SystemExit(str(error)) from None
    return api


def _checked_database() -> RunState:
    """Return the function that knows the states of DAG runs. The command line has no task runner to ask.

    :raises SystemExit: it would know none.
    """
    from sqlalchemy.exc import SQLAlchemyError

    try:
        _run_state("", "")
    except SQLAlchemyError as error:
        raise SystemExit(
            f"Airflow's database cannot be read ({type(error).__name__}). Give --api-url and set AIRFLOW_CLI_TOKEN, or "
            "run the command where the scheduler runs."
        ) from None
    return _run_state


def _run_state(dag_id: str, run_id: str) -> str | None:
    """Return the state of a DAG run from the database."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        state = session.scalar(select(DagRun.state).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
    return None if state is None else str(getattr(state, "value", state))
