"""The keys that a named thing owns: its fields or arguments, with their types, defaults and meanings.

Of what comes with the package they are read off its source, without running it: a wrong key is said at once, and not
after the two seconds in which torch is loaded. Of somebody's own code, which has to be run anyway, off its signature.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import inspect
import math
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from gentickets import options as option_types
from gentickets.catalogue import CATALOGUE, load
from gentickets.options import Means

GIVEN: Mapping[str, tuple[str, ...]] = {
    "model": ("size", "channels"),
    "objective": (),
    "method": (),
    "criterion": ("model", "masks", "objective", "batches", "seed", "example_inputs"),
    "around": ("objective", "teacher"),
    "metric": ("samples", "images"),
    "source": ("size", "channels", "limit", "split"),
}
"""Kind → the arguments that are no options: whoever builds it gives them."""

REQUIRED = object()
"""In the place of a default: there is none."""

_PACKAGE = Path(__file__).parents[2]
_NAMES: dict[str, Any] = {**vars(builtins), **vars(typing), **vars(option_types), "math": math, "Mapping": Mapping}


def _field(default: Any = REQUIRED, default_factory: Callable[[], Any] | None = None, **more: Any) -> Any:
    """What `dataclasses.field` would make the default."""
    return default if default_factory is None else default_factory()


_NAMES["field"] = _field


class Option(NamedTuple):
    """One key: what it may be, what it is where it is not said (or `REQUIRED`), and what it means."""

    name: str
    type: Any
    default: Any
    meaning: str


class Owner(NamedTuple):
    """A named thing, as far as recipes and listings need to know it: its first words, and its options."""

    words: str
    options: Mapping[str, Option]


def owner(kind: str, name: str) -> Owner:
    """What a named thing owns. Somebody's own code is run. Raises `RecipeError` where there is no such thing."""
    where = CATALOGUE[kind].get(name)
    if where is not None:
        return _as_written(kind, where)
    target = load(kind, name)
    words = (inspect.getdoc(target) or "").partition("\n")[0]
    given = {*GIVEN[kind], *_first_two(target)} if kind == "criterion" else set(GIVEN[kind])
    return Owner(words, {one.name: one for one in _of_signature(target) if one.name not in given})


def _first_two(target: Callable[..., Any]) -> list[str]:
    """What a criterion calls the model and the masks: its first arguments, whatever their names."""
    takes = [] if inspect.isclass(target) else list(inspect.signature(target).parameters.values())
    return [one.name for one in takes[:2] if one.default is one.empty and one.kind in (0, 1)]


def owners(kind: str, key: str) -> list[str]:
    """The things of the catalogue that have this option."""
    return [name for name in CATALOGUE.get(kind, ()) if key in owner(kind, name).options]


# -- as it is written ------------------------------------------------------------------------------------------


@cache
def _as_written(kind: str, where: str) -> Owner:
    module, _, attribute = where.partition(":")
    node = _definition(module, attribute)
    words = (ast.get_docstring(node) or "").partition("\n\n")[0].replace("\n", " ")
    found = _fields(module, node) if isinstance(node, ast.ClassDef) else _arguments(node)
    return Owner(words, {one.name: one for one in found if one.name not in GIVEN[kind]})


@cache
def _tree(module: str) -> ast.Module:
    place = _PACKAGE.joinpath(*module.split(".")[1:])
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return ast.parse(path.read_text("utf-8"))


def _definition(module: str, name: str) -> ast.ClassDef | ast.FunctionDef:
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
    raise LookupError(f"{module} defines no {name}")


def _fields(module: str, node: ast.ClassDef) -> Iterator[Option]:
    """The fields of a dataclass, those of its bases first, as `dataclasses` orders them."""
    found: dict[str, Option] = {}
    for base in reversed(node.bases):
        if isinstance(base, ast.Name) and (home := _home(module, base.id)):
            found |= {one.name: one for one in _fields(home, _class(home, base.id))}
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return iter(())  # its annotations are no fields
    for line, below in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            annotation = ast.unparse(line.annotation)
            if annotation.startswith("ClassVar"):
                found.pop(line.target.id, None)  # decided by this class, and no key of its own
                continue
            default = REQUIRED if line.value is None else _value(line.value)
            found[line.target.id] = _option(line.target.id, annotation, default, _text(below))
    return iter(found.values())


def _class(module: str, name: str) -> ast.ClassDef:
    node = _definition(module, name)
    assert isinstance(node, ast.ClassDef)
    return node


def _home(module: str, name: str) -> str | None:
    """The module of the package that a class of this name comes from; None where it is somebody else's."""
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return node.module if (node.module or "").startswith("gentickets.") else None
    return None


def _arguments(node: ast.FunctionDef) -> Iterator[Option]:
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
    for argument, value in [
        *zip(positional, defaults, strict=True),
        *zip(given.kwonlyargs, given.kw_defaults, strict=True),
    ]:
        annotation = "Any" if argument.annotation is None else ast.unparse(argument.annotation)
        default = REQUIRED if value is None else _value(value)
        yield _option(argument.arg, annotation, default, "")


def _option(name: str, annotation: str, default: Any, meaning: str) -> Option:
    try:
        found = eval(annotation, dict(_NAMES))
    except NameError:  # a type of what it is given, such as a tensor
        found = Any
    return _told(Option(name, found, default, meaning))


def _value(node: ast.expr) -> Any:
    return eval(ast.unparse(node), dict(_NAMES))


def _text(node: ast.stmt | None) -> str:
    """The words of a docstring below a field."""
    constant = node.value if isinstance(node, ast.Expr) else None
    words = constant.value if isinstance(constant, ast.Constant) else None
    return " ".join(words.split()) if isinstance(words, str) else ""


def _told(option: Option) -> Option:
    """With the meaning that its type has, where nothing else is said."""
    return option if option.meaning else option._replace(meaning=_meaning(option.type))


def _meaning(kind: Any) -> str:
    if typing.get_origin(kind) is Annotated:
        return next((one.words for one in kind.__metadata__ if isinstance(one, Means)), _meaning(kind.__origin__))
    return next((words for inner in typing.get_args(kind) if (words := _meaning(inner))), "")


# -- as it runs ------------------------------------------------------------------------------------------------


def _of_signature(target: Callable[..., Any]) -> Iterator[Option]:
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # a built-in without one
        return
    hints, words = _hints(target), _written_words(target)
    fields = dataclasses.fields(target) if dataclasses.is_dataclass(target) else ()
    made = {one.name: one.default_factory() for one in fields if one.default_factory is not dataclasses.MISSING}
    for name, one in signature.parameters.items():
        if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
            default = REQUIRED if one.default is one.empty else made.get(name, one.default)
            yield _told(Option(name, hints.get(name, Any), default, words.get(name, "")))


def _hints(target: Callable[..., Any]) -> Mapping[str, Any]:
    """The types of the arguments, as far as they can be looked up."""
    asked = [target.__init__, target] if inspect.isclass(target) else [target]
    found: dict[str, Any] = {}
    for one in asked:
        try:
            found |= typing.get_type_hints(one, include_extras=True)
        except (NameError, TypeError, AttributeError):
            continue
    return found


def _written_words(target: Callable[..., Any]) -> Mapping[str, str]:
    """Field → the docstring below it, of a class whose source is at hand."""
    if not inspect.isclass(target):
        return {}
    found: dict[str, str] = {}
    for part in reversed(target.__mro__[:-1]):
        try:
            (node,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        except (OSError, TypeError, SyntaxError, ValueError):
            continue
        body = node.body if isinstance(node, ast.ClassDef) else []
        for line, below in zip(body, [*body[1:], None], strict=True):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and (words := _text(below)):
                found[line.target.id] = words
    return found
