"""`python -m airflow_qarnot_pool.local`: serve the local Qarnot until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_qarnot_pool.local.local_qarnot import LIKE_VARIABLE, TOKEN_VARIABLE

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.preemption import Preemption
    from airflow_qarnot_pool.local.backend.readings import Readings
    from airflow_qarnot_pool.local.processes.state import State


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_qarnot_pool.local",
        description="A Qarnot on this machine: REST API, scheduler, nodes and storage, on loopback.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="loopback address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port of the API (0: any free one)")
    parser.add_argument(
        "--storage-port", type=int, default=0, help="port of the S3 storage (0: any free one)"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME[:PORT]",
        help="a Host header to accept in addition to loopback names with the port (repeatable)",
    )
    parser.add_argument(
        "--token",
        help=f"API token clients must send (default: {TOKEN_VARIABLE} in the environment, or a random one)",
    )
    parser.add_argument(
        "--email", default="local@qarnot.invalid", help="the account, and S3 access key (%(default)s)"
    )
    parser.add_argument(
        "--boot-seconds", type=float, default=5.0, help="boot time of a node (%(default)s; virtual time)"
    )
    parser.add_argument(
        "--close-seconds",
        type=float,
        default=1.0,
        help="minimum time for which a pool is Closing (%(default)s; virtual time)",
    )
    parser.add_argument(
        "--cancel-seconds",
        type=float,
        default=0.0,
        help="minimum time for which an aborted task is PendingCancel (%(default)s; virtual time)",
    )
    parser.add_argument(
        "--shortnames",
        choices=("enforce", "free"),
        help="refuse a shortname that is taken, or allow it",
    )
    parser.add_argument(
        "--queued",
        choices=("cancel", "leave"),
        help="cancel or keep tasks that are queued when their pool ends",
    )
    parser.add_argument(
        "--profile",
        action="append",
        default=[],
        metavar="NAME",
        help="a profile of the account, in addition to those of Qarnot (repeatable)",
    )
    parser.add_argument("--any-profile", action="store_true", help="accept every name of a profile")
    parser.add_argument(
        "--output-bytes",
        type=int,
        metavar="N",
        help="number of bytes kept of each stream of an instance, from its end",
    )
    parser.add_argument(
        "--search-cap",
        type=int,
        metavar="N",
        help="maximum number of objects in a search response or on a page",
    )
    parser.add_argument(
        "--search-lag",
        type=float,
        metavar="SECONDS",
        help="maximum age of the state that searches show (virtual time)",
    )
    parser.add_argument(
        "--preempt",
        metavar="SEED[:RATE]",
        help="lose Flex nodes at times that the seed decides, RATE times per hour of a node (1; virtual time)",
    )
    parser.add_argument(
        "--rate-limit", type=float, metavar="N", help="respond with 429 to more than N requests per second"
    )
    parser.add_argument(
        "--like",
        metavar="PATH",
        default=os.environ.get(LIKE_VARIABLE) or None,
        help="answers.json of `python -m airflow_qarnot_pool.probe`: behave as the service that gave them "
        f"(default: {LIKE_VARIABLE} in the environment)",
    )
    parser.add_argument(
        "--speed", type=float, default=1.0, help="virtual seconds per real second (%(default)s)"
    )
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        help="directory that keeps pools, tasks, output, buckets and the account over a restart",
    )
    parser.add_argument(
        "--ready-file", metavar="PATH", help="file to write when ready: url, storage_url, token, email, pid"
    )
    parser.add_argument(
        "--exit-with-parent",
        nargs="?",
        type=int,
        const=os.getppid(),
        default=0,
        metavar="PID",
        help="stop when the process that started this one has ended",
    )
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="show on standard error what boots and runs (default: on a terminal, without a command)",
    )
    parser.add_argument(
        "command",
        nargs="*",
        metavar="COMMAND",
        help="command to run with the Airflow connection in its environment, after --; the server ends with it",
    )
    return parser


def main() -> int:
    parser = _parser()
    arguments = parser.parse_args()
    try:
        from airflow_qarnot_pool.local.backend.context import Settings
        from airflow_qarnot_pool.local.backend.persistence import VERSION
        from airflow_qarnot_pool.local.http.server import LOOPBACK, Options, serve
        from airflow_qarnot_pool.local.processes.output import DEFAULT_OUTPUT_BYTES
        from airflow_qarnot_pool.local.processes.state import State, StateError
        from airflow_qarnot_pool.local.schemas.fields import Profiles
    except ModuleNotFoundError as error:
        sys.exit(f"{error}. The local Qarnot needs: pip install 'airflow-qarnot-pool[local]'")
    if arguments.host not in LOOPBACK:
        parser.error(f"--host must be a loopback address ({', '.join(LOOPBACK)}): commands run unconfined")
    readings, cap, lag, tokens = _readings(arguments, parser)
    preemption = _preemption(arguments, parser)
    if arguments.rate_limit is not None and not 0 < arguments.rate_limit < float("inf"):
        parser.error(f"--rate-limit must be a number above 0, got {arguments.rate_limit}")
    try:
        state = State(arguments.state_dir, VERSION) if arguments.state_dir else None
    except StateError as error:
        sys.exit(str(error))
    settings = Settings(
        token=_token(arguments, state),
        email=arguments.email,
        boot_seconds=max(0.0, arguments.boot_seconds),
        close_seconds=max(0.0, arguments.close_seconds),
        cancel_seconds=max(0.0, arguments.cancel_seconds),
        readings=readings,
        output_bytes=DEFAULT_OUTPUT_BYTES
        if arguments.output_bytes is None
        else max(0, arguments.output_bytes),
        search_cap=None if cap is None else max(1, cap),
        search_lag=max(0.0, lag),
        token_seconds=tokens,
        preemption=preemption,
        rate_limit=arguments.rate_limit,
        profiles=Profiles(tuple(arguments.profile), arguments.any_profile),
    )
    options = Options(
        host=arguments.host,
        port=arguments.port,
        storage_port=arguments.storage_port,
        ready_file=arguments.ready_file,
        parent=arguments.exit_with_parent,
        settings=settings,
        speed=arguments.speed,
        allowed_hosts=tuple(arguments.allow_host),
        state=state,
        progress=sys.stderr.isatty() and not arguments.command
        if arguments.progress is None
        else arguments.progress,
        command=tuple(arguments.command),
    )
    return asyncio.run(serve(options))


def _token(arguments: argparse.Namespace, state: State | None) -> str:
    """Return the token of the options or of the environment, else that of the state, else a random one."""
    given = arguments.token or os.environ.get(TOKEN_VARIABLE)
    return given or (state.token() if state else secrets.token_urlsafe(24))


def _preemption(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> Preemption | None:
    from airflow_qarnot_pool.local.backend.preemption import Preemption

    try:
        return Preemption.parse(arguments.preempt) if arguments.preempt else None
    except ValueError as error:
        parser.error(f"--preempt must be SEED[:RATE], such as 7:60, got {arguments.preempt!r} ({error})")


#: The readings that the other options mean.
_OPTIONS = {
    "enforce": {"name-of-closed-pool": "taken until deleted", "pool-name-taken": "400"},
    "free": {"name-of-closed-pool": "not enforced"},
    "cancel": {"queued-at-close": "cancelled"},
    "leave": {"queued-at-close": "queued ones stay"},
}


def _readings(
    arguments: argparse.Namespace, parser: argparse.ArgumentParser
) -> tuple[Readings, int | None, float, float | None]:
    """Return the readings, the search cap and lag, and the life of tokens. Options count before a probe's answers."""
    from airflow_qarnot_pool.local.backend.readings import Readings, read_answers, search_limits, token_limit

    answers: dict[str, str] = {}
    if arguments.like is not None:
        try:
            answers = read_answers(Path(arguments.like).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            parser.error(f"--like is not a file of answers, got {arguments.like}: {error}")
    (cap, lag), tokens = search_limits(answers), token_limit(answers)
    readings, unknown = Readings().with_answers(answers)
    for sentence in unknown:
        print(sentence, file=sys.stderr)
    for option in (arguments.shortnames, arguments.queued):
        readings, _ = readings.with_answers(_OPTIONS.get(option, {}))
    return (
        readings,
        cap if arguments.search_cap is None else arguments.search_cap,
        lag if arguments.search_lag is None else arguments.search_lag,
        tokens,
    )


if __name__ == "__main__":
    sys.exit(main())
