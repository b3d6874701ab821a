"""Every key of a recipe: what it takes, its default, its bounds and its meaning, read off the recipe's own types.

`python -m gentickets.lab.recipe.keys` writes it as the page docs/keys.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rich.table import Table

from gentickets.catalogue import CATALOGUE
from gentickets.lab.recipe.named import part_of
from gentickets.lab.recipe.owned import owner
from gentickets.lab.recipe.recipe import Recipe

_NAMES = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text", "null": "null"}
_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minItems": "at least {} of them",
}
_UNBOUNDED = 10**9
_SHORT_OF = "Numbers are finite, whole ones at most 1,000,000,000,000."


class Key(NamedTuple):
    """One key, dotted, with what it takes, what it is where it is left out, what it means, and whose it is: of which
    models, objectives, methods or criteria; of all where nothing is said."""

    name: str
    takes: str
    default: str
    meaning: str
    whose: str = ""


def keys() -> Iterator[Key]:
    """Every key of a recipe. Those of a model, an objective, a method or a criterion name whose they are."""
    whole = Recipe.model_json_schema()
    for name, schema in whole["properties"].items():
        if name in _NAMED:
            kind, key = _NAMED[name]
            yield _naming(name, kind, key)
            yield from _owned(name, kind)
            continue
        part = whole["$defs"].get(schema.get("$ref", "").rpartition("/")[2])
        if part is None:
            yield _key(name, schema, name in whole["required"])
        else:
            for below, inner in part["properties"].items():
                yield _key(f"{name}.{below}", inner, below in part.get("required", ()))


_NAMED = {"model": ("model", "name"), "objective": ("objective", "name"), "search": ("method", "method")}
"""Part → the kind of thing that it names, and the key of the name."""

_BELOW = {"search.criterion": "criterion", "search.around": "around"}
"""Key that names something itself → its kind."""


def _naming(part: str, kind: str, key: str) -> Key:
    what = {"model": "What is trained", "objective": "What it is trained for", "method": "How tickets are found"}[kind]
    default = "imp" if kind == "method" else "(must be said)"
    return Key(f"{part}.{key}", f"{', '.join(CATALOGUE[kind])}, or code: my.py:name", default, f"{what}.")


def _owned(part: str, kind: str) -> Iterator[Key]:
    """The options of all things of a kind: one row where several have the same, with the default of each."""
    rows: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for name in CATALOGUE[kind]:
        schema = part_of(kind, name).model_json_schema()
        for option in owner(kind, name).options:
            key = _key(f"{part}.{option}", schema["properties"][option], option in schema.get("required", ()))
            rows.setdefault((key.name, key.takes, key.meaning), {}).setdefault(key.default, []).append(name)
    for (name, takes, meaning), defaults in rows.items():
        whose = [one for names in defaults.values() for one in names]
        told = [
            f"{default} ({', '.join(names)})" if len(defaults) > 1 else default for default, names in defaults.items()
        ]
        whole = len(whose) == len(CATALOGUE[kind])
        yield Key(name, takes, "; ".join(told), meaning, "" if whole or len(defaults) > 1 else ", ".join(whose))
        if name in _BELOW:
            yield from _owned(name, _BELOW[name])


def _key(name: str, schema: Mapping[str, Any], required: bool) -> Key:
    default = "(must be said)" if required else json.dumps(schema.get("default"))
    if name in _BELOW:
        kind = _BELOW[name]
        takes = f"{', '.join(CATALOGUE[kind]) or 'a name'}, or code: my.py:name"
        return Key(name, takes, default.replace('"', ""), schema.get("description", ""))
    return Key(name, _takes(schema), default.replace('"', ""), schema.get("description", ""))


def _takes(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words, bounds included."""
    if choices := schema.get("anyOf"):
        return " or ".join(dict.fromkeys(map(_takes, choices)))
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if schema["type"] == "array" and "prefixItems" in schema:
        words = f"{len(schema['prefixItems'])} of: {_takes(schema['prefixItems'][0])}"
    elif schema["type"] == "array":
        words = f"list of: {_takes(schema['items'])}"
    elif schema["type"] == "object":
        words = f"for each name: {_takes(schema['additionalProperties'])}"
    else:
        words = _NAMES[schema["type"]]
    bounds = [
        text.format(f"{schema[key]:,}")
        for key, text in _BOUNDS.items()
        if key in schema and schema[key] < _UNBOUNDED and not (key == "minItems" and "prefixItems" in schema)
    ]
    return f"{words} ({', '.join(bounds)})" if bounds else words


def keys_table() -> Table:
    """All keys as a table for a terminal."""
    table = Table("key", "takes", "default", "meaning", "of", caption=_SHORT_OF)
    for key in keys():
        table.add_row(*key)
    return table


def keys_page() -> str:
    """All keys as a page in Markdown."""
    rows = "\n".join(f"| `{key.name}` | {key.takes} | {key.default} | {key.meaning} | {key.whose} |" for key in keys())
    return f"""# The keys of a recipe

As `gentickets list keys` shows them. This page is written by `make keys` from the types that recipes are checked by.

A key is overridden on the command line by its dotted name, such as `training.steps=500 seeds=[0,1]`; in a file, keys
stand below their part (`training: {{steps: 500}}`). `null` means: not said. A file may have `budgets`, names with the
keys that each changes (`--budget smoke`), and a study has `study`, which names its arms by the keys that each changes
([recipes/paper/table2.yaml](../recipes/paper/table2.yaml)). {_SHORT_OF}

| key | takes | default | meaning | of |
|---|---|---|---|---|
{rows}
"""


if __name__ == "__main__":
    sys.stdout.write(keys_page())
