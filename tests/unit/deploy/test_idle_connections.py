"""A kept connection is let go by who asks before its server closes it: a POST that crosses the closing is lost."""

from __future__ import annotations

from deploy.serve import KEEP_ALIVE_S
from gateway.nginx import UPSTREAM_IDLE_S
from services.kit.clients import IDLE_S


def test_whoever_asks_lets_go_of_an_idle_connection_before_the_server_closes_it() -> None:
    """With a second to spare: the gateway and the services among each other."""
    assert max(UPSTREAM_IDLE_S, IDLE_S) + 1 <= KEEP_ALIVE_S
