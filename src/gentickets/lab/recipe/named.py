"""The parts of a recipe that name something, validated by the keys of what they name."""

from __future__ import annotations

import collections.abc
import types
import typing
from collections.abc import Mapping
from functools import cache, partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    PydanticSchemaGenerationError,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    create_model,
)

from gentickets.catalogue import Named, check_known, is_code
from gentickets.errors import RecipeError
from gentickets.lab.recipe.complaints import complaints
from gentickets.lab.recipe.owned import REQUIRED, Option, owner, owners
from gentickets.options import MOST, Names


class _Chosen(BaseModel):
    """What a recipe names, with the options of that."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: ClassVar[str]
    key: ClassVar[str] = "name"
    """The key that holds the name."""
    code_may_run: ClassVar[bool] = True
    told_by_others: ClassVar[frozenset[str]] = frozenset()
    """The options that whoever builds it knows, where they are null."""

    @property
    def options(self) -> dict[str, Any]:
        """The options, the defaults of what is not said among them."""
        return {name: value for name, value in self if name != self.key}

    def told(self, option: str, otherwise: Any) -> Any:
        """An option's value; `otherwise` where there is no such option."""
        return self.options.get(option, otherwise)

    @property
    def named(self) -> Named:
        """The same without pydantic, to be built. Raises `RecipeError` where it is code that may not run."""
        name = getattr(self, self.key)
        check_may_run(name, self.code_may_run)
        said = {
            key: value for key, value in self.options.items() if value is not None or key not in self.told_by_others
        }
        options = {key: value.named if isinstance(value, _Chosen) else value for key, value in said.items()}
        return Named(self.kind, name, options)


class NamedPart(_Chosen):
    """A model, an objective, a criterion: `name`, and its options."""

    name: str

    @property
    def called(self) -> str:
        """The name without the file or module that code is in."""
        return self.name.rpartition(":")[2]


class SearchPart(_Chosen):
    """How tickets are found: `method`, and its options."""

    kind: ClassVar[str] = "method"
    key: ClassVar[str] = "method"
    method: str


def check_may_run(name: str, code_may_run: bool) -> None:
    """Raises `RecipeError` for code that a file names and nobody allowed."""
    if is_code(name) and not code_may_run:
        raise RecipeError(f"{name} is code, which a file does not run by itself: say --allow-code if you trust it")


def named_part(kind: str, said: Any, info: ValidationInfo) -> NamedPart:
    """What stands at a key that names something of `kind`: its name, or `{name: …}` with options."""
    if isinstance(said, NamedPart):
        return said
    if isinstance(said, str):
        said = {"name": said}
    part = _validated(kind, NamedPart, said, info, info.field_name or kind)
    assert isinstance(part, NamedPart)
    return part


def named_of(kind: str, said: str | Mapping[str, Any]) -> Named:
    """What is said in the place of a recipe's key of that kind, its options checked as there. Raises `RecipeError`.

    Code that it names is run.
    """

    class Asked(BaseModel):
        part: Annotated[NamedPart, PlainValidator(partial(named_part, kind))]

    try:
        return Asked.model_validate({"part": said}).part.named
    except ValidationError as error:
        raise RecipeError(complaints(error, Asked).replace("part.", f"{kind}.", 1)) from None


def metrics_asked(said: Any, info: ValidationInfo) -> Literal["all"] | list[str | NamedPart]:
    """What stands at `evaluation.metrics`: all, or names of metrics and code of one's own."""
    if said == "all":
        return "all"
    if not isinstance(said, list | tuple) or not said:
        mend = f"[{said}]" if isinstance(said, str) else "[frechet, kid]"
        raise ValueError(f"evaluation.metrics={said!r}: all or a list of names is needed, such as {mend}")
    asked = [_metric(one, info) for one in said]
    own = [one.called for one in asked if isinstance(one, NamedPart)]
    if twice := next((name for name in own if own.count(name) > 1), None):
        raise ValueError(f"evaluation.metrics: {twice!r} is there twice: results need names that differ")
    return asked


def _metric(said: Any, info: ValidationInfo) -> str | NamedPart:
    name = said.get("name") if isinstance(said, Mapping) else said
    if isinstance(said, NamedPart) or (isinstance(said, str) and not is_code(said)):
        return said
    if not is_code(name):
        raise ValueError(f"evaluation.metrics: {said!r} is no name: write frechet, or my.py:name for one of your own")
    part = _validated(
        "metric", NamedPart, {"name": said} if isinstance(said, str) else said, info, "evaluation.metrics"
    )
    assert isinstance(part, NamedPart)
    return part


def search_part(said: Any, info: ValidationInfo) -> SearchPart:
    """What stands at `search`: a method's name, or its options with `method`, by default imp."""
    if isinstance(said, SearchPart):
        return said
    said = {"method": said} if isinstance(said, str) else said
    said = {"method": "imp", **said} if isinstance(said, dict) else said
    part = _validated("method", SearchPart, said, info, "search")
    assert isinstance(part, SearchPart)
    return part


def _validated(kind: str, base: type[_Chosen], said: Any, info: ValidationInfo, where: str) -> _Chosen:
    if not isinstance(said, Mapping):
        raise ValueError(_no_mapping(said, where, kind))
    name = said.get(base.key)
    if not isinstance(name, str):
        shown = "is missing" if name is None else f"is {name!r}: a name is needed"
        raise ValueError(
            f"{where}.{base.key} {shown}, such as {where}: {{{base.key}: {_SUCH_AS.get(kind, 'magnitude')}}}"
        )
    may_run = bool((info.context or {}).get("code_may_run", True))
    try:
        part = _part(kind, name, base, may_run)
        unsaid = {key for key, value in said.items() if _says_nothing(kind, part, key, value)}
        known = {key: value for key, value in said.items() if key not in unsaid}
        return part.model_validate(known, context={**(info.context or {}), "where": where})
    except ValidationError as error:
        raise ValueError(complaints(error, part, where)) from None
    except RecipeError as error:
        raise ValueError(f"{where}.{base.key}={error}" if name in str(error)[: len(name) + 2] else str(error)) from None


_SUCH_AS = {"model": "dcgan", "objective": "adversarial", "method": "imp"}


def _no_mapping(said: Any, where: str, kind: str) -> str:
    if said is None:
        return f"{where} is empty: write keys and values below it, or leave {where} out"
    shown = repr(said) if len(repr(said)) <= 100 else f"{repr(said)[:90]} …"
    return f"{where}={shown}: keys and values are needed below it: {where}: {{name: {_SUCH_AS.get(kind, 'magnitude')}}}"


def _part(kind: str, name: str, base: type[_Chosen], may_run: bool) -> type[_Chosen]:
    """The type of the part that names this: its options, as strictly as everything in a recipe."""
    check_known(kind, name)
    if is_code(name) and not may_run:
        kept = ConfigDict(extra="allow", frozen=True)  # of a folder: its options were checked when it was made
        return type(
            "Kept", (base,), {"model_config": kept, "kind": kind, "code_may_run": False, "__module__": __name__}
        )
    return _checked_part(kind, name, base) if not is_code(name) else _made_part(kind, name, base)


@cache
def _checked_part(kind: str, name: str, base: type[_Chosen]) -> type[_Chosen]:
    return _made_part(kind, name, base)


def _made_part(kind: str, name: str, base: type[_Chosen]) -> type[_Chosen]:
    fields: dict[str, Any] = {}
    options = owner(kind, name).options.values()
    for option in options:
        default = ... if option.default is REQUIRED or _is_given(kind, option) else option.default
        if _is_given(kind, option):
            fields[option.name] = (_strict(option.type) | None, Field(None, description=option.meaning))
            continue
        fields[option.name] = (
            _strict(option.type),
            Field(default, description=option.meaning, validate_default=_names(option.type) is not None),
        )
    made = create_model(name, __base__=base, **fields)
    made.kind = kind
    made.told_by_others = frozenset(option.name for option in options if _is_given(kind, option))
    return made


def part_of(kind: str, name: str) -> type[_Chosen]:
    """The type of the part of a recipe that names this."""
    return _part(kind, name, SearchPart if kind == "method" else NamedPart, may_run=True)


def _is_given(kind: str, option: Option) -> bool:
    """Whether what builds it knows it, where the recipe does not say it: an objective's size of a code."""
    return kind == "objective" and option.name == "latent_size" and option.default is REQUIRED


def _says_nothing(kind: str, part: type[_Chosen], key: str, value: Any) -> bool:
    """Whether a key could as well be left out: null where an option is never null, and of another thing of the kind
    null or the default."""
    if part.model_config.get("extra") == "allow":
        return False  # of code that is not loaded: what it has nobody knows
    field = part.model_fields.get(key)
    if field is not None:
        return value is None and not _takes_none(field.annotation)
    defaults = [owner(kind, name).options[key].default for name in owners(kind, key)]
    return bool(defaults) and (value is None or all(value == default for default in defaults))


def _takes_none(kind: Any) -> bool:
    return kind is Any or kind is type(None) or any(map(_takes_none, _members(kind)))


def _members(kind: Any) -> tuple[Any, ...]:
    origin = typing.get_origin(kind)
    if origin is Annotated:
        return (kind.__origin__,)
    return typing.get_args(kind) if origin in (typing.Union, types.UnionType) else ()


def _names(kind: Any) -> str | None:
    """The kind of thing that an option names, if it does."""
    if typing.get_origin(kind) is Annotated:
        return next((one.kind for one in kind.__metadata__ if isinstance(one, Names)), None)
    return next((found for one in _members(kind) if (found := _names(one))), None)


_PLAIN: Mapping[Any, Any] = {
    list: list,
    tuple: tuple,
    dict: dict,
    collections.abc.Mapping: dict,
    collections.abc.Sequence: list,
    collections.abc.Iterable: list,
}
"""What holds others → what that is in YAML."""


def _strict(kind: Any) -> Any:
    """The type as recipes take it: a number is no text and no truth value, and always a finite one."""
    if kind is float:
        return Annotated[float, Field(strict=True, allow_inf_nan=False)]
    if kind is int:
        return Annotated[int, Field(strict=True, le=MOST)]
    if kind is bool:
        return Annotated[bool, Field(strict=True)]
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        if (names := _names(kind)) is not None:
            return Annotated[SerializeAsAny[NamedPart], PlainValidator(partial(_below, names))]
        return Annotated[(_strict(kind.__origin__), *kind.__metadata__)]
    if origin in (typing.Union, types.UnionType):
        strict = [_strict(one) for one in inner]
        return typing.Union[tuple(strict)]  # noqa: UP007
    plain = _PLAIN.get(origin)
    if plain is not None and inner:
        return plain[tuple(_strict(one) if one is not ... else one for one in inner)]
    return kind if origin is Literal or kind in (str, type(None), Any) else _plain(kind)


def _plain(kind: Any) -> Any:
    """A type of somebody's own code: what pydantic knows is checked, and of the rest anything is taken."""
    try:
        create_model("tried", field=(kind, ...))
    except PydanticSchemaGenerationError:
        return Any
    return kind


def _below(kind: str, said: Any, info: ValidationInfo) -> NamedPart:
    """An option that names something itself."""
    if isinstance(said, str):
        said = {"name": said}
    where = f"{(info.context or {}).get('where', '')}.{info.field_name}".lstrip(".")
    part = _validated(kind, NamedPart, said, info, where)
    assert isinstance(part, NamedPart)
    return part
