"""Nobody forgets to say who may call an address."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from litestar import Litestar
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute

from coordinator.protocol.tokens import SigningKey
from services.catalog import SERVICES
from services.kit import auth
from services.kit.runtime import NUDGE_PATH
from services.kit.settings import Settings
from services.kit.spec import ServiceSpec

PLAIN = {auth.public, auth.any_user, auth.approved_user}
MADE = ("has_role_", "internal_")
SCHEMA_PATH = "/schema"


@pytest.fixture
def settings_folder(tmp_path: Path) -> Path:
    """Keys of one service."""
    key = SigningKey.generate("any/1")
    (tmp_path / "key.jwk").write_text(key.private_jwk())
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [key.public_jwk()]}))
    return tmp_path


def app_of(spec: ServiceSpec, folder: Path) -> Litestar:
    """The service's application; it is never started, so none of its addresses is asked."""
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    settings = Settings(
        service=spec.name,
        port=spec.port,
        database_url=nowhere,
        shard_urls={"shard-0": nowhere},
        shard_map_url=nowhere,
        key_file=folder / "key.jwk",
        keys_file=folder / "keys.json",
        service_urls={other.name: "http://127.0.0.1:1" for other in SERVICES},
    )
    app = importlib.import_module(f"services.{spec.name}.app").create_app(settings)
    assert isinstance(app, Litestar)
    return app


def handlers_of(app: Litestar) -> list[tuple[str, HTTPRouteHandler]]:
    """Every handler with its path, but the schema's own and the answers to OPTIONS that the framework makes."""
    return [
        (route.path, handler)
        for route in app.routes
        if isinstance(route, HTTPRoute) and not route.path.startswith(SCHEMA_PATH)
        for handler in route.route_handlers
        if handler.http_methods != {"OPTIONS"}
    ]


def is_ours(guard: object) -> bool:
    module, name = getattr(guard, "__module__", ""), getattr(guard, "__name__", "")
    return guard in PLAIN or (module == auth.__name__ and name.startswith(MADE))


@pytest.mark.parametrize("spec", SERVICES, ids=lambda spec: spec.name)
def test_every_address_says_once_who_may_call_it(spec: ServiceSpec, settings_folder: Path) -> None:
    """Each handler has exactly one guard of services.kit.auth; only the coordinator's nudge checks its own token."""
    handlers = handlers_of(app_of(spec, settings_folder))
    wrong = {
        f"{sorted(handler.http_methods)} {path}": [
            getattr(guard, "__name__", guard) for guard in handler.resolve_guards()
        ]
        for path, handler in handlers
        if path != NUDGE_PATH and sum(map(is_ours, handler.resolve_guards())) != 1
    }
    assert len(handlers) > 3
    assert wrong == {}


@pytest.mark.parametrize("spec", SERVICES, ids=lambda spec: spec.name)
def test_internal_addresses_are_for_services_and_public_ones_for_people(
    spec: ServiceSpec, settings_folder: Path
) -> None:
    """Whatever is under /internal names its callers; whatever is under /api never does."""
    for path, handler in handlers_of(app_of(spec, settings_folder)):
        if path == NUDGE_PATH:
            continue
        names = [getattr(guard, "__name__", "") for guard in handler.resolve_guards()]
        assert any(name.startswith("internal_") for name in names) == path.startswith("/internal/"), path


@pytest.mark.parametrize("spec", SERVICES, ids=lambda spec: spec.name)
def test_an_internal_address_lets_in_nobody_who_has_no_business_there(spec: ServiceSpec, settings_folder: Path) -> None:
    """Each caller that a guard names is a service that declares its calls of this one."""
    callers = {other.name for other in SERVICES if spec.name in other.calls}
    for path, handler in handlers_of(app_of(spec, settings_folder)):
        for guard in handler.resolve_guards():
            kind, *named = getattr(guard, "__name__", "").split("_")
            if kind == "internal":
                assert set(named) <= callers, path
