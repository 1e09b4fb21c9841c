"""Runs services in this process: one alone, all of them on one event loop, the worker, or the coordinator."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import runpy
import signal
import threading
from collections.abc import Generator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.embedded.problems import ExitCode, RuntimeProblem
from deploy.embedded.secrets import COORDINATOR
from services.catalog import SERVICES, spec_of
from services.kit.logging import configure_logging
from services.kit.settings import Settings, SettingsError

if TYPE_CHECKING:
    import uvicorn

GRACEFUL_S = 5
"""Requests that are running get so long to end when a process is told to stop."""

KEEP_ALIVE_S = 5
BACKLOG = 2048
ENVIRONMENTS_VARIABLE = "PAWSTAY_ENVIRONMENTS_FILE"
READY_VARIABLE = "PAWSTAY_READY_FILE"
SERVED = (*(spec.name for spec in SERVICES), COORDINATOR, "worker", "all")
"""What can be served: a service, the coordinator, the worker, or all services in one process."""


def serve(what: str, environ: Mapping[str, str] = os.environ) -> None:
    """Serves a service, ``all``, ``worker`` or ``coordinator`` until SIGTERM or SIGINT.

    A service reads its settings from `environ`; ``all`` and ``worker`` read those of each service from the file that
    PAWSTAY_ENVIRONMENTS_FILE names. Raises RuntimeProblem for an unknown name or wrong settings.
    """
    names = [spec.name for spec in SERVICES]
    if what not in SERVED:
        raise RuntimeProblem(
            f"there is no service {what!r}: choose one of {', '.join(SERVED[:-1])} or {SERVED[-1]}.",
            ExitCode.USAGE,
        )
    try:
        if what == COORDINATOR:
            _serve_coordinator(environ)
        elif what == "worker":
            _serve_worker(_settings_of_workers(environ), environ)
        elif what == "all":
            _serve_web(_settings_of(names, environ))
        else:
            _serve_web({what: Settings.from_env({**environ, "PAWSTAY_SERVICE": what})})
    except SettingsError as error:
        raise RuntimeProblem(f"the settings are wrong: {error}", ExitCode.SETTING_WRONG) from error


def _serve_coordinator(environ: Mapping[str, str]) -> None:
    from coordinator.tc.config import CoordinatorSettings
    from coordinator.tc.config import SettingsError as CoordinatorSettingsError

    try:
        CoordinatorSettings.from_env(environ)  # its own entry reads them once more, and ends with a code of its own
    except CoordinatorSettingsError as error:
        raise SettingsError(str(error)) from error
    runpy.run_module("coordinator.tc", run_name="__main__", alter_sys=True)


def _settings_of(names: Sequence[str], environ: Mapping[str, str]) -> dict[str, Settings]:
    path = environ.get(ENVIRONMENTS_VARIABLE)
    if not path:
        raise SettingsError(f"{ENVIRONMENTS_VARIABLE} is missing: it names the file with the settings of each service")
    environments: dict[str, dict[str, str]] = json.loads(Path(path).read_text(encoding="utf-8"))
    return {name: Settings.from_env({**environ, **environments[name]}) for name in names}


def _settings_of_workers(environ: Mapping[str, str]) -> dict[str, Settings]:
    """The services whose messages are processed here: all that have a worker, or the one in PAWSTAY_SERVICE."""
    if environ.get(ENVIRONMENTS_VARIABLE):
        return _settings_of([spec.name for spec in SERVICES if spec.has_worker], environ)
    settings = Settings.from_env(environ)
    return {settings.service: settings}


def _serve_web(settings: Mapping[str, Settings]) -> None:
    configure_logging(next(iter(settings.values())).log_level)
    servers = [_server(name, one) for name, one in settings.items()]
    failed = uvicorn_run(servers)
    if failed:
        raise RuntimeProblem(f"{', '.join(failed)} could not start; the lines above say why.", ExitCode.START_FAILED)


def _server(name: str, settings: Settings) -> uvicorn.Server:
    import uvicorn

    class Server(uvicorn.Server):
        """A server whose process handles signals itself: several share one event loop."""

        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None, None, None]:
            """Leaves the signals to the process."""
            yield

    app: Any = import_module(f"services.{name}.app").create_app(settings)
    return Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            loop="none",
            log_config=None,
            access_log=False,
            lifespan="on",
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACEFUL_S,
        )
    )


def uvicorn_run(servers: Sequence[uvicorn.Server]) -> list[str]:
    """Serves all of `servers` on one event loop until a signal; the addresses of those that did not start."""

    async def run() -> list[str]:
        loop = asyncio.get_running_loop()

        def stop() -> None:
            for server in servers:
                server.should_exit = True

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)

        async def one(server: uvicorn.Server) -> None:
            try:
                await server.serve()
            except SystemExit:  # uvicorn's answer to a taken port; it must not tear the loop down
                pass
            finally:
                stop()  # one that ends takes the others along: the process is started again as a whole

        await asyncio.gather(*(one(server) for server in servers))
        return [f"{server.config.host}:{server.config.port}" for server in servers if not server.started]

    with asyncio.Runner(loop_factory=_new_loop) as runner:
        return runner.run(run())


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class _ReadyEvent(threading.Event):
    """An event that says `ready` when somebody begins to wait for it: the worker does so when everything is up."""

    def __init__(self, file: Path | None) -> None:
        super().__init__()
        self._file = file

    def wait(self, timeout: float | None = None) -> bool:
        if self._file is not None:
            self._file.write_text(str(os.getpid()))
        return super().wait(timeout)


def _serve_worker(settings: Mapping[str, Settings], environ: Mapping[str, str]) -> None:
    from services.kit.runtime import Runtime
    from services.kit.worker import run_workers

    if not settings:
        raise RuntimeProblem("no service has a worker.", ExitCode.USAGE)
    configure_logging(next(iter(settings.values())).log_level)
    ready_file = environ.get(READY_VARIABLE)
    stop = _ReadyEvent(Path(ready_file) if ready_file else None)

    def end(_number: int, _frame: object) -> None:
        # Once only: a second signal must not interrupt the orderly end (Dramatiq would wait for its loop for ever).
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # In a thread: this handler may have interrupted the very wait whose lock `set` needs.
        threading.Thread(target=stop.set).start()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    parts = [
        (Runtime(spec_of(name), one, processing=True), import_module(f"services.{name}.worker").declare)
        for name, one in settings.items()
    ]
    redis_url = next(iter(settings.values())).redis_url
    run_workers(redis_url, parts, stop)
