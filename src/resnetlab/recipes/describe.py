"""The keys of a recipe, in words."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from resnetlab.recipes.named import BASE
from resnetlab.recipes.schema import Recipe


class FieldInfo(NamedTuple):
    """A key of a recipe, in words."""

    name: str
    value: str
    default: str
    expected: str  # the values that it may have
    description: str


def describe_fields(recipe: Recipe) -> list[FieldInfo]:
    """Every hyperparameter of a recipe but its name and description; values as JSON, as --set takes them."""
    found = []
    for name, schema in Recipe.model_json_schema()["properties"].items():
        if name in ("name", "description"):
            continue
        value, default = (json.dumps(getattr(each, name)) for each in (recipe, BASE))
        expected = " or ".join(map(_describe_values, schema.get("anyOf", [schema])))
        found.append(FieldInfo(name, value, default, expected, schema["description"]))
    return found


def _describe_values(schema: dict[str, Any]) -> str:
    """What a part of a JSON schema allows."""
    if "enum" in schema:
        return f"one of {', '.join(value if isinstance(value, str) else json.dumps(value) for value in schema['enum'])}"
    if "const" in schema:
        return str(schema["const"])
    others = {"boolean": "true or false", "null": "null", "array": "a list of numbers", "string": "a name"}
    if schema["type"] == "array" and schema.get("items", {}).get("type") == "array":
        return "a list of pairs of numbers"
    if schema["type"] in others:
        return others[schema["type"]]
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{words} {schema[key]:,}" for key, words in bounds.items() if key in schema]
    return " ".join(["a whole number" if schema["type"] == "integer" else "a number", " and ".join(limits)])
