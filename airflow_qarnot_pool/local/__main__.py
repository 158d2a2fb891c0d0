"""`python -m airflow_qarnot_pool.local`: serve the local Qarnot until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import sys

from airflow_qarnot_pool.local.local_qarnot import TOKEN_VARIABLE


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_qarnot_pool.local",
        description="A Qarnot on this machine: REST API, scheduler, nodes and storage, on loopback.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="loopback address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port of the API (0: any free one)")
    parser.add_argument(
        "--storage-port", type=int, default=0, help="port of the S3 storage (0: any free one)"
    )
    parser.add_argument(
        "--token",
        help=f"API token clients must send (default: {TOKEN_VARIABLE} in the environment, or a random one)",
    )
    parser.add_argument("--email", default="local@qarnot.invalid", help="the account, and S3 access key")
    parser.add_argument(
        "--boot-seconds", type=float, default=5.0, help="how long a node boots (virtual time)"
    )
    parser.add_argument(
        "--close-seconds", type=float, default=1.0, help="how long a pool is Closing at least (virtual time)"
    )
    parser.add_argument(
        "--cancel-seconds",
        type=float,
        default=0.0,
        help="how long an aborted task is PendingCancel at least (virtual time)",
    )
    parser.add_argument(
        "--shortnames",
        choices=("enforce", "free"),
        default="enforce",
        help="refuse a shortname that is taken, or allow it",
    )
    parser.add_argument(
        "--queued",
        choices=("cancel", "leave"),
        default="cancel",
        help="what becomes of tasks that are queued when their pool ends",
    )
    parser.add_argument(
        "--output-bytes",
        type=int,
        metavar="N",
        help="how much of each stream of an instance is kept: its end",
    )
    parser.add_argument(
        "--search-cap",
        type=int,
        metavar="N",
        help="most objects in one answer of a search, or on one page",
    )
    parser.add_argument(
        "--search-lag",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="how old the state may be that searches show (virtual time)",
    )
    parser.add_argument("--speed", type=float, default=1.0, help="virtual seconds per real second")
    parser.add_argument(
        "--ready-file", metavar="PATH", help="written when ready: url, storage_url, token, email"
    )
    parser.add_argument(
        "--exit-with-parent",
        nargs="?",
        type=int,
        const=os.getppid(),
        default=0,
        metavar="PID",
        help="stop when the process that started this one is gone",
    )
    given = parser.parse_args()
    try:
        from airflow_qarnot_pool.local.backend.backend import Settings
        from airflow_qarnot_pool.local.http.server import LOOPBACK, Options, serve
        from airflow_qarnot_pool.local.processes.output import KEPT
    except ModuleNotFoundError as error:
        sys.exit(f"{error}. The local Qarnot needs: pip install 'airflow-qarnot-pool[local]'")
    if given.host not in LOOPBACK:
        parser.error(f"--host must be a loopback address ({', '.join(LOOPBACK)}): commands run unconfined")
    settings = Settings(
        token=given.token or os.environ.get(TOKEN_VARIABLE) or secrets.token_urlsafe(24),
        email=given.email,
        boot_seconds=max(0.0, given.boot_seconds),
        close_seconds=max(0.0, given.close_seconds),
        cancel_seconds=max(0.0, given.cancel_seconds),
        enforce_shortnames=given.shortnames == "enforce",
        output_bytes=KEPT if given.output_bytes is None else max(0, given.output_bytes),
        search_cap=None if given.search_cap is None else max(1, given.search_cap),
        search_lag=max(0.0, given.search_lag),
        leave_queued=given.queued == "leave",
    )
    options = Options(
        host=given.host,
        port=given.port,
        storage_port=given.storage_port,
        ready_file=given.ready_file,
        parent=given.exit_with_parent,
        settings=settings,
        speed=given.speed,
    )
    return asyncio.run(serve(options))


if __name__ == "__main__":
    sys.exit(main())
