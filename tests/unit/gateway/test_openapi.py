"""Merging API documents, and lowering the result for the page."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest

from gateway.openapi import MergeError, merge
from gateway.openapi30 import downgrade


def _operation(schema: str | None = None, **members: Any) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}} if schema else {}
    return {"responses": {"default": {"description": "d", "content": content}}, **members}


def _document(paths: dict[str, Any], schemas: dict[str, Any] | None = None, **members: Any) -> dict[str, Any]:
    return {
        "openapi": "3.1.0",
        "info": {"title": "t", "version": "9", "description": "What it does."},
        "paths": paths,
        "components": {"schemas": schemas or {}, "securitySchemes": {"own": {"type": "http", "scheme": "basic"}}},
        **members,
    }


def _ref_of(merged: dict[str, Any], path: str) -> str:
    content = merged["paths"][path]["get"]["responses"]["default"]["content"]
    return str(content["application/json"]["schema"]["$ref"]).rsplit("/", 1)[1]


def test_only_routed_paths_are_merged_each_under_its_service() -> None:
    """Internal and foreign paths are left out; each operation has its service as its only tag."""
    documents = {
        "order": _document({"/api/orders": {"get": _operation(tags=["x"])}, "/internal/x": {"post": _operation()}}),
        "pet": _document({"/api/pets/{id}": {"get": _operation()}, "/api/orders/{id}": {"get": _operation()}}),
    }
    merged = merge(documents)
    assert list(merged["paths"]) == ["/api/orders", "/api/pets/{id}"]
    assert merged["paths"]["/api/orders"]["get"]["tags"] == ["order"]
    assert [tag["name"] for tag in merged["tags"]] == ["order", "pet"]
    assert merged["openapi"].startswith("3.1")
    assert merged["servers"] == [{"url": "/"}]


def test_equal_components_are_shared_and_different_ones_get_their_services_name() -> None:
    """A component is shared only if everything that it leads to is equal too."""
    schemas = {
        "Page": {"properties": {"item": {"$ref": "#/components/schemas/Item"}}},
        "Item": {"type": "string"},
        "Money": {"type": "integer"},
    }
    other = {**schemas, "Item": {"type": "integer"}}
    documents = {
        "order": _document(
            {"/api/orders": {"get": _operation("Page")}, "/api/orders/m": {"get": _operation("Money")}}, schemas
        ),
        "pet": _document(
            {"/api/pets": {"get": _operation("Page")}, "/api/pets/m": {"get": _operation("Money")}}, other
        ),
    }
    merged = merge(documents)
    found = merged["components"]["schemas"]
    assert set(found) == {"Money", "order.Page", "order.Item", "pet.Page", "pet.Item"}
    assert _ref_of(merged, "/api/pets") == "pet.Page"
    assert _ref_of(merged, "/api/pets/m") == "Money"
    assert found["pet.Page"]["properties"]["item"]["$ref"] == "#/components/schemas/pet.Item"
    assert found["pet.Item"] == {"type": "integer"}


def test_components_that_only_internal_paths_use_are_left_out() -> None:
    """Nothing of the inside is told, not even the shape of its messages."""
    schemas = {"Secret": {"type": "object"}, "Open": {"type": "object"}}
    paths = {"/api/orders": {"get": _operation("Open")}, "/internal/x": {"get": _operation("Secret")}}
    assert list(merge({"order": _document(paths, schemas)})["components"]["schemas"]) == ["Open"]


def test_the_result_depends_on_nothing_but_the_documents() -> None:
    """The order of services and paths does not matter, and the given documents stay as they were."""
    documents = {
        "pet": _document({"/api/pets/b": {"get": _operation("A")}, "/api/pets/a": {"get": _operation()}}, {"A": {}}),
        "order": _document({"/api/orders": {"get": _operation("A")}}, {"A": {"type": "null"}}),
    }
    before = deepcopy(documents)
    turned = {name: {**d, "paths": dict(reversed(d["paths"].items()))} for name, d in reversed(documents.items())}
    assert json.dumps(merge(documents)) == json.dumps(merge(turned))
    assert documents == before


@pytest.mark.parametrize(
    ("own", "whole", "merged"),
    [
        ([{"own": []}], None, [{"bearer": []}]),
        ([], [{"own": []}], []),
        (None, [{"own": []}], [{"bearer": []}]),
        ([{"own": []}, {}], None, [{"bearer": []}, {}]),
        (None, None, [{"bearer": []}, {}]),
    ],
)
def test_security_becomes_the_one_bearer_scheme(own: Any, whole: Any, merged: Any) -> None:
    """Required stays required, public stays public, optional and unsaid become optional."""
    operation = _operation() if own is None else _operation(security=own)
    document = _document({"/api/orders": {"get": operation}}, **({} if whole is None else {"security": whole}))
    result = merge({"order": document})
    assert result["paths"]["/api/orders"]["get"]["security"] == merged
    assert list(result["components"]["securitySchemes"]) == ["bearer"]


def test_operation_ids_are_unique() -> None:
    """An id that two operations have is replaced in both; others stay."""
    documents = {
        "order": _document(
            {"/api/orders/{id}": {"get": _operation(operationId="Get"), "post": _operation(operationId="Pay")}}
        ),
        "pet": _document({"/api/pets/{id}": {"get": _operation(operationId="Get")}}),
    }
    paths = merge(documents)["paths"]
    ids = [paths["/api/orders/{id}"]["get"], paths["/api/orders/{id}"]["post"], paths["/api/pets/{id}"]["get"]]
    assert [operation["operationId"] for operation in ids] == ["getApiOrdersId", "Pay", "getApiPetsId"]


def test_a_reference_that_leads_nowhere_is_named() -> None:
    """A broken document is refused with the service and the reference."""
    with pytest.raises(MergeError, match=r"order: .*schemas/Gone"):
        merge({"order": _document({"/api/orders": {"get": _operation("Gone")}})})


def test_text_that_looks_like_a_reference_and_names_that_look_like_keywords_are_told_apart() -> None:
    """A `$ref` in an example is data; a property called `default` or `example` is a schema like any other."""
    schemas = {
        "A": {
            "properties": {
                "default": {"$ref": "#/components/schemas/B"},
                "example": {"$ref": "#/components/schemas/B"},
            },
            "example": {"$ref": "#/components/schemas/Nowhere"},
        },
        "B": {"discriminator": {"propertyName": "kind", "mapping": {"c": "#/components/schemas/C"}}},
        "C": {"type": "string"},
    }
    documents = {
        "order": _document({"/api/orders": {"get": _operation("A")}}, schemas),
        "pet": _document({"/api/pets": {"get": _operation("C")}}, {"C": {"type": "integer"}}),
    }
    found = merge(documents)["components"]["schemas"]
    assert found["A"]["properties"]["example"]["$ref"] == "#/components/schemas/B"
    assert found["A"]["example"] == {"$ref": "#/components/schemas/Nowhere"}
    assert found["B"]["discriminator"]["mapping"]["c"] == "#/components/schemas/order.C"


@pytest.mark.parametrize(
    ("newer", "older"),
    [
        ({"type": ["string", "null"]}, {"type": "string", "nullable": True}),
        ({"type": "null"}, {"nullable": True, "enum": [None]}),
        ({"oneOf": [{"type": "integer"}, {"type": "null"}]}, {"oneOf": [{"type": "integer"}], "nullable": True}),
        ({"type": ["string", "integer"]}, {"anyOf": [{"type": "string"}, {"type": "integer"}]}),
        ({"const": "a"}, {"enum": ["a"]}),
        ({"type": "string", "examples": ["a", "b"]}, {"type": "string", "example": "a"}),
        ({"exclusiveMinimum": 3}, {"minimum": 3, "exclusiveMinimum": True}),
        ({"exclusiveMinimum": 3, "minimum": 5}, {"minimum": 5}),
        ({"type": "array", "prefixItems": [{}], "items": False}, {"type": "array", "items": {}}),
        (
            {"additionalProperties": {"type": ["integer", "null"]}},
            {"additionalProperties": {"type": "integer", "nullable": True}},
        ),
        ({"properties": {"const": {"const": 1}}}, {"properties": {"const": {"enum": [1]}}}),
        ({"$ref": "#/x", "description": "d"}, {"allOf": [{"$ref": "#/x"}], "description": "d"}),
        ({"$ref": "#/x"}, {"$ref": "#/x"}),
    ],
)
def test_a_schema_is_lowered_to_openapi_30(newer: Any, older: Any) -> None:
    """What 3.0 cannot say is said another way or more loosely, in components and in responses alike."""
    body = {"content": {"application/json": {"schema": newer}}}
    document = _document({"/p": {"get": {"responses": {"default": body}}}}, {"A": newer})
    before = deepcopy(document)
    lowered = downgrade(document)
    assert lowered["openapi"] == "3.0.3"
    assert lowered["components"]["schemas"]["A"] == older
    assert lowered["paths"]["/p"]["get"]["responses"]["default"]["content"]["application/json"]["schema"] == older
    assert document == before
