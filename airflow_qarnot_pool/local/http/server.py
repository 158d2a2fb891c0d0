"""Compose the local Qarnot and serve it until a signal stops it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import uvicorn
from starlette.applications import Starlette

from airflow_qarnot_pool.local.backend.backend import Backend
from airflow_qarnot_pool.local.backend.context import Settings
from airflow_qarnot_pool.local.http import (
    companion,
    control_api,
    progress,
    routes_account,
    routes_jobs,
    routes_pools,
    routes_tasks,
    routing,
)
from airflow_qarnot_pool.local.http.faults import Faults, RequestLog
from airflow_qarnot_pool.local.http.middleware import Middleware
from airflow_qarnot_pool.local.http.rate_limit import RateLimit
from airflow_qarnot_pool.local.processes.runner import Runner
from airflow_qarnot_pool.local.processes.state import State
from airflow_qarnot_pool.local.processes.storage import Storage
from airflow_qarnot_pool.local.schemas.addresses import Addresses, url_of

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Options:
    """Command-line options (see __main__.py).

    Port 0 is any free one, parent 0 no parent to watch. A command runs while the server does.
    """

    host: str
    port: int
    storage_port: int
    ready_file: str | None
    parent: int
    settings: Settings
    speed: float = 1.0
    allowed_hosts: tuple[str, ...] = ()
    state: State | None = None
    progress: bool = False
    command: tuple[str, ...] = ()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle no signal here, because `serve` stops more than the HTTP server."""
        yield


def application(backend: Backend, addresses: Addresses) -> Middleware:
    """Return the HTTP application."""
    faults, log = Faults(), RequestLog()
    app = Starlette(
        routes=[
            *routes_account.routes(backend),
            *routes_pools.routes(backend),
            *routes_tasks.routes(backend),
            *routes_jobs.routes(backend),
            *control_api.routes(backend, faults, log),
        ],
        exception_handlers={404: routing.not_found, 405: routing.wrong_method},
    )
    settings = backend.settings
    rate_limit = RateLimit(settings.rate_limit) if settings.rate_limit else None
    return Middleware(app, settings.token, addresses, faults, log, backend.date, rate_limit)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm (40 ms per response) off only if the protocol is given.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        sys.exit(
            f"The local Qarnot cannot listen on {host}:{port}: {error.strerror}. Is another one running?"
        )
    listening.listen(512)
    listening.setblocking(False)
    return listening


def _http_server(backend: Backend, addresses: Addresses) -> _Server:
    config = uvicorn.Config(
        application(backend, addresses),
        lifespan="off",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        date_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
    )
    return _Server(config)


async def _stop_after(parent: int, stop: companion.Stop) -> None:
    """Stop the server once *parent* has ended."""
    while os.getppid() == parent:
        await asyncio.sleep(0.25)
    stop.set()


def _announce(backend: Backend, ready_file: str | None) -> None:
    """Announce the addresses on standard output, and in a file that is written atomically."""
    settings = backend.settings
    line = json.dumps(
        {
            "url": backend.url,
            "storage_url": backend.storage.url,
            "token": settings.token,
            "email": settings.email,
            "pid": os.getpid(),
        }
    )
    if ready_file:
        draft = f"{ready_file}.{secrets.token_hex(4)}"
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(line + "\n")
        os.replace(draft, ready_file)
    print(line, flush=True)
    if sys.stderr.isatty():
        print(
            f"A browser shows {backend.url}/ and asks for the token. For Airflow:\n"
            f"export {companion.CONNECTION_VARIABLE}={shlex.quote(companion.connection(backend))}",
            file=sys.stderr,
        )


def _withdraw(ready_file: str | None) -> None:
    if ready_file:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(ready_file)


async def serve(options: Options) -> int:
    """Serve until SIGTERM or SIGINT, or until the parent has ended. Return the exit code."""
    stop = companion.Stop()
    failed = False
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, stop.interrupt)

    def supervisor_lost() -> None:
        nonlocal failed
        failed = True
        print("The supervisor process ended, so no command can run. Stopping.", file=sys.stderr)
        stop.set()

    # One that a killed server left would announce this server before it is ready.
    _withdraw(options.ready_file)
    listening = _listen(options.host, options.port)
    storage = Storage(
        options.host,
        options.storage_port,
        options.settings.email,
        options.settings.token,
        options.allowed_hosts,
        options.state,
    )
    scratch = tempfile.mkdtemp(prefix="qarnot-local-")
    runner = Runner(scratch, supervisor_lost, (options.state.lock,) if options.state else ())
    await runner.start()
    backend = Backend(options.settings, runner, storage, scratch)
    addresses = Addresses(listening.getsockname()[1], options.allowed_hosts)
    backend.url = url_of(options.host, addresses.port)
    if options.state is not None:
        backend.keep(options.state)
    if options.speed != 1.0:
        backend.clock.set_speed(options.speed)
    storage.start()
    server = _http_server(backend, addresses)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    watches = [asyncio.create_task(backend.live())]
    if options.parent:
        watches.append(asyncio.create_task(_stop_after(options.parent, stop)))
    while not server.started and not serving.done():
        await asyncio.sleep(0.005)
    _announce(backend, options.ready_file)
    if options.progress:
        watches.append(asyncio.create_task(progress.report(backend, sys.stderr)))
    code = 0
    if options.command:
        code = await companion.run(options.command, backend, stop)
    else:
        await stop.wait()
    server.should_exit = server.force_exit = True
    for watch in watches:
        watch.cancel()
    await backend.stop()
    await runner.stop()
    await asyncio.wait([serving], timeout=3)
    await asyncio.to_thread(storage.stop)
    # The supervisor has removed the directory, but a copy from or to a bucket may still have run in a thread.
    await loop.shutdown_default_executor()
    shutil.rmtree(scratch, ignore_errors=True)
    if options.state is not None:
        backend.note()
        backend.save()
        options.state.close()
    _withdraw(options.ready_file)
    return 1 if failed else code
