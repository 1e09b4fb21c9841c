"""The merged document in OpenAPI 3.0, for the documentation page alone.

The page's Swagger UI (4.15, the newest that comes as a package) reads 3.0 and refuses 3.1. What 3.0 cannot say is said
more loosely, never more strictly: a tuple becomes a list of anything, a pattern of property names any name.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from gateway.openapi import Json

VERSION = "3.0.3"

_DATA = frozenset({"example", "examples"})
_SCHEMA_MEMBERS = ("items", "additionalProperties", "not")
_SCHEMA_LISTS = ("allOf", "anyOf", "oneOf")
_UNKNOWN_IN_30 = (
    "$schema", "$id", "$anchor", "$comment", "$defs", "patternProperties", "propertyNames", "prefixItems", "contains",
    "minContains", "maxContains", "dependentSchemas", "dependentRequired", "if", "then", "else", "contentEncoding",
    "contentMediaType", "contentSchema", "unevaluatedProperties", "unevaluatedItems",
)  # fmt: skip


def downgrade(document: Json) -> Json:
    """`document` (3.1) as 3.0.3; the given one stays as it is."""
    lowered: Json = _outside(deepcopy(document))
    lowered["openapi"] = VERSION
    lowered.pop("webhooks", None)
    lowered.pop("jsonSchemaDialect", None)
    lowered.get("info", {}).pop("summary", None)
    components = lowered.get("components", {})
    components.pop("pathItems", None)
    if "schemas" in components:
        components["schemas"] = {name: _schema(schema) for name, schema in document["components"]["schemas"].items()}
    return lowered


def _outside(node: Any) -> Any:
    """Everything around schemas: finds them under `schema` and lowers them."""
    if isinstance(node, list):
        return [_outside(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    return {
        key: _schema(value) if key == "schema" else value if key in _DATA or key == "schemas" else _outside(value)
        for key, value in node.items()
    }


def _schema(schema: Any) -> Any:
    if schema is True:
        return {}
    if schema is False:
        return {"not": {}}
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        beside = {k: v for k, v in schema.items() if k != "$ref"}
        return {"allOf": [{"$ref": schema["$ref"]}], **_schema(beside)} if beside else {"$ref": schema["$ref"]}

    lowered = {key: value for key, value in schema.items() if key not in _UNKNOWN_IN_30}
    for member in _SCHEMA_MEMBERS:
        if isinstance(lowered.get(member), dict):
            lowered[member] = _schema(lowered[member])
    for member in _SCHEMA_LISTS:
        if member in lowered:
            lowered[member] = [_schema(part) for part in lowered[member] if part != {"type": "null"}]
            if len(lowered[member]) < len(schema[member]):
                lowered["nullable"] = True
    if "properties" in lowered:
        lowered["properties"] = {name: _schema(part) for name, part in lowered["properties"].items()}
    if "const" in lowered:
        lowered["enum"] = [lowered.pop("const")]
    if isinstance(lowered.get("examples"), list):
        examples = lowered.pop("examples")
        if examples:
            lowered.setdefault("example", examples[0])
    _lower_type(lowered)
    _lower_bounds(lowered)
    return lowered


def _lower_type(lowered: Json) -> None:
    kinds = lowered.get("type")
    if kinds == "null":
        del lowered["type"]
        lowered.update(nullable=True, enum=[None])
    elif isinstance(kinds, list):
        others = [kind for kind in kinds if kind != "null"]
        del lowered["type"]
        if len(others) < len(kinds):
            lowered["nullable"] = True
        if len(others) == 1:
            lowered["type"] = others[0]
        elif others and "anyOf" not in lowered:
            lowered["anyOf"] = [{"type": kind, **({"items": {}} if kind == "array" else {})} for kind in others]
    if lowered.get("type") == "array":
        lowered.setdefault("items", {})
        if lowered["items"] is False or lowered["items"] is True:
            lowered["items"] = {}


def _lower_bounds(lowered: Json) -> None:
    for exclusive, bound, strictest in (("exclusiveMinimum", "minimum", max), ("exclusiveMaximum", "maximum", min)):
        limit = lowered.get(exclusive)
        if isinstance(limit, bool) or limit is None:
            continue
        inclusive = lowered.get(bound)
        if inclusive is None or (strictest(limit, inclusive) == limit):
            lowered[bound] = limit
            lowered[exclusive] = True
        else:
            del lowered[exclusive]
