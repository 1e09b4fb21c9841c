"""Which programs make up an embedded system, in which order they start, and what each is told about the others."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.embedded.binaries import Binaries
from deploy.embedded.layout import Layout, write_private
from deploy.embedded.postgres import PostgresServer
from deploy.embedded.probes import http_ready, said_ready
from deploy.embedded.programs import Program
from deploy.embedded.secrets import COORDINATOR, Secrets
from deploy.embedded.valkey import ValkeyServer
from services.catalog import COORDINATOR_PORT, SERVICES
from services.kit.spec import ServiceSpec

CHECKOUT = Path(__file__).resolve().parent.parent.parent
HOST = "127.0.0.1"
MAIN = "main"
SHARDS = ("shard-0", "shard-1")
POSTGRES_SERVERS = (MAIN, *SHARDS)
SHARD_MAP = "shard_map"
VALKEY = "valkey"
NGINX = "gateway"
WORKER = "worker"
ALL_SERVICES = "services"
QUEUE_DATABASE = 0
LOCK_DATABASES = (1,)
"""One lock master for each: the embedded system has one Valkey; a cluster names independent masters instead."""

SERVICE_STOP_TIMEOUT_S = 15.0
WORKER_STOP_TIMEOUT_S = 20.0

DOCUMENTED_PORTS: Mapping[str, int] = {
    **{spec.name: spec.port for spec in SERVICES},
    COORDINATOR: COORDINATOR_PORT,
    MAIN: 8091,
    SHARDS[0]: 8092,
    SHARDS[1]: 8093,
    VALKEY: 8094,
}
"""Every port but the gateway's, as documented for a gateway on 8080."""


@dataclass(frozen=True)
class Database:
    """One database: on which server, its name, and the role that owns it."""

    server: str
    name: str
    role: str
    service: str | None

    @property
    def resource(self) -> str:
        """What the coordinator calls it: the service, with the shard where it is sharded."""
        return f"{self.name}@{self.server}" if self.server in SHARDS else self.name


DATABASES: tuple[Database, ...] = (
    *(Database(MAIN, spec.name, spec.name, spec.name) for spec in SERVICES if spec.storage == "own"),
    *(
        Database(shard, spec.name, spec.name, spec.name)
        for spec in SERVICES
        if spec.storage == "sharded"
        for shard in SHARDS
    ),
    Database(MAIN, COORDINATOR, COORDINATOR, None),
    Database(MAIN, SHARD_MAP, SHARD_MAP, None),
)
"""All databases of the system."""

ROLES = tuple(sorted({database.role for database in DATABASES}))


@dataclass(frozen=True)
class Part:
    """One program of the system, kept alive by the supervisor.

    `describe` is asked before each start, `prepare` runs before each start, and `ready` tells of a process id whether
    that process does its work.
    """

    name: str
    kind: str
    ports: Mapping[str, int]
    describe: Callable[[], Program]
    ready: Callable[[int], bool]
    prepare: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Topology:
    """One embedded system: where it lies, on which ports, in how many processes."""

    layout: Layout
    binaries: Binaries
    ports: Mapping[str, int]
    gateway_port: int
    split: bool = False

    @property
    def secrets(self) -> Secrets:
        """The keys and passwords of this system."""
        return Secrets(self.layout.secrets)

    @property
    def gateway_url(self) -> str:
        """Where people reach it."""
        return f"http://{HOST}:{self.gateway_port}"

    def url_of(self, program: str) -> str:
        """Where one service, or the coordinator, is reached from inside."""
        return f"http://{HOST}:{self.ports[program]}"

    def postgres(self, server: str) -> PostgresServer:
        """One of the PostgreSQL servers."""
        return PostgresServer(
            name=server,
            binaries=self.binaries.postgres,
            folder=self.layout.postgres(server),
            port=self.ports[server],
            log=self.layout.log_of(server),
            password=self.secrets.password("postgres"),
        )

    def valkey(self) -> ValkeyServer:
        """The Valkey server: cache, queue, and lock master."""
        return ValkeyServer(
            name=VALKEY,
            binary=self.binaries.redis,
            folder=self.layout.valkey,
            port=self.ports[VALKEY],
            log=self.layout.log_of(VALKEY),
            password=self.secrets.password(VALKEY),
        )

    def database_url(self, database: Database, *, admin: bool = False) -> str:
        """The address of one database for its own role, or for the administrator."""
        server = self.postgres(database.server)
        if admin:
            return server.dsn(database.name)
        return server.dsn(database.name, database.role, self.secrets.password(database.role))

    def databases_of(self, service: str) -> list[Database]:
        """The databases of one service, one for each shard where it is sharded."""
        return [database for database in DATABASES if database.service == service]

    def servers(self) -> list[Part]:
        """The data servers: nothing else starts before they are there."""
        parts = []
        for name in POSTGRES_SERVERS:
            server = self.postgres(name)
            parts.append(
                Part(
                    name=name,
                    kind="postgres",
                    ports={name: server.port},
                    describe=server.program,
                    prepare=server.prepare,
                    ready=lambda _, server=server: server.ready(),  # type: ignore[misc]
                )
            )
        valkey = self.valkey()
        parts.append(
            Part(
                name=VALKEY,
                kind="valkey",
                ports={VALKEY: valkey.port},
                describe=valkey.program,
                prepare=valkey.prepare,
                ready=lambda _: valkey.ready(),
            )
        )
        return parts

    def processes(self) -> list[Part]:
        """The coordinator, the services and the worker."""
        port = self.ports[COORDINATOR]
        coordinator = Part(
            name=COORDINATOR,
            kind="coordinator",
            ports={COORDINATOR: port},
            describe=lambda: self._python(COORDINATOR, ["coordinator.tc"], self.coordinator_environment()),
            ready=lambda _: http_ready(port),
        )
        names = [spec.name for spec in SERVICES]
        groups = {name: [name] for name in names} if self.split else {ALL_SERVICES: names}
        return [coordinator, *(self._services(group, members) for group, members in groups.items()), self._worker()]

    def _services(self, name: str, members: Sequence[str]) -> Part:
        def describe() -> Program:
            if self.split:
                return self._python(name, ["deploy.cli", "serve", name], self.service_environment(name))
            return self._python(name, ["deploy.cli", "serve", "all"], self._shared_environment())

        return Part(
            name=name,
            kind="services",
            ports={member: self.ports[member] for member in members},
            describe=describe,
            ready=lambda _: all(http_ready(self.ports[member]) for member in members),
        )

    def _worker(self) -> Part:
        ready_file = self.layout.run / "worker.ready"

        def describe() -> Program:
            environment = {**self._shared_environment(), "PAWSTAY_READY_FILE": str(ready_file)}
            return self._python(
                WORKER, ["deploy.cli", "serve", WORKER], environment, stop_timeout_s=WORKER_STOP_TIMEOUT_S
            )

        return Part(
            name=WORKER, kind="worker", ports={}, describe=describe, ready=lambda pid: said_ready(ready_file, pid)
        )

    def _shared_environment(self) -> dict[str, str]:
        """For a process that runs several services: a file with the environment of each."""
        file = self.layout.environments_file
        environments = {spec.name: self.service_environment(spec.name) for spec in SERVICES}
        write_private(file, json.dumps(environments, indent=1))
        return {"PAWSTAY_ENVIRONMENTS_FILE": str(file)}

    def _python(
        self,
        name: str,
        module: Sequence[str],
        environment: Mapping[str, str],
        stop_timeout_s: float = SERVICE_STOP_TIMEOUT_S,
    ) -> Program:
        return Program(
            name=name,
            # -P: the folder that the process stands in is no place to import from.
            argv=(sys.executable, "-P", "-m", *module),
            log=self.layout.log_of(name),
            cwd=self.layout.run,
            env={**inherited_environment(), **environment},
            stop_timeout_s=stop_timeout_s,
        )

    def coordinator_environment(self) -> dict[str, str]:
        """What the coordinator is told."""
        database = next(database for database in DATABASES if database.name == COORDINATOR)
        return {
            "PAWSTAY_HOST": HOST,
            "PAWSTAY_PORT": str(self.ports[COORDINATOR]),
            "PAWSTAY_DATABASE_URL": self.database_url(database),
            "PAWSTAY_KEY_FILE": str(self.secrets.key_file(COORDINATOR)),
            "PAWSTAY_KEYS_FILE": str(self.secrets.keys_file),
        }

    def service_environment(self, name: str) -> dict[str, str]:
        """What one service is told; what was changed while the system runs comes last."""
        spec: ServiceSpec = next(spec for spec in SERVICES if spec.name == name)
        valkey = self.valkey()
        environment = {
            "PAWSTAY_SERVICE": name,
            "PAWSTAY_HOST": HOST,
            "PAWSTAY_PORT": str(self.ports[name]),
            "PAWSTAY_REDIS_URL": valkey.url(QUEUE_DATABASE),
            "PAWSTAY_LOCK_REDIS_URLS": json.dumps([valkey.url(database) for database in LOCK_DATABASES]),
            "PAWSTAY_COORDINATOR_URLS": json.dumps([self.url_of(COORDINATOR)]),
            "PAWSTAY_SERVICE_URLS": json.dumps({other.name: self.url_of(other.name) for other in SERVICES}),
            "PAWSTAY_KEY_FILE": str(self.secrets.key_file(name)),
            "PAWSTAY_KEYS_FILE": str(self.secrets.keys_file),
            "PAWSTAY_MAIL_DIR": str(self.layout.mail),
            "PAWSTAY_ADMIN_PASSWORD_FILE": str(self.secrets.admin_password_file),
        }
        databases = self.databases_of(name)
        if spec.storage == "own":
            environment["PAWSTAY_DATABASE_URL"] = self.database_url(databases[0])
        else:
            shard_map = next(database for database in DATABASES if database.name == SHARD_MAP)
            environment["PAWSTAY_SHARD_URLS"] = json.dumps({d.server: self.database_url(d) for d in databases})
            environment["PAWSTAY_SHARD_MAP_URL"] = self.database_url(shard_map)
        return {**environment, **self.overrides()}

    def overrides(self) -> dict[str, str]:
        """The variables that were changed while the system runs."""
        try:
            return dict(json.loads(self.layout.overrides_file.read_text()))
        except (OSError, ValueError):
            return {}


MANAGED = frozenset(
    f"PAWSTAY_{name}"
    for name in (
        *("SERVICE", "HOST", "PORT", "DATABASE_URL", "SHARD_URLS", "SHARD_MAP_URL", "REDIS_URL", "LOCK_REDIS_URLS"),
        *("COORDINATOR_URLS", "SERVICE_URLS", "KEY_FILE", "KEYS_FILE", "MAIL_DIR", "ADMIN_PASSWORD_FILE"),
        *("ENVIRONMENTS_FILE", "READY_FILE", "CALLERS", "DATA"),
    )
)
"""Variables that describe one process of one system: they are never taken over from whoever starts it."""


def inherited_environment() -> dict[str, str]:
    """This process's environment without what describes a process; the checkout is where modules come from."""
    kept = {key: value for key, value in os.environ.items() if key not in MANAGED}
    path = os.pathsep.join(part for part in (str(CHECKOUT), os.environ.get("PYTHONPATH", "")) if part)
    return {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
