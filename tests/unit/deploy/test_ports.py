"""The choice of ports."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.embedded.ports import DEFAULT_GATEWAY_PORT, choose_ports, is_free
from deploy.embedded.problems import ExitCode, RuntimeProblem
from deploy.embedded.topology import DOCUMENTED_PORTS
from tests.support.servers import free_port


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def documented_as(port: int, gateway: int) -> int:
    """The documented port that lands on `port` beside `gateway`."""
    return port - (gateway - DEFAULT_GATEWAY_PORT)


def test_the_documented_ports_are_those_of_the_assignment() -> None:
    """user 8081 to admin 8087, then payment, capacity, coordinator."""
    names = [
        "user",
        "pet",
        "boarding",
        "order",
        "review",
        "notification",
        "admin",
        "payment",
        "capacity",
        "coordinator",
    ]
    assert [DOCUMENTED_PORTS[name] for name in names] == list(range(8081, 8091))


def test_ports_move_with_the_gateways(tmp_path: Path) -> None:
    """Two systems lie side by side, each with the same distances."""
    gateway, wish = free_port(), free_port()
    assert choose_ports(gateway, {"a": documented_as(wish, gateway)}, tmp_path / "ports") == {"a": wish}


def test_a_taken_port_is_replaced_by_a_free_one(tmp_path: Path, taken: int) -> None:
    """Another program on a service's port keeps nothing from starting."""
    gateway = free_port()
    chosen = choose_ports(
        gateway, {"a": documented_as(taken, gateway), "b": documented_as(taken, gateway)}, tmp_path / "p"
    )
    assert taken not in chosen.values()
    assert len(set(chosen.values())) == 2
    assert all(is_free(port) for port in chosen.values())


def test_a_choice_is_kept_while_it_is_free(tmp_path: Path, taken: int) -> None:
    """A replacement stays when the documented port is free again: addresses survive a restart."""
    gateway, file = free_port(), tmp_path / "ports"
    first = choose_ports(gateway, {"a": documented_as(taken, gateway)}, file)
    again = choose_ports(gateway, {"a": documented_as(free_port(), gateway)}, file)
    assert first == again


def test_a_taken_gateway_port_is_an_error_that_names_the_way_out(tmp_path: Path, taken: int) -> None:
    """The port that people know is never changed behind their back."""
    with pytest.raises(RuntimeProblem, match=f"port {taken} is taken.*--port") as refused:
        choose_ports(taken, {}, tmp_path / "ports")
    assert refused.value.code is ExitCode.PORT_TAKEN


def test_an_unreadable_record_of_ports_is_ignored(tmp_path: Path) -> None:
    """It is made anew."""
    (tmp_path / "ports").write_text("{")
    gateway, wish = free_port(), free_port()
    assert choose_ports(gateway, {"a": documented_as(wish, gateway)}, tmp_path / "ports") == {"a": wish}
