"""YAML as people mean it: the numbers and truth values of YAML 1.2, no key twice, nothing but plain data.

YAML 1.1, which PyYAML speaks, reads `yes` as 1, `0100` as 64 and `1:30` as 90, and of a key that stands twice it takes
the last, in silence. Here these are text, which a field of numbers refuses, and an error.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from gentickets.errors import RecipeError

_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
_RESOLVED = (
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")),
    (
        "float",
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+0123456789."),
    ),
)


_LONGEST = 4096
"""What is longer, and no YAML, is no text that anybody types."""


class _Loader(yaml.SafeLoader):
    """A loader of plain data, in which a key that comes twice, an alias and a tag are errors."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*name) is not taken: write it out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str | int | float | bool) or name in seen:
                what = "stands twice" if isinstance(name, str) else "is no name"
                raise yaml.YAMLError(f"the key {name!r} {what} (line {key.start_mark.line + 1})")
            seen.add(name)
        return super().construct_mapping(node, deep)


def _refused(loader: Any, node: Any) -> None:
    raise yaml.YAMLError(f"the tag {node.tag} is not taken (line {node.start_mark.line + 1})")


_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in _RESOLVED:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", _pattern, _first)
_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is not None and tag.rpartition(":")[2] in _PLAIN
}
_Loader.add_constructor(None, _refused)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back as it was: text that looks like a number is quoted, nothing is an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def write_yaml(data: Any) -> bytes:
    """Plain data as YAML, UTF-8, keys in their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True).encode()


def read_value(text: str, where: str) -> Any:
    """A value as it is typed after `key=`: a number, a truth value, null, a list or a mapping as YAML has them; quoted
    text; and any other text as it stands.

    In a file ` #` begins a comment and `---` a document; of what is typed nothing is meant to be left out. Raises
    `RecipeError`, one line that begins with `where`, for a list, a mapping or quoted text with a comment.
    """
    typed = text.strip()
    try:
        value = read_yaml(text, where)
    except RecipeError:
        if typed[:1] in ("[", "{", "'", '"') or len(typed) > _LONGEST:
            raise
        return typed
    node = yaml.compose(text, _Loader)
    if node is None or (isinstance(node, yaml.ScalarNode) and node.style not in ("'", '"')):
        whole = typed == (node.value if node is not None else "")
        return value if whole and not isinstance(value, str) else typed
    if _has_comment(text):
        raise RecipeError(f"{where} has a comment, which YAML leaves out: quote the text around ' #', or leave it out")
    return value


def _has_comment(text: str) -> bool:
    """Whether ` #` stands between the parts that YAML reads, or after them."""
    end = 0
    for token in yaml.scan(text, _Loader):
        if "#" in text[end : token.start_mark.index]:
            return True
        end = max(end, token.end_mark.index)
    return "#" in text[end:]


def read_yaml(text: str | bytes, where: str) -> Any:
    """The plain data in a text, UTF-8 where it is bytes. Raises `RecipeError`, one line that begins with `where`."""
    try:
        return yaml.load(text.decode("utf-8-sig") if isinstance(text, bytes) else text, _Loader)
    except RecursionError:
        raise RecipeError(f"{where} is no YAML: it is nested too deep") from None
    except ValueError as error:
        why = "a number has more than 4300 digits" if "digits" in str(error) else " ".join(str(error).split())[:300]
        raise RecipeError(f"{where} is no YAML: {why}") from None
    except (yaml.YAMLError, AttributeError, TypeError, OverflowError) as error:
        raise RecipeError(f"{where} is no YAML: {' '.join(str(error).split())[:300]}") from None
