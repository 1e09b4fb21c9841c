"""One API document out of the services' own. Pure: documents in, document out, the same for the same input.

Only what the routing table lets through is in it, under the service that it goes to. Equal components are shared;
different ones of one name get their service's name in front, in every service that has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any

from gateway.routes import ROUTES, RouteTable

Json = dict[str, Any]

VERSION = "3.1.0"
TITLE = "PawStay"
API_VERSION = "0.1.0"
SECURITY_SCHEME = "bearer"
METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")

_REF_ROOT = "#/components/"
_OPAQUE = frozenset({"example", "examples", "default", "const", "enum"})
"""Members whose content is data, not description: a `$ref` in there is somebody's text."""

_NAMED = frozenset(
    {"properties", "patternProperties", "$defs", "responses", "headers", "content", "callbacks", "links", "encoding"}
)
"""Members whose own members are names somebody chose, of which `default` may be one, not keywords."""

_Key = tuple[str, str]
"""A component: its section ("schemas") and its name."""


class MergeError(ValueError):
    """The documents cannot be one: the message names the service and the place."""


def merge(documents: Mapping[str, Json], *, table: RouteTable = ROUTES, api_version: str = API_VERSION) -> Json:
    """The OpenAPI 3.1 document of everything that is reachable from outside.

    `documents` are the services' own, by service name. Paths that are not routed to their service are left out, and so
    are components that nothing uses any more. Each operation carries its service as its only tag; any security
    requirement becomes the one scheme `bearer`, an operation without one takes the token where there is one. Raises
    MergeError for a reference to a component that is not there.
    """
    routed = {service: _routed_paths(service, documents[service], table) for service in sorted(documents)}
    used = {service: _reachable(service, documents[service], paths) for service, paths in routed.items()}
    names = _names(documents, used)

    merged_paths: Json = {}
    components: Json = {}
    operation_ids = _operation_ids(routed)
    for service, paths in routed.items():
        for path, item in paths.items():
            moved = _renamed(item, names[service])
            _finish_operations(moved, service, path, documents[service], operation_ids)
            merged_paths[path] = moved
        for section, name in used[service]:
            new_name = names[service][section, name]
            body = documents[service]["components"][section][name]
            components.setdefault(section, {})[new_name] = _renamed(body, names[service])

    merged_components = {section: dict(sorted(components[section].items())) for section in sorted(components)}
    merged_components["securitySchemes"] = {
        SECURITY_SCHEME: {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    }
    return {
        "openapi": VERSION,
        "info": {"title": TITLE, "version": api_version},
        "servers": [{"url": "/"}],
        "tags": [_tag(service, documents[service]) for service, paths in routed.items() if paths],
        "paths": dict(sorted(merged_paths.items())),
        "components": merged_components,
    }


def _routed_paths(service: str, document: Json, table: RouteTable) -> Json:
    found = {}
    for path, item in sorted(document.get("paths", {}).items()):
        route = table.find(path)
        if route is not None and route.service == service:
            found[path] = item
    return found


def _reachable(service: str, document: Json, start: Any) -> list[_Key]:
    """The components that `start` refers to, directly or not, sorted. Security schemes are ours, never theirs."""
    known = document.get("components", {})
    seen: set[_Key] = set()
    waiting = [start]
    while waiting:
        for key in _references(waiting.pop()):
            section, name = key
            if key in seen:
                continue
            if name not in known.get(section, {}):
                raise MergeError(f"{service}: the document has no {_REF_ROOT}{section}/{name}, but refers to it")
            seen.add(key)
            waiting.append(known[section][name])
    return sorted(seen)


def _names(documents: Mapping[str, Json], used: Mapping[str, list[_Key]]) -> dict[str, dict[_Key, str]]:
    """What each service's components are called in the merged document."""
    holders: dict[_Key, list[str]] = {}
    for service, keys in used.items():
        for key in keys:
            holders.setdefault(key, []).append(service)

    def meaning(service: str, key: _Key) -> Json:
        # A component means the same in two services only if all that it leads to does.
        body = documents[service]["components"][key[0]][key[1]]
        closure = [key, *_reachable(service, documents[service], body)]
        return {"/".join(k): documents[service]["components"][k[0]][k[1]] for k in closure}

    names: dict[str, dict[_Key, str]] = {service: {} for service in used}
    for key, services in sorted(holders.items()):
        first = meaning(services[0], key)
        shared = all(meaning(service, key) == first for service in services[1:])
        for service in services:
            section, name = key
            new_name = name if shared else f"{service}.{name}"
            while new_name != name and (section, new_name) in holders:
                new_name += "_"
            names[service][key] = new_name
    return names


def _references(node: Any) -> Iterator[_Key]:
    for reference in _walk(node, lambda text: None):
        section, _, name = reference.removeprefix(_REF_ROOT).partition("/")
        yield section, name.split("/", 1)[0]


def _renamed(node: Any, names: Mapping[_Key, str]) -> Any:
    """A copy of `node` whose references follow `names`."""

    def follow(reference: str) -> str:
        section, _, rest = reference.removeprefix(_REF_ROOT).partition("/")
        name, slash, deeper = rest.partition("/")
        return f"{_REF_ROOT}{section}/{names[section, name]}{slash}{deeper}"

    copied = deepcopy(node)
    for _ in _walk(copied, follow):
        pass
    return copied


def _walk(node: Any, change: Callable[[str], str | None], *, named: bool = False) -> Iterator[str]:
    """Yields every local component reference below `node`, replacing it in place by what `change` gives (None: kept).

    `named` says that `node` is the value of one of the members in _NAMED.
    """
    if isinstance(node, list):
        for entry in node:
            yield from _walk(entry, change)
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if not named and key in _OPAQUE:
            continue
        if not named and key == "discriminator" and isinstance(value, dict) and isinstance(value.get("mapping"), dict):
            yield from _texts(value["mapping"], list(value["mapping"]), change)
        elif not named and key == "$ref" and isinstance(value, str):
            yield from _texts(node, [key], change)
        else:
            yield from _walk(value, change, named=not named and key in _NAMED)


def _texts(holder: Json, keys: list[str], change: Callable[[str], str | None]) -> Iterator[str]:
    for key in keys:
        reference = holder[key]
        if isinstance(reference, str) and reference.startswith(_REF_ROOT):
            yield reference
            replacement = change(reference)
            if replacement is not None:
                holder[key] = replacement


def _operation_ids(routed: Mapping[str, Json]) -> frozenset[str]:
    """The operation ids that more than one operation has."""
    seen: set[str] = set()
    twice: set[str] = set()
    for paths in routed.values():
        for item in paths.values():
            for method in METHODS:
                operation_id = item.get(method, {}).get("operationId")
                if operation_id in seen:
                    twice.add(operation_id)
                elif operation_id:
                    seen.add(operation_id)
    return frozenset(twice)


def _finish_operations(item: Json, service: str, path: str, document: Json, ambiguous: frozenset[str]) -> None:
    for method in METHODS:
        operation = item.get(method)
        if operation is None:
            continue
        operation["tags"] = [service]
        operation["security"] = _security(operation.get("security", document.get("security")))
        operation.pop("servers", None)
        if operation.get("operationId") in ambiguous:
            slug = "".join(part.strip("{}").title() for part in path.split("/") if part)
            operation["operationId"] = f"{method}{slug}"
    item.pop("servers", None)


def _security(requirement: list[Json] | None) -> list[Json]:
    if requirement is None:
        return [{SECURITY_SCHEME: []}, {}]
    if not any(requirement):
        return []  # none is asked for, or only the empty one
    optional = any(not alternative for alternative in requirement)
    return [{SECURITY_SCHEME: []}, {}] if optional else [{SECURITY_SCHEME: []}]


def _tag(service: str, document: Json) -> Json:
    description = document.get("info", {}).get("description")
    return {"name": service, "description": description} if description else {"name": service}
