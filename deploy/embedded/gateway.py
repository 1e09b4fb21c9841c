"""The gateway as a part of the embedded system: Nginx over the routing table, with the services on loopback."""

from __future__ import annotations

from pathlib import Path

from deploy.embedded.layout import Layout
from deploy.embedded.nginx import NginxServer
from deploy.embedded.topology import HOST, NGINX, Part, Topology
from gateway.check import worker_user
from gateway.nginx import render
from gateway.routes import ROUTES
from services.catalog import SERVICES


def docs_folder(layout: Layout) -> Path:
    """Where the documentation page lies."""
    return layout.nginx / "docs"


def gateway_part(topology: Topology) -> Part:
    """Nginx, with one server behind each service's name."""
    layout = topology.layout
    log_dir = layout.logs / NGINX
    docs = docs_folder(layout)
    for folder in (log_dir, docs):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    configuration = render(
        ROUTES,
        {spec.name: [f"{HOST}:{topology.ports[spec.name]}"] for spec in SERVICES},
        port=topology.gateway_port,
        prefix_dir=layout.nginx,
        log_dir=log_dir,
        docs_dir=docs,
        user=worker_user(layout.nginx, docs),
        workers=1,
    )
    server = NginxServer(
        name=NGINX,
        binary=topology.binaries.nginx,
        folder=layout.nginx,
        log_dir=log_dir,
        port=topology.gateway_port,
        log=layout.log_of(NGINX),
        configuration=configuration,
    )
    return Part(
        name=NGINX,
        kind="nginx",
        ports={NGINX: topology.gateway_port},
        describe=server.program,
        prepare=server.prepare,
        ready=lambda _: server.ready(),
    )
